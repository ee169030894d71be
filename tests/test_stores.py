"""Other stores that speak S3: each drains, with what protection it gives, and none fails silently.

What they do is in `support/fakes3/servers.py`. Two of them run here as they are: moto's server in
this process, and s3rver where npm can install it.
"""

import shutil
import socket
import subprocess
import time
from datetime import datetime, timedelta, timezone

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError

from s3_scheduler import AlreadyScheduled, Scheduler, run_due
from support.fakes3 import SERVERS, Empty, FakeS3, on
from support.folder import NOW, due_name, lost, opened, repeats

LATER = NOW + timedelta(hours=1)
FAILED = "later/failed/NoSuchBucket/2030-01-31T11:59:00.000000Z|target|k"
# s3rver does not find the sources of copies.
COPYING = sorted(SERVERS.keys() - {"s3rver"})
# They honour conditions on a single delete, or do so in DeleteObjects.
GUARDING = ["aws", "ministack", "moto", "swift"]
GUARDING_BATCHES = ["aws", "ministack", "swift"]

every_store = pytest.mark.parametrize("name", sorted(SERVERS))
stores_that_copy = pytest.mark.parametrize("name", COPYING)


@pytest.fixture
def later(name):
    """Yield a folder of events on a server that behaves as the one of this name."""
    with FakeS3(server=name) as s3, opened(s3) as folder:
        yield folder


def meanwhile(s3, *operations, act):
    """Do this once, just before S3 acts on a request of one of these operations."""
    acts = [act]

    def before(request):
        if request.operation in operations and acts:
            acts.pop()()

    s3.before = before


# --- The application ------------------------------------------------------------------------------


@every_store
def test_schedule_and_cancel(later):
    """Everywhere events are scheduled, replaced only if they may be, listed, and cancelled."""
    scheduler = later.scheduler
    name = scheduler.schedule(LATER, "target", "k", b"body")
    with pytest.raises(AlreadyScheduled):
        scheduler.schedule(LATER, "target", "k", b"new", replace=False)
    assert scheduler.schedule(LATER, "target", "k", b"newer") == name
    assert [event.name for event in scheduler.pending()] == [name]
    assert scheduler.cancel(name) is True
    assert scheduler.cancel(name) is False
    assert later.waiting == []


@stores_that_copy
def test_reschedule(later):
    """Everywhere events move to their new moment whole, also where others are already."""
    for key, size in (("small", 4), ("large", 2**31)):
        for ago in (60, 50):
            later.put(ago, key, b"body", size=size, x_amz_tagging="a=b")
        later.put(-60, key, b"old")
        assert later.scheduler.reschedule(due_name(60, key), NOW - timedelta(seconds=40))
        assert later.scheduler.reschedule(due_name(50, key), NOW + timedelta(minutes=1))
    moved = [due_name(ago, key) for ago in (40, -60) for key in ("large", "small")]
    assert later.waiting == moved
    objects = later.s3.buckets["events"].values()
    assert [obj.size for obj in objects] == [2**31, 4] * 2
    assert {obj.content for obj in objects} == {b"body"}
    assert [obj.tags for obj in objects] == [{"a": "b"}] * 4
    assert later.s3.uploads == {}


@pytest.mark.parametrize("name", GUARDING)
def test_reschedule_of_what_is_replaced_meanwhile(later):
    """Where deletes are conditional, what replaces the event in mid-move is moved instead."""
    name = later.put(60, content=b"old")
    meanwhile(later.s3, "DeleteObject", act=lambda: later.put(60, content=b"new"))
    later.scheduler.reschedule(name, NOW + timedelta(minutes=1))
    assert {k: obj.content for k, obj in later.s3.buckets["events"].items()} == {
        due_name(-60): b"new"
    }


@stores_that_copy
def test_retry(later):
    """Everywhere quarantined events go back."""
    for key, size in (("large", 2**31), ("small", 4)):
        name = due_name(60, key).replace("later/", "later/failed/NoSuchBucket/")
        later.s3.put("events", name, b"body", size=size)
        assert later.scheduler.retry(name) == due_name(60, key)
    assert later.waiting == [due_name(60, "large"), due_name(60, "small")]


@pytest.mark.parametrize("name", ["s3rver"])
def test_a_store_that_cannot_copy(later):
    """Where copies do not find their source, that is the store's error, and nothing is gone."""
    names = [later.put(60, "other"), FAILED]
    later.s3.put("events", FAILED, b"body")
    with pytest.raises(ClientError, match="NoSuchKey"):
        later.scheduler.reschedule(names[0], LATER)
    with pytest.raises(ClientError, match="NoSuchKey"):
        later.scheduler.retry(FAILED)
    assert later.waiting == names


