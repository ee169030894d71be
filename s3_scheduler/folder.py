"""A folder of events in S3, and every request that is made of it."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ParamValidationError
from botocore.validate import validate_parameters

from . import multipart, names
from .answers import (
    CHANGED,
    CONFLICT,
    GONE,
    UNSUPPORTED,
    UnconfirmedAnswer,
    confirmed,
    error_code,
    http_status,
    is_transient,
    without_traceback,
)
from .errors import InvalidEvent
from .names import Event

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef, HeadObjectOutputTypeDef

T = TypeVar("T")

_CODE = re.compile(r"[\w.-]+/")

CONFIG = Config(
    connect_timeout=5,
    read_timeout=60,
    retries={"mode": "standard", "total_max_attempts": 3},
    max_pool_connections=32,
)
"""The default client's settings; times in seconds. A run has as many copies in flight as there are
connections: 32 was best at latencies of 10, 30 and 100 ms."""

PAGE = 1_000
"""Names in a page of a listing, which is all that S3 gives at once."""

RESEND_AFTER = (0.2, 0.4, 0.8, 1.6, 1.6, 1.6)
"""Seconds before what S3 could not delete is sent again: boto3 tries whole requests again, but not
what DeleteObjects reports of a single key."""

CONFLICT_AFTER = (0.1, 0.2, 0.4, 0.8)
"""Seconds before a request is sent again that met another write of the same key."""


class Gone(Exception):
    """The object is not there any more; S3 said so twice."""


class Changed(Exception):
    """The object was replaced; `event` is what is there now, and `error` what S3 answered."""

    def __init__(self, event: Event, error: ClientError) -> None:
        super().__init__(event, error)
        self.event = event
        self.error = error


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing."""

    events: list[Event]
    invalid: list[str]
    """Names that do not parse as events."""
    last: str | None
    """The last name, after which the listing goes on; None: there are no more."""


