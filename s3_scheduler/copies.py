"""Copies inside S3, in parts where one request would take S3 too long."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import Any
from urllib.parse import urlencode

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from botocore.handlers import validate_ascii_metadata
from botocore.validate import validate_parameters

from .answers import UNSUPPORTED, UnconfirmedAnswer, confirmed, error_code, http_status
from .names import Event

# Bytes up to which one request is quick enough: S3 copies some 80 MB a second in it
# (https://github.com/aws/aws-sdk-js-v3/issues/2917), and clients wait 60 s for an answer.
THRESHOLD = 1024**3

PART = 256 * 1024**2  # bytes of a part, unless the object would then need more than MAX_PARTS
MAX_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_PARTS_IN_FLIGHT = 4  # of one object; what hangs holds up no other object's parts

# What one CopyObject keeps by itself, and an upload must be told.
_DESCRIPTION = """
    CacheControl ContentDisposition ContentEncoding ContentLanguage ContentType Expires Metadata
""".split()  # noqa: SIM905 - a list would take a line for each


def shape(client: Any, operation: str) -> Any:
    """What boto3 takes for an operation of S3."""
    return client.meta.service_model.operation_model(operation).input_shape


def check_arguments(client: Any, extra_args: Mapping[str, Any]) -> None:
    """Raise `ValueError` for arguments that boto3 does not take for a copy."""
    taken = shape(client, "CopyObject")
    try:
        validate_parameters({"Bucket": "b", "Key": "k", "CopySource": "b/k", **extra_args}, taken)
        validate_ascii_metadata(extra_args)
    except ParamValidationError as error:
        raise ValueError(f"extra_args holds what no copy takes: {error}") from error
    for name, value in extra_args.items():
        known = taken.members[name].metadata.get("enum", [value])
        if value not in known and name != "StorageClass":  # other stores have some of their own
            raise ValueError(f"{name} {value!r} in extra_args is none of {', '.join(known)}")


def copy(client: Any, event: Event, **arguments: Any) -> str:
    """Copy the event, whole or not at all, with CopyObject's arguments; returns the copy's ETag."""
    if event.size > THRESHOLD:
        return _copy_in_parts(client, event, {**arguments, **_description(client, arguments)})
    answer = client.copy_object(**arguments)
    return confirmed(answer.get("CopyObjectResult", {}), "ETag", f"the copy of {event.name!r}")


def _copy_in_parts(client: Any, event: Event, given: dict[str, Any]) -> str:
    def call(method: str, **more: Any) -> Any:
        """Call it with what is given, as far as it takes that."""
        known = shape(client, client.meta.method_to_api_mapping[method]).members
        taken = {k: v for k, v in {**given, **more}.items() if k in known and v is not None}
        return getattr(client, method)(**taken)

    what = f"the copy of {event.name!r}"
    given["UploadId"] = confirmed(call("create_multipart_upload"), "UploadId", what)
    try:
        given["MultipartUpload"] = {"Parts": _copy_parts(event, call)}
        etag = confirmed(call("complete_multipart_upload"), "ETag", what)
    except BaseException:
        with suppress(BotoCoreError, ClientError):  # the first error tells more
            call("abort_multipart_upload")
        raise
    try:
        size = call("head_object", IfNoneMatch=None)["ContentLength"]
        if size != event.size:
            raise UnconfirmedAnswer(f"{what} has {size} bytes, not {event.size}")
    except ClientError as error:
        if http_status(error) not in (403, 404):  # the runner may not look, or it was consumed
            raise
    return etag


def _copy_parts(event: Event, call: Callable[..., Any]) -> list[dict[str, Any]]:
    """What completes the upload. When this fails no part is in flight, so an abort leaves none."""
    size = max(PART, -(-event.size // MAX_PARTS))

    def copy_part(number: int, first: int) -> dict[str, Any]:
        place = f"bytes={first}-{min(first + size, event.size) - 1}"
        answer = call("upload_part_copy", PartNumber=number, CopySourceRange=place)
        part = {**answer.get("CopyPartResult", {}), "PartNumber": number}
        confirmed(part, "ETag", f"the copy of {event.name!r}")
        return {k: v for k, v in part.items() if k != "LastModified"}  # its ETag and checksums

    with ThreadPoolExecutor(MAX_PARTS_IN_FLIGHT, "s3_scheduler_parts") as pool:
        return list(pool.map(copy_part, count(1), range(0, event.size, size)))


def _description(client: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the upload that make its object what a plain copy would be."""
    there = dict(given["CopySource"])
    if owner := given.get("ExpectedSourceBucketOwner"):
        there["ExpectedBucketOwner"] = owner
    described: dict[str, Any] = {}
    if given.get("MetadataDirective") != "REPLACE":
        head = client.head_object(**there)
        described = {name: head.get(name) for name in _DESCRIPTION}
    if given.get("TaggingDirective") != "REPLACE":
        try:
            tags = client.get_object_tagging(**there).get("TagSet", ())  # none: Ceph sends no body
        except ClientError as error:
            if error_code(error) not in UNSUPPORTED:
                raise
            tags = ()
        described["Tagging"] = urlencode({tag["Key"]: tag["Value"] for tag in tags}) or None
    return described
