"""Large objects are copied in parts, and appear whole, with all that belongs to them."""

import hashlib
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from s3_scheduler import Scheduler, SchedulerError, copies, folder, run_due
from s3_scheduler.folder import Changed, Folder, Gone
from support.fakes3 import (
    Cut,
    Empty,
    Error,
    FakeS3,
    Hang,
    Html,
    Reset,
    always,
    any_of,
    on,
    sick,
)
from support.once import needs_once

NAME = "later/2030-01-31T09:00:00.000000Z|target|k"
GIB = 1024**3
MIB = 1024**2
CONFIRM_NOTHING = [Empty(), Empty(after=True), Html(), Cut(announced=False)]
FAULTS = {
    "refused": Error(403, "AccessDenied"),
    "failed": Error(500, "InternalError"),
    "reset": Reset(),
    "reset after acting": Reset(after=True),
    "empty": Empty(),
    "empty after acting": Empty(after=True),
    "html": Html(),
    "cut": Cut(after=True),
}
DESCRIBED = {
    "cache_control": "no-store",
    "content_disposition": "attachment",
    "content_encoding": "gzip",
    "content_language": "de",
    "content_type": "text/plain",
    "expires": "Thu, 31 Jan 2030 09:00:00 GMT",
    "x_amz_meta_user": "42",
    "x_amz_tagging": "a=b&c+d=e%2Ff",
}


@pytest.fixture
def s3(fake, monkeypatch):
    monkeypatch.setattr(folder, "CONFLICT_AFTER", (0.0,) * len(folder.CONFLICT_AFTER))
    fake.create("events", "target", "bad")
    return fake


@pytest.fixture
def later(s3):
    """Yield the folder `events/later/`, whose client makes one attempt at each request."""
    client = s3.client()
    yield Folder("events", "later", client)
    client.close()


def put(s3, later, size=3 * GIB, content=b"body", name=NAME, **headers):
    """Store an event that pretends to be large; what a look tells of it."""
    s3.put("events", name, content, size=size, **headers)
    return later.look(name)


def copy(later, event, extra_args=None, **more):
    return later.copy(event, event.bucket, event.key, **{**(extra_args or {}), **more})


def requests(s3, operation):
    return [request for request in s3.log if request.operation == operation]


def meanwhile(s3, operation, act, *, turn=1):
    """Do this once, just before S3 acts on such a request: the first, or a later one."""
    count = iter(range(1, 1_000_000))

    def before(request):
        if request.operation == operation and next(count) == turn:
            act()

    s3.before = before


# --- When, and in which parts ---------------------------------------------------------------------


@pytest.mark.parametrize(("size", "operation"), [(GIB, "CopyObject"), (GIB + 1, "UploadPartCopy")])
def test_the_threshold(s3, later, size, operation):
    """An object of up to 1 GiB is copied by one request, a larger one in parts."""
    copy(later, put(s3, later, size))
    assert operation in s3.count()
    assert ("CopyObject" in s3.count()) is (operation == "CopyObject")
    assert s3.buckets["target"]["k"].size == size


def test_the_requests_of_a_copy(s3, later):
    """Beside one request for each 256 MiB it takes five: two looks at the source, the upload, its
    completion, and a look at the target.
    """
    event = put(s3, later)
    s3.log.clear()
    copy(later, event)
    assert Counter(request.operation for request in s3.log) == Counter(
        HeadObject=2,
        GetObjectTagging=1,
        CreateMultipartUpload=1,
        UploadPartCopy=12,
        CompleteMultipartUpload=1,
    )


