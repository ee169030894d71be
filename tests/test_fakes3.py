"""The controls of the fake S3: faults are what a client really sees, and what really happened."""

import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from support import fakes3
from support.fakes3 import (
    SERVERS,
    CopyError,
    Cut,
    Delay,
    Empty,
    Error,
    FakeS3,
    Hang,
    Html,
    KeyErrors,
    Rate,
    Reset,
    Server,
    always,
    any_of,
    on,
    sick,
)

pytestmark = pytest.mark.slow  # a change of the package changes nothing here


@pytest.fixture
def s3():
    with FakeS3("bucket", "target") as s3:
        s3.put("bucket", "a", b"1")
        yield s3


def copy(s3, **config):
    source = {"Bucket": "bucket", "Key": "a"}
    return s3.client(**config).copy_object(Bucket="target", Key="a", CopySource=source)


def code(call, *arguments, **keywords):
    with pytest.raises(ClientError) as caught:
        call(*arguments, **keywords)
    return caught.value.response["Error"]["Code"]


# --- Faults ---------------------------------------------------------------------------------------


def test_error(s3):
    """An error is answered instead of acting, and logged."""
    s3.fault = on("CopyObject", Error(503, "SlowDown"))
    assert code(copy, s3) == "SlowDown"
    assert s3.log[-1].status == 503
    assert "a" not in s3.buckets["target"]
    copy(s3)
    assert "a" in s3.buckets["target"]


def test_error_after(s3):
    """An error with `after` is answered to what has been done."""
    s3.fault = on("CopyObject", Error(500, "InternalError", after=True))
    assert code(copy, s3) == "InternalError"
    assert "a" in s3.buckets["target"]


def test_error_to_head(s3):
    """An error to HEAD has no body, so that a client knows the status only."""
    s3.fault = on("HeadObject", Error(403, "AccessDenied"))
    assert code(s3.client().head_object, Bucket="bucket", Key="a") == "403"


@pytest.mark.slow
def test_error_is_retried(s3):
    """boto3 takes the faults for what they are, and tries again."""
    s3.fault = on("CopyObject", Error(503, "SlowDown"), Reset(), CopyError("InternalError"))
    copy(s3, retries={"mode": "standard", "total_max_attempts": 4})
    assert [request.status for request in s3.log] == [503, None, 200, 200]


def test_copy_error(s3):
    """A copy may be answered with 200 and an error in the body, which boto3 raises."""
    s3.fault = on("CopyObject", CopyError("InternalError"))
    assert code(copy, s3) == "InternalError"
    assert "a" not in s3.buckets["target"]


@pytest.mark.parametrize("after", [False, True])
def test_reset(s3, after):
    """A reset ends the connection, before acting or after."""
    s3.fault = on("CopyObject", Reset(after=after))
    with pytest.raises(ConnectionClosedError):
        copy(s3)
    assert ("a" in s3.buckets["target"]) == after
    assert s3.log[-1].status is None


