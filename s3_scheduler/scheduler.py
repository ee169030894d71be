"""What an application does: schedule, cancel, reschedule, and see what is pending or failed."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from s3transfer.compat import seekable
from s3transfer.utils import ReadFileChunk

from . import names
from .answers import CHANGED, UNSUPPORTED, error_code, was_retried
from .errors import AlreadyScheduled, InvalidEvent, NotScheduled
from .folder import CONFLICT_AFTER, Changed, Folder, Gone
from .names import Event, When

if TYPE_CHECKING:
    from _typeshed import SupportsRead
    from mypy_boto3_s3 import S3Client


class Scheduler:
    """Events in one folder of one bucket: `s3://<bucket>/<folder>/<due>|<bucket>|<key>`.

    Thread-safe, and cheap to make: nothing is sent before the first call.

    - `bucket`: holds the folder; never a directory bucket, whose listings have no order.
    - `folder`: with or without slashes at its ends; never empty.
    - `client`: a boto3 S3 client of your own. A run has as many copies in flight as the client has
      connections. None: one is made on first use, from boto3's default session, with timeouts of
      5 s (connect) and 60 s (read), standard retries with at most 3 attempts, and 32 connections.

    Raises `ValueError` for an empty bucket or folder, a directory bucket, and a URI.
    """

    def __init__(self, bucket: str, folder: str, *, client: S3Client | None = None) -> None:
        if not bucket:
            raise ValueError(f"the bucket {bucket!r} is empty; pass the name of one of yours")
        uri = bucket if "://" in bucket else folder
        if "://" in uri:
            raise ValueError(f"{uri!r} is a URI; pass names, as in Scheduler('my-bucket', 'later')")
        if bucket.endswith(("--x-s3", "--xa-s3")):
            raise ValueError(f"{bucket!r} is a directory bucket; use a general purpose bucket")
        self.folder = Folder(bucket, folder, client)

    def __repr__(self) -> str:
        return f"Scheduler({self.folder.bucket!r}, {self.folder.prefix[:-1]!r})"

    def schedule(
        self,
        when: When,
        bucket: str,
        key: str,
        body: bytes | str | SupportsRead[bytes],
        *,
        replace: bool = True,
        extra_args: Mapping[str, Any] | None = None,
    ) -> str:
        """Write an event: at `when`, an object with content `body` appears at `bucket` and `key`.

        - `when`: an aware datetime, a timedelta from now, or an ISO 8601 string with an offset. A
          past moment is due at the next run.
        - `bucket`, `key`: the target. The event's whole name may have at most 1,024 bytes.
        - `body`: bytes, text (sent as UTF-8), or a binary file of any size, read from its
          current position and never held in memory whole; boto3 may close it.
        - `replace`: True replaces the content of the same event (moment, bucket and key), so a call
          can safely be repeated, unless `when` is a timedelta: a new moment each time. False raises
          `AlreadyScheduled`, atomically (after a lost answer, maybe about this very call); the body
          goes in one PutObject, so 5 GiB at most, and a file must be seekable.
        - `extra_args`: as boto3's `ExtraArgs`. Headers, `Metadata` and `Tagging` arrive at the
          target. ACL, storage class, encryption, Object Lock and website redirects do not survive
          an S3 copy, so give those to `run_due`.

        Returns the full object key, which `cancel` and `reschedule` take. Raises `InvalidEvent`,
        before anything is written, for what could never be delivered.
        """
        name = names.build(self.folder.prefix, names.to_utc(when, InvalidEvent), bucket, key)
        extra = extra_args or {}
        _refuse_uncopyable(extra)
        content: Any = body.encode() if isinstance(body, str) else body
        if not isinstance(content, bytes | bytearray):
            content = _readable(content, whole=not replace)
            if replace:
                self.folder.upload(name, content, extra)
                return name
        condition = {} if replace else {"IfNoneMatch": "*"}
        try:
            self.folder.put(name, content, **condition, **extra)
        except ClientError as error:
            if not replace and error_code(error) in CHANGED:
                raise AlreadyScheduled(name) from error
            raise
        return name

    def event_name(self, when: datetime | str, bucket: str, key: str) -> str:
        """What `schedule` would return; nothing is sent.

        With it you can cancel an event without having stored its name, sign an upload URL for a
        browser, or copy an object that is already in S3 into the folder. Raises `InvalidEvent` as
        `schedule` does, and for a timedelta.
        """
        if not isinstance(when, datetime | str):
            raise InvalidEvent(
                f"{when!r} is not an absolute moment, so it names no event; pass an aware "
                "datetime or an ISO 8601 string such as '2030-01-31T09:00:00Z'"
            )
        return names.build(self.folder.prefix, names.to_utc(when, InvalidEvent), bucket, key)

    def cancel(self, name: str) -> bool:
        """Remove an event; `name` is what `schedule` returned, or a name from `failed`.

        True: this call removed it. False: it was not there, or an attempt of this very call whose
        answer was lost removed it. Once an event is due, True does not mean undelivered: a run may
        be between its copy and its delete. Raises `InvalidEvent` for a name that does not parse as
        an event in this folder.
        """
        self.folder.parse(name)
        while event := self.folder.look(name):
            with suppress(Gone, Changed):
                self.folder.delete(event)
                return True
        return False

    def reschedule(self, name: str, when: When) -> str:
        """Move a waiting event to another moment; its content is copied inside S3, not sent again.

        `when` is as in `schedule`; the moment that it already has changes nothing. An event of the
        same bucket and key at the new moment is replaced. Returns the new name.

        Raises `NotScheduled` if nothing is waiting under `name`, and `InvalidEvent` as `schedule`
        and `cancel` do. After any other error both names may be waiting: nothing is lost. If the
        event is due, a run may deliver it meanwhile, and again at the new moment. Where S3 or boto3
        (before 1.40.65) does not know If-None-Match on copies, an event cancelled meanwhile may
        still be delivered, and one that two calls move to the same moment at once may be lost.
        """
        due, bucket, key = self.folder.parse(name)
        if name.startswith(self.folder.failed_prefix):
            raise NotScheduled(name)
        moment = names.to_utc(when, InvalidEvent)
        if moment == due:
            if self.folder.look(name):
                return name
            raise NotScheduled(name)
        new_name = names.build(self.folder.prefix, moment, bucket, key)
        copy, gone = self._move(name, new_name, replace=True)
        # If another call moved it there, or an attempt of this one deleted it, the copy is needed.
        if gone and not was_retried(gone.__cause__):
            with suppress(Changed, Gone):
                self.folder.delete(copy)
            raise NotScheduled(name) from gone
        return new_name

    def _move(self, name: str, new_name: str, *, replace: bool) -> tuple[Event, Gone | None]:
        """Rename the event; start again when what is under either name is changed meanwhile.

        Returns the copy, and `Gone` if the event was deleted meanwhile and the new name was free.
        """
        pauses, create = list(CONFLICT_AFTER), self.folder.can_create
        while event := self.folder.look(name):
            there = self.folder.look(new_name)
            if there and not replace:
                raise AlreadyScheduled(new_name)
            condition = {"IfNoneMatch": "*"} if create and not there else {}
            try:
                # The same content may be there because another call is moving this very event, and
                # withdraws its copy should the event disappear: let it finish.
                if there and there.etag == event.etag and pauses:
                    raise Changed(there)
                copy, gone = self.folder.move(event, new_name, **condition)
            except Gone:
                break
            except Changed:
                if not pauses:
                    raise
                time.sleep(pauses.pop(0))
            except ClientError as error:
                refused = condition and error_code(error) in CHANGED | UNSUPPORTED
                if not refused or error.operation_name == "DeleteObject":
                    raise
                # Nothing is there: Swift refuses the condition, or Zenko applies it to the source.
                create = self.folder.look(new_name) is not None
            else:
                return copy, gone if condition else None
        raise NotScheduled(name)

    def pending(self, *, after: When | None = None, before: When | None = None) -> Iterator[Event]:
        """The events with `after <= due < before`, soonest first.

        - `after`, `before`: as `when` in `schedule`; None: no bound.

        Lazy: one request for each 1,000 names, none beyond `before`. Names that do not parse as
        events are skipped. A name written by hand that stops at the minutes or seconds counts where
        S3 lists it: at the end of its minute or second. Raises `ValueError` for an invalid bound.
        """
        prefix = self.folder.prefix
        first = prefix if after is None else names.lower_bound(prefix, after)
        last = names.upper_bound(prefix) if before is None else names.lower_bound(prefix, before)
        return (event for page in self.folder.pages(first, last) for event in page.events)

    def failed(self) -> Iterator[Event]:
        """The events that runs have quarantined, ordered by error code; lazy as `pending`.

        `retry` and `cancel` take their names, `<folder>/failed/<code>/<due>|<bucket>|<key>`.
        """
        pages = self.folder.pages(prefix=self.folder.failed_prefix)
        return (event for page in pages for event in page.events)

    def retry(self, name: str) -> str:
        """Put a quarantined event back into the folder, for one more try; returns its new name.

        `name` is one from `failed`. Raises `NotScheduled` if it is not there, `AlreadyScheduled` if
        the same event is waiting again, and `InvalidEvent` as `cancel` does.
        """
        self.folder.parse(name)
        new_name = self.folder.original_name(name)
        self._move(name, new_name, replace=False)
        return new_name


def _readable(body: Any, *, whole: bool) -> Any:
    """The file, or the rest of it if it is to go `whole`, in one request that can be repeated."""
    if not hasattr(body, "read"):
        kind = type(body).__name__
        raise InvalidEvent(f"the body is of type {kind}; pass bytes, str or a binary file")
    if isinstance(body.read(0), str):
        raise InvalidEvent(f"{body!r} is a text file; open it in binary mode ('rb')")
    if not whole:
        return body
    if not seekable(body):
        raise InvalidEvent(
            f"{body!r} cannot seek, and replace=False sends the body in one PutObject; "
            "pass a seekable file or bytes, or leave out replace=False"
        )
    position = body.tell()
    end = body.seek(0, io.SEEK_END)
    body.seek(position)
    return ReadFileChunk(body, end - position, end)  # boto3's own retries rewind to its start


def _refuse_uncopyable(extra_args: Mapping[str, Any]) -> None:
    for argument, value in extra_args.items():
        if argument.startswith("SSECustomer"):
            raise InvalidEvent(
                f"no run has the key to copy what {argument} encrypts; use ServerSideEncryption"
            )
        if argument == "StorageClass" and value in ("GLACIER", "DEEP_ARCHIVE"):
            raise InvalidEvent(
                f"no run can copy what StorageClass {value!r} archives; pass it to run_due instead"
            )
