"""With `once=True` an event is delivered once, whatever becomes of requests and of runs.

Each event here has a key of its own, unless a test says otherwise. Runs that are killed are in
test_killed.py, and all of it mixed is in test_interleaving.py.
"""

import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from s3_scheduler import Scheduler, run_due
from support.clock import FakeClock, run_by
from support.fakes3 import (
    SERVERS,
    CopyError,
    Cut,
    Delay,
    Empty,
    Error,
    FakeS3,
    Hang,
    Html,
    Reset,
    always,
    any_of,
    on,
)
from support.folder import DENIED, NOW, WIDTH, copies, lost, opened, out_of_order, repeats
from support.once import either, needs_once

GIB = 1024**3
DAY = 86_400
CONFLICT = Error(409, "ConditionalRequestConflict")
SIZES = pytest.mark.parametrize("size", [None, 2 * GIB], ids=["small", "large"])


@pytest.fixture
def folder(fake):
    with opened(fake) as folder:
        yield folder


def codes(report):
    return [
        getattr(f.error, "code", "") or f.error.response["Error"]["Code"] for f in report.failures
    ]


def landed(folder):
    """How many copies have really been made to targets."""
    return len(list(copies(folder.s3.history)))


def last_copy(size):
    """The request that makes the copy appear."""
    return "CompleteMultipartUpload" if size else "CopyObject"


def heal(folder):
    folder.s3.fault = folder.s3.before = folder.s3.after = lambda request: None


# --- What repeats nothing -------------------------------------------------------------------------


def three_at_once(folder, events):
    names = folder.put_many(events)
    rng = random.Random(0)
    folder.s3.latency = lambda request: rng.random() / 50
    clients = [folder.s3.client(max_pool_connections=WIDTH) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(run_due, Scheduler("events", "later", client=client), now=NOW, once=True)
            for client in clients
        ]
        reports = [run.result() for run in runs]
    assert folder.waiting == []
    assert sorted(folder.delivered) == names
    assert repeats(folder.s3.history) == 0
    assert [report.failed for report in reports] == [0, 0, 0]
    assert sum(report.copied for report in reports) == events


@needs_once
def test_overlap(folder):
    """Three runs at once deliver every event once, leave nothing and report no failure."""
    three_at_once(folder, 30)


@needs_once
@pytest.mark.slow
def test_overlap_over_a_thousand(folder):
    """So they do over a thousand events."""
    three_at_once(folder, 1_000)


@needs_once
@pytest.mark.slow
def test_overlap_on_a_real_server(seaweed_client, bucket, target):
    """So they do on SeaweedFS."""
    scheduler = Scheduler(bucket, f"later-{uuid.uuid4().hex[:8]}", client=seaweed_client)
    keys = [f"k{i:02}" for i in range(60)]
    for i, key in enumerate(keys):
        scheduler.schedule(NOW + timedelta(seconds=i), target, key, key)
    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(run_due, scheduler, now=NOW + timedelta(hours=1), once=True)
            for _ in range(3)
        ]
        reports = [run.result() for run in runs]
    assert [report.failed for report in reports] == [0, 0, 0]
    assert sum(report.copied for report in reports) == 60
    assert list(scheduler.pending()) == []
    there = seaweed_client.list_objects_v2(Bucket=target)["Contents"]
    assert [entry["Key"] for entry in there] == keys


HANG = pytest.param(Hang(after=True), marks=pytest.mark.slow)
LOST = [Reset(after=True), Empty(after=True), Html(after=True), Cut(after=True), HANG]


@needs_once
@SIZES
@pytest.mark.parametrize("fault", LOST, ids=repr)
def test_lost_answer(fake, fault, size):
    """A copy whose answer is lost is found by the next run, and not made again."""
    with opened(fake, read_timeout=2) as folder:
        names = [folder.put(60 - i, f"k{i}", b"%d" % i, size=size) for i in range(4)]
        fake.fault = always(last_copy(size), fault, "k1", "k2")
        report = folder.run(once=True)
        assert (report.copied, report.delivered_before, report.failed) == (2, 0, 2)
        assert folder.waiting == names[1:3]
        heal(folder)
        report = folder.run(once=True)
        assert (report.copied, report.delivered_before, report.failed) == (0, 2, 0)
        assert folder.waiting == []
        assert landed(folder) == 4
        assert fake.uploads == {}
        assert lost(fake.history) == []


