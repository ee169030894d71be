"""What a run promises, one to nine, as the contract numbers it.

Each test here is shown to fail without what it proves: see `test_sabotage.py`.
"""

import logging
import signal
import threading
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import pytest
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError
from moto import mock_aws

from s3_scheduler import RunFailed, Scheduler, objects, run_due, runner
from support.fakes3 import CopyError, Error, Hang, KeyErrors, Reset, on
from support.folder import (
    DENIED,
    NOW,
    WIDTH,
    due_name,
    lost,
    only,
    opened,
    out_of_order,
    repeats,
    unconfirmed,
)

GIB = 1024**3
DAY = 86_400
HEADERS = {
    "cache_control": "no-cache",
    "content_disposition": 'attachment; filename="a.txt"',
    "content_encoding": "gzip",
    "content_language": "de",
    "content_type": "text/plain; charset=utf-8",
    "expires": "Wed, 21 Oct 2037 07:28:00 GMT",
    "x_amz_meta_author": "ann",
    "x_amz_tagging": "a=1&b=x%20y",
}


@pytest.fixture
def folder(fake):
    with opened(fake) as folder:
        yield folder


def codes(report):
    return [failure.error.response["Error"]["Code"] for failure in report.failed]


# --- 1. Nothing is lost ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Error(500, "InternalError"),
        Error(503, "SlowDown"),
        DENIED,
        CopyError("InternalError"),
        Reset(),
        Reset(after=True),
    ],
    ids=repr,
)
def test_unconfirmed_copy(folder, fault):
    """The original is deleted only after S3 confirmed its copy; without, it stays and is tried."""
    names = [folder.put(60 - i, f"k{i}") for i in range(30)]
    unlucky = names[::3]
    folder.s3.fault = only("CopyObject", fault, *unlucky)
    report = folder.run(retry_for=None)
    assert folder.waiting == unlucky
    assert (report.copied, report.failed_count) == (20, 10)
    folder.s3.fault = lambda request: None
    assert folder.run().copied == 10
    assert folder.waiting == []
    assert len(folder.arrived) == 30
    assert lost(folder.s3.history) == []


def test_either_here_or_there(folder):
    """At every instant each event is at its source or at its target, whatever fails."""
    for i in range(60):
        folder.put(60 - i, f"k{i % 20}", b"%d" % i)
    faults = [None, Error(500, "InternalError"), None, Reset(), Reset(after=True), DENIED]
    folder.s3.fault = lambda request: faults[len(folder.s3.log) % 6]
    for _ in range(20):
        with suppress(ClientError, BotoCoreError):  # the folder could not be listed
            folder.run(retry_for=None)
        assert lost(folder.s3.history) == []
    folder.s3.fault = lambda request: None
    folder.run()
    assert folder.waiting == []
    assert folder.arrived == {f"k{i}": b"%d" % (40 + i) for i in range(20)}


# --- 2. At least once, and few repeats ------------------------------------------------------------


def test_again(folder):
    """What was copied and not deleted is delivered again by the next run."""
    names = [folder.put(60 - i, f"k{i}") for i in range(5)]
    folder.s3.fault = only("DeleteObjects", Error(503, "SlowDown"))
    report = folder.run()
    assert (report.copied, report.failed_count) == (5, 5)
    assert codes(report) == ["SlowDown"] * 5
    assert folder.waiting == names
    folder.s3.fault = lambda request: None
    assert folder.run().copied == 5
    assert folder.waiting == []
    assert sorted(folder.delivered) == sorted(names * 2)


def test_slow_deletes(folder):
    """At most 100 events, and the copies in flight, are copied and not yet confirmed deleted."""
    folder.s3.fill(due=400)
    folder.s3.latency = lambda request: 0.3 if request.operation == "DeleteObjects" else 0
    assert folder.run().copied == 400
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
    assert report.failed_count == report.copied
    assert set(codes(report)) == {"AccessDenied"}
    assert report.unfinished
    assert len(folder.waiting) == 2_000


def test_deletes_that_meet_a_change(folder):
    """A delete that meets a change keeps its place, too, for what was copied is still there."""
    folder.s3.fill(due=500)
    folder.s3.fault = lambda request: (
        KeyErrors(dict.fromkeys(request.keys, "PreconditionFailed"))
        if request.operation == "DeleteObjects"
        else None
    )
    report = folder.run(now=None)
    assert 100 <= report.copied <= 100 + WIDTH
    assert (report.failed_count, report.unfinished) == (0, True)


def test_arrived_without_its_tags(folder, monkeypatch):
    """A large copy that arrived, and was then refused its tags, keeps its place as well."""
    monkeypatch.setattr(objects, "MAX_COPY", 0)
    for i in range(150):
        folder.put(200 - i, f"k{i}", size=9 * 1024**2, x_amz_tagging="a=1")
    folder.s3.fault = only("PutObjectTagging", DENIED)
    for _ in range(2):
        folder.run(retry_for=None)
    assert repeats(folder.s3.history) <= 100 + WIDTH


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


def test_lost_answers(folder):
    """A copy whose answer is lost may have happened, so it keeps a place among the 100."""
    folder.s3.fill(due=500)
    folder.s3.fault = only("CopyObject", Reset(after=True))
    report = folder.run(now=None)
    assert 100 <= folder.s3.count()["CopyObject"] <= 100 + WIDTH
    assert report.copied == 0
    assert report.unfinished


