"""An S3 in memory, over real HTTP on 127.0.0.1, that can be made to fail in every way S3 can.

In a test:

    with FakeS3("events", "target") as s3:
        s3.put("events", "later/…", b"body", content_type="text/plain", x_amz_tagging="a=1")
        s3.fault = on("CopyObject", Reset(after=True))  # the first copy happens, its answer is lost
        run(s3.client())
        assert s3.count()["CopyObject"] == 2
        assert [change.action for change in s3.history] == ["put", "copy", "copy", "delete"]

In a benchmark, as a process of its own: `with spawn(latency=0.03, waiting=1_000_000) as s3: …`,
or `python fakes3.py --latency 0.03 --waiting 1000000`, which prints its URL and serves.

Status and error codes are AWS's, as documented. Keys are kept in the order of their UTF-8 bytes,
which is Python's own order of `str`. Signatures are not checked.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote_plus, unquote, unquote_plus
from urllib.request import Request as UrlRequest
from urllib.request import urlopen
from xml.etree import ElementTree

from sortedcontainers import SortedDict  # type: ignore[import-untyped]

GIB = 1024**3
MIB = 1024**2
OWNER = "111122223333"

# --- What tests see -------------------------------------------------------------------------------


@dataclass(slots=True)
class Obj:
    """A stored object. It is never changed, only replaced."""

    content: bytes
    etag: str  # in quotes
    headers: dict[str, str]  # content-type and the like, names in lower case
    metadata: dict[str, str]  # without x-amz-meta-
    tags: dict[str, str]
    modified: int  # seconds since 1970


@dataclass(slots=True)
class Request:
    operation: str  # as boto3 spells it, such as "CopyObject"
    bucket: str
    key: str
    source: tuple[str, str] | None  # of copies: bucket and key
    keys: list[str]  # of a DeleteObjects
    headers: dict[str, str]  # names in lower case
    query: dict[str, str]
    body: bytes
    time: float  # of its arrival, time.monotonic()
    status: int | None = None  # None: not answered yet, or never
    xml: ElementTree.Element | None = None
    refused: Mapping[str, str] = field(default_factory=dict)  # from KeyErrors


class Change(NamedTuple):
    """Something that really happened to an object."""

    action: str  # "put", "copy" or "delete"
    bucket: str
    key: str
    content: bytes
    etag: str
    source: tuple[str, str] | None
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
class Hang(Fault):
    """Nothing is answered; the connection stays open until the client goes away."""


@dataclass(frozen=True)
class Reset(Fault):
    """The connection is reset (RST)."""


@dataclass(frozen=True)
class CopyError(Fault):
    """The answer is 200 with this error in its body."""

    code: str


@dataclass(frozen=True)
class Delay(Fault):
    """The request acts after these seconds; with `after`, it acts at once and is answered late."""

    seconds: float


@dataclass(frozen=True)
class KeyErrors(Fault):
    """These keys of a DeleteObjects fail with these codes; the others are deleted."""

    errors: Mapping[str, str]


def on(
    operation: str, *faults: Fault | None, key: str | None = None
) -> Callable[..., Fault | None]:
    """Faults for the next requests of one operation (and key), in turn; then none."""
    left = iter(faults)

    def fault(request: Request) -> Fault | None:
        if request.operation == operation and key in (None, request.key):
            return next(left, None)
        return None

    return fault


# --- HTTP and XML ---------------------------------------------------------------------------------


class Answer(NamedTuple):
    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""


class S3Error(Exception):
    def __init__(self, status: int, code: str, message: str = "") -> None:
        self.status, self.code, self.message = status, code, message

    def answer(self, request: Request, status: int | None = None) -> Answer:
        body = (
            f"<Error><Code>{self.code}</Code><Message>{escape(self.message or self.code)}</Message>"
            f"<BucketName>{escape(request.bucket)}</BucketName><Key>{escape(request.key)}</Key>"
            "<RequestId>FAKE</RequestId><HostId>fake</HostId></Error>"
        )
        return xml_answer(body, status or self.status)


NO_KEY = S3Error(404, "NoSuchKey", "The specified key does not exist.")
NO_BUCKET = S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
NO_UPLOAD = S3Error(404, "NoSuchUpload", "The specified multipart upload does not exist.")
FAILED = S3Error(
    412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold"
)
MALFORMED = S3Error(400, "MalformedXML", "The XML you provided was not well-formed")

# What XML 1.0 cannot hold (control characters) is written as S3 does, and no parser takes it.
_ESCAPES = {n: f"&#x{n:x};" for n in (*range(32), 0x7F, 0xFFFE, 0xFFFF)} | {
    ord(char): name
    for char, name in zip("&<>\"'", ("&amp;", "&lt;", "&gt;", "&quot;", "&#39;"), strict=True)
}


def escape(text: str) -> str:
    return text.translate(_ESCAPES)


def xml_answer(body: str, status: int = 200) -> Answer:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'
    return Answer(status, {"content-type": "application/xml"}, text.encode())


def result(name: str, inner: str) -> Answer:
    return xml_answer(f'<{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</{name}>')


@lru_cache
def iso_date(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


@lru_cache
def http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def dechunk(data: bytes | bytearray) -> tuple[bytes, dict[str, str], int] | None:
    """Content, trailers and length of a chunked body (HTTP's and S3's are alike); None: more."""
    content: list[bytes] = []
    position = 0
    while (end := data.find(b"\r\n", position)) >= 0:
        size = int(data[position:end].partition(b";")[0], 16)
        if size == 0:
            # The empty line follows the trailers, or the last chunk itself.
            last = data.find(b"\r\n\r\n", end)
            if last < 0:
                return None
            lines = bytes(data[end + 2 : last]).decode("latin-1").split("\r\n")
            return b"".join(content), _headers(lines), last + 4
        content.append(bytes(data[end + 2 : end + 2 + size]))
        position = end + 2 + size + 2
    return None


def _headers(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


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

_KEPT = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
)
_NOT_COPIED = ("x-amz-storage-class", "x-amz-website-redirect-location")
_EMPTY: dict[str, str] = {}
META = "x-amz-meta-"


def etag_of(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def described(headers: Mapping[str, str]) -> dict[str, Any]:
    """The headers, metadata and tags of an object, from those of a request."""
    kept = {name: headers[name] for name in (*_KEPT, *_NOT_COPIED) if name in headers}
    encodings = [part.strip() for part in kept.pop("content-encoding", "").split(",")]
    if encoding := ",".join(part for part in encodings if part not in ("", "aws-chunked")):
        kept["content-encoding"] = encoding
    kept.setdefault("content-type", "binary/octet-stream")
    metadata = {name[len(META) :]: headers[name] for name in headers if name.startswith(META)}
    tags = dict(parse_qsl(headers.get("x-amz-tagging", ""), keep_blank_values=True))
    return {"headers": kept, "metadata": metadata or _EMPTY, "tags": tags or _EMPTY}


def new_object(headers: Mapping[str, str], content: bytes) -> Obj:
    return Obj(content, etag_of(content), modified=int(time.time()), **described(headers))


def shown(obj: Obj) -> dict[str, str]:
    """The headers of an answer to GET or HEAD."""
    return {
        "content-length": str(len(obj.content)),
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


@dataclass(slots=True)
class Upload:
    bucket: str
    key: str
    description: dict[str, Any]
    # number -> content, ETag, source
    parts: dict[int, tuple[bytes, str, tuple[str, str] | None]]


# --- Operations -----------------------------------------------------------------------------------

Handler = Callable[[Any, Request], Answer]
_ROUTES: dict[str, tuple[str, Handler]] = {}
_SUBRESOURCES = ("tagging", "uploadId", "uploads", "delete", "list-type", "admin")


def _route(route: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        operation = "".join(word.title() for word in handler.__name__.split("_"))
        _ROUTES[route] = operation, handler
        return handler

    return register


class Operations:
    """S3's operations on buckets in memory."""

    conditions = "honoured"  # or "ignored" or "refused": conditions on copies and deletes
    max_copy = 5 * GIB
    min_part = 5 * MIB
    owner = OWNER

    def __init__(self) -> None:
        self.buckets: dict[str, Any] = {}  # name -> SortedDict: key -> Obj
        self.uploads: dict[str, Upload] = {}
        self.history: list[Change] = []
        self.recording = True
        self._ids = itertools.count(1)

    def _objects(self, bucket: str) -> Any:
        if bucket not in self.buckets:
            raise NO_BUCKET
        return self.buckets[bucket]

    def _find(self, request: Request) -> Obj:
        obj: Obj | None = self._objects(request.bucket).get(request.key)
        if obj is None:
            raise NO_KEY
        return obj

    def _changed(
        self, action: str, bucket: str, key: str, obj: Obj, source: tuple[str, str] | None = None
    ) -> None:
        if action == "delete":
            del self.buckets[bucket][key]
        else:
            self.buckets[bucket][key] = obj
        if self.recording:
            now = time.monotonic()
            self.history.append(Change(action, bucket, key, obj.content, obj.etag, source, now))

    def _check_write(self, request: Request) -> None:
        """Raise unless the conditions on what is overwritten hold."""
        old = self._objects(request.bucket).get(request.key)
        unless, only = request.headers.get("if-none-match"), request.headers.get("if-match")
        if unless is not None and unless != "*":
            raise S3Error(501, "NotImplemented", "If-None-Match takes only *")
        if unless and old is not None:
            raise FAILED
        if only is not None and old is None:
            raise NO_KEY
        if only is not None and not same(only, old):
            raise FAILED

    def _source(self, request: Request) -> Obj:
        assert request.source is not None
        bucket, key = request.source
        if len(key.encode()) > 1024:
            raise S3Error(400, "KeyTooLongError", "Your key is too long")
        obj: Obj | None = self._objects(bucket).get(key)
        if obj is None:
            raise NO_KEY
        only = request.headers.get("x-amz-copy-source-if-match")
        if only is not None and self.conditions == "honoured" and not same(only, obj):
            raise FAILED
        if obj.headers.get("x-amz-storage-class") in ("GLACIER", "DEEP_ARCHIVE"):
            raise S3Error(403, "InvalidObjectState", "The source object is archived")
        return obj

    def _check_size(self, size: int) -> None:
        if size > self.max_copy:
            raise S3Error(
                400,
                "InvalidRequest",
                "The specified copy source is larger than the maximum allowable size for a copy "
                f"source: {self.max_copy}",
            )

    @_route("GET service")
    def list_buckets(self, request: Request) -> Answer:
        names = "".join(
            f"<Bucket><Name>{escape(name)}</Name><CreationDate>{iso_date(0)}</CreationDate></Bucket>"
            for name in sorted(self.buckets)
        )
        return result("ListAllMyBucketsResult", f"<Buckets>{names}</Buckets>")

    @_route("PUT bucket")
    def create_bucket(self, request: Request) -> Answer:
        if request.bucket in self.buckets:
            raise S3Error(409, "BucketAlreadyOwnedByYou", "You already own this bucket")
        self.buckets[request.bucket] = SortedDict()
        return Answer(200, {"location": f"/{request.bucket}"})

    @_route("HEAD bucket")
    def head_bucket(self, request: Request) -> Answer:
        self._objects(request.bucket)
        return Answer()

    @_route("DELETE bucket")
    def delete_bucket(self, request: Request) -> Answer:
        if self._objects(request.bucket):
            raise S3Error(409, "BucketNotEmpty", "The bucket you tried to delete is not empty")
        del self.buckets[request.bucket]
        return Answer(204)

    @_route("GET bucket?list-type")
    def list_objects_v2(self, request: Request) -> Answer:
        query, objects = request.query, self._objects(request.bucket)
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after, token = query.get("start-after", ""), query.get("continuation-token")
        try:
            limit = min(1000, int(query.get("max-keys", "1000")))
            resumed = base64.urlsafe_b64decode(token).decode() if token is not None else None
        except ValueError:
            raise S3Error(400, "InvalidArgument", "max-keys or continuation-token") from None
        first = (after + "\0" if after else "") if resumed is None else resumed
        encode = _url_encoded if query.get("encoding-type") == "url" else escape
        entries: list[str] = []
        next_token = following = ""
        for name, obj in _walk(objects, max(prefix, first), prefix, delimiter):
            if len(entries) == limit:
                next_token = base64.urlsafe_b64encode(following.encode()).decode() if limit else ""
                break
            entries.append(_entry(encode(name), obj))
            following = name + "\0" if obj else _beyond(name)
        parts = [
            f"<Name>{escape(request.bucket)}</Name><Prefix>{encode(prefix)}</Prefix>",
            f"<KeyCount>{len(entries)}</KeyCount><MaxKeys>{limit}</MaxKeys>",
            f"<IsTruncated>{'true' if next_token else 'false'}</IsTruncated>",
            f"<Delimiter>{encode(delimiter)}</Delimiter>" if delimiter else "",
            f"<StartAfter>{encode(after)}</StartAfter>" if after else "",
            f"<ContinuationToken>{escape(token)}</ContinuationToken>" if token else "",
            f"<NextContinuationToken>{next_token}</NextContinuationToken>" if next_token else "",
            "<EncodingType>url</EncodingType>" if encode is _url_encoded else "",
            *entries,
        ]
        return result("ListBucketResult", "".join(parts))

    @_route("PUT key")
    def put_object(self, request: Request) -> Answer:
        self._check_write(request)
        check_content(request.headers, request.body)
        obj = new_object(request.headers, request.body)
        self._changed("put", request.bucket, request.key, obj)
        return Answer(200, {"etag": obj.etag})

    @_route("GET key")
    def get_object(self, request: Request) -> Answer:
        obj = self._find(request)
        if "if-match" in request.headers and not same(request.headers["if-match"], obj):
            raise FAILED
        if "range" not in request.headers:
            return Answer(200, shown(obj), obj.content)
        size = len(obj.content)
        first, end = byte_range(request.headers["range"], size)
        headers = {"content-length": str(end - first)}
        headers["content-range"] = f"bytes {first}-{end - 1}/{size}"
        return Answer(206, {**shown(obj), **headers}, obj.content[first:end])

    @_route("HEAD key")
    def head_object(self, request: Request) -> Answer:
        return self.get_object(request)._replace(body=b"")

    @_route("PUT key copy")
    def copy_object(self, request: Request) -> Answer:
        headers, target = request.headers, (request.bucket, request.key)
        self._check_write(request)
        obj = self._source(request)
        self._check_size(len(obj.content))
        replaced = headers.get("x-amz-metadata-directive") == "REPLACE"
        changing = ("x-amz-storage-class", "x-amz-server-side-encryption", *_NOT_COPIED)
        if request.source == target and not replaced and not any(h in headers for h in changing):
            raise S3Error(
                400,
                "InvalidRequest",
                "This copy request is illegal because it is trying to copy an object to itself "
                "without changing the object's metadata, storage class, website redirect location "
                "or encryption attributes.",
            )
        new = described(headers)
        if not replaced:
            chosen = {name: new["headers"][name] for name in _NOT_COPIED if name in new["headers"]}
            kept = {name: obj.headers[name] for name in obj.headers if name not in _NOT_COPIED}
            new["headers"], new["metadata"] = {**kept, **chosen}, obj.metadata
        if headers.get("x-amz-tagging-directive") != "REPLACE":
            new["tags"] = obj.tags
        etag = etag_of(obj.content) if "-" in obj.etag else obj.etag
        copied = Obj(obj.content, etag, modified=int(time.time()), **new)
        self._changed("copy", *target, copied, request.source)
        return result("CopyObjectResult", _copied(etag))

    @_route("DELETE key")
    def delete_object(self, request: Request) -> Answer:
        obj = self._objects(request.bucket).get(request.key)
        only = request.headers.get("if-match")
        if only is not None and self.conditions == "refused":
            raise S3Error(501, "NotImplemented", "A header you provided implies functionality")
        if only is not None and self.conditions == "honoured":
            if obj is None:
                raise NO_KEY
            if not same(only, obj):
                raise FAILED
        if obj is not None:
            self._changed("delete", request.bucket, request.key, obj)
        return Answer(204)

    @_route("POST bucket?delete")
    def delete_objects(self, request: Request) -> Answer:
        objects = self._objects(request.bucket)
        headers = request.headers
        if "content-md5" not in headers and not any("x-amz-checksum-" in name for name in headers):
            raise S3Error(400, "InvalidRequest", "Missing required header: Content-MD5 or checksum")
        check_content(headers, request.body)
        if request.xml is None or not 1 <= len(request.keys) <= 1000:
            raise MALFORMED
        answers = []
        quiet = (request.xml.findtext("{*}Quiet") or "").strip() == "true"
        for element in request.xml.iterfind("{*}Object"):
            key, only = element.findtext("{*}Key") or "", element.findtext("{*}ETag")
            obj = objects.get(key)
            code = request.refused.get(key, "")
            if not code and only is not None and self.conditions == "honoured":
                code = "NoSuchKey" if obj is None else "" if same(only, obj) else FAILED.code
            if code:
                answers.append(
                    f"<Error><Key>{escape(key)}</Key><Code>{code}</Code>"
                    f"<Message>{code}</Message></Error>"
                )
                continue
            if obj is not None:
                self._changed("delete", request.bucket, key, obj)
            if not quiet:
                answers.append(f"<Deleted><Key>{escape(key)}</Key></Deleted>")
        return result("DeleteResult", "".join(answers))

    @_route("GET key?tagging")
    def get_object_tagging(self, request: Request) -> Answer:
        tags = "".join(
            f"<Tag><Key>{escape(name)}</Key><Value>{escape(value)}</Value></Tag>"
            for name, value in self._find(request).tags.items()
        )
        return result("Tagging", f"<TagSet>{tags}</TagSet>")

    @_route("PUT key?tagging")
    def put_object_tagging(self, request: Request) -> Answer:
        obj = self._find(request)
        tags = {
            tag.findtext("{*}Key") or "": tag.findtext("{*}Value") or ""
            for tag in _parsed(request).iterfind("{*}TagSet/{*}Tag")
        }
        self.buckets[request.bucket][request.key] = replace(obj, tags=tags)
        return Answer()

    @_route("POST key?uploads")
    def create_multipart_upload(self, request: Request) -> Answer:
        self._objects(request.bucket)
        name = f"upload-{next(self._ids)}"
        self.uploads[name] = Upload(request.bucket, request.key, described(request.headers), {})
        return result(
            "InitiateMultipartUploadResult",
            f"<Bucket>{escape(request.bucket)}</Bucket><Key>{escape(request.key)}</Key>"
            f"<UploadId>{name}</UploadId>",
        )

    def _upload(self, request: Request) -> Upload:
        self._objects(request.bucket)
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None or (upload.bucket, upload.key) != (request.bucket, request.key):
            raise NO_UPLOAD
        return upload

    @_route("PUT key?uploadId")
    def upload_part(self, request: Request) -> Answer:
        check_content(request.headers, request.body)
        etag = etag_of(request.body)
        number = int(request.query["partNumber"])
        self._upload(request).parts[number] = request.body, etag, None
        return Answer(200, {"etag": etag})

    @_route("PUT key?uploadId copy")
    def upload_part_copy(self, request: Request) -> Answer:
        upload, content = self._upload(request), self._source(request).content
        if "x-amz-copy-source-range" in request.headers:
            first, end = byte_range(request.headers["x-amz-copy-source-range"], len(content))
            content = content[first:end]
        etag = etag_of(content)
        upload.parts[int(request.query["partNumber"])] = content, etag, request.source
        return result("CopyPartResult", _copied(etag))

    @_route("POST key?uploadId")
    def complete_multipart_upload(self, request: Request) -> Answer:
        upload = self._upload(request)
        wanted = [
            (int(part.findtext("{*}PartNumber") or 0), (part.findtext("{*}ETag") or "").strip('"'))
            for part in _parsed(request).iterfind("{*}Part")
        ]
        if not wanted:
            raise MALFORMED
        if [number for number, _ in wanted] != sorted({number for number, _ in wanted}):
            raise S3Error(400, "InvalidPartOrder")
        if any(n not in upload.parts or upload.parts[n][1].strip('"') != e for n, e in wanted):
            raise S3Error(400, "InvalidPart")
        parts = [upload.parts[number] for number, _ in wanted]
        if any(len(content) < self.min_part for content, _, _ in parts[:-1]):
            raise S3Error(400, "EntityTooSmall", "Your proposed upload is too small")
        self._check_write(request)
        digest = hashlib.md5(b"".join(bytes.fromhex(etag.strip('"')) for _, etag, _ in parts))
        etag = f'"{digest.hexdigest()}-{len(parts)}"'
        content = b"".join(content for content, _, _ in parts)
        obj = Obj(content, etag, modified=int(time.time()), **upload.description)
        source = parts[0][2]
        self._changed("copy" if source else "put", request.bucket, request.key, obj, source)
        del self.uploads[request.query["uploadId"]]
        return result(
            "CompleteMultipartUploadResult",
            f"<Bucket>{escape(request.bucket)}</Bucket><Key>{escape(request.key)}</Key>"
            f"<ETag>{escape(etag)}</ETag>",
        )

    @_route("DELETE key?uploadId")
    def abort_multipart_upload(self, request: Request) -> Answer:
        self._upload(request)
        del self.uploads[request.query["uploadId"]]
        return Answer(204)

    @_route("GET bucket?uploads")
    def list_multipart_uploads(self, request: Request) -> Answer:
        self._objects(request.bucket)
        prefix = request.query.get("prefix", "")
        encode = _url_encoded if request.query.get("encoding-type") == "url" else escape
        uploads = "".join(
            f"<Upload><Key>{encode(upload.key)}</Key><UploadId>{name}</UploadId>"
            f"<Initiated>{iso_date(int(time.time()))}</Initiated></Upload>"
            for name, upload in self.uploads.items()
            if upload.bucket == request.bucket and upload.key.startswith(prefix)
        )
        encoding = "<EncodingType>url</EncodingType>" if encode is _url_encoded else ""
        inner = f"<IsTruncated>false</IsTruncated>{encoding}{uploads}"
        return result("ListMultipartUploadsResult", inner)