@needs_once
@pytest.mark.parametrize("fault", [Reset(after=True), HANG], ids=repr)
def test_lost_answer_with_retries(fake, fault):
    """When boto3 sends a copy again whose answer was lost, it lands on nothing."""
    retries = {"total_max_attempts": 3, "mode": "standard"}
    with opened(fake, retries=retries, read_timeout=2) as folder:
        folder.put_many(4)
        fake.fault = any_of(*(on("CopyObject", fault, key=f"k{i}") for i in range(4)))
        report = folder.run(once=True)
        assert (report.copied, report.delivered_before, report.failed) == (0, 4, 0)
        assert folder.waiting == []
        assert landed(folder) == 4


@needs_once
@pytest.mark.slow
def test_late_first_attempt(fake):
    """A first attempt that S3 executes after boto3 gave it up lands on nothing."""
    retries = {"total_max_attempts": 3, "mode": "standard"}
    with opened(fake, retries=retries, read_timeout=2) as folder:
        folder.put(60)
        # The original is still there when it acts.
        fake.fault = any_of(on("CopyObject", Delay(4)), always("DeleteObjects", DENIED))
        folder.run(once=True)
        while None in (attempts := {copy.status for copy in folder.requests("CopyObject")}):
            time.sleep(0.01)
        assert attempts == {200, 412}
        heal(folder)
        report = folder.run(once=True)
        assert (report.copied, report.delivered_before, report.failed) == (0, 1, 0)
        assert folder.waiting == []
        assert landed(folder) == 1


@needs_once
@SIZES
def test_refused_deletes(folder, size):
    """What a run delivered and could not delete, the next deletes and counts apart."""
    names = [folder.put(60 - i, f"k{i}", size=size) for i in range(5)]
    folder.s3.fault = any_of(always("DeleteObjects", DENIED), always("DeleteObject", DENIED))
    report = folder.run(once=True)
    assert (report.copied, report.delivered_before, report.failed) == (5, 0, 5)
    assert folder.waiting == names
    heal(folder)
    report = folder.run(once=True)
    assert (report.copied, report.delivered_before, report.failed) == (0, 5, 0)
    assert not report.max_lateness
    assert folder.waiting == []
    assert landed(folder) == 5
    assert folder.s3.uploads == {}


# --- What is at the target already ----------------------------------------------------------------


@needs_once
@SIZES
def test_target_exists(folder, size):
    """What is at the target and is something else stays as it is; the event fails."""
    name = folder.put(DAY - 1, content=b"mine", size=size)
    folder.s3.put("target", "k", b"theirs")
    report = folder.run(once=True)
    assert codes(report) == ["TargetExists"]
    assert report.failures[0].quarantined is False
    assert "s3://target/k holds something else" in str(report.failures[0].error)
    assert (report.copied, report.delivered_before) == (0, 0)
    assert folder.arrived == {"k": b"theirs"}
    assert folder.waiting == [name]
    assert folder.s3.uploads == {}


@needs_once
def test_target_exists_for_long(folder):
    """After `retry_for` such an event is quarantined, whole, under its code."""
    name = folder.put(DAY + 1, content=b"mine", x_amz_tagging="a=1", content_type="text/plain")
    folder.s3.put("target", "k", b"theirs")
    assert folder.run(once=True, retry_for=None).failures[0].quarantined is False
    report = folder.run(once=True)
    assert (codes(report), report.failures[0].quarantined) == (["TargetExists"], True)
    failed = name.replace("later/", "later/failed/TargetExists/")
    assert folder.waiting == [failed]
    there = folder.s3.buckets["events"][failed]
    assert (there.content, there.tags) == (b"mine", {"a": "1"})
    assert there.headers["content-type"] == "text/plain"
    assert folder.arrived == {"k": b"theirs"}


@needs_once
def test_two_for_one_key(folder):
    """Of two events for one key the first is delivered, and the second fails."""
    folder.put(2, content=b"first")
    second = folder.put(1, content=b"second")
    report = folder.run(once=True)
    assert (report.copied, codes(report)) == (1, ["TargetExists"])
    assert folder.arrived == {"k": b"first"}
    assert folder.waiting == [second]


