"""What a scheduled function does every minute: deliver what is due."""

from __future__ import annotations

import logging
import operator
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime, timedelta, timezone
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError, HTTPClientError

from . import names
from .backlog import Backlog
from .delivery import Delivery
from .errors import InvalidEvent
from .objects import CHANGED, error_code
from .report import Failure, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef, ObjectTypeDef

    from .delivery import Outcome
    from .names import Event
    from .scheduler import Scheduler

logger = logging.getLogger(__name__)

PLACES = 100
"""Events that may be copied and not confirmed deleted: those a killed run delivers twice."""
BATCH = 50
"""Events for one DeleteObjects: half of PLACES, so that as many are copied meanwhile."""
PATIENCE = 1.0
"""Seconds for which a copied event waits for others to be deleted with."""
REPORTED_FAILURES = 1_000
REPORTED_INVALID = 100


def run_due(
    scheduler: Scheduler,
    *,
    now: datetime | None = None,
    time_limit: float | None = None,
    retry_for: timedelta | None = timedelta(days=1),
    target_buckets: Collection[str] | None = None,
    shard: tuple[int, int] = (0, 1),
    extra_args: Mapping[str, Any] | None = None,
) -> Report:
    """Copy every event that is due to its target, then delete it; oldest first.

    At least once: a run that dies, or overlaps another, may deliver again what is between its copy
    and its delete. In order for each target. A failed event stops no other.

    `now` is aware; None: the clock. `time_limit`, in seconds: no copy starts after it, and what is
    in flight is finished (a hung request can outlast it by the client's time-outs); None: no limit.
    `retry_for`: how long after its due time an event is tried before it is moved to `failed/`, if
    S3 called the failure the caller's fault; None: for ever. `target_buckets`: an event for any
    other bucket fails; None: any bucket. `shard=(i, n)`: of n runners at work at once, this one
    takes the i-th share (0 to n - 1) of the targets. `extra_args` is for the copies, as boto3's
    `ExtraArgs`: ACL, StorageClass, encryption, ExpectedBucketOwner.

    Raises `InvalidEvent` for a naive `now`, a `time_limit` that leaves no time, a shard that does
    not exist, and other arguments that cannot be meant; and what S3 answers if the folder cannot be
    listed. Ctrl-C, too, finishes and cleans up what is in flight.
    """
    started = time.monotonic()
    _refuse_misunderstandings(time_limit, retry_for, target_buckets, shard, extra_args or {})
    moment = datetime.now(timezone.utc) if now is None else names.to_utc(now)
    delivery = Delivery(
        scheduler.client,
        scheduler.bucket,
        scheduler.prefix,
        moment,
        retry_for,
        None if target_buckets is None else frozenset(target_buckets),
        extra_args or {},
    )
    run = _Run(delivery, started, time_limit, shard)
    # In a thread of its own, where no interrupt can fall between a copy and the note of it.
    with ThreadPoolExecutor(1, "s3_scheduler") as coordinator:
        try:
            done = coordinator.submit(run.work)
            # Not in one wait: a signal that another thread takes would be seen only at its end.
            while not wait([done], timeout=1).done:
                pass
            return done.result()
        except BaseException:
            run.stopping = True
            raise


def _refuse_misunderstandings(
    time_limit: float | None,
    retry_for: timedelta | None,
    target_buckets: Collection[str] | None,
    shard: tuple[int, int],
    extra_args: Mapping[str, Any],
) -> None:
    if not (time_limit is None or time_limit > 0):
        raise InvalidEvent(
            f"time_limit {time_limit!r} leaves no time for any copy; give the run more seconds, "
            "in a Lambda by a longer time-out of the function, or pass None for no limit"
        )
    if not (retry_for is None or isinstance(retry_for, timedelta)):
        raise InvalidEvent(
            f"retry_for {retry_for!r} is not a timedelta; pass one, such as timedelta(days=1), "
            "or None for ever"
        )
    if isinstance(target_buckets, str):
        raise InvalidEvent(
            f"target_buckets {target_buckets!r} is one name, and would be taken letter by letter; "
            f"pass a collection, such as {[target_buckets]!r}"
        )
    if not 0 <= shard[0] < shard[1]:
        raise InvalidEvent(f"shard {shard!r} does not exist; pass (i, n) with 0 <= i < n")
    for argument in extra_args:
        if argument.startswith(("If", "CopySourceIf")):
            raise InvalidEvent(
                f"{argument} in extra_args would be taken for a change of the event; leave it out, "
                "for the run makes the conditions that it needs"
            )


