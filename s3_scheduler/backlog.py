"""Which event may be copied next. Pure: no I/O, no clock, no threads.

Events wait in a lane for each target bucket, as many of which may go as its congestion window
allows. In a lane, an event may go only when the one before it, for the same key, has left the
folder.

Times are seconds of any clock that only goes forward.
"""

import heapq
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from .names import Event
from .window import Window

MAX_BACKLOG = 1_000  # events read and not begun at which a run reads no more of them
MAX_FOR_ONE_TARGET = 100  # events that wait behind another for the same bucket and key
END = "\U0010ffff"  # sorts after all names
MAX_BLOCKED = 10_000  # targets remembered because an event stays; beyond, their lanes are shut


@dataclass(slots=True)
class _Lane:
    """The events for one target bucket."""

    bucket: str
    window: Window
    ready: list[tuple[str, Event]] = field(default_factory=list)  # a heap by name: oldest first
    behind: dict[str, list[Event]] = field(default_factory=dict)  # of each key that is at work
    waiting: int = 0  # events in `ready` and `behind`
    blocked: set[int] = field(default_factory=set)  # hashes of keys that an event stays for


class Backlog:
    """The events that a run has read and not finished.

    - `width`: how many copies may be in flight.
    - `expired`: events whose names sort before this have been tried long enough: what S3 refuses
      of them is quarantined, so that the backlog even of a bucket that refuses all gets shorter.
    """

    def __init__(self, width: int, expired: str = "") -> None:
        self.width = width
        self.expired = expired
        self.in_flight = 0
        self._lanes: dict[str, _Lane] = {}
        self._active: dict[str, Window] = {}  # with copies in flight
        # Where there was no room: the first name left out, of a target or, without key, a bucket.
        self._gaps: dict[tuple[str, str], str] = {}
        self._position = ""  # after which the listing goes on; before it, all has been read once
        self._order: list[tuple[int, int, str, str]] = []  # a heap: which lane may go next
        self._future: deque[Event] = deque()  # not due yet, in the order of their names
        self._waiting = 0  # events in all lanes
        self._blocked = 0  # targets in all lanes
        self._skipped = False  # an event is left for the next run, as an earlier one stays

    def __len__(self) -> int:
        return self._waiting + len(self._future)

    @property
    def unfinished(self) -> bool:
        """Due events are left for the next run."""
        return bool(self._gaps) or self._skipped or self._waiting > 0 or not self._surveyed

    @property
    def _surveyed(self) -> bool:
        """All that is due has been read once: what follows an event not due is not due, either."""
        return self._position == END or bool(self._future)

    # Reading: which names the listing is to give next

    def read_after(self) -> str | None:
        """After which name a page is to be read; None: there is no room, or it is of no use yet."""
        after = None
        if self._runs_short():
            after = self._position
        elif self._surveyed:
            after = self.resume_after()
        return after if after is not None and self._has_room() else None

    def _runs_short(self) -> bool:
        """More is to be read for the first time before there is nothing left to copy quickly."""
        if self._position == END:
            return False
        # Only buckets that answer quickly count: behind the events of all others there may be some
        # for a bucket that is well.
        supply = len(self._future)
        for lane in self._lanes.values():
            if supply >= 4 * self.width:
                break
            supply += len(lane.ready) if lane.window.prompt else 0
        return supply < 4 * self.width

    def resume_after(self) -> str | None:
        """After which name the listing is to go on for what was left out; None: nothing can be."""
        resumed = [scope for scope in self._gaps if self._resumes(*scope)]
        ranks = [(self._lanes[scope[0]].window.shut, self._gaps[scope]) for scope in resumed]
        return min(ranks)[1][:-1] if ranks else None

    def _resumes(self, bucket: str, key: str) -> bool:
        """Whether there is room again for what was left out, and it may go."""
        lane = self._lanes[bucket]
        if key:
            few = len(lane.behind.get(key, ())) < MAX_FOR_ONE_TARGET // 2
            return few and not lane.window.shut and (bucket, "") not in self._gaps
        # For a slow lane no other is made to leave room, or they would take turns for ever.
        has_room = lane.window.prompt or self._waiting < MAX_BACKLOG
        few = lane.waiting < MAX_FOR_ONE_TARGET // 2
        return has_room and few and self._may_go(lane, self._gaps[bucket, key])

    def _may_go(self, lane: _Lane, name: str) -> bool:
        """Its window is not shut, or the event is refused and may go on to be quarantined."""
        drains = self._surveyed and lane.window.refused and name < self.expired
        return drains or not lane.window.shut

    def _has_room(self) -> bool:
        """Make room, if need be, by leaving out the newer half of the fullest lane that is slow."""
        if self._waiting >= MAX_BACKLOG:
            slow = [lane for lane in self._lanes.values() if not lane.window.prompt]
            if lane := max(slow, key=lambda lane: lane.waiting, default=None):
                self._forget(lane, lane.waiting // 2)
        return self._waiting < MAX_BACKLOG

    def _forget(self, lane: _Lane, keep: int = 0) -> None:
        """Leave out what waits in the lane, but for the oldest `keep`."""
        waiting = [event for _, event in lane.ready]
        waiting += [event for queue in lane.behind.values() for event in queue]
        dropped = sorted(event.name for event in waiting)[keep:]
        if not dropped:
            return
        first = dropped[0]
        for name, event in lane.ready:
            if name >= first:
                del lane.behind[event.key]
        lane.ready = [item for item in lane.ready if item[0] < first]
        heapq.heapify(lane.ready)
        for queue in lane.behind.values():
            queue[:] = [event for event in queue if event.name < first]
        self._count(lane, -len(dropped))
        self._leave_out(first, lane.bucket)

    def _count(self, lane: _Lane, change: int) -> None:
        lane.waiting += change
        self._waiting += change

    def _leave_out(self, name: str, bucket: str, key: str = "") -> None:
        self._gaps[bucket, key] = min(name, self._gaps.get((bucket, key), name))

    def take_page(self, after: str, last: str | None, events: Iterable[Event], due: str) -> bool:
        """Take the names after `after` up to `last`; None: to the end.

        What does not sort before `due` is not due yet, and held until `ripen`. Returns whether the
        page is new: in one that is read again only what was left out is taken.
        """
        self.ripen(due)
        again = after < self._position
        last = min(last or END, self._position if again else END)
        resumed = {}
        for scope, first in list(self._gaps.items()) if again else ():
            if after < first and (first <= last or first[:-1] == after) and self._resumes(*scope):
                resumed[scope] = self._gaps.pop(scope)
        for event in events:
            if again:
                left_out = resumed.get((event.bucket, event.key)) or resumed.get((event.bucket, ""))
                if left_out and left_out <= event.name < due and event.name <= last:
                    self._accept(event)
            elif event.name < due:
                self._accept(event)
            else:
                self._future.append(event)
        if last < self._position:
            for scope in resumed:
                self._leave_out(f"{last}\0", *scope)
        self._position = max(self._position, last)
        for lane in self._lanes.values():
            self._enter(lane)  # a lane that is shut may go only now that all has been read
        return not again

    def _accept(self, event: Event) -> None:
        lane = self._lanes.setdefault(event.bucket, _Lane(event.bucket, Window(self.width)))
        behind = lane.behind.get(event.key)
        if hash(event.key) in lane.blocked:
            self._skipped = True
        elif (event.bucket, "") in self._gaps or not self._may_go(lane, event.name):
            self._leave_out(event.name, event.bucket)
        elif (event.bucket, event.key) in self._gaps or len(behind or ()) >= MAX_FOR_ONE_TARGET:
            self._leave_out(event.name, event.bucket, event.key)
        else:
            self._count(lane, 1)
            if behind is not None:
                behind.append(event)
            else:
                lane.behind[event.key] = []
                self._make_ready(lane, event)

    def ripen(self, bound: str) -> None:
        """Add the held events whose names sort before `bound`."""
        while self._future and self._future[0].name < bound:
            self._accept(self._future.popleft())

    @property
    def next_held(self) -> Event | None:
        """The held event that is due first."""
        return self._future[0] if self._future else None

    # Copying: who may go next, and what became of it

    def next(self, now: float) -> Event | None:
        """An event to copy now, or None; what becomes of it is told by one of the calls below.

        Quick buckets go first, then new ones; among equals the one with the fewest copies in
        flight, then the one with the oldest event.
        """
        while self._order and self._busy(now) < self.width:
            rank = heapq.heappop(self._order)
            lane = self._lanes[rank[-1]]
            actual = self._rank(lane, now)
            if actual == rank:
                lane.window.begin(now)
                self.in_flight += 1
                self._active[lane.bucket] = lane.window
                event = self._take(lane)
                self._enter(lane)
                return event
            if actual:  # the lane has changed since
                heapq.heappush(self._order, actual)
        return None

    def _busy(self, now: float) -> int:
        """Copies in flight, without those for silent buckets, up to another width of them."""
        if self.in_flight < self.width:
            return self.in_flight
        silent = sum(w.in_flight for w in self._active.values() if w.is_silent(now))
        return self.in_flight - min(silent, self.width)

    def _rank(self, lane: _Lane, now: float = 0) -> tuple[int, int, str, str] | None:
        if not lane.ready or not lane.window.is_open:
            return None
        window, name = lane.window, lane.ready[0][0]
        if not self._may_go(lane, name):
            return None
        quick, new = window.prompt and not window.is_silent(now), window.heard is None
        order = 3 if window.shut else 0 if quick else 1 if new else 2
        return order, window.in_flight, name, lane.bucket

    def _enter(self, lane: _Lane) -> None:
        """Let the lane go next when it ranks first."""
        lanes = [lane]
        if len(self._order) > 4 * len(self._lanes) + 64:  # most of it is of the past
            self._order, lanes = [], list(self._lanes.values())
        for each in lanes:
            if rank := self._rank(each):
                heapq.heappush(self._order, rank)

    def _take(self, lane: _Lane) -> Event:
        if lane.window.failures and not lane.window.shut:
            # The oldest may all be of one prefix that fails, so others have a chance, too.
            index = random.randrange(len(lane.ready))  # noqa: S311 - nothing secret
            lane.ready[0], lane.ready[index] = lane.ready[index], lane.ready[0]
            event = lane.ready.pop(0)[1]
            heapq.heapify(lane.ready)
        else:
            event = heapq.heappop(lane.ready)[1]
        self._count(lane, -1)
        return event

    def delivered(self, event: Event, now: float, seconds: float) -> None:
        """The copy is confirmed, after so many seconds; `release` or `block` follows."""
        lane = self._answered(event, now)
        lane.window.succeed(seconds)
        self._enter(lane)

    def passed_over(self, event: Event, now: float, *, left: bool) -> None:
        """The event was not copied: it left the folder, or is replaced again and again."""
        self._enter(self._answered(event, now))
        (self.release if left else self.block)(event)

    def failed(
        self,
        event: Event,
        now: float,
        *,
        refused: bool = False,
        unanswered: bool = False,
        quarantined: bool = False,
        healthy: bool = False,
    ) -> None:
        """The copy failed: S3 refused the event, or never answered, or its bucket is healthy."""
        lane = self._answered(event, now)
        shuts = lane.window.fail(
            refused=refused, unanswered=unanswered, quarantined=quarantined, healthy=healthy
        )
        (self.release if quarantined else self.block)(event)
        if shuts:
            self._shut(lane)
        self._enter(lane)

    def throttled(self, event: Event, now: float, began: float) -> bool:
        """S3 asked for fewer requests; the event goes back, unless its bucket answers only that.

        Returns whether it does: then the event has failed.
        """
        lane = self._answered(event, now)
        if not lane.window.throttle(now, began):
            self.again(event)
            return False
        self.block(event)
        self._shut(lane)
        return True

    def again(self, event: Event) -> None:
        """An event that was begun waits again, as the first for its target."""
        lane = self._lanes[event.bucket]
        self._count(lane, 1)
        self._make_ready(lane, event)
        self._enter(lane)

    def release(self, event: Event) -> None:
        """The event has left the folder: the next for its target is ready."""
        lane = self._lanes[event.bucket]
        if behind := lane.behind[event.key]:
            self._make_ready(lane, behind.pop(0))
        else:
            del lane.behind[event.key]

    def block(self, event: Event) -> None:
        """The event stays in the folder: later ones for its target wait for the next run."""
        lane = self._lanes[event.bucket]
        behind = lane.behind.pop(event.key)
        self._skipped |= bool(behind)
        self._count(lane, -len(behind))
        lane.blocked.add(hash(event.key))
        self._blocked += 1
        if self._blocked > MAX_BLOCKED:
            self._shut(lane)

    def is_awaited(self, event: Event) -> bool:
        """Another event waits until this one has left the folder."""
        return bool(self._lanes[event.bucket].behind[event.key])

    def _answered(self, event: Event, now: float) -> _Lane:
        lane = self._lanes[event.bucket]
        lane.window.end(now)
        self.in_flight -= 1
        if not lane.window.in_flight:
            del self._active[lane.bucket]
        return lane

    def _make_ready(self, lane: _Lane, event: Event) -> None:
        heapq.heappush(lane.ready, (event.name, event))
        if lane.ready[0][1] is event:
            self._enter(lane)

    def _shut(self, lane: _Lane) -> None:
        lane.window.close()
        self._forget(lane)