def _beyond(prefix: str) -> str:
    """The first name after all those that start so."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _walk(
    objects: Any, first: str, prefix: str, delimiter: str
) -> Iterator[tuple[str, Obj | None]]:
    """Names in order, with their objects; common prefixes with None."""
    while True:
        for key in objects.irange(first):
            if not key.startswith(prefix):
                return
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end >= 0:
                common = key[: end + len(delimiter)]
                yield common, None
                first = _beyond(common)
                break
            yield key, objects[key]
        else:
            return


def _url_encoded(text: str) -> str:
    return quote_plus(text, safe="/")


def _copied(etag: str) -> str:
    now = iso_date(int(time.time()))
    return f"<LastModified>{now}</LastModified><ETag>{escape(etag)}</ETag>"


def _parsed(request: Request) -> ElementTree.Element:
    if request.xml is None:
        raise MALFORMED
    return request.xml


def _entry(name: str, obj: Obj | None) -> str:
    if obj is None:
        return f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"
    return (
        f"<Contents><Key>{name}</Key><LastModified>{iso_date(obj.modified)}</LastModified>"
        f"<ETag>&quot;{obj.etag[1:-1]}&quot;</ETag><Size>{len(obj.content)}</Size>"
        f"<StorageClass>{obj.headers.get('x-amz-storage-class', 'STANDARD')}</StorageClass>"
        "</Contents>"
    )


# --- The server -----------------------------------------------------------------------------------


class FakeS3(Operations):
    """The server, and what tests say to it. A context manager; it serves from a thread."""

    def __init__(self, *buckets: str, port: int = 0, recording: bool = True) -> None:
        super().__init__()
        self.port = port
        self.recording = recording  # whether `log` and `history` are kept
        self.buckets.update({bucket: SortedDict() for bucket in buckets})
        self.log: list[Request] = []
        self.lock = threading.RLock()  # held while a request acts
        self.latency: float | Callable[[Request], float] = 0.0  # seconds
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.before: Callable[[Request], object] = lambda request: None
        self.after: Callable[[Request], object] = lambda request: None
        self.connections: set[_Connection] = set()
        self._counts: Counter[str] = Counter()
        self._broken: list[Exception] = []  # raised by a test's own hooks

    def __enter__(self) -> FakeS3:
        self.loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="fakes3", daemon=True)
        self._thread.start()
        return self

    def _serve(self) -> None:
        starting = self.loop.create_server(lambda: _Connection(self), sock=self._listener)
        server = self.loop.run_until_complete(starting)
        self.loop.run_forever()
        server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        if self._broken and kind is None:
            raise self._broken[0]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **config: Any) -> Any:
        return client(self.url, **config)

    def put(self, bucket: str, key: str, content: bytes = b"", **headers: str) -> Obj:
        """Store an object without a request; headers as in `content_type`, `x_amz_meta_author`."""
        obj = new_object({k.replace("_", "-").lower(): v for k, v in headers.items()}, content)
        with self.lock:
            self._changed("put", bucket, key, obj)
        return obj

    def delete(self, bucket: str, key: str) -> None:
        with self.lock:
            self._changed("delete", bucket, key, self.buckets[bucket][key])

    def fill(
        self,
        bucket: str = "events",
        folder: str = "later",
        waiting: int = 0,
        due: int = 0,
        target: str = "target",
        key: str = "{i}",
        size: int = 0,
    ) -> None:
        """Add events, `due` in the last hour's past and `waiting` from ten years on, all alike."""
        now = datetime.now(timezone.utc).replace(tzinfo=None)
        obj = new_object({}, b"x" * size)
        names = {}
        for start, count in ((now - timedelta(hours=1), due), (now + timedelta(3650), waiting)):
            for i in range(count):
                when = (start + timedelta(microseconds=i)).isoformat(timespec="microseconds")
                names[f"{folder}/{when}Z|{target}|{key.format(i=i)}"] = obj
        with self.lock:
            for name in (bucket, target):
                self.buckets.setdefault(name, SortedDict())
            self.buckets[bucket].update(names)

    def count(self) -> Counter[str]:
        """Requests so far, by operation."""
        return Counter(self._counts)

    def reset(self) -> None:
        """Empty every bucket and forget what was."""
        with self.lock:
            for bucket in self.buckets:
                self.buckets[bucket] = SortedDict()
            for kept in (self.uploads, self.log, self.history, self._counts):
                kept.clear()

    def arrived(self, request: Request) -> Fault | None:
        self._counts[request.operation] += 1
        if self.recording:
            self.log.append(request)
        with self._reported():
            return self.fault(request)
        return Error(500, "BrokenTest")

    def wait(self, request: Request) -> float:
        return self.latency(request) if callable(self.latency) else self.latency

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        """Act, unless the fault prevents it, and answer."""
        answer = S3Error(500, "BrokenTest").answer(request)
        if isinstance(fault, KeyErrors):
            request.refused = fault.errors
        if fault is None or fault.after or isinstance(fault, Delay | KeyErrors):
            with self.lock, self._reported():
                self.before(request)
                answer = self._act(request)
                self.after(request)
        if isinstance(fault, Error):
            answer = S3Error(fault.status, fault.code).answer(request)
        if isinstance(fault, CopyError):
            answer = S3Error(200, fault.code).answer(request)
        if not isinstance(fault, Hang | Reset):
            request.status = answer.status
        return answer

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._broken.append(error)

    def _act(self, request: Request) -> Answer:
        try:
            if len(request.key.encode()) > 1024:
                raise S3Error(400, "KeyTooLongError", "Your key is too long")
            for name in ("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner"):
                if request.headers.get(name, self.owner) != self.owner:
                    raise S3Error(403, "AccessDenied", "Access Denied")
            return _HANDLERS[request.operation](self, request)
        except S3Error as error:
            return error.answer(request)

    def admin(self, commands: dict[str, Any]) -> dict[str, Any]:
        if commands.get("reset"):
            self.reset()
        if "fill" in commands:
            self.fill(**commands["fill"])
            gc.collect()
            gc.freeze()  # a million names make every later full collection a pause
        for name, value in commands.get("set", {}).items():
            setattr(self, name, value)
        return {
            "count": self._counts,
            "objects": {name: len(b) for name, b in self.buckets.items()},
        }


