"""What a scheduled function does every minute: deliver what is due."""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX
from typing import Any

from . import names
from .answers import error_code, is_callers_fault, is_throttling, may_have_arrived
from .backlog import Backlog
from .delivery import Copied, Delivery
from .folder import PAGE, Changed, Gone, Page
from .names import Event
from .report import MAX_INVALID_NAMES, Failure, Report
from .scheduler import Scheduler
from .unconfirmed import Unconfirmed

logger = logging.getLogger(__package__)

FIRST_PAGE = 50  # names that a run reads at first: parsing 1,000 takes boto3 60 ms of CPU
POLL = 0.1  # seconds after which a run that waits for S3, or asks `stop`, looks again


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
    - `ahead`: also deliver what falls due within this time, each event at its moment. What is
      scheduled for that time during the run may wait for the next.
    - `time_limit`: no copy starts after it. What is in flight is finished; if it hangs, that takes
      as long as the client's timeouts. None: no limit. In a Lambda:
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
    - `extra_args`: for boto3's `copy_object`: ACL, StorageClass, encryption, ExpectedBucketOwner.
    - `stop`: called between copies and while waiting, in a thread of the run; True ends the run as
      the time limit does. It should only read a flag.

    Ctrl-C, too, finishes what is in flight. Raises `ValueError` for invalid arguments, and S3's
    error if the folder cannot be listed.
    """
    began = datetime.now(timezone.utc) if now is None else names.to_utc(now)
    start = time.monotonic()  # read after the clock, or events would go early by what lies between
    tried_for = math.inf if retry_for is None else _seconds("retry_for", retry_for)
    expired = _bound(scheduler.folder.prefix, began, -tried_for)
    delivery = Delivery(scheduler.folder, expired, once, target_buckets, extra_args or {})
    limit = math.inf if time_limit is None else _seconds("time_limit", time_limit)
    index, count = shard
    if not (isinstance(index, int) and isinstance(count, int) and 0 <= index < count):
        raise ValueError(f"shard {shard!r} does not exist; pass (i, n) with 0 <= i < n")
    ahead = _seconds("ahead", ahead)
    run = Run(began, lambda: time.monotonic() - start, delivery, ahead, limit, shard, stop)
    # In a thread of its own, where no interrupt can fall between a copy and the note of it.
    with ThreadPoolExecutor(1, "s3_scheduler") as coordinator:
        try:
            done = coordinator.submit(run.work)
            while not done.done():
                wait([done], timeout=1)  # at whose end a signal is seen that another thread takes
            return done.result()
        finally:
            run.interrupt()


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


def _bound(prefix: str, began: datetime, seconds: float) -> str:
    """What is due so many seconds after a run began, or earlier, sorts before this."""
    try:
        return names.upper_bound(prefix, began + timedelta(seconds=seconds))
    except OverflowError:
        return names.upper_bound(prefix, None) if seconds > 0 else prefix


@dataclass
class Run:
    """One run. All state belongs to the thread in `work`; the pool's threads only talk to S3."""

    began: datetime
    elapsed: Callable[[], float]  # seconds since then
    delivery: Delivery
    ahead: float
    time_limit: float
    shard: tuple[int, int]
    stop: Callable[[], bool] | None
    done: SimpleQueue[Future[Any] | None] = field(default_factory=SimpleQueue)  # of `in_flight`

    def __post_init__(self) -> None:
        self.folder = self.delivery.folder
        self.end = _bound(self.folder.prefix, self.began, min(self.ahead, self.time_limit))
        self.backlog = Backlog(self.folder.width, self.delivery.expired)
        self.unconfirmed = Unconfirmed()
        self.report = Report()
        self.in_flight: dict[Future[Any], Callable[[Future[Any]], None]] = {}
        self.reading = False

    def interrupt(self) -> None:
        """Start nothing more, and wait for nothing that is not in flight."""
        self.time_limit = 0
        self.done.put(None)

    def work(self) -> Report:
        """Deliver what is due, and report it."""
        # As many again for buckets that hang, and so that no delete waits behind slow copies.
        with ThreadPoolExecutor(2 * self.folder.width + 2, "s3_scheduler") as self.pool:
            try:
                while self._goes_on():
                    self._settle_one()
            finally:
                # If the folder cannot be listed, say, what was copied is deleted all the same.
                self.time_limit = 0
                self.folder.delete_all(self.unconfirmed.take())
                for done in as_completed(self.in_flight):
                    self.in_flight[done](done)
                    self.folder.delete_all(self.unconfirmed.take())
        report = self.report + Report(unfinished=self.backlog.unfinished)
        logger.info("run_due s3://%s/%s %s", self.folder.bucket, self.folder.prefix, report)
        return report

    def _goes_on(self) -> bool:
        """Start all that may start; False if nothing is in flight then, and nothing falls due."""
        if self.stop and self.stop():
            self.time_limit = 0
        self.backlog.ripen(self._is_due)
        self._read()
        self._start_copies()
        self._delete()
        waits = self.backlog.held and not self.unconfirmed.is_full and self._in_time()
        return bool(self.in_flight or waits)

    def _in_time(self) -> bool:
        """Whether another copy may begin."""
        return self.elapsed() < self.time_limit

    def _is_due(self, event: Event) -> bool:
        return self._lateness(event) >= timedelta()

    def _lateness(self, event: Event) -> timedelta:
        """By how much the event is late by now; negative until it is due."""
        return self.began - event.due + timedelta(seconds=self.elapsed())

    def _submit(self, work: Callable[..., Any], settle: Callable[..., None], what: Any) -> None:
        future = self.pool.submit(work, what)
        self.in_flight[future] = partial(settle, what)
        future.add_done_callback(self.done.put)

    def _settle_one(self) -> None:
        """Wait until something is done, or falls due, or for a moment."""
        seconds = POLL if self.in_flight or self.stop else TIMEOUT_MAX
        if self.backlog.held:
            seconds = min(seconds, -self._lateness(self.backlog.held[0]).total_seconds())
        with suppress(Empty):
            if done := self.done.get(timeout=max(0.0, seconds)):
                self.in_flight.pop(done)(done)

    def _read(self) -> None:
        if self.reading or not self._in_time():
            return
        after = self.backlog.read_after()
        if after is not None:
            self.reading = True
            page = partial(self.folder.page, before=self.end, limit=PAGE if after else FIRST_PAGE)
            self._submit(page, self._take_page, after)

    def _take_page(self, after: str, done: Future[Page]) -> None:
        self.reading = False
        page = done.result()
        i, n = self.shard
        mine = (event for event in page.events if names.shard_of(event.bucket, event.key, n) == i)
        invalid = tuple(name for name in page.invalid if name > self.backlog.position)
        self.backlog.take_page(after, page.last, mine, self._is_due)
        for name in invalid[: MAX_INVALID_NAMES - len(self.report.invalid_names)]:
            logger.warning("%r is not the name of an event; it is left alone", name)
        self.report += Report(invalid=len(invalid), invalid_names=invalid)

    def _start_copies(self) -> None:
        deliver = partial(self.delivery.deliver, in_time=self._in_time)
        while self._in_time() and not self.unconfirmed.is_full:
            event = self.backlog.next(self.elapsed())
            if event is None:
                break
            self._submit(deliver, self._settle_copy, event)

    def _settle_copy(self, event: Event, done: Future[Copied | Failure]) -> None:
        outcome, now = done.result(), self.elapsed()
        window, began = self.backlog.end(event)
        if isinstance(outcome, Copied):
            if outcome.before:
                self.report += Report(delivered_before=1)
            else:
                self.report += Report(copied=1, max_lateness=self._lateness(event))
            window.succeed(now - began)
            self.unconfirmed.add(outcome.event, now)
        elif isinstance(outcome.error, Gone):
            self.backlog.release(event)
        elif isinstance(outcome.error, Changed):
            self.report += Report(unfinished=True)
            self.backlog.block(event)
        elif is_throttling(outcome.error) and not window.throttle(now, began):
            self.backlog.again(event)
        else:
            self._fail(outcome)
            if error_code(outcome.error) == "TargetExists":  # the bucket is well
                window.succeed(now - began)
            else:
                window.fail(
                    refused=is_callers_fault(outcome.error),
                    unanswered=may_have_arrived(outcome.error),
                    quarantined=outcome.quarantined,
                )
            (self.backlog.release if outcome.quarantined else self.backlog.block)(event)

    def _fail(self, failure: Failure) -> None:
        fate = "it was moved to failed/" if failure.quarantined else "the next run tries it again"
        logger.error("%r failed, %s: %s", failure.event.name, fate, failure.error)
        self.report += Report(failed=1, failures=(failure,))

    def _delete(self) -> None:
        copied = self.unconfirmed.copied
        awaited = any(map(self.backlog.is_awaited, copied))
        if copied and (awaited or not self.in_flight or self.unconfirmed.is_ripe(self.elapsed())):
            self._submit(self.folder.delete_all, self._settle_delete, self.unconfirmed.take())

    def _settle_delete(self, batch: list[Event], done: Future[dict[str, Exception]]) -> None:
        stuck, errors = 0, done.result()
        for event in batch:
            error = errors.get(event.name)
            if error is None:
                self.backlog.release(event)
            elif isinstance(error, Changed):
                self.backlog.again(error.event)  # what replaced it is delivered, too
            elif is_throttling(error) and 2 * len(errors) <= len(batch) and self._in_time():
                self.unconfirmed.add(event, self.elapsed())  # S3 is busy, but goes on
            else:
                stuck += 1
                self.backlog.block(event)
                self._fail(Failure(event, error, quarantined=False))
        self.unconfirmed.settle(batch, stuck=stuck)
