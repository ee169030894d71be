"""A folder of events in S3, and every request that is made of it."""

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from . import answers, copies, names
from .answers import UnconfirmedAnswer, confirmed, error_code, without_traceback
from .errors import InvalidEvent, SchedulerError
from .names import Event

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

CONFIG = Config(  # of the default client
    connect_timeout=5,  # seconds
    read_timeout=60,  # seconds
    retries={"mode": "standard", "total_max_attempts": 3},
    max_pool_connections=32,  # and copies of a run in flight: best at latencies of 10 to 100 ms
)

PAGE = 1_000  # names in a page of a listing, which is all that S3 gives at once

# Seconds before what boto3 does not try again is sent again.
RESEND_AFTER = (0.2, 0.4, 0.8, 1.6, 1.6, 1.6)  # a key that DeleteObjects could not delete
CONFLICT_AFTER = (0.1, 0.2, 0.4, 0.8)  # a request that met another write of the same key


class Gone(Exception):
    """The object is not there any more; S3 said so twice."""


class Changed(SchedulerError):
    """The object was replaced; `event` is what is there now."""

    def __init__(self, event: Event) -> None:
        super().__init__(event)
        self.event = event

    def __str__(self) -> str:
        return f"{self.event.name!r} was replaced meanwhile"


class Page(NamedTuple):
    """A page of a listing; `last`: the name after which it goes on, None: there are no more."""

    events: list[Event]
    invalid: list[str]
    last: str | None


