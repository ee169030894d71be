"""What an application does: schedule, cancel, reschedule, retry, and see what is there."""

import io
import itertools
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from s3_scheduler import (
    AlreadyScheduled,
    InvalidEvent,
    NotScheduled,
    Scheduler,
    SchedulerError,
    folder,
)
from s3_scheduler import scheduler as scheduler_module
from support.fakes3 import Cut, Empty, Error, FakeS3, Html, Reset, on
from support.once import needs_once

NINE = datetime(2030, 1, 31, 9, tzinfo=timezone.utc)
TEN = NINE + timedelta(hours=1)
AT_NINE = "later/2030-01-31T09:00:00.000000Z|target|k"
AT_TEN = "later/2030-01-31T10:00:00.000000Z|target|k"
SHORT = "later/2030-01-31T09:00Z|target|k"  # written by hand
FAILED = "later/failed/NoSuchBucket/2030-01-31T09:00:00.000000Z|target|k"


@pytest.fixture
def s3():
    """Yield a `FakeS3` with the buckets `events` and `target`."""
    with FakeS3("events", "target") as s3:
        yield s3


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    """Send again at once what met another write."""
    for module in (folder, scheduler_module):
        monkeypatch.setattr(module, "CONFLICT_AFTER", (0.0,) * len(folder.CONFLICT_AFTER))


@contextmanager
def opened(s3, bucket="events", folder="later", **config):
    client = s3.client(**config)
    yield Scheduler(bucket, folder, client=client)
    client.close()


@pytest.fixture
def scheduler(s3):
    """Make a scheduler of `events/later/` whose client makes one attempt at each request."""
    with opened(s3) as scheduler:
        yield scheduler


@pytest.fixture
def unsent():
    """Make a scheduler that can send nothing, for what is refused before anything is sent."""
    return Scheduler("events", "later", client=object())  # type: ignore[arg-type]


@pytest.fixture
def patient(s3):
    """Make the same, with a client that makes three attempts."""
    with opened(s3, retries={"total_max_attempts": 3}) as scheduler:
        yield scheduler


def contents(s3, bucket="events"):
    return {name: obj.content for name, obj in s3.buckets[bucket].items()}


def before_each(s3, operation, *actions):
    """Do the actions, in turn, each just before S3 acts on a request of this operation."""
    left = iter(actions)

    def before(request):
        if request.operation == operation:
            next(left, lambda: None)()

    s3.before = before


# --- The constructor ------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["later", "later/", "/later", "//later//"])
def test_folder_spellings(s3, folder):
    """Slashes at the ends of a folder make no difference to what is written."""
    with opened(s3, folder=folder) as scheduler:
        assert scheduler.schedule(NINE, "target", "k", b"") == AT_NINE
    assert list(contents(s3)) == [AT_NINE]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("", "later"), "the bucket '' is empty; pass the name"),
        (("events", ""), "the folder '' is empty"),
        (("events", "//"), "the folder '//' is empty"),
        (("events--use1-az4--x-s3", "later"), "'events--use1-az4--x-s3' is a directory bucket"),
        (("ap-abc--use1-az4--xa-s3", "later"), "'ap-abc--use1-az4--xa-s3' is a directory bucket"),
        (("s3://events", "later"), r"'s3://events' is a URI; pass .*Scheduler\('my-bucket', "),
        (("events", "s3://events/later"), "'s3://events/later' is a URI; pass names, as in"),
    ],
)
def test_no_scheduler(arguments, advice):
    """An empty bucket or folder, a URI and a directory bucket are refused at once."""
    with pytest.raises(ValueError, match=advice) as caught:
        Scheduler(*arguments)
    assert not isinstance(caught.value, InvalidEvent)


def test_the_client_is_named():
    """The client is keyword-only, so that no third value is taken for one."""
    with pytest.raises(TypeError, match="positional"):
        Scheduler("events", "later", None)  # type: ignore[call-arg]  # that is the point


def test_repr():
    """A scheduler shows its bucket and folder."""
    assert repr(Scheduler("events", "/a/b/")) == "Scheduler('events', 'a/b')"


def test_the_default_client_is_made_on_first_use(s3, monkeypatch):
    """Nothing is looked up before the first call: settings made until then are obeyed."""
    scheduler = Scheduler("events", "later")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
    scheduler.schedule(NINE, "target", "k", b"body")
    scheduler.folder.client.close()
    assert contents(s3) == {AT_NINE: b"body"}


def test_the_default_client():
    """It gives up after 5 s without a connection, 60 s without a word, and three attempts."""
    config: Any = Scheduler("events", "later").folder.client.meta.config
    assert (config.connect_timeout, config.read_timeout) == (5, 60)
    assert config.retries == {"mode": "standard", "total_max_attempts": 3}
    assert config.max_pool_connections == 32


def test_threads_share_one_client():
    """Threads that race to the first call get the same client."""
    scheduler = Scheduler("events", "later")
    barrier = threading.Barrier(8)

    def client(_):
        barrier.wait()
        return scheduler.folder.client

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(client, range(8)))) == 1


# --- schedule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "name"),
    [
        (NINE, AT_NINE),
        (NINE.astimezone(timezone(timedelta(hours=-5))), AT_NINE),
        ("2030-01-31T10:00:00+01:00", AT_NINE),
        (NINE.replace(microsecond=7), "later/2030-01-31T09:00:00.000007Z|target|k"),
        ("1999-12-31T23:59Z", "later/1999-12-31T23:59:00.000000Z|target|k"),
        (datetime.min.replace(tzinfo=timezone.utc), "later/0001-01-01T00:00:00.000000Z|target|k"),
        (datetime.max.replace(tzinfo=timezone.utc), "later/9999-12-31T23:59:59.999999Z|target|k"),
    ],
)
def test_schedule(s3, scheduler, when, name):
    """An event is one object, written by one PUT; its full key is returned."""
    assert scheduler.schedule(when, "target", "k", b"body") == name
    assert contents(s3) == {name: b"body"}
    assert s3.count() == Counter(PutObject=1)


def test_schedule_from_now(s3, scheduler):
    """A timedelta counts from now, and each call is a new moment."""
    names = [scheduler.schedule(timedelta(hours=2), "target", "k", b"") for _ in range(3)]
    assert list(contents(s3)) == sorted(set(names)) == names
    (event, *_) = scheduler.pending(after=timedelta(hours=1), before=timedelta(hours=2))
    assert event.name == names[0]


class Stream:
    """What can only be read: a socket, a pipe, a decompressor."""

    def __init__(self, content):
        self.read = io.BytesIO(content).read


class Pipe(io.RawIOBase):
    """What says that it cannot seek."""

    def __init__(self, content):
        self.content = io.BytesIO(content)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.content.readinto(buffer)


def standing_at(position, content, make=io.BytesIO):
    file = make()
    file.write(content)
    file.seek(position)
    return file


