"""Clients, and a fake in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import ProxyHandler, build_opener

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[2]


@lru_cache
def session() -> Any:
    import boto3  # noqa: PLC0415  (the server does without)

    return boto3.Session("fake", "fake", region_name="us-east-1")


def client(url: str, **config: Any) -> Any:
    """A boto3 client that makes one attempt, unless `config` (botocore's) says otherwise."""
    from botocore.config import Config  # noqa: PLC0415

    defaults = {"s3": {"addressing_style": "path"}, "retries": {"total_max_attempts": 1}}
    options = Config(**{**defaults, "proxies": {}, **config})
    return session().client("s3", endpoint_url=url, config=options)


class Remote:
    """A fake in another process, with as much of `FakeS3` as JSON can carry."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self.pid = url, pid
        self._clients = ExitStack()

    def client(self, **config: Any) -> Any:
        return self._clients.enter_context(closing(client(self.url, **config)))

    def _control(self, name: str, **options: Any) -> Any:
        body = json.dumps([name, options]).encode()
        with build_opener(ProxyHandler({})).open(f"{self.url}/?control", body) as answer:
            return json.load(answer)

    def fill(self, **options: Any) -> None:
        self._control("fill", **options)

    def reset(self) -> None:
        self._control("reset")

    def set(self, **controls: Any) -> None:
        """Set such as `latency=0.03`, `server="swift"` or `limit={"writes": 100}`."""
        self._control("set", **controls)

    def sicken(self, bucket: str = "", ailment: str = "") -> None:
        self._control("sicken", bucket=bucket, ailment=ailment)

    def count(self) -> Counter[str]:
        return Counter(self._control("count"))

    def sizes(self) -> dict[str, int]:
        return dict(self._control("sizes"))


@contextmanager
def spawn(latency: float = 0.0, **fill: Any) -> Iterator[Remote]:
    """A fake in a process of its own, filled as by `FakeS3.fill`."""
    command = [sys.executable, "-m", __package__, "--until-eof", f"--latency={latency}"]
    command += [f"--{name}={value}" for name, value in fill.items()]
    with subprocess.Popen(
        command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        remote = Remote(process.stdout.readline().strip(), process.pid)
        try:
            yield remote
        finally:
            remote._clients.close()
            process.kill()