def test_unreachable(folder):
    """What was never sent takes no place: events for an unreachable target hold back no other."""
    folder.s3.fill(due=150, key="far{i}")
    near = [folder.put(1, f"near{i}") for i in range(5)]

    def refuse(params, **_):
        if "/far" in params["url_path"]:
            raise EndpointConnectionError(endpoint_url="https://far.example")

    folder.client.meta.events.register("before-call.s3.CopyObject", refuse)
    report = folder.run()
    assert (report.copied, report.failed_count, report.unfinished) == (5, 150, False)
    assert set(folder.delivered) == set(near)


@pytest.mark.parametrize(
    ("code", "times"), [("SlowDown", 1), ("InternalError", 3), ("SlowDown", 4)]
)
def test_key_sent_again(folder, code, times):
    """A key that DeleteObjects reports as InternalError or SlowDown is sent again, three times."""
    names = [folder.put(3 - i, f"k{i}") for i in range(3)]
    folder.s3.fault = on("DeleteObjects", *[KeyErrors({names[1]: code})] * times)
    report = folder.run()
    deletes = folder.requests("DeleteObjects")
    assert [sorted(request.keys) for request in deletes] == [names, *[[names[1]]] * min(times, 3)]
    assert folder.waiting == ([names[1]] if times > 3 else [])
    assert codes(report) == ([code] if times > 3 else [])
    assert report.copied == 3


def test_a_store_that_wants_an_md5(folder):
    """Where DeleteObjects wants an MD5 that boto3 does not send, events are deleted one by one."""
    folder.s3.fill(due=30)
    folder.s3.fault = only("DeleteObjects", Error(400, "MissingContentMD5"))
    report = folder.run(now=None)
    assert (report.copied, report.failed_count, report.unfinished) == (30, 0, False)
    assert folder.waiting == []


def test_deleted_by_another(folder):
    """A key that DeleteObjects reports as NoSuchKey is deleted, and no failure."""
    name = folder.put(2)
    later = folder.put(1)
    folder.s3.fault = on("DeleteObjects", KeyErrors({name: "NoSuchKey"}))
    report = folder.run()
    assert (report.copied, report.failed_count, report.unfinished) == (2, 0, False)
    assert folder.delivered == [name, later]


@pytest.mark.parametrize(("status", "code"), [(404, "NoSuchKey"), (403, "AccessDenied")])
def test_deleted_by_itself(folder, status, code):
    """So it is for a name that DeleteObjects cannot carry; and a refusal is a failure."""
    folder.put(2, "odd\n")
    folder.s3.fault = only("DeleteObject", Error(status, code))
    report = folder.run()
    assert report.copied == 1
    assert codes(report) == ([] if status == 404 else [code])


def test_patience(folder):
    """A copied event does not wait for slow copies to be deleted with."""
    quick = folder.put(2, "quick")
    slow = folder.put(1, "slow")
    folder.s3.latency = lambda request: 3 if request.key == "slow" else 0
    folder.run()
    done = [(change.action, (change.source or (0, change.key))[1]) for change in folder.s3.history]
    assert done[-4:] == [("copy", quick), ("delete", quick), ("copy", slow), ("delete", slow)]


# --- 3. Never early, oldest first -----------------------------------------------------------------


def test_due_now(folder):
    """An event due exactly now is delivered, and one due a microsecond later is not."""
    now = folder.put(0, "now")
    soon = folder.put(-1e-6, "soon")
    report = folder.run()
    assert folder.delivered == [now]
    assert folder.waiting == [soon]
    assert (report.copied, report.unfinished) == (1, False)


@pytest.mark.parametrize(
    ("due", "on_time", "late"),
    [
        ("2030-01-31T12:00Z", "12:00:59.999999", "12:01:00"),
        ("2030-01-31T12:00:00Z", "12:00:00.999999", "12:00:01"),
        ("2030-01-31T12:00:00.5Z", "12:00:00.599999", "12:00:00.600000"),
        ("2030-01-31T12:00:00.000001Z", "12:00:00", "12:00:00.000001"),
    ],
)
def test_due_by_hand(folder, due, on_time, late):
    """A name written by hand is never delivered early, and late by the digits it leaves out."""
    folder.s3.put("events", f"later/{due}|target|k", b"content")
    folder.run(now=datetime.fromisoformat(f"2030-01-31T{on_time}+00:00"))
    assert folder.arrived == {}
    folder.run(now=datetime.fromisoformat(f"2030-01-31T{late}+00:00"))
    assert folder.arrived == {"k": b"content"}


def test_oldest_first(fake):
    """The oldest event is delivered first."""
    with opened(fake, max_pool_connections=1) as folder:
        names = [folder.put(100 - i, f"k{i * 7 % 50}") for i in range(50)]
        folder.run()
        assert folder.delivered == names


@pytest.mark.parametrize("now", [datetime.max, datetime(9999, 12, 31, 23, 59, 59)])  # noqa: DTZ001,DTZ901
def test_everything_is_due(folder, now):
    """The end of time, as `now`, delivers everything."""
    folder.put(-DAY)
    assert folder.run(now=now.replace(tzinfo=timezone.utc)).copied == 1
    assert folder.waiting == []