class _Run:
    """One run. All state belongs to the thread in `work`; the pool's threads only talk to S3."""

    def __init__(
        self,
        delivery: Delivery,
        started: float,
        time_limit: float | None,
        shard: tuple[int, int],
    ) -> None:
        self.started = started
        self.delivery = delivery
        self.time_limit = time_limit
        self.shard = operator.index(shard[0]), operator.index(shard[1])
        self.stopping = False
        # botocore's stubs do not know the attributes of its Config.
        config: Any = delivery.client.meta.config
        self.width: int = config.max_pool_connections

        self.bound = names.end(delivery.prefix, delivery.now)
        self.pages: Iterator[ListObjectsV2OutputTypeDef] = iter(
            delivery.client.get_paginator("list_objects_v2").paginate(
                Bucket=delivery.bucket, Prefix=delivery.prefix
            )
        )
        self.listing = False
        self.listed = False
        self.list_error: BaseException | None = None

        self.done: SimpleQueue[tuple[Callable[..., None], Future[Any], tuple[Any, ...]]] = (
            SimpleQueue()
        )
        self.in_flight = 0
        self.backlog = Backlog()
        self.copied: list[Event] = []  # to be deleted
        self.copied_since = 0.0
        self.deleting = 0
        self.stuck = 0  # places that are not free again in this run

        self.confirmed = 0
        self.failures: list[Failure] = []
        self.failed_count = 0
        self.invalid: list[str] = []
        self.invalid_count = 0
        self.changed = False  # an event was replaced: its new content waits for the next run
        self.max_delay = timedelta()

    def work(self) -> Report:
        # One thread more than copies, so that no delete waits behind slow ones.
        with ThreadPoolExecutor(self.width + 1, "s3_scheduler") as self.pool:
            try:
                self._deliver()
            except BaseException:
                # No more threads can be had, say. What was copied is deleted all the same.
                while self.in_flight or self.copied:
                    batch, self.copied = self.copied, []
                    self.delivery.delete(batch)
                    if self.in_flight:
                        self._settle_one()
                raise
        if self.list_error:
            raise self.list_error
        report = Report(
            copied=self.confirmed,
            failed=tuple(self.failures),
            failed_count=self.failed_count,
            invalid=tuple(self.invalid),
            invalid_count=self.invalid_count,
            unfinished=self.changed
            or self.backlog.left_out
            or bool(self.backlog)
            or not self.listed,
            max_delay=self.max_delay,
        )
        logger.info(
            "run_due s3://%s/%s copied %d failed %d invalid %d unfinished %d max_delay %.3f",
            self.delivery.bucket,
            self.delivery.prefix,
            report.copied,
            report.failed_count,
            report.invalid_count,
            report.unfinished,
            report.max_delay.total_seconds(),
        )
        return report

    def _deliver(self) -> None:
        while True:
            if self._delete_is_due():
                self._delete_copied()
            self._read_on()
            self._copy_on()
            if not self.in_flight:
                if not self.copied:
                    break
                self._delete_copied()
            self._settle_one()

    def _submit(self, work: Callable[..., Any], settle: Callable[..., None], *args: Any) -> None:
        future = self.pool.submit(work, *args)
        self.in_flight += 1
        future.add_done_callback(lambda done: self.done.put((settle, done, args)))

    def _settle_one(self) -> None:
        patience = None
        if self.copied:
            patience = max(0.0, self.copied_since + PATIENCE - time.monotonic())
        try:
            settle, future, args = self.done.get(timeout=patience)
        except Empty:
            return
        self.in_flight -= 1
        settle(future, *args)

    def _may_begin(self) -> bool:
        in_time = self.time_limit is None or time.monotonic() - self.started < self.time_limit
        return in_time and not self.stopping and self._held() < PLACES

    def _held(self) -> int:
        return len(self.copied) + self.deleting + self.stuck

    # Listing

    def _read_on(self) -> None:
        enough = self.backlog.ready >= 4 * self.width
        if not (self.listed or self.listing or enough) and self._may_begin():
            self.listing = True
            self._submit(self._next_page, self._take_page)

    def _next_page(self) -> ListObjectsV2OutputTypeDef:
        return next(self.pages)

    def _take_page(self, page: Future[ListObjectsV2OutputTypeDef]) -> None:
        self.listing = False
        self.list_error = page.exception()
        if self.list_error:
            self.stopping = True
            return
        self.listed = not page.result().get("IsTruncated")
        for entry in page.result().get("Contents", ()):
            if entry["Key"] >= self.bound:
                self.listed = True
                break
            # Consoles make an object for the folder itself.
            if entry["Key"] != self.delivery.prefix:
                self._take(entry)

    def _take(self, entry: ObjectTypeDef) -> None:
        try:
            event = names.event_from(self.delivery.prefix, entry)
        except InvalidEvent as error:
            self.invalid_count += 1
            if self.invalid_count <= REPORTED_INVALID:
                self.invalid.append(entry["Key"])
                logger.warning("%s; it is left alone", error)
            return
        index, shards = self.shard
        if shards == 1 or names.share(event.bucket, event.key, shards) == index:
            self.backlog.add(event)

    # Copying

    def _copy_on(self) -> None:
        while self.backlog.ready and self.in_flight < self.width and self._may_begin():
            self._submit(self.delivery.copy, self._settle_copy, self.backlog.pop())

    def _settle_copy(self, done: Future[Outcome], event: Event) -> None:
        outcome = done.result()
        if outcome == "copied":
            self.confirmed += 1
            elapsed = timedelta(seconds=time.monotonic() - self.started)
            self.max_delay = max(self.max_delay, elapsed + (self.delivery.now - event.due))
            if not self.copied:
                self.copied_since = time.monotonic()
            self.copied.append(event)
        elif outcome == "gone":
            self.backlog.release(event)
        elif outcome == "changed":
            self.backlog.block(event)
            self.changed = True
        else:
            self.backlog.block(event)
            self._fail(outcome)
            self.stuck += _may_have_arrived(outcome.error)

    def _fail(self, failure: Failure) -> None:
        self.failed_count += 1
        if self.failed_count <= REPORTED_FAILURES:
            self.failures.append(failure)
        fate = "it was moved to failed/" if failure.quarantined else "the next run tries it again"
        logger.error("%r failed, %s: %s", failure.event.name, fate, failure.error)

    # Deleting

    def _delete_is_due(self) -> bool:
        return bool(self.copied) and (
            len(self.copied) >= BATCH
            or (self._held() >= PLACES and not self.deleting)
            or time.monotonic() - self.copied_since >= PATIENCE
            or any(self.backlog.is_awaited(event) for event in self.copied)
        )

    def _delete_copied(self) -> None:
        batch, self.copied = self.copied, []
        self.deleting += len(batch)
        self._submit(self.delivery.delete, self._settle_delete, batch)

    def _settle_delete(self, done: Future[dict[str, Exception]], batch: list[Event]) -> None:
        errors = done.result()
        self.deleting -= len(batch)
        for event in batch:
            error = errors.get(event.name)
            if error is None:
                self.backlog.release(event)
                continue
            self.backlog.block(event)
            self.stuck += 1
            if error_code(error) in CHANGED:
                self.changed = True
            else:
                self._fail(Failure(event, error, quarantined=False))


def _may_have_arrived(error: Exception) -> bool:
    """Whether what failed may have been copied, and will be copied again."""
    if isinstance(error, ClientError):
        # Newer versions of boto3 set the tags of a copy in parts when it has arrived.
        return error.operation_name == "PutObjectTagging"
    return isinstance(error, HTTPClientError)  # sent, and not answered