SENT = "höh".encode()
BODIES = {
    "bytes": lambda: SENT,
    "bytearray": lambda: bytearray(SENT),
    "str": lambda: "höh",
    "file": lambda: io.BytesIO(SENT),
    "file from where it stands": lambda: standing_at(5, b"read " + SENT),
    "temporary file": lambda: standing_at(5, b"read " + SENT, tempfile.TemporaryFile),
    "spooled file": lambda: standing_at(5, b"read " + SENT, tempfile.SpooledTemporaryFile),
}


@pytest.fixture(params=BODIES)
def body(request):
    """Yield a body of each kind; what is to be sent of it is `SENT`."""
    body = BODIES[request.param]()
    yield body
    if hasattr(body, "close"):
        body.close()


UNSEEKABLE = {"stream": lambda: Stream(SENT), "pipe": lambda: Pipe(SENT)}


@pytest.mark.parametrize("replace", [True, False])
def test_bodies(s3, scheduler, body, replace):
    """A body is bytes, text in UTF-8, or what is left to read of a binary file."""
    scheduler.schedule(NINE, "target", "k", body, replace=replace)
    assert contents(s3) == {AT_NINE: SENT}
    assert s3.count() == Counter(PutObject=1)


@pytest.mark.parametrize("body", UNSEEKABLE)
def test_unseekable_bodies(s3, scheduler, body):
    """A file need not be seekable."""
    scheduler.schedule(NINE, "target", "k", UNSEEKABLE[body]())
    assert contents(s3) == {AT_NINE: SENT}


@pytest.mark.parametrize("body", UNSEEKABLE)
def test_unseekable_bodies_cannot_be_conditional(unsent, body):
    """With replace=False it must be: the one PutObject may have to be repeated."""
    with pytest.raises(InvalidEvent, match=r"cannot seek.* pass a seekable file or bytes"):
        unsent.schedule(NINE, "target", "k", UNSEEKABLE[body](), replace=False)


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize(
    "file",
    [
        io.StringIO,
        lambda: Path(__file__).open(encoding="utf-8"),  # noqa: SIM115
        lambda: tempfile.NamedTemporaryFile("w+"),  # noqa: SIM115
        lambda: tempfile.SpooledTemporaryFile(mode="w+"),  # noqa: SIM115
    ],
)
def test_text_files(unsent, file, replace):
    """A text file is refused, wrapped or not, with the advice to open it in binary mode."""
    with file() as body, pytest.raises(InvalidEvent, match=r"is a text file; .*'rb'"):
        unsent.schedule(NINE, "target", "k", body, replace=replace)


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("body", [None, 42, {"user": 42}, ["a"]])
def test_no_body(unsent, body, replace):
    """Anything else is refused, by its type."""
    advice = f"the body is of type {type(body).__name__}; pass bytes, str or a binary file"
    with pytest.raises(InvalidEvent, match=advice):
        unsent.schedule(NINE, "target", "k", body, replace=replace)


# In a process of its own, whose peak is its own: what the file gives is made as it is read.
BIG_BODY = """
import io, resource, sys
import boto3
from botocore.config import Config
from s3_scheduler import Scheduler

class Noughts(io.RawIOBase):
    left = int(sys.argv[4])

    def readable(self):
        return True

    def readinto(self, buffer):
        count = min(len(buffer), self.left)
        self.left -= count
        buffer[:count] = bytes(count)
        return count

class SeekableNoughts(Noughts):
    size = Noughts.left

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.size}[whence]
        self.left = self.size - start - offset
        return self.tell()

    def tell(self):
        return self.size - self.left

url, bucket, kind, _, access_key, secret_key = sys.argv[1:]
client = boto3.client(
    "s3", endpoint_url=url, aws_access_key_id=access_key, aws_secret_access_key=secret_key,
    config=Config(proxies={}),
)
scheduler = Scheduler(bucket, "later", client=client)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
body = Noughts() if kind == "unseekable" else SeekableNoughts()
scheduler.schedule("2030-01-31T09:00Z", "target", "k", body, replace=kind != "once")
(event,) = scheduler.pending()
assert scheduler.cancel(event.name)
print(event.size, peak() - before)
"""


