"""A copy in parts, for objects that take S3 too long to copy in one request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from botocore.exceptions import BotoCoreError, ClientError

from .answers import UNSUPPORTED, UnconfirmedAnswer, error_code, http_status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef

    from .names import Event

THRESHOLD = 1024**3
"""Bytes up to which one CopyObject is quick enough: S3 copies some 80 MB a second in one request
(https://github.com/aws/aws-sdk-js-v3/issues/2917), and clients wait 60 s for an answer."""

PART = 256 * 1024**2
"""Bytes of a part, unless the object would then need more than MAX_PARTS."""

MAX_PARTS = 10_000
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""

MAX_PARTS_IN_FLIGHT = 4
"""Parts of one object that are copied at once; what hangs holds up no other object's parts."""

# What one CopyObject keeps by itself, and an upload must be told.
_DESCRIPTION = (
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
    "ContentType",
    "Expires",
    "Metadata",
)


def copy(
    client: S3Client,
    source: CopySourceTypeDef,
    event: Event,
    target: Mapping[str, str],
    extra_args: Mapping[str, Any],
) -> str:
    """Copy the object inside S3 so that it appears whole, with its headers, metadata and tags.

    `extra_args` is as for CopyObject, with its conditions. Returns the copy's ETag. If it fails,
    no parts are left behind, as far as S3 lets itself be told.
    """
    extra = dict(extra_args)
    created = {name: extra.pop(name) for name in ("IfNoneMatch",) if name in extra}
    from_source = {
        name: extra.pop(name)
        for name in ("CopySourceIfMatch", "ExpectedSourceBucketOwner")
        if name in extra
    }
    of_target = ("ExpectedBucketOwner", "RequestPayer")
    to_target: Any = {name: extra.pop(name) for name in of_target if name in extra}
    to_target |= target
    customer_key: Any = {k: v for k, v in extra.items() if k.startswith("SSECustomer")}
    description = _description(client, source, extra, from_source.get("ExpectedSourceBucketOwner"))
    upload = client.create_multipart_upload(**description, **to_target)
    to_upload = {**to_target, "UploadId": _confirmed(upload, "UploadId", event)}
    size = max(PART, -(-event.size // MAX_PARTS))

    def copy_part(number: int) -> dict[str, Any]:
        first = (number - 1) * size
        last = min(first + size, event.size) - 1
        answer = client.upload_part_copy(
            **to_upload,
            **from_source,
            **customer_key,
            CopySource=source,
            CopySourceRange=f"bytes={first}-{last}",
            PartNumber=number,
        )
        part: dict[str, Any] = dict(answer.get("CopyPartResult", {}))
        part.pop("LastModified", None)  # what is left is its ETag and checksums
        _confirmed(part, "ETag", event)
        return {**part, "PartNumber": number}

    with ThreadPoolExecutor(MAX_PARTS_IN_FLIGHT, "s3_scheduler_parts") as pool:
        try:
            parts: Any = list(pool.map(copy_part, range(1, -(-event.size // size) + 1)))
            answer = client.complete_multipart_upload(
                **to_upload, **created, **customer_key, MultipartUpload={"Parts": parts}
            )
            etag = _confirmed(answer, "ETag", event)
        except BaseException:
            # An abort would leave behind what is still in flight.
            pool.shutdown(cancel_futures=True)
            with suppress(BotoCoreError, ClientError):  # the first error tells more
                client.abort_multipart_upload(**to_upload)
            raise
    _compare_size(client, event, {**to_target, **customer_key})
    return etag


def _description(
    client: S3Client, source: CopySourceTypeDef, extra: Mapping[str, Any], owner: str | None
) -> dict[str, Any]:
    """The arguments of the upload that make its object what a plain copy would be."""
    there: Any = {**source, **({"ExpectedBucketOwner": owner} if owner else {})}
    known: Any = client.meta.service_model.operation_model("CreateMultipartUpload").input_shape
    described = {name: value for name, value in extra.items() if name in known.members}
    if extra.get("MetadataDirective") != "REPLACE":
        head: Any = client.head_object(**there)
        described = {k: v for k, v in described.items() if k not in _DESCRIPTION}
        described |= {name: head[name] for name in _DESCRIPTION if name in head}
    if extra.get("TaggingDirective") != "REPLACE":
        described.pop("Tagging", None)
        if tags := _tags(client, there):
            described["Tagging"] = urlencode(tags)
    return described


def _tags(client: S3Client, there: Any) -> dict[str, str]:
    try:
        answer = client.get_object_tagging(**there)
    except ClientError as error:
        if error_code(error) in UNSUPPORTED:
            return {}
        raise
    # Ceph answers with an empty body where there are none.
    return {tag["Key"]: tag["Value"] for tag in answer.get("TagSet", ())}


def _confirmed(answer: Any, field: str, event: Event) -> str:
    if not answer.get(field):
        raise UnconfirmedAnswer(f"S3 answered 200 and did not confirm the copy of {event.name!r}")
    return str(answer[field])


def _compare_size(client: S3Client, event: Event, there: Any) -> None:
    try:
        size = client.head_object(**there)["ContentLength"]
    except ClientError as error:
        # The runner may not look, or the object was consumed already.
        if http_status(error) in (403, 404):
            return
        raise
    if size != event.size:
        raise UnconfirmedAnswer(f"the copy of {event.name!r} has {size} bytes, not {event.size}")
