"""No sick bucket harms another: whatever ails it, however many events wait for it."""

import pytest

from s3_scheduler.window import MAX_FAILURES, MAX_REFUSALS
from support.fakes3 import Delay, Empty, Error, Hang, Html, Reset, any_of, sick
from support.folder import DENIED, WIDTH, lost, opened, out_of_order, repeats

DAY = 86_400
MISSING = Error(404, "NoSuchBucket")
SLOW_DOWN = Error(503, "SlowDown")
AILMENTS = [
    Reset(),
    Reset(after=True),
    Error(500, "InternalError"),
    SLOW_DOWN,
    DENIED,
    MISSING,
    Empty(),
    Html(),
]


@pytest.fixture
def folder(fake):
    with opened(fake, "bad", "worse") as folder:
        yield folder


@pytest.fixture
def impatient(fake):
    """Yield a folder whose client gives a request up after two seconds."""
    with opened(fake, "bad", "worse", read_timeout=2) as folder:
        yield folder


def put_healthy(folder, count=20):
    """Put events that are younger than all for sick buckets."""
    return [folder.put(count - i, f"good{i}") for i in range(count)]


def until_all_arrived(folder, count=20):
    """End a run when the healthy bucket has everything, or else it would wait for others."""
    return lambda: len(folder.arrived) == count


def recover(folder):
    """Let all buckets be well, and run once more: what waits is delivered, or 500 of it."""
    folder.s3.fault = lambda request: None
    waiting = len(folder.waiting)
    report = folder.run(stop=lambda: len(folder.waiting) <= waiting - 500)
    assert report.failed == 0
    assert report.copied >= min(waiting, 500)
    assert len(folder.waiting) == waiting - report.copied
    assert lost(folder.s3.history) == []
    assert out_of_order(folder.s3.history) == []


# --- One sick bucket ------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", AILMENTS, ids=repr)
@pytest.mark.slow
def test_a_sick_bucket(folder, fault):
    """It costs a handful of requests a run, all others are served, and it recovers afterwards."""
    folder.put_many(200, "bad")
    for number in (1, 2):
        put_healthy(folder)
        folder.s3.fault = sick("bad", fault)
        report = folder.run(retry_for=None)
        assert (report.copied, report.unfinished) == (20, True)
        assert report.failed == (1 if fault == SLOW_DOWN else MAX_FAILURES)
        assert len(folder.requests("CopyObject", "bad")) == number * MAX_FAILURES
        assert len(folder.waiting) == 200
    recover(folder)


@pytest.mark.slow
@pytest.mark.parametrize("fault", AILMENTS, ids=repr)
def test_a_sick_bucket_with_tens_of_thousands(folder, fault):
    """So it is with 25,000 older events for it, each of them listed once."""
    folder.put_many(25_000, "bad")
    put_healthy(folder, 500)
    folder.s3.fault = sick("bad", fault)
    report = folder.run(retry_for=None)
    assert (report.copied, report.unfinished) == (500, True)
    assert len(folder.requests("CopyObject", "bad")) == MAX_FAILURES
    assert len(folder.requests("ListObjectsV2")) <= 30
    recover(folder)


@pytest.mark.parametrize("count", [40, pytest.param(25_000, marks=pytest.mark.slow)])
def test_a_bucket_that_hangs(impatient, count):
    """A bucket that never answers has one copy in flight, and all others are served meanwhile."""
    impatient.put_many(count, "bad")
    put_healthy(impatient)
    impatient.s3.fault = sick("bad", Hang())
    report = impatient.run(stop=until_all_arrived(impatient))
    assert (report.copied, report.unfinished) == (20, True)
    assert len(impatient.requests("CopyObject", "bad")) <= MAX_FAILURES
    recover(impatient)