@pytest.mark.parametrize(
    "kind",
    [
        "unseekable",
        pytest.param("seekable", marks=pytest.mark.slow),
        pytest.param("once", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_big_body(seaweed, bucket, kind):
    """A body of 300 MB takes far less memory, seekable or not, and with replace=False."""
    size = 300_000_000
    arguments = [seaweed.url, bucket, kind, str(size), seaweed.access_key, seaweed.secret_key]
    command = [sys.executable, "-c", BIG_BODY, *arguments]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    arrived, kilobytes = map(int, told.split())
    assert arrived == size
    assert kilobytes < 150_000, kilobytes


@pytest.mark.parametrize("again", [NINE, "2030-01-31T10:00+01:00"])
def test_the_same_event(s3, scheduler, again):
    """The same moment, bucket and key are the same event: its content is replaced."""
    name = scheduler.schedule(NINE, "target", "k", b"old")
    assert scheduler.schedule(again, "target", "k", b"new") == name
    assert contents(s3) == {AT_NINE: b"new"}


def test_other_events(s3, scheduler):
    """Another moment, bucket or key is another event."""
    scheduler.schedule(NINE, "target", "k", b"")
    scheduler.schedule(TEN, "target", "k", b"")
    scheduler.schedule(NINE, "other", "k", b"")
    scheduler.schedule(NINE, "target", "K", b"")
    assert len(contents(s3)) == 4


def test_replace_false(s3, scheduler):
    """With replace=False what is scheduled already stays as it is."""
    scheduler.schedule(NINE, "target", "k", b"old", replace=False)
    with pytest.raises(AlreadyScheduled) as caught:
        scheduler.schedule(NINE, "target", "k", b"new", replace=False)
    assert caught.value.name == AT_NINE
    assert repr(AT_NINE) in str(caught.value)
    assert isinstance(caught.value, SchedulerError)
    assert contents(s3) == {AT_NINE: b"old"}


def test_replace_false_race(seaweed_client, bucket):
    """Of writers who race with replace=False, exactly one wins, and its content stays."""
    scheduler = Scheduler(bucket, "later", client=seaweed_client)

    def schedule(number):
        try:
            scheduler.schedule(NINE, "target", "k", b"%d" % number, replace=False)
        except AlreadyScheduled:
            return None
        return number

    with ThreadPoolExecutor(32) as pool:
        won = set(pool.map(schedule, range(32))) - {None}
    assert len(won) == 1
    body = seaweed_client.get_object(Bucket=bucket, Key=AT_NINE)["Body"].read()
    assert body == b"%d" % won.pop()


def test_schedule_without_confirmation(s3, scheduler):
    """An answer of 200 that names no ETag does not confirm that anything was written."""
    s3.fault = on("PutObject", Html(), Empty())
    for replace in (True, False):
        with pytest.raises(SchedulerError, match="did not confirm the writing of 'later/"):
            scheduler.schedule(NINE, "target", "k", b"body", replace=replace)
    assert contents(s3) == {}


CONFLICT = Error(409, "ConditionalRequestConflict")


def test_replace_false_meets_a_write_under_way(s3, scheduler, body):
    """When S3 answers that another write is under way, the whole body is sent again."""
    s3.fault = on("PutObject", CONFLICT, CONFLICT)
    scheduler.schedule(NINE, "target", "k", body, replace=False)
    assert contents(s3) == {AT_NINE: SENT}
    assert s3.count() == Counter(PutObject=3)


def test_replace_false_gives_up(s3, scheduler):
    """Five such answers are S3's last word."""
    s3.fault = on("PutObject", *[CONFLICT] * 99)
    with pytest.raises(ClientError, match="ConditionalRequestConflict"):
        scheduler.schedule(NINE, "target", "k", b"body", replace=False)
    assert s3.count() == Counter(PutObject=5)


@pytest.mark.parametrize("replace", [True, False])
def test_a_repeated_request(s3, patient, body, replace):
    """When boto3 repeats a request, a file is sent again from where it stood."""
    s3.fault = on("PutObject", Error(500, "InternalError"))
    patient.schedule(NINE, "target", "k", body, replace=replace)
    assert contents(s3) == {AT_NINE: SENT}
    assert s3.count() == Counter(PutObject=2)


def test_replace_false_after_a_lost_answer(s3, patient):
    """After a lost answer boto3's own attempt may be what is already scheduled."""
    s3.fault = on("PutObject", Reset(after=True))
    with pytest.raises(AlreadyScheduled):
        patient.schedule(NINE, "target", "k", b"body", replace=False)
    assert contents(s3) == {AT_NINE: b"body"}


@pytest.mark.parametrize("replace", [True, False])
def test_s3s_own_answers(s3, body, replace):
    """What S3 answers passes through as boto3 raised it."""
    with opened(s3, "missing") as scheduler, pytest.raises(ClientError, match="NoSuchBucket"):
        scheduler.schedule(NINE, "target", "k", body, replace=replace)


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize(
    ("extra_args", "advice"),
    [
        ({"SSECustomerKey": "k" * 32}, "SSECustomerKey .*ServerSideEncryption"),
        ({"SSECustomerAlgorithm": "AES256"}, "SSECustomerAlgorithm .*ServerSideEncryption"),
        ({"StorageClass": "GLACIER"}, "'GLACIER' .*run_due"),
        ({"ContentType": "a/b", "StorageClass": "DEEP_ARCHIVE"}, "'DEEP_ARCHIVE' .*run_due"),
    ],
)
def test_what_no_run_could_copy(unsent, extra_args, advice, replace):
    """Encryption with a key that a run has not, and archives, are refused with a way out."""
    with pytest.raises(InvalidEvent, match=advice):
        unsent.schedule(NINE, "target", "k", b"", replace=replace, extra_args=extra_args)


@pytest.mark.parametrize("storage_class", ["STANDARD_IA", "GLACIER_IR", "INTELLIGENT_TIERING"])
def test_other_storage_classes(s3, scheduler, storage_class):
    """A storage class from which S3 can copy at once is no obstacle."""
    scheduler.schedule(NINE, "target", "k", b"", extra_args={"StorageClass": storage_class})
    assert s3.log[-1].headers["x-amz-storage-class"] == storage_class


def test_extra_args_are_not_changed(s3, scheduler):
    """The same `extra_args` can be used again."""
    extra_args = {"ContentType": "text/plain"}
    for key, replace in (("a", True), ("b", False)):
        scheduler.schedule(NINE, "target", key, b"", replace=replace, extra_args=extra_args)
    assert extra_args == {"ContentType": "text/plain"}
    assert {obj.headers["content-type"] for obj in s3.buckets["events"].values()} == {"text/plain"}


# --- event_name -----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [NINE, "2030-01-31T10:00+01:00"])
def test_event_name(s3, scheduler, when):
    """It is what `schedule` returns, and nothing is sent."""
    name = scheduler.event_name(when, "target", "k|l")
    assert s3.count() == Counter()
    assert scheduler.schedule(when, "target", "k|l", b"") == name


@pytest.mark.parametrize("when", [timedelta(hours=1), None])
def test_an_event_name_is_of_an_absolute_moment(scheduler, when):
    """A timedelta is a new moment each time, so it names no event."""
    with pytest.raises(InvalidEvent, match=r"not an absolute moment.* '2030-01-31T09:00:00Z'"):
        scheduler.event_name(when, "target", "k")


def test_an_event_name_needs_no_client():
    """No client is made for it, and so no region or credentials are looked for."""
    scheduler = Scheduler("events", "later")
    assert scheduler.event_name(NINE, "target", "k") == AT_NINE


# --- Bad input ------------------------------------------------------------------------------------

CALLS = {
    "schedule": lambda scheduler, when: scheduler.schedule(when, "target", "k", b""),
    "event_name": lambda scheduler, when: scheduler.event_name(when, "target", "k"),
    "reschedule": lambda scheduler, when: scheduler.reschedule(AT_NINE, when),
    "pending after": lambda scheduler, when: scheduler.pending(after=when),
    "pending before": lambda scheduler, when: scheduler.pending(before=when),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("when", "advice"),
    [
        (datetime(2030, 1, 31, 9), "no time zone"),  # noqa: DTZ001
        ("2030-01-31T09:00:00", "no time zone"),
        ("tomorrow", "ISO 8601 string such as"),
        (date(2030, 1, 31), "is not an? .*moment"),
        (1896080400, "is not an? .*moment"),
        ("0001-01-01T00:00+01:00", "outside the years 1 to 9999"),
    ],
)
def test_no_moment(unsent, call, when, advice):
    """What is not one moment is refused before anything is sent: no event can be due then."""
    with pytest.raises(ValueError, match=advice) as caught:
        CALLS[call](unsent, when)
    assert repr(when) in str(caught.value)
    assert isinstance(caught.value, InvalidEvent) is not call.startswith("pending")


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize(
    ("bucket", "key", "advice"),
    [
        ("", "k", "'' is not a bucket"),
        ("shop|emails", "k", r"'shop\|emails' is not a bucket"),
        ("target", "", "the key is empty"),
        ("target", "k" * 984, "1025 bytes of UTF-8 and S3 takes 1024"),
        ("target", "é" * 982, "2005 bytes of UTF-8 and S3 takes 1024.* 981 bytes shorter"),
        ("target", "\ud83d", "UTF-8"),
    ],
)
def test_no_target(unsent, bucket, key, advice, replace):
    """A target that cannot be one, or is too long, is refused before anything is written."""
    with pytest.raises(InvalidEvent, match=advice) as caught:
        unsent.schedule(NINE, bucket, key, b"", replace=replace)
    with pytest.raises(InvalidEvent) as same:
        unsent.event_name(NINE, bucket, key)
    assert str(same.value) == str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "later/",
        "later2/2030-01-31T09:00:00.000000Z|target|k",
        "2030-01-31T09:00:00.000000Z|target|k",
        "/later/2030-01-31T09:00:00.000000Z|target|k",
        "later/failed/2030-01-31T09:00:00.000000Z|target|k",
        "later/failed/NoSuchBucket/note.txt",
        "later/note.txt",
        "later/2030-02-30T09:00:00.000000Z|target|k",
    ],
)
@pytest.mark.parametrize(
    "call",
    [Scheduler.cancel, lambda scheduler, name: scheduler.reschedule(name, TEN), Scheduler.retry],
)
def test_no_name(unsent, call, name):
    """What is not the name of an event of this folder is refused, before anything is sent."""
    with pytest.raises(InvalidEvent) as caught:
        call(unsent, name)
    assert repr(name) in str(caught.value)


def test_reschedule_to_a_name_too_long(unsent):
    """A short name, written by hand, may have no room for a moment in full."""
    name = "later/2030-01-31T09:00Z|target|" + "k" * 990
    with pytest.raises(InvalidEvent, match="1031 bytes of UTF-8 and S3 takes 1024"):
        unsent.reschedule(name, TEN)


# --- cancel ---------------------------------------------------------------------------------------

CONDITIONS = pytest.mark.parametrize("conditions", ["honoured", "ignored", "refused"])


@CONDITIONS
def test_cancel(s3, scheduler, conditions):
    """True: it was waiting and is removed. False: it was not there. Whatever the server makes of
    conditions.
    """
    s3.conditions = conditions
    name = scheduler.schedule(NINE, "target", "k", b"body")
    other = scheduler.schedule(TEN, "target", "k", b"body")
    assert scheduler.cancel(name) is True
    assert scheduler.cancel(name) is False
    assert list(contents(s3)) == [other]


def test_cancel_on_a_real_server(seaweed_client, bucket):
    """So it is on a real server."""
    scheduler = Scheduler(bucket, "later", client=seaweed_client)
    name = scheduler.schedule(NINE, "target", "k|\n😀", b"body")
    assert scheduler.cancel(name) is True
    assert scheduler.cancel(name) is False
    assert list(scheduler.pending()) == []


def test_cancel_requests(s3, scheduler):
    """It takes a HEAD and a conditional DELETE."""
    etag = s3.put("events", AT_NINE).etag
    scheduler.cancel(AT_NINE)
    head, delete = s3.log
    assert (head.operation, delete.operation) == ("HeadObject", "DeleteObject")
    assert delete.headers["if-match"] == etag


def test_cancel_by_a_short_name(s3, scheduler):
    """What was written by hand is cancelled by its own name, and by no other."""
    s3.put("events", SHORT)
    assert scheduler.cancel(AT_NINE) is False
    assert scheduler.cancel(SHORT) is True


def test_cancel_looks_again(s3, scheduler):
    """What is replaced between the look and the removal is looked at again, and removed."""
    s3.put("events", AT_NINE, b"old")
    before_each(
        s3,
        "DeleteObject",
        lambda: s3.put("events", AT_NINE, b"new"),
        lambda: s3.put("events", AT_NINE, b"newer"),
    )
    assert scheduler.cancel(AT_NINE) is True
    assert contents(s3) == {}
    assert s3.count()["DeleteObject"] == 3


@pytest.mark.parametrize("name", [AT_NINE, FAILED])
def test_cancel_believes_no_412_without_a_look(s3, scheduler, name):
    """A refusal because of an ETag that has not changed is raised, for nothing was removed."""
    s3.put("events", name)
    s3.fault = on("DeleteObject", Error(412, "PreconditionFailed"))
    with pytest.raises(ClientError, match="PreconditionFailed"):
        scheduler.cancel(name)
    assert list(contents(s3)) == [name]


def test_cancel_of_what_failed(s3, scheduler):
    """A quarantined event is cancelled by the name that `failed` gives."""
    s3.put("events", AT_NINE)
    s3.put("events", FAILED)
    (event,) = scheduler.failed()
    assert scheduler.cancel(event.name) is True
    assert scheduler.cancel(event.name) is False
    assert list(contents(s3)) == [AT_NINE]


def test_cancel_of_what_goes_meanwhile(s3, scheduler):
    """What another removes between the look and the removal was not there."""
    s3.put("events", AT_NINE)
    before_each(s3, "DeleteObject", lambda: s3.delete("events", AT_NINE))
    assert scheduler.cancel(AT_NINE) is False


def test_cancel_meets_a_write_under_way(s3, scheduler):
    """A concurrent write (409) is reason to try again."""
    s3.put("events", AT_NINE)
    s3.fault = on("DeleteObject", CONFLICT)
    assert scheduler.cancel(AT_NINE) is True
    assert contents(s3) == {}


def test_cancel_after_a_lost_answer(s3, patient):
    """False may mean that an earlier attempt of this very call has removed it."""
    s3.put("events", AT_NINE)
    s3.fault = on("DeleteObject", Reset(after=True))
    assert patient.cancel(AT_NINE) is False
    assert contents(s3) == {}


@pytest.mark.parametrize("operation", ["HeadObject", "DeleteObject"])
def test_cancel_refused(s3, scheduler, operation):
    """Any other answer of S3 passes through, and the event stays."""
    s3.put("events", AT_NINE)
    s3.fault = on(operation, Error(403, "AccessDenied"))
    with pytest.raises(ClientError):
        scheduler.cancel(AT_NINE)
    assert list(contents(s3)) == [AT_NINE]


# --- reschedule -----------------------------------------------------------------------------------


@CONDITIONS
@pytest.mark.parametrize("name", [AT_NINE, SHORT])
def test_reschedule(s3, scheduler, conditions, name):
    """The content goes to the new name with all that belongs to it, and is not sent again."""
    s3.conditions = conditions
    s3.put("events", name, b"body", content_type="text/plain", x_amz_tagging="a=b")
    s3.buckets["events"][name].metadata["user"] = "42"
    assert scheduler.reschedule(name, TEN) == AT_TEN
    (moved,) = s3.buckets["events"].values()
    assert (moved.content, moved.headers["content-type"]) == (b"body", "text/plain")
    assert (moved.metadata, moved.tags) == ({"user": "42"}, {"a": "b"})
    assert set(s3.count()) == {"HeadObject", "CopyObject", "DeleteObject"}
    assert [event.name for event in scheduler.pending()] == [AT_TEN]


def test_reschedule_on_a_real_server(seaweed_client, bucket):
    """So it is on a real server, for a key with everything in it."""
    scheduler = Scheduler(bucket, "later", client=seaweed_client)
    name = scheduler.schedule(NINE, "target", "a b+c%20|\n😀", b"body")
    (before,) = scheduler.pending()
    new_name = scheduler.reschedule(name, "2030-01-31T10:00Z")
    (after,) = scheduler.pending()
    assert (after.name, after.due, after.key) == (new_name, TEN, before.key)
    assert (after.size, after.etag) == (before.size, before.etag)


GIB = 1024**3


def test_reschedule_of_a_large_event(s3, scheduler):
    """What is too large for one CopyObject is moved whole, too."""
    s3.put("events", AT_NINE, b"large", size=6 * GIB, content_type="a/b", x_amz_tagging="a=b")
    assert scheduler.reschedule(AT_NINE, TEN) == AT_TEN
    ((name, moved),) = s3.buckets["events"].items()
    assert (name, moved.size) == (AT_TEN, 6 * GIB)
    assert (moved.headers["content-type"], moved.tags) == ("a/b", {"a": "b"})


@needs_once
def test_reschedule_of_a_large_event_that_goes_meanwhile(s3, scheduler):
    """It is withdrawn from its new name like any other."""
    s3.put("events", AT_NINE, b"large", size=6 * GIB)
    before_each(s3, "DeleteObject", lambda: s3.delete("events", AT_NINE))
    with pytest.raises(NotScheduled):
        scheduler.reschedule(AT_NINE, TEN)
    assert contents(s3) == {}


@needs_once
def test_reschedule_of_a_large_event_that_goes_from_both_names(s3, scheduler):
    """What is gone from its new name already, too, needs no withdrawal."""
    s3.put("events", AT_NINE, b"large", size=6 * GIB)

    def both_gone():
        for name in list(s3.buckets["events"]):
            s3.delete("events", name)

    before_each(s3, "HeadObject", *[lambda: None] * 3, both_gone)
    with pytest.raises(NotScheduled):
        scheduler.reschedule(AT_NINE, TEN)
    assert contents(s3) == {}


def test_reschedule_to_the_past(s3, scheduler):
    """An event can be brought forward, also to a past moment."""
    s3.put("events", AT_NINE)
    name = "later/1999-12-31T00:00:00.000000Z|target|k"
    assert scheduler.reschedule(AT_NINE, "1999-12-31T00:00Z") == name
    assert list(contents(s3)) == [name]


@pytest.mark.parametrize("name", [AT_NINE, SHORT])
def test_reschedule_to_the_same_moment(s3, scheduler, name):
    """The moment that it already has changes nothing, not even a short name."""
    s3.put("events", name, b"body")
    assert scheduler.reschedule(name, "2030-01-31T10:00+01:00") == name
    assert contents(s3) == {name: b"body"}
    assert s3.count() == Counter(HeadObject=1)


@pytest.mark.parametrize("when", [NINE, TEN])
def test_reschedule_of_what_is_not_waiting(s3, scheduler, when):
    """A name that is not waiting raises NotScheduled, which has it; nothing is written."""
    with pytest.raises(NotScheduled) as caught:
        scheduler.reschedule(AT_NINE, when)
    assert caught.value.name == AT_NINE
    assert repr(AT_NINE) in str(caught.value)
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, SchedulerError)
    assert s3.count() == Counter(HeadObject=1)


