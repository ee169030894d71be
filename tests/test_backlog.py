"""Which event may go next, and what is read: the whole policy, without I/O, clock or threads."""

import itertools
import pickle
import random
import sys
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from s3_scheduler import Event, backlog, window
from s3_scheduler.backlog import Backlog

START = datetime(2030, 1, 31, tzinfo=timezone.utc)
WIDTH = 8
ALL_EXPIRED = "later/3"
FIRST = "later/"  # before all names, so that what follows it is new


def event(second, bucket="a", key=None):
    """Make an event that is due so many seconds after START, with a key of its own if none."""
    due = START + timedelta(seconds=second)
    key = f"k{second}" if key is None else key
    text = due.replace(tzinfo=None).isoformat(timespec="microseconds")
    return Event(due, bucket, key, f"later/{text}Z|{bucket}|{key}", 1, '"etag"')


def many(count, bucket="a", *, key=None, start=0):
    return [event(start + i, bucket, key) for i in range(count)]


def filled(*events, width=WIDTH, expired="", last=None):
    """Make a backlog that has read these events, up to `last`; None: to the end of the listing."""
    made = Backlog(width, expired)
    give(made, events, last=last)
    return made


def give(it, events, after="", last=None, due=ALL_EXPIRED):
    """Let it read these events, those before `due` being due."""
    it.take_page(after, last, events, lambda each: each.name < due)
    ripen(it, due)


def ripen(it, due):
    it.ripen(lambda each: each.name < due)


def begun(it, now=0.0):
    """Begin all that may begin."""
    return list(iter(lambda: it.next(now), None))


def copied(it, each, seconds=0.01):
    window, _ = it.end(each)
    window.succeed(seconds)


def deliver(it, each, seconds=0.01):
    copied(it, each, seconds)
    it.release(each)


def fail(it, each, *, refused=False, unanswered=False, quarantined=False):
    window, _ = it.end(each)
    window.fail(refused=refused, unanswered=unanswered, quarantined=quarantined)
    (it.release if quarantined else it.block)(each)


def throttled(it, each, now):
    """Let S3 throttle a copy; whether that is a failure."""
    window, began = it.end(each)
    failed = window.throttle(now, began)
    (it.block if failed else it.again)(each)
    return failed


def pass_over(it, each, *, left):
    it.end(each)
    (it.release if left else it.block)(each)


def grown(it, bucket, window, seconds=0.01):
    """Let events of a bucket succeed until its window is so wide; what is in flight then."""
    going = []
    while len(going) < window:
        going = begun(it)
        assert {each.bucket for each in going} <= {bucket}
        if len(going) < window:
            for each in going:
                deliver(it, each, seconds=seconds)
    return going


# --- The window -----------------------------------------------------------------------------------


def test_the_window_doubles():
    """A bucket has one copy in flight at first, then twice as many each round, up to the width."""
    it = filled(*many(100))
    rounds = []
    for _ in range(6):
        going = begun(it)
        rounds.append(len(going))
        for each in going:
            deliver(it, each)
    assert rounds == [1, 2, 4, 8, 8, 8]


def test_throttling_halves_the_window_once_a_round():
    """However many copies of a round are throttled, the window is halved once, and all go back."""
    it = filled(*many(100))
    going = grown(it, "a", 8)
    assert [throttled(it, each, 1.0) for each in going] == [False] * 8
    again = begun(it, 1.5)
    assert len(again) == 4
    assert [throttled(it, each, 2.0) for each in again] == [False] * 4
    assert len(begun(it, 2.5)) == 2


def test_the_window_grows_slowly_after_throttling():
    """Once throttled, a bucket gets one copy more each round."""
    it = filled(*many(200))
    for each in grown(it, "a", 8):
        throttled(it, each, 1.0)
    rounds = []
    for _ in range(6):
        going = begun(it, 2.0)
        rounds.append(len(going))
        for each in going:
            deliver(it, each)
    assert rounds == sorted(rounds)
    assert rounds[0] == 4
    assert all(more - less <= 1 for less, more in itertools.pairwise(rounds))
    assert rounds[-1] > rounds[0]


def test_throttled_time_after_time():
    """A bucket that only throttles, eight rounds in a row, is shut; then the last event failed."""
    it = filled(*many(20))
    answers = []
    for now in range(window.MAX_FAILURES):
        (going,) = begun(it, now)
        answers.append(throttled(it, going, now + 0.5))
    assert answers == [False] * 7 + [True]
    assert begun(it, 99.0) == []
    assert (it.waiting, it.in_flight, it.unfinished) == (0, {}, True)


def test_a_success_between_throttling():
    """A bucket that throttles and delivers in turn is never shut."""
    it = filled(*many(50))
    for now in range(50):
        for each in begun(it, now):
            assert throttled(it, each, now + 0.1) is False
        for each in begun(it, now + 0.2):
            deliver(it, each)
    assert (it.waiting, it.unfinished) == (0, False)


def test_throttled_events_keep_their_place():
    """What is put back goes again before later ones for its target."""
    first, second = event(1, key="k"), event(2, key="k")
    it = filled(first, second)
    assert begun(it) == [first]
    throttled(it, first, 1.0)
    assert begun(it, 2.0) == [first]
    deliver(it, first, 3.0)
    assert begun(it, 3.0) == [second]


