"""One event's way out of the folder: copied to its target, or quarantined."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from botocore.exceptions import ClientError

from . import names
from .answers import (
    CHANGED,
    UNSUPPORTED,
    error_code,
    http_status,
    is_callers_fault,
    is_throttling,
    without_traceback,
)
from .errors import CopyRefused
from .folder import Changed, Gone
from .report import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from .folder import Folder
    from .names import Event

logger = logging.getLogger(__package__)

TRIES = 3
"""Times that an event is copied which is replaced meanwhile."""


@dataclass(frozen=True, slots=True)
class Copied:
    """The event, as it was copied, is at its target."""

    event: Event
    before: bool = False
    """An earlier run had copied it."""


@dataclass(frozen=True, slots=True)
class Throttled:
    """S3 asked for fewer requests."""

    error: Exception


Outcome: TypeAlias = Copied | Failure | Throttled | Gone | Changed


@dataclass(frozen=True)
class Delivery:
    """How a run copies events. It has no state, so that threads share it."""

    folder: Folder
    expired: str
    """Names that sort before this have been tried long enough."""
    once: bool
    target_buckets: Collection[str] | None
    extra_args: Mapping[str, Any]
    may_begin: Callable[[], bool]
    """Whether there is time for another copy."""

    def copy(self, event: Event) -> Outcome:
        """Copy the event to its target; what S3 will never take is quarantined if it is expired."""
        try:
            return self._copy(event)
        except (Gone, Changed) as answer:
            return answer
        except Exception as error:  # noqa: BLE001 - one bad event stops no other
            if is_throttling(error):
                return Throttled(error)
            return Failure(event, without_traceback(error), self._quarantine(event, error))

    def _copy(self, event: Event) -> Copied:
        self._check_target(event)
        left = TRIES
        while True:
            left -= 1
            try:
                self.folder.copy(event, event.bucket, event.key, self.extra_args, create=self.once)
                return Copied(event)
            except Changed as changed:
                if not left or not self.may_begin():
                    raise
                event = changed.event
            except ClientError as error:
                if not self.once:
                    raise
                if error_code(error) not in CHANGED:
                    raise _with_advice(error) from error
                if self._was_delivered(event):
                    return Copied(event, before=True)
                if not left:
                    raise _with_advice(error) from error

    def _check_target(self, event: Event) -> None:
        if self.target_buckets is not None and event.bucket not in self.target_buckets:
            raise CopyRefused(
                "TargetNotAllowed",
                f"{event.bucket!r} is not one of target_buckets {sorted(self.target_buckets)}; "
                "add it there if events may go to it",
            )

    def _was_delivered(self, event: Event) -> bool:
        """Whether what is at the target is the event; False: nothing is there any more."""
        same = self.folder.has_content(event, event.bucket, event.key, self.extra_args)
        if same is False:
            raise CopyRefused(
                "TargetExists",
                f"s3://{event.bucket}/{event.key} holds something else, and once=True never "
                "overwrites; give each event a key of its own",
            )
        return bool(same)

    def _quarantine(self, event: Event, error: Exception) -> bool:
        """Move the event to `failed/` if it is expired, and the fault its own."""
        if event.name >= self.expired or not is_callers_fault(error):
            return False
        name = self.folder.failed_name(event.name, error_code(error))
        if len(name.encode()) > names.MAX_NAME:
            return False
        owner = self.extra_args.get("ExpectedSourceBucketOwner")
        owners = {"ExpectedBucketOwner": owner, "ExpectedSourceBucketOwner": owner} if owner else {}
        try:
            self.folder.move(event, name, owners)
        except Exception as refusal:  # noqa: BLE001 - it stays, and is tried again
            logger.warning("%r could not be moved to %r: %r", event.name, name, refusal)
            return False
        return True


def _with_advice(error: ClientError) -> ClientError:
    """Say what a refusal may be about that a store gives which does not know the condition."""
    if error_code(error) not in UNSUPPORTED | CHANGED and http_status(error) != 400:  # noqa: PLR2004
        return error
    advice = (
        "once=True needs a store that takes If-None-Match on copies; "
        "`s3-scheduler check` tells whether this one does"
    )
    answer: Any = error.response
    message = f"{answer['Error'].get('Message', '')} ({advice})"
    answer = {**answer, "Error": {**answer["Error"], "Message": message}}
    return ClientError(answer, error.operation_name)
