"""A run with `ahead` delivers at its moment what falls due meanwhile.

Time is the clock that the run is given, which jumps where the run waits: no test sleeps.
"""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from dateutil.parser import isoparse

from support.clock import FakeClock, new_run, run_by
from support.fakes3 import Error, Reset, always, any_of, on, sick
from support.folder import (
    DENIED,
    NOW,
    WIDTH,
    lost,
    opened,
    out_of_order,
    repeats,
    unconfirmed,
)
from support.once import either, needs_once

SECOND = timedelta(seconds=1)
TOO_MUCH = timedelta(milliseconds=1)  # what a delivery may be late by this clock


@pytest.fixture
def folder(fake):
    with opened(fake) as folder:
        yield folder


@pytest.fixture
def clock():
    return FakeClock(NOW)


def watched(folder, clock):
    """By how much each delivery follows its due time, and its name, as they come."""
    seen = []

    def note(request):
        if request.operation == "CopyObject" and request.bucket != "events":
            name = request.source[1]
            seen.append((name, clock.now() - isoparse(name.split("/")[1].split("|")[0])))

    folder.s3.before = note
    return seen


def assert_punctual(seen):
    assert seen
    for name, lateness in seen:
        assert timedelta() <= lateness < TOO_MUCH, name


# --- At its moment --------------------------------------------------------------------------------


@either
@pytest.mark.slow
def test_punctual(folder, clock, once):
    """Events that fall due within `ahead` are delivered each at its moment, by one listing."""
    names = [folder.put(-0.08 * i, f"k{i}") for i in range(100)]
    later = folder.put(-13, "later")
    seen = watched(folder, clock)
    report = run_by(folder.scheduler, clock, ahead=12, once=once)
    assert (report.copied, report.failed, report.unfinished) == (100, 0, False)
    assert [name for name, _ in seen] == names
    assert_punctual(seen)
    assert report.max_lateness < TOO_MUCH
    assert folder.waiting == [later]
    assert folder.s3.count()["ListObjectsV2"] <= 3
    assert clock.seconds < 8


def test_asleep(folder, clock):
    """A run that waits for one event wakes up a few times, not thousands."""
    folder.put(-50)
    assert run_by(folder.scheduler, clock, ahead=60).copied == 1
    assert len(clock.waits) <= 3
    assert clock.seconds == pytest.approx(50, abs=0.001)


def test_asleep_with_stop(folder, clock):
    """With `stop` it wakes up some ten times a second, to ask."""
    folder.put(-50)
    assert run_by(folder.scheduler, clock, ahead=60, stop=lambda: False).copied == 1
    assert len(clock.waits) <= 600


def test_overdue_events_do_not_wait_for_those_to_come(folder, clock):
    """However many fall due soon, all that is due already is delivered at once."""
    overdue = [folder.put(1_000 - i, "same", b"%d" % i) for i in range(250)]
    coming = folder.put_many(300, oldest=-20, step=0.001)
    seen = watched(folder, clock)
    report = run_by(folder.scheduler, clock, ahead=30)
    assert (report.copied, report.failed, report.unfinished) == (550, 0, False)
    assert [name for name, _ in seen][:250] == overdue
    assert_punctual(seen[250:])
    assert {name for name, _ in seen[250:]} == set(coming)


def test_nothing_falls_due(folder, clock):
    """When nothing falls due, the run lists 50 names at most and returns at once."""
    folder.put_many(300, oldest=-50.001, step=1)
    report = run_by(folder.scheduler, clock, ahead=50)
    assert (report.copied, report.unfinished) == (0, False)
    assert folder.s3.count() == {"ListObjectsV2": 1}
    assert folder.requests("ListObjectsV2")[0].query["max-keys"] == "50"
    assert (clock.seconds, clock.waits) == (0, [])


def test_off_by_default(folder, clock):
    """Without `ahead` nothing is waited for."""
    folder.put(0, "now")
    folder.put(-0.000_001, "in a moment")
    assert run_by(folder.scheduler, clock).copied == 1
    assert set(folder.arrived) == {"now"}
    assert clock.waits == []