@pytest.mark.parametrize("size", [GIB + 1, 5 * GIB, 5 * GIB + 255 * MIB])
def test_ranges(s3, later, size):
    """The parts are 256 MiB each but for the last, and leave out no byte and repeat none."""
    copy(later, put(s3, later, size))
    ranges = {}
    for request in requests(s3, "UploadPartCopy"):
        number = int(request.query["partNumber"])
        first, _, last = request.headers["x-amz-copy-source-range"][6:].partition("-")
        ranges[number] = (int(first), int(last) + 1)
    edges = [ranges[number] for number in range(1, len(ranges) + 1)]
    assert [first for first, _ in edges] == [0, *[end for _, end in edges[:-1]]]
    assert edges[-1][1] == size
    assert {end - first for first, end in edges[:-1]} == {256 * MIB}


def test_parts_grow(s3, later, monkeypatch):
    """Beyond the most parts that an upload may have, the parts are larger."""
    monkeypatch.setattr(copies, "MAX_PARTS", 10)
    s3.max_parts = 10
    copy(later, put(s3, later, 10 * 256 * MIB + 1))
    sizes = sorted(part_sizes(s3))
    assert len(sizes) == 10
    assert sizes[-1] == 256 * MIB + 1
    assert s3.buckets["target"]["k"].size == 10 * 256 * MIB + 1


def part_sizes(s3):
    for request in requests(s3, "UploadPartCopy"):
        first, _, last = request.headers["x-amz-copy-source-range"][6:].partition("-")
        yield int(last) + 1 - int(first)


@pytest.mark.slow
def test_the_largest_object(s3, later):
    """50 TB are copied in 10,000 parts, none above the 5 GiB that S3 takes."""
    size = 50 * 10**12
    copy(later, put(s3, later, size))
    assert s3.buckets["target"]["k"].size == size
    assert len(requests(s3, "UploadPartCopy")) == 10_000
    assert max(part_sizes(s3)) <= 5 * GIB


def test_parts_in_flight(s3, later):
    """A few parts are copied at once, never more than that."""
    now = most = 0
    lock = threading.Lock()

    def latency(request):
        nonlocal now, most
        if request.operation == "UploadPartCopy":
            with lock:
                now += 1
                most = max(most, now)
        return 0.02

    def after(request):
        nonlocal now
        if request.operation == "UploadPartCopy":
            with lock:
                now -= 1

    event = put(s3, later, 8 * GIB)
    s3.latency, s3.after = latency, after
    copy(later, event)
    assert 1 < most <= copies.MAX_PARTS_IN_FLIGHT


def test_a_bucket_that_hangs_holds_up_no_other():
    """Parts that hang, of many large events, leave room for those of another bucket."""
    names = [f"later/2030-01-31T09:00:00.00000{n}Z|bad|k" for n in range(4)]
    with ThreadPoolExecutor() as pool:
        with FakeS3("events", "target", "bad") as s3:
            later = Folder("events", "later", s3.client(max_pool_connections=20))
            s3.fault = sick("bad", on("UploadPartCopy", *[Hang()] * 100))
            stuck = [pool.submit(copy, later, put(s3, later, name=name)) for name in names]
            while len(requests(s3, "UploadPartCopy")) < 4 * copies.MAX_PARTS_IN_FLIGHT:
                time.sleep(0.01)
            copy(later, put(s3, later))
            assert s3.buckets["target"]["k"].size == 3 * GIB
            assert not any(future.done() for future in stuck)
        for future in stuck:
            assert isinstance(future.exception(), BotoCoreError)


# --- What arrives ---------------------------------------------------------------------------------


def test_everything_arrives(s3, later):
    """Content, headers, metadata and tags are those of the source, as with one CopyObject."""
    copy(later, put(s3, later, **DESCRIBED))
    copied, source = s3.buckets["target"]["k"], s3.buckets["events"][NAME]
    assert (copied.content, copied.size) == (source.content, source.size)
    assert (copied.headers, copied.metadata) == (source.headers, source.metadata)
    assert copied.tags == source.tags == {"a": "b", "c d": "e/f"}


