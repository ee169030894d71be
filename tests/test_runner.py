"""A run as its caller sees it: what arrives, what it costs, and what it reports.

What it does when things go wrong is in files of their own.
"""

import http.client
import io
import itertools
import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st
from moto import mock_aws

from s3_scheduler import Event, Failure, InvalidEvent, Report, RunFailed, Scheduler, run_due
from support.fakes3 import Error, FakeS3

NINE = datetime(2030, 1, 31, 9, tzinfo=timezone.utc)
TEN = NINE + timedelta(hours=1)
MOMENT = timedelta(microseconds=1)


class World(NamedTuple):
    """A scheduler of `later/`, and the bucket that events arrive in."""

    client: Any
    scheduler: Scheduler
    bucket: str
    target: str

    def schedule(self, when, key, body=b"body", **arguments):
        return self.scheduler.schedule(when, self.target, key, body, **arguments)

    def put(self, name, body=b"body"):
        self.client.put_object(Bucket=self.bucket, Key=name, Body=body)

    def run(self, now=NINE, **options):
        return run_due(self.scheduler, now=now, **options)

    def _names(self, bucket):
        page = self.client.list_objects_v2(Bucket=bucket)
        return [entry["Key"] for entry in page.get("Contents", [])]

    @property
    def waiting(self):
        return self._names(self.bucket)

    @property
    def arrived(self):
        return {
            key: self.client.get_object(Bucket=self.target, Key=key)["Body"].read()
            for key in self._names(self.target)
        }


@contextmanager
def moto():
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="my-bucket")  # "events." at moto's door is EventBridge
        client.create_bucket(Bucket="target")
        yield World(client, Scheduler("my-bucket", "later", client=client), "my-bucket", "target")
        client.close()


@contextmanager
def memory():
    with FakeS3("events", "target") as s3:
        client = s3.client(max_pool_connections=16)
        yield World(client, Scheduler("events", "later", client=client), "events", "target")
        client.close()


@pytest.fixture
def world(request):
    """Yield a world on the server that the test names; on SeaweedFS if it names none."""
    server = getattr(request, "param", "seaweedfs")
    if server == "seaweedfs":
        client = request.getfixturevalue("seaweed_client")
        bucket, target = map(request.getfixturevalue, ("bucket", "target"))
        yield World(client, Scheduler(bucket, "later", client=client), bucket, target)
    else:
        with {"moto": moto, "memory": memory}[server]() as made:
            yield made


def on(*servers):
    return pytest.mark.parametrize("world", servers, indirect=True)


ANYWHERE = on("seaweedfs", "moto", "memory")


# --- What arrives ---------------------------------------------------------------------------------


@ANYWHERE
def test_the_main_job(world):
    """What was scheduled arrives whole when it is due, not before, and is then gone."""
    texts = {f"welcome/{number}.json": b"%d" % number for number in range(20)}
    names = [world.schedule(NINE, key, body) for key, body in texts.items()]
    later = world.schedule(NINE + MOMENT, "later.bin", bytes(range(256)))

    report = world.run(now=NINE - MOMENT)
    assert (report.copied, report.unfinished, world.arrived) == (0, False, {})
    assert world.waiting == sorted([*names, later])

    report = world.run(now=NINE)
    assert (report.copied, report.unfinished) == (20, False)
    assert world.arrived == texts
    assert world.waiting == [later]

    assert world.run(now=NINE + MOMENT).copied == 1
    assert world.arrived == {**texts, "later.bin": bytes(range(256))}
    assert world.waiting == []


@on("seaweedfs", "memory")
def test_a_past_time(world):
    """What was due when it was scheduled arrives with the next run, by the clock."""
    world.schedule(timedelta(days=-1), "yesterday")
    world.schedule("1999-12-31T23:59:59+12:00", "long ago")
    world.schedule(timedelta(days=1), "tomorrow")
    assert world.run(now=None).copied == 2
    assert set(world.arrived) == {"yesterday", "long ago"}
    (tomorrow,) = world.scheduler.pending()
    assert tomorrow.key == "tomorrow"