def test_edge_of_the_window(folder, clock):
    """What falls due at the last moment of `ahead` is delivered, and what comes after is not."""
    folder.put(-10, "last")
    after = folder.put(-10.000_001, "after")
    report = run_by(folder.scheduler, clock, ahead=10)
    assert (report.copied, report.unfinished) == (1, False)
    assert folder.waiting == [after]


@pytest.mark.slow
def test_pages(folder, clock):
    """The first listing asks for 50 names; another, for 1,000, waits until they are used up."""
    folder.put_many(250, oldest=-5, step=0.001)
    listed = []

    def note(request):
        if request.operation == "ListObjectsV2":
            listed.append((clock.seconds >= 5, request.query["max-keys"]))

    folder.s3.before = note
    assert run_by(folder.scheduler, clock, ahead=10).copied == 250
    assert listed == [(False, "50"), (True, "1000")]


def test_due_and_ahead(folder, clock):
    """What is due already comes first, and at once."""
    folder.put_many(20, oldest=60)
    names = [folder.put(-i, f"later{i}") for i in range(1, 4)]
    seen = watched(folder, clock)
    report = run_by(folder.scheduler, clock, ahead=5)
    assert report.copied == 23
    assert [name for name, _ in seen[20:]] == names
    assert_punctual(seen[20:])
    assert report.max_lateness == timedelta(seconds=60)


def by_hand(folder, due):
    name = f"later/{due}|target|by hand"
    folder.s3.put("events", name, b"by hand")
    return name


def test_names_by_hand(folder, clock):
    """Names with shorter times come in the order of the listing, late only for those before."""
    names = [
        by_hand(folder, "2030-01-31T12:00:03.250Z"),
        by_hand(folder, "2030-01-31T12:00:03.2Z"),
        by_hand(folder, "2030-01-31T12:00:03.350000Z"),
        by_hand(folder, "2030-01-31T12:00:03Z"),
        by_hand(folder, "2030-01-31T12:00:04.500000Z"),
        by_hand(folder, "2030-01-31T12:00Z"),
        by_hand(folder, "2030-01-31T12:01:00.500000Z"),
        by_hand(folder, "2030-01-31T12:01Z"),
    ]
    assert names == folder.waiting
    seen = watched(folder, clock)
    assert run_by(folder.scheduler, clock, ahead=120).copied == 8
    assert [name for name, _ in seen] == names
    late = [timedelta(milliseconds=ms) for ms in (0, 50, 0, 350, 0, 4500, 0, 500)]
    for (name, lateness), expected in zip(seen, late, strict=True):
        assert expected <= lateness < expected + TOO_MUCH, name
    assert len(clock.waits) <= 12


# --- What changes while it waits ------------------------------------------------------------------


@either
def test_cancelled(folder, clock, once):
    """What is cancelled while the run waits is not delivered."""
    name = folder.put(-5, "cancelled")
    folder.put(-6, "other")
    clock.at(3, lambda: folder.s3.delete("events", name))
    report = run_by(folder.scheduler, clock, ahead=10, once=once)
    assert (report.copied, report.failed, report.unfinished) == (1, 0, False)
    assert set(folder.arrived) == {"other"}
    assert folder.waiting == []


@pytest.mark.parametrize("to", [7, 3600])
def test_moved(folder, clock, to):
    """What is moved while the run waits is left to the next run, wherever it goes."""
    name = folder.put(-5)

    def move():
        folder.s3.delete("events", name)
        folder.put(-to)

    clock.at(3, move)
    report = run_by(folder.scheduler, clock, ahead=10)
    assert (report.copied, report.failed, report.unfinished) == (0, 0, False)
    assert len(folder.waiting) == 1