def test_reschedule_of_what_has_failed(s3, scheduler):
    """A quarantined event is not waiting, either; it stays where it is."""
    name = AT_NINE.replace("later/", "later/failed/AccessDenied/")
    s3.put("events", name, b"body")
    with pytest.raises(NotScheduled, match="quarantined"):
        scheduler.reschedule(name, TEN)
    assert contents(s3) == {name: b"body"}


def test_reschedule_replaces(s3, scheduler):
    """An event already at the new moment is replaced."""
    s3.put("events", AT_NINE, b"moved")
    s3.put("events", AT_TEN, b"replaced")
    assert scheduler.reschedule(AT_NINE, TEN) == AT_TEN
    assert contents(s3) == {AT_TEN: b"moved"}


@pytest.mark.parametrize(
    "operation", ["CopyObject", pytest.param("DeleteObject", marks=needs_once)]
)
def test_reschedule_of_what_goes_meanwhile(s3, scheduler, operation):
    """What goes before its copy, or its delete (a run took it), is at no new name either."""
    s3.put("events", AT_NINE)
    before_each(s3, operation, lambda: s3.delete("events", AT_NINE))
    with pytest.raises(NotScheduled):
        scheduler.reschedule(AT_NINE, TEN)
    assert contents(s3) == {}


@pytest.mark.parametrize("operation", ["CopyObject", "DeleteObject"])
def test_reschedule_of_what_is_changed_meanwhile(s3, scheduler, operation):
    """What is replaced meanwhile is moved with its new content: it starts again."""
    s3.put("events", AT_NINE, b"old")
    before_each(s3, operation, lambda: s3.put("events", AT_NINE, b"new"))
    assert scheduler.reschedule(AT_NINE, TEN) == AT_TEN
    assert contents(s3) == {AT_TEN: b"new"}


