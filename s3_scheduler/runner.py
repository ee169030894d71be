"""What a scheduled function does every minute: deliver what is due."""

import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from . import names
from .answers import error_code, is_callers_fault, is_throttling, may_have_arrived
from .backlog import Backlog
from .clock import Clock
from .delivery import Copied, Delivery
from .folder import PAGE, Changed, Gone, Page
from .names import Event
from .report import MAX_INVALID_NAMES, Failure, Report
from .scheduler import Scheduler
from .unconfirmed import Unconfirmed
from .window import SILENCE

T = TypeVar("T")

logger = logging.getLogger(__package__)

FIRST_PAGE = 50  # names that a run reads at first: parsing 1,000 takes boto3 60 ms of CPU
POLL = 0.1  # seconds between two questions to `stop` while a run waits


def run_due(
    scheduler: Scheduler,
    *,
    now: datetime | None = None,
    ahead: float | timedelta = 0,
    time_limit: float | timedelta | None = None,
    retry_for: float | timedelta | None = timedelta(days=1),
    once: bool = False,
    target_buckets: Collection[str] | None = None,
    shard: tuple[int, int] = (0, 1),
    extra_args: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Report:
    """Copy every event that is due to its target, then delete it; oldest first.

    At least once: a run that dies, or overlaps another, may deliver again what is between its copy
    and its delete. In order for each target. No event, and no bucket, that fails stops another.

    Durations are seconds or a timedelta.

    - `now`: aware; None: the clock.
    - `ahead`: also deliver what falls due within this time, each event at its moment, but not what
      is scheduled meanwhile.
    - `time_limit`: no copy starts after it, and what is in flight is finished, which takes as long
      as the client's timeouts if it hangs. None: no limit. In a Lambda:
      `context.get_remaining_time_in_millis() / 1000 - 10`.
    - `retry_for`: how long after its due time an event is tried before it is moved to `failed/`, if
      the fault is its own (no such bucket, access denied); None: for ever.
    - `once`: copy only to keys that do not exist yet, so that nothing is delivered twice if each
      event has a key of its own and the consumer leaves the object there. What is there counts as
      delivered before if it has the event's ETag (its size, for objects in parts or encrypted by
      KMS); else it stays, and the event fails. Needs boto3 1.40.65, an S3 that honours
      If-None-Match on copies, and `s3:GetObject` on the targets.
    - `target_buckets`: an event for any other bucket fails; None: any bucket.
    - `shard`: `(i, n)`: of n runners at work at once, this one takes the i-th share (0 to n - 1) of
      the targets. The same target always falls to the same share.
    - `extra_args`: for the copies, as for boto3's `copy_object`: ACL, StorageClass, encryption,
      ExpectedBucketOwner.
    - `stop`: called between copies and while waiting, in a thread of the run; True ends the run as
      the time limit does. It should only read a flag.

    Raises `ValueError` for arguments that are invalid, and S3's error if the folder cannot be
    listed. Ctrl-C, too, finishes what is in flight.
    """
    clock = Clock(datetime.now(timezone.utc) if now is None else names.to_utc(now))
    expired = ""
    if retry_for is not None:
        last = clock.moment(-_seconds("retry_for", retry_for))
        expired = names.upper_bound(scheduler.folder.prefix, last)
    delivery = Delivery(scheduler.folder, expired, once, target_buckets, extra_args or {})
    limit = None if time_limit is None else _seconds("time_limit", time_limit)
    index, count = shard
    if not (isinstance(index, int) and isinstance(count, int) and 0 <= index < count):
        raise ValueError(f"shard {shard!r} does not exist; pass (i, n) with 0 <= i < n")
    run = Run(clock, delivery, _seconds("ahead", ahead), limit, shard, stop)
    # In a thread of its own, where no interrupt can fall between a copy and the note of it.
    with ThreadPoolExecutor(1, "s3_scheduler") as coordinator:
        try:
            done = coordinator.submit(run.work)
            # Not in one wait: a signal that another thread takes would be seen only at its end.
            while not wait([done], timeout=1).done:
                pass
            return done.result()
        except BaseException:
            run.interrupt()
            raise


def _seconds(name: str, duration: float | timedelta) -> float:
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(seconds, int | float) and seconds <= 0 and name == "time_limit":
        raise ValueError(
            f"time_limit {duration!r} leaves no time for any copy; give the run more seconds, "
            "in a Lambda by a longer timeout of the function, or pass None for no limit"
        )
    if not (isinstance(seconds, int | float) and seconds >= 0):
        raise ValueError(f"{name} {duration!r} is not a duration; pass seconds or a timedelta")
    return float(seconds)


@dataclass
class Run:
    """One run. All state belongs to the thread in `work`; the pool's threads only talk to S3."""

    clock: Clock
    delivery: Delivery
    ahead: float
    time_limit: float | None
    shard: tuple[int, int]
    stop: Callable[[], bool] | None

    def __post_init__(self) -> None:
        self.folder = self.delivery.folder
        last = self.clock.moment(min(self.ahead, self.time_limit or self.ahead))
        self.bound = names.upper_bound(self.folder.prefix, last)
        self.reading = False
        self.backlog = Backlog(self.folder.width, self.delivery.expired)
        self.unconfirmed = Unconfirmed()
        self.report = Report()
        self.in_flight = 0
        self.done: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.stopped = False

    def interrupt(self) -> None:
        """Start nothing more, and wait for nothing that is not in flight."""
        self.stopped = True
        self.done.put(None)

    def work(self) -> Report:
        """Deliver what is due, and report it."""
        # As many again for buckets that hang, and so that no delete waits behind slow copies.
        with ThreadPoolExecutor(2 * self.folder.width + 2, "s3_scheduler") as self.pool:
            try:
                while self._goes_on():
                    self._settle_one()
            except BaseException:
                # The folder cannot be listed, say. What was copied is deleted all the same.
                self.stopped = True
                while self.in_flight or self.unconfirmed.copied:
                    self.folder.delete_all(self.unconfirmed.take())
                    if self.in_flight:
                        self._settle_one()
                raise
        report = self.report + Report(unfinished=self.backlog.unfinished)
        logger.info("run_due s3://%s/%s %s", self.folder.bucket, self.folder.prefix, report)
        return report

    def _goes_on(self) -> bool:
        """Start all that may start; False if nothing is in flight then, and nothing falls due."""
        self.backlog.ripen(self._due())
        awaited = any(map(self.backlog.is_awaited, self.unconfirmed.copied))
        if awaited or self.unconfirmed.wait(self.clock.elapsed()) == 0:
            self._delete()
        self._read()
        self._start_copies()
        if not self.in_flight and self.unconfirmed.copied:
            self._delete()
        waits = self.backlog.next_held and not self.unconfirmed.is_full and self._may_begin()
        return bool(self.in_flight or waits)

    def _submit(self, work: Callable[[], T], settle: Callable[[Future[T]], None]) -> None:
        future = self.pool.submit(work)
        self.in_flight += 1
        future.add_done_callback(lambda done: self.done.put(partial(settle, done)))

    def _settle_one(self) -> None:
        """Wait until something is done, or has to be."""
        with suppress(Empty):
            if settle := self.clock.get(self.done, self._patience()):
                self.in_flight -= 1
                settle()

    def _patience(self) -> float | None:
        """For how many seconds there is nothing to do but wait; None: until something is done."""
        waits = [self.unconfirmed.wait(self.clock.elapsed())]
        if self.stop and not self.stopped:
            waits.append(POLL)
        if self.backlog.in_flight and len(self.backlog):
            waits.append(SILENCE / 2)  # a bucket may fall silent, and others go instead
        if (held := self.backlog.next_held) and self._in_time():
            due = names.listed_due(self.folder.prefix, held)
            waits.append(max(0.0, (due - self.clock.now()).total_seconds()))
        return min((wait for wait in waits if wait is not None), default=None)

    def _may_begin(self) -> bool:
        """Whether there is time for another copy; asks `stop`."""
        if self.stop and not self.stopped:
            self.stopped = bool(self.stop())
        return self._in_time()

    def _in_time(self) -> bool:
        in_time = self.time_limit is None or self.clock.elapsed() < self.time_limit
        return in_time and not self.stopped

    # Listing

    def _due(self) -> str:
        """What is due now sorts before this."""
        return names.upper_bound(self.folder.prefix, self.clock.now())

    def _read(self) -> None:
        if self.reading or not self._may_begin():
            return
        after = self.backlog.read_after()
        if after is not None:
            self.reading = True
            limit = PAGE if after else FIRST_PAGE
            work = partial(self.folder.page, after, self.bound, limit=limit)
            self._submit(work, partial(self._take_page, after))

    def _take_page(self, after: str, done: Future[Page]) -> None:
        self.reading = False
        page = done.result()
        index, shards = self.shard
        mine = (
            event
            for event in page.events
            if shards == 1 or names.shard_of(event.bucket, event.key, shards) == index
        )
        if self.backlog.take_page(after, page.last, mine, self._due()):
            for name in page.invalid[: MAX_INVALID_NAMES - len(self.report.invalid_names)]:
                logger.warning("%r is not the name of an event; it is left alone", name)
            self.report += Report(invalid=len(page.invalid), invalid_names=tuple(page.invalid))

    # Copying

    def _start_copies(self) -> None:
        while self._may_begin() and not self.unconfirmed.is_full:
            began = self.clock.elapsed()
            event = self.backlog.next(began)
            if event is None:
                break
            work = partial(self.delivery.deliver, event, self._in_time)
            self._submit(work, partial(self._settle_copy, event, began))

    def _settle_copy(self, event: Event, began: float, done: Future[Copied | Failure]) -> None:
        outcome, now = done.result(), self.clock.elapsed()
        if isinstance(outcome, Copied):
            if outcome.before:
                self.report += Report(delivered_before=1)
            else:
                self.report += Report(copied=1, max_lateness=self.clock.now() - event.due)
            self.backlog.delivered(event, now, now - began)
            self.unconfirmed.add(outcome.event, now)
        elif isinstance(outcome.error, Gone | Changed):
            gone = isinstance(outcome.error, Gone)
            self.report += Report(unfinished=not gone)
            self.backlog.passed_over(event, now, left=gone)
        elif is_throttling(outcome.error):
            if self.backlog.throttled(event, now, began):
                self._fail(outcome)
        else:
            self._fail(outcome)
            self.backlog.failed(
                event,
                now,
                refused=is_callers_fault(outcome.error),
                unanswered=may_have_arrived(outcome.error),
                quarantined=outcome.quarantined,
                healthy=error_code(outcome.error) == "TargetExists",
            )

    def _fail(self, failure: Failure) -> None:
        fate = "it was moved to failed/" if failure.quarantined else "the next run tries it again"
        logger.error("%r failed, %s: %s", failure.event.name, fate, failure.error)
        self.report += Report(failed=1, failures=(failure,))

    # Deleting

    def _delete(self) -> None:
        batch = self.unconfirmed.take()
        self._submit(partial(self.folder.delete_all, batch), partial(self._settle_delete, batch))

    def _settle_delete(self, batch: list[Event], done: Future[dict[str, Exception]]) -> None:
        stuck, errors = 0, done.result()
        for event in batch:
            error = errors.get(event.name)
            if error is None:
                self.backlog.release(event)
            elif isinstance(error, Changed):
                self.backlog.again(error.event)  # what replaced it is delivered, too
            elif is_throttling(error) and 2 * len(errors) <= len(batch) and self._in_time():
                self.unconfirmed.add(event, self.clock.elapsed())  # S3 is busy, but goes on
            else:
                stuck += 1
                self.backlog.block(event)
                self._fail(Failure(event, error, quarantined=False))
        self.unconfirmed.settle(batch, stuck=stuck)
