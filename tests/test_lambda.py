"""The README's functions, as Lambda runs them.

The runner runs under AWS's own Runtime Interface Emulator, which is Lambda's front end, with AWS's
own `awslambdaric`, which is what its Python runtimes consist of; S3 is SeaweedFS. The emulator is
in the package aws-sam-cli: https://docs.aws.amazon.com/lambda/latest/dg/images-test.html
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

import readme
from metric_filter import extract
from s3_scheduler import Scheduler, demo

pytestmark = pytest.mark.recipes

HANDLER = readme.find("Set it up", "python", "SHARD")
# A run without a time limit, as on the README's first screen.
FIRST_SCREEN = """
from s3_scheduler import Scheduler, run_due
scheduler = Scheduler("my-bucket", "later")
def handler(event, context):
    run_due(scheduler).raise_for_failures()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Run a SeaweedFS for the buckets that the README names."""
    with demo.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as endpoint:
        client = endpoint.client(max_pool_connections=32)
        for bucket in ("my-bucket", "shop-emails", "shop-done"):
            client.create_bucket(Bucket=bucket)
        yield endpoint
        client.close()


@pytest.fixture
def s3(server):
    """Empty those buckets first."""
    client = server.client(max_pool_connections=32)
    for bucket in ("my-bucket", "shop-emails"):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            if found := [{"Key": entry["Key"]} for entry in page.get("Contents", ())]:
                client.delete_objects(Bucket=bucket, Delete={"Objects": found})
    yield client
    client.close()


def environ(server):
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL_S3": server.url,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def emulator():
    arch = {"x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine()]
    [file] = [
        file
        for file in importlib.metadata.files("aws-sam-cli")
        if file.name == f"aws-lambda-rie-{arch}"
    ]
    return file.locate()


class Function:
    """A Lambda function: its code, its time-out in seconds, and what it has logged."""

    def __init__(self, directory, code, timeout, environment):
        (directory / "app.py").write_text(code)
        rie = directory / "rie"
        shutil.copy(emulator(), rie)
        rie.chmod(0o755)
        port, api_port = demo._free_ports(2)
        self.url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"
        self.log_file = directory / "log"
        command = [
            *(rie, "--runtime-interface-emulator-address", f"127.0.0.1:{port}"),
            *("--runtime-api-address", f"127.0.0.1:{api_port}"),
            *(sys.executable, "-m", "awslambdaric", "app.handler"),
        ]
        environment = {
            **environment,
            "PYTHONPATH": str(directory),
            "HOME": str(directory),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(timeout),
        }
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise TimeoutError(self.log)

    @property
    def log(self):
        return self.log_file.read_text(errors="replace")

    def invoke(self, event=None):
        """Invoke it and wait: its answer, or what Lambda says of its end."""
        request = urllib.request.Request(self.url, json.dumps(event or {}).encode())
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=100
        ) as answer:
            text = answer.read().decode()
        return json.loads(text) if text[:1] in ("{", "n") else text

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def function(tmp_path, server):
    """Deploy a function; what was deployed ends with the test."""
    deployed = []

    def deploy(code, timeout, **environment):
        directory = tmp_path / str(len(deployed))
        directory.mkdir()
        deployed.append(Function(directory, code, timeout, {**environ(server), **environment}))
        return deployed[-1]

    yield deploy
    for it in deployed:
        it.kill()


def schedule(s3, count, bucket="shop-emails", key="welcome/{}.json"):
    """Schedule events that are due, each a second after the one before."""
    scheduler = Scheduler("my-bucket", "later", s3)
    now = datetime.now(timezone.utc)

    def one(number):
        due = now - timedelta(seconds=count - number)
        scheduler.schedule(due, bucket, key.format(number), f"content of {number}")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(count)))


def keys(s3, bucket):
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def test_a_tick_delivers_what_is_due(s3, function):
    """What is due arrives, what is not stays, and the summary line is in the log for the alarm."""
    schedule(s3, 3)
    later = Scheduler("my-bucket", "later", s3).schedule(timedelta(hours=1), "shop-emails", "k", "")
    tick = function(HANDLER, 60)
    assert tick.invoke() is None
    assert keys(s3, "shop-emails") == [f"welcome/{number}.json" for number in range(3)]
    assert keys(s3, "my-bucket") == [later]
    assert tick.invoke() is None
    pattern = re.search('FilterPattern: "(.+)"', readme.find("What to alarm on", "yaml"))[1]
    found = [extract(pattern, line) for line in tick.log.splitlines()]
    delays = [float(fields["$seconds"]) for fields in found if fields]
    assert len(delays) == 2
    assert 1 < delays[0] < 60
    assert delays[1] == 0


def test_a_failing_event_is_an_error_of_the_function(s3, function):
    """So that Lambda's own metric of errors counts it; the other events arrive all the same."""
    schedule(s3, 1, bucket="another-bucket")
    schedule(s3, 2)
    answer = function(HANDLER, 60).invoke()
    assert answer["errorType"] == "RunFailed"
    assert "1 event failed" in answer["errorMessage"]
    assert "is not one of target_buckets" in answer["errorMessage"]
    assert len(keys(s3, "shop-emails")) == 2
    assert len(keys(s3, "my-bucket")) == 1