def test_reschedule_does_not_withdraw_what_another_moved(s3, scheduler):
    """What goes because another call moves it to the same moment is there, and stays."""
    s3.put("events", AT_NINE, b"body")
    s3.put("events", AT_TEN, b"body")
    before_each(s3, "DeleteObject", lambda: s3.delete("events", AT_NINE))
    assert scheduler.reschedule(AT_NINE, TEN) == AT_TEN
    assert contents(s3) == {AT_TEN: b"body"}


def test_reschedule_lets_another_finish(s3, scheduler):
    """The same content at the new moment may be there because another call is moving it."""
    s3.put("events", AT_NINE, b"body")
    s3.put("events", AT_TEN, b"body")
    before_each(s3, "HeadObject", str, str, lambda: s3.delete("events", AT_NINE))
    with pytest.raises(NotScheduled):
        scheduler.reschedule(AT_NINE, TEN)
    assert contents(s3) == {AT_TEN: b"body"}
    assert s3.count() == Counter(HeadObject=3)


@needs_once
def test_two_reschedules_at_once(s3, scheduler):
    """Of two calls that move it to the same moment at once, none withdraws what both have moved."""
    s3.put("events", AT_NINE, b"body")
    others = {
        "CopyObject": lambda: s3.put("events", AT_TEN, b"body"),
        "DeleteObject": lambda: s3.delete("events", AT_NINE),
    }
    s3.before = lambda request: others.pop(request.operation, str)()
    assert scheduler.reschedule(AT_NINE, TEN) == AT_TEN
    assert contents(s3) == {AT_TEN: b"body"}


@pytest.mark.parametrize("condition", ["refused", "source"])
def test_two_reschedules_at_once_on_other_servers(s3, scheduler, condition):
    """Nor does one where S3 cannot tell which of them was first: it rather leaves a copy."""
    s3.differ(copy_if_none_match=condition)
    s3.put("events", AT_NINE, b"body")
    others = {
        "CopyObject": lambda: s3.put("events", AT_TEN, b"body"),
        "DeleteObject": lambda: s3.delete("events", AT_NINE),
    }
    s3.before = lambda request: others.pop(request.operation, str)()
    assert scheduler.reschedule(AT_NINE, TEN) == AT_TEN
    assert contents(s3) == {AT_TEN: b"body"}


@needs_once
def test_reschedule_does_not_withdraw_what_another_wrote(s3, scheduler):
    """When the old name is gone and the new one replaced meanwhile, the replacement stays."""
    s3.put("events", AT_NINE, b"moved")

    def meanwhile():
        s3.delete("events", AT_NINE)
        s3.put("events", AT_TEN, b"another's")

    before_each(s3, "DeleteObject", meanwhile)
    with pytest.raises(NotScheduled):
        scheduler.reschedule(AT_NINE, TEN)
    assert contents(s3) == {AT_TEN: b"another's"}