# --- 4. In order for each target ------------------------------------------------------------------


def test_one_after_the_other(folder):
    """An event is copied only when the earlier one for its target has left the folder."""
    names = [folder.put(60 - i, "k", b"%d" % i) for i in range(30)]
    report = folder.run()
    steps = [
        step for name in names for step in [("copy", "target", "k"), ("delete", "events", name)]
    ]
    assert [change[:3] for change in folder.s3.history[30:]] == steps
    assert folder.delivered == names
    assert (report.copied, report.unfinished) == (30, False)


def test_awaited_delete(folder, monkeypatch):
    """A delete that something waits for is sent at once."""
    monkeypatch.setattr(runner, "PATIENCE", 60)
    first, second = folder.put(3), folder.put(2)
    slow = folder.put(1, "slow")
    folder.s3.latency = lambda request: 2 if request.key == "slow" else 0
    folder.run()
    assert folder.delivered == [first, second, slow]


def rewrite(folder, operation, moment):
    """Rewrite the event at `k` while the first request acts that lists, copies or deletes it."""
    left = iter([True])

    def hook(request):
        named = due_name(2) in (*request.keys, *(request.source or ()))
        if request.operation == operation and (named or operation == "ListObjectsV2"):
            for _ in left:
                folder.put(2, content=b"rewritten")

    setattr(folder.s3, moment, hook)


REWRITES = [
    pytest.param("ListObjectsV2", "after", id="before-the-copy"),
    pytest.param("CopyObject", "after", id="between-copy-and-delete"),
    pytest.param("DeleteObjects", "before", id="during-the-delete"),
]


@pytest.mark.parametrize(("operation", "moment"), REWRITES)
def test_order_after_rewrite(folder, operation, moment):
    """When an event is rewritten in mid-run, later ones for its target wait for another run."""
    first = folder.put(2, content=b"first")
    second = folder.put(1, content=b"second")
    rewrite(folder, operation, moment)
    report = folder.run()
    assert folder.waiting == [first, second]
    assert second not in folder.delivered
    assert (report.unfinished, report.failed_count) == (True, 0)
    folder.s3.before = folder.s3.after = lambda request: None
    report = folder.run()
    assert folder.deliveries[-2:] == [(first, "k", b"rewritten"), (second, "k", b"second")]
    assert (report.copied, report.unfinished) == (2, False)
    assert folder.waiting == []


def test_order_after_failed_delete(folder):
    """When an event's delete fails, for its key alone, later ones for its target wait."""
    first, second = folder.put(3, content=b"first"), folder.put(2, content=b"second")
    other = folder.put(1, "other")
    folder.s3.fault = lambda request: (
        KeyErrors({first: "AccessDenied"}) if request.operation == "DeleteObjects" else None
    )
    report = folder.run()
    assert folder.waiting == [first, second]
    assert sorted(folder.delivered) == [first, other]
    assert [failure.event.name for failure in report.failed] == [first]
    assert report.unfinished
    folder.s3.fault = lambda request: None
    folder.run()
    assert folder.arrived["k"] == b"second"
    assert folder.waiting == []


@pytest.mark.parametrize("fault", [DENIED, Reset(after=True), Error(500, "InternalError")])
def test_order_after_failed_copy(folder, fault):
    """When an event's copy fails, later ones for its target wait, those of later pages too."""
    first = folder.put(DAY)
    for i in range(1_000):
        folder.s3.put("events", f"later/2030-01-31T00:00:{i:04}")
    later = [folder.put(2), folder.put(1)]
    folder.s3.latency = lambda request: 0.5 if "continuation-token" in request.query else 0
    folder.s3.fault = only("CopyObject", fault, first)
    report = folder.run(retry_for=None)
    assert set(folder.delivered) <= {first}
    assert report.invalid_count == 1_000
    assert [name for name in folder.waiting if "|" in name] == [first, *later]
    assert report.unfinished


def test_order_after_gone(folder):
    """An earlier event that is found gone holds back nothing."""
    first, second = folder.put(2), folder.put(1)
    folder.s3.after = lambda request: (
        folder.s3.delete("events", first) if request.operation == "ListObjectsV2" else None
    )
    report = folder.run()
    assert folder.delivered == [second]
    assert (report.copied, report.failed_count, report.unfinished) == (1, 0, False)


# --- 5. A rewrite in mid-run is safe --------------------------------------------------------------


@pytest.mark.parametrize(("operation", "moment"), REWRITES)
def test_rewrite(folder, operation, moment):
    """Content replaced in mid-run is delivered once, by the next run, and never deleted unread."""
    name = folder.put(2, content=b"first")
    rewrite(folder, operation, moment)
    report = folder.run()
    first = [] if operation == "ListObjectsV2" else [(name, "k", b"first")]
    assert folder.deliveries == first
    assert folder.waiting == [name]
    assert (report.copied, report.failed_count, report.unfinished) == (len(first), 0, True)
    folder.s3.before = folder.s3.after = lambda request: None
    folder.run()
    assert folder.deliveries == [*first, (name, "k", b"rewritten")]
    assert folder.waiting == []


