"""Any interleaving of what applications, runs, crashes and others do, against a model.

Hypothesis chooses the steps; after each, the history of the fake S3 tells what really happened.
"""

import itertools
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import ClassVar

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from s3_scheduler import NotScheduled, Scheduler, run_due
from support.clock import FakeClock, run_by
from support.fakes3 import Error, FakeS3, Reset
from support.folder import NOW, copies, due_name
from support.folder import name_of as source_of
from support.once import needs_once

MINUTE = timedelta(minutes=1)
minutes = st.integers(0, 3)
keys = st.sampled_from(["a", "b"])
numbers = st.integers(0, 3)  # of an event that waits, the oldest is 0
requests = st.integers(0, 4)
moments = st.sampled_from(["before", "after"])
FAULTS = [
    Error(500, "InternalError"),
    Error(503, "SlowDown"),
    Error(409, "ConditionalRequestConflict"),
    Reset(),
    Reset(after=True),
    Error(403, "AccessDenied"),
]


def name_of(minute, key):
    return due_name(-60 * minute, key)


def due_of(name):
    return datetime.fromisoformat(name.split("/")[1].split("Z")[0] + "+00:00")


def key_of(name):
    return name.split("|")[2]


class Interleaving(RuleBasedStateMachine):
    """Applications that schedule and cancel, and runs that deliver, overlap and die.

    Contents are unique, so that a content tells which call of `schedule` it came from.
    """

    once = False

    def __init__(self):
        super().__init__()
        self.s3 = FakeS3("events", "target").__enter__()
        self.application = self.scheduler("application")
        self.runners = [self.scheduler("runner-1"), self.scheduler("runner-2")]
        self.numbers = itertools.count()
        self.clock = 1  # minutes after NOW
        self.owed = set()  # contents that are to arrive
        self.cancelled = set()  # contents that must never arrive

    def scheduler(self, agent):
        client = self.s3.client(user_agent_extra=f"agent/{agent}", max_pool_connections=4)
        return Scheduler("events", "later", client=client)

    @property
    def now(self):
        return NOW + self.clock * MINUTE

    @property
    def folder(self):
        return {name: obj.content for name, obj in self.s3.buckets["events"].items()}

    @property
    def due(self):
        return [name for name in self.folder if name <= name_of(self.clock, "~")]

    def pick(self, number):
        names = sorted(self.folder)
        return names[number % len(names)] if names else name_of(0, "nothing")

    def new_content(self):
        content = b"%d" % next(self.numbers)
        self.owed.add(content)
        return content

    def run_due(self, runner=0):
        return run_due(self.runners[runner], now=self.now, once=self.once)

    def assert_no_failures(self, report):
        assert report.failed == 0

    def assert_finished(self, report, left):
        # What waits behind a failure, for the same target, is left as well.
        stuck = {failure.event.key for failure in report.failures}
        assert {key_of(name) for name in left} <= stuck
        assert not report.unfinished or stuck

    # What applications do

    @rule(events=st.lists(st.tuples(minutes, keys), min_size=1, max_size=6))
    def schedule(self, events):
        for minute, key in events:
            self.schedule_one(minute, self.key_for(key))

    def key_for(self, key):
        return key

    def schedule_one(self, minute, key):
        self.owed.discard(self.folder.get(name_of(minute, key)))
        name = self.application.schedule(NOW + minute * MINUTE, "target", key, self.new_content())
        assert name == name_of(minute, key)

    @rule(number=numbers)
    def schedule_again(self, number):
        name = self.pick(number)
        self.schedule_one((due_of(name) - NOW) // MINUTE, key_of(name))

    @rule(number=numbers)
    def cancel(self, number):
        name = self.pick(number)
        content = self.folder.get(name)
        assert self.application.cancel(name) == (content is not None)
        self.withdrawn(name, content, self.now)

    def withdrawn(self, name, content, now):
        # One that died in a reschedule may wait under another name, too.
        if content is not None and content not in self.folder.values():
            self.owed.discard(content)
            if due_of(name) > now and content not in self.delivered():
                self.cancelled.add(content)

    def delivered(self):
        return {copy.content for copy in copies(self.s3.history)}

    @rule(number=numbers, minute=minutes)
    def reschedule(self, number, minute):
        name = self.pick(number)
        self.replaced(name, minute)
        if name not in self.folder:
            with pytest.raises(NotScheduled):
                self.application.reschedule(name, NOW + minute * MINUTE)
            return
        content = self.folder[name]
        new = self.application.reschedule(name, NOW + minute * MINUTE)
        assert self.folder[new] == content
        assert new == name or name not in self.folder

    @rule(number=numbers, minute=minutes, requests=st.integers(0, 3), after=st.booleans())
    def reschedule_and_die(self, number, minute, requests, after):
        name = self.pick(number)
        self.replaced(name, minute)
        self.s3.fault = dying("application", requests, after)
        with suppress(NotScheduled, BotoCoreError):
            self.application.reschedule(name, NOW + minute * MINUTE)
        self.s3.fault = lambda request: None

    def replaced(self, name, minute):
        there = self.folder.get(name_of(minute, key_of(name)))
        if name in self.folder and self.folder[name] != there:
            self.owed.discard(there)

    @rule()
    def wait(self):
        self.clock += 1

    # What runs do

    @rule()
    def run(self):
        with self.watched():
            report = self.run_due()
        self.assert_no_failures(report)
        self.assert_finished(report, self.due)

    @rule(number=numbers, seconds=st.integers(1, 119), rewrites=st.booleans())
    def run_ahead(self, number, seconds, rewrites):
        clock, name, early = FakeClock(self.now), self.pick(number), []

        def change():
            if rewrites:
                self.rewrite(name)
            else:
                self.cancel_quietly(name, clock.now())

        def check(request):
            if request.source and due_of(request.source[1]) > clock.now():
                early.append(request.source[1])

        if due_of(name) > self.now + seconds * timedelta(seconds=1):
            clock.at(seconds, change)
        self.s3.before = check
        with self.watched():
            report = run_by(self.runners[0], clock, ahead=120.0, once=self.once)
            self.clock += 2
        self.s3.before = lambda request: None
        assert early == []
        self.assert_no_failures(report)
        self.assert_finished(report, self.due)

    @rule(requests=st.integers(0, 12), after=st.booleans())
    def run_and_die(self, requests, after):
        self.s3.fault = dying("runner-1", requests, after)
        with self.watched(), suppress(BotoCoreError):
            self.run_due()
        self.s3.fault = lambda request: None

    @rule(request=requests, fault=st.sampled_from(FAULTS))
    def run_with_a_fault(self, request, fault):
        left = itertools.count()
        self.s3.fault = lambda met: fault if changes(met) and next(left) == request else None
        with self.watched(), suppress(BotoCoreError, ClientError):
            self.run_due()
        self.s3.fault = lambda request: None

    @rule(number=numbers, request=requests, moment=moments)
    def run_while_one_is_rewritten(self, number, request, moment):
        waited = []

        def rewrite(name):
            waited.extend({name} & self.folder.keys())
            self.rewrite(name)

        report = self.run_while(rewrite, number, request, moment)
        # What replaces an event arrives in the same run, unless it comes after the delete.
        self.assert_finished(report, {*waited} & {*self.due})

    def rewrite(self, name):
        self.owed.discard(self.folder.get(name))
        self.s3.put("events", name, self.new_content())

    @rule(number=numbers, request=requests, moment=moments)
    def run_while_one_is_cancelled(self, number, request, moment):
        self.run_while(lambda name: self.cancel_quietly(name, self.now), number, request, moment)

    def cancel_quietly(self, name, now):
        content = self.folder.get(name)
        if content is not None:
            self.s3.delete("events", name)
            self.withdrawn(name, content, now)

    def run_while(self, act, number, request, moment):
        left = itertools.count()
        name = self.pick(number)

        def hook(met):
            if changes(met) and next(left) == request:
                act(name)

        setattr(self.s3, moment, hook)
        with self.watched():
            report = self.run_due()
        self.s3.before = self.s3.after = lambda request: None
        self.assert_no_failures(report)
        return report

    @rule(seed=st.integers(0, 9), dies=st.booleans(), requests=st.integers(0, 9))
    def runs_overlap(self, seed, dies, requests):
        rng = random.Random(seed)
        self.s3.latency = lambda request: rng.random() / 100
        if dies:
            self.s3.fault = dying("runner-1", requests, after=False)
        with self.watched(alone=False), ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(self.run_due, runner) for runner in range(2)]
        with suppress(BotoCoreError):
            runs[0].result()
        self.assert_no_failures(runs[1].result())
        self.s3.latency, self.s3.fault = 0, lambda request: None

    def watched(self, *, alone=True):
        return Watch(self, alone=alone)

    # What holds in the end

    def teardown(self):
        try:
            self.s3.fault = self.s3.before = self.s3.after = lambda request: None
            self.clock = max(6, self.clock)
            waiting = self.folder
            self.run()
            self.check_end(waiting)
        finally:
            self.s3.__exit__(AssertionError)

    def check_end(self, waiting):
        assert self.folder == {}
        assert self.owed <= self.delivered()
        on_top = {key_of(name): waiting[name] for name in sorted(waiting)}
        arrived = {key: obj.content for key, obj in self.s3.buckets["target"].items()}
        assert {key: arrived[key] for key in on_top} == on_top


