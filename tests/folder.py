"""A folder of events on the fake S3, and what its history says became of them."""

from collections import Counter
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

from fakes3 import Error

from s3_scheduler import Scheduler, run_due

NOW = datetime(2030, 1, 31, 12, tzinfo=timezone.utc)
WIDTH = 8


def due_name(ago, key="k", bucket="target"):
    """Name an event that is due `ago` seconds before NOW."""
    due = (NOW - timedelta(seconds=ago)).replace(tzinfo=None).isoformat(timespec="microseconds")
    return f"later/{due}Z|{bucket}|{key}"


class Folder:
    """`later/` in the bucket "events" of a `FakeS3`, beside the bucket "target"."""

    def __init__(self, s3, **config):
        s3.fill()
        self.s3 = s3
        self.client = s3.client(**{"max_pool_connections": WIDTH, **config})
        self.scheduler = Scheduler("events", "later", self.client)

    def put(self, ago, key="k", content=b"content", bucket="target", **headers):
        name = due_name(ago, key, bucket)
        self.s3.put("events", name, content, **headers)
        return name

    def run(self, **options):
        return run_due(self.scheduler, **{"now": NOW, **options})

    @property
    def waiting(self):
        """All names in the bucket, those in `failed/` too."""
        return list(self.s3.buckets["events"])

    @property
    def arrived(self):
        return {key: obj.content for key, obj in self.s3.buckets["target"].items()}

    @property
    def deliveries(self):
        """The copies that happened, in their order: name, target key, content."""
        return [
            (change.source[1], change.key, change.content)
            for change in self.s3.history
            if change.action == "copy" and change.bucket != "events"
        ]

    @property
    def delivered(self):
        return [name for name, _, _ in self.deliveries]

    def requests(self, operation):
        return [request for request in self.s3.log if request.operation == operation]


@contextmanager
def opened(s3, **config):
    folder = Folder(s3, **config)
    try:
        yield folder
    finally:
        folder.client.close()


def only(operation, fault, *keys):
    """Let each request of one operation meet the fault; with keys, those for them only."""

    def meet(request):
        source = request.source[1] if request.source else request.key
        met = not keys or request.key in keys or source in keys
        return fault if request.operation == operation and met else None

    return meet


DENIED = Error(403, "AccessDenied")


def lost(history, cancelled=()):
    """Events that were deleted before this very content had arrived at their target."""
    arrived, losses = set(), []
    for change in history:
        if change.action == "copy":
            arrived.add((change.source[1], change.etag))
        elif change.action == "delete" and change.bucket == "events":
            whole = (change.key, change.etag) in arrived or change.key in cancelled
            # What failed is copied to failed/ first, from where it stood.
            if not whole:
                losses.append(change.key)
    return losses


def unconfirmed(history):
    """How many events were, at the worst moment, copied and not deleted."""
    between, most = set(), 0
    for change in history:
        if change.action == "copy" and change.bucket != "events":
            between.add(change.source[1])
        elif change.action == "delete":
            between.discard(change.key)
        most = max(most, len(between))
    return most


def out_of_order(history):
    """Deliveries that landed on top of a later event of the same target, or of its first copy."""
    newest, wrong = {}, []
    for change in history:
        if change.action == "copy" and change.bucket != "events":
            name = change.source[1]
            if name < newest.get((change.bucket, change.key), ""):
                wrong.append(name)
            newest[change.bucket, change.key] = name
    return wrong


def repeats(history):
    """Deliveries beyond the first of the same content of the same event."""
    copies = Counter(
        (change.source[1], change.etag)
        for change in history
        if change.action == "copy" and change.bucket != "events"
    )
    return sum(copies.values()) - len(copies)