def test_one_event_that_is_throttled():
    """When one event is throttled time after time, others of its bucket go in between."""
    bad, *others = many(100)
    it = filled(bad, *others)
    now = 0.0
    arrived = set()
    while going := begun(it, now):
        now += 1
        for each in going:
            if each != bad:
                deliver(it, each)
                arrived.add(each.name)
            elif throttled(it, each, now):
                assert arrived == {each.name for each in others}
    assert len(arrived) == 99


def test_a_draining_bucket_that_is_throttled():
    """A shut bucket that only throttles while it goes on with expired events stops."""
    rest = many(100)
    it = filled(*rest, expired=ALL_EXPIRED)
    for _ in range(20):
        fail(it, it.next(0.0), refused=True, quarantined=True)
    answers = []
    now = 0.0
    while going := begun(it, now):
        now += 1
        answers += [throttled(it, each, now) for each in going]
    assert answers.count(True) == 1
    assert (it.read_after(), it.unfinished) == (None, True)


@pytest.mark.parametrize("unanswered", [False, True])
def test_failures_in_a_row_shut_a_bucket(unanswered):
    """Eight failures in a row shut a bucket that has delivered nothing: no more is risked."""
    it = filled(*many(500))
    failed = 0
    while going := begun(it):
        assert len(going) == 1
        fail(it, going[0], unanswered=unanswered)
        failed += 1
    assert failed == window.MAX_FAILURES == 8
    assert (it.waiting, it.unfinished, it.read_after()) == (0, True, None)


def test_failures_among_successes():
    """A bucket that delivers now and then is not shut for its failures."""
    it = filled(*many(500))
    for number in itertools.count():
        going = begun(it)
        if not going:
            break
        for each in going:
            deliver(it, each) if number % 7 == 0 else fail(it, each)
    assert it.waiting == 0
    assert not it.unfinished


def test_a_bucket_that_falls_sick():
    """A bucket that has delivered is shut by a hundred failures in a row."""
    it = filled(*many(500))
    deliver(it, *begun(it))
    failed = 0
    while going := begun(it):
        for each in going:
            fail(it, each, refused=True)
            failed += 1
    assert window.MAX_REFUSALS <= failed < window.MAX_REFUSALS + WIDTH


def test_copies_without_an_answer():
    """A hundred copies without an answer shut a bucket, though others of it succeed."""
    it = filled(*many(900), width=1)
    lost = 0
    while going := begun(it):
        fail(it, going[0], unanswered=True)
        lost += 1
        for each in begun(it):
            deliver(it, each)
    assert lost == window.MAX_UNANSWERED == 100


def test_a_late_success_opens_a_bucket():
    """A copy that succeeds after its bucket was shut by refusals opens it again."""
    it = filled(*many(300))
    going = grown(it, "a", 8)
    for each in going[1:]:
        fail(it, each, refused=True)
    failed = 7
    while failed < window.MAX_REFUSALS:
        for each in begun(it):
            fail(it, each, refused=True)
            failed += 1
    assert (begun(it), it.read_after()) == ([], None)
    copied(it, going[0], 0.1)
    assert it.read_after() is not None


@pytest.mark.parametrize("width", [2, 3])
def test_a_late_success_after_copies_without_an_answer(width):
    """It does not open a bucket that so many copies without an answer have shut."""
    it = filled(*many(900), width=width)
    late, *others = grown(it, "a", width)
    while others:
        fail(it, others.pop(), unanswered=True)
        others += begun(it, 1.0)
    copied(it, late, 0.1)
    assert (begun(it, 2.0), it.read_after()) == ([], None)


# --- Which bucket goes ----------------------------------------------------------------------------


def test_quick_buckets_then_new_ones_then_others():
    """A bucket that answers quickly goes first, then one never heard of, then one that failed."""
    it = filled(*many(5, "failing"), *many(5, "quick", start=100), width=2, last=FIRST)
    first, second = begun(it)
    assert (first.bucket, second.bucket) == ("failing", "quick")
    fail(it, first)
    deliver(it, second)
    give(it, many(5, "new", start=50), FIRST)
    assert [each.bucket for each in begun(it, 1.0)] == ["quick", "quick"]
    it = filled(*many(1, "failing"), *many(1, "quick", start=100), width=2, last=FIRST)
    first, second = begun(it)
    fail(it, first)
    deliver(it, second)
    give(it, [*many(5, "failing", start=10), *many(5, "new", start=50)], FIRST)
    assert [each.bucket for each in begun(it, 1.0)] == ["new", "failing"]


def test_a_slow_bucket_goes_last():
    """A bucket that takes long to answer leaves the way to one that is quick, however old."""
    it = filled(*many(50, "slow"), *many(50, "quick", start=100), width=2)
    slow, quick = begun(it)
    assert (slow.bucket, quick.bucket) == ("slow", "quick")
    deliver(it, slow, seconds=window.PROMPT)
    deliver(it, quick, seconds=window.PROMPT - 0.01)
    assert [each.bucket for each in begun(it, 1.0)] == ["quick", "quick"]