def test_a_backlog_beyond_the_time_out_is_left_for_the_next_tick(s3, function):
    """A run stops by itself in time, without an error, and the next goes on from there."""
    schedule(s3, 1500)
    tick = function(HANDLER, 12)
    assert tick.invoke() is None  # a time-out would be told
    assert " unfinished 1 " in tick.log
    left = len(keys(s3, "my-bucket"))
    assert 0 < left < 1500
    assert left + len(keys(s3, "shop-emails")) == 1500
    assert tick.invoke() is None
    assert len(keys(s3, "my-bucket")) < left


def test_a_time_out_that_kills_the_process_loses_nothing(s3, function):
    """Every event is at its source or its target, and the next ticks deliver the rest."""
    schedule(s3, 1500)
    for seconds in (1, 2, 4, 8):  # until it comes so far as to copy
        answer = function(FIRST_SCREEN, seconds).invoke()
        assert f"Task timed out after {seconds}.00 seconds" in str(answer)
        if keys(s3, "shop-emails"):
            break
    waiting = {name.split("|")[2] for name in keys(s3, "my-bucket")}
    arrived = set(keys(s3, "shop-emails"))
    everything = {f"welcome/{number}.json" for number in range(1500)}
    assert arrived
    assert waiting
    assert waiting | arrived == everything
    # What is at both is what the next run delivers once more.
    assert len(waiting & arrived) <= 100 + 32
    tick = function(HANDLER, 60)
    while keys(s3, "my-bucket"):
        assert tick.invoke() is None
    assert set(keys(s3, "shop-emails")) == everything
    for number in (0, 750, 1499):
        body = s3.get_object(Bucket="shop-emails", Key=f"welcome/{number}.json")["Body"].read()
        assert body == b"content of %d" % number


def test_shards_share_the_folder(s3, function):
    """Each function takes its share by its environment, and none is left or delivered twice."""
    schedule(s3, 40)
    copied = 0
    for shard in ("0/4", "1/4", "2/4", "3/4"):
        tick = function(HANDLER, 60, SHARD=shard)
        assert tick.invoke() is None
        copied += int(re.search(r" copied (\d+) ", tick.log)[1])
    assert copied == 40
    assert keys(s3, "my-bucket") == []
    assert len(keys(s3, "shop-emails")) == 40


def test_finer_than_a_minute(s3, function):
    """The loop inside the function delivers what comes due meanwhile, and ends before its time."""
    loop = HANDLER + readme.find("Set it up", "python", "time.sleep")
    tick = function(loop, 27)
    Scheduler("my-bucket", "later", s3).schedule(timedelta(seconds=4), "shop-emails", "k", "x")
    assert tick.invoke() is None  # a time-out would be told
    assert keys(s3, "shop-emails") == ["k"]
    assert tick.log.count("run_due s3://") in (2, 3)


@pytest.mark.parametrize("where", ["cron", "Kubernetes"])
def test_outside_lambda(s3, server, tmp_path, where):
    """The command of the crontab, and that of the container, deliver."""
    schedule(s3, 2)
    if where == "cron":
        line = readme.find("Set it up", "crontab", fold="cron").split(maxsplit=5)[5]
        command = ["/bin/sh", "-c", line.replace("/tmp/run-due.lock", str(tmp_path / "lock"))]
    else:
        import yaml  # noqa: PLC0415

        job = yaml.safe_load(readme.find("Set it up", "yaml", fold="cron"))
        [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        command = [*container["command"], *container["args"]]
    done = subprocess.run(command, env=environ(server), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(keys(s3, "shop-emails")) == 2
    assert keys(s3, "my-bucket") == []