@on("seaweedfs", "memory")
def test_two_for_one_target(world):
    """Of two events for one target the later one's content is there at the end."""
    world.schedule(NINE, "k", b"second")
    world.schedule(NINE - MOMENT, "k", b"first")
    assert world.run().copied == 2
    assert world.arrived == {"k": b"second"}


ANYONES = [
    "|",
    "||",
    "a|b|c",
    "~~",
    "%20",
    "a%2Fb%7C",
    "+",
    "a + b",
    " ",
    "'single' \"double\"",
    "?x=1&y#z",
    "<&>;&amp;",
    "line\nline\r\n\ttab",
    "é 😀 日本語 \u202e \u0301",
    "2030-01-31T09:00:00.000000Z|target|k",
]
NO_FILES = ["back\\slash", "/", "/a//b/", "../a/./b/..", "k" * 300]  # SeaweedFS is a tree of files
CONTROL = ["\x01\x02\x1f", "\x7f\x85", "\ufffe\uffff", "\0"]  # moto's XML has no place for them


@pytest.mark.parametrize(
    ("world", "key"),
    [
        *itertools.product(["memory"], [*ANYONES, *NO_FILES, *CONTROL]),
        *(pytest.param("seaweedfs", key, marks=pytest.mark.slow) for key in ANYONES),
        *(pytest.param("moto", key, marks=pytest.mark.slow) for key in NO_FILES),
    ],
    indirect=["world"],
)
def test_odd_keys(world, key):
    """A key is any text: it is listed, moved, cancelled and delivered as it is."""
    name = world.schedule(TEN, key, b"old")
    assert world.schedule(TEN, key, key.encode()) == name
    (event,) = world.scheduler.pending()
    assert (event.name, event.key, event.size) == (name, key, len(key.encode()))
    name = world.scheduler.reschedule(name, NINE)
    other = world.schedule(NINE, key + "!")
    assert world.scheduler.cancel(other) is True
    assert world.waiting == [name]
    assert world.run().failures == ()
    assert world.arrived == {key: key.encode()}
    assert world.waiting == []


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), st.binary(), min_size=1
    )
)
@settings(max_examples=15)
@pytest.mark.slow
def test_any_keys(bodies):
    """Whatever the keys and the contents, all arrive whole, and nothing else does."""
    with memory() as world:
        for key, body in bodies.items():
            world.schedule(NINE, key, body)
        assert world.run().copied == len(bodies)
        assert world.arrived == bodies
        assert world.waiting == []


@on("seaweedfs", "memory")
def test_the_longest_name(world):
    """A name of 1,024 bytes works to the end; one byte more is refused, and nothing written."""
    room = 1024 - len(f"later/2030-01-31T09:00:00.000000Z|{world.target}|")
    key = ("é" * 50 + "/") * 12
    key = key.encode()[: room - 1].decode(errors="ignore").rstrip("/")
    key += "x" * (room - len(key.encode()))
    with pytest.raises(InvalidEvent, match="1025 bytes of UTF-8 and S3 takes 1024"):
        world.schedule(NINE, key + "x")
    assert world.waiting == []
    name = world.scheduler.reschedule(world.schedule(TEN, key), NINE)
    assert len(name.encode()) == 1024
    assert world.run().copied == 1
    assert world.arrived == {key: b"body"}


