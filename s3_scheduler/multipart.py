"""A copy in parts, for objects that take S3 too long to copy in one request."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from botocore.exceptions import BotoCoreError, ClientError

from .answers import UNSUPPORTED, UnconfirmedAnswer, confirmed, error_code, http_status
from .names import Event

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef

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
    *("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType"),
    *("Expires", "Metadata"),
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
    what = f"the copy of {event.name!r}"
    given = {**extra_args, **_description(client, source, extra_args), **target}

    def arguments(operation: str, **more: Any) -> Any:
        """What was given, as far as this operation takes it."""
        shape: Any = client.meta.service_model.operation_model(operation).input_shape
        known = {name: value for name, value in given.items() if name in shape.members}
        return {name: value for name, value in (known | more).items() if value is not None}

    answer = client.create_multipart_upload(**arguments("CreateMultipartUpload"))
    upload = {"UploadId": confirmed(answer, "UploadId", what)}
    size = max(PART, -(-event.size // MAX_PARTS))

    def copy_part(number: int) -> dict[str, Any]:
        place: dict[str, Any] = {"CopySource": source, "PartNumber": number}
        last = min(number * size, event.size) - 1
        place["CopySourceRange"] = f"bytes={(number - 1) * size}-{last}"
        answer = client.upload_part_copy(**arguments("UploadPartCopy", **upload, **place))
        part: dict[str, Any] = dict(answer.get("CopyPartResult", {}))
        part.pop("LastModified", None)  # what is left is its ETag and checksums
        confirmed(part, "ETag", what)
        return {**part, "PartNumber": number}

    with ThreadPoolExecutor(MAX_PARTS_IN_FLIGHT, "s3_scheduler_parts") as pool:
        try:
            parts = list(pool.map(copy_part, range(1, -(-event.size // size) + 1)))
            done = arguments("CompleteMultipartUpload", **upload, MultipartUpload={"Parts": parts})
            etag = confirmed(client.complete_multipart_upload(**done), "ETag", what)
        except BaseException:
            pool.shutdown()  # an abort would leave behind what is still in flight
            with suppress(BotoCoreError, ClientError):  # the first error tells more
                client.abort_multipart_upload(**arguments("AbortMultipartUpload", **upload))
            raise
    _compare_size(client, event, arguments("HeadObject", IfNoneMatch=None))
    return etag


def _description(
    client: S3Client, source: CopySourceTypeDef, extra_args: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of the upload that make its object what a plain copy would be."""
    owner = extra_args.get("ExpectedSourceBucketOwner")
    there: Any = {**source, **({"ExpectedBucketOwner": owner} if owner else {})}
    described: dict[str, Any] = {}
    if extra_args.get("MetadataDirective") != "REPLACE":
        head: Any = client.head_object(**there)
        described = {name: head.get(name) for name in _DESCRIPTION}
    if extra_args.get("TaggingDirective") != "REPLACE":
        described["Tagging"] = urlencode(_tags(client, there)) or None
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
