"""What a store and its credentials keep of this library's promises, tried on scratch objects."""

import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from . import names
from .answers import CHANGED, error_code, http_status
from .folder import Changed, Folder
from .names import Event

FIELDS: Any = {"ContentType": "text/x-check", "Metadata": {"check": "1"}}
TAGS = {"Tagging": "check=1"}


class Flaw(Exception):
    """Why a promise does not hold: its line's status, empty for the usual one, and the reason."""


class Check:
    """Tries what an application or a runner needs; `tell` takes a status and a text for each line.

    The status is `ok`, `weaker`, `missing`, `skipped`, `advice`, or `left`: could not be removed.
    Its objects are due at the end of time or in `failed/`: no run reads them. `close` removes them.
    """

    def __init__(self, folder: Folder, tell: Callable[[str, str], None]) -> None:
        self.folder = folder
        self.client: Any = folder.client
        self.tell = tell
        self.key = f"s3-scheduler-check-{secrets.token_hex(8)}"
        end = names.to_utc("9999-12-31T23:59:59.999999Z")
        self.name = names.build(folder.prefix, end, folder.bucket, self.key)
        self.here = self.writable = _arn(folder.bucket, f"/{folder.prefix}*")
        self.scratch: list[tuple[str, str]] = []  # bucket and key of what is to be removed

    def close(self) -> None:
        """Remove the scratch objects, and tell which could not be."""
        left = []  # told last, for the program ends if its reader has gone
        for bucket, key in dict.fromkeys(self.scratch):
            try:
                self.client.delete_object(Bucket=bucket, Key=key)
            except (BotoCoreError, ClientError) as error:
                left.append(f"s3://{bucket}/{key}, if it is there: {error}")
        for text in left:
            self.tell("left", text)

    def run(self, roles: Collection[str], target_buckets: Collection[str]) -> None:
        """Try what these roles need, which makes scratch objects."""
        folder, bucket = self.folder, self.folder.bucket
        uri = f"s3://{bucket}/{folder.prefix}"
        if "application" in roles:
            with self._promise(f"applications can schedule in {uri}", "missing"):
                self._application()
        if "runner" in roles:
            self.name = folder.failed_name(self.name, "check")
            self.writable = _arn(bucket, f"/{folder.failed_prefix}*")
            with self._promise(f"runs can deliver from {uri}", "missing"):
                self._runner(target_buckets)
        with self._promise(f"{bucket} keeps no old versions", "skipped"):
            need = f"s3:GetBucketVersioning on {_arn(bucket)}"
            if _ask(need, self.client.get_bucket_versioning, Bucket=bucket).get("Status"):
                raise Flaw("advice", "it does, and every delivery leaves one; add a lifecycle rule")

    def _application(self) -> None:
        folder = self.folder
        stale, _ = self._both(folder.delete, "a rescheduled event keeps its")
        abort = partial(self.client.abort_multipart_upload, Bucket=folder.bucket, Key=self.name)
        with suppress(ClientError):  # there is no such upload, so that none can be left behind
            _ask(f"s3:AbortMultipartUpload on {self.here}", abort, UploadId="none")
        with self._promise("replace=False never overwrites"):
            _refused("If-None-Match", folder.put, self.name, b"another", IfNoneMatch="*")
        with self._promise("cancel never removes a replacement that it has not seen"):
            _refused("If-Match on deletes", folder.delete, stale)

    def _runner(self, target_buckets: Collection[str]) -> None:
        stale, event = self._both(self._delete, "a delivered event arrives with its")
        folder, place = self.folder, (self.folder.bucket, f"{self.name}-once")
        with self._promise("once=True never overwrites"):
            if not folder.can_create:
                raise Flaw("skipped", "it needs boto3 1.40.65 or later")
            self.scratch.append(place)
            folder.copy(event, *place, IfNoneMatch="*")
            _refused("If-None-Match on copies", folder.copy, event, *place, IfNoneMatch="*")
        for bucket in target_buckets:
            with self._promise(f"runs can deliver to s3://{bucket}/", "missing"):
                self._target(event, bucket)
        if not target_buckets:
            self.tell("skipped", "copies to targets: name their buckets with --target-bucket")
        with self._promise("an event replaced during its delivery is not delivered twice"):
            _refused("CopySourceIfMatch", folder.copy, stale, folder.bucket, f"{self.name}-copy")
        with self._promise("an event replaced during its delivery is never lost"):
            _refused("the ETags of deletes", self._delete, stale)

    def _delete(self, event: Event) -> None:
        for error in self.folder.delete_all([event]).values():
            raise error

    def _target(self, event: Event, bucket: str) -> None:
        objects, place = _arn(bucket, "/*"), (bucket, self.key)
        copy = partial(self.folder.copy, event, *place)
        _ask(f"s3:PutObject on {objects}", self._make, *place, copy)
        with self._promise(f"tags arrive in s3://{bucket}/", "skipped"):
            _ask(f"s3:PutObjectTagging on {objects}", copy, TaggingDirective="REPLACE", **TAGS)
        if not self.folder.can_create:
            return
        with self._promise(f"once=True knows what it has delivered to s3://{bucket}/", "skipped"):
            if not _ask(f"s3:GetObject on {objects}", self.folder.has_content, event, *place):
                raise Flaw("weaker", "this store changes their ETags")

    def _both(self, delete: Callable[[Event], None], promise: str) -> tuple[Event, Event]:
        """Try what both roles need; returns an event that was replaced, and what replaced it."""
        bucket, copy = self.folder.bucket, f"{self.name}-copy"
        event = self._write()
        self.scratch.append((bucket, copy))
        self.folder.copy(event, bucket, copy)
        _ask(f"s3:DeleteObject on {self.here}", delete, event)
        with self._promise(f"{promise} content type and metadata"):
            if not FIELDS.items() <= self.client.head_object(Bucket=bucket, Key=copy).items():
                raise Flaw("weaker", "this store loses them")
        with self._promise(f"{promise} tags", "skipped"):
            tagged = self._write("PutObjectTagging", **TAGS)
            _ask(f"s3:GetObjectTagging on {self.here}", self.folder.copy, tagged, bucket, copy)
            if not self.client.get_object_tagging(Bucket=bucket, Key=copy).get("TagSet"):
                raise Flaw("weaker", "this store loses them")
        return event, self._write()

    def _write(self, action: str = "PutObject", **tags: str) -> Event:
        """Write a scratch event, with new content, read it and list it."""
        folder, name = self.folder, self.name
        put = partial(folder.put, name, secrets.token_bytes(8), **FIELDS, **tags)
        _ask(f"s3:{action} on {self.writable}", self._make, folder.bucket, name, put)
        event: Event = _ask(f"s3:GetObject on {self.here}", folder.look, name)
        need = f"s3:ListBucket on {_arn(folder.bucket)} with the prefix {folder.prefix}*"
        if _ask(need, folder.page, name[:-1], limit=1).events != [event]:
            raise Flaw("missing", f"this store does not list {name!r} as it was written")
        return event

    def _make(self, bucket: str, key: str, send: Callable[[], object]) -> None:
        """Make an object, which is to be removed unless S3 denies it: its answer may be lost."""
        self.scratch.append((bucket, key))
        try:
            send()
        except ClientError as error:
            if http_status(error) in (403, 404):
                self.scratch.pop()
            raise

    @contextmanager
    def _promise(self, promise: str, otherwise: str = "weaker") -> Iterator[None]:
        """Tell whether it holds; `otherwise` is the usual status of its line if it does not."""
        try:
            yield
            self.tell("ok", promise)
        except Flaw as flaw:
            status, why = flaw.args
            self.tell(status or otherwise, f"{promise}: {why}")
        except ClientError as error:
            self.tell(otherwise, f"{promise}: this store refuses it: {error}")


def _ask(need: str, send: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Send what takes a permission; raises `Flaw`, in the words of a policy, if it is denied."""
    try:
        return send(*arguments, **options)
    except ClientError as error:
        if error_code(error) in ("AccessDenied", "403"):
            raise Flaw("", f"the permission {need}") from error
        raise


def _refused(condition: str, send: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Send what has a condition that does not hold, which the store is to refuse for that."""
    try:
        send(*arguments, **options)
    except (Changed, ClientError) as error:
        if isinstance(error, ClientError) and error_code(error) not in CHANGED:
            raise Flaw("weaker", f"this store refuses {condition}: {error}") from error
    else:
        raise Flaw("weaker", f"this store ignores {condition}")


def _arn(bucket: str, path: str = "") -> str:
    if bucket.startswith("arn:"):
        return bucket + (path and f"/object{path}")
    return f"arn:aws:s3:::{bucket}{path}"
