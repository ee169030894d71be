"""Throttling is back-pressure: a run goes as fast as S3 allows, fails nothing, repeats nothing."""

from typing import Any

import pytest

import s3_scheduler.folder
from support.fakes3 import Error, KeyErrors, Rate, always, on
from support.folder import lost, opened, out_of_order, repeats

RETRIES = {"mode": "standard", "total_max_attempts": 3}
LIMITS: dict[str, Any] = {
    "copies": {"writes": 100, "deletes": False},
    "deletes": {"writes": 100},
    "all": {"writes": 100, "per": "all"},
    "folder": {"writes": 100, "per": "folder"},
}
# Of 1,000 writes in ten seconds and a burst of 100. Where all buckets share the limit, each event
# takes two of them.
LEAST = {"copies": 700, "deletes": 700, "all": 385, "folder": 700}


@pytest.fixture
def folder(fake):
    with opened(fake, "other", max_pool_connections=32, retries=RETRIES) as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("latency", [0.0, 0.03])
def test_a_limit(folder, kind, latency):
    """Most of what a limit allows in ten seconds is delivered; nothing fails or is repeated."""
    folder.put_many(3_000)
    folder.s3.limit = Rate(**LIMITS[kind])
    folder.s3.latency = latency
    report = folder.run(time_limit=10)
    assert (report.failed, report.unfinished) == (0, True)
    assert report.copied >= LEAST[kind]
    assert repeats(folder.s3.history) == 0
    assert len(folder.waiting) == 3_000 - report.copied
    assert lost(folder.s3.history) == []


@pytest.mark.slow
def test_a_limit_to_one_bucket(folder):
    """A bucket that throttles keeps no other waiting, however many older events it has."""
    folder.put_many(20_000, "other")
    names = folder.put_many(1_000, oldest=100)
    folder.s3.limit = Rate(100, lambda bucket, key: bucket if bucket == "other" else None)
    folder.s3.latency = 0.03
    report = folder.run(stop=lambda: len(folder.arrived) == 1_000)
    assert sorted(folder.delivered_to("target")) == sorted(names)
    assert report.failed == 0
    assert repeats(folder.s3.history) == 0


@pytest.mark.slow
def test_throttled_now_and_then(folder):
    """What is throttled is delivered all the same, in order for each target, and only once."""
    names = [folder.put(1_000 - i, f"k{i % 50}", b"%d" % i) for i in range(100)]
    folder.s3.fault = on("CopyObject", *[None, Error(503, "SlowDown"), None, None] * 50)
    report = folder.run()
    assert (report.copied, report.failed, report.unfinished) == (100, 0, False)
    assert sorted(folder.delivered) == sorted(names)
    assert out_of_order(folder.s3.history) == []
    assert repeats(folder.s3.history) == 0


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "SlowDown"), (503, "ServiceUnavailable"), (429, "TooManyRequests"), (400, "Throttling")],
)
def test_codes_that_throttle(fake, status, code):
    """Each code of throttling slows a run down, and none is a failure."""
    with opened(fake) as folder:
        folder.put_many(20)
        folder.s3.fault = on("CopyObject", *[Error(status, code), None] * 10)
        report = folder.run()
        assert (report.copied, report.failed, report.unfinished) == (20, 0, False)
        assert repeats(folder.s3.history) == 0


def test_a_delete_throttled_for_long(fake, monkeypatch):
    """A delete that S3 throttles for long, while it takes others, is no failure and no repeat."""
    monkeypatch.setattr(s3_scheduler.folder, "RESEND_AFTER", (0.0,) * 6)
    with opened(fake) as folder:
        names = folder.put_many(4)
        folder.s3.fault = on("DeleteObjects", *[KeyErrors({names[1]: "SlowDown"})] * 10)
        report = folder.run()
        assert (report.copied, report.failed, report.unfinished) == (4, 0, False)
        assert folder.waiting == []
        assert repeats(folder.s3.history) == 0


def test_deletes_that_are_only_throttled(fake, monkeypatch):
    """Deletes that S3 does nothing but throttle are failures in the end, with its code."""
    monkeypatch.setattr(s3_scheduler.folder, "RESEND_AFTER", (0.0,) * 6)
    with opened(fake) as folder:
        names = folder.put_many(3)
        fault = KeyErrors(dict.fromkeys(names[1:], "SlowDown"))
        folder.s3.fault = always("DeleteObjects", fault)
        report = folder.run()
        assert (report.copied, report.failed) == (3, 2)
        assert all("SlowDown" in str(failure.error) for failure in report.failures)
        assert folder.waiting == names[1:]


def test_a_time_limit_while_throttled(fake):
    """When time is over what is throttled is left for the next run, and is no failure."""
    with opened(fake) as folder:
        names = folder.put_many(20)
        folder.s3.fault = on("CopyObject", None, Error(503, "SlowDown"))
        report = folder.run(stop=lambda: len(folder.requests("CopyObject")) >= 2)
        assert (report.failed, report.unfinished) == (0, True)
        assert len(folder.waiting) == len(names) - report.copied
