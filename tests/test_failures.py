"""Gone is no failure, a failure is not gone, and it stops no other event: promises 6 and 7."""

import logging
from datetime import timedelta

import pytest

from support.fakes3 import CopyError, Error, Hang, Reset
from support.folder import DENIED, due_name, only, opened

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
def folder(fake, monkeypatch):
    monkeypatch.setattr("s3_scheduler.folder.CONFLICT_AFTER", (0.0,) * 4)
    with opened(fake, "sick") as folder:
        yield folder


def codes(report):
    return [failure.error.response["Error"]["Code"] for failure in report.failures]


# --- Gone is not a failure ------------------------------------------------------------------------


def test_gone(folder):
    """A source that vanished is passed over: cancelled, or taken by another run."""
    names = [folder.put(10 - i, f"k{i}") for i in range(3)]
    folder.s3.after = lambda request: (
        folder.s3.delete("events", names[1]) if request.operation == "ListObjectsV2" else None
    )
    report = folder.run()
    assert (report.copied, report.failed, report.unfinished) == (2, 0, False)
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
    assert (report.failed, report.unfinished) == (0, False)


def test_404_that_cannot_be_asked_about(folder):
    """Nor is it taken for gone when S3 does not say whether the source is there."""
    folder.put(1)
    folder.s3.fault = lambda request: (
        Error(*((404, "404") if request.operation == "CopyObject" else (403, "AccessDenied")))
        if request.operation in {"CopyObject", "HeadObject"}
        else None
    )
    assert codes(folder.run()) == ["403"]
    assert len(folder.waiting) == 1


def test_gone_when_large(folder):
    """A large source that vanishes between any two requests of its copy is passed over."""
    for operation in ("ListObjectsV2", "GetObjectTagging", "HeadObject", "CreateMultipartUpload"):
        name = folder.put(1, size=6 * GIB)
        folder.s3.after = lambda request, name=name, last=operation: (
            folder.s3.delete("events", name)
            if request.operation == last and name in folder.waiting
            else None
        )
        report = folder.run()
        assert (report.copied, report.failed, report.unfinished) == (0, 0, False)
    assert folder.s3.uploads == {}


# --- One bad event stops no other -----------------------------------------------------------------


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


def fail(folder, fault, ago=2 * DAY, bucket="target", **options):
    """Run with an event whose copy always meets the fault, beside a good one of the same age."""
    bad, good = folder.put(ago, "bad", b"precious", bucket, **HEADERS), folder.put(ago, "good")
    folder.s3.fault = only("CopyObject", fault, "bad")
    report = folder.run(**options)
    assert [failure.event.name for failure in report.failures] == [bad]
    assert folder.delivered == [good]
    return bad, report.failures[0]


def quarantined(name, code="AccessDenied"):
    return name.replace("later/", f"later/failed/{code}/")


@pytest.mark.parametrize(("status", "code"), GO)
def test_its_own_fault(folder, status, code):
    """What S3 will never take is moved to `failed/`, whole, when its time to be tried is over."""
    precious = folder.s3.put("target", "precious", b"precious", **HEADERS)
    bad, failure = fail(folder, Error(status, code))
    assert failure.error.response["Error"]["Code"] == code
    assert failure.quarantined
    assert folder.waiting == [quarantined(bad, code)]
    moved = folder.s3.buckets["events"][quarantined(bad, code)]
    assert described(moved) == described(precious)
    assert (moved.content, moved.metadata) == (b"precious", {"author": "ann"})
    assert folder.run().failed == 0


@pytest.mark.parametrize(("status", "code"), STAY)
def test_not_its_fault(folder, status, code):
    """An outage, throttling, credentials or a clock that is wrong never move an event."""
    bad, failure = fail(folder, Error(status, code), bucket="sick")
    assert not failure.quarantined
    assert folder.waiting == [bad]


@pytest.mark.parametrize("fault", [Reset(), Reset(after=True), Hang(), CopyError("SlowDown")])
@pytest.mark.slow
def test_no_answer(fake, fault):
    """Nor does a connection that breaks or hangs, nor an error in the body of a 200."""
    with opened(fake, read_timeout=2) as folder:
        bad = folder.put(2 * DAY, "bad")
        good = folder.put(DAY, "good")
        folder.s3.fault = only("CopyObject", fault, "bad")
        report = folder.run()
        assert [failure.quarantined for failure in report.failures] == [False]
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
        (9_000 * DAY, timedelta.max, False),
    ],
)
def test_retry_for(folder, ago, retry_for, moved):
    """An event is tried each run until `retry_for` after its due time; None: for ever."""
    bad, failure = fail(folder, DENIED, ago, retry_for=retry_for)
    assert failure.quarantined == moved
    assert folder.waiting == [quarantined(bad) if moved else bad]


def test_put_back(folder):
    """An event put back from `failed/` by a rename has one more try."""
    bad, failure = fail(folder, DENIED)
    assert failure.quarantined
    obj = folder.s3.buckets["events"][quarantined(bad)]
    for _ in range(2):
        folder.s3.put("events", bad, obj.content)
        folder.s3.delete("events", quarantined(bad))
        report = folder.run()
        assert [failure.quarantined for failure in report.failures] == [True]
        assert folder.waiting == [quarantined(bad)]
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
    assert {f.event.name: f.quarantined for f in report.failures} == {old: True, new: False}
    assert folder.waiting == [new, quarantined(old, "TargetNotAllowed")]
    assert folder.delivered == [good]


def test_no_room_for_failed(folder):
    """A name with no room left for `failed/` stays and is reported."""
    room = 1024 - len(due_name(2 * DAY, ""))
    fits = folder.put(2 * DAY, "a" * (room - len("failed/AccessDenied/")), bucket="target")
    stays = folder.put(2 * DAY, "b" * (room - len("failed/AccessDenied/") + 1), bucket="target")
    folder.s3.fault = lambda request: DENIED if request.bucket == "target" else None
    report = folder.run()
    assert {f.event.name: f.quarantined for f in report.failures} == {fits: True, stays: False}
    assert folder.waiting == [stays, quarantined(fits)]
    assert len(folder.requests("CopyObject")) == 3


def test_failed_is_closed(folder):
    """An event that cannot be moved to `failed/` stays, and is tried again each run."""
    bad = folder.put(2 * DAY)
    folder.s3.fault = only("CopyObject", DENIED)
    for _ in range(2):
        report = folder.run()
        assert [failure.quarantined for failure in report.failures] == [False]
        assert folder.waiting == [bad]


def test_logged(folder, caplog):
    """Each failure is logged with its name, and with S3's code."""
    bad, _ = fail(folder, DENIED)
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1
    assert repr(bad) in errors[0]
    assert "AccessDenied" in errors[0]