def test_a_bucket_that_throttles_goes_last():
    """A bucket that was quick and throttles goes after one that is new."""
    it = filled(*many(50, "throttles"), width=4, last=FIRST)
    for each in grown(it, "throttles", 4):
        throttled(it, each, 1.0)
    give(it, many(2, "new", start=100), FIRST)
    assert it.next(1.0).bucket == "new"


def test_fewest_in_flight_then_oldest():
    """Among equals the bucket with the fewest copies in flight goes, then the oldest event."""
    it = filled(*many(50, "a"), *many(50, "b", start=1000), width=6)
    for each in begun(it):
        deliver(it, each)
    assert [each.bucket for each in begun(it)] == ["a", "b", "a", "b"]
    it = filled(*many(3, "a", start=10), *many(3, "b"), *many(3, "c", start=5))
    assert [each.bucket for each in begun(it)] == ["b", "c", "a"]
    it = filled(*reversed(many(4)))
    going = grown(it, "a", 2)
    assert [each.key for each in going] == ["k1", "k2"]


def test_silent_buckets_lend_their_places():
    """Copies that get no answer for a second use up no width, up to as many again."""
    it = filled(*(each for i in range(20) for each in many(2, f"hangs{i:02}", start=i)), width=4)
    assert len(begun(it, 0.0)) == 4
    assert begun(it, backlog.SILENCE) == []
    assert len(begun(it, backlog.SILENCE + 0.1)) == 4
    assert begun(it, 10 * backlog.SILENCE) == []
    assert len(it.in_flight) == 8


def test_a_silent_bucket_that_was_quick():
    """A bucket that was quick and fell silent goes after one that is new."""
    it = filled(*many(50, "hangs"), width=4, last=FIRST)
    for each in grown(it, "hangs", 2):
        deliver(it, each)
    assert it.next(1.0).bucket == "hangs"
    give(it, many(2, "new", start=100), FIRST)
    assert it.next(1.1 + backlog.SILENCE).bucket == "new"
    assert it.next(1.1 + backlog.SILENCE).bucket == "hangs"


def test_one_answer_ends_the_silence():
    """A bucket is not silent while it answers any of its copies."""
    it = filled(*many(50), width=2)
    for each in begun(it):
        deliver(it, each)
    _, second = begun(it, 0.0)
    fail(it, second)
    assert len(begun(it, 5.5)) == 1
    assert begun(it, 5.5) == []


def test_denied_keys_do_not_shut_their_bucket():
    """A bucket that refuses its 300 oldest keys delivers all others."""
    denied = {each.name for each in many(300)}
    it = filled(*many(900))
    failed, arrived = set(), set()
    while going := begun(it):
        for each in going:
            if each.name in denied:
                fail(it, each, refused=True)
                failed.add(each.name)
            else:
                deliver(it, each)
                arrived.add(each.name)
    assert len(arrived) == 600
    assert failed == denied
    assert not it.unfinished


def refuse(it, rest):
    """Let S3 refuse all that may begin, and quarantine it; how many went at once, each round."""
    rounds = []
    while going := begun(it):
        rounds.append(len(going))
        for each in going:
            fail(it, each, refused=True, quarantined=True)
            rest.remove(each)
    return rounds


def test_a_shut_bucket_that_refuses_expired_events():
    """It goes on with these when nothing else may go, ever more at once, until all are moved."""
    rest = many(100, "refuses")
    well = event(500, "well")
    it = filled(*rest, expired=ALL_EXPIRED, last=FIRST)
    assert sum(refuse(it, rest)) < 20
    give(it, [well], after=FIRST)
    give(it, rest, after=it.read_after())
    first = it.next(1.0)
    assert first == well
    deliver(it, first)
    rounds = refuse(it, rest)
    assert (rest, it.unfinished) == ([], False)
    assert max(rounds) == WIDTH


def test_a_shut_bucket_waits_until_all_is_read():
    """Until the end of the listing what a shut bucket refuses waits, and then goes on by itself."""
    it = Backlog(WIDTH, ALL_EXPIRED)
    events = many(100, "refuses")
    rest = list(events)
    give(it, events[:8], last=events[7].name)
    assert sum(refuse(it, rest)) == 8
    give(it, events[8:50], after=events[7].name, last=events[49].name)
    assert begun(it) == []
    give(it, events[50:], after=events[49].name)
    if after := it.read_after():
        give(it, [each for each in rest if each.name > after], after=after)
    refuse(it, rest)
    assert (rest, it.unfinished) == ([], False)


@pytest.mark.parametrize("sign", ["not expired", "an outage", "throttling"])
def test_a_shut_bucket_that_stays_shut(sign):
    """A shut bucket does not go on with events that are not expired, nor while it is sick."""
    it = filled(*many(100), expired="" if sign == "not expired" else ALL_EXPIRED)
    for now in range(8):
        for each in begun(it, now):
            if sign == "throttling" and now == 7:
                throttled(it, each, now + 0.5)
            else:
                fail(it, each, refused=sign != "an outage" or now != 7)
    assert (begun(it, 99.0), it.read_after(), it.unfinished) == ([], None, True)