@either
@pytest.mark.parametrize("size", [None, 2 * 1024**3], ids=["small", "large"])
def test_replaced(folder, clock, size, once):
    """What is replaced while the run waits arrives with its new content, at its moment."""
    name = folder.put(-5, content=b"old")
    clock.at(3, lambda: folder.s3.put("events", name, b"new", size=size))
    report = run_by(folder.scheduler, clock, ahead=10, once=once)
    assert (report.copied, report.failed, report.unfinished) == (1, 0, False)
    assert report.max_lateness < TOO_MUCH
    assert folder.deliveries == [(name, "k", b"new")]
    assert folder.waiting == []
    assert lost(folder.s3.history) == []


def test_scheduled_meanwhile(folder, clock):
    """What is scheduled while the run waits, for within the window, is left to the next run."""
    folder.put(-5)
    clock.at(3, lambda: folder.put(-6, "new"))
    assert run_by(folder.scheduler, clock, ahead=10).copied == 1
    assert set(folder.arrived) == {"k"}
    assert len(folder.waiting) == 1


# --- All other promises hold ----------------------------------------------------------------------


def test_order(folder, clock):
    """Events for one target arrive in their order, and one that fails holds back the others."""
    for i in range(20):
        folder.put(2 - i / 5, "steady", b"%d" % i)
    names = [folder.put(-i, "refused", b"%d" % i) for i in (1, 2, 3)]
    folder.s3.fault = on("CopyObject", Error(500, "InternalError"), key="refused")
    report = run_by(folder.scheduler, clock, ahead=10)
    assert (report.copied, report.failed, report.unfinished) == (20, 1, True)
    assert folder.waiting == names
    assert out_of_order(folder.s3.history) == []
    assert folder.arrived == {"steady": b"19"}


@pytest.mark.parametrize("fault", [DENIED, Error(500, "InternalError"), Reset()], ids=repr)
def test_isolation(fake, clock, fault):
    """A sick bucket delays nothing that falls due for others."""
    with opened(fake, "bad") as folder:
        for i in range(60):
            folder.put(30 - i, f"k{i}", bucket="bad")
            folder.put(-0.5 - i / 4, f"k{i}")
        folder.s3.fault = sick("bad", fault)
        seen = watched(folder, clock)
        report = run_by(folder.scheduler, clock, ahead=40)
        assert report.copied == 60
        assert_punctual([each for each in seen if "|target|" in each[0]])
        assert set(fake.buckets["target"]) == {f"k{i}" for i in range(60)}
        assert 0 < report.failed <= 20


def test_refused_deletes(folder, clock):
    """When deletes are refused, a run stops waiting once its places are taken."""
    folder.put_many(300, oldest=-1, step=0.1)
    folder.s3.fault = any_of(always("DeleteObjects", DENIED), always("DeleteObject", DENIED))
    report = run_by(folder.scheduler, clock, ahead=3600)
    assert 100 <= report.copied <= 100 + WIDTH
    assert unconfirmed(folder.s3.history) == report.copied
    assert len(folder.waiting) == 300
    assert clock.seconds < 20


@pytest.mark.slow
def test_more_than_a_run_holds(folder, clock):
    """More events than a run holds are delivered at their moments, too."""
    names = folder.put_many(3_000, oldest=-1, step=0.01)
    run = new_run(folder.scheduler, clock, ahead=60)
    held = []
    seen = watched(folder, clock)
    note = folder.s3.before

    def before(request):
        note(request)
        held.append(run.backlog.waiting + len(run.backlog.held))

    folder.s3.before = before
    report = run.work()
    assert (report.copied, report.failed, report.unfinished) == (3_000, 0, False)
    assert [name for name, _ in seen] == names
    assert_punctual(seen)
    assert max(held) < 1_200
    assert folder.s3.count()["ListObjectsV2"] <= 5
    assert repeats(folder.s3.history) == 0


def test_many_at_one_moment(folder, clock):
    """Events that fall due at one moment all go at that moment."""
    for i in range(150):
        folder.put(-5, f"k{i}")
    seen = watched(folder, clock)
    assert run_by(folder.scheduler, clock, ahead=10).copied == 150
    assert_punctual(seen)


