"""What a run did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import RunFailed

if TYPE_CHECKING:
    from datetime import timedelta

    from .names import Event


@dataclass(frozen=True)
class Failure:
    """An event that a run could not deliver, or not delete after its delivery."""

    event: Event
    error: Exception
    """What stopped it: a `botocore.exceptions.ClientError` if it was an answer of S3."""
    quarantined: bool
    """True: it was moved to `failed/`. False: it stays, for all S3 says, and is tried again."""


@dataclass(frozen=True)
class Report:
    """What a run did."""

    copied: int
    """Events whose copy S3 confirmed, deleted or not."""
    failed: tuple[Failure, ...]
    """The first thousand failures."""
    failed_count: int
    """All failures."""
    invalid: tuple[str, ...]
    """The first hundred names that sort before now and are not events; they are left alone."""
    invalid_count: int
    """All such names."""
    unfinished: bool
    """Due events were left for the next run."""
    max_delay: timedelta
    """How late the latest delivery was when S3 confirmed it; zero if there was none."""

    def raise_for_failures(self) -> None:
        """Raise `RunFailed`, which carries this report, if anything failed.

        A function that swallows failures alarms nobody.
        """
        if self.failed_count:
            raise RunFailed(self)
