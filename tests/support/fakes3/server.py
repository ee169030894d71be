"""The server and its controls."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
import threading
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sortedcontainers import SortedDict  # type: ignore[import-untyped]

from .clients import client
from .faults import (
    AILMENTS,
    CopyError,
    Cut,
    Delay,
    Empty,
    Error,
    Fault,
    Hang,
    Html,
    KeyErrors,
    Obj,
    Rate,
    Request,
    Reset,
    sick,
)
from .objects import new_object
from .operations import Operations, understood
from .servers import SERVERS
from .wire import Answer, S3Error, dechunk, parsed_headers, xml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class FakeS3(Operations):
    """The server and its controls. A context manager: it serves from a thread.

    `fault`, `before`, `after` and a callable `latency` are called in that thread: they may `put`
    and `delete`, but must not wait or make requests. What they raise is raised again at the exit.
    """

    def __init__(
        self, *buckets: str, server: str = "aws", port: int = 0, recording: bool = True
    ) -> None:
        super().__init__()
        self.server = SERVERS[server]
        self.port = port
        self.recording = recording  # whether to keep `log` and `history`
        self.buckets.update({bucket: SortedDict() for bucket in buckets})
        self.log: list[Request] = []  # in the order of arrival
        self.latency: float | Callable[[Request], float] = 0.0  # seconds before a request acts
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.before: Callable[[Request], object] = lambda request: None  # just before it acts
        self.after: Callable[[Request], object] = lambda request: None  # just after
        self.connections: set[Connection] = set()
        self._clients = ExitStack()
        self._counts: Counter[str] = Counter()
        self._broken: list[Exception] = []

    def __enter__(self) -> FakeS3:  # noqa: PYI034  (Self is 3.11's)
        self.loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = self._listener.getsockname()[1]
        serving = self.loop.create_server(lambda: Connection(self), sock=self._listener)
        self._server = self.loop.run_until_complete(serving)
        self._thread = threading.Thread(target=self._serve, name="fakes3", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self._clients.close()
        if self._broken and kind is None:
            raise self._broken[0]

    def _serve(self) -> None:
        self.loop.run_forever()
        self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **config: Any) -> Any:
        """Make a boto3 client (see below), which lives as long as the server."""
        return self._clients.enter_context(closing(client(self.url, **config)))

    def create(self, *buckets: str) -> None:
        """Make buckets, where they are missing."""
        with self._lock:
            for bucket in buckets:
                self.buckets.setdefault(bucket, SortedDict())

    def differ(self, **peculiarities: Any) -> None:
        """Let the server differ from what it is in these fields of `Server`."""
        self.server = replace(self.server, **peculiarities)

    def put(
        self,
        bucket: str,
        key: str,
        content: bytes = b"",
        *,
        size: int | None = None,
        **headers: str,
    ) -> Obj:
        """Store an object without a request; headers as in `content_type`, `x_amz_meta_author`.

        With `size` it is listed and copied as if it were so large; a GET answers `content`.
        """
        names = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        obj = new_object(names, content, size)
        with self._lock:
            self._changed("put", bucket, key, obj)
        return obj

    def delete(self, bucket: str, key: str) -> None:
        with self._lock:
            self._changed("delete", bucket, key, self.buckets[bucket][key])

    def fill(
        self,
        *,
        waiting: int = 0,
        due: int = 0,
        ago: float = 3600,
        bucket: str = "events",
        folder: str = "later",
        target: str = "target",
        key: str = "{i}",
        size: int = 0,
    ) -> None:
        """Store events: `due` of them `ago` seconds ago, `waiting` ten years on, 1 µs apart."""
        now = datetime.now(timezone.utc).replace(tzinfo=None)
        obj = new_object({}, bytes(size))
        names = {}
        for start, count in ((now - timedelta(seconds=ago), due), (now + timedelta(3650), waiting)):
            for i in range(count):
                when = (start + timedelta(microseconds=i)).isoformat(timespec="microseconds")
                names[f"{folder}/{when}Z|{target}|{key.format(i=i)}"] = obj
        with self._lock:
            self.create(bucket, target)
            self.buckets[bucket].update(names)
        if not self.recording:
            gc.freeze()  # or each collection would look through a million names again

    def count(self) -> Counter[str]:
        """Requests so far, by operation."""
        return Counter(self._counts)

    def reset(self) -> None:
        """Empty the buckets and forget what was."""
        with self._lock:
            self.buckets = {bucket: SortedDict() for bucket in self.buckets}
            for memory in (self.uploads, self.log, self.history, self._counts):
                memory.clear()

    def set(self, **controls: Any) -> None:
        """Set attributes; a server by its name, a limit by the arguments of `Rate`."""
        for name, value in controls.items():
            if name == "server" and isinstance(value, str):
                self.server = SERVERS[value]
            elif name == "limit" and isinstance(value, dict):
                self.limit = Rate(**value)
            else:
                setattr(self, name, value)

    def sicken(self, bucket: str = "", ailment: str = "") -> None:
        """Let a bucket be sick in one of these ways: AILMENTS; without arguments, none."""
        self.fault = sick(bucket, AILMENTS[ailment]) if bucket else lambda request: None

    def sizes(self) -> dict[str, int]:
        """How many objects each bucket holds."""
        return {bucket: len(objects) for bucket, objects in self.buckets.items()}

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  (raised again by __exit__)
            self._broken.append(error)

    def arrived(self, request: Request) -> tuple[Fault | None, float]:
        """Count and log a request; what befalls it, and after how many seconds it acts."""
        self._counts[request.operation] += 1
        if self.recording:
            self.log.append(request)
        with self._reporting():
            fault = self.fault(request)
            wait = self.latency(request) if callable(self.latency) else self.latency
            if isinstance(fault, Delay) and not fault.after:
                wait += fault.seconds
            return fault, wait
        return Error(500, "BrokenTest"), 0.0

    def answer(self, request: Request, fault: Fault | None) -> Answer | None:
        """Act, unless the fault prevents it; what to answer, if anything."""
        answer = S3Error(500, "BrokenTest").answer(request)
        if fault is None or fault.after or isinstance(fault, Delay | KeyErrors):
            with self._lock, self._reporting():
                self.before(request)
                errors = fault.errors if isinstance(fault, KeyErrors) else {}
                answer = self.act(request, errors)
                self.after(request)
        match fault:
            case Hang() | Reset():
                return None
            case Error():
                answer = S3Error(fault.status, fault.code).answer(request)
            case CopyError():
                answer = S3Error(200, fault.code).answer(request)
            case Empty():
                answer = Answer(fault.status)
            case Html():
                answer = Answer(200, {"content-type": "text/html"}, fault.body.encode())
            case Cut():
                whole = answer if fault.after else xml(" " * 200)
                answer = whole._replace(announced=fault.announced, sent=fault.sent)
        request.status = answer.status
        return answer


class Connection(asyncio.Protocol):
    """One request after another, each answered before the next is read."""

    transport: asyncio.Transport

    def __init__(self, s3: FakeS3) -> None:
        self.s3 = s3
        self.received = bytearray()
        self.head: tuple[str, str, dict[str, str]] | None = None  # of a request not all there
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.s3.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.s3.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.busy:
            self.read()

    def read(self) -> None:
        if self.head is None:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return
            first, *lines = self.received[:end].decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            self.head = method, target, parsed_headers(lines)
            del self.received[: end + 4]
            if "expect" in self.head[2]:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        method, target, headers = self.head
        body = self.take_body(headers)
        if body is None:
            return
        self.head, self.busy = None, True
        if target == "/?control":
            name, options = json.loads(body)
            found = getattr(self.s3, name)(**options)
            self.send(method, Answer(body=json.dumps(found).encode()))
            return
        if headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
            body, trailers, _ = dechunk(body) or (b"", {}, 0)
            headers |= trailers
        request = understood(method, target, headers, body)
        fault, wait = self.s3.arrived(request)
        if wait > 0:
            self.s3.loop.call_later(wait, self.act, request, fault)
        else:
            self.act(request, fault)

    def take_body(self, headers: dict[str, str]) -> bytes | None:
        if headers.get("transfer-encoding") == "chunked":
            chunked = dechunk(self.received)
            if chunked is None:
                return None
            body, _, length = chunked
        else:
            length = int(headers.get("content-length", "0"))
            if len(self.received) < length:
                return None
            body = bytes(self.received[:length])
        del self.received[:length]
        return body

    def act(self, request: Request, fault: Fault | None) -> None:
        answer = self.s3.answer(request, fault)
        if isinstance(fault, Reset):
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()  # with no lingering, this sends RST
        elif answer is not None and isinstance(fault, Delay) and fault.after:
            self.s3.loop.call_later(fault.seconds, self.send, request.method, answer)
        elif answer is not None:
            self.send(request.method, answer)

    def send(self, method: str, answer: Answer) -> None:
        status, headers, body, announced, sent = answer
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "x-amz-request-id: FAKE"]
        if method == "HEAD":
            body = b""
        elif status != 204 and announced:
            headers = {**headers, "content-length": str(len(body))}
        elif status != 204:
            headers = {**headers, "connection": "close"}
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "\r\n"]).encode("latin-1") + body[:sent])
        if sent is not None:
            self.transport.close()
            return
        self.busy = False
        if self.received:
            self.read()