def test_it_appears_whole(s3, later):
    """All of that is told when the upload is created: nothing is set once the object is there."""
    copy(later, put(s3, later, **DESCRIBED))
    operations = [request.operation for request in s3.log]
    assert operations[-2:] == ["CompleteMultipartUpload", "HeadObject"]
    (created,) = requests(s3, "CreateMultipartUpload")
    assert created.headers["x-amz-tagging"] == "a=b&c+d=e%2Ff"
    assert created.headers["x-amz-meta-user"] == "42"


def test_no_tags(s3, later):
    """Without tags none are sent, for which the runner would need a permission."""
    copy(later, put(s3, later))
    (created,) = requests(s3, "CreateMultipartUpload")
    assert "x-amz-tagging" not in created.headers


@pytest.mark.parametrize(
    "tagging", [Empty(), Error(501, "NotImplemented")], ids=["empty body", "not implemented"]
)
def test_servers_without_tags(s3, later, tagging):
    """An empty body for the tags (Ceph), and a server that has none, mean no tags."""
    s3.fault = on("GetObjectTagging", tagging)
    copy(later, put(s3, later))
    assert s3.buckets["target"]["k"].tags == {}


def test_tags_that_cannot_be_read(s3, later):
    """What may not be read is not dropped: the copy fails, as one CopyObject would."""
    s3.fault = on("GetObjectTagging", Error(403, "AccessDenied"))
    with pytest.raises(ClientError, match="AccessDenied"):
        copy(later, put(s3, later))
    assert s3.uploads == {}


def test_extra_args(s3, later):
    """What the copy is to have besides is told when the upload is created."""
    extra_args = {
        "ACL": "bucket-owner-full-control",
        "StorageClass": "STANDARD_IA",
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": "key",
        "BucketKeyEnabled": True,
        "WebsiteRedirectLocation": "/there",
    }
    copy(later, put(s3, later, **DESCRIBED), extra_args)
    (created,) = requests(s3, "CreateMultipartUpload")
    assert created.headers["x-amz-acl"] == "bucket-owner-full-control"
    assert created.headers["x-amz-server-side-encryption-bucket-key-enabled"].lower() == "true"
    assert created.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key"
    copied = s3.buckets["target"]["k"]
    assert copied.headers["x-amz-storage-class"] == "STANDARD_IA"
    assert copied.headers["x-amz-server-side-encryption"] == "aws:kms"
    assert copied.headers["x-amz-website-redirect-location"] == "/there"
    assert (copied.headers["content-type"], copied.tags["a"]) == ("text/plain", "b")


@pytest.mark.parametrize("described", [{}, DESCRIBED])
@pytest.mark.parametrize("directive", [{}, {"MetadataDirective": "COPY"}])
def test_metadata_is_kept_unless_it_is_replaced(s3, later, directive, described):
    """Without REPLACE the source's headers and metadata stay, whatever else is given."""
    extra_args = {"ContentType": "a/b", "Metadata": {"user": "43"}, "CacheControl": "x"}
    copy(later, put(s3, later, **described), {**extra_args, **directive})
    copied, source = s3.buckets["target"]["k"], s3.buckets["events"][NAME]
    assert (copied.headers, copied.metadata) == (source.headers, source.metadata)


def test_metadata_replaced(s3, later):
    """With REPLACE it has the headers and metadata that are given, and no others."""
    extra_args = {"MetadataDirective": "REPLACE", "ContentType": "a/b", "Metadata": {"x": "y"}}
    copy(later, put(s3, later, **DESCRIBED), extra_args)
    copied = s3.buckets["target"]["k"]
    assert (copied.headers, copied.metadata) == ({"content-type": "a/b"}, {"x": "y"})
    assert copied.tags == {"a": "b", "c d": "e/f"}


@pytest.mark.parametrize("described", [{}, DESCRIBED])
@pytest.mark.parametrize("directive", [{}, {"TaggingDirective": "COPY"}])
def test_tags_are_kept_unless_they_are_replaced(s3, later, directive, described):
    """Without REPLACE the source's tags stay, whatever others are given."""
    copy(later, put(s3, later, **described), {"Tagging": "x=y", **directive})
    assert s3.buckets["target"]["k"].tags == s3.buckets["events"][NAME].tags