class Folder:
    """`s3://<bucket>/<prefix>`, and the client that reaches it. Thread-safe."""

    def __init__(self, bucket: str, folder: str, client: S3Client | None = None) -> None:
        self.bucket = bucket
        self.prefix = names.folder_prefix(folder)
        self.failed_prefix = f"{self.prefix}failed/"
        self._client = client
        self._lock = threading.Lock()

    @property
    def client(self) -> S3Client:
        """The client that every request goes through; made on first use if none was given."""
        with self._lock:
            if self._client is None:
                self._client = boto3.client("s3", config=CONFIG)
            return self._client

    @property
    def width(self) -> int:
        """The connections of the client, and so the copies that a run has in flight."""
        # botocore's stubs do not know the attributes of its Config.
        config: Any = self.client.meta.config
        return int(config.max_pool_connections)

    @property
    def can_create(self) -> bool:
        """Whether boto3 knows If-None-Match on copies, as it does since October 2025:
        https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
        """
        return "IfNoneMatch" in self._copy_shape.members

    @property
    def _copy_shape(self) -> Any:
        return self.client.meta.service_model.operation_model("CopyObject").input_shape

    def check_copy_arguments(self, extra_args: Mapping[str, Any]) -> None:
        """Raise `ValueError` for arguments that boto3 does not take for a copy."""
        target = {"Bucket": "bucket", "Key": "key", "CopySource": "bucket/key"}
        try:
            validate_parameters({**target, **extra_args}, self._copy_shape)
        except ParamValidationError as error:
            raise ValueError(f"extra_args holds what no copy takes: {error}") from error

    # Names

    def is_failed(self, name: str) -> bool:
        """Whether the name is in `failed/`."""
        return name.startswith(self.failed_prefix)

    def failed_name(self, name: str, code: str) -> str:
        """Where a failed event goes: it sorts after every due time, so that no run reads it."""
        code = re.sub(r"[^\w.-]+", "-", code)
        return f"{self.failed_prefix}{code}/{name.removeprefix(self.prefix)}"

    def failure_code(self, name: str) -> str:
        """The error code in the name of a failed event."""
        return name.removeprefix(self.failed_prefix).partition("/")[0]

    def original_name(self, name: str) -> str:
        """The name that a failed event had before it failed."""
        return self.prefix + name.removeprefix(self._home(name))

    def parse(self, name: str) -> tuple[datetime, str, str]:
        """Due time, bucket and key, also of a failed event; raises `InvalidEvent`."""
        return names.parse(self._home(name), name)

    def _home(self, name: str) -> str:
        code = _CODE.match(name, len(self.failed_prefix)) if self.is_failed(name) else None
        return self.failed_prefix + code[0] if code else self.prefix

    # Reading

    def page(
        self,
        after: str,
        before: str | None = None,
        *,
        limit: int = PAGE,
        prefix: str | None = None,
    ) -> Page:
        """The names after `after` and before `before`, `limit` at most, in their order."""
        answer = self.client.list_objects_v2(
            Bucket=self.bucket, Prefix=prefix or self.prefix, StartAfter=after, MaxKeys=limit
        )
        if "IsTruncated" not in answer or (answer["IsTruncated"] and "Contents" not in answer):
            raise UnconfirmedAnswer(f"S3 answered 200 and did not list s3://{self.bucket}/{after}")
        events, invalid = [], []
        name = None
        for entry in answer.get("Contents", ()):
            name = entry["Key"]
            if before is not None and name >= before:
                name = None
                break
            try:
                events.append(Event(*self.parse(name), name, entry["Size"], entry["ETag"]))
            except InvalidEvent:
                if name != self.prefix:  # consoles make an object for the folder itself
                    invalid.append(name)
        return Page(events, invalid, name if answer["IsTruncated"] else None)

    def pages(
        self, after: str = "", before: str | None = None, *, prefix: str | None = None
    ) -> Iterator[Page]:
        """All pages, each when it is asked for."""
        last: str | None = after
        while last is not None:
            page = self.page(last, before, prefix=prefix)
            yield page
            last = page.last

    def look(self, name: str) -> Event | None:
        """The event of that name as it is now; None: there is none."""
        answer = self._head(self.bucket, name)
        if answer is None:
            return None
        return Event(*self.parse(name), name, answer["ContentLength"], answer["ETag"])

    def _head(self, bucket: str, key: str, **owner: Any) -> HeadObjectOutputTypeDef | None:
        try:
            answer = self.client.head_object(Bucket=bucket, Key=key, **owner)
        except ClientError as error:
            if error_code(error) in GONE:
                return None
            raise
        confirmed(answer, "ETag", f"what s3://{bucket}/{key} is")
        return answer

    def has_content(
        self, event: Event, bucket: str, key: str, extra_args: Mapping[str, Any]
    ) -> bool | None:
        """Whether the object there has the event's content; None: there is no object."""
        owner = {k: v for k, v in extra_args.items() if k == "ExpectedBucketOwner"}
        there = self._head(bucket, key, **owner)
        if there is None:
            return None
        if there["ETag"] == event.etag:
            return True
        # The ETags of objects in parts, or encrypted by KMS, do not tell:
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
        here: Any = self._head(self.bucket, event.name)
        if here is None:
            raise Gone
        kms = any("kms" in head.get("ServerSideEncryption", "") for head in (here, there))
        in_parts = "-" in there["ETag"] + event.etag
        return (kms or in_parts) and there["ContentLength"] == event.size

    @contextmanager
    def _believing(self, event: Event) -> Iterator[None]:
        """Raise what a refusal means. Some stores answer 404 or 412 wrongly, so look first."""
        try:
            yield
        except ClientError as error:
            if error_code(error) in GONE | CHANGED:
                now = self.look(event.name)
                if now is None:
                    raise Gone from error
                if now.etag != event.etag:
                    raise Changed(now, error) from error
            raise

    # Writing

    def put(self, name: str, body: Any, extra_args: Mapping[str, Any], *, create: bool) -> None:
        """Write an object in one request; with `create` S3 answers 412 if it exists."""
        condition: Any = {"IfNoneMatch": "*"} if create else {}

        def send() -> None:
            if hasattr(body, "seek"):
                body.seek(0)  # an earlier attempt has read it
            self.client.put_object(
                Bucket=self.bucket, Key=name, Body=body, **condition, **extra_args
            )

        _despite_conflicts(send)

    def upload(self, name: str, file: IO[bytes], extra_args: Mapping[str, Any]) -> None:
        """Write a file of any size, which is never held in memory whole."""
        self.client.upload_fileobj(file, self.bucket, name, ExtraArgs=dict(extra_args))

    def copy(
        self,
        event: Event,
        bucket: str,
        key: str,
        extra_args: Mapping[str, Any] | None = None,
        *,
        create: bool = False,
    ) -> str:
        """Copy the event inside S3, with its headers, metadata and tags; returns the copy's ETag.

        Raises `Gone` or `Changed` if the event is not what it was, and with `create` S3's 412 if
        the target exists.
        """
        source: CopySourceTypeDef = {"Bucket": self.bucket, "Key": event.name}
        extra = {**(extra_args or {}), "CopySourceIfMatch": event.etag}
        if create:
            extra["IfNoneMatch"] = "*"

        def send() -> str:
            if event.size > multipart.THRESHOLD:
                target = {"Bucket": bucket, "Key": key}
                return multipart.copy(self.client, source, event, target, extra)
            answer = self.client.copy_object(Bucket=bucket, Key=key, CopySource=source, **extra)
            result = answer.get("CopyObjectResult", {})
            return confirmed(result, "ETag", f"the copy of {event.name!r}")

        with self._believing(event):
            try:
                return _despite_conflicts(send)
            except ClientError as error:
                if error_code(error) not in UNSUPPORTED:
                    raise
            # A store without conditional copies: the condition on the delete has to do.
            del extra["CopySourceIfMatch"]
            return _despite_conflicts(send)

    def move(self, event: Event, name: str, extra_args: Mapping[str, Any]) -> None:
        """Rename the event. Raises as `copy`; if it was replaced meanwhile, the copy is removed.

        If it disappears between copy and delete, another moved it to the same name, or an earlier
        attempt of boto3's deleted it: the copy stays.
        """
        etag = self.copy(event, self.bucket, name, extra_args)
        try:
            self.delete(event)
        except Gone:
            return
        except Changed:
            self.discard(replace(event, name=name, etag=etag))
            raise

    def discard(self, event: Event) -> None:
        """Delete the event, unless it is gone or was replaced."""
        with suppress(Gone, Changed):
            self.delete(event)

    def delete(self, event: Event) -> None:
        """Delete the event; raises `Gone` or `Changed` if it is not what it was."""
        there: Any = {"Bucket": self.bucket, "Key": event.name}
        with self._believing(event):
            try:
                _despite_conflicts(lambda: self.client.delete_object(**there, IfMatch=event.etag))
            except ClientError as error:
                if error_code(error) not in UNSUPPORTED:
                    raise
                # A store without conditional deletes: what was seen a moment ago has to do.
                self.client.delete_object(**there)

    def delete_all(self, events: Sequence[Event]) -> dict[str, Exception]:
        """Delete events that are still what they were; returns the failures by name.

        An event that is gone is no failure; one that was replaced has failed with `Changed`.
        """
        results: dict[str, Exception | None] = {}
        left = list(events)
        for pause in (0.0, *RESEND_AFTER):
            time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - nothing secret
            results |= self._delete_once(left)
            left = [event for event in left if is_transient(results[event.name])]
            if not left:
                break
        return {name: error for name, error in results.items() if error}

    def _delete_once(self, events: Sequence[Event]) -> dict[str, Exception | None]:
        # The XML of DeleteObjects cannot hold every character that a key can.
        together = [event for event in events if event.name.isprintable()]
        try:
            results = self._delete_together(together) if together else {}
        except Exception as error:  # noqa: BLE001 - the report carries it
            results = dict.fromkeys((event.name for event in together), without_traceback(error))
            if http_status(error) in (400, 405, 501):
                results = {}  # Swift and Zenko, say, want the MD5 that boto3 gave up sending
        for event in events:
            # What the answer does not name is not confirmed, and some stores judge ETags wrongly.
            if event.name not in results or error_code(results[event.name]) in CHANGED:
                results[event.name] = self._delete_alone(event)
        return results

    def _delete_together(self, events: list[Event]) -> dict[str, Exception | None]:
        """What DeleteObjects says of each event that its answer names; None: it is deleted."""
        objects: Any = [{"Key": event.name, "ETag": event.etag} for event in events]
        answer = self.client.delete_objects(
            Bucket=self.bucket, Delete={"Objects": objects, "Quiet": False}
        )
        results: dict[str, Exception | None] = {d["Key"]: None for d in answer.get("Deleted", ())}
        for error in answer.get("Errors", ()):
            gone = error["Code"] in GONE
            results[error["Key"]] = None if gone else ClientError({"Error": error}, "DeleteObjects")
        return results

    def _delete_alone(self, event: Event) -> Exception | None:
        try:
            self.delete(event)
        except Gone:
            return None
        except Exception as error:  # noqa: BLE001 - the report carries it
            return without_traceback(error)
        return None


def _despite_conflicts(send: Callable[[], T]) -> T:
    """Send it again, within reason, when S3 says that another write is under way."""
    for pause in CONFLICT_AFTER:
        try:
            return send()
        except ClientError as error:
            if error_code(error) not in CONFLICT:
                raise
        time.sleep(pause)
    return send()
