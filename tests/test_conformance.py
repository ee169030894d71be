"""The rules of S3 that this library rests on, held against the fake and against a real server.

The fake must be nowhere kinder than S3. AWS itself cannot be asked here: where SeaweedFS is known
to differ from what AWS documents, the rule is checked on the fake alone, with the reason.
"""

import io
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from support.fakes3 import FakeS3

pytestmark = pytest.mark.slow  # a change of the package changes nothing here

MIB = 1024**2
HEADERS = {
    "CacheControl": "no-cache",
    "ContentDisposition": 'attachment; filename="a.txt"',
    "ContentEncoding": "gzip",
    "ContentLanguage": "de",
    "ContentType": "text/plain; charset=utf-8",
    "Expires": "Wed, 21 Oct 2037 07:28:00 GMT",
    "Metadata": {"author": "ann", "note": "a=b; c"},
}
ODD_KEYS = [
    "a b+c%20d%2Fe",
    "a|b|c",
    "quotes ' and \"",
    "<&>;&amp;",
    "tab\tnewline\nreturn\r",
    "é ☃ 😀",
    "?query=1#fragment",
    "[]{}^~`$@=:,!*()",
    "later/2030-01-31T09:00:00.000000Z|shop-emails|welcome/42 + 1.json",
]
UNFIT_FOR_FILES = ["a//b", "/a", "a/", "a/../b", "./a", "a\\b", "control\x01\x1f\x7f", "s" * 300]


class Server(NamedTuple):
    client: Any
    bucket: str
    target: str

    def put(self, key: str, body: bytes = b"body", **arguments: Any) -> str:
        return self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **arguments)["ETag"]

    def copy(self, key: str, to: str | None = None, **arguments: Any) -> Any:
        arguments = {
            "Bucket": self.target,
            "Key": key if to is None else to,
            "CopySource": {"Bucket": self.bucket, "Key": key},
            **arguments,
        }
        return self.client.copy_object(**arguments)

    def names(self, bucket: str | None = None, **arguments: Any) -> list[str]:
        page = self.client.list_objects_v2(Bucket=bucket or self.bucket, **arguments)
        return [entry["Key"] for entry in page.get("Contents", [])]

    def body(self, bucket: str, key: str) -> bytes:
        return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        found = self.client.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]
        return {tag["Key"]: tag["Value"] for tag in found}

    def upload(self, key: str, **arguments: Any) -> dict[str, str]:
        """Begin a multipart upload to the target; what its other calls take."""
        place = {"Bucket": self.target, "Key": key}
        answer = self.client.create_multipart_upload(**place, **arguments)
        return {**place, "UploadId": answer["UploadId"]}


@pytest.fixture(params=["fake", "seaweedfs"])
def server(request):
    """Yield a client and two empty buckets, on each server in turn."""
    if request.param == "fake":
        with FakeS3("bucket", "target") as s3:
            yield Server(s3.client(max_pool_connections=32), "bucket", "target")
    else:
        client = request.getfixturevalue("seaweed_client")
        yield Server(client, *map(request.getfixturevalue, ("bucket", "target")))


def fake_only(reason):
    """Check the rule on the fake alone, for SeaweedFS differs."""
    seaweedfs = pytest.param("seaweedfs", marks=pytest.mark.skip(reason=f"SeaweedFS {reason}"))
    return pytest.mark.parametrize("server", ["fake", seaweedfs], indirect=True)


def refusal(call, *arguments, **keywords):
    """Call what must be refused; the status and code of the answer."""
    with pytest.raises(ClientError) as caught:
        call(*arguments, **keywords)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


NO_KEY = (404, "NoSuchKey")
NO_BUCKET = (404, "NoSuchBucket")
NO_UPLOAD = (404, "NoSuchUpload")
FAILED = (412, "PreconditionFailed")
WRONG = '"00000000000000000000000000000000"'


def missing_bucket():
    return f"missing-{uuid.uuid4().hex}"


# --- ListObjectsV2 --------------------------------------------------------------------------------


def test_list_order(server):
    """A listing is in the order of the UTF-8 bytes of its names, so times of one width sort."""
    names = [
        "later/2029-12-31T23:59:59.999999Z|b|k",
        "later/2030-01-31T09:00:00.000000Z|a|k",
        "later/2030-01-31T09:00:00.000000Z|b|K",
        "later/2030-01-31T09:00:00.000000Z|b|k",
        "later/2030-01-31T09:00:00.000000Z|b|é",
        "later/2030-01-31T09:00:00.000000Z|b|\ufffd",
        "later/2030-01-31T09:00:00.000000Z|b|😀",
        "later/2030-01-31T09:00:00.000001Z|a|k",
        "later/2030-01-31T09:00:00Z|a|k",
        "later/2030-01-31T09:00Z|a|k",
        "later/failed",
    ]
    for name in (*names[::2], *names[1::2]):
        server.put(name)
    assert server.names() == names == sorted(names, key=str.encode)