def test_reset_is_rst(s3):
    """A reset is RST, no orderly end of the connection."""
    s3.fault = on("ListBuckets", Reset())
    with socket.create_connection(("127.0.0.1", s3.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


@pytest.mark.parametrize("after", [False, True])
def test_hang(s3, after):
    """To a request that hangs nothing is answered, while others go on."""
    s3.fault = on("CopyObject", Hang(after=after))
    with pytest.raises(ReadTimeoutError):
        copy(s3, read_timeout=0.1)
    assert ("a" in s3.buckets["target"]) == after
    copy(s3)


def test_delay(s3):
    """A delayed request acts late; with `after` it acts at once and is answered late."""
    for after in (False, True):
        s3.reset()
        s3.put("bucket", "a")
        s3.fault = on("CopyObject", Delay(0.2, after=after))
        started = time.monotonic()
        copy(s3)
        acted, answered = s3.history[-1].time, time.monotonic()
        assert (answered - acted if after else acted - started) >= 0.2


def test_key_errors(s3):
    """Keys of a DeleteObjects can fail one by one; the others are deleted."""
    s3.put("bucket", "b")
    s3.fault = on("DeleteObjects", KeyErrors({"b": "InternalError"}))
    delete = {"Objects": [{"Key": "a"}, {"Key": "b"}], "Quiet": True}
    answer = s3.client().delete_objects(Bucket="bucket", Delete=delete)
    assert [(error["Key"], error["Code"]) for error in answer["Errors"]] == [("b", "InternalError")]
    assert list(s3.buckets["bucket"]) == ["b"]
    assert s3.log[-1].keys == ["a", "b"]


def test_fault_of_one_key(s3):
    """A fault can be for one key."""
    s3.fault = on("HeadObject", Error(403, "AccessDenied"), key="b")
    s3.client().head_object(Bucket="bucket", Key="a")
    assert code(s3.client().head_object, Bucket="bucket", Key="b") == "403"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fault", [Empty, Html, Cut])
def test_success_that_confirms_nothing(s3, fault, after):
    """A 200 can be empty, or a page of HTML, or cut, whether or not the request has acted."""
    options = {"announced": False} if fault is Cut else {}
    s3.fault = on("CopyObject", fault(after=after, **options))
    answer = copy(s3)
    assert "ETag" not in answer.get("CopyObjectResult", {})
    assert ("a" in s3.buckets["target"]) == after
    copy(s3)


@pytest.mark.parametrize("fault", [Empty, Html, Cut])
def test_success_of_delete_objects_that_confirms_nothing(s3, fault):
    """So can that of a DeleteObjects, which then names no key."""
    options = {"announced": False} if fault is Cut else {}
    s3.fault = on("DeleteObjects", fault(**options))
    delete = {"Objects": [{"Key": "a"}]}
    answer = s3.client().delete_objects(Bucket="bucket", Delete=delete)
    assert answer.keys() == {"ResponseMetadata"}
    assert "a" in s3.buckets["bucket"]


def test_cut_in_mid_body(s3):
    """A body that ends before its announced end is what boto3 finds broken, if it looks."""
    s3.fault = on("GetObject", Cut(sent=1, after=True))
    s3.put("bucket", "b", b"12345")
    body = s3.client().get_object(Bucket="bucket", Key="b")["Body"]
    with pytest.raises((IncompleteReadError, ResponseStreamingError)):
        body.read()


def test_sick_buckets(s3):
    """A fault can be for all copies to one bucket, and others for those to another."""
    s3.create("other")
    s3.fault = any_of(
        sick("target", Error(503, "SlowDown")), sick("other", on("CopyObject", Error(403, "No")))
    )
    client, source = s3.client(), {"CopySource": "bucket/a"}
    for _ in range(2):
        assert code(copy, s3) == "SlowDown"
    assert code(client.copy_object, Bucket="other", Key="a", **source) == "No"
    client.copy_object(Bucket="other", Key="a", **source)
    client.copy_object(Bucket="bucket", Key="b", **source)
    call = client.create_multipart_upload
    assert code(call, Bucket="target", Key="a") == "SlowDown"
    client.head_object(Bucket="bucket", Key="a")


def test_faults_of_all_requests_of_some_keys(s3):
    """A fault can be for each request of an operation; with keys, for or from those only."""
    s3.put("bucket", "b")
    s3.fault = always("CopyObject", Error(403, "AccessDenied"), "a")
    source = {"CopySource": "bucket/a"}
    for key in "ab":
        call = s3.client().copy_object
        assert code(call, Bucket="target", Key=key, **source) == "AccessDenied"
    s3.client().copy_object(Bucket="target", Key="b", CopySource="bucket/b")
    s3.client().head_object(Bucket="bucket", Key="a")


@pytest.mark.slow
def test_delayed_copy_acts_when_nobody_waits_for_it(s3):
    """A copy that the client has given up can still be carried out later."""
    s3.fault = on("CopyObject", Delay(1.5))
    with pytest.raises(ReadTimeoutError):
        copy(s3, read_timeout=0.05)
    assert "a" not in s3.buckets["target"]
    while "a" not in s3.buckets["target"]:
        time.sleep(0.01)


def test_hooks(s3):
    """Just before a request acts, and just after, the objects can be changed."""
    s3.before = lambda request: s3.put("bucket", "a", b"2")
    s3.after = lambda request: s3.delete("bucket", "a")
    copy(s3)
    assert s3.buckets["target"]["a"].content == b"2"
    assert "a" not in s3.buckets["bucket"]


def test_broken_hooks():
    """What a test's own hook raises is not lost."""

    def fault(request):
        raise ZeroDivisionError

    s3 = FakeS3()
    s3.fault = fault
    with pytest.raises(ZeroDivisionError), s3:
        code(s3.client().list_buckets)


# --- Conditions and limits ------------------------------------------------------------------------


CONDITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "copy_source_if_match": ("copy_object", {"CopySource": "bucket/a", "CopySourceIfMatch": "x"}),
    "copy_if_none_match": ("copy_object", {"CopySource": "bucket/a", "IfNoneMatch": "*"}),
    "put_if_none_match": ("put_object", {"IfNoneMatch": "*"}),
    "delete_if_match": ("delete_object", {"IfMatch": "x"}),
    "delete_objects_etag": (
        "delete_objects",
        {"Delete": {"Objects": [{"Key": "b", "ETag": "x"}]}},
    ),
}


def try_condition(s3, name):
    """A request whose condition does not hold; the code of the refusal, empty if carried out."""
    s3.put("target", "b", b"old")
    operation, arguments = CONDITIONS[name]
    place = {"Bucket": "target"} if "Delete" in arguments else {"Bucket": "target", "Key": "b"}
    try:
        answer = getattr(s3.client(), operation)(**place, **arguments)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return answer["Errors"][0]["Code"] if "Errors" in answer else ""


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.slow
def test_one_condition_can_be_ignored_or_refused(s3, name):
    """Each condition by itself is honoured, ignored, or refused with any code; the others hold."""
    assert try_condition(s3, name) == "PreconditionFailed"
    for what, expected in [
        ("ignored", ""),
        ("refused", "NotImplemented"),
        (Error(400, "InvalidRequest"), "InvalidRequest"),
    ]:
        s3.server = Server()
        s3.differ(**{name: what})
        assert {each: try_condition(s3, each) for each in CONDITIONS} == {
            each: expected if each == name else "PreconditionFailed" for each in CONDITIONS
        }


@pytest.mark.parametrize(("what", "expected"), [("ignored", ""), ("refused", "NotImplemented")])
def test_all_conditions_can_be_ignored_or_refused(s3, what, expected):
    """What is made of all conditions can be set at once."""
    s3.conditions = what
    assert {try_condition(s3, name) for name in CONDITIONS} == {expected}


def test_a_condition_refused_is_refused_only_where_it_is_asked_for(s3):
    """Requests without conditions are carried out whatever the server makes of conditions."""
    s3.conditions = "refused"
    copy(s3)
    client = s3.client()
    client.put_object(Bucket="target", Key="a")
    client.delete_objects(Bucket="target", Delete={"Objects": [{"Key": "a"}]})
    client.delete_object(Bucket="bucket", Key="a")
    assert s3.sizes() == {"bucket": 0, "target": 0}


def test_delete_objects_can_be_refused_as_a_whole(s3):
    """A DeleteObjects can be refused whatever it says."""
    s3.differ(delete_objects=Error(405, "MethodNotAllowed"))
    call, delete = s3.client().delete_objects, {"Objects": [{"Key": "a"}]}
    assert code(call, Bucket="bucket", Delete=delete) == "MethodNotAllowed"
    assert "a" in s3.buckets["bucket"]


# From the table of servers: what becomes of a request whose condition does not hold, in the order
# of CONDITIONS without PUT's. Where a DeleteObjects is refused, it is for want of Content-MD5.
YES, NO = "PreconditionFailed", ""
TABLE = {
    "aws": (YES, YES, YES, YES),
    "ceph16": (NO, NO, NO, NO),
    "localstack": (YES, NO, "NotImplemented", NO),
    "minio2019": (YES, NO, NO, "MissingContentMD5"),
    "ministack": (YES, NO, YES, YES),
    "moto": (NO, NO, YES, NO),
    "rclone": (NO, NO, NO, NO),
    "s3rver": (NO, NO, NO, NO),
    "swift": (YES, "NotImplemented", YES, "InvalidRequest"),
    "zenko": (YES, YES, NO, "BadDigest"),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_server_makes_its_own_of_conditions(s3, name):
    """The fake can be any of the servers that were asked."""
    s3.server = SERVERS[name]
    asked = [each for each in CONDITIONS if each != "put_if_none_match"]
    assert tuple(try_condition(s3, each) for each in asked) == TABLE[name]


def test_every_server_is_in_the_table():
    """None is left out."""
    assert SERVERS.keys() == TABLE.keys()


def test_zenko_applies_if_none_match_to_the_source(s3):
    """On Zenko a copy that must not overwrite is refused even where there is nothing."""
    s3.server = SERVERS["zenko"]
    source = {"CopySource": "bucket/a", "IfNoneMatch": "*"}
    call = s3.client().copy_object
    assert code(call, Bucket="target", Key="new", **source) == "PreconditionFailed"


def test_swift_refuses_the_right_etag_of_an_object_in_parts(s3):
    """On Swift a copy of an object in parts, on condition of its ETag, is refused."""
    s3.server = SERVERS["swift"]
    client = s3.client()
    upload = {"Bucket": "bucket", "Key": "b"}
    upload["UploadId"] = client.create_multipart_upload(**upload)["UploadId"]
    etag = client.upload_part(**upload, PartNumber=1, Body=b"1")["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    etag = client.complete_multipart_upload(**upload, MultipartUpload=parts)["ETag"]
    source = {"CopySource": "bucket/b", "CopySourceIfMatch": etag}
    call = client.copy_object
    assert code(call, Bucket="target", Key="b", **source) == "PreconditionFailed"
    s3.server = Server()
    call(Bucket="target", Key="b", **source)


def test_ceph_answers_no_tags_with_no_body(s3):
    """On Ceph the answer to GetObjectTagging may be empty."""
    s3.server = SERVERS["ceph16"]
    s3.put("bucket", "b", x_amz_tagging="a=1")
    client = s3.client()
    assert "TagSet" not in client.get_object_tagging(Bucket="bucket", Key="a")
    assert client.get_object_tagging(Bucket="bucket", Key="b")["TagSet"]


def test_s3rver_does_not_find_the_source_of_a_name_with_a_colon(s3):
    """On s3rver a copy of a name with a colon, as boto3 encodes it, is NoSuchKey."""
    s3.server = SERVERS["s3rver"]
    s3.put("bucket", "10:00")
    source = {"Bucket": "bucket", "Key": "10:00"}
    call = s3.client().copy_object
    assert code(call, Bucket="target", Key="a", CopySource=source) == "NoSuchKey"
    copy(s3)


def test_localstack_loses_pages(s3):
    """On LocalStack pages after the first are empty, if names have a colon or a bar."""
    s3.server = SERVERS["localstack"]
    for name in ("10:00", "10:01", "b", "c"):
        s3.put("bucket", name)
    call = s3.client().list_objects_v2
    token = call(Bucket="bucket", MaxKeys=1)["NextContinuationToken"]
    page = call(Bucket="bucket", ContinuationToken=token)
    assert (page["KeyCount"], page["IsTruncated"]) == (0, False)
    token = call(Bucket="bucket", MaxKeys=1, StartAfter="a")["NextContinuationToken"]
    assert call(Bucket="bucket", ContinuationToken=token)["KeyCount"] == 1


# --- Permissions ----------------------------------------------------------------------------------


def bucket_arn(name):
    return f"arn:aws:s3:::{name}"


@pytest.mark.parametrize(
    ("action", "resource", "call"),
    [
        ("ListBucket", "bucket", lambda c: c.list_objects_v2(Bucket="bucket")),
        ("GetBucketVersioning", "bucket", lambda c: c.get_bucket_versioning(Bucket="bucket")),
        ("GetObject", "bucket/a", lambda c: c.get_object(Bucket="bucket", Key="a")),
        ("GetObjectTagging", "bucket/a", lambda c: c.get_object_tagging(Bucket="bucket", Key="a")),
        ("PutObject", "target/a", lambda c: c.put_object(Bucket="target", Key="a")),
        ("DeleteObject", "bucket/a", lambda c: c.delete_object(Bucket="bucket", Key="a")),
        *(
            (
                action,
                resource,
                lambda c: c.copy_object(Bucket="target", Key="a", CopySource="bucket/a"),
            )
            for action, resource in [
                ("GetObject", "bucket/a"),
                ("GetObjectTagging", "bucket/a"),
                ("PutObject", "target/a"),
                ("PutObjectTagging", "target/a"),
            ]
        ),
        *(
            (action, "bucket/a", lambda c: c.delete_object(Bucket="bucket", Key="a", IfMatch=ETAG))
            for action in ("DeleteObject", "GetObject")
        ),
    ],
)
def test_each_permission_is_needed(s3, action, resource, call):
    """A request is denied when one permission that it needs is; by itself it is not."""
    s3.put("bucket", "a", b"1", x_amz_tagging="a=1")
    call(s3.client())
    s3.put("bucket", "a", b"1", x_amz_tagging="a=1")
    s3.denied = {(f"s3:{action}", bucket_arn(resource))}
    assert code(call, s3.client()) == "AccessDenied"
    s3.denied = {(f"s3:{action}", bucket_arn(resource) + "b")}
    call(s3.client())


ETAG = '"c4ca4238a0b923820dcc509a6f75849b"'  # of b"1"


def test_tags_need_permission_only_where_there_are_any(s3):
    """A copy of an object without tags needs no permission for tags."""
    s3.denied = {("s3:*Tagging", "*")}
    copy(s3)


def test_permissions_of_delete_objects_are_judged_key_by_key(s3):
    """A DeleteObjects answers AccessDenied for the keys that may not be deleted."""
    s3.put("bucket", "b/1")
    s3.denied = lambda action, resource: resource.endswith("/b/1")
    delete = {"Objects": [{"Key": "a"}, {"Key": "b/1"}]}
    answer = s3.client().delete_objects(Bucket="bucket", Delete=delete)
    assert [(error["Key"], error["Code"]) for error in answer["Errors"]] == [
        ("b/1", "AccessDenied")
    ]
    assert list(s3.buckets["bucket"]) == ["b/1"]


def test_who_may_not_list_is_not_told_what_is_missing(s3):
    """Without ListBucket a missing key answers 403 instead of 404, as source of a copy, too."""
    s3.denied = {("s3:ListBucket", "arn:aws:s3:::bucket")}
    client = s3.client()
    assert code(client.head_object, Bucket="bucket", Key="gone") == "403"
    call = client.copy_object
    source = {"CopySource": "bucket/gone"}
    assert code(call, Bucket="target", Key="a", **source) == "AccessDenied"
    client.head_object(Bucket="bucket", Key="a")
    assert code(client.head_object, Bucket="target", Key="gone") == "404"


# --- A limit to writes ----------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def put_many(client, count, bucket="target", key="{}"):
    """How many of these puts are carried out; the others are SlowDown."""
    refused = []
    for i in range(count):
        try:
            client.put_object(Bucket=bucket, Key=key.format(i))
        except ClientError as error:
            refused.append(error.response["Error"]["Code"])
    assert set(refused) <= {"SlowDown"}
    return count - len(refused)


def test_writes_beyond_the_limit_are_slowed_down(s3):
    """One second's worth of writes goes at once, and then so many a second, in each bucket."""
    clock = Clock()
    s3.limit = Rate(writes=4, clock=clock)
    client = s3.client()
    assert put_many(client, 6) == 4
    clock.now = 0.5
    assert put_many(client, 6) == 2
    assert put_many(client, 6, "bucket") == 4
    clock.now = 99
    assert put_many(client, 6) == 4
    assert s3.count()["PutObject"] == 24
    client.list_objects_v2(Bucket="bucket")


@pytest.mark.parametrize(
    ("per", "keys", "admitted"),
    [
        ("all", [("bucket", "a"), ("target", "a")], 2),
        ("bucket", [("bucket", "later/1/{}"), ("bucket", "later/2/{}")], 2),
        ("folder", [("bucket", "later/1/x|{}"), ("bucket", "later/2/x|{}")], 4),
        (lambda bucket, key: None, [("bucket", "a"), ("target", "a")], 6),
    ],
)
def test_a_limit_can_be_for_a_part_of_the_keys(s3, per, keys, admitted):
    """The limit is for all buckets together, for each, for each folder, or as a function says."""
    s3.limit = Rate(2, per, clock=Clock())
    assert sum(put_many(s3.client(), 3, *place) for place in keys) == admitted


def test_each_key_of_delete_objects_is_a_write(s3):
    """Keys for which there is no room are SlowDown; without any room, so is the request."""
    for key in "bcd":
        s3.put("bucket", key)
    s3.limit = Rate(3, clock=Clock())
    call, delete = s3.client().delete_objects, {"Objects": [{"Key": key} for key in "abcd"]}
    answer = call(Bucket="bucket", Delete=delete)
    assert [(error["Key"], error["Code"]) for error in answer["Errors"]] == [("d", "SlowDown")]
    assert list(s3.buckets["bucket"]) == ["d"]
    assert code(call, Bucket="bucket", Delete=delete) == "SlowDown"
    s3.limit = Rate(3, deletes=False, clock=Clock())
    assert "Errors" not in call(Bucket="bucket", Delete=delete)


# --- Sizes and encryption -------------------------------------------------------------------------


def test_max_copy(s3):
    """A source above the limit of CopyObject is InvalidRequest, and goes in parts."""
    s3.put("bucket", "a", b"x" * 6 * 1024**2)
    s3.max_copy = 6 * 1024**2 - 1
    assert code(copy, s3) == "InvalidRequest"
    config = TransferConfig(multipart_threshold=s3.max_copy)
    s3.client().copy({"Bucket": "bucket", "Key": "a"}, "target", "a", Config=config)
    change = s3.history[-1]
    assert (change.action, change.bucket, change.source) == ("copy", "target", ("bucket", "a"))


def test_pretended_size(s3):
    """An object can pretend to be larger than any memory, and is copied in parts as if it were."""
    size = 6 * 1024**3
    s3.put("bucket", "a", b"1", size=size, x_amz_meta_author="ann")
    client = s3.client()
    assert client.list_objects_v2(Bucket="bucket")["Contents"][0]["Size"] == size
    assert code(copy, s3) == "InvalidRequest"
    upload = client.create_multipart_upload(Bucket="target", Key="a")["UploadId"]
    upload = {"Bucket": "target", "Key": "a", "UploadId": upload}
    half, parts = size // 2, []
    for number in (1, 2):
        asked = f"bytes={(number - 1) * half}-{number * half - 1}"
        part = {"PartNumber": number, "CopySource": "bucket/a", "CopySourceRange": asked}
        answer = client.upload_part_copy(**upload, **part)
        parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert client.head_object(Bucket="target", Key="a")["ContentLength"] == size
    assert client.get_object(Bucket="target", Key="a")["Body"].read() == b"1"


def test_largest_size(s3):
    """An object has 50 TiB at most, in 10,000 parts of at most 5 GiB."""
    s3.put("bucket", "a", b"1", size=50 * 1024**4)
    client = s3.client()
    upload = {"Bucket": "target", "Key": "a"}
    upload["UploadId"] = client.create_multipart_upload(**upload)["UploadId"]
    call, source = client.upload_part_copy, {"CopySource": "bucket/a"}
    largest = {"CopySourceRange": f"bytes=0-{5 * 1024**3 - 1}"}
    larger = {"CopySourceRange": f"bytes=0-{5 * 1024**3}"}
    assert code(call, **upload, **source, **larger, PartNumber=1) == "InvalidRequest"
    assert code(call, **upload, **source, **largest, PartNumber=10_001) == "InvalidArgument"
    etag = call(**upload, **source, **largest, PartNumber=1)["CopyPartResult"]["ETag"]
    parts = s3.uploads[upload["UploadId"]].parts
    parts[2] = replace(parts[1], size=50 * 1024**4 - parts[1].size)
    tail = {"CopySourceRange": "bytes=0-0"}
    last = call(**upload, **source, **tail, PartNumber=3)["CopyPartResult"]["ETag"]
    etags = [etag, etag, last]
    listed = [{"PartNumber": number, "ETag": each} for number, each in enumerate(etags, 1)]
    complete = client.complete_multipart_upload
    assert code(complete, **upload, MultipartUpload={"Parts": listed}) == "EntityTooLarge"
    complete(**upload, MultipartUpload={"Parts": listed[:2]})
    assert s3.buckets["target"]["a"].size == s3.history[-1].size == 50 * 1024**4


def test_encrypted_objects_have_other_etags(s3):
    """Under KMS an ETag is no MD5, so that a copy's differs from its source's."""
    plain = s3.put("bucket", "a", b"1").etag
    s3.encryption["target"] = "aws:kms"
    answer = copy(s3)
    assert answer["ServerSideEncryption"] == "aws:kms"
    etags = {answer["CopyObjectResult"]["ETag"]}
    copy(s3)
    seen = s3.client().head_object(Bucket="target", Key="a")
    assert seen["ServerSideEncryption"] == "aws:kms"
    etags |= {seen["ETag"], plain}
    assert len(etags) == 3
    s3.put("bucket", "a", b"1", x_amz_server_side_encryption="aws:kms")
    s3.encryption.clear()
    assert copy(s3)["CopyObjectResult"]["ETag"] == plain


def test_versioning(s3):
    """A bucket can say that it keeps versions."""
    call = s3.client().get_bucket_versioning
    assert "Status" not in call(Bucket="bucket")
    s3.versioning["bucket"] = "Enabled"
    assert call(Bucket="bucket")["Status"] == "Enabled"


# --- What is remembered ---------------------------------------------------------------------------


def test_log(s3):
    """The log has what was asked, in the order of arrival, and the count its operations."""
    copy(s3)
    code(s3.client().head_object, Bucket="bucket", Key="é|x")
    first, second = s3.log
    assert (first.operation, first.bucket, first.key) == ("CopyObject", "target", "a")
    assert (first.source, first.status) == (("bucket", "a"), 200)
    assert (second.operation, second.key, second.status) == ("HeadObject", "é|x", 404)
    assert s3.count() == {"CopyObject": 1, "HeadObject": 1}
    s3.reset()
    assert not s3.count()
    assert not s3.history
    assert s3.sizes() == {"bucket": 0, "target": 0}


def test_history(s3):
    """The history has what happened to objects, and nothing that did not."""
    client = s3.client()
    copy(s3)
    code(client.put_object, Bucket="bucket", Key="a", Body=b"2", IfNoneMatch="*")
    for _ in range(2):
        client.delete_object(Bucket="bucket", Key="a")
    done = [(c.action, c.bucket, c.key, c.content, c.source) for c in s3.history]
    assert done == [
        ("put", "bucket", "a", b"1", None),
        ("copy", "target", "a", b"1", ("bucket", "a")),
        ("delete", "bucket", "a", b"1", None),
    ]
    times = [change.time for change in s3.history]
    assert times == sorted(times)


def test_put(s3):
    """A test's own put takes the headers of a request."""
    s3.put("bucket", "b", b"2", content_type="text/x", x_amz_meta_a="1", x_amz_tagging="b=2")
    seen = s3.client().head_object(Bucket="bucket", Key="b")
    assert (seen["ContentType"], seen["Metadata"]) == ("text/x", {"a": "1"})
    assert s3.buckets["bucket"]["b"].tags == {"b": "2"}


# --- HTTP -----------------------------------------------------------------------------------------


def exchange(s3, *pieces, answers=1):
    """Send pieces of bytes, one at a time; so many whole answers."""
    with socket.create_connection(("127.0.0.1", s3.port)) as connection:
        answer = b""
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.02)
        while whole(answer) < answers:
            answer += connection.recv(65536)
        return answer


def whole(answer):
    """How many whole answers there are."""
    count = 0
    while b"\r\n\r\n" in answer:
        head, _, answer = answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        end = int(length[1]) if length else 0
        if len(answer) < end:
            break
        count, answer = count + 1, answer[end:]
    return count


CHUNKS = b"3;chunk-signature=abc\r\nabc\r\n2\r\n\r\n\r\n0\r\nx-amz-checksum-crc32:%s\r\n\r\n"
SIGNED = (
    b"PUT /bucket/b HTTP/1.1\r\nx-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\n"
    b"content-encoding: gzip,aws-chunked\r\ncontent-length: %d\r\n\r\n"
)


def test_trailing_checksum(s3):
    """A body in S3's chunks is joined, and its trailing checksum verified."""
    body = CHUNKS % b"7LV0Qg=="
    assert exchange(s3, SIGNED % len(body) + body).startswith(b"HTTP/1.1 200 ")
    assert s3.buckets["bucket"]["b"].content == b"abc\r\n"
    assert s3.buckets["bucket"]["b"].headers["content-encoding"] == "gzip"
    body = CHUNKS % b"AAAAAA=="
    assert b"<Code>BadDigest</Code>" in exchange(s3, SIGNED % len(body) + body)


def test_body_in_pieces(s3):
    """A request may come in any pieces, its body in HTTP's chunks, and more than one in a row."""
    put = b"PUT /bucket/%s HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    request = put % b"b" + put % b"c"
    pieces = (request[i : i + 20] for i in range(0, len(request), 20))
    answer = exchange(s3, *pieces, answers=2)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert s3.buckets["bucket"]["c"].content == b"abc"


def test_expect(s3):
    """A client that asks whether to go on is told so."""
    head = b"PUT /bucket/b HTTP/1.1\r\ncontent-length: 1\r\nexpect: 100-continue\r\n\r\n"
    assert exchange(s3, head) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert exchange(s3, head, b"1", answers=2).count(b"HTTP/1.1") == 2
    s3.client().put_object(Bucket="bucket", Key="c", Body=b"1" * 2_000_000)


def test_unknown_operation(s3):
    """What the fake does not have is NotImplemented, whatever it is."""
    call = s3.client().get_bucket_acl
    assert code(call, Bucket="bucket") == "NotImplemented"


@pytest.mark.slow
def test_latency(s3):
    """A latency is that of each request, and those of many pass at once."""
    s3.latency = lambda request: 0.5 if request.operation == "HeadObject" else 0.0
    client = s3.client(max_pool_connections=50)
    started = time.monotonic()
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(lambda _: client.head_object(Bucket="bucket", Key="a"), range(50)))
    assert 0.5 <= time.monotonic() - started < 0.5 * 50 / 2


def test_end():
    """It ends at once, whatever is under way, and another can take the port."""

    def hang(client):
        with pytest.raises(ConnectionClosedError):
            client.list_objects_v2(Bucket="bucket")
        ended.append(time.monotonic())

    ended = []
    with FakeS3("bucket") as s3:
        s3.fault = on("ListObjectsV2", Hang())
        client = s3.client(read_timeout=60)
        thread = threading.Thread(target=hang, args=[client])
        thread.start()
        while not s3.log:
            time.sleep(0.01)
    thread.join(30)
    assert ended
    with FakeS3(port=s3.port) as again:
        again.client().list_buckets()


# --- A process of its own -------------------------------------------------------------------------


def test_spawn():
    """A fake in another process can be filled, set, counted and reset."""
    with fakes3.spawn(latency=0.01, waiting=5, due=2, key="k/{i}") as s3:
        client = s3.client()
        names = [entry["Key"] for entry in client.list_objects_v2(Bucket="events")["Contents"]]
        assert names == sorted(names)
        assert [name.rpartition("|")[2] for name in names] == [
            *("k/0", "k/1"),
            *(f"k/{i}" for i in range(5)),
        ]
        assert s3.sizes() == {"events": 7, "target": 0}
        assert s3.count()["ListObjectsV2"] == 1
        s3.reset()
        assert not s3.count()
        s3.fill(due=3)
        s3.set(latency=0, conditions="refused", limit={"writes": 1, "per": "all"})
        assert s3.sizes() == {"events": 3, "target": 0}
        (name, *_) = [entry["Key"] for entry in client.list_objects_v2(Bucket="events")["Contents"]]
        arguments = {"Bucket": "events", "Key": name, "IfMatch": "x"}
        assert code(client.delete_object, **arguments) == "NotImplemented"
        assert code(client.delete_object, **arguments) == "SlowDown"
        s3.set(limit=None, server="swift")
        s3.sicken("target", "denies")
        source = {"CopySource": {"Bucket": "events", "Key": name}}
        assert code(client.copy_object, Bucket="target", Key="a", **source) == "AccessDenied"
        s3.sicken()
        client.copy_object(Bucket="target", Key="a", **source)
        delete = {"Objects": [{"Key": name}]}
        assert code(client.delete_objects, Bucket="events", Delete=delete) == "InvalidRequest"


def test_command_line():
    """On the command line it prints its URL, and serves until it is ended."""
    command = [sys.executable, "-m", "support.fakes3", "--due", "1"]
    tests = Path(__file__).parent
    with subprocess.Popen(command, cwd=tests, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        with closing(fakes3.client(url)) as client:
            assert len(client.list_objects_v2(Bucket="events")["Contents"]) == 1
        process.terminate()