_HANDLERS = dict(_ROUTES.values())


def understood(method: str, target: str, headers: dict[str, str], body: bytes) -> Request:
    path, _, text = target.partition("?")
    bucket, _, key = unquote(path, errors="strict")[1:].partition("/")
    query = dict(parse_qsl(text, keep_blank_values=True))
    route = f"{method} {'key' if key else 'bucket' if bucket else 'service'}"
    for name in _SUBRESOURCES:
        if name in query:
            route += "?" + name
            break
    source = None
    if "x-amz-copy-source" in headers:
        route += " copy"
        path = headers["x-amz-copy-source"].partition("?versionId=")[0]
        source_bucket, _, source_key = unquote_plus(path).lstrip("/").partition("/")
        source = source_bucket, source_key
    operation = _ROUTES[route][0] if route in _ROUTES else route
    now = time.monotonic()
    request = Request(operation, bucket, key, source, [], headers, query, body, now)
    if body and operation in ("DeleteObjects", "CompleteMultipartUpload", "PutObjectTagging"):
        with suppress(ElementTree.ParseError):
            request.xml = ElementTree.fromstring(body)
            request.keys = [key.text or "" for key in request.xml.iterfind("{*}Object/{*}Key")]
    return request


class _Connection(asyncio.Protocol):
    """One request after another, each answered before the next is read."""

    transport: asyncio.Transport

    def __init__(self, s3: FakeS3) -> None:
        self.s3 = s3
        self.received = bytearray()
        self.head: tuple[str, str, dict[str, str]] | None = None
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
            self._read()

    def _read(self) -> None:
        if self.head is None:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return
            first, *lines = self.received[:end].decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            self.head = method, target, _headers(lines)
            del self.received[: end + 4]
            if "expect" in self.head[2]:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        method, target, headers = self.head
        if headers.get("transfer-encoding") == "chunked":
            chunked = dechunk(self.received)
            if chunked is None:
                return
            body, _, length = chunked
        else:
            length = int(headers.get("content-length", "0"))
            if len(self.received) < length:
                return
            body = bytes(self.received[:length])
        del self.received[:length]
        self.head, self.busy = None, True
        if headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
            decoded = dechunk(body)
            assert decoded is not None
            body = decoded[0]
            headers.update(decoded[1])
        self._receive(method, target, headers, body)

    def _receive(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        if target == "/?admin":
            answer = json.dumps(self.s3.admin(json.loads(body))).encode()
            return self._send(method, Answer(200, {}, answer))
        request = understood(method, target, headers, body)
        fault = self.s3.arrived(request)
        wait = self.s3.wait(request)
        if isinstance(fault, Delay) and not fault.after:
            wait += fault.seconds
        if wait > 0:
            self.s3.loop.call_later(wait, self._act, method, request, fault)
        else:
            self._act(method, request, fault)

    def _act(self, method: str, request: Request, fault: Fault | None) -> None:
        answer = self.s3.answer(request, fault)
        if isinstance(fault, Reset):
            linger = struct.pack("ii", 1, 0)  # makes closing send RST
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        elif isinstance(fault, Delay) and fault.after:
            self.s3.loop.call_later(fault.seconds, self._send, method, answer)
        elif not isinstance(fault, Hang):
            self._send(method, answer)

    def _send(self, method: str, answer: Answer) -> None:
        status, headers, body = answer
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "x-amz-request-id: FAKE"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if "content-length" not in headers and status != 204:
            lines.append(f"content-length: {0 if method == 'HEAD' else len(body)}")
        head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        self.transport.write(head if method == "HEAD" else head + body)
        self.busy = False
        if self.received:
            self._read()


# --- Clients, and a process of its own ------------------------------------------------------------


@lru_cache
def _session() -> Any:
    import boto3

    return boto3.Session("fake", "fake", region_name="us-east-1")


def client(url: str, **config: Any) -> Any:
    """A boto3 client that makes one attempt, unless `config` (botocore's) says otherwise."""
    from botocore.config import Config

    defaults = {"s3": {"addressing_style": "path"}, "retries": {"total_max_attempts": 1}}
    return _session().client("s3", endpoint_url=url, config=Config(**{**defaults, **config}))


class Remote:
    """A fake in another process."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self.pid = url, pid

    def client(self, **config: Any) -> Any:
        return client(self.url, **config)

    def _admin(self, **commands: Any) -> Any:
        body = json.dumps(commands).encode()
        with urlopen(UrlRequest(self.url + "/?admin", body)) as answer:
            return json.load(answer)

    def fill(self, **options: Any) -> None:
        self._admin(fill=options)

    def reset(self) -> None:
        self._admin(reset=True)

    def set(self, **controls: Any) -> None:
        """Such as latency=0.03 or conditions="ignored"."""
        self._admin(set=controls)

    def count(self) -> Counter[str]:
        return Counter(self._admin()["count"])

    def objects(self) -> dict[str, int]:
        """How many each bucket holds."""
        return dict(self._admin()["objects"])


@contextmanager
def spawn(latency: float = 0.0, **fill: Any) -> Iterator[Remote]:
    """A fake in a process of its own, filled as `FakeS3.fill` says."""
    command = [sys.executable, __file__, "--until-eof", f"--latency={latency}"]
    command += [f"--{name}={value}" for name, value in fill.items()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Remote(process.stdout.readline().strip(), process.pid)
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description="An S3 in memory; prints its URL and serves.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--until-eof", action="store_true", help="end with standard input")
    for name in ("bucket", "folder", "target", "key"):
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help="of the events")
    for name in ("waiting", "due", "size"):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS, help="of events")
    options = vars(parser.parse_args())
    until_eof = options.pop("until_eof")
    with FakeS3(port=options.pop("port"), recording=False) as s3:
        s3.latency = options.pop("latency")
        s3.admin({"fill": options})
        print(s3.url, flush=True)
        if until_eof:
            sys.stdin.read()
        else:
            signal.pause()


if __name__ == "__main__":
    main()