@needs_once
def test_reschedule_cannot_withdraw(s3, scheduler):
    """When the new name cannot be withdrawn, S3's answer to that is raised."""
    s3.put("events", AT_NINE, b"moved")
    before_each(s3, "DeleteObject", lambda: s3.delete("events", AT_NINE))
    s3.fault = on("DeleteObject", Error(403, "AccessDenied"), key=AT_TEN)
    with pytest.raises(ClientError, match="AccessDenied"):
        scheduler.reschedule(AT_NINE, TEN)
    assert contents(s3) == {AT_TEN: b"moved"}


def test_reschedule_meets_a_write_under_way(s3, scheduler):
    """A concurrent write (409) is reason to start again."""
    s3.put("events", AT_NINE, b"body")
    s3.fault = on("DeleteObject", CONFLICT)
    assert scheduler.reschedule(AT_NINE, TEN) == AT_TEN
    assert contents(s3) == {AT_TEN: b"body"}


@pytest.mark.parametrize("operation", ["CopyObject", "DeleteObject"])
def test_reschedule_after_a_lost_answer(s3, patient, operation):
    """A lost answer loses no content: what boto3's retry finds done is done."""
    s3.put("events", AT_NINE, b"body")
    s3.fault = on(operation, Reset(after=True))
    assert patient.reschedule(AT_NINE, TEN) == AT_TEN
    assert contents(s3) == {AT_TEN: b"body"}


def test_reschedule_after_a_lost_answer_and_a_replacement(s3, patient):
    """When the old name is written anew in that instant, it is moved again, and none is lost."""
    s3.put("events", AT_NINE, b"body")
    s3.fault = on("DeleteObject", Reset(after=True))
    before_each(s3, "DeleteObject", lambda: None, lambda: s3.put("events", AT_NINE, b"new"))
    assert patient.reschedule(AT_NINE, TEN) == AT_TEN
    assert contents(s3) == {AT_TEN: b"new"}


def test_reschedule_dies_in_between(s3, scheduler):
    """When the delete is never answered, both names are left, and the content is whole."""
    s3.put("events", AT_NINE, b"body")
    s3.fault = on("DeleteObject", Error(403, "AccessDenied"))
    with pytest.raises(ClientError, match="AccessDenied"):
        scheduler.reschedule(AT_NINE, TEN)
    assert contents(s3) == {AT_NINE: b"body", AT_TEN: b"body"}


@pytest.mark.parametrize("operation", ["HeadObject", "CopyObject"])
def test_reschedule_refused(s3, scheduler, operation):
    """Any other answer of S3 passes through, and the event stays as it is."""
    s3.put("events", AT_NINE, b"body")
    s3.fault = on(operation, Error(403, "AccessDenied"))
    with pytest.raises(ClientError):
        scheduler.reschedule(AT_NINE, TEN)
    assert contents(s3) == {AT_NINE: b"body"}


CONFIRMATIONS = {
    "empty body": Empty(),
    "empty body after the copy": Empty(after=True),
    "page of HTML": Html(),
    "cut after the headers": Cut(announced=False),
    "cut after the headers, after the copy": Cut(announced=False, after=True),
}


@pytest.mark.parametrize("answer", CONFIRMATIONS)
def test_reschedule_without_confirmation(s3, scheduler, answer):
    """An answer of 200 that names no copy confirms none, so the event stays where it is."""
    s3.put("events", AT_NINE, b"body")
    s3.fault = on("CopyObject", CONFIRMATIONS[answer])
    with pytest.raises(SchedulerError, match="did not confirm the copy"):
        scheduler.reschedule(AT_NINE, TEN)
    assert contents(s3)[AT_NINE] == b"body"
    assert "DeleteObject" not in s3.count()


@pytest.mark.parametrize("conditions", ["ignored", "refused", "source"])
def test_reschedule_replaces_on_other_servers(s3, scheduler, conditions):
    """An event already at the new moment is replaced, whatever a server makes of If-None-Match."""
    s3.differ(copy_if_none_match=conditions)
    s3.put("events", AT_NINE, b"moved")
    s3.put("events", AT_TEN, b"replaced")
    assert scheduler.reschedule(AT_NINE, TEN) == AT_TEN
    assert contents(s3) == {AT_TEN: b"moved"}


@pytest.mark.parametrize("conditions", ["refused", "source"])
def test_reschedule_keeps_the_condition_on_the_source(s3, scheduler, conditions):
    """Where If-None-Match is refused or misread, the copy is still conditional on its source."""
    s3.differ(copy_if_none_match=conditions)
    etag = s3.put("events", AT_NINE, b"body").etag
    assert scheduler.reschedule(AT_NINE, TEN) == AT_TEN
    *_, last = [request for request in s3.log if request.operation == "CopyObject"]
    assert last.headers["x-amz-copy-source-if-match"] == etag
    assert "if-none-match" not in last.headers


def test_reschedule_where_the_new_name_is_taken_meanwhile(s3, scheduler):
    """What is written to the new name in the instant before the copy is replaced, too."""
    s3.put("events", AT_NINE, b"moved")
    before_each(s3, "CopyObject", lambda: s3.put("events", AT_TEN, b"another's"))
    assert scheduler.reschedule(AT_NINE, TEN) == AT_TEN
    assert contents(s3) == {AT_TEN: b"moved"}


def test_reschedule_gives_up(s3, scheduler):
    """An event that is replaced again and again stays, and that is raised."""
    s3.put("events", AT_NINE, b"0")
    replacements = [lambda n=n: s3.put("events", AT_NINE, b"%d" % n) for n in range(1, 100)]
    before_each(s3, "DeleteObject", *[r for new in replacements for r in (new, lambda: None)])
    with pytest.raises(SchedulerError, match="was replaced meanwhile"):
        scheduler.reschedule(AT_NINE, TEN)
    assert contents(s3) == {AT_NINE: b"5"}


def test_reschedule_believes_no_412_without_a_look(s3, scheduler):
    """A server that refuses the right ETag of the source has S3's answer raised, and no loss."""
    s3.put("events", AT_NINE, b"body")
    s3.differ(copy_source_if_match=Error(412, "PreconditionFailed"))
    with pytest.raises(ClientError, match="PreconditionFailed"):
        scheduler.reschedule(AT_NINE, TEN)
    assert contents(s3) == {AT_NINE: b"body"}


def test_reschedules_that_race(seaweed_client, bucket):
    """Of calls that move one event at once to several moments, none loses it."""
    scheduler = Scheduler(bucket, "later", client=seaweed_client)
    for round_ in range(5):
        name = scheduler.schedule(NINE, "target", f"k{round_}", b"body")
        moments = [TEN + timedelta(hours=hours) for hours in range(4)]

        def move(when, name=name):
            with suppress(NotScheduled):
                scheduler.reschedule(name, when)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(move, moments))
        waiting = [event for event in scheduler.pending() if event.key == f"k{round_}"]
        assert waiting
        assert NINE not in [event.due for event in waiting]


