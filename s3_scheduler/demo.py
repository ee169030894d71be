"""The library at work on an S3 of its own: no AWS account, nothing to set up."""

import logging
import os
import re
import sys
import time

import boto3
from botocore.config import Config

try:
    from moto.server import ThreadedMotoServer
except ImportError as error:
    raise ImportError(f"{error}; pip install 'moto[s3]' flask flask-cors") from error

_STORY = """\
# moto, an S3 server for tests, answers at {url}. To look from a second terminal:
    export AWS_ENDPOINT_URL={url} AWS_DEFAULT_REGION=us-east-1
    export AWS_ACCESS_KEY_ID=demo AWS_SECRET_ACCESS_KEY=demo
    {python} -m s3_scheduler list s3://my-bucket/later
    aws --endpoint-url {url} s3 ls --recursive s3://inbox
# 1. SCHEDULE objects now, to appear in the bucket "inbox" when they are due
import time
from datetime import timedelta
from s3_scheduler import Scheduler, run_due
scheduler = Scheduler("my-bucket", "later", client=client)
scheduler.schedule(timedelta(seconds=5), "inbox", "hello.txt", "Hello!")
oops = scheduler.schedule(timedelta(seconds=7), "inbox", "oops.txt", "Oops")
tea = scheduler.schedule(timedelta(hours=1), "inbox", "tea.txt", "Tea time")
# 2. LOOK: the folder is the queue, in order of time (UTC); names say it all
for event in scheduler.pending():
    print(event.name)
# 3. CHANGE YOUR MIND, with the names that schedule returned
scheduler.cancel(oops)
scheduler.reschedule(tea, timedelta(seconds=8))
# 4. RUN: in a loop here; in production every minute, with ahead=50
while list(scheduler.pending()):
    run_due(scheduler, ahead=1).raise_for_failures()
    there = client.list_objects_v2(Bucket="inbox").get("Contents", [])
    print(time.strftime("%H:%M:%SZ", time.gmtime()), [entry["Key"] for entry in there])
    time.sleep(0.5)
# The server ends now, and all that it held in memory. What to do next:
    deploy a runner          README.md, "Deploy it in ten minutes"
    try a bucket of yours    s3-scheduler check s3://YOUR-BUCKET/later"""


def main() -> int:
    """Tell the story, in some 15 seconds, on a server of its own; returns the exit status."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]  # the user's accounts are none of its business
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    session = boto3.Session("demo", "demo", region_name="us-east-1")
    client = session.client("s3", endpoint_url=url, config=Config(proxies={}))
    client.create_bucket(Bucket="my-bucket")
    client.create_bucket(Bucket="inbox")
    names = {"client": client}
    try:
        for code in re.split(r"\n(?! )", _STORY.format(url=url, python=sys.executable)):
            if code.startswith("#"):
                time.sleep(1)
                print(f"\n{code[2:]}\n")
            else:
                print(">>> " + code.replace("\n", "\n... "))
                exec(compile(code + "\n", "demo", "single"), names)  # noqa: S102 - a prompt, too
    finally:
        server.stop()  # or it would meet a last request while Python ends, and complain
    return 0
