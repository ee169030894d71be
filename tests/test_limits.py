"""A run ends, stays small, and reads no more than it needs: promise nine."""

import itertools
import signal
import threading

import pytest

from support.clock import FakeClock, new_run
from support.fakes3 import Hang, sick
from support.folder import NOW, WIDTH, lost, opened, out_of_order, repeats


@pytest.fixture
def folder(fake):
    with opened(fake) as folder:
        yield folder


def test_no_time(folder):
    """When the time is over, nothing is copied, and the events are left for the next run."""
    name = folder.put(1)
    report = folder.run(time_limit=1e-9)
    assert (report.copied, report.unfinished) == (0, True)
    assert folder.waiting == [name]
    assert folder.s3.count()["CopyObject"] == 0


@pytest.mark.slow
def test_time_limit(folder):
    """After `time_limit` no copy starts, and what is in flight is finished and deleted."""
    folder.s3.fill(due=300)
    folder.s3.latency = lambda request: 0.1 if request.operation == "CopyObject" else 0
    report = folder.run(now=None, time_limit=1)
    assert 0 < report.copied < 300
    assert report.unfinished
    assert report.failed == 0
    assert len(folder.arrived) == report.copied
    assert len(folder.waiting) == 300 - report.copied


@pytest.mark.slow
def test_foreign_folder(folder):
    """A huge foreign folder ends with `time_limit`, or with a sample and a count; all is left."""
    strays = [f"later/{i:05}" for i in range(5_500)]
    for stray in strays:
        folder.s3.put("events", stray)
    folder.put(1)
    report = folder.run(time_limit=0.001)
    assert report.unfinished
    report = folder.run()
    assert report.invalid_names == tuple(strays[:100])
    assert (report.invalid, report.copied, report.unfinished) == (5_500, 1, False)
    assert folder.waiting == strays
    assert folder.s3.count()["ListObjectsV2"] <= 1 + 7


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
    assert report.invalid_names == tuple(invalid)
    assert report.invalid == 3
    assert not report.unfinished
    report.raise_for_failures()
    assert folder.waiting == marker + invalid + beyond


def test_a_stray_that_is_read_again(folder):
    """A name that is not an event is reported once, however often its page is read."""
    for i in range(160):
        folder.put(1_000 - i)
    folder.s3.put("events", "later/2030-01-31T11:59:59Z")
    report = folder.run()
    assert folder.s3.count()["ListObjectsV2"] > 2
    assert (report.copied, report.invalid) == (160, 1)


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
    assert folder.s3.count()["ListObjectsV2"] <= 2
    assert folder.s3.count()["DeleteObjects"] <= 3


@pytest.mark.slow
def test_many_for_one_target(folder):
    """All of 250 events for one target are delivered in one run, in order, and others as well."""
    slow = [folder.put(1_000 - i, "slow") for i in range(250)]
    others = [folder.put(500 - i, f"k{i}") for i in range(50)]
    report = folder.run()
    assert [name for name in folder.delivered if name in set(slow)] == slow
    assert set(others) <= set(folder.delivered)
    assert (report.copied, report.failed, report.unfinished) == (300, 0, False)
    assert folder.waiting == []
    assert folder.s3.count()["ListObjectsV2"] <= 10


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_ten_for_each_of_many_targets(fake, together):
    """Ten events for each of 600 targets are delivered in one run, in order."""
    with opened(fake, max_pool_connections=32) as folder:
        for i in range(6_000):
            folder.put(10_000 - i, f"k{i // 10 if together else i % 600}")
        report = folder.run()
        assert (report.copied, report.failed, report.unfinished) == (6_000, 0, False)
        assert folder.waiting == []
        assert out_of_order(folder.s3.history) == []
        assert repeats(folder.s3.history) == 0


@pytest.mark.slow
def test_more_than_a_run_holds(folder):
    """What does not fit is read again in the same run, as long as events leave the folder."""
    names = [folder.put(10_000 - i, f"k{i % 16}") for i in range(1_100)]
    report = folder.run()
    assert (report.copied, report.failed, report.unfinished) == (1_100, 0, False)
    assert sorted(folder.delivered) == names
    assert out_of_order(folder.s3.history) == []


def test_a_slow_target_among_others(folder):
    """A target with more events than are held keeps no other waiting, slow as it may be."""
    slow = [folder.put(10_000 - i, "slow") for i in range(1_200)]
    others = [folder.put(500 - i, f"k{i}") for i in range(50)]
    folder.s3.latency = lambda request: 0.05 if request.key == "slow" else 0
    report = folder.run(stop=lambda: len(folder.arrived) == 51)
    assert set(others) <= set(folder.delivered)
    assert report.unfinished
    assert len(set(slow) & set(folder.delivered)) < 1_000
    assert out_of_order(folder.s3.history) == []


def test_stop(folder):
    """When `stop` says so no copy starts, what is in flight is finished, and the run reports."""
    folder.s3.fill(due=300)
    report = folder.run(now=None, stop=lambda: len(folder.arrived) >= 20)
    assert 20 <= report.copied <= 20 + WIDTH
    assert (report.failed, report.unfinished) == (0, True)
    assert len(folder.arrived) == report.copied
    assert len(folder.waiting) == 300 - report.copied


def test_stopped_at_once(folder):
    """A run that is to stop before it begins does nothing but report that."""
    name = folder.put(1)
    report = folder.run(stop=lambda: True)
    assert (report.copied, report.unfinished) == (0, True)
    assert folder.waiting == [name]


@pytest.mark.slow
def test_stop_while_a_copy_hangs(fake):
    """`stop` is asked while a run waits for S3, too."""
    with opened(fake, read_timeout=2) as folder:
        folder.put_many(100)
        asked = itertools.count()
        folder.s3.fault = sick("target", Hang())
        report = folder.run(stop=lambda: next(asked) > 4)
        assert len(folder.requests("CopyObject")) == 1
        assert (report.failed, report.unfinished) == (1, True)


@pytest.mark.parametrize("operation", ["CopyObject", "DeleteObjects", "ListObjectsV2"])
def test_interrupted(folder, operation):
    """Ctrl-C finishes and cleans up what is in flight, and starts nothing new."""
    folder.s3.fill(due=500)
    seen = iter([*[False] * (20 if operation == "CopyObject" else 0), True])
    main = threading.get_ident()

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


def test_interrupted_while_stop_is_asked(folder):
    """An interrupt that comes while `stop` is asked ends the run, though `stop` says no."""
    name = folder.put(1)

    def stop():
        run.interrupt()
        return False

    run = new_run(folder.scheduler, FakeClock(NOW), stop=stop)
    report = run.work()
    assert (report.copied, report.unfinished) == (0, True)
    assert folder.waiting == [name]
