"""How servers that speak S3 differ from AWS.

Asked in November 2026 by real requests, with boto3 1.44.5. What was not asked is as on AWS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .faults import Error

# What becomes of a condition. "refused" is 501 NotImplemented, an Error any other refusal; with
# "source" the server applies to the source of a copy what was meant for its target.
Condition = Literal["honoured", "ignored", "refused", "source"] | Error


@dataclass(frozen=True)
class Server:
    """What a server makes of the conditions, and its other peculiarities; by default, AWS's."""

    copy_source_if_match: Condition = "honoured"
    copy_if_none_match: Condition = "honoured"  # on CopyObject and CompleteMultipartUpload
    put_if_none_match: Condition = "honoured"
    delete_if_match: Condition = "honoured"
    delete_objects_etag: Condition = "honoured"
    delete_objects: Error | None = None  # refuses the whole request
    delete_objects_without_md5: Error | None = None  # refuses it for want of Content-MD5
    doubts_etags_of_parts: bool = False  # 412 also to the right ETag of a multipart object
    empty_tagging: bool = False  # GetObjectTagging of no tags answers 200 without a body
    loses_colons: bool = False  # a copy of a name with %3A answers NoSuchKey
    empty_pages: bool = False  # pages after the first are empty if their names have | or :
    max_name: int = 1024  # bytes of UTF-8


SERVERS = {
    "aws": Server(),
    "ceph16": Server(
        copy_source_if_match="ignored",
        copy_if_none_match="ignored",
        delete_if_match="ignored",
        delete_objects_etag="ignored",
        empty_tagging=True,
    ),
    "localstack": Server(
        copy_if_none_match="ignored",
        delete_if_match="refused",
        delete_objects_etag="ignored",
        empty_pages=True,
    ),
    "minio2019": Server(
        copy_if_none_match="ignored",
        delete_if_match="ignored",
        delete_objects_etag="ignored",
        delete_objects_without_md5=Error(400, "MissingContentMD5"),
    ),
    "ministack": Server(copy_if_none_match="ignored"),
    "moto": Server(
        copy_source_if_match="ignored",
        copy_if_none_match="ignored",
        delete_objects_etag="ignored",
        max_name=100_000,
    ),
    "rclone": Server(
        copy_source_if_match="ignored",
        copy_if_none_match="ignored",
        delete_if_match="ignored",
        delete_objects_etag="ignored",
    ),
    "s3rver": Server(
        copy_source_if_match="ignored",
        copy_if_none_match="ignored",
        delete_if_match="ignored",
        delete_objects_etag="ignored",
        loses_colons=True,
    ),
    "swift": Server(
        copy_if_none_match="refused",
        delete_objects_etag="ignored",
        delete_objects_without_md5=Error(400, "InvalidRequest"),
        doubts_etags_of_parts=True,
    ),
    "zenko": Server(
        copy_if_none_match="source",
        delete_if_match="ignored",
        delete_objects_etag="ignored",
        delete_objects_without_md5=Error(400, "BadDigest"),
    ),
}
