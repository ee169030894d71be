"""S3 as a scheduler for one-time events: an object's name says when it is due, and where.

    later/2030-01-31T09:00:00.000000Z|shop-emails|welcome/42.json
    ----- --------------------------- ----------- ---------------
    folder        due, UTC            target bucket  target key

`Scheduler` writes, cancels, moves and lists such objects. `run_due`, called every minute, copies
those whose time has come to their targets and deletes the originals.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import AlreadyScheduled, InvalidEvent, NotScheduled, SchedulerError
from .names import Event
from .report import Failure, Report, RunFailed

if TYPE_CHECKING:
    from .runner import run_due
    from .scheduler import Scheduler

__all__ = [
    "AlreadyScheduled",
    "Event",
    "Failure",
    "InvalidEvent",
    "NotScheduled",
    "Report",
    "RunFailed",
    "Scheduler",
    "SchedulerError",
    "run_due",
]


def __getattr__(name: str) -> Any:
    # On first use, for boto3 takes 0.4 s to import, and `s3-scheduler --help` does without.
    modules = {"Scheduler": ".scheduler", "run_due": ".runner"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(modules[name], __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