class Folder:
    """`s3://<bucket>/<prefix>`, and the client that reaches it. Thread-safe."""

    def __init__(self, bucket: str, folder: str, client: "S3Client | None" = None) -> None:
        self.bucket = bucket
        self.prefix = names.folder_prefix(folder)
        self.failed_prefix = f"{self.prefix}failed/"
        self._failed = re.compile(rf"^({re.escape(self.prefix)})failed/[\w.-]+/")
        self._client = client
        self._lock = threading.Lock()

    @property
    def client(self) -> "S3Client":
        """The client that every request goes through; made on first use if none was given."""
        with self._lock:
            self._client = self._client or boto3.client("s3", config=CONFIG)
            return self._client

    @property
    def width(self) -> int:
        """The connections of the client, and so the copies that a run has in flight."""
        config: Any = self.client.meta.config  # whose attributes botocore's stubs do not know
        return int(config.max_pool_connections)

    @property
    def can_create(self) -> bool:
        """Whether boto3 knows If-None-Match on copies, as it does since October 2025."""
        return "IfNoneMatch" in copies.shape(self.client, "CopyObject").members

    # Names

    def failed_name(self, name: str, code: str) -> str:
        """Where a failed event goes: it sorts after every due time, so that no run reads it."""
        code = re.sub(r"[^\w.-]+", "-", code)
        return f"{self.failed_prefix}{code}/{name.removeprefix(self.prefix)}"

    def failure_code(self, name: str) -> str:
        """The error code in the name of a failed event."""
        return name.removeprefix(self.failed_prefix).partition("/")[0]

    def original_name(self, name: str) -> str:
        """The name that a failed event had before it failed."""
        return self._failed.sub(r"\1", name)

    def parse(self, name: str) -> tuple[datetime, str, str]:
        """Due time, bucket and key, also of a failed event; raises `InvalidEvent`."""
        match = self._failed.match(name)
        return names.parse(match[0] if match else self.prefix, name)

    # Reading

    def page(self, after: str, before: str = "", *, limit: int = PAGE, prefix: str = "") -> Page:
        """The names after `after` and, if given, before `before`, in order, `limit` at most."""
        prefix = prefix or self.prefix
        after = after or prefix  # which skips the object that consoles make for the folder itself
        answer = self.client.list_objects_v2(
            Bucket=self.bucket, Prefix=prefix, StartAfter=after, MaxKeys=limit
        )
        if "IsTruncated" not in answer or (answer["IsTruncated"] and "Contents" not in answer):
            raise UnconfirmedAnswer(f"S3 answered 200 and did not list s3://{self.bucket}/{after}")
        page = Page([], [], None)
        for entry in answer.get("Contents", ()):
            name = entry["Key"]
            if before and name >= before:
                return page
            try:
                page.events.append(Event(*self.parse(name), name, entry["Size"], entry["ETag"]))
            except InvalidEvent:
                page.invalid.append(name)
        return page._replace(last=name) if answer["IsTruncated"] else page

    def pages(self, after: str = "", before: str = "", prefix: str = "") -> Iterator[Page]:
        """All pages, each when it is asked for."""
        page = Page([], [], after)
        while page.last is not None:
            page = self.page(page.last, before, prefix=prefix)
            yield page

    def look(self, name: str) -> Event | None:
        """The event of that name as it is now; None: there is none."""
        head = self._head(self.bucket, name)
        return Event(*self.parse(name), name, head["ContentLength"], head["ETag"]) if head else None

    def _head(self, bucket: str, key: str, **owner: Any) -> Any:
        try:
            head = self.client.head_object(Bucket=bucket, Key=key, **owner)
        except ClientError as error:
            if error_code(error) in answers.GONE:
                return None
            raise
        confirmed(head, "ETag", f"what s3://{bucket}/{key} is")
        return head

    def has_content(self, event: Event, bucket: str, key: str, **extra_args: Any) -> bool | None:
        """Whether the object there has the event's content; None: there is no object."""
        owner = {k: v for k, v in extra_args.items() if k == "ExpectedBucketOwner"}
        there = self._head(bucket, key, **owner)
        if there is None:
            return None
        if there["ETag"] == event.etag:
            return True
        # The ETags of objects in parts, or encrypted by KMS, do not tell:
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
        here = self._head(self.bucket, event.name)
        if here is None:
            raise Gone
        kms = any("kms" in head.get("ServerSideEncryption", "") for head in (here, there))
        in_parts = "-" in there["ETag"] + event.etag
        return (kms or in_parts) and there["ContentLength"] == event.size

    # Writing

    def _send(self, event: Event, send: Callable[..., T], **condition: str) -> T:
        """Send what changes the event; raises `Gone` or `Changed` if it is not what it was."""
        try:
            return _despite_conflicts(partial(send, **condition))
        except ClientError as error:
            code = error_code(error)
            if condition and code in answers.UNSUPPORTED:
                return self._send(event, send)  # without the condition
            if code in answers.GONE | answers.CHANGED:
                now = self.look(event.name)  # for some stores answer so wrongly
                if now is None:
                    raise Gone from error
                if now.etag != event.etag:
                    raise Changed(now) from error
            raise

    def put(self, name: str, body: Any, /, **extra_args: Any) -> None:
        """Write an object in one request."""

        def send() -> Any:
            if hasattr(body, "seek"):
                body.seek(0)  # an earlier attempt has read it
            return self.client.put_object(Bucket=self.bucket, Key=name, Body=body, **extra_args)

        confirmed(_despite_conflicts(send), "ETag", f"the writing of {name!r}")

    def upload(self, name: str, file: IO[bytes], extra_args: Mapping[str, Any]) -> None:
        """Write a file of any size, which is never held in memory whole."""
        self.client.upload_fileobj(file, self.bucket, name, ExtraArgs=dict(extra_args))

    def copy(self, event: Event, bucket: str, key: str, **extra_args: Any) -> str:
        """Copy the event inside S3; returns the copy's ETag. Raises `Gone` or `Changed`."""
        source = {"Bucket": self.bucket, "Key": event.name}
        send = partial(copies.copy, self.client, event, Bucket=bucket, Key=key, CopySource=source)
        return self._send(event, partial(send, **extra_args), CopySourceIfMatch=event.etag)

    def move(self, event: Event, name: str, **extra_args: Any) -> tuple[Event, Gone | None]:
        """Rename the event; returns it, and `Gone` if something else deleted the original.

        Raises as `copy`; if the event was replaced meanwhile, the copy is removed.
        """
        etag = self.copy(event, self.bucket, name, **extra_args)
        copy = replace(event, name=name, etag=etag)
        try:
            self.delete(event)
        except Gone as gone:
            return copy, gone
        except Changed:
            with suppress(Changed, Gone):
                self.delete(copy)
            raise
        return copy, None

    def delete(self, event: Event) -> None:
        """Delete the event; raises `Gone` or `Changed` if it is not what it was."""
        send = partial(self.client.delete_object, Bucket=self.bucket, Key=event.name)
        answer: Any = self._send(event, send, IfMatch=event.etag)
        if answer["ResponseMetadata"]["HTTPStatusCode"] != HTTPStatus.NO_CONTENT:  # a proxy's 200
            there = self.look(event.name)
            if there and there.etag == event.etag:
                raise UnconfirmedAnswer(f"S3 answered 200 and did not delete {event.name!r}")

    def delete_all(self, events: Sequence[Event]) -> dict[str, Exception]:
        """Delete events; returns errors by name: `Changed` if it was replaced, none if gone."""
        results: dict[str, Exception | None] = {}
        for pause in (0.0, *RESEND_AFTER):
            time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - nothing secret
            results |= self._delete_once(events)
            events = [event for event in events if answers.is_transient(results[event.name])]
            if not events:
                break
        return {name: without_traceback(error) for name, error in results.items() if error}

    def _delete_once(self, events: Sequence[Event]) -> dict[str, Exception | None]:
        # The XML of DeleteObjects cannot hold every character that a key can.
        plain = [event for event in events if event.name.isprintable()]
        results = self._delete_together(plain) if plain else {}
        for event in events:
            # What the answer does not name is not confirmed, and some stores judge ETags wrongly.
            if event.name not in results or error_code(results[event.name]) in answers.CHANGED:
                results[event.name] = None
                try:
                    with suppress(Gone):
                        self.delete(event)
                except Exception as error:  # noqa: BLE001 - the report carries it
                    results[event.name] = error
        return results

    def _delete_together(self, events: list[Event]) -> dict[str, Exception | None]:
        """What DeleteObjects says of each event that its answer names; None: it is deleted."""
        objects = [{"Key": event.name, "ETag": event.etag} for event in events]
        delete: Any = {"Objects": objects, "Quiet": False}
        try:
            answer = self.client.delete_objects(Bucket=self.bucket, Delete=delete)
        except Exception as refusal:  # noqa: BLE001 - the report carries it
            if answers.http_status(refusal) in (400, 405, 501):
                return {}  # Swift and Zenko, say, want the MD5 that boto3 gave up sending
            return dict.fromkeys((event.name for event in events), refusal)
        results: dict[str, Exception | None] = {d["Key"]: None for d in answer.get("Deleted", ())}
        for error in answer.get("Errors", ()):
            gone = error["Code"] in answers.GONE
            results[error["Key"]] = None if gone else ClientError({"Error": error}, "DeleteObjects")
        return results


def _despite_conflicts(send: Callable[[], T]) -> T:
    """Send it again, within reason, when S3 says that another write is under way."""
    for pause in CONFLICT_AFTER:
        try:
            return send()
        except ClientError as error:
            if error_code(error) not in answers.CONFLICT:
                raise
        time.sleep(pause)
    return send()