def test_expired_events_that_cannot_be_quarantined():
    """A shut bucket does not go on when its expired events cannot be moved to `failed/`, either."""
    it = filled(*many(500), expired=ALL_EXPIRED)
    failed = 0
    while True:
        going = begun(it)
        if not going and (after := it.read_after()):
            give(it, [each for each in many(500) if each.name > after], after=after)
            going = begun(it)
        if not going:
            break
        for each in going:
            fail(it, each, refused=True)
            failed += 1
    assert failed <= 3 * window.MAX_FAILURES
    assert it.unfinished


# --- In order for each target ---------------------------------------------------------------------


def test_one_after_the_other():
    """An event may go when the one before it, for the same key, has left the folder, not sooner."""
    events = many(3, key="k")
    it = filled(*events)
    for number, each in enumerate(events):
        assert begun(it) == [each]
        assert it.is_awaited(each) == (number < 2)
        copied(it, each)
        assert begun(it) == []
        it.release(each)
    assert not it.unfinished


@pytest.mark.parametrize("fate", ["failed", "not deleted", "replaced", "throttled for good"])
def test_what_stays_blocks_its_target(fate):
    """When an event stays in the folder, later ones for its target wait, those read later, too."""
    events = many(3, key="k")
    it = filled(*events[:2], last=FIRST)
    (first,) = begun(it)
    if fate == "failed":
        fail(it, first)
    elif fate == "replaced":
        pass_over(it, first, left=False)
    elif fate == "not deleted":
        copied(it, first)
        it.block(first)
    else:
        for now in range(8):
            throttled(it, first, now + 0.5)
            begun(it, now + 0.6)
    other = event(50, key="other")
    give(it, [events[2], other], after=FIRST)
    assert begun(it, 99.0) == ([] if fate == "throttled for good" else [other])
    assert it.unfinished


def test_what_follows_a_failure_is_unfinished():
    """An event that is read after one for its target failed is left for the next run."""
    it = filled(event(1, key="k"), last=FIRST)
    fail(it, *begun(it))
    give(it, [event(2, key="k")], FIRST)
    assert (begun(it), it.unfinished) == ([], True)


def test_what_failed_alone_is_not_unfinished():
    """An event that failed is no event left undone, also when the listing gives it once more."""
    it = filled(event(1))
    fail(it, *begun(it))
    assert not it.unfinished
    give(it, [event(1)])
    assert not it.unfinished


def test_what_is_gone_blocks_nothing():
    """When an event is found gone, the next for its target goes at once."""
    first, second = many(2, key="k")
    it = filled(first, second)
    begun(it)
    pass_over(it, first, left=True)
    assert begun(it) == [second]


def test_a_replacement_goes_first():
    """What replaced an event before its delete goes before later ones for its target."""
    first, second = many(2, key="k")
    it = filled(first, second)
    begun(it)
    copied(it, first)
    it.again(first)
    assert begun(it) == [first]
    deliver(it, first)
    assert begun(it) == [second]


# --- What is read ---------------------------------------------------------------------------------


def test_reading_ahead_of_the_copies():
    """More is read until quick buckets have enough for a few rounds, and not beyond."""
    it = Backlog(WIDTH)
    assert it.read_after() is not None
    give(it, many(10), last=FIRST)
    assert it.read_after() is not None
    deliver(it, *begun(it))
    give(it, many(40, start=10), after=FIRST, last="later/0")
    assert it.read_after() is None
    for _ in range(5):
        for each in begun(it):
            deliver(it, each)
    assert it.read_after() is not None


def test_reading_past_slow_and_sick_buckets():
    """Buckets that fail, or are slow or silent, do not keep the listing from going on."""
    it = Backlog(WIDTH)
    give(it, [*many(300, "slow"), *many(300, "fails"), *many(300, "hangs")], last=FIRST)
    for each in begun(it):
        if each.bucket == "slow":
            deliver(it, each, seconds=1.0)
        elif each.bucket == "fails":
            fail(it, each)
    assert it.read_after() is not None


def test_reading_past_a_quick_bucket_that_hangs():
    """Nor does a bucket that was quick until it fell silent."""
    it = filled(*many(300), last=FIRST)
    for each in grown(it, "a", 2):
        deliver(it, each)
    assert it.next(1.0) is not None
    assert it.read_after() is None
    it.next(1.1 + backlog.SILENCE)
    assert it.read_after() == FIRST


def test_room_where_buckets_are_shut():
    """What waits for buckets that are shut takes no room, however many are shut at once."""
    it = filled(*many(950), *many(950, "b"), last=FIRST)
    for _ in range(window.MAX_FAILURES - 1):
        for each in begun(it):
            fail(it, each)
    for each in begun(it):
        fail(it, each)
    assert (it.read_after(), it.waiting) == (FIRST, 0)


def test_a_quick_bucket_among_many_that_hang():
    """A quick bucket returns to what was left out of it, though others fill the backlog."""
    quick = many(1_100, "quick")
    it = filled(*quick, last=FIRST)
    assert it.read_after() == FIRST
    give(it, [event(2_000 + i, f"hangs{i % 11}") for i in range(1_100)], FIRST)
    delivered = []
    for now in range(500):
        delivered += [each for each in begun(it, now) if each.bucket == "quick"]
        for each in delivered:
            if each in it.in_flight:
                deliver(it, each)
        if after := it.read_after():
            give(it, [each for each in quick if each.name > after], after)
    assert delivered == quick


