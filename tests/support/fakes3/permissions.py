"""Which permissions each request needs, as AWS documents it.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .faults import Location, Obj, Request

Permission = tuple[str, str]  # an action such as "s3:GetObject", and the ARN of a resource
Denied = Collection[Permission] | Callable[[str, str], bool]

BUCKET_ACTIONS = {
    "CreateBucket": "CreateBucket",
    "DeleteBucket": "DeleteBucket",
    "GetBucketVersioning": "GetBucketVersioning",
    "HeadBucket": "ListBucket",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "ListObjectsV2": "ListBucket",
}
KEY_ACTIONS = {
    "AbortMultipartUpload": "AbortMultipartUpload",
    "CompleteMultipartUpload": "PutObject",
    "CopyObject": "PutObject",
    "CreateMultipartUpload": "PutObject",
    "DeleteObject": "DeleteObject",
    "GetObject": "GetObject",
    "GetObjectTagging": "GetObjectTagging",
    "HeadObject": "GetObject",
    "PutObject": "PutObject",
    "PutObjectTagging": "PutObjectTagging",
    "UploadPart": "PutObject",
    "UploadPartCopy": "PutObject",
}


def arn(bucket: str, key: str = "") -> str:
    return f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"


def needed(request: Request, find: Callable[[Location], Obj | None]) -> Iterator[Permission]:
    """What the request needs; `find` looks at a stored object."""
    operation, headers = request.operation, request.headers
    if operation == "ListBuckets":
        yield "s3:ListAllMyBuckets", "*"
    if operation in BUCKET_ACTIONS:
        yield "s3:" + BUCKET_ACTIONS[operation], arn(request.bucket)
    if operation in KEY_ACTIONS:
        target = arn(request.bucket, request.key)
        yield "s3:" + KEY_ACTIONS[operation], target
        if "x-amz-tagging" in headers:
            yield "s3:PutObjectTagging", target
        if "x-amz-acl" in headers:
            yield "s3:PutObjectAcl", target
        if "if-match" in headers:
            yield "s3:GetObject", target
    if request.source:
        source = find(request.source)
        yield "s3:GetObject", arn(*request.source)
        taken = headers.get("x-amz-tagging-directive") != "REPLACE"
        if operation == "CopyObject" and taken and source is not None and source.tags:
            yield "s3:GetObjectTagging", arn(*request.source)
            yield "s3:PutObjectTagging", arn(request.bucket, request.key)


def needed_to_delete(bucket: str, key: str, *, conditional: bool) -> Iterator[Permission]:
    """What a key of a DeleteObjects needs."""
    yield "s3:DeleteObject", arn(bucket, key)
    if conditional:
        yield "s3:GetObject", arn(bucket, key)


def is_denied(denied: Denied, action: str, resource: str) -> bool:
    if callable(denied):
        return denied(action, resource)
    return any(_fits(action, what) and _fits(resource, where) for what, where in denied)


def _fits(text: str, pattern: str) -> bool:
    escaped = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(escaped, text, re.DOTALL) is not None
