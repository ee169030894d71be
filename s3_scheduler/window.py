"""How many copies to one target bucket may be in flight. Pure: no I/O, no clock, no threads.

A congestion window starts at one, grows with each success, and is halved when S3 throttles. After a
number of failures in a row it is shut for the rest of the run: a bucket that is sick, in whatever
way, risks a handful of events and a connection or two.

Times are seconds of any clock that only goes forward.
"""

from dataclasses import dataclass

MAX_FAILURES = 8  # in a row, that shut the window of a bucket which has taken nothing in this run
MAX_REFUSALS = 100  # the same for one which has: some keys may be denied, and others not
MAX_UNANSWERED = 100  # copies to one bucket that S3 never answered: they may be delivered twice
PROMPT = 0.25  # seconds within which a bucket answers that is worth waiting for before reading on
SILENCE = 1.0  # seconds without an answer after which a bucket's copies use up no more width


@dataclass(slots=True)
class Window:
    """The congestion window of one target bucket, of at most `width` copies."""

    width: int
    size: float = 1
    in_flight: int = 0
    shut: bool = False
    throttled: bool = False  # ever in this run
    halved: float = -1  # when it last was
    heard: float | None = None  # when the bucket last answered, or was first asked
    prompt: bool = False  # its last answer was a quick success
    delivered: bool = False  # ever in this run
    failures: int = 0  # in a row
    refused: bool = True  # all of these were refusals of the event, not outages
    unanswered: int = 0

    @property
    def is_open(self) -> bool:
        """Another copy may be in flight."""
        return self.in_flight < int(self.size)

    def is_silent(self, now: float) -> bool:
        """The bucket has been asked, and has not answered for long."""
        return self.in_flight > 0 and now - (self.heard or 0) > SILENCE

    def begin(self, now: float) -> None:
        """A copy begins."""
        if not self.in_flight:
            self.heard = now
        self.in_flight += 1

    def end(self, now: float) -> None:
        """A copy has ended; what came of it is told by one of the calls below."""
        self.in_flight -= 1
        self.heard = now

    def succeed(self, seconds: float) -> None:
        """It was confirmed, after so many seconds."""
        self.failures, self.delivered, self.prompt = 0, True, seconds < PROMPT
        if self.unanswered < MAX_UNANSWERED:
            self.refused, self.shut = True, False
        self._grow()

    def fail(self, *, refused: bool, unanswered: bool, quarantined: bool, healthy: bool) -> bool:
        """It failed; returns whether that shuts the window."""
        self.prompt = False
        # What is quarantined is what a shut window goes on for.
        self.failures = 0 if quarantined and self.shut else self.failures + 1
        self.unanswered += unanswered
        self.refused = self.refused and refused
        self.delivered |= healthy
        if quarantined or healthy:
            self._grow()
        limit = MAX_REFUSALS if self.delivered else MAX_FAILURES
        return self.failures >= limit or self.unanswered >= MAX_UNANSWERED

    def throttle(self, now: float, began: float) -> bool:
        """S3 asked for fewer requests; returns whether that shuts the window."""
        self.prompt = False
        if began > self.halved:  # not one more answer to what was sent before
            self.halved, self.throttled, self.refused = now, True, False
            self.size = max(1, self.size / 2)
            self.failures += 1
        return self.failures >= MAX_FAILURES

    def close(self) -> None:
        """Shut it."""
        if self.shut:  # what it refuses cannot be quarantined, either
            self.refused = False
        self.shut, self.size, self.failures = True, 1, 0

    def _grow(self) -> None:
        # Double each round trip, as TCP does; after congestion add one each round trip.
        step = 1 / self.size if self.throttled else 1
        self.size = min(self.width, self.size + step)
