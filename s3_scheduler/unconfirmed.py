"""Events that were copied and are not yet confirmed deleted. Pure: no I/O, no clock."""

from .names import Event

MAX_UNCONFIRMED = 100  # events copied and not confirmed deleted, which a killed run would repeat
BATCH = 50  # events for one DeleteObjects: half of these, so that as many are copied meanwhile
LINGER = 1.0  # seconds for which a copied event waits for others to be deleted with


class Unconfirmed:
    """Gathers copied events into batches to delete, and counts those that S3 did not delete."""

    def __init__(self) -> None:
        self.copied: list[Event] = []
        self._since = 0.0
        self._deleting = 0
        self._stuck = 0

    @property
    def is_full(self) -> bool:
        """No copy may start."""
        return len(self.copied) + self._deleting + self._stuck >= MAX_UNCONFIRMED

    def add(self, event: Event, now: float) -> None:
        """The event was copied."""
        if not self.copied:
            self._since = now
        self.copied.append(event)

    def wait(self, now: float) -> float | None:
        """Seconds until the copied events are to be deleted; None: there are none."""
        if not self.copied:
            return None
        if len(self.copied) >= BATCH or (self.is_full and not self._deleting):
            return 0.0
        return max(0.0, self._since + LINGER - now)

    def take(self) -> list[Event]:
        """The copied events, to be deleted now."""
        batch, self.copied = self.copied, []
        self._deleting += len(batch)
        return batch

    def settle(self, batch: list[Event], *, stuck: int) -> None:
        """A batch was deleted, but for so many events, which keep their places."""
        self._deleting -= len(batch)
        self._stuck += stuck
