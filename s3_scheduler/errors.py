"""What this library raises; S3's own answers pass through as botocore raised them.

SchedulerError
├── InvalidEvent (also a ValueError)
├── AlreadyScheduled
├── NotScheduled (also a LookupError)
└── RunFailed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import Report


class SchedulerError(Exception):
    """The base of every error of this library."""


class InvalidEvent(SchedulerError, ValueError):
    """No event can be made of a value; the message says which, and what would be right."""


class AlreadyScheduled(SchedulerError):
    """`schedule(…, replace=False)` found the same event waiting, under `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name!r} is already scheduled; cancel it first, or let it be replaced"


class NotScheduled(SchedulerError, LookupError):
    """`reschedule` found nothing waiting under `name`: delivered, cancelled, or never scheduled."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"{self.name!r} is not waiting: it was delivered or cancelled, or never scheduled; "
            "if it has not arrived and is still wanted, schedule it anew"
        )


class RunFailed(SchedulerError):
    """Events of a run failed; `report` is that run's whole report."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        count, first = self.report.failed_count, self.report.failed[0]
        events = "event" if count == 1 else "events"
        return f"{count} {events} failed, the first is {first.event.name!r}: {first.error}"