@fake_only("is a tree of files and sorts segment by segment")
def test_list_order_knows_no_segments(server):
    """A slash is a byte like any other."""
    names = ["a", "a b", "a!", "a/b", "a/c", "a0", "ab"]
    for name in reversed(names):
        server.put(name)
    assert server.names() == names


def test_list_prefix(server):
    """A prefix is a string, not a folder: only its slash keeps out `later2/`."""
    for name in ("late", "later/1", "later/2", "later2/1", "latest"):
        server.put(name)
    assert server.names(Prefix="later/") == ["later/1", "later/2"]
    assert server.names(Prefix="later") == ["later/1", "later/2", "later2/1"]
    assert server.names(Prefix="never/") == []


@pytest.mark.parametrize(
    ("start_after", "names"),
    [
        ("later/1", ["later/2", "later/3"]),
        ("later/15", ["later/2", "later/3"]),
        ("later/", ["later/1", "later/2", "later/3"]),
        ("a", ["later/1", "later/2", "later/3"]),
        ("later/3", []),
        ("z", []),
    ],
)
def test_list_start_after(server, start_after, names):
    """StartAfter is exclusive, and need not be a name that exists or has the prefix."""
    for name in ("later/1", "later/2", "later/3", "later2/1"):
        server.put(name)
    assert server.names(Prefix="later/", StartAfter=start_after) == names


def test_list_pages(server):
    """Each token leads to the names that follow, and the last page has none."""
    names = [f"later/{i}|t|a +%" for i in range(7)]
    for name in names:
        server.put(name)
    pages = []
    token: dict[str, str] = {}
    while not pages or token:
        page = server.client.list_objects_v2(Bucket=server.bucket, MaxKeys=3, **token)
        pages.append([entry["Key"] for entry in page["Contents"]])
        assert page["KeyCount"] == len(pages[-1])
        assert page["IsTruncated"] == ("NextContinuationToken" in page)
        token = {"ContinuationToken": page["NextContinuationToken"]} if page["IsTruncated"] else {}
    assert pages == [names[:3], names[3:6], names[6:]]


def test_list_full_last_page(server):
    """A page that is just full is the last."""
    # In a folder of its own, for SeaweedFS also counts folders that have become empty.
    folder = uuid.uuid4().hex + "/"
    for name in "abc":
        server.put(folder + name)
    page = server.client.list_objects_v2(Bucket=server.bucket, Prefix=folder, MaxKeys=3)
    assert page["KeyCount"] == 3
    assert not page["IsTruncated"]


def test_list_token_after_deletion(server):
    """A token stays good when the names around it are deleted or added."""
    for name in "acdf":
        server.put(name)
    page = server.client.list_objects_v2(Bucket=server.bucket, MaxKeys=2)
    for name in "cd":
        server.client.delete_object(Bucket=server.bucket, Key=name)
    for name in "be":
        server.put(name)
    assert server.names(ContinuationToken=page["NextContinuationToken"]) == ["e", "f"]