@pytest.mark.parametrize(("given", "tags"), [({"Tagging": "x=y"}, {"x": "y"}), ({}, {})])
def test_tags_replaced(s3, later, given, tags):
    """With REPLACE it has the tags that are given, or none; those of the source are not read."""
    copy(later, put(s3, later, **DESCRIBED), {"TaggingDirective": "REPLACE", **given})
    assert s3.buckets["target"]["k"].tags == tags
    assert "GetObjectTagging" not in s3.count()


def test_owners(s3, later):
    """Each request checks the owner of its bucket, if one is expected."""
    owners = {"ExpectedBucketOwner": s3.owner, "ExpectedSourceBucketOwner": s3.owner}
    event = put(s3, later)
    s3.log.clear()
    copy(later, event, owners)
    for request in s3.log:
        expected = {"x-amz-expected-bucket-owner": s3.owner}
        if request.operation == "UploadPartCopy":
            expected["x-amz-source-expected-bucket-owner"] = s3.owner
        assert expected.items() <= request.headers.items()


@pytest.mark.parametrize("owner", ["ExpectedBucketOwner", "ExpectedSourceBucketOwner"])
def test_a_stranger(s3, later, owner):
    """A bucket of another owner is refused, and nothing is left behind."""
    with pytest.raises(ClientError, match=r"403|AccessDenied"):
        copy(later, put(s3, later), {owner: "999999999999"})
    assert s3.buckets["target"] == s3.uploads == {}


def test_a_key_of_the_users_own(s3, later):
    """A key that S3 does not keep (SSE-C) is sent with each request that needs it."""
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}
    event = put(s3, later)
    s3.log.clear()
    copy(later, event, key)
    needed = {"CreateMultipartUpload": 1, "UploadPartCopy": 12, "CompleteMultipartUpload": 1}
    sent = [
        request.operation
        for request in s3.log
        if "x-amz-server-side-encryption-customer-key" in request.headers
    ]
    assert Counter(sent) == Counter(**needed, HeadObject=1)
    assert s3.log[-1].operation == sent[-1] == "HeadObject"


# --- Conditions -----------------------------------------------------------------------------------


def test_each_part_is_conditional(s3, later):
    """Each part is copied only if the source is still what was listed."""
    event = put(s3, later)
    copy(later, event)
    conditions = {
        request.headers.get("x-amz-copy-source-if-match")
        for request in requests(s3, "UploadPartCopy")
    }
    assert conditions == {event.etag}


@pytest.mark.parametrize("turn", [1, 6])
def test_a_source_that_changes_in_mid_copy(s3, later, turn):
    """What is replaced in mid-copy does not arrive half: nothing arrives, and it is Changed."""
    event = put(s3, later)
    new = {"size": event.size}
    meanwhile(s3, "UploadPartCopy", lambda: s3.put("events", NAME, b"new", **new), turn=turn)
    with pytest.raises(Changed) as caught:
        copy(later, event)
    assert caught.value.event == later.look(NAME)
    assert s3.buckets["target"] == s3.uploads == {}


@pytest.mark.parametrize("turn", [1, 6])
def test_a_source_that_goes_in_mid_copy(s3, later, turn):
    """What goes in mid-copy does not arrive, and is Gone."""
    event = put(s3, later)
    meanwhile(s3, "UploadPartCopy", lambda: s3.delete("events", NAME), turn=turn)
    with pytest.raises(Gone):
        copy(later, event)
    assert s3.buckets["target"] == s3.uploads == {}


@needs_once
def test_create(s3, later):
    """With If-None-Match the object appears only if nothing is there when it is completed."""
    event = put(s3, later)
    copy(later, event, IfNoneMatch="*")
    (completed,) = requests(s3, "CompleteMultipartUpload")
    assert completed.headers["if-none-match"] == "*"
    with pytest.raises(ClientError, match="PreconditionFailed"):
        copy(later, event, IfNoneMatch="*")
    assert s3.uploads == {}