def test_rewrite_of_an_odd_name(folder):
    """So it is for a name that DeleteObjects cannot carry, and that is deleted by itself."""
    odd = folder.put(1, "odd\x01\n", content=b"first")
    plain = folder.put(2, "plain")
    left = iter([True])
    folder.s3.before = lambda request: [
        folder.put(1, "odd\x01\n", content=b"rewritten")
        for _ in (left if request.operation == "DeleteObject" else ())
    ]
    report = folder.run()
    assert (report.copied, report.failed_count, report.unfinished) == (2, 0, True)
    assert folder.waiting == [odd]
    folder.run()
    assert folder.arrived == {"odd\x01\n": b"rewritten", "plain": b"content"}
    assert folder.delivered.count(plain) == 1
    assert folder.waiting == []


def test_rewrite_before_it_is_set_aside(folder):
    """Content that replaces what is being moved to `failed/` is not moved, and not deleted."""
    name = folder.put(2 * DAY, content=b"first")
    folder.s3.fault = only("CopyObject", DENIED, "k")
    folder.s3.after = lambda request: (
        folder.put(2 * DAY, content=b"second") if "failed/" in request.key else None
    )
    report = folder.run()
    assert [failure.quarantined for failure in report.failed] == [False]
    assert folder.waiting == [name]
    assert folder.s3.buckets["events"][name].content == b"second"


def test_set_aside_by_two(folder):
    """What an overlapping run moved to `failed/` at the same time is there, and only there."""
    name = folder.put(2 * DAY, content=b"body")
    folder.s3.fault = only("CopyObject", DENIED, "k")
    folder.s3.after = lambda request: (
        folder.s3.delete("events", name) if "failed/" in request.key else None
    )
    report = folder.run()
    assert [failure.quarantined for failure in report.failed] == [True]
    assert folder.waiting == [set_aside(name)]


# --- 6. Gone is not a failure ---------------------------------------------------------------------


def test_gone(folder):
    """A source that vanished is passed over: cancelled, or taken by another run."""
    names = [folder.put(10 - i, f"k{i}") for i in range(3)]
    folder.s3.after = lambda request: (
        folder.s3.delete("events", names[1]) if request.operation == "ListObjectsV2" else None
    )
    report = folder.run()
    assert (report.copied, report.failed_count, report.unfinished) == (2, 0, False)
    assert sorted(folder.delivered) == [names[0], names[2]]


@pytest.mark.parametrize("size", [0, 6 * GIB], ids=["small", "large"])
def test_missing_bucket(folder, size):
    """A missing target bucket is a failure, and holds back no other event."""
    name = folder.put(2, bucket="missing", size=size)
    good = folder.put(1)
    report = folder.run()
    assert codes(report) == ["NoSuchBucket"]
    assert folder.delivered == [good]
    assert folder.waiting == [name]


def test_404_of_something_else(folder):
    """A 404 that does not tell what is missing is a failure, while the source is there."""
    name = folder.put(1)
    folder.s3.fault = only("CopyObject", Error(404, "404"))
    assert codes(folder.run()) == ["404"]
    assert folder.waiting == [name]
    folder.s3.before = lambda request: (
        folder.s3.delete("events", name) if request.operation == "HeadObject" else None
    )
    report = folder.run()
    assert (report.failed_count, report.unfinished) == (0, False)


def test_404_that_cannot_be_asked_about(folder):
    """Nor is it taken for gone when S3 does not say whether the source is there."""
    folder.put(1)
    folder.s3.fault = lambda request: (
        Error(*((404, "404") if request.operation == "CopyObject" else (403, "AccessDenied")))
        if request.operation in {"CopyObject", "HeadObject"}
        else None
    )
    assert codes(folder.run()) == ["404"]


def test_gone_when_large(folder):
    """A large source that vanishes between any two requests of its copy is passed over."""
    for operation in ("ListObjectsV2", "GetObjectTagging", "HeadObject", "CreateMultipartUpload"):
        name = folder.put(1, size=6 * GIB)
        folder.s3.after = lambda request, name=name, last=operation: (
            folder.s3.delete("events", name) if request.operation == last else None
        )
        report = folder.run()
        assert (report.copied, report.failed_count, report.unfinished) == (0, 0, False)
    assert folder.s3.count()["CreateMultipartUpload"] == 2
    assert folder.s3.uploads == {}


# --- 7. One bad event stops no other --------------------------------------------------------------

GO = [
    (400, "InvalidArgument"),
    (400, "InvalidRequest"),
    (400, "KeyTooLongError"),
    (400, "MetadataTooLarge"),
    (403, "AccessDenied"),
    (403, "AllAccessDisabled"),
    (403, "InvalidObjectState"),
    (404, "NoSuchBucket"),
    (405, "MethodNotAllowed"),
]
STAY = [
    (301, "PermanentRedirect"),
    (307, "TemporaryRedirect"),
    (400, "BandwidthLimitExceeded"),
    (400, "ExpiredToken"),
    (400, "IncompleteBody"),
    (400, "InvalidToken"),
    (400, "KMS.ThrottlingException"),
    (400, "LimitExceededException"),
    (400, "ProvisionedThroughputExceededException"),
    (400, "RequestLimitExceeded"),
    (400, "RequestTimeout"),
    (400, "RequestThrottled"),
    (400, "SlowDown"),
    (400, "Throttling"),
    (400, "ThrottlingException"),
    (400, "TokenRefreshRequired"),
    (400, "TooManyRequestsException"),
    (401, "Unauthorized"),
    (403, "AccountProblem"),
    (403, "ExpiredToken"),
    (403, "InvalidAccessKeyId"),
    (403, "MissingAuthenticationToken"),
    (403, "RequestExpired"),
    (403, "RequestTimeTooSkewed"),
    (403, "SignatureDoesNotMatch"),
    (404, "NoSuchUpload"),
    (408, "RequestTimeout"),
    (409, "BucketAlreadyExists"),
    (409, "ConditionalRequestConflict"),
    (409, "OperationAborted"),
    (429, "TooManyRequests"),
    (500, "AccessDenied"),
    (500, "InternalError"),
    (501, "NotImplemented"),
    (502, "BadGateway"),
    (503, "ServiceUnavailable"),
    (503, "SlowDown"),
    (504, "GatewayTimeout"),
]


