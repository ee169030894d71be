"""The controls of the fake S3: faults are what a client really sees, and what really happened."""

import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import fakes3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from fakes3 import CopyError, Delay, Error, FakeS3, Hang, KeyErrors, Reset, on


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


def test_hooks(s3):
    """Just before a request acts, and just after, the objects can be changed."""
    s3.before = lambda request: s3.put("bucket", "a", b"2")
    s3.after = lambda request: s3.delete("bucket", "a")
    copy(s3)
    assert s3.buckets["target"]["a"].content == b"2"
    assert "a" not in s3.buckets["bucket"]


def test_broken_hooks():
    """What a test's own hook raises is not lost."""
    s3 = FakeS3()
    s3.fault = lambda request: 1 / 0
    with pytest.raises(ZeroDivisionError), s3:
        code(s3.client().list_buckets)


# --- Conditions and limits ------------------------------------------------------------------------


@pytest.mark.parametrize("conditions", ["ignored", "refused"])
def test_conditions(s3, conditions):
    """Some servers ignore conditions on copies and deletes; some refuse one on DeleteObject."""
    s3.conditions = conditions
    client = s3.client()
    source = {"CopySource": "bucket/a", "CopySourceIfMatch": "wrong"}
    client.copy_object(Bucket="target", Key="a", **source)
    for key in ("a", "missing"):
        place = {"Bucket": "bucket", "Key": key, "IfMatch": "wrong"}
        if conditions == "refused":
            assert code(client.delete_object, **place) == "NotImplemented"
            assert "a" in s3.buckets["bucket"]
        else:
            client.delete_object(**place)
    delete = {"Objects": [{"Key": key, "ETag": "wrong"} for key in ("a", "missing")]}
    answer = client.delete_objects(Bucket="bucket", Delete=delete)
    assert "Errors" not in answer
    assert "a" not in s3.buckets["bucket"]
    assert code(client.put_object, Bucket="target", Key="a", IfNoneMatch="*") == (
        "PreconditionFailed"
    )


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


def exchange(s3, *pieces):
    """Send pieces of bytes, one at a time; what is answered until the connection is idle."""
    with socket.create_connection(("127.0.0.1", s3.port)) as connection:
        connection.settimeout(0.2)
        answer = b""
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.02)
        while True:
            try:
                answer += connection.recv(65536)
            except TimeoutError:
                return answer


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
    answer = exchange(s3, *(request[i : i + 20] for i in range(0, len(request), 20)))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert s3.buckets["bucket"]["c"].content == b"abc"


def test_expect(s3):
    """A client that asks whether to go on is told so."""
    head = b"PUT /bucket/b HTTP/1.1\r\ncontent-length: 1\r\nexpect: 100-continue\r\n\r\n"
    assert exchange(s3, head) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert exchange(s3, head, b"1").count(b"HTTP/1.1") == 2
    s3.client().put_object(Bucket="bucket", Key="c", Body=b"1" * 2_000_000)


def test_unknown_operation(s3):
    """What the fake does not have is NotImplemented, whatever it is."""
    call = s3.client().get_bucket_versioning
    assert code(call, Bucket="bucket") == "NotImplemented"


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
        s3.set(latency=0, conditions="refused")
        assert s3.sizes() == {"events": 3, "target": 0}
        (name, *_) = [entry["Key"] for entry in client.list_objects_v2(Bucket="events")["Contents"]]
        arguments = {"Bucket": "events", "Key": name, "IfMatch": "x"}
        assert code(client.delete_object, **arguments) == "NotImplemented"


def test_command_line():
    """On the command line it prints its URL, and serves until it is ended."""
    command = [sys.executable, str(Path(fakes3.__file__)), "--due", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        with closing(fakes3.client(url)) as client:
            assert len(client.list_objects_v2(Bucket="events")["Contents"]) == 1
        process.terminate()