@needs_once
@SIZES
def test_replaced_between_copy_and_delete(folder, size):
    """A replacement between copy and delete comes too late: reported, and whole in failed/."""
    name = folder.put(60, content=b"old", size=size)
    news = iter([{"content": b"newer", "size": size and size + 1}])

    def replace(request):
        if request.operation == last_copy(size) and (new := next(news, None)):
            folder.s3.put("events", name, **new)

    folder.s3.after = replace
    report = folder.run(once=True)
    assert (report.copied, codes(report)) == (1, ["TargetExists"])
    assert folder.arrived == {"k": b"old"}
    assert folder.waiting == [name]
    report = folder.run(once=True, now=NOW + timedelta(days=1))
    assert report.failures[0].quarantined
    (failed,) = folder.waiting
    assert failed == name.replace("later/", "later/failed/TargetExists/")
    assert folder.s3.buckets["events"][failed].content == b"newer"
    assert folder.arrived == {"k": b"old"}
    assert lost(folder.s3.history) == []


@needs_once
@pytest.mark.parametrize("place", ["target", "events"])
def test_encrypted(folder, place):
    """With KMS, whose ETags tell nothing, sizes tell what was delivered before."""
    folder.s3.encryption[place] = "aws:kms"
    names = [
        folder.put(60 - i, f"k{i}", b"content", x_amz_server_side_encryption="aws:kms")
        if place == "events"
        else folder.put(60 - i, f"k{i}", b"content")
        for i in range(2)
    ]
    folder.s3.put("target", "k0", b"something else", x_amz_server_side_encryption="aws:kms")
    folder.s3.fault = always("CopyObject", Reset(after=True), "k1")
    assert folder.run(once=True).failed == 2
    heal(folder)
    report = folder.run(once=True)
    assert (report.copied, report.delivered_before) == (0, 1)
    assert codes(report) == ["TargetExists"]
    assert folder.waiting == names[:1]
    assert landed(folder) == 1


@needs_once
def test_scheduled_in_parts(folder):
    """So it is for what was uploaded in parts, whose ETag its copy does not have."""
    body = bytes(9 * 1024**2)
    folder.scheduler.schedule(NOW, "target", "k", body)
    folder.s3.fault = always("DeleteObjects", DENIED)
    assert folder.run(once=True).copied == 1
    heal(folder)
    report = folder.run(once=True)
    assert (report.copied, report.delivered_before, report.failed) == (0, 1, 0)
    assert folder.waiting == []
    assert landed(folder) == 1


@needs_once
def test_encrypted_source_taken_meanwhile(folder):
    """What another run delivers and deletes while this one looks is no failure."""
    name = folder.put(60, x_amz_server_side_encryption="aws:kms")
    etag = folder.s3.buckets["events"][name].etag
    folder.s3.put("events", name, b"content", x_amz_server_side_encryption="aws:kms")
    assert folder.s3.buckets["events"][name].etag != etag
    folder.s3.put("target", "k", b"content")

    def take(request):
        if request.operation == "HeadObject" and request.bucket == "target":
            folder.s3.delete("events", name)

    folder.s3.before = take
    report = folder.run(once=True)
    assert (report.failed, report.unfinished) == (0, False)
    assert folder.arrived == {"k": b"content"}


@needs_once
def test_consumed_in_between(folder):
    """When the consumer removes the target before the run has looked, the copy is made again."""
    folder.put(60)
    folder.s3.put("target", "k", b"content")
    removals = iter([True])

    def consume(request):
        if request.operation == "HeadObject" and request.bucket == "target" and next(removals, 0):
            folder.s3.delete("target", "k")

    folder.s3.before = consume
    report = folder.run(once=True)
    assert (report.copied, report.delivered_before, report.failed) == (1, 0, 0)
    assert folder.waiting == []


@needs_once
def test_never_seen(folder):
    """An event stays, and is reported, if its target exists for each copy and for no look."""
    name = folder.put(2 * DAY)

    def flicker(request):
        if request.operation == "CopyObject":
            folder.s3.put("target", "k", b"theirs")
        elif request.operation == "HeadObject" and request.bucket == "target":
            folder.s3.delete("target", "k")

    folder.s3.before = flicker
    report = folder.run(once=True)
    assert codes(report) == ["PreconditionFailed"]
    assert "If-None-Match" in str(report.failures[0].error)
    assert folder.waiting == [name]
    assert landed(folder) == 0