def test_no_room():
    """With a thousand events of quick buckets waiting for others, nothing is read."""
    it = Backlog(WIDTH)
    give(it, [each for i in range(20) for each in many(60, key=f"k{i}", start=100 * i)], last=FIRST)
    assert it.waiting == 1200
    deliver(it, *begun(it))
    assert it.read_after() is None
    assert it.waiting == 1199


def test_room_is_made_where_it_is_slow():
    """A full backlog leaves out the newer half of the fullest slow bucket, and reads on."""
    slow, small, quick = many(700, "slow"), many(350, "small", start=1), many(20, "quick")
    it = Backlog(WIDTH)
    give(it, sorted([*slow, *small, *quick], key=lambda each: each.name), last=FIRST)
    for each in begun(it):
        deliver(it, each, seconds=0.01 if each.bucket == "quick" else 1.0)
    assert it.read_after() is not None
    assert 600 < it.waiting < 800
    give(it, [event(9_000, "slow"), event(9_000, "small"), event(9_000, "new")], FIRST)
    assert it.read_after() is None
    taken = Counter({"slow": 1, "small": 1, "quick": 1})
    while going := begun(it):
        for each in going:
            deliver(it, each)
            taken[each.bucket] += 1
    assert (taken["small"], taken["quick"], taken["new"]) == (351, 20, 1)
    assert 340 <= taken["slow"] <= 360
    assert it.read_after() == slow[taken["slow"]].name[:-1]


