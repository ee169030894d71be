"""S3 as a scheduler for one-time events: an object's name says when it is due, and where.

    later/2030-01-31T09:00:00.000000Z|shop-emails|welcome/42.json
    ----- --------------------------- ----------- ---------------
    folder        due, UTC            target bucket  target key

`Scheduler` writes, cancels, moves and lists such objects. `run_due`, called every minute, copies
those whose time has come to their targets and deletes the originals.
"""

from .errors import AlreadyScheduled, InvalidEvent, NotScheduled, SchedulerError
from .names import Event
from .report import Failure, Report, RunFailed
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