@ANYWHERE
@pytest.mark.parametrize("body", [bytes, io.BytesIO])
def test_extra_args_arrive(world, body):
    """Content type, headers, metadata and tags arrive at the target, also after a reschedule."""
    headers = {
        "CacheControl": "no-cache",
        "ContentDisposition": 'attachment; filename="a.txt"',
        "ContentEncoding": "gzip",
        "ContentLanguage": "de",
        "ContentType": "text/plain; charset=utf-8",
        "Metadata": {"order": "42", "note": "a=b; c"},
    }
    tags = {"paid": "no", "to": "a+b c"}
    extra_args = {**headers, "Tagging": "paid=no&to=a%2Bb%20c"}
    name = world.schedule(TEN, "k", body(b"body"), extra_args=extra_args)
    world.scheduler.reschedule(name, NINE)
    assert world.run().copied == 1
    place = {"Bucket": world.target, "Key": "k"}
    there = world.client.head_object(**place)
    assert {name: there[name] for name in headers} == headers
    found = world.client.get_object_tagging(**place)["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in found} == tags


@on("memory")
def test_extra_args_of_a_run(world):
    """What a copy does not keep is given to the run, and holds for its copies."""
    world.schedule(NINE, "k")
    assert world.run(extra_args={"StorageClass": "GLACIER"}).copied == 1
    assert world.client.head_object(Bucket=world.target, Key="k")["StorageClass"] == "GLACIER"


@on("seaweedfs", "memory")
def test_a_name_written_by_hand(world):
    """Any program that can write an object schedules; a short time is due when its minute ends."""
    world.put(f"later/2030-01-31T09:00Z|{world.target}|by hand.txt")
    assert world.run(now=NINE).copied == 0
    assert world.run(now=NINE + timedelta(minutes=1)).copied == 1
    assert world.arrived == {"by hand.txt": b"body"}


@on("seaweedfs", "memory")
def test_the_folder_and_its_neighbours(world):
    """Only the folder's own events are delivered: not a neighbour's, nor what failed."""
    due = f"2030-01-31T08:00Z|{world.target}|k"
    others = [f"later/failed/{due}", f"later2/{due}", f"late/{due}", due, f"a/later/{due}"]
    for name in others:
        world.put(name)
    report = world.run()
    assert (report.copied, report.invalid_names, report.unfinished) == (0, (), False)
    assert sorted(world.waiting) == sorted(others)


@on("memory")
def test_the_folders_own_marker(world, caplog):
    """The object that consoles make for the folder itself is passed over in silence."""
    world.put("later/")
    world.schedule(NINE, "k")
    report = world.run()
    assert (report.copied, report.invalid, report.unfinished) == (1, 0, False)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    assert world.waiting == ["later/"]


@pytest.mark.parametrize("folder", ["/later/", "later/", "a/b/later", "später | 2"])
def test_folder_spellings(seaweed_client, bucket, target, folder):
    """A folder works whatever its slashes, its depth and its characters."""
    scheduler = Scheduler(bucket, folder, client=seaweed_client)
    name = scheduler.schedule(NINE, target, "k", b"body")
    assert [event.name for event in scheduler.pending()] == [name]
    assert run_due(scheduler, now=NINE).copied == 1
    assert list(scheduler.pending()) == []


@on("memory")
def test_shards(world):
    """Of several shards each delivers its share of the targets; together they deliver all."""
    keys = [f"{number}" for number in range(30)]
    for number, key in enumerate(keys * 2):
        world.schedule(NINE - MOMENT * number, key, b"%d" % number)
    shares = []
    for index in range(3):
        before = len(world.waiting)
        report = world.run(shard=(index, 3))
        assert report.copied == before - len(world.waiting)
        assert report.copied % 2 == 0  # both events of each target, or none
        assert not report.unfinished
        shares.append(report.copied)
    assert sum(shares) == 60
    assert all(shares)
    assert world.arrived == {key: b"%d" % number for number, key in enumerate(keys)}


@pytest.mark.parametrize("refusal", [Error(501, "NotImplemented"), Error(400, "MalformedXML")])
def test_a_store_without_conditional_deletes(fake, refusal):
    """Where S3's per-key ETags are refused, what was copied is deleted without them."""
    fake.fill(due=20)
    fake.fault = lambda request: (
        refusal if request.operation == "DeleteObjects" and b"<ETag>" in request.body else None
    )
    client = fake.client(max_pool_connections=16)
    report = run_due(Scheduler("events", "later", client=client))
    assert (report.copied, report.failed, report.unfinished) == (20, 0, False)
    assert fake.sizes() == {"events": 0, "target": 20}
    client.close()


def test_an_odd_name_that_goes_meanwhile(fake):
    """What another deletes once it is copied is gone, also if it is deleted by itself."""
    fake.fill(due=1, key="line\n{i}")
    (name,) = fake.buckets["events"]

    def before(request):
        if request.operation == "DeleteObject":
            fake.delete("events", name)

    fake.before = before
    client = fake.client()
    report = run_due(Scheduler("events", "later", client=client))
    assert (report.copied, report.failed, report.unfinished) == (1, 0, False)
    client.close()


def test_the_default_client():
    """Under moto's `mock_aws`, with the default client, everything works."""
    with mock_aws():
        scheduler = Scheduler("my-bucket", "later")
        client = boto3.client("s3")
        for name in ("my-bucket", "target"):
            client.create_bucket(Bucket=name)
        past = datetime.now(timezone.utc) - timedelta(minutes=1)
        names = [scheduler.schedule(past, "target", f"k{i}", f"{i}") for i in range(5)]
        assert scheduler.cancel(names[0])
        scheduler.reschedule(names[1], timedelta(hours=1))
        scheduler.reschedule(names[2], past + timedelta(seconds=1))
        report = run_due(scheduler)
        assert (report.copied, report.failed, report.unfinished) == (3, 0, False)
        assert [event.key for event in scheduler.pending()] == ["k1"]
        listed = client.list_objects_v2(Bucket="target")["Contents"]
        assert [entry["Key"] for entry in listed] == ["k2", "k3", "k4"]
        client.close()
        scheduler.folder.client.close()


# --- What it costs --------------------------------------------------------------------------------


@contextmanager
def counted(client):
    """Count the requests of a client, by operation."""
    count = Counter()

    def sent(model, **_):
        count[model.name] += 1

    client.meta.events.register("before-call.s3", sent, unique_id="counted")
    yield count
    client.meta.events.unregister("before-call.s3", unique_id="counted")


def put_fast(client, bucket, names):
    """Write empty objects with signed URLs, which takes a fifth of the time that boto3 does."""
    sign = client.generate_presigned_url
    urls = [sign("put_object", Params={"Bucket": bucket, "Key": name}) for name in names]

    def put(urls):
        connection = http.client.HTTPConnection(urlsplit(urls[0]).netloc)
        for url in urls:
            connection.request("PUT", url)
            with connection.getresponse() as answer:
                assert answer.status == 200, answer.read()
        connection.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, (urls[start::8] for start in range(8))))


