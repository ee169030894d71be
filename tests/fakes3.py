"""An S3 in memory, over real HTTP on 127.0.0.1, that fails on demand in every way S3 can.

In a test:

    with FakeS3("events", "target") as s3:
        s3.put("events", name, b"body", content_type="text/plain", x_amz_tagging="a=1")
        s3.fault = on("CopyObject", Reset(after=True))  # the first copy happens, its answer is lost
        run_due(Scheduler("events", "later", s3.client(retries={"total_max_attempts": 3})))
        assert s3.count()["CopyObject"] == 2
        assert [change.action for change in s3.history] == ["put", "copy", "copy", "delete"]

For a benchmark, in a process of its own: `with spawn(latency=0.03, waiting=1_000_000) as s3`, or
`python fakes3.py --latency 0.03 --waiting 1000000`, which prints its URL and serves.

It answers as AWS documents it, and is nowhere kinder (`test_conformance.py` holds it against a real
server). Keys are sorted as `str`, which is the order of their UTF-8 bytes. Signatures are not
checked.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import hashlib
import itertools
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote_plus, unquote, unquote_plus
from urllib.request import ProxyHandler, build_opener
from xml.etree import ElementTree as ET

from sortedcontainers import SortedDict  # type: ignore[import-untyped]

Location = tuple[str, str]  # bucket and key

# --- What tests see -------------------------------------------------------------------------------


@dataclass(slots=True)
class Obj:
    """A stored object. It is never changed, only replaced: many names may share one."""

    content: bytes
    size: int  # bytes; of an object that only pretends to be large, more than there are
    etag: str  # in quotes
    headers: dict[str, str]  # content-type and the like; all names are in lower case
    metadata: dict[str, str]  # without x-amz-meta-
    tags: dict[str, str]
    modified: int  # seconds since 1970


@dataclass(slots=True)
class Request:
    """A request as it was read."""

    method: str
    operation: str  # as boto3 spells it, such as "CopyObject"
    bucket: str
    key: str
    source: Location | None  # of copies
    keys: list[str]  # of a DeleteObjects
    headers: dict[str, str]  # names in lower case
    query: dict[str, str]
    body: bytes
    xml: ET.Element | None  # the body, if it is a document
    time: float  # of its arrival, time.monotonic()
    status: int | None = None  # of the answer; None: not answered yet, or never


class Change(NamedTuple):
    """Something that really happened to an object."""

    action: str  # "put", "copy" or "delete"
    bucket: str
    key: str
    content: bytes
    etag: str
    source: Location | None  # of a copy
    time: float  # time.monotonic()


@dataclass(frozen=True)
class Fault:
    """What befalls one request: instead of acting or, with `after`, once it has acted."""

    after: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Error(Fault):
    """S3 answers this error."""

    status: int
    code: str


@dataclass(frozen=True)
class CopyError(Fault):
    """S3 answers 200, with this error in the body."""

    code: str


@dataclass(frozen=True)
class Hang(Fault):
    """Nothing is answered; the connection stays open until the client goes away."""


@dataclass(frozen=True)
class Reset(Fault):
    """The connection is reset (RST)."""


@dataclass(frozen=True)
class Delay(Fault):
    """The request acts after these seconds; with `after`, at once, but its answer is late."""

    seconds: float


@dataclass(frozen=True)
class KeyErrors(Fault):
    """These keys of a DeleteObjects fail with these codes; the others are deleted."""

    errors: Mapping[str, str]


def on(
    operation: str, *faults: Fault | None, key: str | None = None
) -> Callable[[Request], Fault | None]:
    """Faults for the next requests of one operation (and key), in turn; none after the last."""
    left = iter(faults)

    def fault(request: Request) -> Fault | None:
        met = request.operation == operation and key in (None, request.key)
        return next(left, None) if met else None

    return fault


# --- HTTP and XML ---------------------------------------------------------------------------------


class Answer(NamedTuple):
    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""


class S3Error(Exception):
    def __init__(self, status: int, code: str, message: str = "") -> None:
        self.status, self.code, self.message = status, code, message

    def answer(self, request: Request) -> Answer:
        inner = tag("Code", self.code) + tag("Message", escape(self.message or self.code))
        inner += tag("BucketName", escape(request.bucket)) + tag("Key", escape(request.key))
        return xml(tag("Error", inner + tag("RequestId", "FAKE")), self.status)


NO_KEY = S3Error(404, "NoSuchKey", "The specified key does not exist.")
NO_BUCKET = S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
NO_UPLOAD = S3Error(404, "NoSuchUpload", "The specified multipart upload does not exist.")
TOO_LONG = S3Error(400, "KeyTooLongError", "Your key is too long")
MALFORMED = S3Error(400, "MalformedXML", "The XML you provided was not well-formed")
FAILED = S3Error(412, "PreconditionFailed", "A pre-condition you specified did not hold")

# XML 1.0 has no place for control characters; S3 writes them so nevertheless, and parsers fail.
_ESCAPES = {code: f"&#x{code:x};" for code in (*range(32), *b"&<>\"'", 0x7F, 0xFFFE, 0xFFFF)}


def escape(text: str) -> str:
    return text.translate(_ESCAPES)


def url_encoded(text: str) -> str:
    return quote_plus(text, safe="/")


def tag(name: str, inner: object) -> str:
    return "" if inner == "" else f"<{name}>{inner}</{name}>"


def xml(document: str, status: int = 200) -> Answer:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n{document}'
    return Answer(status, {"content-type": "application/xml"}, text.encode())


def result(name: str, inner: str) -> Answer:
    return xml(f'<{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</{name}>')


@lru_cache
def iso_date(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


@lru_cache
def http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def parsed_headers(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def dechunk(data: bytes | bytearray) -> tuple[bytes, dict[str, str], int] | None:
    """Content, trailers and length of a chunked body, HTTP's or S3's own; None: not all there."""
    content: list[bytes] = []
    start = 0
    while (end := data.find(b"\r\n", start)) >= 0:
        size = int(data[start:end].partition(b";")[0], 16)
        if size == 0:
            if (last := data.find(b"\r\n\r\n", end)) < 0:
                return None
            trailers = data[end + 2 : last].decode("latin-1").split("\r\n")
            return b"".join(content), parsed_headers(trailers), last + 4
        content.append(bytes(data[end + 2 : end + 2 + size]))
        start = end + 2 + size + 2
    return None


def check_content(headers: Mapping[str, str], content: bytes) -> None:
    digests: dict[str, Callable[[], bytes]] = {
        "content-md5": lambda: hashlib.md5(content).digest(),
        "x-amz-checksum-crc32": lambda: struct.pack(">I", zlib.crc32(content)),
        "x-amz-checksum-sha256": lambda: hashlib.sha256(content).digest(),
    }
    for name, digest in digests.items():
        if name in headers and base64.b64decode(headers[name]) != digest():
            raise S3Error(400, "BadDigest", f"The {name} you specified did not match")


# --- Objects --------------------------------------------------------------------------------------

META = "x-amz-meta-"
STORAGE_CLASS = "x-amz-storage-class"
NOT_COPIED = (STORAGE_CLASS, "x-amz-website-redirect-location")
KEPT = (
    *("cache-control", "content-disposition", "content-encoding", "content-language"),
    *("content-type", "expires", *NOT_COPIED),
)


def etag_of(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def described(headers: Mapping[str, str]) -> dict[str, Any]:
    """The headers, metadata and tags of an object, out of those of a request."""
    kept = {name: headers[name] for name in KEPT if name in headers}
    encodings = [part.strip() for part in kept.pop("content-encoding", "").split(",")]
    if encoding := ",".join(part for part in encodings if part not in ("", "aws-chunked")):
        kept["content-encoding"] = encoding
    kept.setdefault("content-type", "binary/octet-stream")
    metadata = {name[len(META) :]: headers[name] for name in headers if name.startswith(META)}
    tags = dict(parse_qsl(headers.get("x-amz-tagging", ""), keep_blank_values=True))
    if sum(len(name) + len(value) for name, value in metadata.items()) > 2048:
        raise S3Error(400, "MetadataTooLarge")
    return {"headers": kept, "metadata": metadata, "tags": checked_tags(tags)}


def checked_tags(tags: dict[str, str]) -> dict[str, str]:
    if len(tags) > 10:
        raise S3Error(400, "BadRequest", "Object tags cannot be greater than 10")
    if not all(re.fullmatch(r"[\w\s+\-=.:/@]*", text) for pair in tags.items() for text in pair):
        raise S3Error(400, "InvalidTag", "The tag you have provided is invalid")
    return tags


def new_object(headers: Mapping[str, str], content: bytes, size: int | None = None) -> Obj:
    size, now = len(content) if size is None else size, int(time.time())
    return Obj(content, size, etag_of(content), modified=now, **described(headers))


def shown(obj: Obj) -> dict[str, str]:
    """The headers of an answer to GET or HEAD."""
    return {
        "content-length": str(obj.size),
        "etag": obj.etag,
        "last-modified": http_date(obj.modified),
        "accept-ranges": "bytes",
        **obj.headers,
        **{META + name: value for name, value in obj.metadata.items()},
        **({"x-amz-tagging-count": str(len(obj.tags))} if obj.tags else {}),
    }


def same(condition: str, obj: Obj) -> bool:
    return condition == "*" or condition.strip('"') == obj.etag.strip('"')


def byte_range(text: str, size: int) -> tuple[int, int]:
    """The first byte and the one after the last of `bytes=1-2`, `bytes=1-` or `bytes=-2`."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", text)
    if not match or match[0] == "bytes=-":
        return 0, size
    first = int(match[1]) if match[1] else max(0, size - int(match[2]))
    last = int(match[2]) if match[1] and match[2] else size - 1
    if first >= size or last < first:
        raise S3Error(416, "InvalidRange", "The requested range is not satisfiable")
    return first, min(last + 1, size)


