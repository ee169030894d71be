"""How many copies to one target bucket may be in flight. Pure: no I/O, no clock, no threads."""

from dataclasses import dataclass

MAX_FAILURES = 8  # in a row, that shut the window of a bucket which has taken nothing in this run
MAX_REFUSALS = 100  # the same for one which has: some keys may be denied, and others not
MAX_UNANSWERED = 100  # copies to one bucket that S3 never answered: they may be delivered twice
PROMPT = 0.25  # seconds within which a bucket answers that is worth waiting for before reading on

# How a bucket stands with a run; the least goes first. SLOW: or it fails; REFUSING: shut, but for
# what is quarantined when S3 refuses it.
QUICK, NEW, SLOW, REFUSING, SHUT = range(5)


@dataclass(slots=True)
class Window:
    """The congestion window of one target bucket, of at most `width` copies.

    It starts at one, grows with each success, and is halved when S3 throttles. Some failures in a
    row shut it for the rest of the run: a bucket that is sick, in whatever way, risks a handful of
    events and a connection or two. Times are seconds of any clock that only goes forward.
    """

    width: int
    size: float = 1
    in_flight: int = 0
    halved: float = -1  # when it last was
    standing: int = NEW
    failures: int = 0  # in a row
    limit: int = MAX_FAILURES  # of these
    unanswered: int = 0

    def succeed(self, seconds: float) -> None:
        """A copy succeeded, after so many seconds."""
        self.failures, self.limit = 0, MAX_REFUSALS
        if self.standing < SHUT:
            self.standing = QUICK if seconds < PROMPT else SLOW
        self._grow()

    def fail(self, *, refused: bool, unanswered: bool, quarantined: bool) -> None:
        """It failed: S3 refused the event, or never answered, or something else ails the bucket."""
        self.failures += 1
        self.unanswered += unanswered
        self.standing = max(self.standing, SLOW)
        if quarantined:
            self._grow()
        if quarantined and self.standing == REFUSING:
            self.failures = 0
        elif self.failures >= self.limit or self.unanswered >= MAX_UNANSWERED:
            self.standing = REFUSING if refused and self.standing == SLOW else SHUT
            self.failures = 0

    def throttle(self, now: float, began: float) -> bool:
        """S3 asked for fewer requests; returns whether that shuts the window."""
        if began > self.halved:  # not one more answer to what was sent before
            self.halved, self.size = now, max(1, self.size / 2)
            self.fail(refused=False, unanswered=False, quarantined=False)
        return self.standing == SHUT

    def _grow(self) -> None:
        # Double each round trip, as TCP does; after congestion add one each round trip.
        step = 1 / self.size if self.halved >= 0 else 1
        self.size = min(self.width, self.size + step)
