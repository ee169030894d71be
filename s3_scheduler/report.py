"""What a run did."""

from dataclasses import dataclass
from datetime import timedelta

from .errors import SchedulerError
from .names import Event

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

    copied: int = 0  # copies that S3 confirmed, whether or not their originals are deleted
    delivered_before: int = 0  # with `once`: what an earlier run had delivered but not deleted
    failed: int = 0  # events that failed
    failures: tuple[Failure, ...] = ()  # the first thousand of them
    invalid: int = 0  # names that sort before now and are not events; they are left alone
    invalid_names: tuple[str, ...] = ()  # the first hundred of them
    unfinished: bool = False  # due events were left for the next run
    max_lateness: timedelta = timedelta()  # the greatest, when S3 confirmed the copy; zero if none

    def __add__(self, other: "Report") -> "Report":
        return Report(
            copied=self.copied + other.copied,
            delivered_before=self.delivered_before + other.delivered_before,
            failed=self.failed + other.failed,
            failures=(self.failures + other.failures)[:MAX_FAILURES],
            invalid=self.invalid + other.invalid,
            invalid_names=(self.invalid_names + other.invalid_names)[:MAX_INVALID_NAMES],
            unfinished=self.unfinished or other.unfinished,
            max_lateness=max(self.max_lateness, other.max_lateness),
        )

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