@pytest.mark.parametrize("count", [100, pytest.param(25_000, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_bucket_that_is_slow(folder, count):
    """A bucket that is only slow keeps no other waiting."""
    folder.put_many(count, "bad")
    put_healthy(folder)
    folder.s3.fault = sick("bad", Delay(0.5))
    report = folder.run(stop=until_all_arrived(folder))
    assert len(folder.arrived) == 20
    assert report.failed == 0
    recover(folder)
    assert repeats(folder.s3.history) == 0


@pytest.mark.slow
def test_a_bucket_that_falls_sick_in_mid_run(folder):
    """When a bucket that was well begins to refuse, others go on at once, and it is left soon."""
    folder.put_many(350, "bad")
    put_healthy(folder, 100)
    left = iter(range(150))
    folder.s3.fault = sick("bad", lambda request: None if next(left, None) is not None else DENIED)
    report = folder.run(retry_for=None)
    assert len(folder.arrived) == 100
    assert report.copied == 250
    assert MAX_REFUSALS <= report.failed < 200 - WIDTH


# --- Several --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [300, pytest.param(25_000, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_two_sick_buckets(impatient, count):
    """One that hangs and one that resets connections keep no other waiting."""
    impatient.put_many(count, "bad")
    impatient.put_many(count, "worse", oldest=100_000.0005)
    put_healthy(impatient)
    impatient.s3.fault = any_of(sick("bad", Hang()), sick("worse", Reset()))
    report = impatient.run(stop=until_all_arrived(impatient))
    assert (report.copied, report.unfinished) == (20, True)
    assert len(impatient.requests("CopyObject", "worse")) <= MAX_FAILURES
    assert len(impatient.requests("CopyObject", "bad")) <= MAX_FAILURES


@pytest.mark.parametrize(
    ("buckets", "count"),
    [(8, 20), (12, 20), *(pytest.param(n, 2_500, marks=pytest.mark.slow) for n in (8, 12))],
)
@pytest.mark.slow
def test_as_many_as_there_are_connections(fake, buckets, count):
    """As many hanging buckets as the client has connections, and more, keep no other waiting."""
    hanging = [f"bad{number}" for number in range(buckets)]
    with opened(fake, *hanging, read_timeout=2) as folder:
        for number, bucket in enumerate(hanging):
            folder.put_many(count, bucket, oldest=100_000 + number * 0.0001)
        put_healthy(folder)
        folder.s3.fault = any_of(*(sick(bucket, Hang()) for bucket in hanging))
        report = folder.run(stop=until_all_arrived(folder))
        assert (report.copied, report.unfinished) == (20, True)
        for bucket in hanging:
            assert len(folder.requests("CopyObject", bucket)) <= MAX_FAILURES


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [DENIED, MISSING], ids=repr)
@pytest.mark.parametrize("count", [200, pytest.param(5_000, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_backlog_of_refusals_is_quarantined(folder, fault, count):
    """When nothing else waits, all that is expired and refused goes to `failed/` in one run."""
    folder.put_many(count, "bad", oldest=3 * DAY)
    young = [folder.put(1_000 - i, f"young{i}", bucket="bad") for i in range(50)]
    put_healthy(folder)
    folder.s3.fault = sick("bad", fault)
    report = folder.run()
    assert report.copied == 20
    assert len(folder.quarantined) == count
    assert [name for name in folder.waiting if name not in set(folder.quarantined)] == young
    assert report.failed <= count + MAX_FAILURES
    assert report.unfinished


@pytest.mark.slow
def test_healthy_events_come_before_quarantine(folder):
    """While others wait, a bucket that refuses is left alone."""
    folder.put_many(250, "bad", oldest=3 * DAY)
    names = put_healthy(folder, 100)
    folder.s3.fault = sick("bad", DENIED)
    folder.run()
    last = max(change.time for change in folder.s3.history if change.bucket == "target")
    before = [
        request for request in folder.requests("CopyObject", "bad") if request.time < last - 0.01
    ]
    assert sorted(folder.delivered) == names
    assert len(before) <= len(folder.requests("CopyObject", "bad")) / 4


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_second_key_is_refused(folder, count):
    """The keys of a bucket that are denied, every second one, do not stop the others."""
    names = folder.put_many(count, "bad")
    folder.s3.fault = sick(
        "bad", lambda request: DENIED if int(request.key.strip("k")) % 2 else None
    )
    report = folder.run(retry_for=None)
    assert sorted(folder.delivered) == names[::2]
    assert folder.waiting == names[1::2]
    assert (report.failed, report.unfinished) == (count // 2, False)


@pytest.mark.slow
def test_a_denied_prefix(folder):
    """The 25 oldest events, all denied, do not starve the others of their bucket."""
    denied = [folder.put(10_000 - i, f"denied/{i}", bucket="bad") for i in range(25)]
    names = [folder.put(5_000 - i, f"open/{i}", bucket="bad") for i in range(400)]
    folder.s3.fault = sick(
        "bad", lambda request: DENIED if request.key.startswith("denied/") else None
    )
    report = folder.run(retry_for=None)
    assert sorted(folder.delivered) == names
    assert folder.waiting == denied
    assert (report.failed, report.unfinished) == (25, False)


def test_failed_cannot_be_written(folder):
    """When nothing may be moved to `failed/`, a bucket that refuses costs a few requests a run."""
    folder.put_many(500, "bad", oldest=3 * DAY)
    put_healthy(folder)
    folder.s3.fault = any_of(
        sick("bad", DENIED),
        lambda request: DENIED if request.key.startswith("later/failed/") else None,
    )
    report = folder.run()
    assert report.copied == 20
    assert report.failed <= 2 * MAX_FAILURES
    assert len(folder.waiting) == 500