@pytest.mark.slow
def test_an_idle_run(world):
    """With 5,000 events waiting on a real server it is exactly one request, a ListObjectsV2."""
    put_fast(
        world.client,
        world.bucket,
        [f"later/2040-01-01T00:00:00.{number:06}Z|{world.target}|k" for number in range(5000)],
    )
    with counted(world.client) as count:
        report = run_due(world.scheduler)
    assert count == {"ListObjectsV2": 1}
    assert (report.copied, report.unfinished) == (0, False)


def test_an_idle_run_of_a_full_folder(fake):
    """With 100,000 events waiting it is the same."""
    fake.fill(waiting=100_000)
    client = fake.client()
    report = run_due(Scheduler("events", "later", client=client))
    assert fake.count() == {"ListObjectsV2": 1}
    assert [request.method for request in fake.log] == ["GET"]
    assert (report.copied, report.unfinished) == (0, False)
    client.close()


@pytest.mark.slow
def test_what_a_run_costs(fake):
    """Delivering n events takes n copies, and few requests more."""
    fake.fill(due=300, waiting=5000)
    client = fake.client(max_pool_connections=16)
    assert run_due(Scheduler("events", "later", client=client)).copied == 300
    assert fake.count()["CopyObject"] == 300
    assert fake.count()["ListObjectsV2"] == 2
    assert fake.count()["DeleteObjects"] <= 10
    assert set(fake.count()) == {"CopyObject", "ListObjectsV2", "DeleteObjects"}
    client.close()


