"""A run loses nothing, and repeats little: promises one and two."""

import threading
from contextlib import suppress

import pytest
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from s3_scheduler import SchedulerError
from s3_scheduler.window import MAX_FAILURES
from support.fakes3 import (
    CopyError,
    Cut,
    Delay,
    Empty,
    Error,
    Html,
    KeyErrors,
    Reset,
    always,
    any_of,
    on,
    sick,
)
from support.folder import DENIED, WIDTH, lost, only, opened, repeats, unconfirmed
from support.once import needs_once

GIB = 1024**3
CONFIRM_NOTHING = [Empty(), Html(), Cut(), Cut(announced=False)]


@pytest.fixture
def folder(fake):
    with opened(fake) as folder:
        yield folder


def codes(report):
    return [failure.error.response["Error"]["Code"] for failure in report.failures]


# --- Confirmed means confirmed --------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Error(500, "InternalError"),
        DENIED,
        CopyError("InternalError"),
        Reset(),
        Reset(after=True),
        *CONFIRM_NOTHING,
        Empty(after=True),
        Cut(after=True),
        Cut(sent=50),
    ],
    ids=repr,
)
def test_unconfirmed_copy(folder, fault):
    """The original is deleted only after S3 confirmed its copy; without, it stays and is tried."""
    names = [folder.put(60 - i, f"k{i}") for i in range(9)]
    unlucky = names[::3]
    folder.s3.fault = only("CopyObject", fault, *unlucky)
    report = folder.run(retry_for=None)
    assert folder.waiting == unlucky
    assert (report.copied, report.failed) == (6, 3)
    folder.s3.fault = lambda request: None
    assert folder.run().copied == 3
    assert folder.waiting == []
    assert len(folder.arrived) == 9
    assert lost(folder.s3.history) == []


@pytest.mark.parametrize("fault", CONFIRM_NOTHING, ids=repr)
@pytest.mark.parametrize(
    "operation", ["CreateMultipartUpload", "UploadPartCopy", "CompleteMultipartUpload"]
)
def test_unconfirmed_copy_in_parts(folder, operation, fault):
    """So it is for each step of a copy in parts."""
    name = folder.put(1, size=2 * GIB)
    folder.s3.fault = always(operation, fault)
    report = folder.run()
    assert (report.copied, report.failed) == (0, 1)
    assert folder.waiting == [name]
    folder.s3.fault = lambda request: None
    assert folder.run().copied == 1
    assert lost(folder.s3.history) == []


@pytest.mark.parametrize("fault", CONFIRM_NOTHING, ids=repr)
def test_unconfirmed_quarantine(folder, fault):
    """An event is not deleted when S3 did not confirm its copy in `failed/`, and that is told."""
    name = folder.put(2 * 86_400)
    folder.s3.fault = any_of(sick("target", DENIED), always("CopyObject", fault))
    report = folder.run()
    assert [failure.quarantined for failure in report.failures] == [False]
    assert codes(report) == ["AccessDenied"]
    assert folder.waiting == [name]
    assert folder.requests("DeleteObject") == []


# An older boto3 takes a cut for what it is, and the report says so.
@pytest.mark.parametrize("fault", [Empty(), Html(), pytest.param(Cut(), marks=needs_once)])
def test_unconfirmed_deletes(folder, fault):
    """A DeleteObjects whose answer names no key has deleted nothing: each is deleted by itself."""
    names = [folder.put(60 - i, f"k{i}") for i in range(10)]
    folder.s3.fault = only("DeleteObjects", fault)
    report = folder.run()
    assert (report.copied, report.failed, report.unfinished) == (10, 0, False)
    assert folder.waiting == []
    assert sorted(request.key for request in folder.requests("DeleteObject")) == names