class Once(Interleaving):
    """The same with `once`, and each event has a key of its own."""

    once = True

    def key_for(self, key):
        return f"{key}{next(self.numbers)}"

    def assert_no_failures(self, report):
        # Who replaces an event after it was copied comes too late, and is told so.
        assert {failure.error.code for failure in report.failures} <= {"TargetExists"}

    def check_end(self, waiting):
        late = self.folder
        assert self.owed <= self.delivered() | {*late.values()}
        run_due(self.runners[0], now=NOW + timedelta(days=2), once=True)
        quarantined = {
            name.replace("later/", "later/failed/TargetExists/"): late[name] for name in late
        }
        assert self.folder == quarantined


def changes(request):
    return request.operation in ("CopyObject", "DeleteObjects")


def dying(agent, requests, after):
    """Let an agent die with a request: it, if it acts, goes unanswered, and no other acts."""
    left = itertools.count()

    def fault(request):
        if f"agent/{agent}" not in request.headers["user-agent"]:
            return None
        number = next(left)
        return None if number < requests else Reset(after=after and number == requests)

    return fault


class Watch:
    """A run, and what its changes to the buckets may not be."""

    failures: ClassVar = []

    def __init__(self, machine, *, alone):
        self.machine = machine
        self.alone = alone  # no other run overlaps this one

    def __enter__(self):
        self.first = len(self.machine.s3.history)
        self.waiting = self.machine.folder

    def __exit__(self, *_):
        try:
            self.check()
        except AssertionError as error:
            self.failures.append(error)
            raise

    def check(self):
        machine, left = self.machine, set()
        last_minute = name_of(machine.clock, "~")
        for change in machine.s3.history[self.first :]:
            if change.action == "delete":
                left.add(change.key)
            if change not in copies([change]):
                continue
            name = source_of(change)
            assert name <= last_minute, "it is early"
            assert change.content not in machine.cancelled, "it was cancelled"
            earlier = {
                other for other in self.waiting if other < name and key_of(other) == key_of(name)
            }
            assert not self.alone or earlier <= left, "it overtook one that this run listed"
        delivered = [copy.content for copy in copies(machine.s3.history)]
        assert machine.owed <= {*delivered, *machine.folder.values()}, "one is lost"
        if machine.once:
            assert max(Counter(delivered).values(), default=1) == 1, "one is repeated"


def interleave(machine, examples, steps):
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        phases=[phase for phase in settings().phases if phase != Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    Watch.failures.clear()
    try:
        run_state_machine_as_test(machine, settings=options)
    except Flaky as flaky:  # threads have their say, so it may not fail again
        raise (Watch.failures or [AssertionError(str(flaky))])[0] from flaky


def test_interleaving():
    """Whatever is done meanwhile, runs keep their promises.

    What was scheduled and not cancelled arrives, never early. While no other run overlaps,
    targets see due order, and the last content ends on top. What was cancelled before its time
    never arrives. What was replaced in mid-run arrives in the same run.
    """
    interleave(Interleaving, 5, 15)


@needs_once
@pytest.mark.slow
def test_once():
    """With `once`, nothing is repeated either, whatever dies or overlaps.

    Only what replaces an event after its copy fails; it is reported, and whole in failed/ at last.
    """
    interleave(Once, 15, 15)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [Interleaving, pytest.param(Once, marks=needs_once)])
def test_many_interleavings(machine):
    """So it is in many more, and longer, interleavings."""
    interleave(machine, 100, 30)
