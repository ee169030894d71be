"""The SeaweedFS that tests start: it stands alone, and ends with them."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.seaweedfs import seaweedfs

pytestmark = pytest.mark.slow


def is_there(url):
    """Whether the server listens, or has left its sockets in /tmp."""
    port = int(url.rpartition(":")[2])
    return is_listening(port) or Path(f"/tmp/seaweedfs-s3-grpc-{port + 10_000}.sock").exists()


def is_listening(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_several_servers_run_side_by_side():
    """Each has ports, data and keys of its own; nothing of them stays."""
    with seaweedfs() as one, seaweedfs() as other:
        servers = {"bucket-a": one, "bucket-b": other}
        for name, server in servers.items():
            server.client().create_bucket(Bucket=name)
        for name, server in servers.items():
            [bucket] = server.client().list_buckets()["Buckets"]
            assert bucket["Name"] == name
    assert not any(is_there(server.url) for server in servers.values())


def test_it_ends_with_its_process(tmp_path):
    """Even if that is killed, no server and no file stays."""
    code = """
from support.seaweedfs import seaweedfs
with seaweedfs() as endpoint:
    print(endpoint.url, flush=True)
    input()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(Path(__file__).parent), "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    url = child.stdout.readline().strip()
    assert is_there(url)
    child.kill()
    child.communicate()
    while is_there(url) or list(tmp_path.iterdir()):
        time.sleep(0.01)


def test_a_server_that_does_not_start_has_the_last_word(tmp_path, monkeypatch):
    """What SeaweedFS wrote before it died is shown."""
    weed = tmp_path / "weed"
    weed.write_text("#!/bin/sh\necho no space left on device >&2; exit 1\n")
    weed.chmod(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(RuntimeError, match="last words: no space left on device"), seaweedfs():
        raise AssertionError