@fake_only("lets MaxKeys be larger")
@pytest.mark.slow
def test_list_page_limit(server):
    """A page has 1,000 names at most."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(server.put, map(str, range(1001))))
    page = server.client.list_objects_v2(Bucket=server.bucket, MaxKeys=5000)
    assert (page["KeyCount"], page["MaxKeys"], page["IsTruncated"]) == (1000, 1000, True)


@fake_only("starts from the beginning")
def test_list_bad_token(server):
    """A token that S3 did not give is refused."""
    call = server.client.list_objects_v2
    assert refusal(call, Bucket=server.bucket, ContinuationToken="?") == (400, "InvalidArgument")


def test_list_entry(server):
    """An entry has the size, the quoted ETag that HEAD gives too, and an aware time."""
    etag = server.put("a", b"12345")
    (entry,) = server.client.list_objects_v2(Bucket=server.bucket)["Contents"]
    seen = server.client.head_object(Bucket=server.bucket, Key="a")
    assert entry["Size"] == seen["ContentLength"] == 5
    assert entry["ETag"] == seen["ETag"] == etag
    assert etag.startswith('"')
    assert entry["LastModified"].tzinfo
    assert entry["StorageClass"] == "STANDARD"


def test_list_is_consistent(server):
    """A listing shows every write and delete that came before it."""
    for _ in range(10):
        server.put("a")
        assert server.names() == ["a"]
        server.client.delete_object(Bucket=server.bucket, Key="a")
        assert server.names() == []


def test_list_delimiter(server):
    """With a delimiter, names that go on behind it are rolled up, and count as one."""
    folder = uuid.uuid4().hex + "/"  # see test_list_full_last_page
    for name in ("a", "b/1", "b/2", "c/1", "d"):
        server.put(folder + name)
    asked = {"Prefix": folder, "Delimiter": "/"}
    page = server.client.list_objects_v2(Bucket=server.bucket, **asked, MaxKeys=3)
    assert [entry["Key"] for entry in page["Contents"]] == [folder + "a"]
    prefixes = [entry["Prefix"] for entry in page["CommonPrefixes"]]
    assert prefixes == [folder + "b/", folder + "c/"]
    assert (page["KeyCount"], page["IsTruncated"]) == (3, True)
    rest = {"ContinuationToken": page["NextContinuationToken"]}
    assert server.names(**asked, **rest) == [folder + "d"]


def test_list_missing_bucket(server):
    """Listing a missing bucket is NoSuchBucket."""
    assert refusal(server.client.list_objects_v2, Bucket=missing_bucket()) == NO_BUCKET


# --- Keys -----------------------------------------------------------------------------------------


def round_trip(server, key):
    etag = server.put(key, key.encode())
    assert server.names() == [key]
    server.copy(key, CopySourceIfMatch=etag)
    assert server.names(server.target) == [key]
    assert server.body(server.target, key) == key.encode()
    server.client.delete_object(Bucket=server.bucket, Key=key, IfMatch=etag)
    assert server.names() == []


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys(server, key):
    """A key is any text, and is listed, copied and deleted as it is."""
    round_trip(server, key)


@pytest.mark.parametrize("key", UNFIT_FOR_FILES)
@fake_only("is a tree of files, in which these are no names")
def test_odder_keys(server, key):
    """A key is no path: slashes and dots mean nothing, and control characters are allowed."""
    round_trip(server, key)


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_in_delete_objects(server, key):
    """DeleteObjects takes odd keys, with an ETag, and reports them unharmed."""
    etag = server.put(key)
    wrong = {"Objects": [{"Key": key, "ETag": WRONG}]}
    (error,) = server.client.delete_objects(Bucket=server.bucket, Delete=wrong)["Errors"]
    assert (error["Key"], error["Code"]) == (key, "PreconditionFailed")
    right = {"Objects": [{"Key": key, "ETag": etag}]}
    (deleted,) = server.client.delete_objects(Bucket=server.bucket, Delete=right)["Deleted"]
    assert deleted["Key"] == key
    assert server.names() == []


def test_control_characters_in_delete_objects(server):
    """XML has no place for them: a DeleteObjects that names one is MalformedXML as a whole.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
    """
    server.put("a")
    delete = {"Objects": [{"Key": "a"}, {"Key": "b\x01"}]}
    call = server.client.delete_objects
    assert refusal(call, Bucket=server.bucket, Delete=delete) == (400, "MalformedXML")
    assert server.names() == ["a"]


def test_key_length(server):
    """A key has at most 1,024 bytes of UTF-8."""
    longest = "/".join(["x" * 203] * 5) + "é☃"
    assert len(longest.encode()) == 1024
    round_trip(server, longest)
    too_long = (400, "KeyTooLongError")
    assert refusal(server.put, longest + "x") == too_long
    server.put("a")
    assert refusal(server.copy, "a", to=longest + "x") == too_long
    upload = server.client.create_multipart_upload
    assert refusal(upload, Bucket=server.target, Key=longest + "x") == too_long


# --- PutObject, GetObject, HeadObject -------------------------------------------------------------


def test_headers_and_metadata(server):
    """HEAD and GET give back the headers and the metadata, and how many tags there are."""
    server.put("a", b"12345", Tagging="color=dark%20red&empty=", **HEADERS)
    seen = server.client.head_object(Bucket=server.bucket, Key="a")
    got = server.client.get_object(Bucket=server.bucket, Key="a")
    for answer in (seen, got):
        expected = {**HEADERS, "ExpiresString": HEADERS["Expires"]}
        del expected["Expires"]
        assert {name: answer.get(name) for name in expected} == expected
        assert answer["ContentLength"] == 5
        assert answer["ResponseMetadata"]["HTTPHeaders"]["x-amz-tagging-count"] == "2"
    assert got["Body"].read() == b"12345"
    assert server.tags(server.bucket, "a") == {"color": "dark red", "empty": ""}


def test_put_replaces(server):
    """A put replaces content, headers, metadata and tags alike."""
    server.put("a", b"1", Tagging="a=1", **HEADERS)
    server.put("a", b"2")
    seen = server.client.head_object(Bucket=server.bucket, Key="a")
    assert server.body(server.bucket, "a") == b"2"
    assert "ContentLanguage" not in seen
    assert seen["Metadata"] == {}
    assert server.tags(server.bucket, "a") == {}


def test_put_if_none_match(server):
    """If-None-Match: * refuses to overwrite."""
    server.put("a", b"1", IfNoneMatch="*")
    assert refusal(server.put, "a", b"2", IfNoneMatch="*") == FAILED
    assert server.body(server.bucket, "a") == b"1"


def test_put_if_none_match_race(server):
    """Of writers who race with If-None-Match: *, one wins, and its content is what stays.

    The others fail with 412 or, if a write was under way, 409:
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    """

    def write(number):
        try:
            server.put("a", b"%d" % number, IfNoneMatch="*")
        except ClientError as error:
            return error.response["ResponseMetadata"]["HTTPStatusCode"]
        return number

    with ThreadPoolExecutor(32) as pool:
        outcomes = list(pool.map(write, range(32)))
    winners = [outcome for outcome in outcomes if outcome < 32]
    assert len(winners) == 1
    assert set(outcomes) - set(winners) <= {409, 412}
    assert server.body(server.bucket, "a") == b"%d" % winners[0]


def test_put_if_match(server):
    """If-Match overwrites only what was seen."""
    etag = server.put("a", b"1")
    assert refusal(server.put, "a", b"2", IfMatch=WRONG) == FAILED
    server.put("a", b"3", IfMatch=etag)
    assert server.body(server.bucket, "a") == b"3"


@fake_only("answers 412")
def test_put_if_match_missing(server):
    """If-Match on a missing key is NoSuchKey."""
    assert refusal(server.put, "a", IfMatch=WRONG) == NO_KEY


def test_missing(server):
    """A missing key is NoSuchKey, a missing bucket NoSuchBucket; HEAD tells only 404."""
    client, bucket = server.client, missing_bucket()
    assert refusal(client.get_object, Bucket=server.bucket, Key="a") == NO_KEY
    assert refusal(client.head_object, Bucket=server.bucket, Key="a") == (404, "404")
    assert refusal(client.get_object_tagging, Bucket=server.bucket, Key="a") == NO_KEY
    assert refusal(client.get_object, Bucket=bucket, Key="a") == NO_BUCKET
    assert refusal(client.put_object, Bucket=bucket, Key="a") == NO_BUCKET
    assert refusal(client.head_object, Bucket=bucket, Key="a") == (404, "404")


def test_get_if_match(server):
    """GET and HEAD with If-Match give only what was seen."""
    place = {"Bucket": server.bucket, "Key": "a"}
    etag = server.put("a")
    assert server.client.get_object(**place, IfMatch=etag)["Body"].read() == b"body"
    assert server.client.head_object(**place, IfMatch=etag)["ETag"] == etag
    assert refusal(server.client.get_object, **place, IfMatch=WRONG) == FAILED
    assert refusal(server.client.head_object, **place, IfMatch=WRONG) == (412, "412")


@pytest.mark.parametrize(
    ("asked", "content", "told"),
    [
        ("bytes=1-2", b"12", "bytes 1-2/5"),
        ("bytes=3-", b"34", "bytes 3-4/5"),
        ("bytes=3-99", b"34", "bytes 3-4/5"),
        ("bytes=-2", b"34", "bytes 3-4/5"),
    ],
)
def test_range(server, asked, content, told):
    """GET gives a range of bytes, and tells which."""
    server.put("a", b"01234")
    answer = server.client.get_object(Bucket=server.bucket, Key="a", Range=asked)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert (answer["Body"].read(), answer["ContentRange"]) == (content, told)


def test_range_outside(server):
    """A range outside the content is InvalidRange."""
    server.put("a", b"01234")
    place = {"Bucket": server.bucket, "Key": "a"}
    assert refusal(server.client.get_object, **place, Range="bytes=5-9") == (416, "InvalidRange")


def test_tagging(server):
    """Tags can be replaced, which changes nothing else."""
    etag = server.put("a", Tagging="a=1", **HEADERS)
    tags = {"TagSet": [{"Key": "b", "Value": "é+-=._:/@"}, {"Key": "c d", "Value": ""}]}
    server.client.put_object_tagging(Bucket=server.bucket, Key="a", Tagging=tags)
    assert server.tags(server.bucket, "a") == {"b": "é+-=._:/@", "c d": ""}
    seen = server.client.head_object(Bucket=server.bucket, Key="a")
    assert (seen["ETag"], seen["Metadata"]) == (etag, HEADERS["Metadata"])
    bad = {"Bucket": server.bucket, "Key": "a", "Tagging": {"TagSet": [{"Key": "a", "Value": "&"}]}}
    assert refusal(server.client.put_object_tagging, **bad) == (400, "InvalidTag")


@fake_only("takes more")
def test_limits(server):
    """An object has at most ten tags, and 2 KB of metadata."""
    tags = "&".join(f"{i}=1" for i in range(11))
    assert refusal(server.put, "a", Tagging=tags) == (400, "BadRequest")
    metadata = {"a": "x" * 2048}
    assert refusal(server.put, "a", Metadata=metadata) == (400, "MetadataTooLarge")


@fake_only("knows no owners")
def test_expected_owner(server):
    """A bucket that belongs to another account than expected is AccessDenied."""
    server.put("a")
    other, denied = {"ExpectedBucketOwner": "999999999999"}, (403, "AccessDenied")
    assert refusal(server.put, "a", **other) == denied
    assert refusal(server.copy, "a", **other) == denied
    assert refusal(server.copy, "a", ExpectedSourceBucketOwner="999999999999") == denied
    assert refusal(server.client.list_objects_v2, Bucket=server.bucket, **other) == denied
    head = server.client.head_object
    assert refusal(head, Bucket=server.bucket, Key="a", **other) == (403, "403")
    server.copy("a", ExpectedBucketOwner="111122223333", ExpectedSourceBucketOwner="111122223333")


# --- CopyObject -----------------------------------------------------------------------------------


def test_copy_keeps_everything(server):
    """A copy has content, headers, metadata and tags of its source, and its ETag."""
    etag = server.put("a", b"12345", Tagging="color=dark%20red&b=%C3%A9%2B", **HEADERS)
    server.client.put_object(Bucket=server.target, Key="a", Body=b"old", Metadata={"old": "1"})
    answer = server.copy("a")
    before = server.client.head_object(Bucket=server.bucket, Key="a")
    after = server.client.head_object(Bucket=server.target, Key="a")
    for kept in (*HEADERS, "ETag", "ContentLength"):
        assert after[kept] == before[kept]
    # SeaweedFS leaves out the quotes here.
    assert answer["CopyObjectResult"]["ETag"].strip('"') == etag.strip('"')
    assert server.body(server.target, "a") == b"12345"
    assert server.tags(server.target, "a") == {"color": "dark red", "b": "é+"}


def test_copy_replaces_on_demand(server):
    """REPLACE takes headers and metadata, or tags, from the request instead, and each by itself."""
    server.put("a", Tagging="a=1", **HEADERS)
    server.copy("a", to="1", MetadataDirective="REPLACE", Metadata={"new": "1"})
    server.copy("a", to="2", TaggingDirective="REPLACE", Tagging="b=2")
    seen = server.client.head_object(Bucket=server.target, Key="1")
    assert seen["Metadata"] == {"new": "1"}
    assert "ContentLanguage" not in seen
    assert server.tags(server.target, "1") == {"a": "1"}
    seen = server.client.head_object(Bucket=server.target, Key="2")
    assert seen["Metadata"] == HEADERS["Metadata"]
    assert server.tags(server.target, "2") == {"b": "2"}


def test_copy_ignores_new_metadata(server):
    """Without REPLACE, metadata and tags in the request of a copy count for nothing."""
    server.put("a", Tagging="a=1", **HEADERS)
    server.copy("a", Metadata={"new": "1"}, ContentType="image/png", Tagging="b=2")
    seen = server.client.head_object(Bucket=server.target, Key="a")
    assert seen["Metadata"] == HEADERS["Metadata"]
    assert seen["ContentType"] == HEADERS["ContentType"]
    assert server.tags(server.target, "a") == {"a": "1"}


@pytest.mark.parametrize("quote", ['"', ""])
def test_copy_if_source_matches(server, quote):
    """CopySourceIfMatch copies what was seen; quotes around the ETag may be left out."""
    etag = server.put("a")
    server.copy("a", CopySourceIfMatch=quote + etag.strip('"') + quote)
    assert server.names(server.target) == ["a"]


def test_copy_if_source_differs(server):
    """CopySourceIfMatch copies nothing else, and leaves the target as it was."""
    etag = server.put("a", b"1")
    server.put("a", b"2")
    assert refusal(server.copy, "a", CopySourceIfMatch=etag) == FAILED
    assert server.names(server.target) == []
    server.copy("a")
    server.put("a", b"3")
    assert refusal(server.copy, "a", CopySourceIfMatch=etag) == FAILED
    assert server.body(server.target, "a") == b"2"


@pytest.mark.parametrize("condition", [{}, {"CopySourceIfMatch": WRONG}])
def test_copy_missing_source(server, condition):
    """A missing source is NoSuchKey, with a condition as without; the target stays."""
    server.client.put_object(Bucket=server.target, Key="a", Body=b"old")
    assert refusal(server.copy, "a", **condition) == NO_KEY
    assert server.body(server.target, "a") == b"old"


def test_copy_missing_source_bucket(server):
    """A missing source bucket is NoSuchBucket."""
    assert refusal(server.copy, "a", CopySource=f"{missing_bucket()}/a") == NO_BUCKET


@fake_only("answers 500 InternalError, or 404 NoSuchKey if the source is missing too")
def test_copy_missing_target_bucket(server):
    """A missing target bucket is NoSuchBucket too, whether or not there is a source."""
    server.put("a")
    assert refusal(server.copy, "a", Bucket=missing_bucket()) == NO_BUCKET
    assert refusal(server.copy, "b", Bucket=missing_bucket()) == NO_BUCKET


def test_copy_onto_itself(server):
    """A copy that changes nothing is InvalidRequest."""
    server.put("a")
    status = refusal(server.copy, "a", Bucket=server.bucket)
    assert status == (400, "InvalidRequest")
    server.copy("a", Bucket=server.bucket, MetadataDirective="REPLACE", Metadata={"new": "1"})


def test_copy_within_bucket(server):
    """A copy can stay in its bucket, and takes the tags along."""
    etag = server.put("later/1", b"1", Tagging="a=1")
    server.copy("later/1", to="later/2", Bucket=server.bucket, CopySourceIfMatch=etag)
    assert server.names() == ["later/1", "later/2"]
    assert server.tags(server.bucket, "later/2") == {"a": "1"}


def test_copy_if_none_match(server):
    """If-None-Match: * refuses to overwrite the target of a copy."""
    members = server.client.meta.service_model.operation_model("CopyObject").input_shape.members
    if "IfNoneMatch" not in members:
        pytest.skip("this boto3 is too old to ask")
    server.put("a")
    server.copy("a", IfNoneMatch="*")
    assert refusal(server.copy, "a", IfNoneMatch="*") == FAILED


@fake_only("copies them")
def test_copy_archived(server):
    """What is archived must be restored before it can be copied."""
    server.put("a", StorageClass="GLACIER")
    assert refusal(server.copy, "a") == (403, "ObjectNotInActiveTierError")


# --- DeleteObject, DeleteObjects ------------------------------------------------------------------


def test_delete(server):
    """A delete without a condition is 204, also of a missing key; a missing bucket is not."""
    server.put("a")
    call = server.client.delete_object
    for _ in range(2):
        answer = call(Bucket=server.bucket, Key="a")
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
        assert server.names() == []
    assert refusal(call, Bucket=missing_bucket(), Key="a") == NO_BUCKET


@pytest.mark.parametrize("quote", ['"', ""])
def test_delete_if_match(server, quote):
    """If-Match deletes what was seen, and nothing else."""
    place = {"Bucket": server.bucket, "Key": "a"}
    old = server.put("a", b"1")
    new = server.put("a", b"2")
    assert refusal(server.client.delete_object, **place, IfMatch=old) == FAILED
    assert server.body(server.bucket, "a") == b"2"
    server.client.delete_object(**place, IfMatch=quote + new.strip('"') + quote)
    assert server.names() == []


@fake_only("answers 412")
@pytest.mark.parametrize("etag", [WRONG, "*"])
def test_delete_if_match_missing(server, etag):
    """With If-Match, a missing key is NoSuchKey.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-deletes.html
    """
    call = server.client.delete_object
    assert refusal(call, Bucket=server.bucket, Key="a", IfMatch=etag) == NO_KEY


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("quote", ['"', ""])
def test_delete_objects(server, quiet, quote):
    """DeleteObjects judges each key by its ETag, and when quiet reports the errors only.

    A missing key is an error if it has an ETag, and is deleted if it has none.
    """
    etag = quote + server.put("same").strip('"') + quote
    for key in ("changed", "any", "kept"):
        server.put(key, b"other")
    objects = [
        {"Key": "same", "ETag": etag},
        {"Key": "changed", "ETag": etag},
        {"Key": "any"},
        {"Key": "gone", "ETag": etag},
        {"Key": "never"},
    ]
    delete = {"Objects": objects, "Quiet": quiet}
    answer = server.client.delete_objects(Bucket=server.bucket, Delete=delete)
    errors = {error["Key"]: error["Code"] for error in answer["Errors"]}
    assert errors == {"changed": "PreconditionFailed", "gone": "NoSuchKey"}
    deleted = {entry["Key"] for entry in answer.get("Deleted", [])}
    assert deleted == (set() if quiet else {"same", "any", "never"})
    assert server.names() == ["changed", "kept"]


def test_delete_objects_quiet_success(server):
    """When quiet and well, DeleteObjects reports nothing."""
    delete = {"Objects": [{"Key": "a", "ETag": server.put("a")}], "Quiet": True}
    answer = server.client.delete_objects(Bucket=server.bucket, Delete=delete)
    assert not answer.get("Errors")
    assert not answer.get("Deleted")


def test_delete_objects_twice(server):
    """A key named twice with its ETag is deleted, then missing."""
    named = {"Key": "a", "ETag": server.put("a")}
    answer = server.client.delete_objects(Bucket=server.bucket, Delete={"Objects": [named, named]})
    assert [entry["Key"] for entry in answer["Deleted"]] == ["a"]
    assert [error["Code"] for error in answer["Errors"]] == ["NoSuchKey"]


def test_delete_objects_limit(server):
    """DeleteObjects takes 1,000 keys, and refuses 1,001 (MalformedXML; here, InvalidArgument)."""
    keys = [{"Key": str(number)} for number in range(1001)]
    call, bucket = server.client.delete_objects, server.bucket
    assert len(call(Bucket=bucket, Delete={"Objects": keys[:1000]})["Deleted"]) == 1000
    status, code = refusal(call, Bucket=bucket, Delete={"Objects": keys})
    assert status == 400
    assert code in ("MalformedXML", "InvalidArgument")


def test_delete_objects_missing_bucket(server):
    """DeleteObjects in a missing bucket is NoSuchBucket."""
    call = server.client.delete_objects
    assert refusal(call, Bucket=missing_bucket(), Delete={"Objects": [{"Key": "a"}]}) == NO_BUCKET


# --- Multipart uploads ----------------------------------------------------------------------------


def complete(server, upload, *etags, **condition):
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
    arguments = {**upload, "MultipartUpload": {"Parts": parts}, **condition}
    return server.client.complete_multipart_upload(**arguments)


def test_multipart_upload(server):
    """Nothing is seen of an upload before it is complete; then all is there, and the ETag is -N."""
    upload = server.upload("a", Tagging="a=1", **HEADERS)
    contents = [b"1" * 5 * MIB, b"2"]
    etags = [
        server.client.upload_part(**upload, PartNumber=number, Body=content)["ETag"]
        for number, content in enumerate(contents, 1)
    ]
    assert server.names(server.target) == []
    assert complete(server, upload, *etags)["ETag"].endswith('-2"')
    seen = server.client.head_object(Bucket=server.target, Key="a")
    assert seen["ETag"].endswith('-2"')
    assert {name: seen[name] for name in HEADERS if name != "Expires"} == {
        name: value for name, value in HEADERS.items() if name != "Expires"
    }
    assert server.tags(server.target, "a") == {"a": "1"}
    assert server.body(server.target, "a") == b"".join(contents)


def test_multipart_copy(server):
    """A part can be a range of another object, on condition that it is what was seen."""
    content = bytes(range(256)) * (6 * MIB // 256)
    etag = server.put("a|ü+ %", content)
    upload = server.upload("b")
    source = {"CopySource": {"Bucket": server.bucket, "Key": "a|ü+ %"}, "CopySourceIfMatch": etag}
    etags = []
    for number, (first, last) in enumerate([(0, 5 * MIB - 1), (5 * MIB, 6 * MIB - 1)], 1):
        part = {"PartNumber": number, "CopySourceRange": f"bytes={first}-{last}"}
        answer = server.client.upload_part_copy(**upload, **source, **part)
        etags.append(answer["CopyPartResult"]["ETag"])
    complete(server, upload, *etags)
    assert server.body(server.target, "b") == content


def test_multipart_copy_refused(server):
    """A part of a changed source is PreconditionFailed, of a missing one NoSuchKey."""
    upload = server.upload("b")
    server.put("a")
    call = server.client.upload_part_copy
    condition = {"PartNumber": 1, "CopySourceIfMatch": WRONG}
    changed = {"Bucket": server.bucket, "Key": "a"}
    assert refusal(call, **upload, **condition, CopySource=changed) == FAILED
    gone = {"Bucket": server.bucket, "Key": "gone"}
    assert refusal(call, **upload, **condition, CopySource=gone) == NO_KEY
    nowhere = {"Bucket": missing_bucket(), "Key": "a"}
    assert refusal(call, **upload, **condition, CopySource=nowhere) == NO_BUCKET


@pytest.mark.parametrize("part", ["bytes=0-4", "bytes=4-9", "bytes=1-"])
def test_multipart_copy_range(server, part):
    """The range of a part must be in the source (InvalidArgument; here, InvalidRange)."""
    upload = server.upload("b")
    arguments = {"PartNumber": 1, "CopySource": {"Bucket": server.bucket, "Key": "a"}}
    server.put("a", b"0123")
    call = server.client.upload_part_copy
    status, code = refusal(call, **upload, **arguments, CopySourceRange=part)
    assert (status, code) in ((400, "InvalidArgument"), (416, "InvalidRange"))


def test_multipart_complete_refused(server):
    """An upload is complete only with parts as they were given, in order and large enough."""
    upload = server.upload("a")
    etags = [
        server.client.upload_part(**upload, PartNumber=number, Body=b"%d" % number)["ETag"]
        for number in (1, 2)
    ]
    assert refusal(complete, server, upload, WRONG) == (400, "InvalidPart")
    assert refusal(complete, server, upload, *etags) == (400, "EntityTooSmall")
    parts = [{"PartNumber": number, "ETag": etags[number - 1]} for number in (2, 1)]
    call = server.client.complete_multipart_upload
    status = refusal(call, **upload, MultipartUpload={"Parts": parts})
    assert status == (400, "InvalidPartOrder")
    assert server.names(server.target) == []


def test_multipart_complete_if_none_match(server):
    """If-None-Match: * on the completion refuses to overwrite."""
    upload = server.upload("a")
    etag = server.client.upload_part(**upload, PartNumber=1, Body=b"1")["ETag"]
    server.client.put_object(Bucket=server.target, Key="a", Body=b"2")
    assert refusal(complete, server, upload, etag, IfNoneMatch="*") == FAILED
    assert server.body(server.target, "a") == b"2"


def test_multipart_abort(server):
    """An aborted upload leaves nothing, and takes no more."""
    upload = server.upload("a")
    listed = server.client.list_multipart_uploads(Bucket=server.target)["Uploads"]
    assert [each["UploadId"] for each in listed] == [upload["UploadId"]]
    server.client.upload_part(**upload, PartNumber=1, Body=b"1")
    server.client.abort_multipart_upload(**upload)
    assert not server.client.list_multipart_uploads(Bucket=server.target).get("Uploads")
    assert refusal(server.client.upload_part, **upload, PartNumber=2, Body=b"2") == NO_UPLOAD
    assert refusal(complete, server, upload, WRONG) == NO_UPLOAD
    assert server.names(server.target) == []


@fake_only("answers 204")
def test_multipart_abort_missing(server):
    """Aborting what is no upload, or no longer, is NoSuchUpload."""
    upload = server.upload("a")
    server.client.abort_multipart_upload(**upload)
    assert refusal(server.client.abort_multipart_upload, **upload) == NO_UPLOAD


def test_multipart_missing_bucket(server):
    """An upload to a missing bucket is NoSuchBucket from the start."""
    call = server.client.create_multipart_upload
    assert refusal(call, Bucket=missing_bucket(), Key="a") == NO_BUCKET


def test_managed_transfers(server):
    """boto3's managed uploads and copies work, in one piece and in parts."""
    for content in (b"", b"x" * 9 * MIB):
        config = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=5 * MIB)
        server.client.upload_fileobj(io.BytesIO(content), server.bucket, "a", Config=config)
        source = {"Bucket": server.bucket, "Key": "a"}
        server.client.copy(source, server.target, "a", Config=config)
        assert server.body(server.target, "a") == content


# --- Buckets --------------------------------------------------------------------------------------


def test_buckets(server):
    """A bucket is made once, can be seen, and goes."""
    name = missing_bucket()
    assert refusal(server.client.head_bucket, Bucket=name) == (404, "404")
    server.client.create_bucket(Bucket=name)
    server.client.head_bucket(Bucket=name)
    assert name in [bucket["Name"] for bucket in server.client.list_buckets()["Buckets"]]
    again = refusal(server.client.create_bucket, Bucket=name)
    assert again == (409, "BucketAlreadyOwnedByYou")
    server.client.delete_bucket(Bucket=name)
    assert refusal(server.client.delete_bucket, Bucket=name) == NO_BUCKET


def test_versioning(server):
    """A bucket that never kept versions has no status."""
    assert "Status" not in server.client.get_bucket_versioning(Bucket=server.bucket)


@fake_only("deletes it")
def test_delete_bucket_in_use(server):
    """A bucket that is not empty is not deleted."""
    server.put("a")
    assert refusal(server.client.delete_bucket, Bucket=server.bucket) == (409, "BucketNotEmpty")