# --- What it reports ------------------------------------------------------------------------------


@on("memory")
def test_a_report(world):
    """A report tells what was copied, what failed, what is no event, and how late it was."""
    world.schedule(NINE - timedelta(minutes=5), "a")
    world.schedule(NINE, "b")
    world.put("later/2030-01-31T08:00Z")
    name = world.scheduler.schedule(NINE, "missing", "c", b"body")
    report = world.run()
    assert report.copied == 2
    (failure,) = report.failures
    assert report.failed == 1
    assert (failure.event.name, failure.event.bucket, failure.event.key) == (name, "missing", "c")
    assert (failure.event.due, failure.event.size, failure.quarantined) == (NINE, 4, False)
    assert failure.error.response["Error"]["Code"] == "NoSuchBucket"
    assert report.invalid_names == ("later/2030-01-31T08:00Z",)
    assert report.invalid == 1
    assert report.unfinished is False
    assert timedelta(minutes=5) <= report.max_lateness < timedelta(minutes=7)
    assert world.waiting == ["later/2030-01-31T08:00Z", name]


@on("memory")
def test_a_report_of_nothing(world):
    """A run with nothing to do reports nothing, and has nothing to raise."""
    report = world.run()
    assert report == Report(0, 0, 0, (), 0, (), unfinished=False, max_lateness=timedelta(0))
    report.raise_for_failures()


@on("memory")
def test_a_quarantined_event(world):
    """An event tried for longer than `retry_for` is reported as moved to `failed/`."""
    name = world.scheduler.schedule(NINE, "missing", "c", b"body")
    (failure,) = world.run(now=TEN, retry_for=timedelta(hours=1)).failures
    assert failure.quarantined is True
    assert world.waiting == ["later/failed/NoSuchBucket/" + name.removeprefix("later/")]


@on("memory")
@pytest.mark.parametrize(
    ("retry_for", "quarantined"),
    [(3600, True), (3600.5, False), (timedelta(hours=1), True), (None, False)],
)
def test_durations(world, retry_for, quarantined):
    """A duration is seconds or a timedelta; None: for ever."""
    world.scheduler.schedule(NINE, "missing", "c", b"body")
    report = world.run(now=TEN, retry_for=retry_for, time_limit=timedelta(minutes=1))
    assert [failure.quarantined for failure in report.failures] == [quarantined]


@on("memory")
@pytest.mark.parametrize("count", [1, 2])
def test_raise_for_failures(world, count):
    """When anything failed it raises RunFailed, with the report and the first failure's reason."""
    for i in range(count):
        world.scheduler.schedule(NINE, "missing", f"{i}", b"")
    report = world.run()
    with pytest.raises(RunFailed) as caught:
        report.raise_for_failures()
    assert caught.value.report is report
    message = str(caught.value)
    assert message.startswith(f"{count} failed, the first is ")
    assert repr(report.failures[0].event.name) in message
    assert "NoSuchBucket" in message


@on("memory")
def test_reports_are_frozen(world):
    """A report and its failures do not change."""
    world.scheduler.schedule(NINE, "missing", "k", b"")
    report = world.run()
    with pytest.raises(FrozenInstanceError):
        report.copied = 1
    with pytest.raises(FrozenInstanceError):
        report.failures[0].quarantined = True
    assert isinstance(report.failures[0], Failure)


def test_only_the_first_thousand_failures_are_kept():
    """A report names a thousand failures, and counts them all."""
    failures = [
        Failure(Event(NINE, "b", f"{i}", f"later/{i}", 0, ""), OSError(), quarantined=False)
        for i in range(1010)
    ]
    report = sum((Report(failed=1, failures=(failure,)) for failure in failures), Report())
    assert (report.failures, report.failed) == (tuple(failures[:1000]), 1010)