def described(obj):
    return obj.content, obj.headers, obj.metadata, obj.tags


def fail(folder, fault, ago=2 * DAY, **options):
    """Run with an event whose copy always meets the fault, beside a good one of the same age."""
    bad, good = folder.put(ago, "bad", b"precious", **HEADERS), folder.put(ago, "good")
    folder.s3.fault = only("CopyObject", fault, "bad")
    report = folder.run(**options)
    assert [failure.event.name for failure in report.failed] == [bad]
    assert folder.delivered == [good]
    return bad, report.failed[0]


def set_aside(name):
    return name.replace("later/", "later/failed/")


@pytest.mark.parametrize(("status", "code"), GO)
def test_its_own_fault(folder, status, code):
    """What S3 will never take is moved to `failed/`, whole, when its time to be tried is over."""
    precious = folder.s3.put("target", "precious", b"precious", **HEADERS)
    bad, failure = fail(folder, Error(status, code))
    assert failure.error.response["Error"]["Code"] == code
    assert failure.quarantined
    assert folder.waiting == [set_aside(bad)]
    moved = folder.s3.buckets["events"][set_aside(bad)]
    assert described(moved) == described(precious)
    assert (moved.content, moved.metadata) == (b"precious", {"author": "ann"})
    assert folder.run().failed_count == 0


@pytest.mark.parametrize(("status", "code"), STAY)
def test_not_its_fault(folder, status, code):
    """An outage, throttling, credentials or a clock that is wrong never move an event."""
    bad, failure = fail(folder, Error(status, code))
    assert not failure.quarantined
    assert folder.waiting == [bad]


@pytest.mark.parametrize("fault", [Reset(), Reset(after=True), Hang(), CopyError("SlowDown")])
def test_no_answer(fake, fault):
    """Nor does a connection that breaks or hangs, nor an error in the body of a 200."""
    with opened(fake, read_timeout=2) as folder:
        bad = folder.put(2 * DAY, "bad")
        good = folder.put(DAY, "good")
        folder.s3.fault = only("CopyObject", fault, "bad")
        report = folder.run()
        assert [failure.quarantined for failure in report.failed] == [False]
        assert good in folder.delivered
        assert folder.waiting == [bad]


@pytest.mark.parametrize(
    ("ago", "retry_for", "moved"),
    [
        (DAY, timedelta(days=1), True),
        (DAY - 1e-6, timedelta(days=1), False),
        (1, timedelta(seconds=1), True),
        (0, timedelta(0), True),
        (9_000 * DAY, None, False),
    ],
)
def test_retry_for(folder, ago, retry_for, moved):
    """An event is tried each run until `retry_for` after its due time; None: for ever."""
    bad, failure = fail(folder, DENIED, ago, retry_for=retry_for)
    assert failure.quarantined == moved
    assert folder.waiting == [set_aside(bad) if moved else bad]


def test_put_back(folder):
    """An event put back from `failed/` by a rename has one more try."""
    bad, failure = fail(folder, DENIED)
    assert failure.quarantined
    obj = folder.s3.buckets["events"][set_aside(bad)]
    for _ in range(2):
        folder.s3.put("events", bad, obj.content)
        folder.s3.delete("events", set_aside(bad))
        report = folder.run()
        assert [failure.quarantined for failure in report.failed] == [True]
        assert folder.waiting == [set_aside(bad)]
    folder.s3.put("events", bad, obj.content)
    folder.s3.fault = lambda request: None
    assert folder.run().copied == 1
    assert folder.arrived["bad"] == b"precious"


def test_target_buckets(folder):
    """An event for a bucket outside `target_buckets` is a failure, never a copy."""
    old, new = folder.put(2 * DAY, "old", bucket="secret"), folder.put(2, "new", bucket="secret")
    good = folder.put(1)
    folder.s3.fill(target="secret")
    report = folder.run(target_buckets=iter(["target", "other"]))
    assert {f.event.name: f.quarantined for f in report.failed} == {old: True, new: False}
    assert folder.waiting == [new, set_aside(old)]
    assert folder.delivered == [good]