@needs_once
def test_may_not_look(folder):
    """Without `s3:GetObject` on the target, what is there already is a failure, and stays."""
    name = folder.put(2 * DAY)
    folder.put(60, "other")
    folder.s3.put("target", "k", b"content")
    folder.s3.denied = {("s3:GetObject", "arn:aws:s3:::target/*")}
    report = folder.run(once=True)
    assert (report.copied, report.failed) == (1, 1)
    assert "Forbidden" in str(report.failures[0].error)
    assert folder.waiting == [name]
    assert folder.arrived["k"] == b"content"


@needs_once
@SIZES
def test_owner(folder, size):
    """The look at the target checks its owner, too."""
    folder.put(60, size=size)
    folder.s3.fault = always(last_copy(size), Reset(after=True))
    owner = {"ExpectedBucketOwner": folder.s3.owner}
    assert folder.run(once=True, extra_args=owner).failed == 1
    heal(folder)
    report = folder.run(once=True, extra_args=owner)
    assert (report.delivered_before, report.failed) == (1, 0)
    looks = folder.requests("HeadObject", "target")
    assert looks
    assert {look.headers["x-amz-expected-bucket-owner"] for look in looks} == {folder.s3.owner}


# --- 412 for another reason, and 409 --------------------------------------------------------------


def rewritten(folder, name, content, size):
    """Replace the event just before the first copy of it, or part, acts."""
    first = iter([True])

    def rewrite(request):
        if request.operation in ("CopyObject", "UploadPartCopy") and next(first, False):
            folder.s3.put("events", name, content, size=size)

    folder.s3.before = rewrite


@needs_once
@SIZES
def test_rewritten_source(folder, size):
    """An event that is replaced before its copy arrives with its new content, in the same run."""
    name = folder.put(60, content=b"old", size=size)
    rewritten(folder, name, b"new", size)
    report = folder.run(once=True)
    assert (report.copied, report.delivered_before, report.failed) == (1, 0, 0)
    assert not report.unfinished
    assert folder.arrived == {"k": b"new"}
    assert folder.waiting == []
    assert landed(folder) == 1
    assert lost(folder.s3.history) == []


@either
def test_rewritten_again_and_again(folder, once):
    """An event that is replaced before each copy is left to the next run, and is no failure."""
    name = folder.put(60, content=b"0")
    folder.put(59, "other")
    contents = iter(range(1, 1_000))

    def rewrite(request):
        if request.operation == "CopyObject" and request.key == "k":
            folder.s3.put("events", name, b"%d" % next(contents))

    folder.s3.before = rewrite
    report = folder.run(once=once)
    assert (report.copied, report.failed, report.unfinished) == (1, 0, True)
    assert folder.waiting == [name]
    assert folder.s3.count()["CopyObject"] <= 6
    heal(folder)
    assert folder.run(once=once).copied == 1
    assert folder.waiting == []
    assert lost(folder.s3.history) == []


@either
def test_rewritten_when_time_is_over(folder, once):
    """So is one that is replaced when no time is left."""
    name, clock = folder.put(60, content=b"old"), FakeClock(NOW)

    def rewrite(request):
        if request.operation == "CopyObject":
            folder.s3.put("events", name, b"new")
            clock.seconds = 10

    folder.s3.before = rewrite
    report = run_by(folder.scheduler, clock, once=once, time_limit=10)
    assert (report.copied, report.failed, report.unfinished) == (0, 0, True)
    assert folder.s3.count()["CopyObject"] == 1
    assert folder.waiting == [name]


@needs_once
def test_rewritten_to_what_is_there(folder):
    """An event that is replaced by what its target holds already was delivered before."""
    name = folder.put(60, content=b"old")
    folder.s3.put("target", "k", b"new")
    rewritten(folder, name, b"new", None)
    report = folder.run(once=True)
    assert (report.copied, report.delivered_before, report.failed) == (0, 1, 0)
    assert folder.waiting == []
    assert landed(folder) == 0


