"""What is done to a waiting object: each step on condition that it is still what was seen."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.exceptions import ClientError
from s3transfer.subscribers import BaseSubscriber

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef, HeadObjectOutputTypeDef

    from .names import Event

MAX_COPY = 5 * 1024**3
"""Bytes that one CopyObject takes; a larger object needs a multipart copy:
https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html"""

PART = 256 * 1024**2
"""Bytes of a part of such a copy: 20 requests for the smallest object that needs one."""

# An answer to HEAD has no body, and so no code but its status.
GONE = {"NoSuchKey", "404"}
CHANGED = {"PreconditionFailed", "412"}
CONFLICT = {"ConditionalRequestConflict", "OperationAborted", "409"}
UNSUPPORTED = {"NotImplemented", "501"}

# What a multipart copy must be given to keep; a plain copy keeps it by itself.
_KEPT = (
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
    "ContentType",
    "Expires",
    "Metadata",
)


def error_code(error: BaseException | None) -> str:
    """S3's error code; empty if the error is not an answer of S3."""
    if not isinstance(error, ClientError):
        return ""
    return error.response.get("Error", {}).get("Code") or ""


def head(client: S3Client, bucket: str, name: str) -> HeadObjectOutputTypeDef | None:
    """What S3 tells of an object; None: there is none."""
    try:
        return client.head_object(Bucket=bucket, Key=name)
    except ClientError as error:
        if error_code(error) in GONE:
            return None
        raise


def delete(client: S3Client, bucket: str, name: str, etag: str) -> None:
    """Delete the object; raises S3's GONE or CHANGED if it is not what was seen."""
    try:
        client.delete_object(Bucket=bucket, Key=name, IfMatch=etag)
    except ClientError as error:
        if error_code(error) not in UNSUPPORTED:
            raise
        # A store without conditional deletes: what was seen a moment ago has to do.
        client.delete_object(Bucket=bucket, Key=name)


def move(
    client: S3Client,
    bucket: str,
    event: Event,
    name: str,
    extra_args: Mapping[str, Any] | None = None,
    *,
    withdraw: bool = False,
) -> None:
    """Rename the object; raises S3's GONE or CHANGED, and nothing moved, if it is not as seen.

    When it goes between copy and delete, it was removed, or another moved it to the same name. With
    `withdraw` that is GONE, and the copy is withdrawn; without, the copy stays, and all is well.
    """
    extra = dict(extra_args or {})
    # Of two that move it there at once, each could take the other's copy for its own. boto3 knows
    # the condition since S3 does, October 2025, and asks for none when it copies in parts:
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html
    known: Any = client.meta.service_model.operation_model("CopyObject").input_shape
    if withdraw and event.size <= MAX_COPY and "IfNoneMatch" in known.members:
        extra["IfNoneMatch"] = "*"
    etag = copy(client, bucket, event, bucket, name, extra)
    if not etag:
        copied = head(client, bucket, name)
        etag = copied["ETag"] if copied else ""
    try:
        delete(client, bucket, event.name, event.etag)
    except ClientError as error:
        if error_code(error) not in GONE | CHANGED | CONFLICT:
            raise
        # When boto3 tried twice, the first may have deleted it: then the copy is all there is.
        retried = error.response["ResponseMetadata"].get("RetryAttempts")
        if (retried or not withdraw) and not head(client, bucket, event.name):
            return
        try:
            if etag:  # or it would be deleted whatever it is
                delete(client, bucket, name, etag)
        except ClientError as left:
            if error_code(left) not in GONE | CHANGED:
                raise
        raise


def copy(
    client: S3Client,
    bucket: str,
    event: Event,
    to_bucket: str,
    to_key: str,
    extra_args: Mapping[str, Any] | None = None,
) -> str:
    """Copy the object inside S3, with its headers, metadata and tags.

    Returns the copy's ETag; empty if S3 did not tell, as of a copy in parts. Raises S3's GONE or
    CHANGED if the object is not what was seen.
    """
    extra = dict(extra_args or {})
    source: CopySourceTypeDef = {"Bucket": bucket, "Key": event.name}
    if event.size > MAX_COPY:
        _copy_in_parts(client, source, event, to_bucket, to_key, extra)
        return ""
    try:
        answer = client.copy_object(
            Bucket=to_bucket, Key=to_key, CopySource=source, CopySourceIfMatch=event.etag, **extra
        )
    except ClientError as error:
        if error_code(error) not in UNSUPPORTED:
            raise
        # A store without conditional copies: the condition on the delete has to do.
        extra.pop("IfNoneMatch", None)
        answer = client.copy_object(Bucket=to_bucket, Key=to_key, CopySource=source, **extra)
    return answer.get("CopyObjectResult", {}).get("ETag", "")


def _copy_in_parts(
    client: S3Client,
    source: CopySourceTypeDef,
    event: Event,
    to_bucket: str,
    to_key: str,
    extra_args: dict[str, Any],
) -> None:
    # Left to itself the transfer manager looks at the source with the owner expected of the
    # target, and keeps headers and tags or not as its version goes: so look here, and tell it.
    owner = extra_args.pop("ExpectedSourceBucketOwner", None)
    there: dict[str, Any] = {**source, **({"ExpectedBucketOwner": owner} if owner else {})}
    tags = client.get_object_tagging(**there)["TagSet"]
    seen = client.head_object(**there, IfMatch=event.etag)
    kept: dict[str, Any] = {field: value for field, value in seen.items() if field in _KEPT}
    if tags:
        kept["Tagging"] = urlencode({tag["Key"]: tag["Value"] for tag in tags})
    directives = {"MetadataDirective": "REPLACE", "TaggingDirective": "REPLACE"}
    arguments = {**kept, **extra_args, **directives, "CopySourceIfMatch": event.etag}

    class Seen(BaseSubscriber):
        def on_queued(self, future: Any, **_: Any) -> None:
            future.meta.provide_transfer_size(event.size)
            with suppress(AttributeError):  # older managers do not ask
                future.meta.provide_object_etag(event.etag)

    config = TransferConfig(multipart_chunksize=PART, preferred_transfer_client="classic")
    try:
        with create_transfer_manager(client, config) as manager:
            manager.copy(source, to_bucket, to_key, arguments, [Seen()]).result()
    except Exception as error:
        # Newer managers set the tags last, when a consumer may have taken the copy away already.
        tagging = getattr(error, "operation_name", None) == "PutObjectTagging"
        if tagging and error_code(error) in GONE:
            return
        # Newer managers wrap the answer that says that a part's source has changed.
        if isinstance(error.__context__, ClientError):
            raise error.__context__ from None
        raise
