"""A clock that jumps where a run waits, and a run that is given it."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any

from s3_scheduler.delivery import Delivery
from s3_scheduler.runner import Run

if TYPE_CHECKING:
    from s3_scheduler import Report, Scheduler


class FakeClock:
    """Time stands still while requests are under way, and jumps when nothing is left but to wait.

    So each request acts at the moment of the clock at which it was sent, on any machine.
    """

    def __init__(self, now: datetime) -> None:
        self.began = now
        self.seconds = 0.0  # since then
        self.waits: list[float] = []  # how long each wait was to be
        self._actions: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def elapsed(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return self.began + timedelta(seconds=self.seconds)

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Call something while a run waits, so many seconds after the clock began."""
        heapq.heappush(self._actions, (seconds, next(self._numbers), action))

    def wait(self, timeout: float) -> None:
        assert timeout < TIMEOUT_MAX, "nothing is under way, and nothing would end the wait"
        self.waits.append(timeout)
        end = self.seconds + timeout
        while self._actions and self._actions[0][0] <= end:
            seconds, _, action = heapq.heappop(self._actions)
            self.seconds = max(self.seconds, seconds)
            action()
        self.seconds = end


class FakeQueue(SimpleQueue[Any]):
    """What is done, for which a run waits by a clock that jumps."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.is_busy: Callable[[], object] = lambda: False

    def get(self, *_: Any, **options: Any) -> Any:
        if self.is_busy() or not self.empty():
            return super().get(timeout=60)
        self.clock.wait(options["timeout"])
        raise Empty


def new_run(
    scheduler: Scheduler,
    clock: FakeClock,
    *,
    ahead: float = 0,
    time_limit: float = math.inf,
    once: bool = False,
    target_buckets: Collection[str] | None = None,
    shard: tuple[int, int] = (0, 1),
    stop: Callable[[], bool] | None = None,
) -> Run:
    """Make a run by that clock, in which nothing is ever quarantined; as `run_due`, in seconds."""
    delivery = Delivery(scheduler.folder, "", once, target_buckets, {})
    done = FakeQueue(clock)
    run = Run(clock.began, clock.elapsed, delivery, ahead, time_limit, shard, stop, done)
    done.is_busy = lambda: run.in_flight
    return run


def run_by(scheduler: Scheduler, clock: FakeClock, **options: Any) -> Report:
    """Run to the end by that clock, and report."""
    return new_run(scheduler, clock, **options).work()
