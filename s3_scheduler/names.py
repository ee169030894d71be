"""The name of an event, version 1. Pure: no I/O. Nothing else splits or joins names.

    <folder>/<due>|<bucket>|<key>

Names are in UTC and of one width, so S3's listing order is the order in time: S3 lists in UTF-8
byte order, which is the order of Python's `str`
(https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html).
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TypeAlias

from dateutil.parser import isoparse

from .errors import InvalidEvent

MAX_NAME = 1024
"""Bytes of UTF-8: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html"""

When: TypeAlias = datetime | timedelta | str
"""A moment: an aware datetime, a timedelta from now, or an ISO 8601 string with an offset."""

# What botocore takes as a bucket, so that no event waits whose copy it would refuse to send.
_BUCKET = re.compile(
    r"[A-Za-z0-9._-]{1,255}"
    r"|arn:aws[a-z-]*:s3[a-z-]*:[a-z0-9-]*:[0-9]{12}:"
    r"(?:outpost[/:][A-Za-z0-9-]{1,63}[/:])?accesspoint[/:][A-Za-z0-9.-]{1,50}"
)
# Python 3.14 reads 24:00 as the midnight that follows.
_NAME = re.compile(
    r"(\d{4}-\d\d-\d\dT(?!24)\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?)Z\|([^|]+)\|(.+)",
    re.ASCII | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Event:
    """An object that waits in the folder until it is due."""

    due: datetime  # aware, in UTC
    bucket: str  # of the target: a name, or the ARN or alias of an access point
    key: str  # of the target
    name: str  # its full object key in the scheduler's bucket, which `cancel` takes
    size: int  # of its content, in bytes
    etag: str  # that S3 gave its content, with its quotes


def folder_prefix(folder: str) -> str:
    """The folder as a prefix of names: one slash at its end, none at its start."""
    prefix = folder.strip("/")
    if not prefix:
        raise ValueError(f"the folder {folder!r} is empty; pass the name of one, such as 'later'")
    return prefix + "/"


def to_utc(when: When, error: type[ValueError] = ValueError) -> datetime:
    """The moment, in UTC; raises the error without a zone or outside the years 1 to 9999."""
    try:
        moment = isoparse(when) if isinstance(when, str) else when
        if isinstance(moment, timedelta):
            moment = datetime.now(timezone.utc) + moment
        if moment.utcoffset() is not None:
            return moment.astimezone(timezone.utc)
        advice = (
            "has no time zone, so its moment is ambiguous; pass an aware one, such as "
            "datetime.now(timezone.utc) + timedelta(hours=1) or '2030-01-31T09:00:00+01:00'"
        )
    except OverflowError:
        advice = "is outside the years 1 to 9999 in UTC; choose a moment within them"
    except (AttributeError, ValueError):
        advice = (
            "is not a moment; pass an aware datetime, a timedelta from now, or an ISO 8601 string "
            "such as '2030-01-31T09:00:00Z'"
        )
    raise error(f"{when!r} {advice}")


def format_due(moment: datetime) -> str:
    """The moment as names have it: UTC, always with microseconds, or their order would break."""
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def build(prefix: str, due: datetime, bucket: str, key: str) -> str:
    """The name of an event. Raises `InvalidEvent` for what S3 or `parse` would not take."""
    if not _BUCKET.fullmatch(bucket):
        raise InvalidEvent(
            f"{bucket!r} is not a bucket; pass its name, or the ARN or alias of an access point "
            "(letters, digits, '.', '-' and '_', never '|')"
        )
    if not key:
        raise InvalidEvent("the key is empty; pass the key of the object at its target")
    name = f"{prefix}{format_due(due)}|{bucket}|{key}"
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidEvent(f"{key!r} is not text that UTF-8 can hold: {error}") from error
    if size > MAX_NAME:
        raise InvalidEvent(
            f"the name {name!r} would be {size} bytes of UTF-8 and S3 takes {MAX_NAME}; "
            f"make the folder or the key {size - MAX_NAME} bytes shorter"
        )
    return name


def parse(prefix: str, name: str) -> tuple[datetime, str, str]:
    """Due time, bucket and key; raises `InvalidEvent` if it does not parse as an event."""
    match = name.startswith(prefix) and _NAME.fullmatch(name, len(prefix))
    if not match or not _BUCKET.fullmatch(match[2]):
        example = f"{prefix}2030-01-31T09:00:00.000000Z|bucket|key"
        raise InvalidEvent(
            f"{name!r} is not the name of an event in {prefix!r}; those look like {example!r}"
        )
    try:  # a time written by hand may stop early, and zeros are what it leaves out
        due = datetime.fromisoformat(match[1] + "0000-00-00T00:00:00.000000"[len(match[1]) :])
    except ValueError as error:
        raise InvalidEvent(f"{name!r} is due at a time that does not exist: {error}") from error
    return due.replace(tzinfo=timezone.utc), match[2], match[3]


def lower_bound(prefix: str, when: When) -> str:
    """Names of this moment and later sort after this string, earlier ones before it."""
    return prefix + format_due(to_utc(when))


def upper_bound(prefix: str, moment: datetime | None = None) -> str:
    """Names of this moment and earlier sort before this string; None: of any moment."""
    # "}" follows "|", and ":" follows the digits that every due time begins with.
    return prefix + (":" if moment is None else format_due(moment) + "}")


def shard_of(bucket: str, key: str, shards: int) -> int:
    """The shard of a target, the same on every machine and Python (`hash` is neither)."""
    digest = hashlib.sha256(f"{bucket}|{key}".encode()).hexdigest()
    return int(digest[:16], 16) % shards