@needs_once
@pytest.mark.slow
def test_reschedules_to_one_moment_that_race(seaweed_client, bucket, monkeypatch):
    """Of calls that move one event at once to one moment, none loses it: it waits there, once."""
    monkeypatch.setattr(scheduler_module, "CONFLICT_AFTER", (0.1, 0.2, 0.4, 0.8))
    scheduler = Scheduler(bucket, "later", client=seaweed_client)
    for round_ in range(5):
        name = scheduler.schedule(NINE, "target", f"k{round_}", b"body")

        def move(_, name=name):
            with suppress(NotScheduled):
                scheduler.reschedule(name, TEN)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(move, range(4)))
        waiting = [event for event in scheduler.pending() if event.key == f"k{round_}"]
        assert [event.due for event in waiting] == [TEN]


# --- failed and retry -----------------------------------------------------------------------------


def test_failed(s3, scheduler):
    """What runs have quarantined is told by its code, and nothing else of the folder is."""
    denied = "later/failed/AccessDenied/2030-01-31T10:00:00.000000Z|target|a/b"
    for name in (AT_NINE, FAILED, denied, "later/failed/", "later/failed/AccessDenied/note"):
        s3.put("events", name, b"body")
    first, second = scheduler.failed()
    assert (first.name, first.due, first.bucket, first.key) == (denied, TEN, "target", "a/b")
    assert (second.name, second.due, second.size) == (FAILED, NINE, 4)


def test_failed_is_lazy(s3, scheduler):
    """There is one request for each 1,000 names, made when it is needed."""
    for number in range(1500):
        s3.put("events", f"later/failed/AccessDenied/2030-01-31T09:00:00.{number:06}Z|target|k")
    events = scheduler.failed()
    assert s3.count() == Counter()
    next(events)
    assert s3.count() == Counter(ListObjectsV2=1)
    assert len(list(events)) == 1499
    assert s3.count() == Counter(ListObjectsV2=2)


def put_failed(s3, name=FAILED, content=b"body", **more):
    s3.put("events", name, content, content_type="text/plain", x_amz_tagging="a=b", **more)
    s3.buckets["events"][name].metadata["user"] = "42"


@CONDITIONS
def test_retry(s3, scheduler, conditions):
    """It goes back to its name with content, headers, metadata and tags whole."""
    s3.conditions = conditions
    put_failed(s3)
    assert scheduler.retry(FAILED) == AT_NINE
    ((name, obj),) = s3.buckets["events"].items()
    assert (name, obj.content, obj.headers["content-type"]) == (AT_NINE, b"body", "text/plain")
    assert (obj.metadata, obj.tags) == ({"user": "42"}, {"a": "b"})


def test_retry_on_a_real_server(seaweed_client, bucket):
    """So it is on a real server, and so is what `aws s3 mv` does."""
    scheduler = Scheduler(bucket, "later", client=seaweed_client)
    for key in ("a b+c%20|é", "k"):
        seaweed_client.put_object(
            Bucket=bucket,
            Key=f"later/failed/NoSuchBucket/2030-01-31T09:00:00.000000Z|target|{key}",
            Body=b"body",
            Metadata={"user": "42"},
            Tagging="a=b",
        )
    retried, moved = scheduler.failed()
    back = [scheduler.retry(retried.name), AT_NINE]
    seaweed_client.copy({"Bucket": bucket, "Key": moved.name}, bucket, AT_NINE)
    seaweed_client.delete_object(Bucket=bucket, Key=moved.name)
    assert list(scheduler.failed()) == []
    assert sorted(event.name for event in scheduler.pending()) == sorted(back)
    for name in back:
        there = {"Bucket": bucket, "Key": name}
        assert seaweed_client.get_object(**there)["Body"].read() == b"body"
        assert seaweed_client.head_object(**there)["Metadata"] == {"user": "42"}
        assert seaweed_client.get_object_tagging(**there)["TagSet"] == [{"Key": "a", "Value": "b"}]


def test_retry_of_a_large_event(s3, scheduler):
    """What is too large for one CopyObject is put back whole, too."""
    put_failed(s3, size=6 * GIB)
    assert scheduler.retry(FAILED) == AT_NINE
    ((name, obj),) = s3.buckets["events"].items()
    assert (name, obj.size, obj.tags) == (AT_NINE, 6 * GIB, {"a": "b"})


def test_retry_of_what_is_not_there(s3, scheduler):
    """A name that is not in `failed/` raises NotScheduled, which has it."""
    with pytest.raises(NotScheduled) as caught:
        scheduler.retry(FAILED)
    assert caught.value.name == FAILED
    assert "CopyObject" not in s3.count()


def test_retry_of_what_waits_again(s3, scheduler):
    """If the same event is waiting again, that one stays as it is, and the failed one too."""
    put_failed(s3)
    s3.put("events", AT_NINE, b"newer")
    with pytest.raises(AlreadyScheduled) as caught:
        scheduler.retry(FAILED)
    assert caught.value.name == AT_NINE
    assert contents(s3) == {AT_NINE: b"newer", FAILED: b"body"}


@needs_once
def test_retry_of_what_is_scheduled_meanwhile(s3, scheduler):
    """What is scheduled in the instant before the copy is not overwritten."""
    put_failed(s3)
    before_each(s3, "CopyObject", lambda: s3.put("events", AT_NINE, b"newer"))
    with pytest.raises(AlreadyScheduled):
        scheduler.retry(FAILED)
    assert contents(s3) == {AT_NINE: b"newer", FAILED: b"body"}


def test_retry_of_a_waiting_event(s3, scheduler):
    """An event that waits has not failed, and the error says that it waits."""
    s3.put("events", AT_NINE, b"body")
    with pytest.raises(AlreadyScheduled, match="already waiting"):
        scheduler.retry(AT_NINE)
    assert contents(s3) == {AT_NINE: b"body"}


def test_retry_of_what_goes_meanwhile(s3, scheduler):
    """What another cancels before the copy is not there; nothing is written."""
    put_failed(s3)
    before_each(s3, "CopyObject", lambda: s3.delete("events", FAILED))
    with pytest.raises(NotScheduled):
        scheduler.retry(FAILED)
    assert contents(s3) == {}


@pytest.mark.parametrize("operation", ["CopyObject", "DeleteObject"])
def test_retry_of_what_is_replaced_meanwhile(s3, scheduler, operation):
    """What a run quarantines anew before the copy, or the delete, goes back with its content."""
    put_failed(s3)
    before_each(s3, operation, lambda: put_failed(s3, content=b"new"))
    assert scheduler.retry(FAILED) == AT_NINE
    assert contents(s3) == {AT_NINE: b"new"}


def test_retry_of_what_goes_after_its_copy(s3, scheduler):
    """What is gone before the delete stays at its name: another call may have put it back."""
    put_failed(s3)
    before_each(s3, "DeleteObject", lambda: s3.delete("events", FAILED))
    assert scheduler.retry(FAILED) == AT_NINE
    assert contents(s3) == {AT_NINE: b"body"}