@on("memory")
def test_invalid_names(world, caplog):
    """Of names that are no events, a hundred are kept and logged as warnings; all are counted."""
    names = [f"later/{number:03}" for number in range(120)]
    for name in names:
        world.put(name)
    world.schedule(NINE, "k")
    report = world.run()
    assert report.invalid_names == tuple(names[:100])
    assert report.invalid == 120
    assert report.copied == 1
    report.raise_for_failures()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 100
    assert "'later/000' is not the name of an event" in warnings[0]
    assert world.waiting == names


@on("memory")
def test_the_summary(world, caplog):
    """A run ends with one line of information, the same each time."""
    caplog.set_level(logging.INFO, "s3_scheduler")
    world.schedule(NINE, "k")
    world.run(now=NINE)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    told = (
        "run_due s3://events/later/ copied 1 delivered_before 0 failed 0 invalid 0 unfinished 0 "
        "max_lateness "
    )
    assert line.startswith(told)
    assert len(line.rpartition(".")[2]) == 3
    assert 0 <= float(line.removeprefix(told)) < 60


# --- What is refused ------------------------------------------------------------------------------


@on("memory")
@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"now": datetime(2030, 1, 31, 9)}, "no time zone"),  # noqa: DTZ001
        ({"now": "2030-01-31T09:00"}, "no time zone"),
        ({"now": 1896080400}, "not a moment"),
        ({"shard": (1, 1)}, r"\(1, 1\) does not exist; pass \(i, n\) with 0 <= i < n"),
        ({"shard": (-1, 2)}, r"\(-1, 2\) does not exist"),
        ({"shard": (0, 0)}, r"\(0, 0\) does not exist"),
        ({"target_buckets": "target"}, r"'target' .* such as \['target'\]"),
        ({"time_limit": -7.0}, r"-7.0 leaves no time .* longer timeout"),
        ({"time_limit": 0}, r"0 leaves no time"),
        ({"time_limit": timedelta()}, "leaves no time"),
        ({"time_limit": float("nan")}, "nan is not a duration; pass seconds or a timedelta"),
        ({"retry_for": "1d"}, "retry_for '1d' is not a duration"),
        ({"extra_args": {"StorageClas": "GLACIER"}}, "StorageClas"),
        ({"extra_args": {"ACL": "privat"}}, "ACL 'privat' in extra_args is none of private, "),
        ({"extra_args": {"Metadata": {"a": "é"}}}, "what no copy takes: (?s:.*) ASCII"),
        ({"extra_args": {"IfNoneMatch": "*"}}, "IfNoneMatch in extra_args .* leave it out"),
        ({"extra_args": {"CopySourceIfMatch": "x"}}, "CopySourceIfMatch in extra_args"),
    ],
)
def test_no_run(world, options, advice):
    """Nothing is sent for invalid arguments; the error says what would be right."""
    with (
        counted(world.client) as count,
        pytest.raises(ValueError, match=advice) as caught,
    ):
        run_due(world.scheduler, **options)
    assert not isinstance(caught.value, InvalidEvent)
    assert count == {}


@on("memory")
def test_a_storage_class_of_the_store(world):
    """A storage class that AWS does not have is left to the store: some have their own."""
    assert run_due(world.scheduler, extra_args={"StorageClass": "FAST"}).failed == 0


@on("memory")
def test_half_a_shard(world):
    """A shard is counted in whole numbers; of others it would be nobody's, or everything."""
    with counted(world.client) as count, pytest.raises(ValueError, match="does not exist"):
        run_due(world.scheduler, shard=(0, 4.0))  # type: ignore[arg-type]
    assert count == {}


@on("memory")
def test_no_folder_to_list(world):
    """What S3 answers when the folder cannot be listed passes through."""
    with pytest.raises(ClientError, match="NoSuchBucket"):
        run_due(Scheduler("missing", "later", client=world.client))