@pytest.mark.parametrize("fault", [Empty(), Html(), Cut()], ids=repr)
def test_an_answer_that_lists_nothing(folder, fault):
    """A listing that says neither names nor its end is an error, not an empty folder."""
    folder.put(1)
    folder.s3.fault = only("ListObjectsV2", fault)
    with pytest.raises((SchedulerError, BotoCoreError, ClientError)):
        folder.run()


@pytest.mark.slow
def test_either_here_or_there(folder):
    """At every instant each event is at its source or at its target, whatever fails."""
    for i in range(60):
        folder.put(60 - i, f"k{i % 20}", b"%d" % i)
    faults = [None, Error(500, "InternalError"), None, Reset(), Empty(), Reset(after=True), DENIED]
    folder.s3.fault = lambda request: faults[len(folder.s3.log) % len(faults)]
    for _ in range(20):
        with suppress(ClientError, BotoCoreError, SchedulerError):  # the folder was not listed
            folder.run(retry_for=None)
        assert lost(folder.s3.history) == []
    folder.s3.fault = lambda request: None
    folder.run()
    assert folder.waiting == []
    assert folder.arrived == {f"k{i}": b"%d" % (40 + i) for i in range(20)}


# --- A hundred unconfirmed ------------------------------------------------------------------------


def test_again(folder):
    """What was copied and not deleted is delivered again by the next run."""
    names = [folder.put(60 - i, f"k{i}") for i in range(5)]
    folder.s3.fault = only("DeleteObjects", DENIED)
    report = folder.run()
    assert (report.copied, report.failed) == (5, 5)
    assert codes(report) == ["AccessDenied"] * 5
    assert folder.waiting == names
    folder.s3.fault = lambda request: None
    assert folder.run().copied == 5
    assert folder.waiting == []
    assert sorted(folder.delivered) == sorted(names * 2)


@pytest.mark.slow
def test_slow_deletes(folder):
    """At most 100 events, and the copies in flight, are copied and not yet confirmed deleted."""
    folder.s3.fill(due=300)
    folder.s3.latency = lambda request: 0.2 if request.operation == "DeleteObjects" else 0
    assert folder.run(now=None).copied == 300
    assert 50 < unconfirmed(folder.s3.history) <= 100 + WIDTH


@pytest.mark.parametrize("each", [False, True], ids=["whole", "each-key"])
def test_refused_deletes(folder, each):
    """When deletes are refused, a run delivers 100 at most, and what is in flight; then it ends."""
    folder.s3.fill(due=2_000)

    def refuse(request):
        if request.operation == "DeleteObjects":
            return KeyErrors(dict.fromkeys(request.keys, "AccessDenied")) if each else DENIED
        return None

    folder.s3.fault = refuse
    report = folder.run(now=None)
    assert 100 <= report.copied <= 100 + WIDTH
    assert folder.s3.count()["CopyObject"] == report.copied
    assert report.failed == report.copied
    assert set(codes(report)) == {"AccessDenied"}
    assert report.unfinished
    assert len(folder.waiting) == 2_000


def test_no_more_threads(folder, monkeypatch):
    """When no more threads can be had, the run fails, but what it copied it deletes."""
    folder.s3.fill(due=100)
    started = iter([True] * 5)
    start = threading.Thread.start

    def limited(thread):
        if thread.name.startswith("s3_scheduler") and not next(started, False):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="new thread"):
        folder.run(now=None)
    there = {name.rpartition("|")[2] for name in folder.waiting}
    assert folder.arrived
    # Python may take a task on, and then say that it has not.
    assert len(there & folder.arrived.keys()) <= 1


@pytest.mark.parametrize("fault", [Reset(after=True), Empty(after=True), Cut(after=True)], ids=repr)
def test_lost_answers(folder, fault):
    """Copies whose answers are lost may be repeated: a handful for a bucket that only loses."""
    folder.s3.fill(due=500)
    folder.s3.fault = only("CopyObject", fault)
    for number in range(1, 4):
        report = folder.run(now=None)
        assert (report.copied, report.failed) == (0, MAX_FAILURES)
        assert report.unfinished
        assert folder.s3.count()["CopyObject"] == number * MAX_FAILURES