@pytest.mark.parametrize("keys", [WIDTH, 3 * WIDTH])
def test_room_is_made_behind_what_is_in_flight(keys):
    """So it is when most of a slow bucket's events wait behind others for their targets."""
    it = Backlog(WIDTH)
    page = [event(i, "slow", f"k{i % keys}") for i in range(90 * keys)]
    give(it, page[: 900 // keys * keys], last=FIRST)
    grown(it, "slow", WIDTH, seconds=1.0)
    give(it, many(400, "other", start=5_000), FIRST, last="later/0")
    before = it.waiting
    assert it.read_after() is not None
    assert before - it.waiting in range(250, 500)


def test_a_hundred_for_one_target():
    """Of one target a hundred events wait behind the first; the listing returns to the others."""
    events = [*many(250, key="k"), event(300)]
    it = filled(*events)
    assert it.waiting == backlog.MAX_FOR_ONE_TARGET + 2
    done = []
    reads = 0
    while it.unfinished:
        for each in begun(it):
            deliver(it, each)
            done.append(each)
        if it.read_after() is not None:
            reads += 1
            after = it.read_after()
            give(it, [each for each in events if each.name > after], after=after)
    assert [each for each in done if each.key == "k"] == events[:-1]
    assert events[-1] in done
    assert reads <= 4


def test_the_same_page_twice():
    """A page that is read again holds nothing new but what was left out."""
    events = many(4)
    it = filled(*events)
    (going,) = begun(it)
    give(it, events)
    assert it.waiting == 3
    deliver(it, going)
    give(it, [*events, event(9)])
    assert it.waiting == 3


def test_an_end_without_a_page():
    """Until the listing has come to its end, the run is unfinished."""
    it = Backlog(WIDTH)
    assert it.unfinished
    give(it, [], last=FIRST)
    assert it.unfinished
    give(it, [], after=FIRST)
    assert not it.unfinished


def test_a_page_that_does_not_come_to_what_was_left_out():
    """The listing goes on behind such a page, and does not read it for ever."""
    it = filled(*many(102, key="k"))
    for _ in range(60):
        deliver(it, *begun(it))
    after = it.read_after()
    assert after == event(101, key="k").name[:-1]
    give(it, [], after=after, last=f"{after}a")
    assert it.read_after() == f"{after}a"


def test_the_bucket_with_the_oldest_event_goes_first():
    """Among buckets that are alike the one whose first event is the oldest goes first."""
    late_first, early_first = [event(5, "b"), event(6, "b")], [event(1, "a"), event(10, "a")]
    it = filled(*sorted([*late_first, *early_first], key=lambda each: each.name))
    assert begun(it) == [early_first[0], late_first[0]]


def test_a_bucket_that_was_not_asked_is_not_silent():
    """A bucket falls silent a second after it was asked, however long ago its last answer is."""
    it = filled(*many(3), *many(20, "b", start=100), width=1)
    for each in begun(it):
        deliver(it, each)
    assert len(begun(it, 100.0)) == 1
    assert begun(it, 100.9) == []
    assert len(begun(it, 101.1)) == 1


def test_held_events_ripen():
    """An event that is not due yet goes when it is, in its turn, even if its page is read again."""
    soon, later = event(10), event(20)
    it = Backlog(WIDTH)
    for _ in range(2):
        give(it, [soon, later], due=soon.name)
    assert (list(it.held), begun(it), it.unfinished) == ([soon, later], [], False)
    ripen(it, event(15).name)
    assert (list(it.held), begun(it)) == ([later], [soon])
    deliver(it, soon)
    ripen(it, event(15).name)
    assert begun(it) == []
    ripen(it, event(25).name)
    assert (list(it.held), begun(it), it.waiting) == ([], [later], 0)


def test_never_early():
    """What is scheduled where the folder was read before is left to the next run."""
    due, now = many(150, key="k"), event(4000).name
    soon, held = event(5000, key="k"), event(6000)
    it = Backlog(WIDTH)
    give(it, [*due, held], due=now)
    went = []
    while each := it.next(0.0):
        deliver(it, each)
        went.append(each)
        if (after := it.read_after()) is not None:
            left = [other for other in due if other.name > after]
            give(it, [*left, soon, held], after, due=now)
    assert went == due
    assert (list(it.held), it.unfinished) == ([held], False)


def worked_off(it, due, held, beyond, bound=ALL_EXPIRED):
    """Read what is due and held, deliver all that may go; what went, and what was read after."""
    give(it, [*due, *held], last=held[-1].name, due=held[0].name)
    went, read = [], []
    while each := it.next(0.0):
        deliver(it, each)
        went.append(each)
        if after := it.read_after():
            rest = [other for other in (*due, *held, *beyond) if other.name > after]
            give(it, rest, after, due=bound)
            read.append(after)
    return went, read


@pytest.mark.parametrize("key", ["k", None], ids=["one target", "many"])
def test_what_was_left_out_goes_before_held_events(key):
    """While events are held, what was due and left out is read again, and what follows is held."""
    due, held = many(350, key="k"), many(4 * WIDTH, start=1_000, key=key)
    beyond = many(50, start=2_000)
    it = Backlog(WIDTH)
    went, read = worked_off(it, due, held, beyond, held[0].name)
    assert went == due
    assert max(read) < due[-1].name
    assert (it.waiting, list(it.held), it.read_after()) == (0, [*held, *beyond], None)


def test_what_falls_due_while_a_page_is_read_again():
    """What was held, or is behind the page, goes once and in its turn, as soon as it is due."""
    due, held = many(105, key="k"), many(4 * WIDTH, start=1_000, key="k")
    beyond = many(5, start=2_000, key="k")
    it = Backlog(WIDTH)
    went, read = worked_off(it, due, held, beyond)
    assert went == [*due, *held, *beyond]
    assert read[0] < due[-1].name
    assert (it.waiting, it.unfinished) == (0, False)


def test_refusals_before_all_is_read():
    """A bucket shut by refusals goes on as soon as all is read, whatever waits in it by then."""
    events = many(400)
    it = filled(*events, expired=ALL_EXPIRED, last=events[-1].name)
    replaced = it.next(0.0)
    copied(it, replaced)
    for _ in range(window.MAX_REFUSALS):
        fail(it, it.next(0.0), refused=True)
    it.again(replaced)
    assert it.next(0.0) is None
    give(it, [], events[-1].name)
    give(it, events, it.read_after())
    assert it.next(0.0) == replaced


def test_held_events_are_supply():
    """While enough events are held that fall due soonest, those behind them are not read."""
    it = Backlog(WIDTH)
    give(it, many(4 * WIDTH), last=FIRST, due="later/2")
    assert it.read_after() is None
    ripen(it, ALL_EXPIRED)
    assert it.read_after() is not None


def test_too_many_blocked_targets():
    """After ten thousand failures a bucket is shut, so that what a run remembers is bounded."""
    it = filled(*many(100), last=FIRST)
    failed = 0
    start = 100
    while it.in_flight or it.waiting:
        for number, each in enumerate(begun(it)):
            if number % 2:
                fail(it, each, refused=True)
                failed += 1
            else:
                deliver(it, each)
        if it.waiting < 50 and failed < 20_000:
            give(it, many(100, start=start), after=FIRST, last=FIRST)
            start += 100
    assert backlog.MAX_BLOCKED < failed < backlog.MAX_BLOCKED + 2 * WIDTH
    assert it.unfinished


# --- Any interleaving -----------------------------------------------------------------------------


class Folder:
    """A folder, a listing of it, and what a run does with a backlog; it holds the run to rules."""

    def __init__(self, width=WIDTH, expired="", page=1000):
        self.it = Backlog(width, expired)
        self.page = page
        self.now = 0.0
        self.names = []  # what is in the folder, sorted
        self.due = ALL_EXPIRED
        self.events = {}
        self.targets = defaultdict(list)  # names in the folder, sorted
        self.asked = None  # after which name, and the answer
        self.listings = 0
        self.listed = set()
        self.in_flight = {}  # name: when it began
        self.copied = []
        self.delivered = []
        self.stays = set()  # targets of events that failed, and so on

    def put(self, events):
        for each in events:
            if each.name not in self.events:
                insort(self.names, each.name)
                insort(self.targets[each.bucket, each.key], each.name)
            self.events[each.name] = each

    def remove(self, each):
        """Delete an event from the folder."""
        if self.events.pop(each.name, None):
            del self.names[bisect_left(self.names, each.name)]
            self.targets[each.bucket, each.key].remove(each.name)

    # What a run does

    def ask(self):
        after = None if self.asked else self.it.read_after()
        if after is None:
            return False
        first = bisect_right(self.names, after)
        answer = [self.events[name] for name in self.names[first : first + self.page]]
        more = first + self.page < len(self.names)
        self.asked = after, answer, answer[-1].name if more else None
        self.listings += 1
        return True

    def read(self):
        if self.asked:
            after, answer, last = self.asked
            self.asked = None
            # What has been read before may wait.
            self.listed.update(each.name for each in answer if each.name > self.it.position)
            give(self.it, answer, after, last, due=self.due)

    def begin(self):
        each = self.it.next(self.now)
        if each:
            target = each.bucket, each.key
            assert each.name not in self.in_flight
            assert each.name < self.due
            assert each not in self.copied
            assert target not in self.stays
            earlier = self.listed.intersection(self.targets[target])
            assert [name for name in earlier if name < each.name] == []
            self.in_flight[each.name] = each, self.now
        return each

    def settle(self, each, fate, **options):
        _, began = self.in_flight.pop(each.name)
        gone = each.name not in self.events
        if fate == "delivered" and not gone:
            copied(self.it, each, options.get("seconds", self.now - began))
            self.copied.append(each)
            self.delivered.append(each)
        elif fate == "throttled":
            if throttled(self.it, each, self.now):
                self.stays.add((each.bucket, each.key))
        elif gone or fate == "gone":
            self.remove(each)
            pass_over(self.it, each, left=True)
        elif fate == "replaced":
            pass_over(self.it, each, left=False)
            self.stays.add((each.bucket, each.key))
        elif fate == "quarantined":
            self.remove(each)
            fail(self.it, each, refused=True, quarantined=True)
        else:
            fail(self.it, each, **options)
            self.stays.add((each.bucket, each.key))

    def delete(self, each, fate="deleted"):
        self.copied.remove(each)
        if fate == "deleted":
            self.remove(each)
            self.it.release(each)
        elif fate == "replaced":
            self.it.again(each)
        else:
            self.it.block(each)
            self.stays.add((each.bucket, each.key))

    def finish(self, seconds=0.01):
        """Run on until nothing is left to do, with an S3 that takes so long for a copy."""
        for _ in range(100_000):
            self.now += seconds
            while self.begin():
                pass
            for each, _ in list(self.in_flight.values()):
                self.settle(each, "delivered", seconds=seconds)
            for each in list(self.copied):
                self.delete(each)
            self.read()
            if not self.ask() and not self.in_flight and not self.begin():
                return
        raise AssertionError("it goes on for ever")


def spread(count, buckets):
    """Make events for that many buckets in turn."""
    return [event(i, f"b{i % buckets}") for i in range(count)]


def test_many_slow_buckets():
    """Buckets that are slow do not make room for each other in turn, a listing each."""
    folder = Folder()
    folder.put(spread(5_000, 50))
    folder.finish(seconds=1.0)
    assert folder.events == {}
    assert folder.listings < 16


def test_slow_buckets_of_few_targets():
    """What is left out of full queues and of full buckets is read again, and each event once."""
    folder = Folder()
    folder.put(event(i, f"b{i % 3}", f"k{i // 3 % 6}") for i in range(6_000))
    folder.finish(seconds=1.0)
    assert folder.events == {}
    assert len(folder.delivered) == 6_000
    assert folder.listings < 250


def test_reading_ends_though_nothing_may_go():
    """While deletes are refused no copy starts; then reading comes to an end, too."""
    folder = Folder()
    folder.put(spread(5_000, 50))
    for each in iter(folder.begin, None):
        folder.settle(each, "delivered", seconds=1.0)
        if len(folder.copied) == 100:
            break
        folder.ask()
        folder.read()
    while folder.ask():
        folder.read()
    assert folder.listings < 20
    assert folder.it.unfinished


def steps(buckets):
    """Count the steps of Python that 1,500 events take."""
    folder = Folder(32)
    folder.put(spread(1_500, buckets))
    count = 0

    def trace(frame, what, _):
        nonlocal count
        frame.f_trace_opcodes = True
        count += what == "opcode"
        return trace

    before = sys.gettrace()
    going = []
    folder.ask()
    folder.read()
    while folder.names:
        sys.settrace(trace)
        it = folder.it
        wants = it.read_after() is not None
        while each := it.next(0.0):
            going.append(each)
        deliver(it, going[0])
        sys.settrace(before)
        folder.remove(going.pop(0))
        if wants:
            folder.ask()
            folder.read()
    return count


@pytest.mark.slow
def test_five_hundred_buckets():
    """An event takes about as many steps among five hundred buckets as among five."""
    assert steps(500) < 4 * steps(5)


def test_what_is_remembered_is_bounded():
    """A backlog does not grow with what it has done, in whatever order copies end."""
    sizes = []
    rng = random.Random(0)
    for count in (2_000, 8_000):
        folder = Folder()
        folder.put(spread(count, 7))
        while len(folder.events) > 500:
            folder.ask()
            folder.read()
            while folder.begin():
                pass
            each, _ = rng.choice(list(folder.in_flight.values()))
            folder.settle(each, "delivered")
            folder.delete(each)
        sizes.append(len(pickle.dumps(folder.it)))
    assert sizes[1] < 1.1 * sizes[0] < 500_000


BUCKETS = ["a", "b", "c"]
OUTCOMES = st.sampled_from(
    ["delivered"] * 6 + ["slow", "throttled", "gone", "replaced", "refused", "quarantined", "lost"]
)


class AnyInterleaving(RuleBasedStateMachine):
    """Every listed event is delivered or accounted for, once and in order, whatever happens."""

    @initialize(
        counts=st.lists(
            st.tuples(st.sampled_from([0, 3, 200, 1100]), st.sampled_from([1, 5, 10_000])),
            min_size=3,
            max_size=3,
        ),
        expired=st.sampled_from(["", ALL_EXPIRED]),
        page=st.sampled_from([100, 1000]),
    )
    def begin(self, counts, expired, page):
        self.folder = Folder(4, expired, page)
        self.second = 0
        self.folder.due = event(0).name
        self.fresh = itertools.count(10**6)
        self.well = True  # nothing that would shut a bucket
        for number, (bucket, (count, keys)) in enumerate(zip(BUCKETS, counts, strict=True)):
            self.folder.put(event(3 * i + number, bucket, f"k{i % keys}") for i in range(count))

    @rule(seconds=st.sampled_from([0.0, 0.1, 2.0]))
    def wait(self, seconds):
        self.folder.now += seconds

    @rule(seconds=st.sampled_from([1, 30, 300, 1000, 3000]))
    def pass_time(self, seconds):
        self.second += seconds
        self.folder.due = event(self.second).name
        ripen(self.folder.it, self.folder.due)

    @rule()
    def ask(self):
        self.folder.ask()

    @rule()
    def read(self):
        self.folder.read()

    @rule(count=st.sampled_from([1, 20, 100]))
    def go(self, count):
        for _ in range(count):
            if not self.folder.begin():
                break

    @rule(bucket=st.sampled_from([*BUCKETS, ""]), outcome=OUTCOMES)
    def answer(self, bucket, outcome):
        for each, _ in list(self.folder.in_flight.values()):
            if each.bucket.startswith(bucket):
                self.settle(each, outcome)

    def settle(self, each, outcome):
        self.well &= outcome in ("delivered", "slow", "gone", "replaced")
        if outcome == "slow":
            self.folder.settle(each, "delivered", seconds=3.0)
        elif outcome in ("refused", "lost"):
            refused = outcome == "refused"
            self.folder.settle(each, "failed", refused=refused, unanswered=not refused)
        else:
            self.folder.settle(each, outcome)

    @rule(outcome=OUTCOMES, bucket=st.sampled_from(BUCKETS), rounds=st.integers(1, 30))
    def storm(self, outcome, bucket, rounds):
        """Let one bucket answer the same for a while, and others be well."""
        for _ in range(rounds):
            self.folder.now += 0.05
            while self.folder.begin():
                pass
            for each, _ in list(self.folder.in_flight.values()):
                self.settle(each, outcome if each.bucket == bucket else "delivered")
            for each in list(self.folder.copied):
                self.folder.delete(each)
            self.folder.ask()

    @rule(fate=st.sampled_from(["deleted", "deleted", "replaced", "refused"]))
    def delete(self, fate):
        for each in list(self.folder.copied):
            self.folder.delete(each, fate)

    @precondition(lambda self: self.folder.names)
    @rule(share=st.floats(0, 1))
    def cancel(self, share):
        """Let somebody cancel ten events, wherever they are."""
        names = self.folder.names
        for name in names[int(share * (len(names) - 1)) :][:10]:
            self.folder.remove(self.folder.events[name])

    @rule(bucket=st.sampled_from(BUCKETS), count=st.sampled_from([1, 50]))
    def schedule(self, bucket, count):
        """Let somebody schedule events that are newer than all there are."""
        self.folder.put(event(next(self.fresh), bucket) for _ in range(count))

    @rule(bucket=st.sampled_from(BUCKETS), seconds=st.sampled_from([0.5, 10.5, 1000.5]))
    def schedule_soon(self, bucket, seconds):
        """Let somebody schedule an event that falls due soon, maybe among what has been read."""
        self.folder.put([event(self.second + seconds, bucket, "k0")])

    @invariant()
    def bounds(self):
        if hasattr(self, "folder"):
            assert len(self.folder.it.in_flight) == len(self.folder.in_flight) <= 2 * 4
            assert (self.folder.it.waiting + len(self.folder.it.held)) <= 2 * backlog.MAX_BACKLOG

    def teardown(self):
        if not hasattr(self, "folder"):
            return
        self.folder.due = ALL_EXPIRED
        ripen(self.folder.it, ALL_EXPIRED)
        before, count = self.folder.listings, len(self.folder.events)
        self.folder.finish()
        assert self.folder.listings - before <= 20 + count // 10
        waiting = [
            each
            for each in self.folder.events.values()
            if each.name in self.folder.listed and (each.bucket, each.key) not in self.folder.stays
        ]
        assert self.folder.it.unfinished or not waiting
        if self.well:
            assert waiting == []


def test_few_interleavings():
    """Whatever comes and fails in whatever order, every rule holds, and nothing is forgotten."""
    run_state_machine_as_test(
        AnyInterleaving, settings=settings(max_examples=10, stateful_step_count=40)
    )


@pytest.mark.slow
def test_any_interleaving():
    """So it is in as many orders as there is time for."""
    run_state_machine_as_test(
        AnyInterleaving, settings=settings(max_examples=300, stateful_step_count=40)
    )
