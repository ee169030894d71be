"""What this library raises; S3's own answers pass through as botocore raised them.

SchedulerError
├── InvalidEvent (also a ValueError)
├── AlreadyScheduled
├── NotScheduled (also a LookupError)
├── Changed (in `folder`: an event was replaced again and again meanwhile)
├── UnconfirmedAnswer (in `answers`: S3 answered 200 and confirmed nothing)
├── CopyRefused (only as the `error` of a `Failure`)
└── RunFailed (in `report`, beside the report that it carries)
"""


class SchedulerError(Exception):
    """The base of every error of this library."""


class InvalidEvent(SchedulerError, ValueError):
    """A value that cannot form an event; the message says why, and what would be right."""


class AlreadyScheduled(SchedulerError):
    """The same event is already waiting under `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name!r} is already waiting; cancel it first, or leave it as it is"


class NotScheduled(SchedulerError, LookupError):
    """Nothing is waiting under `name`: delivered, cancelled, quarantined, or never scheduled."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"{self.name!r} is not waiting: it was delivered, cancelled or quarantined, or never "
            "scheduled; if it has not arrived and is still wanted, schedule it again"
        )


class CopyRefused(SchedulerError):
    """An event that this library, not S3, refused; `code` is what `failed/` calls it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code

    def __str__(self) -> str:
        return f"{self.code}: {self.args[1]}"