@needs_once
def test_create_of_what_appears_meanwhile(s3, later):
    """What appears in the meantime is left as it is."""
    event = put(s3, later)
    meanwhile(s3, "CompleteMultipartUpload", lambda: s3.put("target", "k", b"other"))
    with pytest.raises(ClientError, match="PreconditionFailed"):
        copy(later, event, IfNoneMatch="*")
    assert s3.buckets["target"]["k"].content == b"other"
    assert s3.uploads == {}


def test_a_conflict_at_the_end(s3, later):
    """After 409 the copy is made again from its start, as S3 demands."""
    event = put(s3, later)
    s3.fault = on("CompleteMultipartUpload", Error(409, "ConditionalRequestConflict"))
    copy(later, event)
    assert s3.buckets["target"]["k"].size == event.size
    assert (s3.count()["CreateMultipartUpload"], s3.uploads) == (2, {})


# --- Failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", ["UploadPartCopy", "CompleteMultipartUpload"])
def test_nothing_is_left_behind(s3, later, operation, fault):
    """When a part or the completion fails, the upload is aborted, and the source stays."""
    event = put(s3, later)
    s3.fault = on(
        operation, None if operation == "UploadPartCopy" else FAULTS[fault], FAULTS[fault]
    )
    with pytest.raises((ClientError, BotoCoreError, SchedulerError)):
        copy(later, event)
    assert s3.uploads == {}
    assert NAME in s3.buckets["events"]


@pytest.mark.parametrize("answer", CONFIRM_NOTHING, ids=str)
@pytest.mark.parametrize(
    "operation", ["CreateMultipartUpload", "UploadPartCopy", "CompleteMultipartUpload"]
)
def test_without_confirmation(s3, later, operation, answer):
    """An answer of 200 that lacks the upload's id or the ETag confirms nothing."""
    event = put(s3, later)
    s3.fault = on(operation, answer)
    with pytest.raises(SchedulerError, match="did not confirm the copy"):
        copy(later, event)


def test_an_abort_that_fails(s3, later):
    """When the upload cannot be aborted either, the first error is raised: it tells more."""
    event = put(s3, later)
    s3.fault = any_of(
        on("CompleteMultipartUpload", Error(403, "AccessDenied")),
        on("AbortMultipartUpload", Error(404, "NoSuchUpload")),
    )
    with pytest.raises(ClientError, match="AccessDenied"):
        copy(later, event)


def test_the_abort_comes_last(s3, later):
    """The upload is aborted when no part is in flight: a late one would be left behind."""
    event = put(s3, later, 8 * GIB)
    s3.latency = lambda request: 0.1 if request.query.get("partNumber") != "1" else 0
    s3.fault = on("UploadPartCopy", Error(403, "AccessDenied"))
    with pytest.raises(ClientError, match="AccessDenied"):
        copy(later, event)
    assert s3.log[-1].operation == "AbortMultipartUpload"
    assert len(requests(s3, "UploadPartCopy")) < 8 * GIB // copies.PART
    assert s3.uploads == {}


def test_a_lost_answer_to_a_part(s3):
    """boto3's second attempt at a part replaces the first."""
    client = s3.client(retries={"total_max_attempts": 3})
    later = Folder("events", "later", client)
    event = put(s3, later)
    s3.fault = on("UploadPartCopy", Reset(after=True))
    copy(later, event)
    assert s3.buckets["target"]["k"].size == event.size
    client.close()


def test_a_lost_answer_to_the_completion(s3):
    """After a lost answer to the completion the copy counts as failed, though it has arrived."""
    client = s3.client(retries={"total_max_attempts": 3})
    later = Folder("events", "later", client)
    event = put(s3, later)
    s3.fault = on("CompleteMultipartUpload", Reset(after=True))
    with pytest.raises(ClientError, match="NoSuchUpload"):
        copy(later, event)
    assert s3.buckets["target"]["k"].size == event.size
    assert (list(s3.buckets["events"]), s3.uploads) == ([NAME], {})
    client.close()


