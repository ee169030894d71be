"""What a run did."""

import logging
from dataclasses import dataclass
from datetime import timedelta

from .errors import SchedulerError
from .names import Event

logger = logging.getLogger(__package__)

MAX_FAILURES = 1_000
MAX_INVALID_NAMES = 100


@dataclass(frozen=True)
class Failure:
    """An event that a run could not deliver, or not delete after its delivery."""

    event: Event
    error: Exception  # what stopped it: a botocore ClientError if it was an answer of S3
    quarantined: bool  # True: it was moved to `failed/`. False: it stays, to be tried again


@dataclass(frozen=True)
class Report:
    """What a run did."""

    copied: int  # copies that S3 confirmed, whether or not their originals are deleted
    delivered_before: int  # with `once`: what an earlier run had delivered but not deleted
    failed: int  # events that failed
    failures: tuple[Failure, ...]  # the first thousand of them
    invalid: int  # names that sort before now and are not events; they are left alone
    invalid_names: tuple[str, ...]  # the first hundred of them
    unfinished: bool  # due events were left for the next run
    max_lateness: timedelta  # the greatest, when S3 confirmed the copy; zero if none

    def __str__(self) -> str:
        return (
            f"copied {self.copied} delivered_before {self.delivered_before} failed {self.failed} "
            f"invalid {self.invalid} unfinished {self.unfinished:d} "
            f"max_lateness {self.max_lateness.total_seconds():.3f}"
        )

    def raise_for_failures(self) -> None:
        """Raise `RunFailed`, which carries this report, if anything failed: it alarms somebody."""
        if self.failed:
            raise RunFailed(self)


class RunFailed(SchedulerError):
    """Events of a run failed; `report` is that run's whole report."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        first = self.report.failures[0]
        return f"{self.report.failed} failed, the first is {first.event.name!r}: {first.error}"


class Tally:
    """Counts what a run does, and logs what somebody should see at once."""

    def __init__(self) -> None:
        self.copied = 0
        self.delivered_before = 0
        self.failed = 0
        self.failures: list[Failure] = []
        self.invalid = 0
        self.invalid_names: list[str] = []
        self.max_lateness = timedelta()

    def add_copy(self, lateness: timedelta) -> None:
        """A copy was confirmed, so late."""
        self.copied += 1
        self.max_lateness = max(self.max_lateness, lateness)

    def add_failure(self, failure: Failure) -> None:
        """An event failed."""
        self.failed += 1
        if self.failed <= MAX_FAILURES:
            self.failures.append(failure)
        fate = "it was moved to failed/" if failure.quarantined else "the next run tries it again"
        logger.error("%r failed, %s: %s", failure.event.name, fate, failure.error)

    def add_invalid(self, name: str) -> None:
        """A name does not parse as an event."""
        self.invalid += 1
        if self.invalid <= MAX_INVALID_NAMES:
            self.invalid_names.append(name)
            logger.warning("%r is not the name of an event; it is left alone", name)

    def report(self, *, unfinished: bool) -> Report:
        """What was counted."""
        lists = {"failures": tuple(self.failures), "invalid_names": tuple(self.invalid_names)}
        return Report(**{**vars(self), **lists, "unfinished": unfinished})
