"""Which event may be copied next. Pure: no I/O, no clock, no threads.

Events wait in a lane for each target bucket, as many of which may go as its congestion window
allows. In a lane, an event may go only when the one before it, for the same key, has left the
folder. What there is no room for is left out, and read again.
"""

import random
from bisect import insort
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, chain
from operator import attrgetter

from .names import Event
from .window import QUICK, REFUSING, SHUT, SLOW, Window

MAX_BACKLOG = 1_000  # events read and not begun at which a run reads no more of them
MAX_FOR_ONE_TARGET = 100  # events that wait behind another for the same bucket and key
MAX_BLOCKED = 10_000  # targets remembered because an event stays; beyond, their lanes are shut
SILENCE = 1.0  # seconds without an answer after which a copy uses up no more width
END = "\U0010ffff"  # sorts after all names

_BY_NAME = attrgetter("name")


@dataclass(slots=True)
class _Lane(Window):
    """The events for one target bucket, and the window of their copies."""

    ready: list[Event] = field(default_factory=list)  # sorted by name: the oldest first
    behind: dict[str, list[Event]] = field(default_factory=dict)  # of each key ready or at work
    waiting: int = 0  # events in `ready` and `behind`


class Backlog:
    """The events that a run has read and not finished."""

    def __init__(self, width: int, expired: str = "") -> None:
        self.width = width  # how many copies may be in flight
        self.expired = expired  # what sorts before this is quarantined if S3 refuses it
        self.in_flight: dict[Event, float] = {}  # since when
        self.waiting = 0  # events that are due and not begun
        self.position = ""  # the name up to which all has been read once; what follows is new
        self.held: deque[Event] = deque()  # until they are due, in the order of their names
        self._lanes: defaultdict[str, _Lane] = defaultdict(partial(_Lane, width))
        self._ranks: dict[str, tuple[int, int, str]] = {}  # of buckets that may go: least first
        self._changed: set[str] = set()  # buckets that may have another rank by now, or none
        # Where there was no room: the first name left out, of a target or, without key, a bucket.
        self._gaps: dict[tuple[str, str], str] = {}
        self._blocked: set[int] = set()  # hashes of targets that an event stays for
        self._skipped = False  # an event is left for the next run, as an earlier one stays

    @property
    def unfinished(self) -> bool:
        """Due events are left for the next run."""
        return bool(self._gaps or self._skipped or self.waiting or not self._surveyed)

    @property
    def _surveyed(self) -> bool:
        """All that is due has been read once: what follows an event not due is not due, either."""
        return self.position == END or bool(self.held)

    # Reading: which names the listing is to give next

    def read_after(self) -> str | None:
        """After which name a page is to be read; None: there is no room, or it is of no use yet."""
        self._update_ranks()  # what may not go is left out
        if self._runs_short():
            wanted = [self.position]
        else:
            wanted = [name[:-1] for scope, name in self._gaps.items() if self._resumes(scope, name)]
        return min(wanted) if wanted and self._has_room() else None

    def _runs_short(self) -> bool:
        """More is to be read for the first time before there is nothing left to copy quickly."""
        # Only buckets that answer quickly count: behind all others there may be one that is well.
        quick = (len(lane.ready) for lane in self._lanes.values() if lane.standing == QUICK)
        supply = accumulate(quick, initial=len(self.held))
        return self.position != END and all(count < 4 * self.width for count in supply)

    def _resumes(self, scope: tuple[str, str], name: str) -> bool:
        """Whether there is room again for what was left out, and it may go."""
        bucket, key = scope
        lane = self._lanes[bucket]
        waiting = len(lane.behind.get(key, ())) if key else lane.waiting
        # For a slow lane no other is made to leave room, or they would take turns for ever.
        has_room = self.waiting < MAX_BACKLOG or lane.standing == QUICK
        few = has_room and waiting < MAX_FOR_ONE_TARGET // 2
        return few and self._may_go(lane, name)

    def _may_go(self, lane: _Lane, name: str) -> bool:
        """Its window is not shut, or the event is refused and may go on to be quarantined."""
        drains = lane.standing == REFUSING and name < self.expired and self._surveyed
        return drains or lane.standing < REFUSING

    def _has_room(self) -> bool:
        """Make room, if need be, by leaving out the newer half of the fullest lane that is slow."""
        if self.waiting >= MAX_BACKLOG:
            lanes = self._lanes.items()
            slow = [(lane.waiting, bucket) for bucket, lane in lanes if lane.standing > QUICK]
            fullest, bucket = max(slow, default=(0, ""))
            if fullest:
                self._forget(bucket, fullest // 2)
        return self.waiting < MAX_BACKLOG

    def _forget(self, bucket: str, keep: int = 0) -> None:
        """Leave out what waits in a lane, but for the oldest `keep`."""
        lane = self._lane(bucket)
        waiting = sorted(chain(lane.ready, *lane.behind.values()), key=_BY_NAME)
        at_work = lane.behind.keys() - {event.key for event in lane.ready}
        lane.ready, lane.behind = [], {key: [] for key in at_work}
        self._count(lane, -lane.waiting)
        for event in waiting[:keep]:
            self._add(lane, event)
        self._leave_out(waiting[keep].name, (bucket, ""))

    def take_page(
        self, after: str, last: str | None, events: Iterable[Event], is_due: Callable[[Event], bool]
    ) -> None:
        """Take the names after `after` up to `last`; None: to the end.

        What is new is held until `ripen`; of the rest, what was left out is taken if it is due.
        """
        last, resumed = last or END, {}
        for scope, name in list(self._gaps.items()):
            # A page that was read for a name may end before it, and is not to be read for ever.
            if (name[:-1] == after or after < name <= last) and self._resumes(scope, name):
                resumed[scope] = self._gaps.pop(scope)
                if last < self.position:
                    self._leave_out(f"{last}\0", scope)
        first_held = self.held[0].name if self.held else END
        for event in events:
            scopes = (event.bucket, event.key), (event.bucket, "")
            left_out = any(resumed.get(scope, END) <= event.name < first_held for scope in scopes)
            if event.name > self.position:
                self.held.append(event)
            elif left_out and is_due(event):  # else it was scheduled meanwhile
                self._accept(event)
        self.position = max(self.position, last)

    def ripen(self, is_due: Callable[[Event], bool]) -> None:
        """Take the held events that are due by now, in the order of their names."""
        while self.held and is_due(self.held[0]):
            self._accept(self.held.popleft())

    def _accept(self, event: Event) -> None:
        lane = self._lane(event.bucket)
        target, lane_scope = (event.bucket, event.key), (event.bucket, "")
        full = len(lane.behind.get(event.key, ())) >= MAX_FOR_ONE_TARGET
        if hash(target) in self._blocked:
            self._skipped = True
        elif not self._may_go(lane, event.name) or event.name >= self._gaps.get(lane_scope, END):
            self._leave_out(event.name, lane_scope)
        elif full or event.name >= self._gaps.get(target, END):
            self._leave_out(event.name, target)
        else:
            self._add(lane, event)

    def _leave_out(self, name: str, scope: tuple[str, str]) -> None:
        self._gaps[scope] = min(name, self._gaps.get(scope, END))

    def _add(self, lane: _Lane, event: Event) -> None:
        self._count(lane, 1)
        if event.key in lane.behind:
            lane.behind[event.key].append(event)
        else:
            lane.behind[event.key] = []
            insort(lane.ready, event, key=_BY_NAME)

    def _count(self, lane: _Lane, change: int) -> None:
        lane.waiting += change
        self.waiting += change

    # Copying: who may go next, and what became of it

    def next(self, now: float) -> Event | None:
        """An event to copy now, or None; then `end` follows, and `release`, `block` or `again`.

        Quick buckets go first, then new ones; among equals the one with the fewest copies in
        flight, then the one with the oldest event.
        """
        has_width = self._busy(now) < self.width
        self._update_ranks()
        if not (has_width and self._ranks):
            return None
        lane = self._lane(min(self._ranks, key=self._ranks.__getitem__))
        # While some fail, any may go, for the oldest may all be under one prefix that is denied.
        some_fail = lane.failures and lane.standing < REFUSING
        place = random.randrange(len(lane.ready)) if some_fail else 0  # noqa: S311 - no secret
        event = lane.ready.pop(place)
        self._count(lane, -1)
        lane.in_flight += 1
        self.in_flight[event] = now
        return event

    def _busy(self, now: float) -> int:
        """Copies in flight, without those that are silent, up to another width of them."""
        silent = [event for event, began in self.in_flight.items() if now - began > SILENCE]
        for event in silent:
            lane = self._lane(event.bucket)
            lane.standing = max(lane.standing, SLOW)
        return len(self.in_flight) - min(len(silent), self.width)

    def _lane(self, bucket: str) -> _Lane:
        """The lane of a bucket, which is about to change."""
        self._changed.add(bucket)
        return self._lanes[bucket]

    def _update_ranks(self) -> None:
        """Rank the lanes that may go, and leave out what waits in those whose windows are shut."""
        while self._changed:
            bucket = self._changed.pop()
            lane = self._lanes[bucket]
            self._ranks.pop(bucket, None)
            name = lane.ready[0].name if lane.ready else ""
            if name and not self._may_go(lane, name):
                self._forget(bucket)
            elif name and lane.in_flight < int(lane.size):
                self._ranks[bucket] = lane.standing, lane.in_flight, name

    def end(self, event: Event) -> tuple[Window, float]:
        """The copy is over; returns its window, to be told how it went, and when it began."""
        lane = self._lane(event.bucket)
        lane.in_flight -= 1
        return lane, self.in_flight.pop(event)

    def again(self, event: Event) -> None:
        """An event that was begun waits again, as the first for its target."""
        lane = self._lane(event.bucket)
        self._count(lane, 1)
        insort(lane.ready, event, key=_BY_NAME)

    def release(self, event: Event) -> None:
        """The event has left the folder: the next for its target is ready."""
        lane = self._lane(event.bucket)
        if behind := lane.behind[event.key]:
            insort(lane.ready, behind.pop(0), key=_BY_NAME)
        else:
            del lane.behind[event.key]

    def block(self, event: Event) -> None:
        """The event stays in the folder: later ones for its target wait for the next run."""
        lane = self._lane(event.bucket)
        behind = lane.behind.pop(event.key)
        self._count(lane, -len(behind))
        self._skipped |= bool(behind)
        self._blocked.add(hash((event.bucket, event.key)))
        if len(self._blocked) > MAX_BLOCKED:
            lane.standing = SHUT

    def is_awaited(self, event: Event) -> bool:
        """Another event waits until this one has left the folder."""
        return bool(self._lanes[event.bucket].behind[event.key])
