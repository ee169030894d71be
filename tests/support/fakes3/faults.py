"""What tests see of the fake S3, and what it can be told to do wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from xml.etree import ElementTree as ET

Location = tuple[str, str]  # bucket and key


@dataclass(slots=True)
class Obj:
    """A stored object. It is never changed, only replaced: many names may share one."""

    content: bytes
    size: int  # bytes; of an object that only pretends to be large, more than there are
    etag: str  # in quotes
    headers: dict[str, str]  # content-type and the like; all names are in lower case
    metadata: dict[str, str]  # without x-amz-meta-
    tags: dict[str, str]
    modified: int  # seconds since 1970


@dataclass(slots=True)
class Request:
    """A request as it was read."""

    method: str
    operation: str  # as boto3 spells it, such as "CopyObject"
    bucket: str
    key: str
    source: Location | None  # of copies
    keys: list[str]  # of a DeleteObjects
    headers: dict[str, str]  # names in lower case
    query: dict[str, str]
    body: bytes
    xml: ET.Element | None  # the body, if it is a document
    time: float  # of its arrival, time.monotonic()
    status: int | None = None  # of the answer; None: not answered yet, or never


class Change(NamedTuple):
    """Something that really happened to an object."""

    action: str  # "put", "copy" or "delete"
    bucket: str
    key: str
    content: bytes
    size: int  # bytes, pretended ones too
    etag: str
    source: Location | None  # of a copy
    time: float  # time.monotonic()


# --- Faults of single requests --------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What befalls one request: instead of acting or, with `after`, once it has acted."""

    after: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Error(Fault):
    """S3 answers this error."""

    status: int
    code: str


@dataclass(frozen=True)
class CopyError(Fault):
    """S3 answers 200, with this error in the body."""

    code: str


@dataclass(frozen=True)
class Empty(Fault):
    """The answer has no body, and this status."""

    status: int = 200


@dataclass(frozen=True)
class Html(Fault):
    """The answer is 200 and a page of HTML, as from a proxy."""

    body: str = "<html><head><title>Sign in</title></head><body><p>Welcome</p></body></html>"


@dataclass(frozen=True)
class Cut(Fault):
    """The connection ends after the headers of a 200 and these bytes of its body.

    Without `announced`, the headers tell no length, so that the body seems whole.
    """

    sent: int = 0
    announced: bool = True


@dataclass(frozen=True)
class Hang(Fault):
    """Nothing is answered; the connection stays open until the client goes away."""


@dataclass(frozen=True)
class Reset(Fault):
    """The connection is reset (RST)."""


@dataclass(frozen=True)
class Delay(Fault):
    """The request acts after these seconds, even if the client has gone away meanwhile.

    With `after` it acts at once, but its answer is late.
    """

    seconds: float


@dataclass(frozen=True)
class KeyErrors(Fault):
    """These keys of a DeleteObjects fail with these codes; the others are deleted."""

    errors: Mapping[str, str]


Faults = Callable[[Request], Fault | None]

# What a runner sends to a target bucket to deliver an event.
COPIES = frozenset(
    {"CopyObject", "CreateMultipartUpload", "UploadPartCopy", "CompleteMultipartUpload"}
)


def on(operation: str, *faults: Fault | None, key: str | None = None) -> Faults:
    """Faults for the next requests of one operation (and key), in turn; none after the last."""
    left = iter(faults)

    def fault(request: Request) -> Fault | None:
        met = request.operation == operation and key in (None, request.key)
        return next(left, None) if met else None

    return fault


def always(operation: str, fault: Fault, *keys: str) -> Faults:
    """One fault for each request of one operation; with keys, those for or from them only."""

    def meet(request: Request) -> Fault | None:
        places = {request.key, request.source[1] if request.source else request.key}
        met = request.operation == operation and (not keys or not places.isdisjoint(keys))
        return fault if met else None

    return meet


def sick(bucket: str, fault: Fault | Faults) -> Faults:
    """A fault for every copy, in one piece or in parts, whose target is this bucket."""

    def meet(request: Request) -> Fault | None:
        if request.bucket != bucket or request.operation not in COPIES:
            return None
        return fault if isinstance(fault, Fault) else fault(request)

    return meet


def any_of(*faults: Faults) -> Faults:
    """The first fault that any of these has for a request."""
    return lambda request: next((met for each in faults if (met := each(request))), None)


# By names that JSON can carry.
AILMENTS: dict[str, Fault] = {
    "hangs": Hang(),
    "resets": Reset(),
    "unavailable": Error(503, "ServiceUnavailable"),
    "denies": Error(403, "AccessDenied"),
    "missing": Error(404, "NoSuchBucket"),
}

# --- A limit to all requests ----------------------------------------------------------------------

PARTITIONS: dict[str, Callable[[str, str], Hashable]] = {
    "all": lambda bucket, key: "all",
    "bucket": lambda bucket, key: bucket,
    "folder": lambda bucket, key: (
        (bucket, key.partition("|")[0].rpartition("/")[0]) if "|" in key else None
    ),
}


class Rate:
    """At most so many writes a second to each partition of keys, and one second's worth at once.

    Beyond it S3 answers 503 SlowDown. A put, a copy, a part and, with `deletes`, each deleted key
    is a write. `per` tells the partition of a bucket and key (None: no limit), or is "bucket",
    "all" (one limit for all buckets) or "folder" (what is before the due time in an event's name;
    other keys have no limit).
    """

    def __init__(
        self,
        writes: float,
        per: str | Callable[[str, str], Hashable] = "bucket",
        *,
        deletes: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.writes, self.deletes, self.clock = writes, deletes, clock
        self.per = PARTITIONS[per] if isinstance(per, str) else per
        self._left: dict[Hashable, tuple[float, float]] = {}  # tokens, and since when

    def admits(self, bucket: str, key: str) -> bool:
        """Whether there is room for one more write now; if so, it is taken."""
        partition = self.per(bucket, key)
        if partition is None:
            return True
        now = self.clock()
        tokens, since = self._left.get(partition, (self.writes, now))
        tokens = min(self.writes, tokens + (now - since) * self.writes)
        self._left[partition] = max(tokens - 1, 0) if tokens >= 1 else tokens, now
        return tokens >= 1