def beyond(prefix: str) -> str:
    """The first name after all that start so."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def walk(objects: Any, first: str, prefix: str, delimiter: str) -> Iterator[tuple[str, Obj | None]]:
    """Names from `first` on, with their objects; common prefixes with None."""
    following: str | None = max(first, prefix)
    while following is not None:
        start, following = following, None
        for key in objects.irange(start):
            if not key.startswith(prefix):
                return
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end >= 0:
                common = key[: end + len(delimiter)]
                yield common, None
                following = beyond(common)
                break
            yield key, objects[key]


def listed(name: str, obj: Obj | None) -> str:
    if obj is None:
        return f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"
    return (
        f"<Contents><Key>{name}</Key><LastModified>{iso_date(obj.modified)}</LastModified>"
        f"<ETag>&quot;{obj.etag[1:-1]}&quot;</ETag><Size>{obj.size}</Size>"
        f"<StorageClass>{obj.headers.get(STORAGE_CLASS, 'STANDARD')}</StorageClass></Contents>"
    )


def copied(etag: str) -> str:
    return tag("LastModified", iso_date(int(time.time()))) + tag("ETag", escape(etag))


@dataclass(slots=True)
class Part:
    content: bytes
    size: int
    etag: str
    source: Location | None


@dataclass(slots=True)
class Upload:
    bucket: str
    key: str
    description: dict[str, Any]
    parts: dict[int, Part] = field(default_factory=dict)


# --- Operations -----------------------------------------------------------------------------------

Handler = Callable[[Any, Request], Answer]
SUBRESOURCES = ("tagging", "uploadId", "uploads", "delete", "list-type")
ROUTES: dict[str, str] = {}
HANDLERS: dict[str, Handler] = {}


def route(text: str) -> Callable[[Handler], Handler]:
    """Tell how requests of the operation look that the decorated function is named after."""

    def register(handler: Handler) -> Handler:
        ROUTES[text] = "".join(word.title() for word in handler.__name__.split("_"))
        HANDLERS[ROUTES[text]] = handler
        return handler

    return register


class Operations:
    """S3's operations, on buckets in memory."""

    conditions = "honoured"  # those on copies and deletes; or "ignored", or "refused" (501)
    max_copy = 5 * 1024**3  # bytes in one CopyObject
    min_part = 5 * 1024**2  # bytes in a part that is not the last
    owner = "111122223333"

    def __init__(self) -> None:
        self.buckets: dict[str, Any] = {}  # SortedDict: key -> Obj
        self.uploads: dict[str, Upload] = {}
        self.history: list[Change] = []
        self.recording = True
        self._ids = itertools.count(1)

    def _objects(self, bucket: str) -> Any:
        if bucket not in self.buckets:
            raise NO_BUCKET
        return self.buckets[bucket]

    def _find(self, bucket: str, key: str) -> Obj:
        obj: Obj | None = self._objects(bucket).get(key)
        if obj is None:
            raise NO_KEY
        return obj

    def _source(self, request: Request) -> Obj:
        assert request.source is not None
        if len(request.source[1].encode()) > 1024:
            raise TOO_LONG
        obj = self._find(*request.source)
        only = request.headers.get("x-amz-copy-source-if-match")
        if only is not None and self.conditions == "honoured" and not same(only, obj):
            raise FAILED
        if obj.headers.get(STORAGE_CLASS) in ("GLACIER", "DEEP_ARCHIVE"):
            raise S3Error(403, "ObjectNotInActiveTierError", "The source object is archived")
        return obj

    def _check_write(self, request: Request) -> None:
        """Raise unless the conditions on what is overwritten hold."""
        old = self._objects(request.bucket).get(request.key)
        unless, only = request.headers.get("if-none-match"), request.headers.get("if-match")
        if unless not in (None, "*"):
            raise S3Error(501, "NotImplemented", "If-None-Match takes only *")
        if only is not None and old is None:
            raise NO_KEY
        if (unless and old is not None) or (only is not None and not same(only, old)):
            raise FAILED

    def _changed(
        self, action: str, bucket: str, key: str, obj: Obj, source: Location | None = None
    ) -> None:
        if action == "delete":
            del self.buckets[bucket][key]
        else:
            self.buckets[bucket][key] = obj
        if self.recording:
            now = time.monotonic()
            self.history.append(Change(action, bucket, key, obj.content, obj.etag, source, now))

    @route("GET service")
    def list_buckets(self, request: Request) -> Answer:
        date = tag("CreationDate", iso_date(0))
        names = (tag("Bucket", tag("Name", escape(name)) + date) for name in sorted(self.buckets))
        return result("ListAllMyBucketsResult", tag("Buckets", "".join(names)))

    @route("PUT bucket")
    def create_bucket(self, request: Request) -> Answer:
        if request.bucket in self.buckets:
            raise S3Error(409, "BucketAlreadyOwnedByYou", "You already own this bucket")
        self.buckets[request.bucket] = SortedDict()
        return Answer(200, {"location": f"/{request.bucket}"})

    @route("HEAD bucket")
    def head_bucket(self, request: Request) -> Answer:
        self._objects(request.bucket)
        return Answer()

    @route("DELETE bucket")
    def delete_bucket(self, request: Request) -> Answer:
        if self._objects(request.bucket):
            raise S3Error(409, "BucketNotEmpty", "The bucket you tried to delete is not empty")
        del self.buckets[request.bucket]
        return Answer(204)

    @route("GET bucket?list-type")
    def list_objects_v2(self, request: Request) -> Answer:
        query, objects = request.query, self._objects(request.bucket)
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after, token = query.get("start-after", ""), query.get("continuation-token")
        encoding = query.get("encoding-type", "")
        encode = url_encoded if encoding == "url" else escape
        try:
            limit = min(1000, int(query.get("max-keys", "1000")))
            first = after + "\0" if after else ""
            if token is not None:
                first = base64.b64decode(token, b"-_", validate=True).decode()
        except ValueError:
            raise S3Error(400, "InvalidArgument", "max-keys or continuation-token") from None
        entries: list[str] = []
        next_token = ""
        for name, obj in walk(objects, first, prefix, delimiter):
            if len(entries) == limit:
                next_token = base64.urlsafe_b64encode(first.encode()).decode() if limit else ""
                break
            entries.append(listed(encode(name), obj))
            first = name + "\0" if obj else beyond(name)
        head = {
            "Name": request.bucket,
            "Prefix": encode(prefix),
            "Delimiter": encode(delimiter),
            "StartAfter": encode(after),
            "EncodingType": encoding,
            "ContinuationToken": escape(token or ""),
            "NextContinuationToken": next_token,
            "IsTruncated": "true" if next_token else "false",
            "MaxKeys": limit,
            "KeyCount": len(entries),
        }
        parts = [tag(name, value) for name, value in head.items()]
        return result("ListBucketResult", "".join(parts + entries))

    @route("PUT key")
    def put_object(self, request: Request) -> Answer:
        self._check_write(request)
        check_content(request.headers, request.body)
        obj = new_object(request.headers, request.body)
        self._changed("put", request.bucket, request.key, obj)
        return Answer(200, {"etag": obj.etag})

    @route("GET key")
    def get_object(self, request: Request) -> Answer:
        obj = self._find(request.bucket, request.key)
        if not same(request.headers.get("if-match", "*"), obj):
            raise FAILED
        if "range" not in request.headers:
            return Answer(200, shown(obj), obj.content)
        first, end = byte_range(request.headers["range"], obj.size)
        part = {
            "content-length": str(end - first),
            "content-range": f"bytes {first}-{end - 1}/{obj.size}",
        }
        return Answer(206, shown(obj) | part, obj.content[first:end])

    @route("HEAD key")
    def head_object(self, request: Request) -> Answer:
        return self.get_object(request)

    @route("PUT key copy")
    def copy_object(self, request: Request) -> Answer:
        headers, target = request.headers, (request.bucket, request.key)
        self._check_write(request)
        obj = self._source(request)
        if obj.size > self.max_copy:
            raise S3Error(400, "InvalidRequest", "The specified copy source is too large")
        replaced = headers.get("x-amz-metadata-directive") == "REPLACE"
        changing = (*NOT_COPIED, "x-amz-server-side-encryption")
        if request.source == target and not replaced and not any(h in headers for h in changing):
            raise S3Error(400, "InvalidRequest", "This copies an object to itself unchanged")
        new = described(headers)
        if not replaced:
            kept = {name: value for name, value in obj.headers.items() if name not in NOT_COPIED}
            new["headers"] = {name: new["headers"][name] for name in NOT_COPIED if name in headers}
            new["headers"] |= kept
            new["metadata"] = obj.metadata
        if headers.get("x-amz-tagging-directive") != "REPLACE":
            new["tags"] = obj.tags
        etag = etag_of(obj.content) if "-" in obj.etag else obj.etag
        obj = Obj(obj.content, obj.size, etag, modified=int(time.time()), **new)
        self._changed("copy", *target, obj, request.source)
        return result("CopyObjectResult", copied(etag))

    @route("DELETE key")
    def delete_object(self, request: Request) -> Answer:
        obj = self._objects(request.bucket).get(request.key)
        only = request.headers.get("if-match")
        if only is not None and self.conditions == "refused":
            raise S3Error(501, "NotImplemented", "If-Match is not implemented")
        if only is not None and self.conditions == "honoured":
            if obj is None:
                raise NO_KEY
            if not same(only, obj):
                raise FAILED
        if obj is not None:
            self._changed("delete", request.bucket, request.key, obj)
        return Answer(204)

    @route("POST bucket?delete")
    def delete_objects(self, request: Request) -> Answer:
        return self.delete_keys(request, {})

    def delete_keys(self, request: Request, errors: Mapping[str, str]) -> Answer:
        """Do a DeleteObjects of which these keys fail."""
        objects, headers = self._objects(request.bucket), request.headers
        if "content-md5" not in headers and not any("x-amz-checksum-" in name for name in headers):
            raise S3Error(400, "InvalidRequest", "Content-MD5 or a checksum is missing")
        check_content(headers, request.body)
        if request.xml is None or not 1 <= len(request.keys) <= 1000:
            raise MALFORMED
        quiet = request.xml.findtext("{*}Quiet", "").strip() == "true"
        answers = []
        for element in request.xml.iterfind("{*}Object"):
            key, only = element.findtext("{*}Key", ""), element.findtext("{*}ETag")
            obj = objects.get(key)
            code = errors.get(key, "")
            if not code and only is not None and self.conditions == "honoured":
                code = "NoSuchKey" if obj is None else "" if same(only, obj) else FAILED.code
            if code:
                error = tag("Key", escape(key)) + tag("Code", code) + tag("Message", code)
                answers.append(tag("Error", error))
                continue
            if obj is not None:
                self._changed("delete", request.bucket, key, obj)
            if not quiet:
                answers.append(tag("Deleted", tag("Key", escape(key))))
        return result("DeleteResult", "".join(answers))

    @route("GET key?tagging")
    def get_object_tagging(self, request: Request) -> Answer:
        tags = "".join(
            f"<Tag><Key>{escape(name)}</Key><Value>{escape(value)}</Value></Tag>"
            for name, value in self._find(request.bucket, request.key).tags.items()
        )
        return result("Tagging", f"<TagSet>{tags}</TagSet>")

    @route("PUT key?tagging")
    def put_object_tagging(self, request: Request) -> Answer:
        obj = self._find(request.bucket, request.key)
        if request.xml is None:
            raise MALFORMED
        found = request.xml.iterfind("{*}TagSet/{*}Tag")
        tags = {each.findtext("{*}Key", ""): each.findtext("{*}Value", "") for each in found}
        self.buckets[request.bucket][request.key] = replace(obj, tags=checked_tags(tags))
        return Answer()

    @route("POST key?uploads")
    def create_multipart_upload(self, request: Request) -> Answer:
        self._objects(request.bucket)
        name = f"upload-{next(self._ids)}"
        self.uploads[name] = Upload(request.bucket, request.key, described(request.headers))
        return result("InitiateMultipartUploadResult", tag("UploadId", name))

    def _upload(self, request: Request) -> Upload:
        self._objects(request.bucket)
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None or (upload.bucket, upload.key) != (request.bucket, request.key):
            raise NO_UPLOAD
        return upload

    @route("PUT key?uploadId")
    def upload_part(self, request: Request) -> Answer:
        upload = self._upload(request)
        check_content(request.headers, request.body)
        part = Part(request.body, len(request.body), etag_of(request.body), None)
        upload.parts[int(request.query["partNumber"])] = part
        return Answer(200, {"etag": part.etag})

    @route("PUT key?uploadId copy")
    def upload_part_copy(self, request: Request) -> Answer:
        upload, obj = self._upload(request), self._source(request)
        first, end = 0, obj.size
        if (wanted := request.headers.get("x-amz-copy-source-range")) is not None:
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
            if not match or not int(match[1]) <= int(match[2]) < obj.size:
                raise S3Error(400, "InvalidArgument", "Range is not valid for the source object")
            first, end = int(match[1]), int(match[2]) + 1
        if end - first > 5 * 1024**3:
            raise S3Error(400, "InvalidRequest", "The specified copy source is too large")
        content = obj.content[first:end]
        part = Part(content, end - first, etag_of(content), request.source)
        upload.parts[int(request.query["partNumber"])] = part
        return result("CopyPartResult", copied(part.etag))

    @route("POST key?uploadId")
    def complete_multipart_upload(self, request: Request) -> Answer:
        upload = self._upload(request)
        elements = request.xml.findall("{*}Part") if request.xml is not None else []
        numbers = [int(element.findtext("{*}PartNumber", "0")) for element in elements]
        etags = [element.findtext("{*}ETag", "").strip('"') for element in elements]
        parts = [upload.parts.get(number, Part(b"", 0, "", None)) for number in numbers]
        if not parts:
            raise MALFORMED
        if numbers != sorted(set(numbers)):
            raise S3Error(400, "InvalidPartOrder")
        if etags != [part.etag.strip('"') for part in parts]:
            raise S3Error(400, "InvalidPart")
        if any(part.size < self.min_part for part in parts[:-1]):
            raise S3Error(400, "EntityTooSmall")
        self._check_write(request)
        digest = hashlib.md5(b"".join(bytes.fromhex(etag) for etag in etags)).hexdigest()
        content, etag = b"".join(part.content for part in parts), f'"{digest}-{len(parts)}"'
        size = sum(part.size for part in parts)
        obj = Obj(content, size, etag, modified=int(time.time()), **upload.description)
        source = parts[0].source
        self._changed("copy" if source else "put", request.bucket, request.key, obj, source)
        del self.uploads[request.query["uploadId"]]
        return result("CompleteMultipartUploadResult", tag("ETag", escape(etag)))

    @route("DELETE key?uploadId")
    def abort_multipart_upload(self, request: Request) -> Answer:
        self._upload(request)
        del self.uploads[request.query["uploadId"]]
        return Answer(204)

    @route("GET bucket?uploads")
    def list_multipart_uploads(self, request: Request) -> Answer:
        self._objects(request.bucket)
        prefix, encoding = request.query.get("prefix", ""), request.query.get("encoding-type", "")
        encode = url_encoded if encoding == "url" else escape
        uploads = [
            tag("Upload", tag("Key", encode(upload.key)) + tag("UploadId", name))
            for name, upload in self.uploads.items()
            if upload.bucket == request.bucket and upload.key.startswith(prefix)
        ]
        inner = tag("IsTruncated", "false") + tag("EncodingType", encoding) + "".join(uploads)
        return result("ListMultipartUploadsResult", inner)


