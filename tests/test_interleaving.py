"""Any interleaving of what applications, runs, crashes and others do, against a model.

Hypothesis chooses the steps; after each, the history of the fake S3 tells what really happened.
"""

import itertools
import random
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
from support.fakes3 import Error, FakeS3, Reset
from support.folder import NOW, due_name

MINUTE = timedelta(minutes=1)
minutes = st.integers(0, 3)
keys = st.sampled_from(["a", "b"])
numbers = st.integers(0, 3)  # of an event that waits, the oldest is 0
requests = st.integers(0, 4)
moments = st.sampled_from(["before", "after"])
FAULTS = [Error(500, "InternalError"), Reset(), Reset(after=True), Error(403, "AccessDenied")]


def name_of(minute, key):
    return due_name(-60 * minute, key)


def due_of(name):
    return datetime.fromisoformat(name.split("/")[1].split("Z")[0] + "+00:00")


class Interleaving(RuleBasedStateMachine):
    """Applications that schedule and cancel, and runs that deliver, overlap and die.

    Contents are unique, so that a content tells which call of `schedule` it came from.
    """

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
        return Scheduler("events", "later", client)

    @property
    def now(self):
        return NOW + self.clock * MINUTE

    @property
    def folder(self):
        return {name: obj.content for name, obj in self.s3.buckets["events"].items()}

    # What applications do

    @rule(events=st.lists(st.tuples(minutes, keys), min_size=1, max_size=6))
    def schedule(self, events):
        for minute, key in events:
            self.schedule_one(minute, key)

    def schedule_one(self, minute, key):
        self.owed.discard(self.folder.get(name_of(minute, key)))
        content = b"%d" % next(self.numbers)
        name = self.application.schedule(NOW + minute * MINUTE, "target", key, content)
        assert name == name_of(minute, key)
        self.owed.add(content)

    @rule(minute=minutes, key=keys)
    def cancel(self, minute, key):
        name = name_of(minute, key)
        content = self.folder.get(name)
        assert self.application.cancel(name) == (content is not None)
        self.withdrawn(minute, content)

    def withdrawn(self, minute, content):
        # One that died in a reschedule may wait under another name, too.
        if content is not None and content not in self.folder.values():
            self.owed.discard(content)
            if minute > self.clock:
                self.cancelled.add(content)

    @rule(minute=minutes, key=keys, other=minutes)
    def reschedule(self, minute, key, other):
        self.replaced(minute, key, other)
        name = name_of(minute, key)
        if name not in self.folder:
            with pytest.raises(NotScheduled):
                self.application.reschedule(name, NOW + other * MINUTE)
            return
        content = self.folder[name]
        new = self.application.reschedule(name, NOW + other * MINUTE)
        assert self.folder[new] == content
        assert new == name or name not in self.folder

    @rule(minute=minutes, key=keys, other=minutes, requests=st.integers(0, 3), after=st.booleans())
    def reschedule_and_die(self, minute, key, other, requests, after):
        self.replaced(minute, key, other)
        self.s3.fault = dying("application", requests, after)
        with suppress(NotScheduled, BotoCoreError):
            self.application.reschedule(name_of(minute, key), NOW + other * MINUTE)
        self.s3.fault = lambda request: None

    def replaced(self, minute, key, other):
        if minute != other and name_of(minute, key) in self.folder:
            self.owed.discard(self.folder.get(name_of(other, key)))

    @rule()
    def wait(self):
        self.clock += 1

    # What runs do

    @rule()
    def run(self):
        with self.watched():
            report = run_due(self.runners[0], now=self.now)
        assert report.failed_count == 0
        assert not report.unfinished
        assert not [name for name in self.folder if name <= name_of(self.clock, "~")]

    @rule(requests=st.integers(0, 12), after=st.booleans())
    def run_and_die(self, requests, after):
        self.s3.fault = dying("runner-1", requests, after)
        with self.watched(), suppress(BotoCoreError):
            run_due(self.runners[0], now=self.now)
        self.s3.fault = lambda request: None

    @rule(request=requests, fault=st.sampled_from(FAULTS))
    def run_with_a_fault(self, request, fault):
        left = itertools.count()
        self.s3.fault = lambda met: fault if changes(met) and next(left) == request else None
        with self.watched(), suppress(BotoCoreError, ClientError):
            run_due(self.runners[0], now=self.now)
        self.s3.fault = lambda request: None

    @rule(number=numbers, request=requests, moment=moments)
    def run_while_one_is_rewritten(self, number, request, moment):
        def rewrite(name):
            self.owed.discard(self.folder.get(name))
            content = b"%d" % next(self.numbers)
            self.s3.put("events", name, content)
            self.owed.add(content)

        self.run_while(rewrite, number, request, moment)

    @rule(number=numbers, request=requests, moment=moments)
    def run_while_one_is_cancelled(self, number, request, moment):
        def cancel(name):
            content = self.folder.get(name)
            if content is not None:
                self.s3.delete("events", name)
                self.withdrawn((due_of(name) - NOW) // MINUTE, content)

        self.run_while(cancel, number, request, moment)

    def run_while(self, act, number, request, moment):
        left = itertools.count()
        names = sorted(self.folder) or [name_of(0, "a")]

        def hook(met):
            if changes(met) and next(left) == request:
                act(names[number % len(names)])

        setattr(self.s3, moment, hook)
        with self.watched():
            report = run_due(self.runners[0], now=self.now)
        self.s3.before = self.s3.after = lambda request: None
        assert report.failed_count == 0

    @rule(seed=st.integers(0, 9), dies=st.booleans(), requests=st.integers(0, 9))
    def runs_overlap(self, seed, dies, requests):
        rng = random.Random(seed)
        self.s3.latency = lambda request: rng.random() / 100
        if dies:
            self.s3.fault = dying("runner-1", requests, after=False)
        with self.watched(alone=False), ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(run_due, runner, now=self.now) for runner in self.runners]
        with suppress(BotoCoreError):
            runs[0].result()
        assert runs[1].result().failed_count == 0
        self.s3.latency, self.s3.fault = 0, lambda request: None

    def watched(self, *, alone=True):
        return Watch(self, alone=alone)

    # What holds in the end

    def teardown(self):
        try:
            self.s3.fault = self.s3.before = self.s3.after = lambda request: None
            self.clock = 6
            waiting = self.folder
            self.run()
            assert self.folder == {}
            delivered = {c.content for c in self.s3.history if delivers(c)}
            assert self.owed <= delivered
            on_top = {name.split("|")[2]: waiting[name] for name in sorted(waiting)}
            arrived = {key: obj.content for key, obj in self.s3.buckets["target"].items()}
            assert {key: arrived[key] for key in on_top} == on_top
        finally:
            self.s3.__exit__(AssertionError)


