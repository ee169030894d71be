"""One event's way out of the folder: copied to its target, or quarantined."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import boto3
from botocore.exceptions import ClientError

from . import copies, names
from .answers import CHANGED, error_code, http_status, is_callers_fault, without_traceback
from .errors import CopyRefused
from .folder import Changed, Folder
from .names import Event
from .report import Failure

logger = logging.getLogger(__package__)

TRIES = 3  # times that an event is copied which is replaced meanwhile
REFUSALS = (400, 412, 501)  # how S3s answer that do not take If-None-Match on copies
ADVICE = "once=True needs a store that takes If-None-Match on copies: try `s3-scheduler check`"


class Copied(NamedTuple):
    """The event, as it was copied, is at its target; `before`: an earlier run had copied it."""

    event: Event
    before: bool = False


@dataclass
class Delivery:
    """How a run copies events; raises `ValueError` for invalid arguments. Threads share it."""

    folder: Folder
    expired: str  # names that sort before this have been tried long enough
    once: bool
    target_buckets: Collection[str] | None
    extra_args: Mapping[str, Any]

    def __post_init__(self) -> None:
        if isinstance(self.target_buckets, str):
            raise ValueError(  # noqa: TRY004 - it is a collection, and the wrong one
                f"target_buckets {self.target_buckets!r} is one name, and would be taken letter by "
                f"letter; pass a collection, such as {[self.target_buckets]!r}"
            )
        if self.once and not self.folder.can_create:
            raise ValueError(
                f"once=True needs boto3 1.40.65 or later, and this is {boto3.__version__}; "
                "upgrade it, or leave once out"
            )
        for name in self.extra_args:
            if name.startswith(("If", "CopySource")) or name in ("Bucket", "Key"):
                raise ValueError(f"{name} in extra_args is for the run itself to set; leave it out")
        copies.check_arguments(self.folder.client, self.extra_args)
        if self.once:
            self.extra_args = {**self.extra_args, "IfNoneMatch": "*"}
        if self.target_buckets is not None:
            self.target_buckets = frozenset(self.target_buckets)

    def deliver(self, event: Event, in_time: Callable[[], bool]) -> Copied | Failure:
        """Copy the event to its target; what S3 will never take is quarantined if it is expired."""
        try:
            return self._copy(event, in_time)
        except Exception as error:  # noqa: BLE001 - one bad event stops no other
            return Failure(event, without_traceback(error), self._quarantine(event, error))

    def _copy(self, event: Event, in_time: Callable[[], bool], tries: int = TRIES) -> Copied:
        if self.target_buckets is not None and event.bucket not in self.target_buckets:
            raise CopyRefused(
                "TargetNotAllowed",
                f"{event.bucket!r} is not one of target_buckets {sorted(self.target_buckets)}; "
                "add it there if events may go to it",
            )
        try:
            self.folder.copy(event, event.bucket, event.key, **self.extra_args)
        except Changed as changed:
            if tries == 1 or not in_time():
                raise
            return self._copy(changed.event, in_time, tries - 1)
        except ClientError as error:
            exists = self.once and error_code(error) in CHANGED
            if exists and self._was_delivered(event):
                return Copied(event, before=True)
            if exists and tries > 1:
                return self._copy(event, in_time, tries - 1)
            if self.once and http_status(error) in REFUSALS:
                error.args = (f"{error} ({ADVICE})",)
            raise
        return Copied(event)

    def _was_delivered(self, event: Event) -> bool:
        """Whether what is at the target is the event; False: nothing is there any more."""
        same = self.folder.has_content(event, event.bucket, event.key, **self.extra_args)
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
        owner = {k: v for k, v in self.extra_args.items() if k == "ExpectedSourceBucketOwner"}
        try:
            self.folder.move(event, name, **owner)
        except Exception as refusal:  # noqa: BLE001 - it stays, and is tried again
            logger.warning("%r could not be moved to %r: %r", event.name, name, refusal)
            return False
        return True