# --- The server -----------------------------------------------------------------------------------


class FakeS3(Operations):
    """The server and its controls. A context manager: it serves from a thread.

    `fault`, `before`, `after` and a callable `latency` are called in that thread: they may `put`
    and `delete`, but must not wait or make requests. What they raise is raised again at the exit.
    """

    def __init__(self, *buckets: str, port: int = 0, recording: bool = True) -> None:
        super().__init__()
        self.port = port
        self.recording = recording  # whether to keep `log` and `history`
        self.buckets.update({bucket: SortedDict() for bucket in buckets})
        self.log: list[Request] = []  # in the order of arrival
        self.latency: float | Callable[[Request], float] = 0.0  # seconds before a request acts
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.before: Callable[[Request], object] = lambda request: None  # just before it acts
        self.after: Callable[[Request], object] = lambda request: None  # just after
        self.connections: set[Connection] = set()
        self._clients = ExitStack()
        self._lock = threading.RLock()  # held by whoever changes the buckets
        self._counts: Counter[str] = Counter()
        self._broken: list[Exception] = []

    def __enter__(self) -> FakeS3:  # noqa: PYI034  (Self is 3.11's)
        self.loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = self._listener.getsockname()[1]
        serving = self.loop.create_server(lambda: Connection(self), sock=self._listener)
        self._server = self.loop.run_until_complete(serving)
        self._thread = threading.Thread(target=self._serve, name="fakes3", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self._clients.close()
        if self._broken and kind is None:
            raise self._broken[0]

    def _serve(self) -> None:
        self.loop.run_forever()
        self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **config: Any) -> Any:
        """Make a boto3 client (see below), which lives as long as the server."""
        return self._clients.enter_context(closing(client(self.url, **config)))

    def put(
        self,
        bucket: str,
        key: str,
        content: bytes = b"",
        *,
        size: int | None = None,
        **headers: str,
    ) -> Obj:
        """Store an object without a request; headers as in `content_type`, `x_amz_meta_author`.

        With `size` it is listed and copied as if it were so large; a GET answers `content`.
        """
        names = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        obj = new_object(names, content, size)
        with self._lock:
            self._changed("put", bucket, key, obj)
        return obj

    def delete(self, bucket: str, key: str) -> None:
        with self._lock:
            self._changed("delete", bucket, key, self.buckets[bucket][key])

    def fill(
        self,
        *,
        waiting: int = 0,
        due: int = 0,
        bucket: str = "events",
        folder: str = "later",
        target: str = "target",
        key: str = "{i}",
        size: int = 0,
    ) -> None:
        """Store events: `due` of them an hour ago and `waiting` ten years on, 1 µs apart."""
        now = datetime.now(timezone.utc).replace(tzinfo=None)
        obj = new_object({}, bytes(size))
        names = {}
        for start, count in ((now - timedelta(hours=1), due), (now + timedelta(3650), waiting)):
            for i in range(count):
                when = (start + timedelta(microseconds=i)).isoformat(timespec="microseconds")
                names[f"{folder}/{when}Z|{target}|{key.format(i=i)}"] = obj
        with self._lock:
            for name in (bucket, target):
                self.buckets.setdefault(name, SortedDict())
            self.buckets[bucket].update(names)
        if not self.recording:
            gc.freeze()  # or each collection would look through a million names again

    def count(self) -> Counter[str]:
        """Requests so far, by operation."""
        return Counter(self._counts)

    def reset(self) -> None:
        """Empty the buckets and forget what was."""
        with self._lock:
            self.buckets = {bucket: SortedDict() for bucket in self.buckets}
            for memory in (self.uploads, self.log, self.history, self._counts):
                memory.clear()

    def set(self, **controls: Any) -> None:
        for name, value in controls.items():
            setattr(self, name, value)

    def sizes(self) -> dict[str, int]:
        """How many objects each bucket holds."""
        return {bucket: len(objects) for bucket, objects in self.buckets.items()}

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  (raised again by __exit__)
            self._broken.append(error)

    def arrived(self, request: Request) -> tuple[Fault | None, float]:
        """Count and log a request; what befalls it, and after how many seconds it acts."""
        self._counts[request.operation] += 1
        if self.recording:
            self.log.append(request)
        with self._reporting():
            fault = self.fault(request)
            wait = self.latency(request) if callable(self.latency) else self.latency
            if isinstance(fault, Delay) and not fault.after:
                wait += fault.seconds
            return fault, wait
        return Error(500, "BrokenTest"), 0.0

    def answer(self, request: Request, fault: Fault | None) -> Answer | None:
        """Act, unless the fault prevents it; what to answer, if anything."""
        answer = S3Error(500, "BrokenTest").answer(request)
        if fault is None or fault.after or isinstance(fault, Delay | KeyErrors):
            with self._lock, self._reporting():
                self.before(request)
                answer = self._act(request, fault)
                self.after(request)
        if isinstance(fault, Hang | Reset):
            return None
        if isinstance(fault, Error):
            answer = S3Error(fault.status, fault.code).answer(request)
        if isinstance(fault, CopyError):
            answer = S3Error(200, fault.code).answer(request)
        request.status = answer.status
        return answer

    def _act(self, request: Request, fault: Fault | None) -> Answer:
        try:
            if len(request.key.encode()) > 1024:
                raise TOO_LONG
            for name in ("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner"):
                if request.headers.get(name, self.owner) != self.owner:
                    raise S3Error(403, "AccessDenied", "Access Denied")
            if request.operation not in HANDLERS:
                raise S3Error(501, "NotImplemented", f"fakes3 has no {request.operation}")
            if isinstance(fault, KeyErrors):
                return self.delete_keys(request, fault.errors)
            return HANDLERS[request.operation](self, request)
        except S3Error as error:
            return error.answer(request)