# --- Runs -----------------------------------------------------------------------------------------


@stores_that_copy
def test_a_run_drains(later):
    """Everywhere a run delivers all that is due, each event once, and leaves nothing behind."""
    names = later.put_many(20)
    later.put(-60, "future")
    report = later.run()
    assert (report.copied, report.failed, report.unfinished) == (20, 0, False)
    assert later.waiting == [due_name(-60, "future")]
    assert sorted(later.delivered) == sorted(names)
    assert later.run().copied == 0


@pytest.mark.parametrize("name", ["localstack"])
@pytest.mark.slow
def test_pages_are_asked_for_by_their_last_name(later):
    """A store that loses what a continuation token stands for has its backlog read whole."""
    later.put_many(1200)
    assert later.run().copied == 1200
    assert later.waiting == []


@stores_that_copy
@pytest.mark.slow
def test_large_events(later):
    """Everywhere large events arrive in parts, whole, and nothing is left behind."""
    for number in range(3):
        later.put(60 + number, f"k{number}", size=2**31, content_type="text/plain")
    report = later.run()
    assert (report.copied, report.failed) == (3, 0)
    assert later.waiting == []
    arrived = later.s3.buckets["target"]
    assert {obj.size for obj in arrived.values()} == {2**31}
    assert {obj.headers["content-type"] for obj in arrived.values()} == {"text/plain"}
    assert later.s3.uploads == {}


@every_store
def test_events_in_parts(later):
    """An event that was uploaded in parts is delivered, or its run reports why it is not."""
    for key, size in (("large", 2**31), ("small", 4)):
        later.put(60, key, size=size)
        later.s3.buckets["events"][due_name(60, key)].etag = f'"{"0" * 32}-2"'
    report = later.run()
    server = later.s3.server
    delivered = 0 if server.doubts_etags_of_parts or server.loses_colons else 2
    assert (report.copied, report.failed) == (delivered, 2 - delivered)
    assert (len(later.arrived), len(later.waiting)) == (delivered, 2 - delivered)


@pytest.mark.parametrize("name", ["s3rver"])
def test_a_run_where_nothing_can_be_copied(later):
    """NoSuchKey for an event that is there is a failure, run after run, and never success."""
    name = later.put(60)
    for _ in range(2):
        report = later.run()
        assert (report.copied, report.failed) == (0, 1)
        assert "NoSuchKey" in str(report.failures[0].error)
    assert later.run(retry_for=0).failures[0].quarantined is False
    assert later.waiting == [name]


@stores_that_copy
def test_failures_are_quarantined(later):
    """Everywhere an event whose bucket does not exist is moved out of the way, whole."""
    name = later.put(60, bucket="missing", x_amz_tagging="a=b")
    report = later.run(retry_for=0)
    assert [failure.quarantined for failure in report.failures] == [True]
    quarantined = "later/failed/NoSuchBucket/" + name.removeprefix("later/")
    assert later.waiting == [quarantined]
    assert later.s3.buckets["events"][quarantined].tags == {"a": "b"}


@every_store
def test_an_event_that_goes_meanwhile(later):
    """Everywhere an event that is cancelled before its copy is no failure."""
    later.put(60)
    meanwhile(later.s3, "CopyObject", act=lambda: later.s3.delete("events", due_name(60)))
    report = later.run()
    assert (report.copied, report.failed) == (0, 0)


@stores_that_copy
def test_an_event_replaced_before_its_copy(later):
    """Everywhere what replaces an event before its copy arrives, and nothing is lost."""
    later.put(60, content=b"old")
    meanwhile(later.s3, "CopyObject", act=lambda: later.put(60, content=b"new"))
    assert later.run().failed == 0
    assert later.arrived == {"k": b"new"}
    assert (later.waiting, lost(later.s3.history)) == ([], [])


@pytest.mark.parametrize("name", GUARDING_BATCHES)
def test_an_event_replaced_before_its_delete(later):
    """Where deletes are conditional, what replaces an event after its copy arrives, too."""
    if refusal := later.s3.server.delete_objects_without_md5:
        later.s3.differ(delete_objects=refusal)  # older releases of boto3 send it
    later.put(60, content=b"old")
    meanwhile(later.s3, "DeleteObjects", "DeleteObject", act=lambda: later.put(60, content=b"new"))
    assert later.run().failed == 0
    assert later.arrived == {"k": b"new"}
    assert (later.waiting, lost(later.s3.history)) == ([], [])


