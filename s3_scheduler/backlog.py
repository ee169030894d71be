"""The events that a run has read and not begun, in order for each target. Pure: no I/O."""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .names import Event

MOST = 1_000
"""Events at which those for a busy target are left for the next run."""
MOST_FOR_ONE = 100
"""Of these, for one target."""


class Backlog:
    """Gives out an event only when the one before it, for the same bucket and key, has left."""

    def __init__(self) -> None:
        self.left_out = False
        """Events were left for another run."""
        self._ready: list[tuple[str, Event]] = []  # a heap by name: oldest first
        self._behind: dict[tuple[str, str], list[Event]] = {}  # of each target that is at work
        self._waiting_behind = 0
        # Targets whose events wait for another run, as slots of a hash that changes with each
        # run: many failures take no memory, and sharing a slot costs a minute, not for ever.
        self._blocked = bytearray(1 << 20)
        self._salt = random.random()  # noqa: S311 - nothing secret

    def __len__(self) -> int:
        return len(self._ready) + self._waiting_behind

    @property
    def ready(self) -> int:
        """How many events `pop` can give out."""
        return len(self._ready)

    def add(self, event: Event) -> None:
        """Take an event; they come in the order of their names."""
        target = event.bucket, event.key
        if self._blocked[self._slot(event)]:
            self.left_out = True
        elif target not in self._behind:
            self._behind[target] = []
            heapq.heappush(self._ready, (event.name, event))
        elif len(self._behind[target]) < MOST_FOR_ONE and len(self) < MOST:
            self._behind[target].append(event)
            self._waiting_behind += 1
        else:
            self._blocked[self._slot(event)] = self.left_out = True

    def pop(self) -> Event:
        """The oldest event that may be copied; `release` or `block` must follow."""
        return heapq.heappop(self._ready)[1]

    def is_awaited(self, event: Event) -> bool:
        """Another event waits until this one has left the folder."""
        return bool(self._behind[event.bucket, event.key])

    def release(self, event: Event) -> None:
        """The event has left the folder: the next for its target is ready."""
        behind = self._behind[event.bucket, event.key]
        if behind:
            following = behind.pop(0)
            self._waiting_behind -= 1
            heapq.heappush(self._ready, (following.name, following))
        else:
            del self._behind[event.bucket, event.key]

    def block(self, event: Event) -> None:
        """The event stays in the folder: later ones for its target wait for another run."""
        behind = self._behind.pop((event.bucket, event.key))
        self._waiting_behind -= len(behind)
        self._blocked[self._slot(event)] = True
        self.left_out |= bool(behind)

    def _slot(self, event: Event) -> int:
        return hash((self._salt, event.bucket, event.key)) % len(self._blocked)