@pytest.mark.parametrize("answer", CONFIRMATIONS)
def test_retry_without_confirmation(s3, scheduler, answer):
    """An answer of 200 that names no copy confirms none, so the event stays in `failed/`."""
    put_failed(s3)
    s3.fault = on("CopyObject", CONFIRMATIONS[answer])
    with pytest.raises(SchedulerError, match="did not confirm the copy"):
        scheduler.retry(FAILED)
    assert contents(s3)[FAILED] == b"body"
    assert "DeleteObject" not in s3.count()


@pytest.mark.parametrize("answer", [Error(412, "PreconditionFailed"), Error(501, "NotImplemented")])
def test_moves_whose_delete_is_refused(s3, scheduler, answer):
    """An event that cannot be deleted is copied once, and S3's answer is raised, not another."""
    put_failed(s3)
    s3.put("events", AT_NINE, b"body")
    s3.fault = lambda request: answer if request.operation == "DeleteObject" else None
    for move in (lambda: scheduler.reschedule(AT_NINE, TEN), lambda: scheduler.retry(FAILED)):
        with pytest.raises(ClientError, match=answer.code):
            move()
        s3.delete("events", AT_NINE)
    assert s3.count()["CopyObject"] == 2


def test_retry_refused(s3, scheduler):
    """Any other answer of S3 passes through, and the event stays in `failed/`."""
    put_failed(s3)
    s3.fault = on("CopyObject", Error(403, "AccessDenied"))
    with pytest.raises(ClientError, match="AccessDenied"):
        scheduler.retry(FAILED)
    assert contents(s3) == {FAILED: b"body"}


# --- pending --------------------------------------------------------------------------------------


def test_pending(s3, scheduler):
    """Pending events come soonest first, and tell all that a listing tells."""
    for when in (TEN, NINE):
        scheduler.schedule(when, "target", "k|l", b"body")
    first, second = scheduler.pending()
    assert (first.due, second.due) == (NINE, TEN)
    assert first.due.tzinfo is timezone.utc
    assert (first.bucket, first.key, first.size) == ("target", "k|l", 4)
    assert first.name == "later/2030-01-31T09:00:00.000000Z|target|k|l"
    assert first.etag == s3.buckets["events"][first.name].etag


def test_nothing_pending(s3, scheduler):
    """An empty folder has no events, and takes one request to see it."""
    assert list(scheduler.pending()) == []
    assert s3.count() == Counter(ListObjectsV2=1)


@pytest.mark.parametrize(
    ("after", "before", "hours"),
    [
        (None, None, [9, 10, 11]),
        (NINE, None, [9, 10, 11]),
        (NINE + timedelta(microseconds=1), None, [10, 11]),
        (None, TEN, [9]),
        (None, TEN + timedelta(microseconds=1), [9, 10]),
        (NINE, NINE, []),
        (NINE, TEN, [9]),
        (TEN, NINE, []),
        ("2030-01-31T11:00+01:00", "2030-01-31T11:00Z", [10]),
        (timedelta(0), timedelta(days=365_000), [9, 10, 11]),
    ],
)
def test_pending_bounds(scheduler, after, before, hours):
    """A bound is any moment: `after` is the first that counts, `before` the first that does not."""
    for hour in (9, 10, 11):
        scheduler.schedule(NINE.replace(hour=hour), "target", "k", b"")
    found = scheduler.pending(after=after, before=before)
    assert [event.due.hour for event in found] == hours


def test_pending_skips_what_is_no_event(s3, scheduler):
    """The folder's marker, strays, `failed/` and a neighbour folder are no events."""
    for name in (
        "later/",
        "later/!note",
        "later/0note",
        "later/2030-01-31T09:00:00.000000Z",
        "later/2030-02-30T09:00Z|target|k",
        "later/2030-01-31T09:00:00.000000Z||k",
        "later/failed/2030-01-31T09:00:00.000000Z|target|k",
        "later/note",
        "later2/2030-01-31T09:00:00.000000Z|target|k",
        "later",
        "late/2030-01-31T09:00:00.000000Z|target|k",
    ):
        s3.put("events", name)
    s3.put("events", AT_NINE)
    s3.put("events", SHORT)
    assert [event.name for event in scheduler.pending()] == [AT_NINE, SHORT]


def test_pending_counts_a_short_name_where_s3_lists_it(s3, scheduler):
    """A name that stops at the minutes is listed at the end of its minute."""
    s3.put("events", SHORT)
    half = NINE + timedelta(seconds=30)
    assert [event.due for event in scheduler.pending(after=half)] == [NINE]
    assert list(scheduler.pending(before=half)) == []


def test_pending_is_lazy(s3, scheduler):
    """There is one request for each 1,000 names, made when it is needed."""
    s3.fill(waiting=2100)
    events = scheduler.pending()
    assert s3.count() == Counter()
    first = next(events)
    assert s3.count() == Counter(ListObjectsV2=1)
    rest = list(events)
    assert s3.count() == Counter(ListObjectsV2=3)
    dues = [event.due for event in (first, *rest)]
    assert (len(dues), dues) == (2100, sorted(dues))


def test_pending_reads_no_page_beyond_its_bounds(s3, scheduler):
    """`after` begins at its moment, and `before` ends at its: what lies beyond is not read."""
    s3.fill(waiting=2200)
    moments = [event.due for event in itertools.islice(scheduler.pending(), 1151)]
    s3.log.clear()
    assert len(list(scheduler.pending(after=moments[1100], before=moments[1150]))) == 50
    assert len(s3.log) == 1
    assert len(list(scheduler.pending(before=moments[1100]))) == 1100
    assert len(s3.log) == 1 + 2


def test_pending_stops_before_failed(s3, scheduler):
    """Without a bound, too, what failed is not read, however much it is."""
    s3.put("events", AT_NINE)
    for number in range(3000):
        s3.put("events", f"later/failed/AccessDenied/2030-01-31T09:00:00.{number:06}Z|target|k")
    assert [event.name for event in scheduler.pending()] == [AT_NINE]
    assert s3.count() == Counter(ListObjectsV2=1)


# --- Threads --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_threads_share_a_scheduler(s3, scheduler):
    """Threads that schedule, move and cancel with one scheduler do not disturb each other."""

    def work(number):
        kept = scheduler.schedule(NINE, "target", f"kept{number}", b"%d" % number)
        moved = scheduler.schedule(NINE, "target", f"moved{number}", b"%d" % number)
        gone = scheduler.schedule(NINE, "target", f"gone{number}", io.BytesIO(b"gone"))
        assert scheduler.cancel(gone)
        return kept, scheduler.reschedule(moved, TEN)

    with ThreadPoolExecutor(16) as pool:
        names = list(pool.map(work, range(32)))
    expected = {name: b"%d" % number for number, pair in enumerate(names) for name in pair}
    assert contents(s3) == expected
    assert sorted(expected) == [event.name for event in scheduler.pending()]
