"""A folder of events on the fake S3, and what its history says became of them."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from s3_scheduler import Report, Scheduler, run_due
from support.fakes3 import Change, Error, FakeS3, Request, always

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

NOW = datetime(2030, 1, 31, 12, tzinfo=timezone.utc)
WIDTH = 8
DENIED = Error(403, "AccessDenied")

only = always  # "only copies of these keys are denied" reads better than "always"


def due_name(ago: float, key: str = "k", bucket: str = "target") -> str:
    """Name an event that is due `ago` seconds before NOW."""
    due = (NOW - timedelta(seconds=ago)).replace(tzinfo=None).isoformat(timespec="microseconds")
    return f"later/{due}Z|{bucket}|{key}"


class Folder:
    """`later/` in the bucket "events" of a `FakeS3`, beside the bucket "target" and others."""

    def __init__(self, s3: FakeS3, *targets: str, **config: Any) -> None:
        s3.create("events", "target", *targets)
        self.s3 = s3
        self.client = s3.client(**{"max_pool_connections": WIDTH, **config})
        self.scheduler = Scheduler("events", "later", client=self.client)

    def put(
        self,
        ago: float,
        key: str = "k",
        content: bytes = b"content",
        bucket: str = "target",
        **headers: Any,
    ) -> str:
        """Store an event that is due `ago` seconds before NOW; its name. As `FakeS3.put`."""
        name = due_name(ago, key, bucket)
        self.s3.put("events", name, content, **headers)
        return name

    def put_many(
        self, count: int, bucket: str = "target", *, oldest: float = 100_000, step: float = 0.001
    ) -> list[str]:
        """Store events, each with a key of its own, `step` seconds apart; their names in order."""
        return [self.put(oldest - i * step, f"k{i}", bucket=bucket) for i in range(count)]

    def run(self, **options: Any) -> Report:
        return run_due(self.scheduler, **{"now": NOW, **options})

    @property
    def waiting(self) -> list[str]:
        """All names in the bucket, those in `failed/` too."""
        return list(self.s3.buckets["events"])

    @property
    def quarantined(self) -> list[str]:
        """All names in `failed/`."""
        return [name for name in self.waiting if name.startswith("later/failed/")]

    @property
    def arrived(self) -> dict[str, bytes]:
        """What the bucket "target" holds: key and content."""
        return self.arrived_in("target")

    def arrived_in(self, bucket: str) -> dict[str, bytes]:
        return {key: obj.content for key, obj in self.s3.buckets[bucket].items()}

    @property
    def deliveries(self) -> list[tuple[str, str, bytes]]:
        """The copies that happened, in their order: name, target key, content."""
        return [(name_of(copy), copy.key, copy.content) for copy in copies(self.s3.history)]

    @property
    def delivered(self) -> list[str]:
        """The names of the events that were copied to their targets, in that order."""
        return [name for name, _, _ in self.deliveries]

    def delivered_to(self, bucket: str) -> list[str]:
        return [name_of(copy) for copy in copies(self.s3.history) if copy.bucket == bucket]

    def requests(self, operation: str, bucket: str | None = None) -> list[Request]:
        """The requests of one operation, in the order of their arrival."""
        return [
            request
            for request in self.s3.log
            if request.operation == operation and bucket in (None, request.bucket)
        ]


@contextmanager
def opened(s3: FakeS3, *targets: str, **config: Any) -> Iterator[Folder]:
    folder = Folder(s3, *targets, **config)
    try:
        yield folder
    finally:
        folder.client.close()


# --- What a history tells -------------------------------------------------------------------------


def copies(history: Iterable[Change]) -> Iterator[Change]:
    """The deliveries: copies out of the bucket "events"."""
    return (change for change in history if change.action == "copy" and change.bucket != "events")


def name_of(copy: Change) -> str:
    """The name of the event that a delivery delivers."""
    assert copy.source is not None
    return copy.source[1]


def lost(history: Iterable[Change], cancelled: Collection[str] = ()) -> list[str]:
    """Events that were deleted before this very content, all of it, had been copied."""
    copied: set[tuple[str, bytes, int]] = set()
    losses = []
    for change in history:
        if change.action == "copy":
            # What fails is copied to failed/, from where it stood.
            copied.add((name_of(change), change.content, change.size))
        elif change.action == "delete" and change.bucket == "events":
            whole = (change.key, change.content, change.size) in copied
            if not whole and change.key not in cancelled:
                losses.append(change.key)
    return losses


def unconfirmed(history: Iterable[Change]) -> int:
    """How many events were, at the worst moment, copied and not deleted."""
    between: set[str] = set()
    most = 0
    for change in history:
        if change.action == "copy" and change.bucket != "events":
            between.add(name_of(change))
        elif change.action == "delete":
            between.discard(change.key)
        most = max(most, len(between))
    return most


def out_of_order(history: Iterable[Change]) -> list[str]:
    """Deliveries that landed on top of a later event of the same target, or of its first copy."""
    newest: dict[tuple[str, str], str] = {}
    wrong = []
    for copy in copies(history):
        name = name_of(copy)
        if name < newest.get((copy.bucket, copy.key), ""):
            wrong.append(name)
        newest[copy.bucket, copy.key] = name
    return wrong


def repeats(history: Iterable[Change]) -> int:
    """Deliveries beyond the first of the same content of the same event."""
    counts = Counter((name_of(copy), copy.content) for copy in copies(history))
    return sum(counts.values()) - len(counts)