def changes(request):
    return request.operation in ("CopyObject", "DeleteObjects")


def delivers(change):
    return change.action == "copy" and change.bucket == "target"


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
        machine, left, copied = self.machine, set(), {}
        last_minute = name_of(machine.clock, "~")
        for change in machine.s3.history[self.first :]:
            if change.action == "delete":
                left.add(change.key)
            if not delivers(change):
                continue
            name = change.source[1]
            copied[name] = change.content
            assert name <= last_minute, "it is early"
            assert change.content not in machine.cancelled, "it was cancelled"
            earlier = {
                other
                for other in self.waiting
                if other < name and other.split("|")[2] == name.split("|")[2]
            }
            assert not self.alone or earlier <= left, "it overtook one that this run listed"
        here_or_there = {c.content for c in machine.s3.history if delivers(c)}
        here_or_there |= set(machine.folder.values())
        assert machine.owed <= here_or_there, "one is lost"


def interleave(examples, steps):
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        phases=[phase for phase in settings().phases if phase != Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    Watch.failures.clear()
    try:
        run_state_machine_as_test(Interleaving, settings=options)
    except Flaky as flaky:  # threads have their say, so it may not fail again
        raise (Watch.failures or [AssertionError(str(flaky))])[0] from flaky


def test_interleaving():
    """Whatever is done meanwhile, runs keep their promises.

    What was scheduled and not cancelled arrives, never early. While no other run overlaps,
    targets see due order, and the last content ends on top. What was cancelled before its time
    never arrives.
    """
    interleave(25, 20)


@pytest.mark.slow
def test_many_interleavings():
    """So it is in many more, and longer, interleavings."""
    interleave(100, 30)