@needs_once
def test_rewritten_and_target_exists(folder):
    """An event that is replaced while its target holds something else fails for the target."""
    name = folder.put(60, content=b"old")
    folder.s3.put("target", "k", b"theirs")
    rewritten(folder, name, b"new", None)
    assert codes(folder.run(once=True)) == ["TargetExists"]
    assert folder.arrived == {"k": b"theirs"}
    assert folder.waiting == [name]
    assert folder.s3.buckets["events"][name].content == b"new"


@needs_once
@SIZES
def test_conflict(folder, size):
    """A 409, another write of the target being under way, is tried again."""
    folder.put(60, size=size)
    folder.s3.fault = on(last_copy(size), CONFLICT, CONFLICT)
    report = folder.run(once=True)
    assert (report.copied, report.failed) == (1, 0)
    assert folder.waiting == []
    assert landed(folder) == 1
    assert folder.s3.uploads == {}


@needs_once
def test_conflict_lost_to_another(folder):
    """When the other write wins, what it wrote decides."""
    names = [folder.put(60 - i, f"k{i}") for i in range(2)]

    def write(request):
        if request.operation == "CopyObject":
            folder.s3.put("target", "k0", b"content")
            folder.s3.put("target", "k1", b"something else")

    faults = {f"k{i}": on("CopyObject", CONFLICT, key=f"k{i}") for i in range(2)}

    def meet(request):
        fault = any_of(*faults.values())(request)
        if fault:
            write(request)
        return fault

    folder.s3.fault = meet
    report = folder.run(once=True)
    assert (report.delivered_before, codes(report)) == (1, ["TargetExists"])
    assert folder.waiting == names[1:]
    assert landed(folder) == 0


@needs_once
def test_conflict_in_a_200(folder):
    """A 409 or 412 that comes in the body of a 200 counts as one."""
    folder.put(60, "k0")
    folder.put(59, "k1")
    folder.s3.put("target", "k1", b"content")
    folder.s3.fault = any_of(
        on("CopyObject", CopyError("ConditionalRequestConflict"), key="k0"),
        on("CopyObject", CopyError("PreconditionFailed"), key="k1"),
    )
    report = folder.run(once=True)
    assert (report.copied, report.delivered_before, report.failed) == (1, 1, 0)
    assert folder.waiting == []


# --- What asks for it -----------------------------------------------------------------------------


@needs_once
def test_condition_at_completion(folder):
    """A copy in parts has its condition where the object appears, and nowhere else."""
    folder.put(60, size=2 * GIB)
    assert folder.run(once=True).copied == 1
    conditional = [r.operation for r in folder.s3.log if "if-none-match" in r.headers]
    assert conditional == ["CompleteMultipartUpload"]
    assert folder.requests("CompleteMultipartUpload")[0].headers["if-none-match"] == "*"


@SIZES
def test_off_by_default(folder, size):
    """Without `once` no request has the condition, and an event overwrites its target."""
    folder.put(60, content=b"mine", size=size)
    folder.s3.put("target", "k", b"theirs")
    report = folder.run()
    assert (report.copied, report.delivered_before, report.failed) == (1, 0, 0)
    assert not [request for request in folder.s3.log if "if-none-match" in request.headers]
    assert folder.arrived == {"k": b"mine"}


@either
def test_costs_nothing(folder, once):
    """Where no target exists it costs no request: one LIST, n copies, n/50 deletes."""
    folder.put_many(40)
    folder.run(once=once)
    count = folder.s3.count()
    assert set(count) == {"ListObjectsV2", "CopyObject", "DeleteObjects"}
    assert (count["ListObjectsV2"], count["CopyObject"]) == (1, 40)
    assert sum(len(request.keys) for request in folder.requests("DeleteObjects")) == 40


class OldClient:
    """A client of a boto3 that does not know If-None-Match on copies."""

    def __init__(self, client):
        self._client = client
        members = {"Bucket": None, "Key": None, "CopySource": None, "CopySourceIfMatch": None}
        operation = SimpleNamespace(input_shape=SimpleNamespace(members=members))
        model = SimpleNamespace(operation_model=lambda name: operation)
        self.meta = SimpleNamespace(service_model=model, config=client.meta.config)

    def __getattr__(self, name):
        return getattr(self._client, name)