def test_no_room_for_failed(folder):
    """A name with no room left for `failed/` stays and is reported."""
    room = 1024 - len(due_name(2 * DAY, ""))
    fits = folder.put(2 * DAY, "a" * (room - 7), bucket="target")
    stays = folder.put(2 * DAY, "b" * (room - 6), bucket="target")
    folder.s3.fault = lambda request: DENIED if request.bucket == "target" else None
    report = folder.run()
    assert {f.event.name: f.quarantined for f in report.failed} == {fits: True, stays: False}
    assert folder.waiting == [stays, set_aside(fits)]
    assert len(folder.requests("CopyObject")) == 3


def test_failed_is_closed(folder):
    """An event that cannot be moved to `failed/` stays, and is tried again each run."""
    bad = folder.put(2 * DAY)
    folder.s3.fault = only("CopyObject", DENIED)
    for _ in range(2):
        report = folder.run()
        assert [failure.quarantined for failure in report.failed] == [False]
        assert folder.waiting == [bad]


def test_many_failures(folder, monkeypatch):
    """The report counts all failures, and tells of the first of them (a thousand, here ten)."""
    monkeypatch.setattr(runner, "REPORTED_FAILURES", 10)
    names = [folder.put(60 - i, f"k{i}") for i in range(15)]
    folder.s3.fault = only("CopyObject", DENIED)
    report = folder.run()
    assert report.failed_count == 15
    assert len(report.failed) == 10
    assert {failure.event.name for failure in report.failed} < set(names)
    with pytest.raises(RunFailed) as caught:
        report.raise_for_failures()
    assert caught.value.report is report


def test_logged(folder, caplog):
    """Each failure is logged with its name, and with S3's code."""
    bad, _ = fail(folder, DENIED)
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1
    assert repr(bad) in errors[0]
    assert "AccessDenied" in errors[0]


# --- 8. Everything that S3 can copy arrives -------------------------------------------------------


@pytest.mark.parametrize("size", [None, 5 * GIB, 5 * GIB + 1], ids=["small", "5-GiB", "larger"])
def test_whole(folder, size):
    """Bytes, headers, metadata and tags arrive, also of what is too large for one CopyObject."""
    name = folder.put(1, "k|/+ %.txt", b"bytes" * 100, size=size, **HEADERS)
    sent = folder.s3.buckets["events"][name]
    report = folder.run()
    assert (report.copied, report.failed_count) == (1, 0)
    arrived = folder.s3.buckets["target"]["k|/+ %.txt"]
    assert described(arrived) == described(sent)
    assert arrived.size == sent.size
    assert folder.waiting == []
    assert bool(folder.requests("UploadPartCopy")) == (size == 5 * GIB + 1)


def test_parts_of_the_same(folder):
    """Each part of a large copy is made on condition that the source is still what was listed."""
    name = folder.put(1, content=b"first", size=6 * GIB)
    etag = folder.s3.buckets["events"][name].etag
    folder.s3.before = lambda request: (
        folder.put(1, content=b"second", size=6 * GIB)
        if request.operation == "UploadPartCopy"
        else None
    )
    report = folder.run()
    parts = folder.requests("UploadPartCopy")
    assert {part.headers.get("x-amz-copy-source-if-match") for part in parts} == {etag}
    assert (report.copied, report.failed_count, report.unfinished) == (0, 0, True)
    assert folder.arrived == {}
    assert folder.s3.uploads == {}
    assert folder.waiting == [name]


@pytest.mark.parametrize("directive", ["COPY", "REPLACE"])
def test_directives(folder, directive):
    """What extra_args say of metadata and tags takes nothing from a large event."""
    name = folder.put(1, size=6 * GIB, **HEADERS)
    sent = folder.s3.buckets["events"][name]
    extra_args = {"MetadataDirective": directive, "TaggingDirective": directive}
    assert folder.run(extra_args=extra_args).copied == 1
    assert described(folder.s3.buckets["target"]["k"]) == described(sent)


@pytest.mark.parametrize("size", [None, 6 * GIB], ids=["small", "large"])
@pytest.mark.parametrize("check", ["ExpectedBucketOwner", "ExpectedSourceBucketOwner"])
def test_owner(folder, size, check):
    """A bucket that has another owner than the expected is neither read nor written."""
    name = folder.put(2, size=size)
    report = folder.run(extra_args={check: "999999999999"}, retry_for=None)
    assert report.failed_count == 1
    assert folder.arrived == {}
    assert folder.waiting == [name]
    assert folder.run(extra_args={check: folder.s3.owner}).copied == 1
    assert "k" in folder.arrived


def test_two_owners(folder):
    """The owner expected of the target is not expected of the source, nor the other way round."""
    folder.put(2, size=6 * GIB)
    folder.put(1, "small")
    owners = {"events": "1" * 12, "target": "2" * 12}
    checked = Counter()

    def check(request):
        of = {"x-amz-expected-bucket-owner": request.bucket}
        if request.source:
            of["x-amz-source-expected-bucket-owner"] = request.source[0]
        for header, bucket in of.items():
            # Popped, for to the fake itself both buckets are one owner's.
            owner = request.headers.pop(header, None)
            assert owner in (None, owners[bucket])
            checked[request.operation] += owner is not None

    folder.s3.before = check
    extra = {"ExpectedBucketOwner": "2" * 12, "ExpectedSourceBucketOwner": "1" * 12}
    assert folder.run(extra_args=extra).copied == 2
    assert checked["CopyObject"] == 2
    assert checked["HeadObject"] == checked["GetObjectTagging"] == 1
    assert checked["CreateMultipartUpload"] == checked["CompleteMultipartUpload"] == 1
    assert checked["UploadPartCopy"] == 24


