"""Events that were copied and are not yet confirmed deleted. Pure: no I/O, no clock."""

from .names import Event

MAX_UNCONFIRMED = 100  # events copied and not confirmed deleted, which a killed run would repeat
LINGER = 1.0  # seconds for which a copied event waits for others to be deleted with


class Unconfirmed:
    """Gathers copied events into batches to delete; what S3 did not delete keeps its place."""

    def __init__(self) -> None:
        self.copied: dict[Event, float] = {}  # and when it was
        self._deleting = 0
        self._places = MAX_UNCONFIRMED

    @property
    def is_full(self) -> bool:
        """No copy may start."""
        return len(self.copied) + self._deleting >= self._places

    def add(self, event: Event, now: float) -> None:
        """The event was copied."""
        self.copied[event] = now

    def is_ripe(self, now: float) -> bool:
        """Half of the places are taken (the others serve meanwhile), or an event has lingered."""
        lingered = now - min(self.copied.values(), default=now)
        return 2 * len(self.copied) >= self._places or lingered >= LINGER

    def take(self) -> list[Event]:
        """The copied events, to be deleted now."""
        batch, self.copied = list(self.copied), {}
        self._deleting += len(batch)
        return batch

    def settle(self, batch: list[Event], *, stuck: int) -> None:
        """A batch was deleted, but for so many events."""
        self._deleting -= len(batch)
        self._places -= stuck