def test_shards(folder):
    """Each shard waits for its own share only."""
    names = [folder.put(-i, f"k{i}") for i in range(1, 21)]
    for i in range(2):
        run_by(folder.scheduler, FakeClock(NOW), ahead=30, shard=(i, 2))
    assert sorted(folder.delivered) == sorted(names)
    assert repeats(folder.s3.history) == 0


# --- The end --------------------------------------------------------------------------------------


def test_time_limit(folder, clock):
    """What falls due after the time limit is not waited for, and is no unfinished work."""
    folder.put(-5, "before")
    after = folder.put(-50, "after")
    report = run_by(folder.scheduler, clock, ahead=60, time_limit=10)
    assert (report.copied, report.unfinished) == (1, False)
    assert folder.waiting == [after]
    assert clock.seconds == pytest.approx(5, abs=0.001)


def test_time_limit_amid_a_listing(folder, clock):
    """Nor is what falls due then read, however much it is."""
    folder.put_many(200, oldest=-20, step=0.01)
    report = run_by(folder.scheduler, clock, ahead=60, time_limit=10)
    assert (report.copied, report.unfinished) == (0, False)
    assert clock.seconds == 0


def test_stop(folder, clock):
    """So does `stop`, within a tenth of a second."""
    folder.put(-5, "before")
    after = folder.put(-50, "after")
    stop = {"asked": False}
    clock.at(7, lambda: stop.update(asked=True))
    report = run_by(folder.scheduler, clock, ahead=60, stop=lambda: stop["asked"])
    assert (report.copied, report.unfinished) == (1, False)
    assert folder.waiting == [after]
    assert clock.seconds < 7.2


def test_interrupted(folder):
    """So does Ctrl-C."""
    copied = folder.put(1, "due")
    name = folder.put(-3600)
    main = threading.main_thread().ident or 0

    def interrupt(request):
        if request.operation == "DeleteObjects":
            # A moment later there is nothing left but to wait.
            threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()

    folder.s3.after = interrupt
    with pytest.raises(KeyboardInterrupt):
        folder.run(ahead=7200)
    assert folder.delivered == [copied]
    assert folder.waiting == [name]


# --- By the real clock ----------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0.2, timedelta(milliseconds=200)], ids=str)
def test_from_a_moment_given(folder, ahead):
    """`ahead` counts from `now`, whatever the clock says, as seconds or a timedelta."""
    folder.put(-0.1, "soon")
    later = folder.put(-0.3, "later")
    report = folder.run(ahead=ahead)
    assert (report.copied, report.failed, report.unfinished) == (1, 0, False)
    assert report.max_lateness >= timedelta()
    assert set(folder.arrived) == {"soon"}
    assert folder.waiting == [later]


@needs_once
def test_two_runners(folder):
    """Two runners that wait for the same moments deliver each event once, if asked."""
    names = [folder.put(-0.1 - i / 50, f"k{i:02}") for i in range(20)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(folder.run, ahead=1, once=True) for _ in range(2)]
    reports = [run.result() for run in runs]
    assert sorted(folder.delivered) == names
    assert sum(report.copied for report in reports) == 20
    assert [report.failed for report in reports] == [0, 0]
    assert folder.waiting == []


@pytest.mark.parametrize("ahead", [-1, -0.001, -SECOND, float("nan"), "60", None], ids=repr)
def test_invalid(folder, ahead):
    """A negative time ahead, or what is no duration, is refused before any request."""
    with pytest.raises(ValueError, match="ahead"):
        folder.run(ahead=ahead)
    assert folder.s3.count() == {}


@pytest.mark.parametrize("ahead", [0, 3600])
def test_end_of_time(folder, ahead):
    """A run at the last moment that there is delivers everything."""
    folder.put(-(10**8))
    report = folder.run(now=datetime.max.replace(tzinfo=timezone.utc), ahead=ahead)
    assert (report.copied, report.unfinished) == (1, False)


def test_for_ever(folder, clock):
    """An endless time ahead waits for all that was listed."""
    folder.put(-(10**8), "in three years")
    assert run_by(folder.scheduler, clock, ahead=float("inf")).copied == 1
    assert clock.seconds == pytest.approx(10**8)