# --- The look at the copy -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 3 * GIB - 1, 3 * GIB + 1])
def test_the_size_is_compared(s3, later, size):
    """A copy of another size than its source confirms nothing."""
    event = put(s3, later)

    def resize(request):
        if request.operation == "CompleteMultipartUpload":
            s3.put("target", "k", b"half", size=size)

    s3.after = resize
    with pytest.raises(SchedulerError, match=f"has {size} bytes, not {3 * GIB}"):
        copy(later, event)


def test_a_copy_that_may_not_be_looked_at(s3, later):
    """Where the runner may not look, S3's confirmation has to do."""
    event = put(s3, later)
    s3.denied = {("s3:GetObject", "arn:aws:s3:::target/*")}
    assert copy(later, event) == s3.buckets["target"]["k"].etag


def test_a_copy_that_is_consumed_at_once(s3, later):
    """What the consumer has deleted already has arrived."""
    event = put(s3, later)

    def consume(request):
        if request.operation == "CompleteMultipartUpload":
            s3.delete("target", "k")

    s3.after = consume
    copy(later, event)
    assert s3.buckets["target"] == {}


def test_a_look_that_fails(s3, later):
    """Any other answer to that look is raised: nobody knows the size."""
    event = put(s3, later)
    s3.fault = on("HeadObject", None, Error(500, "InternalError"))
    with pytest.raises(ClientError, match="500"):
        copy(later, event)


# --- A whole run, and a real server ---------------------------------------------------------------


def test_a_run(s3):
    """A run delivers large events, and reports as failed what S3 did not confirm."""
    client = s3.client(max_pool_connections=4)
    scheduler = Scheduler("events", "later", client=client)
    names = [f"later/2030-01-31T09:00:00.00000{n}Z|target|k{n}" for n in range(3)]
    for name in names:
        s3.put("events", name, b"body", size=2 * GIB, **DESCRIBED)
    s3.fault = always("CompleteMultipartUpload", Empty(after=True), "k1")
    report = run_due(scheduler, now=datetime(2030, 1, 31, 10, tzinfo=timezone.utc))
    assert (report.copied, report.failed) == (2, 1)
    assert [failure.event.name for failure in report.failures] == [names[1]]
    assert list(s3.buckets["events"]) == [names[1]]
    client.close()


@pytest.mark.slow
def test_a_real_server(seaweed_client, bucket, target, monkeypatch):
    """A real server puts the parts together, byte for byte, with all that belongs to it."""
    monkeypatch.setattr(copies, "THRESHOLD", 5 * MIB)
    monkeypatch.setattr(copies, "PART", 5 * MIB)
    later = Folder(bucket, "later", seaweed_client)
    body = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(12 * MIB // 32))
    seaweed_client.put_object(
        Bucket=bucket,
        Key=NAME,
        Body=body,
        ContentType="text/plain",
        CacheControl="no-store",
        Metadata={"user": "42"},
        Tagging="a=b",
    )
    event: Any = later.look(NAME)
    etag = later.copy(event, target, "k")
    arrived = seaweed_client.get_object(Bucket=target, Key="k")
    assert arrived["Body"].read() == body
    assert arrived["ETag"] == etag
    assert etag.endswith('-3"')
    assert (arrived["ContentType"], arrived["CacheControl"]) == ("text/plain", "no-store")
    assert arrived["Metadata"] == {"user": "42"}
    tags = seaweed_client.get_object_tagging(Bucket=target, Key="k")["TagSet"]
    assert tags == [{"Key": "a", "Value": "b"}]
    seaweed_client.put_object(Bucket=bucket, Key=NAME, Body=b"new")
    with pytest.raises(Changed):
        later.copy(event, target, "other")
    assert "Uploads" not in seaweed_client.list_multipart_uploads(Bucket=target)