def test_old_boto3(folder):
    """With a boto3 that does not know the condition, `once` is refused before any request."""
    folder.put(60)
    client: Any = OldClient(folder.client)
    scheduler = Scheduler("events", "later", client=client)
    with pytest.raises(ValueError, match=r"boto3 1\.40\.65"):
        run_due(scheduler, now=NOW, once=True)
    assert folder.s3.count() == {}


# --- Other stores ---------------------------------------------------------------------------------


@needs_once
@SIZES
@pytest.mark.parametrize("refusal", ["refused", Error(400, "InvalidArgument")], ids=str)
def test_store_that_refuses(folder, refusal, size):
    """On a store that refuses the condition each event fails, saying so; nothing is overwritten."""
    folder.s3.differ(copy_if_none_match=refusal)
    names = [folder.put(60 - i, f"k{i}", size=size) for i in range(3)]
    folder.s3.put("target", "k1", b"theirs")
    report = folder.run(once=True)
    assert (report.copied, report.delivered_before, report.failed) == (0, 0, 3)
    for failure in report.failures:
        assert "once=True needs a store that takes If-None-Match" in str(failure.error)
    assert folder.arrived == {"k1": b"theirs"}
    assert folder.waiting == names
    assert folder.s3.uploads == {}


@needs_once
def test_what_has_nothing_to_do_with_once(folder):
    """Nothing is said of the condition where S3 refuses an event for another reason."""
    folder.s3.fault = always("CopyObject", DENIED)
    folder.put(60)
    (failure,) = folder.run(once=True).failures
    assert "AccessDenied" in str(failure.error)
    assert "once=True" not in str(failure.error)


@needs_once
def test_swift(fake):
    """Swift refuses it so."""
    fake.server = SERVERS["swift"]
    with opened(fake) as folder:
        folder.put(60)
        (failure,) = folder.run(once=True).failures
        assert "If-None-Match" in str(failure.error)
        assert folder.arrived == {}


@needs_once
def test_store_that_judges_the_source(folder):
    """So it is on a store that applies the condition to the source, which always exists."""
    folder.s3.differ(copy_if_none_match="source")
    name = folder.put(2 * DAY)
    report = folder.run(once=True)
    assert "once=True needs a store that takes If-None-Match" in str(report.failures[0].error)
    assert folder.arrived == {}
    assert folder.waiting == [name]


IGNORING = sorted(
    name
    for name, store in SERVERS.items()
    # One of them cannot copy a name with a colon.
    if store.copy_if_none_match == "ignored" and not store.loses_colons
)


@needs_once
@pytest.mark.parametrize("server", IGNORING)
def test_store_that_ignores(server):
    """On a store that ignores the condition, `once` is no more than at least once."""
    with FakeS3(server=server) as fake, opened(fake) as folder:
        folder.put_many(5)
        fake.put("target", "k1", b"theirs")
        fake.fault = always("CopyObject", Reset(after=True), "k2")
        assert folder.run(once=True).copied == 4
        heal(folder)
        assert folder.run(once=True).copied == 1
        assert folder.waiting == []
        assert folder.arrived == {f"k{i}": b"content" for i in range(5)}
        assert repeats(fake.history) == 1


@needs_once
def test_order_and_isolation(folder):
    """Promises hold as ever: the rest is delivered, in order, past what exists."""
    folder.put_many(40)
    for i in range(0, 40, 4):
        folder.s3.put("target", f"k{i}", b"theirs")
    report = folder.run(once=True)
    assert (report.copied, report.failed) == (30, 10)
    assert len(folder.waiting) == 10
    assert out_of_order(folder.s3.history) == []


@needs_once
@pytest.mark.slow
def test_many_that_exist(folder):
    """However many find their targets taken, the others for the same bucket are delivered."""
    for i in range(150):
        folder.put(1_000 - i, f"taken{i}")
        folder.s3.put("target", f"taken{i}", b"theirs")
    for i in range(20):
        folder.put(20 - i, f"free{i}")
    report = folder.run(once=True)
    assert report.copied == 20
    assert set(codes(report)) == {"TargetExists"}
    assert repeats(folder.s3.history) == 0
