"""What an application does: schedule, cancel, reschedule, and see what is pending."""

from __future__ import annotations

import io
import threading
from typing import IO, TYPE_CHECKING, Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from s3transfer.compat import seekable
from s3transfer.utils import ReadFileChunk

from . import names
from .errors import AlreadyScheduled, InvalidEvent, NotScheduled
from .names import Event
from .objects import CHANGED, CONFLICT, GONE, delete, error_code, head, move

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mypy_boto3_s3 import S3Client

    from .names import When

T = TypeVar("T")

WIDTH = 32
"""Connections of the default client, and so copies that a run has in flight."""

CONFIG = Config(
    connect_timeout=5,
    read_timeout=60,
    retries={"mode": "standard", "total_max_attempts": 3},
    max_pool_connections=WIDTH,
)
"""The default client's settings; times in seconds."""


class Scheduler:
    """Events in one folder of one bucket: `s3://<bucket>/<folder>/<due>|<bucket>|<key>`.

    Thread-safe, and cheap to make: nothing is connected before the first call.
    """

    def __init__(self, bucket: str, folder: str, client: S3Client | None = None) -> None:
        """Nothing is sent yet.

        `folder` may have slashes at its ends, but may not be empty. `client`: a boto3 S3 client of
        your own; None makes one on first use, from boto3's default session, with time-outs of 5 s
        (connect) and 60 s (read), standard retries with at most 3 attempts, and 32 connections.

        Raises `InvalidEvent` for an empty bucket or folder, and for a directory bucket: its
        listings have no order, which is what the library lives by
        (https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html).
        """
        if not bucket:
            raise InvalidEvent(f"the bucket {bucket!r} is empty; pass the name of one of yours")
        if bucket.endswith(("--x-s3", "--xa-s3")):
            raise InvalidEvent(
                f"{bucket!r} is a directory bucket, whose listings have no order; "
                "keep the folder in a general purpose bucket"
            )
        self.bucket = bucket
        self.prefix = names.folder_prefix(folder)
        self._client = client
        self._making_client = threading.Lock()

    def __repr__(self) -> str:
        return f"Scheduler({self.bucket!r}, {self.prefix[:-1]!r})"

    @property
    def client(self) -> S3Client:
        """The boto3 client that every request goes through."""
        with self._making_client:
            if self._client is None:
                self._client = boto3.client("s3", config=CONFIG)
            return self._client

    def schedule(
        self,
        when: When,
        bucket: str,
        key: str,
        body: bytes | str | IO[bytes],
        *,
        replace: bool = True,
        extra_args: Mapping[str, Any] | None = None,
    ) -> str:
        """Write an event: at `when`, an object with content `body` appears at `bucket` and `key`.

        `when` is an aware datetime, a timedelta from now, or an ISO 8601 string with an offset; a
        past moment is due at the next run. `body` is bytes, text (sent as UTF-8), or a binary file
        of any size, read from where it stands and never held in memory whole; boto3 may close it.
        `extra_args` is as boto3's `ExtraArgs`: headers, `Metadata` and `Tagging` arrive at the
        target; ACL, storage class, encryption, Object Lock and website redirects do not survive an
        S3 copy, so give those to `run_due`.

        The same moment, bucket and key are the same event: scheduling it again replaces its
        content, so repeating a call with an absolute `when` is safe (a timedelta is a new moment
        each time). With `replace=False` it raises `AlreadyScheduled` instead, atomically; the body
        then goes in one PutObject: 5 GiB at most, and a file must be seekable. After a lost answer
        boto3's own retry can meet its first attempt, so `AlreadyScheduled` may be about this very
        call.

        Returns the full object key, which `cancel` and `reschedule` take. Raises `InvalidEvent`,
        before anything is written, for what could never be delivered.
        """
        name = names.encode(self.prefix, names.to_utc(when), bucket, key)
        extra = dict(extra_args or {})
        _refuse_uncopyable(extra)
        if isinstance(body, str):
            body = body.encode()
        elif not isinstance(body, bytes | bytearray):
            _refuse_unreadable(body)
        if not replace:
            self._create(name, body, extra)
        elif isinstance(body, bytes | bytearray):
            self.client.put_object(Bucket=self.bucket, Key=name, Body=body, **extra)
        else:
            self.client.upload_fileobj(body, self.bucket, name, ExtraArgs=extra)
        return name

    def _create(self, name: str, body: bytes | IO[bytes], extra: dict[str, Any]) -> None:
        content: Any = body
        if not isinstance(body, bytes | bytearray):
            if not seekable(body):
                raise InvalidEvent(
                    f"{body!r} cannot seek, and replace=False sends the body in one PutObject; "
                    "pass a seekable file or bytes, or leave out replace=False"
                )
            position = body.tell()
            body.seek(0, io.SEEK_END)
            end = body.tell()
            body.seek(position)
            # Its start is where the file stood: boto3's own retries rewind to the start.
            content = ReadFileChunk(body, end - position, end)

        def put() -> None:
            if content is not body:
                content.seek(0)
            try:
                self.client.put_object(
                    Bucket=self.bucket, Key=name, Body=content, IfNoneMatch="*", **extra
                )
            except ClientError as error:
                if error_code(error) in CHANGED:
                    raise AlreadyScheduled(name) from error
                raise

        _while_others_interfere(put)

    def cancel(self, name: str) -> bool:
        """Remove a waiting event; `name` is what `schedule` returned.

        True: it was waiting, and this call removed it. False: it was not there: delivered,
        cancelled, or removed by an earlier attempt of this very call whose answer was lost. Once
        an event is due, True does not mean undelivered: a run may be between its copy and its
        delete. Raises `InvalidEvent` for a name that is not of an event in this folder.
        """
        names.parse(self.prefix, name)

        def remove() -> bool:
            seen = head(self.client, self.bucket, name)
            if seen is None:
                return False
            delete(self.client, self.bucket, name, seen["ETag"])
            return True

        return _while_others_interfere(remove)

    def reschedule(self, name: str, when: When) -> str:
        """Move a waiting event to another moment; its content is copied inside S3, not sent again.

        `when` is as in `schedule`; the moment it already has changes nothing. An event of the same
        bucket and key at the new moment is replaced. Returns the new name. Raises `NotScheduled` if
        nothing is waiting under `name`, and `InvalidEvent` for a name that is not of an event in
        this folder. Once the event is due, a run may deliver it meanwhile, and the new one in its
        time. After any other error both names may be waiting: nothing is lost.
        """
        due, bucket, key = names.parse(self.prefix, name)
        moment = names.to_utc(when)
        new_name = name if moment == due else names.encode(self.prefix, moment, bucket, key)

        def reschedule() -> str:
            seen = head(self.client, self.bucket, name)
            if seen is None:
                raise NotScheduled(name)
            if new_name != name:
                event = Event(due, bucket, key, name, seen["ContentLength"], seen["ETag"])
                # What is there already may be another caller's move of this very event.
                alone = not head(self.client, self.bucket, new_name)
                move(self.client, self.bucket, event, new_name, withdraw=alone)
            return new_name

        return _while_others_interfere(reschedule)

    def pending(self, *, after: When | None = None, before: When | None = None) -> Iterator[Event]:
        """The events with `after <= due < before`, soonest first; None: no bound.

        Lazy: one request for each 1,000 names, none beyond `before`. Bounds are as `when` in
        `schedule`. Names that are not events are skipped. A name written by hand that stops at
        the minutes or seconds counts where S3 lists it: at the end of its minute or second.
        """
        bound = (
            names.end(self.prefix, None)
            if before is None
            else names.start(self.prefix, names.to_utc(before))
        )
        # Without `after`, from the digits that every due time begins with.
        first = self.prefix if after is None else names.start(self.prefix, names.to_utc(after))
        return self._list(first, bound)

    def _list(self, first: str, bound: str) -> Iterator[Event]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix, StartAfter=first
        )
        for page in pages:
            for entry in page.get("Contents", ()):
                if entry["Key"] >= bound:
                    return
                try:
                    yield names.event_from(self.prefix, entry)
                except InvalidEvent:
                    continue


def _refuse_unreadable(body: Any) -> None:
    if not hasattr(body, "read"):
        raise InvalidEvent(f"the body is a {type(body).__name__}; pass bytes, str or a binary file")
    if isinstance(body.read(0), str):
        raise InvalidEvent(f"{body!r} is a text file; open it in binary mode ('rb')")


def _refuse_uncopyable(extra_args: Mapping[str, Any]) -> None:
    for argument, value in extra_args.items():
        if argument.startswith("SSECustomer"):
            raise InvalidEvent(
                f"{argument} encrypts with a key that a run does not have, so it could never copy "
                "the object; use ServerSideEncryption with a key of KMS, or none"
            )
        if argument == "StorageClass" and value in ("GLACIER", "DEEP_ARCHIVE"):
            raise InvalidEvent(
                f"StorageClass {value!r} archives the object, so a run could never copy it; "
                "leave it out here, and give it to run_due, for the target"
            )


def _while_others_interfere(step: Callable[[], T]) -> T:
    """Look again, within reason, when S3 says that what was seen has changed meanwhile."""
    tries = 10
    while True:
        try:
            return step()
        except ClientError as error:
            tries -= 1
            if not tries or error_code(error) not in GONE | CHANGED | CONFLICT:
                raise
