"""Events that were copied and are not yet confirmed deleted. Pure: no I/O, no clock."""

import math

from .names import Event

MAX_UNCONFIRMED = 100  # events copied and not confirmed deleted, which a killed run would repeat
LINGER = 1.0  # seconds for which a copied event waits for others to be deleted with


class Unconfirmed:
    """Gathers copied events into batches to delete; what S3 did not delete keeps its place."""

    def __init__(self) -> None:
        self.copied: list[Event] = []
        self._deadline = math.inf
        self._deleting = 0
        self._places = MAX_UNCONFIRMED

    @property
    def is_full(self) -> bool:
        """No copy may start."""
        return len(self.copied) + self._deleting >= self._places

    def add(self, event: Event, now: float) -> None:
        """The event was copied."""
        self.copied.append(event)
        self._deadline = min(self._deadline, now + LINGER)

    def wait(self, now: float) -> float:
        """Seconds until the copied events are to be deleted; infinite if there are none."""
        if self.copied and 2 * len(self.copied) >= self._places:
            return 0.0  # half of the places, so that as many are copied meanwhile
        return max(0.0, self._deadline - now)

    def take(self) -> list[Event]:
        """The copied events, to be deleted now."""
        batch, self.copied, self._deadline = self.copied, [], math.inf
        self._deleting += len(batch)
        return batch

    def settle(self, batch: list[Event], *, stuck: int) -> None:
        """A batch was deleted, but for so many events."""
        self._deleting -= len(batch)
        self._places -= stuck