def understood(method: str, target: str, headers: dict[str, str], body: bytes) -> Request:
    path, _, text = target.partition("?")
    bucket, _, key = unquote(path)[1:].partition("/")
    query = dict(parse_qsl(text, keep_blank_values=True))
    look = f"{method} {'key' if key else 'bucket' if bucket else 'service'}"
    look += next((f"?{name}" for name in SUBRESOURCES if name in query), "")
    source = document = None
    if (copy_source := headers.get("x-amz-copy-source")) is not None:
        look += " copy"
        place = unquote_plus(copy_source.partition("?versionId=")[0]).lstrip("/").partition("/")
        source = place[0], place[2]
    if method == "POST" or "tagging" in query:
        with suppress(ET.ParseError):
            document = ET.fromstring(body)
    keys = [] if document is None else document.findall("{*}Object/{*}Key")
    return Request(
        *(method, ROUTES.get(look, look), bucket, key, source, [key.text or "" for key in keys]),
        *(headers, query, body, document, time.monotonic()),
    )


class Connection(asyncio.Protocol):
    """One request after another, each answered before the next is read."""

    transport: asyncio.Transport

    def __init__(self, s3: FakeS3) -> None:
        self.s3 = s3
        self.received = bytearray()
        self.head: tuple[str, str, dict[str, str]] | None = None  # of a request not all there
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.s3.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.s3.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.busy:
            self.read()

    def read(self) -> None:
        if self.head is None:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return
            first, *lines = self.received[:end].decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            self.head = method, target, parsed_headers(lines)
            del self.received[: end + 4]
            if "expect" in self.head[2]:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        method, target, headers = self.head
        body = self.take_body(headers)
        if body is None:
            return
        self.head, self.busy = None, True
        if target == "/?control":
            name, options = json.loads(body)
            found = getattr(self.s3, name)(**options)
            self.send(method, Answer(body=json.dumps(found).encode()))
            return
        if headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
            body, trailers, _ = dechunk(body) or (b"", {}, 0)
            headers |= trailers
        request = understood(method, target, headers, body)
        fault, wait = self.s3.arrived(request)
        if wait > 0:
            self.s3.loop.call_later(wait, self.act, request, fault)
        else:
            self.act(request, fault)

    def take_body(self, headers: dict[str, str]) -> bytes | None:
        if headers.get("transfer-encoding") == "chunked":
            chunked = dechunk(self.received)
            if chunked is None:
                return None
            body, _, length = chunked
        else:
            length = int(headers.get("content-length", "0"))
            if len(self.received) < length:
                return None
            body = bytes(self.received[:length])
        del self.received[:length]
        return body

    def act(self, request: Request, fault: Fault | None) -> None:
        answer = self.s3.answer(request, fault)
        if isinstance(fault, Reset):
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()  # with no lingering, this sends RST
        elif answer is not None and isinstance(fault, Delay) and fault.after:
            self.s3.loop.call_later(fault.seconds, self.send, request.method, answer)
        elif answer is not None:
            self.send(request.method, answer)

    def send(self, method: str, answer: Answer) -> None:
        status, headers, body = answer
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "x-amz-request-id: FAKE"]
        if method == "HEAD":
            body = b""
        elif status != 204:
            headers = {**headers, "content-length": str(len(body))}
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "\r\n"]).encode("latin-1") + body)
        self.busy = False
        if self.received:
            self.read()