@stores_that_copy
def test_order(later):
    """Everywhere events for one target arrive in their order."""
    for ago in range(12, 0, -1):
        later.put(ago, content=b"%d" % ago)
    assert later.run().copied == 12
    assert [content for _, _, content in later.deliveries] == [b"%d" % n for n in range(12, 0, -1)]
    assert repeats(later.s3.history) == 0


@stores_that_copy
def test_a_copy_that_is_not_confirmed(later):
    """Everywhere a copy that is not confirmed is a failure, and its event stays."""
    name = later.put(60)
    later.s3.fault = on("CopyObject", Empty(after=True))
    assert later.run().failed == 1
    assert later.waiting == [name]


# --- Real ones ------------------------------------------------------------------------------------


def client_of(url, access_key="testing"):
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=access_key,
        aws_secret_access_key=access_key,
        config=Config(s3={"addressing_style": "path"}, proxies={}),
    )


@pytest.fixture
def moto():
    """Yield a scheduler on moto's server."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = client_of(f"http://{host}:{port}")
    for bucket in ("events", "target"):
        client.create_bucket(Bucket=bucket)
    yield Scheduler("events", "later", client=client)
    client.close()
    server.stop()


@pytest.mark.slow
def test_moto(moto):
    """On moto's server all calls do what they say, and a run delivers everything."""
    past = datetime.now(timezone.utc) - timedelta(minutes=1)
    moved = moto.schedule(LATER, "target", "moved", b"moved", extra_args={"Tagging": "a=b"})
    gone = moto.schedule(past, "target", "gone|é", b"")
    assert (moto.cancel(gone), moto.cancel(gone)) == (True, False)
    assert moto.reschedule(moved, past) == moto.event_name(past, "target", "moved")
    for number in range(10):
        moto.schedule(past, "target", f"k{number}", b"%d" % number)
    moto.schedule(past, "missing", "k", b"")
    report = run_due(moto, retry_for=0)
    assert (report.copied, report.failed) == (11, 1)
    client = moto.folder.client
    assert client.get_object(Bucket="target", Key="k9")["Body"].read() == b"9"
    tags = client.get_object_tagging(Bucket="target", Key="moved")["TagSet"]
    assert tags == [{"Key": "a", "Value": "b"}]
    assert list(moto.pending()) == []
    (failed,) = moto.failed()
    assert moto.retry(failed.name) == moto.event_name(past, "missing", "k")
    assert [event.key for event in moto.pending()] == ["k"]


@pytest.fixture
def s3rver(tmp_path):
    """Yield a scheduler on s3rver, which npm installs."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if not (npm and node):
        pytest.skip("npm is missing")
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
    install = [npm, "install", "--prefix", tmp_path, *options, "s3rver@3.7.1"]
    if subprocess.run(install, check=False).returncode:
        pytest.skip("npm cannot install s3rver")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    program = tmp_path / "node_modules" / "s3rver" / "bin" / "s3rver.js"
    data = ["--directory", tmp_path / "data", "--address", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([node, program, "--silent", *data])
    client = client_of(f"http://127.0.0.1:{port}", "S3RVER")
    while True:
        try:
            client.create_bucket(Bucket="events")
            break
        except EndpointConnectionError:
            assert process.poll() is None
            time.sleep(0.1)
    client.create_bucket(Bucket="target")
    yield Scheduler("events", "later", client=client)
    client.close()
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_s3rver(s3rver):
    """s3rver finds no source with a colon: a run says so and deletes nothing, and cancel works."""
    past = datetime.now(timezone.utc) - timedelta(minutes=1)
    names = [s3rver.schedule(past, "target", key, b"body") for key in ("a", "b")]
    report = run_due(s3rver, retry_for=0)
    assert (report.copied, report.failed) == (0, 2)
    assert {failure.event.name for failure in report.failures} == set(names)
    assert all("NoSuchKey" in str(failure.error) for failure in report.failures)
    with pytest.raises(ClientError, match="NoSuchKey"):
        s3rver.reschedule(names[0], LATER)
    assert [event.name for event in s3rver.pending()] == names
    assert (s3rver.cancel(names[0]), s3rver.cancel(names[0])) == (True, False)
    assert [event.name for event in s3rver.pending()] == names[1:]
