"""HTTP and XML as S3 speaks them."""

from __future__ import annotations

import base64
import hashlib
import struct
import time
import zlib
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote_plus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .faults import Request


class Answer(NamedTuple):
    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""
    announced: bool = True  # whether the headers tell the length of the body
    sent: int | None = None  # bytes of the body, after which the connection ends; None: all


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
DENIED = S3Error(403, "AccessDenied", "Access Denied")
SLOW_DOWN = S3Error(503, "SlowDown", "Please reduce your request rate.")
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