def test_lost_answers_among_others(folder):
    """A bucket that loses every second answer repeats 100 events a run, and those in flight."""
    folder.s3.fill(due=600)
    lose = iter([True, False] * 1_000)
    folder.s3.fault = lambda request: (
        Reset(after=True) if request.operation == "CopyObject" and next(lose) else None
    )
    report = folder.run(now=None)
    assert 100 <= report.failed <= 100 + WIDTH
    assert report.unfinished
    folder.run(now=None)
    assert repeats(folder.s3.history) <= report.failed


def test_unreachable(folder):
    """Events for a target that cannot be reached hold back no other."""
    far = [folder.put(1_000 - i, f"far{i}", bucket="far") for i in range(150)]
    near = [folder.put(100 - i, f"near{i}") for i in range(5)]

    def refuse(params, **_):
        if "/far" in params["url_path"]:
            raise EndpointConnectionError(endpoint_url="https://far.example")

    folder.client.meta.events.register("before-call.s3.CopyObject", refuse)
    report = folder.run()
    assert (report.copied, report.failed, report.unfinished) == (5, MAX_FAILURES, True)
    assert set(folder.delivered) == set(near)
    assert folder.waiting == far


# --- Deletes --------------------------------------------------------------------------------------


def test_nobody_is_delivered_twice_for_a_busy_delete(folder):
    """A key that DeleteObjects reports as SlowDown or InternalError is sent again, alone."""
    names = [folder.put(3 - i, f"k{i}") for i in range(3)]
    busy = [KeyErrors({names[1]: code}) for code in ("SlowDown", "InternalError")]
    folder.s3.fault = on("DeleteObjects", *busy)
    report = folder.run()
    deletes = folder.requests("DeleteObjects")
    assert [sorted(request.keys) for request in deletes] == [names, [names[1]], [names[1]]]
    assert (report.copied, report.failed, report.unfinished) == (3, 0, False)
    assert folder.waiting == []


@pytest.mark.parametrize(
    "fault", [Error(400, "MissingContentMD5"), Error(405, "MethodNotAllowed"), Error(501, "501")]
)
def test_a_store_without_delete_objects(folder, fault):
    """Where DeleteObjects is refused as a whole, events are deleted one by one."""
    folder.s3.fill(due=60)
    folder.s3.fault = only("DeleteObjects", fault)
    report = folder.run(now=None)
    assert (report.copied, report.failed, report.unfinished) == (60, 0, False)
    assert folder.waiting == []
    assert folder.s3.count()["DeleteObjects"] <= 3


def test_deleted_by_another(folder):
    """A key that DeleteObjects reports as NoSuchKey is deleted, and no failure."""
    name = folder.put(2)
    later = folder.put(1)
    folder.s3.fault = on("DeleteObjects", KeyErrors({name: "NoSuchKey"}, after=True))
    report = folder.run()
    assert (report.copied, report.failed, report.unfinished) == (2, 0, False)
    assert folder.delivered == [name, later]


def test_an_odd_name_whose_delete_is_refused(folder):
    """A name that DeleteObjects cannot carry is deleted by itself; a refusal is a failure."""
    folder.put(2, "odd\n")
    folder.s3.fault = only("DeleteObject", DENIED)
    report = folder.run()
    assert (report.copied, codes(report)) == (1, ["AccessDenied"])


@pytest.mark.slow
def test_patience(folder):
    """A copied event does not wait for slow copies to be deleted with."""
    quick = folder.put(2, "quick")
    slow = folder.put(1, "slow", bucket="other")
    folder.s3.create("other")
    folder.s3.fault = sick("other", Delay(2.0))
    folder.run()
    done = [(change.action, (change.source or (0, change.key))[1]) for change in folder.s3.history]
    assert done[-4:] == [("copy", quick), ("delete", quick), ("copy", slow), ("delete", slow)]
