"""Objects, uploads, and how they look in answers."""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from .faults import Location, Obj
from .wire import S3Error, escape, http_date, iso_date, tag

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

META = "x-amz-meta-"
STORAGE_CLASS = "x-amz-storage-class"
ENCRYPTION = "x-amz-server-side-encryption"
NOT_COPIED = (
    *(STORAGE_CLASS, "x-amz-website-redirect-location"),
    *(ENCRYPTION, f"{ENCRYPTION}-aws-kms-key-id", f"{ENCRYPTION}-bucket-key-enabled"),
)
KEPT = (
    *("cache-control", "content-disposition", "content-encoding", "content-language"),
    *("content-type", "expires", *NOT_COPIED),
)


_nonces = itertools.count()


def etag_of(content: bytes, encryption: str = "") -> str:
    """The MD5 of the content; encrypted by KMS, something else each time."""
    nonce = b"%d" % next(_nonces) if encryption.startswith("aws:kms") else b""
    return f'"{hashlib.md5(content + nonce).hexdigest()}"'


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
    etag = etag_of(content, headers.get(ENCRYPTION, ""))
    return Obj(content, size, etag, modified=now, **described(headers))


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


def encrypted(obj: Obj) -> dict[str, str]:
    """The headers of an answer that tell how the object is encrypted."""
    return {name: obj.headers[name] for name in obj.headers if name.startswith(ENCRYPTION)}


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
