"""S3 as a scheduler for one-time events: an object's name says when it is due, and where.

    later/2030-01-31T09:00:00.000000Z|shop-emails|welcome/42.json
    ----- --------------------------- ----------- ---------------
    folder        due, UTC            target bucket  target key

`Scheduler` writes, cancels, moves and lists such objects. `run_due`, called every minute, copies
those whose time has come to their targets and deletes the originals.
"""

TYPE_CHECKING = False  # typing's own takes long to import
if TYPE_CHECKING:
    from .errors import AlreadyScheduled, InvalidEvent, NotScheduled, SchedulerError
    from .names import Event
    from .report import Failure, Report, RunFailed
    from .runner import run_due
    from .scheduler import Scheduler

__all__ = ["AlreadyScheduled", "InvalidEvent", "NotScheduled", "RunFailed", "SchedulerError"]
__all__ += ["Event", "Failure", "Report", "Scheduler", "run_due"]


# Imported on the first use of a name, so that the command line can begin before anything else is
# imported: to end quietly at Ctrl-C, and to explain itself without boto3.
def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import errors, names, report, runner, scheduler  # noqa: PLC0415 - see above

    return (vars(errors) | vars(names) | vars(report) | vars(runner) | vars(scheduler))[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
