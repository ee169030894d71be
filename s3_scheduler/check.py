"""What a store and its credentials keep of this library's promises, tried on scratch objects."""

from __future__ import annotations

import secrets
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from . import names
from .answers import CHANGED, error_code
from .folder import Changed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from .folder import Folder
    from .names import Event


class _GiveUp(Exception):
    """Something is missing without which the rest cannot be tried; it has been told."""


class Check:
    """Tries what an application or a runner needs; `tell` takes a status and a text for each line.

    The status is `ok`, `weaker`, `missing`, `skipped`, `advice`, or `left`: could not be removed.
    Scratch objects are events that no run reads: due at the end of time, or in `failed/`, which is
    where a runner may write.
    """

    def __init__(self, folder: Folder, tell: Callable[[str, str], None]) -> None:
        self.folder = folder
        self.tell = tell
        self.key = f"s3-scheduler-check-{secrets.token_hex(8)}"
        end = datetime.max.replace(tzinfo=timezone.utc)
        self.name = names.build(folder.prefix, end, folder.bucket, self.key)
        self.here = _arn(folder.bucket, folder.prefix)
        self.delete = f"s3:DeleteObject on {self.here}"
        self.scratch: set[tuple[str, str]] = set()

    def run(self, roles: Collection[str], target_buckets: Collection[str]) -> None:
        """Try what these roles need, and remove the scratch objects again."""
        try:
            with suppress(_GiveUp):
                if "application" in roles:
                    self._application(self.name, f"s3:PutObject on {self.here}")
            with suppress(_GiveUp):
                if "runner" in roles:
                    name = self.folder.failed_name(self.name, "check")
                    put = f"s3:PutObject on {_arn(self.folder.bucket, self.folder.failed_prefix)}"
                    self._runner(name, put, target_buckets)
            self._versions()
        finally:
            for line in [line for place in self.scratch if (line := self._remove(*place))]:
                self.tell("left", line)

    def _application(self, name: str, put: str) -> None:
        folder = self.folder
        self._delete(folder.delete, self._write(name, put))
        self.tell("ok", f"list, write, read and delete in s3://{folder.bucket}/{folder.prefix}")
        self._upload(name, put)
        event = self._write(name, put)
        try:
            folder.put(name, b"second", {}, create=True)
            cost = "this store overwrites in spite of If-None-Match"
        except ClientError as error:
            cost = "" if error_code(error) in CHANGED else f"it fails on this store: {error}"
        self._judge("replace=False never overwrites", cost and f"replace=False: {cost}")
        self._write(name, put, b"third")
        promise = "cancel never removes a replacement that it has not seen"
        cost = "cancel may remove a replacement unseen: this store deletes in spite of If-Match"
        deleted = self._acts(self.delete, lambda: folder.delete(event))
        self._judge(promise, cost if deleted else "")
        self._describe(name, put, "a rescheduled event keeps")

    def _upload(self, name: str, put: str) -> None:
        """Begin an upload in parts, which large files take, and abort it."""
        client = self.folder.client
        there: Any = {"Bucket": self.folder.bucket, "Key": name}
        upload = self._ask(put, lambda: client.create_multipart_upload(**there))["UploadId"]
        abort = put.replace("PutObject", "AbortMultipartUpload")
        try:
            self._ask(abort, lambda: client.abort_multipart_upload(**there, UploadId=upload))
        except _GiveUp:
            self.tell("left", f"the upload {upload} of s3://{self.folder.bucket}/{name}")
        except BaseException:
            with suppress(BotoCoreError, ClientError):
                client.abort_multipart_upload(**there, UploadId=upload)
            raise

    def _runner(self, name: str, put: str, target_buckets: Collection[str]) -> None:
        folder = self.folder
        self._delete(self._delete_all, self._write(name, put))
        self.tell("ok", f"list, read and delete in s3://{folder.bucket}/{folder.prefix}")
        tagged = self._describe(name, put, "a delivered event arrives with")
        self.tell("ok", "failed events can be quarantined")
        event = self._write(f"{name}-plain", put)
        for bucket in target_buckets:
            with suppress(_GiveUp):
                self._target(event, bucket, self.key, tagged)
        if not target_buckets:
            self.tell("skipped", "copies to targets: name their buckets with --target-bucket")
            self._target(event, folder.bucket, f"{name}-target", None)
        self._write(event.name, put, b"second")
        place = folder.bucket, f"{name}-replaced"
        self.scratch.add(place)
        copied = self._acts(put, lambda: folder.copy(event, *place))
        self.scratch -= set() if copied else {place}
        cost = "this store copies in spite of CopySourceIfMatch, so it may be delivered twice"
        if self._acts(self.delete, lambda: self._delete_all(event)):
            copied, cost = True, "this store deletes in spite of its ETag, so it may be lost"
        promise = "a replaced event is never delivered or deleted unread"
        self._judge(promise, f"an event replaced during its delivery: {cost}" if copied else "")

    def _target(self, event: Event, bucket: str, key: str, tagged: Event | None) -> None:
        folder, place = self.folder, (bucket, key)
        put, get = (f"s3:{action} on {_arn(bucket, '')}" for action in ("PutObject", "GetObject"))
        cost = ""
        self.scratch.add(place)
        try:
            folder.copy(event, bucket, key, create=folder.can_create)
        except ClientError as error:
            cost = f"this store refuses If-None-Match on copies ({error_code(error)})"
            self._ask(put, lambda: folder.copy(event, bucket, key), place)
        self.tell("ok", f"copy to s3://{bucket}/")
        if tagged:
            tag = put.replace("PutObject", "PutObjectTagging")
            self._may("tags", tag, lambda: folder.copy(tagged, bucket, key))
        if not folder.can_create:
            self.tell("skipped", "once=True: it needs boto3 1.40.65 or later")
            return
        if not cost and self._acts(put, lambda: folder.copy(event, *place, create=True)):
            cost = "this store overwrites in spite of If-None-Match, so it is at least once here"
        same = cost or self._may(
            "once=True", get, lambda: folder.has_content(event, bucket, key, {}) is not False
        )
        if same is False:
            cost = "this store gives the copy another ETag, so what was delivered before fails"
        if same is not None:
            self._judge(f"once=True delivers once to s3://{bucket}/", cost and f"once=True: {cost}")

    def _describe(self, name: str, put: str, promise: str) -> Event | None:
        """See what a copy keeps; returns an event with tags, if they are allowed."""
        folder, client, copy = self.folder, self.folder.client, f"{name}-copy"
        tagged: Event | None
        there: Any = {"Bucket": folder.bucket}
        fields: Any = {"ContentType": "text/x-check", "Metadata": {"check": "1"}}

        def write() -> Any:
            folder.put(name, b"first", {**fields, "Tagging": "check=1"}, create=False)
            return folder.look(name)

        def tags(key: str) -> Any:
            return client.get_object_tagging(**there, Key=key).get("TagSet", [])

        event = self._write(name, put, **fields)
        if tagged := self._may("tags", put.replace("PutObject", "PutObjectTagging"), write):
            may_read = f"s3:GetObjectTagging on {self.here}"
            if self._may("tags", may_read, lambda: tags(name)) is None:
                event, tagged = self._write(name, put, **fields), None
        place = folder.bucket, copy
        self._ask(put, lambda: folder.copy(tagged or event, *place), place)
        head: Any = client.head_object(**there, Key=copy)
        kept = fields == {field: head.get(field) for field in fields}
        if tagged:
            kept = kept and tags(copy) == [{"Key": "check", "Value": "1"}]
        what = "content type, metadata and tags" if tagged else "content type and metadata"
        self._judge(f"{promise} {what}", "" if kept else f"this store loses some of {what}")
        return tagged

    def _versions(self) -> None:
        bucket, client = self.folder.bucket, self.folder.client
        what, need = f"whether {bucket} keeps versions", f"s3:GetBucketVersioning on {_arn(bucket)}"
        answer = self._may(what, need, lambda: client.get_bucket_versioning(Bucket=bucket))
        if answer and answer.get("Status"):
            text = "every delivery leaves one; add a lifecycle rule or use an unversioned bucket"
            self.tell("advice", f"{bucket} keeps old versions: {text}")

    # What all of these do

    def _write(self, name: str, put: str, body: bytes = b"first", **extra: Any) -> Event:
        """Write a scratch object, read it and list it."""
        folder, bucket = self.folder, self.folder.bucket
        self._ask(put, lambda: folder.put(name, body, extra, create=False), (bucket, name))
        event: Event = self._ask(f"s3:GetObject on {self.here}", lambda: folder.look(name))
        need = f"s3:ListBucket on {_arn(bucket)} with the prefix {folder.prefix}*"
        page = self._ask(need, lambda: folder.page(name[:-1], limit=1))
        if page.events != [event]:
            self.tell("missing", f"this store does not list s3://{bucket}/{name} as it was written")
            raise _GiveUp
        return event

    def _delete(self, delete: Callable[[Event], None], event: Event) -> None:
        self._ask(self.delete, lambda: delete(event))
        self.scratch.discard((self.folder.bucket, event.name))

    def _delete_all(self, event: Event) -> None:
        for error in self.folder.delete_all([event]).values():
            raise error

    def _ask(
        self,
        need: str,
        send: Callable[[], Any],
        place: tuple[str, str] | None = None,
        optional: str = "",
    ) -> Any:
        """Send what needs a permission; it may make the object at `place`.

        If it fails, and is not `optional`, nothing that rests on it is tried.
        """
        self.scratch |= {place} if place else set()
        try:
            return send()
        except ClientError as error:
            self.scratch -= {place} if place else set()
            denied = error_code(error) in ("AccessDenied", "403")
            lack = f"the permission {need}" if denied else f"{need} fails: {error}"
            if optional:
                self.tell("skipped", f"{optional}: {lack}")
                return None
            self.tell("missing", lack)
            raise _GiveUp from error

    def _may(self, what: str, need: str, send: Callable[[], Any]) -> Any:
        return self._ask(need, send, optional=what)

    def _acts(self, need: str, send: Callable[[], object]) -> bool:
        """Send what has a condition that does not hold; whether the store does it all the same."""

        def act() -> bool:
            try:
                send()
            except (Changed, ClientError) as error:
                if isinstance(error, ClientError) and error_code(error) not in CHANGED:
                    raise
                return False
            return True

        return bool(self._ask(need, act))

    def _judge(self, promise: str, cost: str) -> None:
        self.tell("weaker" if cost else "ok", cost or promise)

    def _remove(self, bucket: str, key: str) -> str:
        try:
            self.folder.client.delete_object(Bucket=bucket, Key=key)
        except (BotoCoreError, ClientError) as error:
            return f"s3://{bucket}/{key}, if it is there: {error}"
        return ""


def _arn(bucket: str, prefix: str | None = None) -> str:
    is_arn = bucket.startswith("arn:")
    arn = bucket if is_arn else f"arn:aws:s3:::{bucket}"
    return arn if prefix is None else f"{arn}{'/object/' if is_arn else '/'}{prefix}*"
