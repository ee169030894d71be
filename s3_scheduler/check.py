"""What a store and its credentials keep of this library's promises, tried on scratch objects."""

import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from . import names
from .answers import CHANGED, error_code, http_status
from .folder import Changed, Folder
from .names import Event

FIELDS: Any = {"ContentType": "text/x-check", "Metadata": {"check": "1"}}
TAGS = [{"Key": "check", "Value": "1"}]


class Missing(Exception):
    """What is missing here, so that nothing that rests on it can be tried."""


class Check:
    """Tries what an application or a runner needs; `tell` takes a status and a text for each line.

    The status is `ok`, `weaker`, `missing`, `skipped`, `advice`, or `left`: could not be removed.
    Scratch objects are events that no run reads: due at the end of time, or in `failed/`, which is
    where a runner may write. `close` removes them.
    """

    def __init__(self, folder: Folder, tell: Callable[[str, str], None]) -> None:
        self.folder = folder
        self.client: Any = folder.client
        self.tell = tell
        self.key = f"s3-scheduler-check-{secrets.token_hex(8)}"
        end = datetime.max.replace(tzinfo=timezone.utc)
        self.name = names.build(folder.prefix, end, folder.bucket, self.key)
        self.here = self.writable = _arn(folder.bucket, f"/{folder.prefix}*")
        self.scratch: list[tuple[str, Callable[[], object]]] = []  # what to remove, and how

    def close(self) -> None:
        """Remove the scratch objects, and tell which could not be."""
        left = {}
        for what, remove in self.scratch:
            try:
                remove()
            except (BotoCoreError, ClientError) as error:
                left[what] = error
        for what, why in left.items():
            self.tell("left", f"{what}, if it is there: {why}")

    def run(self, roles: Collection[str], target_buckets: Collection[str]) -> None:
        """Try what these roles need, which makes scratch objects."""
        if "application" in roles:
            with self._or_tell("missing"):
                self._application()
        if "runner" in roles:
            self.name = self.folder.failed_name(self.name, "check")
            self.writable = _arn(self.folder.bucket, f"/{self.folder.failed_prefix}*")
            with self._or_tell("missing"):
                self._runner(target_buckets)
        self._versions()

    def _application(self) -> None:
        folder = self.folder
        event, _ = self._both(folder.delete, "a rescheduled event keeps its")
        _ask("AbortMultipartUpload", self.here, self._upload)
        create = partial(folder.put, self.name, b"second", IfNoneMatch="*")
        self._promise("replace=False never overwrites", _flaw("If-None-Match", create))
        self._write(b"third")
        flaw = _flaw("If-Match on deletes", partial(folder.delete, event))
        self._promise("cancel never removes a replacement that it has not seen", flaw)

    def _upload(self) -> None:
        """Abort an upload in parts; it does not exist, so that none can be left behind."""
        there = {"Bucket": self.folder.bucket, "Key": self.name, "UploadId": "none"}
        try:
            self.client.abort_multipart_upload(**there)
        except ClientError as error:
            if error_code(error) in ("AccessDenied", "403"):  # S3 judges that first
                raise

    def _runner(self, target_buckets: Collection[str]) -> None:
        event, tagged = self._both(self._delete, "a delivered event arrives with its")
        self.tell("ok", "failed events can be quarantined")
        self._once(partial(self._copy, event, key=f"{self.name}-once", IfNoneMatch="*"))
        for bucket in target_buckets:
            with self._or_tell("missing"):
                self._target(event, tagged, bucket)
        if not target_buckets:
            self.tell("skipped", "copies to targets: name their buckets with --target-bucket")
        self._write(b"second")
        flaw = _flaw("CopySourceIfMatch", partial(self._copy, event))
        self._promise("an event replaced during its delivery is not delivered twice", flaw)
        flaw = _flaw("the ETags of deletes", partial(self._delete, event))
        self._promise("an event replaced during its delivery is never lost", flaw)

    def _once(self, create: Callable[[], object]) -> None:
        if not self.folder.can_create:
            self.tell("skipped", "once=True: it needs boto3 1.40.65 or later")
            return
        try:
            create()
            flaw = _flaw("If-None-Match on copies", create)
        except ClientError as error:
            flaw = f"this store refuses If-None-Match on copies: {error}"
        self._promise("once=True never overwrites", flaw)

    def _target(self, event: Event, tagged: Event | None, bucket: str) -> None:
        objects, place = _arn(bucket, "/*"), (bucket, self.key)
        _ask("PutObject", objects, partial(self._copy, event, *place))
        self.tell("ok", f"copy to s3://{bucket}/")
        if tagged:
            with self._or_tell("skipped", "tags: "):
                _ask("PutObjectTagging", objects, partial(self._copy, tagged, *place))
        if not self.folder.can_create:
            return
        with self._or_tell("skipped", "once=True: "):
            look = partial(self.folder.has_content, event, *place)
            flaw = "" if _ask("GetObject", objects, look) else "this store changes their ETags"
            self._promise(f"once=True knows what it has delivered to s3://{bucket}/", flaw)

    def _both(self, delete: Callable[[Event], None], promise: str) -> tuple[Event, Event | None]:
        """Try what both roles need; returns an event, and one with tags if they are allowed."""
        bucket, prefix, flaw = self.folder.bucket, self.folder.prefix, "this store loses them"
        _ask("DeleteObject", self.here, partial(delete, self._write()))
        self.tell("ok", f"list, write, read and delete in s3://{bucket}/{prefix}")
        event = self._write()
        _ask("PutObject", self.writable, partial(self._copy, event))
        copy = {"Bucket": bucket, "Key": f"{self.name}-copy"}
        kept = FIELDS.items() <= self.client.head_object(**copy).items()
        self._promise(f"{promise} content type and metadata", "" if kept else flaw)
        with self._or_tell("skipped", "tags: "):
            tagged = self._write(b"first", "PutObjectTagging", Tagging="check=1")
            _ask("GetObjectTagging", self.here, partial(self._copy, tagged))
            kept = self.client.get_object_tagging(**copy).get("TagSet") == TAGS
            self._promise(f"{promise} tags", "" if kept else flaw)
            return event, tagged
        return event, None

    def _versions(self) -> None:
        bucket = self.folder.bucket
        with self._or_tell("skipped", f"whether {bucket} keeps versions: "):
            look = partial(self.client.get_bucket_versioning, Bucket=bucket)
            if _ask("GetBucketVersioning", _arn(bucket), look).get("Status"):
                text = "keeps old versions: every delivery leaves one; add a lifecycle rule"
                self.tell("advice", f"{bucket} {text}")

    # What all of these do

    def _write(self, body: bytes = b"first", action: str = "PutObject", **more: Any) -> Event:
        """Write a scratch event, read it and list it."""
        folder, name = self.folder, self.name + ("-tagged" if more else "")
        put = partial(folder.put, name, body, **FIELDS, **more)
        _ask(action, self.writable, partial(self._make, folder.bucket, name, put))
        event: Event = _ask("GetObject", self.here, partial(folder.look, name))
        where = f"{_arn(folder.bucket)} with the prefix {folder.prefix}*"
        page = _ask("ListBucket", where, partial(folder.page, name[:-1], limit=1))
        if page.events != [event]:
            raise Missing(f"this store does not list s3://{folder.bucket}/{name} as it was written")
        return event

    def _copy(self, event: Event, bucket: str = "", key: str = "", **more: str) -> None:
        bucket, key = bucket or self.folder.bucket, key or f"{self.name}-copy"
        self._make(bucket, key, partial(self.folder.copy, event, bucket, key, **more))

    def _make(self, bucket: str, key: str, send: Callable[[], object]) -> None:
        """Make an object, which is to be removed unless S3 denies it: its answer may be lost."""
        remove = partial(self.client.delete_object, Bucket=bucket, Key=key)
        self.scratch.append((f"s3://{bucket}/{key}", remove))
        try:
            send()
        except ClientError as error:
            if http_status(error) in (403, 404):
                self.scratch.pop()
            raise

    def _delete(self, event: Event) -> None:
        for error in self.folder.delete_all([event]).values():
            raise error

    def _promise(self, promise: str, flaw: str) -> None:
        text = f"{promise}: not here, as {flaw}" if flaw else promise
        self.tell("weaker" if flaw else "ok", text)

    @contextmanager
    def _or_tell(self, status: str, what: str = "") -> Iterator[None]:
        try:
            yield
        except Missing as missing:
            self.tell(status, f"{what}{missing}")


def _ask(action: str, resource: str, send: Callable[[], Any]) -> Any:
    """Send what takes a permission; raises `Missing`, in the words of a policy."""
    try:
        return send()
    except ClientError as error:
        lack = f"s3:{action} on {resource}"
        denied = error_code(error) in ("AccessDenied", "403")
        raise Missing(f"the permission {lack}" if denied else f"{lack} fails: {error}") from error


def _flaw(condition: str, send: Callable[[], object]) -> str:
    """Send what has a condition that does not hold; empty if the store refuses it for that."""
    try:
        send()
    except (Changed, ClientError) as error:
        refused = isinstance(error, Changed) or error_code(error) in CHANGED
        return "" if refused else f"this store refuses {condition}: {error}"
    return f"this store ignores {condition}"


def _arn(bucket: str, path: str = "") -> str:
    if bucket.startswith("arn:"):
        return bucket + (path and f"/object{path}")
    return f"arn:aws:s3:::{bucket}{path}"