def test_large_and_taken_at_once(folder):
    """A large copy has arrived even if its consumer took it away before its tags came."""
    folder.put(2, size=6 * GIB, **HEADERS)
    later = folder.put(1)
    folder.s3.after = lambda request: (
        folder.s3.delete("target", "k") if request.operation == "CompleteMultipartUpload" else None
    )
    report = folder.run()
    assert (report.copied, report.failed_count) == (2, 0)
    assert folder.waiting == []
    assert folder.delivered[-1] == later


def test_large_copy_needs_no_reading_of_the_target(folder):
    """A runner that may only write to the target delivers large objects too."""
    folder.put(1, size=6 * GIB)
    folder.s3.fault = lambda request: (
        DENIED if request.method in ("GET", "HEAD") and request.bucket == "target" else None
    )
    assert folder.run().copied == 1
    assert folder.waiting == []


def test_large_on_a_real_server(seaweed_client, bucket, target, monkeypatch):
    """A real server, too, makes a multipart copy that is whole."""
    monkeypatch.setattr(objects, "MAX_COPY", 1024**2)
    monkeypatch.setattr(objects, "PART", 5 * 1024**2)
    scheduler = Scheduler(bucket, "later", seaweed_client)
    body = bytes(range(256)) * 48 * 1024
    sent = {
        "CacheControl": "no-cache",
        "ContentDisposition": 'attachment; filename="a.txt"',
        "ContentLanguage": "de",
        "ContentType": "text/plain; charset=utf-8",
        "Metadata": {"author": "ann"},
    }
    scheduler.schedule(
        "2001-01-01T00:00Z", target, "k", body, extra_args={**sent, "Tagging": "a=1&b=x%20y"}
    )
    report = run_due(scheduler)
    assert (report.copied, report.failed_count) == (1, 0)
    assert list(scheduler.pending()) == []
    got = seaweed_client.get_object(Bucket=target, Key="k")
    assert got["Body"].read() == body
    assert {field: got[field] for field in sent} == sent
    assert got["ETag"].strip('"').endswith("-3")
    tags = seaweed_client.get_object_tagging(Bucket=target, Key="k")["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"a": "1", "b": "x y"}


# --- 9. It ends, and stays small ------------------------------------------------------------------


def test_no_time(folder):
    """When the time is over, nothing is copied, and the events are left for the next run."""
    name = folder.put(1)
    report = folder.run(time_limit=1e-9)
    assert (report.copied, report.unfinished) == (0, True)
    assert folder.waiting == [name]
    assert folder.s3.count()["CopyObject"] == 0


def test_time_limit(folder):
    """After `time_limit` no copy starts, and what is in flight is finished and deleted."""
    folder.s3.fill(due=300)
    folder.s3.latency = lambda request: 0.1 if request.operation == "CopyObject" else 0
    report = folder.run(now=None, time_limit=1)
    assert 0 < report.copied < 300
    assert report.unfinished
    assert report.failed_count == 0
    assert len(folder.arrived) == report.copied
    assert len(folder.waiting) == 300 - report.copied


def test_foreign_folder(folder):
    """A huge foreign folder ends with `time_limit`, or with a sample and a count; all is left."""
    strays = [f"later/{i:05}" for i in range(5_500)]
    for stray in strays:
        folder.s3.put("events", stray)
    folder.put(1)
    report = folder.run(time_limit=0.001)
    assert report.unfinished
    report = folder.run()
    assert report.invalid == tuple(strays[:100])
    assert (report.invalid_count, report.copied, report.unfinished) == (5_500, 1, False)
    assert folder.waiting == strays
    assert folder.s3.count()["ListObjectsV2"] <= 1 + 6


def test_the_end_of_the_list(folder):
    """A listing is at its end when S3 says so, though some stores add a token for more."""
    folder.put(1)
    folder.client.meta.events.register(
        "after-call.s3.ListObjectsV2", lambda parsed, **_: parsed.update(NextContinuationToken="x")
    )
    report = folder.run()
    assert (report.copied, report.unfinished) == (1, False)
    assert folder.s3.count()["ListObjectsV2"] == 1


def test_strays(folder):
    """Strays are left alone: the folder's marker, names that are no event's, and `failed/`."""
    marker = ["later/"]
    invalid = ["later/!", "later/2029-01-01T00:00Z|target", "later/2030-01-31T11:60Z|target|k"]
    beyond = ["later/failed/2029-01-01T00:00Z|target|k", "later/z", "later2/2029-01-01T00:00Z|t|k"]
    for name in marker + invalid + beyond:
        folder.s3.put("events", name)
    report = folder.run()
    assert report.invalid == tuple(invalid)
    assert report.invalid_count == 3
    assert not report.unfinished
    report.raise_for_failures()
    assert folder.waiting == marker + invalid + beyond


def test_idle(folder):
    """An idle run is one request, however many events wait."""
    folder.s3.fill(waiting=5_000)
    folder.put(-1)
    report = folder.run(now=None)
    assert folder.s3.count() == {"ListObjectsV2": 1}
    assert (report.copied, report.unfinished) == (0, False)


def test_due_and_one_page(folder):
    """A run reads what is due, and a page of what is not."""
    folder.s3.fill(waiting=5_000, due=100)
    report = folder.run(now=None)
    assert report.copied == 100
    assert folder.s3.count()["ListObjectsV2"] == 1
    assert folder.s3.count()["DeleteObjects"] <= 3


def test_a_hundred_for_one_target(folder):
    """Of a slow target a run holds a hundred events, and leaves the others for the next."""
    slow = [folder.put(1_000 - i, "slow") for i in range(150)]
    others = [folder.put(500 - i, f"k{i}") for i in range(50)]
    folder.s3.latency = lambda request: 0.01 if request.key == "slow" else 0
    report = folder.run()
    assert [name for name in folder.delivered if name in set(slow)] == slow[:101]
    assert set(others) <= set(folder.delivered)
    assert report.unfinished
    assert folder.waiting == slow[101:]
    report = folder.run()
    assert (report.copied, report.unfinished) == (49, False)
    assert out_of_order(folder.s3.history) == []


def test_a_thousand_in_all(folder):
    """Of all slow targets together it holds about a thousand, and still holds back no other."""
    slow = [folder.put(10_000 - i, f"slow{i % 20}") for i in range(1_500)]
    others = [folder.put(500 - i, f"k{i}") for i in range(50)]
    arrived = iter(range(10_000))
    folder.s3.latency = lambda request: (
        2 if request.key.startswith("slow") and next(arrived) < WIDTH - 1 else 0
    )
    report = folder.run()
    assert set(others) <= set(folder.delivered)
    assert report.unfinished
    assert len(folder.delivered) < 1_300
    assert out_of_order(folder.s3.history) == []
    assert set(folder.waiting) == set(slow) - set(folder.delivered)


@pytest.mark.parametrize("operation", ["CopyObject", "DeleteObjects", "ListObjectsV2"])
def test_interrupted(folder, operation):
    """Ctrl-C finishes and cleans up what is in flight, and starts nothing new."""
    folder.s3.fill(due=500)
    seen = iter([*[False] * (20 if operation == "CopyObject" else 0), True])
    main = threading.main_thread().ident

    def interrupt(request):
        if request.operation == operation and next(seen, False):
            signal.pthread_kill(main, signal.SIGINT)

    folder.s3.after = interrupt
    folder.s3.latency = lambda request: 0.02 if request.operation == "CopyObject" else 0
    with pytest.raises(KeyboardInterrupt):
        folder.run(now=None)
    assert len(folder.delivered) < 500
    assert lost(folder.s3.history) == []
    assert len(folder.waiting) == 500 - len(folder.arrived)
    assert repeats(folder.s3.history) == 0


# --- Other servers, and moto ----------------------------------------------------------------------


@pytest.mark.parametrize("conditions", ["ignored", "refused", "NotImplemented", "501"])
def test_other_servers(folder, conditions):
    """A store that ignores conditions, or refuses them, works while nobody rewrites in mid-run."""
    if conditions in ("NotImplemented", "501"):  # of them all, with a code or with a status only
        folder.s3.fault = lambda request: (
            Error(501, conditions)
            if {"x-amz-copy-source-if-match", "if-match"} & request.headers.keys()
            or b"<ETag>" in request.body
            else None
        )
    else:
        folder.s3.conditions = conditions
    scheduler = folder.scheduler
    for i in range(8):
        # A name with a line break is deleted by itself, others together.
        scheduler.schedule(NOW - timedelta(1 + i), "target", f"k{i % 3}", b"%d" % i)
        scheduler.schedule(NOW - timedelta(1 + i), "target", f"k{i % 3}\n", b"%d" % i)
    bad = folder.put(2 * DAY, bucket="missing")
    report = folder.run()
    assert (report.copied, report.failed_count, report.unfinished) == (16, 1, False)
    assert folder.waiting == [set_aside(bad)]
    assert out_of_order(folder.s3.history) == []
    name = scheduler.schedule(NOW, "target", "k", b"")
    moved = scheduler.reschedule(name, NOW + timedelta(1))
    assert folder.waiting == [moved, set_aside(bad)]
    assert scheduler.cancel(moved)
    assert not scheduler.cancel(moved)


def test_moto():
    """Under moto's `mock_aws`, with the default client, everything works."""
    with mock_aws():
        scheduler = Scheduler("my-bucket", "later")
        for name in ("my-bucket", "target"):
            scheduler.client.create_bucket(Bucket=name)
        past = datetime.now(timezone.utc) - timedelta(minutes=1)
        names = [scheduler.schedule(past, "target", f"k{i}", f"{i}") for i in range(5)]
        assert scheduler.cancel(names[0])
        scheduler.reschedule(names[1], timedelta(hours=1))
        moved = scheduler.reschedule(names[2], past + timedelta(seconds=1))
        report = run_due(scheduler)
        assert (report.copied, report.failed_count, report.unfinished) == (3, 0, False)
        assert [event.key for event in scheduler.pending()] == ["k1"]
        listed = scheduler.client.list_objects_v2(Bucket="target")["Contents"]
        assert [entry["Key"] for entry in listed] == ["k2", "k3", "k4"]
        assert "|target|k2" in moved
        scheduler.client.close()
