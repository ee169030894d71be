"""Time as a run sees it."""

import time
from datetime import datetime, timedelta, timezone
from queue import SimpleQueue
from typing import Any


class Clock:
    """A clock that goes on from the moment that it was told."""

    def __init__(self, now: datetime) -> None:
        self.began = now
        self._start = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    def now(self) -> datetime:
        """The moment, in UTC."""
        return self.moment(self.elapsed())

    def moment(self, seconds: float) -> datetime:
        """So many seconds after the run began, or as near to it as a datetime can be."""
        try:
            return self.began + timedelta(seconds=seconds)
        except OverflowError:
            if seconds < 0:
                return datetime.min.replace(tzinfo=timezone.utc)
            return datetime.max.replace(tzinfo=timezone.utc)

    def get(self, queue: SimpleQueue[Any], timeout: float | None) -> Any:
        """The next item of the queue; raises `Empty` after so many seconds; None: never."""
        return queue.get(timeout=timeout)
