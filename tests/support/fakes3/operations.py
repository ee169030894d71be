"""S3's operations, on buckets in memory."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, unquote, unquote_plus
from xml.etree import ElementTree as ET

from sortedcontainers import SortedDict  # type: ignore[import-untyped]

from .faults import Change, Error, Location, Obj, Rate, Request
from .objects import (
    ENCRYPTION,
    NOT_COPIED,
    STORAGE_CLASS,
    Part,
    Upload,
    beyond,
    byte_range,
    checked_tags,
    copied,
    described,
    encrypted,
    etag_of,
    listed,
    new_object,
    same,
    shown,
    walk,
)
from .permissions import Denied, arn, is_denied, needed, needed_to_delete
from .servers import Condition, Server
from .wire import (
    DENIED,
    FAILED,
    MALFORMED,
    NO_BUCKET,
    NO_KEY,
    NO_UPLOAD,
    SLOW_DOWN,
    TOO_LONG,
    Answer,
    S3Error,
    check_content,
    escape,
    iso_date,
    result,
    tag,
    url_encoded,
)

Handler = Callable[[Any, Request], Answer]
SUBRESOURCES = ("tagging", "versioning", "uploadId", "uploads", "delete", "list-type")
CONDITIONS = (
    *("copy_source_if_match", "copy_if_none_match", "put_if_none_match"),
    *("delete_if_match", "delete_objects_etag"),
)
WRITES = {
    *("PutObject", "CopyObject", "DeleteObject", "CreateMultipartUpload", "UploadPart"),
    *("UploadPartCopy", "CompleteMultipartUpload"),
}
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

    max_copy = 5 * 1024**3  # bytes in one CopyObject
    max_part = 5 * 1024**3
    min_part = 5 * 1024**2  # bytes in a part that is not the last
    max_size = 50 * 1024**4  # bytes in an object
    max_parts = 10_000
    owner = "111122223333"

    def __init__(self) -> None:
        self.server = Server()  # whose peculiarities it has
        self.denied: Denied = ()  # pairs of action and resource, `*` and `?` in them as in IAM's
        self.limit: Rate | None = None
        self.versioning: dict[str, str] = {}  # bucket -> "Enabled" or "Suspended"
        self.encryption: dict[str, str] = {}  # bucket -> its default, such as "aws:kms"
        self.buckets: dict[str, Any] = {}  # SortedDict: key -> Obj
        self.uploads: dict[str, Upload] = {}
        self.history: list[Change] = []
        self.recording = True
        self._ids = itertools.count(1)
        self._lock = threading.RLock()  # held by whoever changes the buckets

    @property
    def conditions(self) -> str:
        raise AttributeError("conditions can be set only; read `server`")

    @conditions.setter
    def conditions(self, what: Condition) -> None:
        """Make the same of all conditions: "honoured", "ignored", "refused" or an Error."""
        changed: dict[str, Any] = dict.fromkeys(CONDITIONS, what)
        self.server = replace(self.server, **changed)

    def act(self, request: Request, key_errors: Mapping[str, str]) -> Answer:
        """Carry out the request, but for those keys of a DeleteObjects."""
        try:
            if len(request.key.encode()) > self.server.max_name:
                raise TOO_LONG
            for name in ("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner"):
                if request.headers.get(name, self.owner) != self.owner:
                    raise DENIED
            if request.operation not in HANDLERS:
                raise S3Error(501, "NotImplemented", f"fakes3 has no {request.operation}")
            if any(is_denied(self.denied, *each) for each in needed(request, self._look)):
                raise DENIED
            if request.operation == "DeleteObjects":
                return self.delete_keys(request, key_errors)
            if not self._admits(request):
                raise SLOW_DOWN
            return HANDLERS[request.operation](self, request)
        except S3Error as error:
            if error is NO_KEY and self._hides_what_is_missing(request):
                error = DENIED
            return error.answer(request)

    def _look(self, place: Location) -> Obj | None:
        found: Obj | None = self.buckets.get(place[0], {}).get(place[1])
        return found

    def _hides_what_is_missing(self, request: Request) -> bool:
        # Whoever may not list is not told whether a key exists.
        reads = ("GetObject", "GetObjectTagging", "HeadObject")
        bucket = request.source[0] if request.source else request.bucket
        asked = request.source or request.operation in reads
        return bool(asked) and is_denied(self.denied, "s3:ListBucket", arn(bucket))

    def _admits(self, request: Request) -> bool:
        if self.limit is None or request.operation not in WRITES:
            return True
        if request.operation == "DeleteObject" and not self.limit.deletes:
            return True
        return self.limit.admits(request.bucket, request.key)

    def _applies(self, condition: str | None, what: Condition) -> bool:
        """Whether a condition of a request, if it has it, is to be judged; raises if refused."""
        if condition is None or what in ("ignored", "source"):
            return False
        if isinstance(what, Error):
            raise S3Error(what.status, what.code)
        if what == "refused":
            raise S3Error(501, "NotImplemented", "This condition is not implemented")
        return True

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
        if self.server.loses_colons and "%3A" in request.headers["x-amz-copy-source"]:
            raise NO_KEY
        obj = self._find(*request.source)
        only = request.headers.get("x-amz-copy-source-if-match")
        if self._applies(only, self.server.copy_source_if_match) and not self._same(only, obj):
            raise FAILED
        if "if-none-match" in request.headers and self.server.copy_if_none_match == "source":
            raise FAILED
        if obj.headers.get(STORAGE_CLASS) in ("GLACIER", "DEEP_ARCHIVE"):
            raise S3Error(403, "ObjectNotInActiveTierError", "The source object is archived")
        return obj

    def _same(self, condition: str | None, obj: Obj) -> bool:
        if self.server.doubts_etags_of_parts and "-" in obj.etag:
            return False
        return condition is not None and same(condition, obj)

    def _check_write(self, request: Request, what: Condition) -> None:
        """Raise unless the conditions on what is overwritten hold."""
        old = self._objects(request.bucket).get(request.key)
        unless, only = request.headers.get("if-none-match"), request.headers.get("if-match")
        if unless not in (None, "*"):
            raise S3Error(501, "NotImplemented", "If-None-Match takes only *")
        if only is not None and old is None:
            raise NO_KEY
        exists = self._applies(unless, what) and old is not None
        if exists or (only is not None and not same(only, old)):
            raise FAILED

    def _encrypted(self, request: Request) -> dict[str, str]:
        """The headers of a write, with what its bucket encrypts by if they do not tell."""
        default = self.encryption.get(request.bucket)
        return {ENCRYPTION: default, **request.headers} if default else request.headers

    def _changed(
        self, action: str, bucket: str, key: str, obj: Obj, source: Location | None = None
    ) -> None:
        if action == "delete":
            del self.buckets[bucket][key]
        else:
            self.buckets[bucket][key] = obj
        if self.recording:
            now = time.monotonic()
            change = (action, bucket, key, obj.content, obj.size, obj.etag, source, now)
            self.history.append(Change(*change))

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

    @route("GET bucket?versioning")
    def get_bucket_versioning(self, request: Request) -> Answer:
        self._objects(request.bucket)
        status = tag("Status", self.versioning.get(request.bucket, ""))
        return result("VersioningConfiguration", status)

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
        if self.server.empty_pages and token is not None and ("|" in first or ":" in first):
            limit = 0
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
        self._check_write(request, self.server.put_if_none_match)
        check_content(request.headers, request.body)
        obj = new_object(self._encrypted(request), request.body)
        self._changed("put", request.bucket, request.key, obj)
        return Answer(200, {"etag": obj.etag, **encrypted(obj)})

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
        headers, target = self._encrypted(request), (request.bucket, request.key)
        self._check_write(request, self.server.copy_if_none_match)
        obj = self._source(request)
        if obj.size > self.max_copy:
            raise S3Error(400, "InvalidRequest", "The specified copy source is too large")
        replaced = headers.get("x-amz-metadata-directive") == "REPLACE"
        changing = any(name in request.headers for name in NOT_COPIED)
        if request.source == target and not replaced and not changing:
            raise S3Error(400, "InvalidRequest", "This copies an object to itself unchanged")
        new = described(headers)
        if not replaced:
            kept = {name: value for name, value in obj.headers.items() if name not in NOT_COPIED}
            new["headers"] = {name: new["headers"][name] for name in NOT_COPIED if name in headers}
            new["headers"] |= kept
            new["metadata"] = obj.metadata
        if headers.get("x-amz-tagging-directive") != "REPLACE":
            new["tags"] = obj.tags
        encryption = headers.get(ENCRYPTION, "")
        whole = not encryption and not obj.headers.get(ENCRYPTION) and "-" not in obj.etag
        etag = obj.etag if whole else etag_of(obj.content, encryption)
        obj = Obj(obj.content, obj.size, etag, modified=int(time.time()), **new)
        self._changed("copy", *target, obj, request.source)
        answer = result("CopyObjectResult", copied(etag))
        return answer._replace(headers={**answer.headers, **encrypted(obj)})

    @route("DELETE key")
    def delete_object(self, request: Request) -> Answer:
        obj = self._objects(request.bucket).get(request.key)
        only = request.headers.get("if-match")
        if self._applies(only, self.server.delete_if_match):
            if obj is None:
                raise NO_KEY
            if not self._same(only, obj):
                raise FAILED
        if obj is not None:
            self._changed("delete", request.bucket, request.key, obj)
        return Answer(204)

    @route("POST bucket?delete")
    def delete_objects(self, request: Request) -> Answer:
        return self.delete_keys(request, {})

    def delete_keys(self, request: Request, errors: Mapping[str, str]) -> Answer:
        """Do a DeleteObjects of which these keys fail."""
        objects, document = self._objects(request.bucket), self._checked_delete(request)
        quiet = document.findtext("{*}Quiet", "").strip() == "true"
        judged = self._applies(
            document.findtext("{*}Object/{*}ETag"), self.server.delete_objects_etag
        )
        errors = {**self._throttled(request), **errors}
        answers = []
        for element in document.iterfind("{*}Object"):
            key, only = element.findtext("{*}Key", ""), element.findtext("{*}ETag")
            obj = objects.get(key)
            permissions = needed_to_delete(request.bucket, key, conditional=only is not None)
            code = errors.get(key, "")
            if any(is_denied(self.denied, *each) for each in permissions):
                code = DENIED.code
            if not code and judged and only is not None:
                code = "NoSuchKey" if obj is None else "" if self._same(only, obj) else FAILED.code
            if code:
                error = tag("Key", escape(key)) + tag("Code", code) + tag("Message", code)
                answers.append(tag("Error", error))
                continue
            if obj is not None:
                self._changed("delete", request.bucket, key, obj)
            if not quiet:
                answers.append(tag("Deleted", tag("Key", escape(key))))
        return result("DeleteResult", "".join(answers))

    def _checked_delete(self, request: Request) -> ET.Element:
        headers, refusal = request.headers, self.server.delete_objects
        if "content-md5" not in headers:
            refusal = refusal or self.server.delete_objects_without_md5
        if refusal:
            raise S3Error(refusal.status, refusal.code)
        if "content-md5" not in headers and not any("x-amz-checksum-" in name for name in headers):
            raise S3Error(400, "InvalidRequest", "Content-MD5 or a checksum is missing")
        check_content(headers, request.body)
        if request.xml is None or not 1 <= len(request.keys) <= 1000:
            raise MALFORMED
        return request.xml

    def _throttled(self, request: Request) -> dict[str, str]:
        """The keys of a DeleteObjects for which there is no room, all: SlowDown as a whole."""
        if self.limit is None or not self.limit.deletes:
            return {}
        room = [self.limit.admits(request.bucket, key) for key in request.keys]
        if not any(room):
            raise SLOW_DOWN
        pairs = zip(request.keys, room, strict=True)
        return {key: SLOW_DOWN.code for key, admitted in pairs if not admitted}

    @route("GET key?tagging")
    def get_object_tagging(self, request: Request) -> Answer:
        if not self._find(request.bucket, request.key).tags and self.server.empty_tagging:
            return Answer()
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
        description = described(self._encrypted(request))
        self.uploads[name] = Upload(request.bucket, request.key, description)
        return result("InitiateMultipartUploadResult", tag("UploadId", name))

    def _upload(self, request: Request) -> Upload:
        self._objects(request.bucket)
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None or (upload.bucket, upload.key) != (request.bucket, request.key):
            raise NO_UPLOAD
        return upload

    def _part_number(self, request: Request) -> int:
        number = int(request.query["partNumber"])
        if not 1 <= number <= self.max_parts:
            raise S3Error(400, "InvalidArgument", "Part number must be from 1 to 10000")
        return number

    @route("PUT key?uploadId")
    def upload_part(self, request: Request) -> Answer:
        upload, number = self._upload(request), self._part_number(request)
        check_content(request.headers, request.body)
        part = Part(request.body, len(request.body), etag_of(request.body), None)
        upload.parts[number] = part
        return Answer(200, {"etag": part.etag})

    @route("PUT key?uploadId copy")
    def upload_part_copy(self, request: Request) -> Answer:
        upload, obj = self._upload(request), self._source(request)
        number = self._part_number(request)
        first, end = 0, obj.size
        if (wanted := request.headers.get("x-amz-copy-source-range")) is not None:
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
            if not match or not int(match[1]) <= int(match[2]) < obj.size:
                raise S3Error(400, "InvalidArgument", "Range is not valid for the source object")
            first, end = int(match[1]), int(match[2]) + 1
        if end - first > self.max_part:
            raise S3Error(400, "InvalidRequest", "The specified copy source is too large")
        content = obj.content[first:end]
        part = Part(content, end - first, etag_of(content), request.source)
        upload.parts[number] = part
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
        size = sum(part.size for part in parts)
        if size > self.max_size:
            raise S3Error(400, "EntityTooLarge")
        self._check_write(request, self.server.copy_if_none_match)
        digest = hashlib.md5(b"".join(bytes.fromhex(etag) for etag in etags)).hexdigest()
        content, etag = b"".join(part.content for part in parts), f'"{digest}-{len(parts)}"'
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