# --- Clients, and a process of its own ------------------------------------------------------------


@lru_cache
def session() -> Any:
    import boto3  # noqa: PLC0415  (the server does without)

    return boto3.Session("fake", "fake", region_name="us-east-1")


def client(url: str, **config: Any) -> Any:
    """A boto3 client that makes one attempt, unless `config` (botocore's) says otherwise."""
    from botocore.config import Config  # noqa: PLC0415

    defaults = {"s3": {"addressing_style": "path"}, "retries": {"total_max_attempts": 1}}
    options = Config(**{**defaults, "proxies": {}, **config})
    return session().client("s3", endpoint_url=url, config=options)


class Remote:
    """A fake in another process, with as much of `FakeS3` as JSON can carry."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self.pid = url, pid
        self._clients = ExitStack()

    def client(self, **config: Any) -> Any:
        return self._clients.enter_context(closing(client(self.url, **config)))

    def _control(self, name: str, **options: Any) -> Any:
        body = json.dumps([name, options]).encode()
        with build_opener(ProxyHandler({})).open(f"{self.url}/?control", body) as answer:
            return json.load(answer)

    def fill(self, **options: Any) -> None:
        self._control("fill", **options)

    def reset(self) -> None:
        self._control("reset")

    def set(self, **controls: Any) -> None:
        """Set such as `latency=0.03` or `conditions="ignored"`."""
        self._control("set", **controls)

    def count(self) -> Counter[str]:
        return Counter(self._control("count"))

    def sizes(self) -> dict[str, int]:
        return dict(self._control("sizes"))


@contextmanager
def spawn(latency: float = 0.0, **fill: Any) -> Iterator[Remote]:
    """A fake in a process of its own, filled as by `FakeS3.fill`."""
    command = [sys.executable, __file__, "--until-eof", f"--latency={latency}"]
    command += [f"--{name}={value}" for name, value in fill.items()]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        remote = Remote(process.stdout.readline().strip(), process.pid)
        try:
            yield remote
        finally:
            remote._clients.close()
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="An S3 in memory: prints its URL and serves.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before a request acts")
    parser.add_argument("--until-eof", action="store_true", help="end with standard input")
    for name in ("waiting", "due", "size"):
        parser.add_argument(f"--{name}", type=int, default=0, help="see FakeS3.fill")
    for name, default in (("bucket", "events"), ("folder", "later"), ("target", "target")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--key", default="{i}")
    options = vars(parser.parse_args())
    until_eof, latency = options.pop("until_eof"), options.pop("latency")
    with FakeS3(port=options.pop("port"), recording=False) as s3:
        s3.latency = latency
        s3.fill(**options)
        print(s3.url, flush=True)  # noqa: T201  (its one line)
        if until_eof:
            sys.stdin.read()
        else:
            signal.pause()


if __name__ == "__main__":
    main()
