"""What the recipes rest on, without their tools: notifications, log lines, old names, commands."""

import importlib.util
import json
import logging
import re
import types
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest
from moto import mock_aws

from s3_scheduler import RunFailed, Scheduler, run_due

RECIPES = Path(__file__).parent / "recipes"
KEYS = ["welcome/42.json.old", "welcome/42.json", "welcome/a b+c%20d.json", "welcome/é ☃|=&.json"]
CONTEXT = types.SimpleNamespace(get_remaining_time_in_millis=lambda: 60_000)


def loaded(path: str) -> Any:
    """Import a recipe's module anew, as Lambda does: its settings are in the environment."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_")[:-3], RECIPES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Yield a client of moto's S3, with the buckets and the environment of the recipes."""
    monkeypatch.setenv("FOLDER_BUCKET", "my-bucket")
    monkeypatch.setenv("FOLDER", "later")
    monkeypatch.setenv("TARGET_BUCKET", "shop-emails")
    monkeypatch.setenv("MARKS_BUCKET", "shop-done")
    level = logging.getLogger("s3_scheduler").level
    with mock_aws():
        client = boto3.client("s3")
        for bucket in ("my-bucket", "shop-emails", "shop-done"):
            client.create_bucket(Bucket=bucket)
        yield client
        client.close()
    logging.getLogger("s3_scheduler").setLevel(level)


def keys(s3: Any, bucket: str) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", ())]


# --- The runner -----------------------------------------------------------------------------------


def test_the_runner_delivers_what_is_due(s3: Any) -> None:
    """It delivers to the target bucket, leaves what is not due, and raises for other buckets."""
    scheduler = Scheduler("my-bucket", "later", client=s3)
    scheduler.schedule(timedelta(0), "shop-emails", "k", "content")
    later = scheduler.schedule(timedelta(hours=1), "shop-emails", "later", "")
    runner = loaded("sam/runner/app.py")
    runner.handler({}, CONTEXT)
    assert keys(s3, "shop-emails") == ["k"]
    assert keys(s3, "my-bucket") == [later]
    scheduler.schedule(timedelta(0), "shop-done", "k", "content")
    with pytest.raises(RunFailed, match="shop-done"):
        runner.handler({}, CONTEXT)
    assert keys(s3, "shop-done") == []


def test_each_shard_delivers_its_share(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four runners, told apart by their environment, deliver everything between them."""
    scheduler = Scheduler("my-bucket", "later", client=s3)
    for number in range(20):
        scheduler.schedule(timedelta(0), "shop-emails", str(number), "")
    left = [len(keys(s3, "my-bucket"))]
    for shard in range(4):
        monkeypatch.setenv("SHARD", f"{shard}/4")
        loaded("sam/runner/app.py").handler({}, CONTEXT)
        left.append(len(keys(s3, "my-bucket")))
    assert (left[0], left[-1]) == (20, 0)
    assert len(set(left)) > 2  # no runner took everything
    assert len(keys(s3, "shop-emails")) == 20


@pytest.mark.parametrize("delivered", [True, False])
def test_the_metric_is_in_the_log(
    s3: Any, caplog: pytest.LogCaptureFixture, *, delivered: bool
) -> None:
    """The line of a run ends as the alarm's filter wants it: the label, then seconds."""
    [pattern] = re.findall('FilterPattern: "(.+)"', (RECIPES / "sam/alarms.yaml").read_text())
    [label] = re.findall(r"^\[\.\.\., label = (\w+), seconds\]$", pattern)
    runner = loaded("sam/runner/app.py")
    if delivered:
        late = datetime.now(timezone.utc) - timedelta(minutes=7)
        Scheduler("my-bucket", "later", client=s3).schedule(late, "shop-emails", "k", "")
    caplog.clear()
    runner.handler({}, CONTEXT)
    [record] = caplog.records
    *_, found, seconds = record.getMessage().split(" ")
    assert found == label
    assert (float(seconds) >= 420) is delivered
    assert re.fullmatch(r"\d+\.\d{3}", seconds)


# --- The target side ------------------------------------------------------------------------------


def arrivals(s3: Any, event: str, prefix: str = "", folder_bucket: str = "my-bucket") -> list[Any]:
    """Deliver KEYS, and list what S3 tells of it, with SQS in Lambda's place."""
    sqs = boto3.client("sqs")
    queue = sqs.create_queue(QueueName="arrivals")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    notification = {"QueueArn": attributes["Attributes"]["QueueArn"], "Events": [event]}
    if prefix:
        notification["Filter"] = {"Key": {"FilterRules": [{"Name": "prefix", "Value": prefix}]}}
    s3.put_bucket_notification_configuration(
        Bucket="shop-emails", NotificationConfiguration={"QueueConfigurations": [notification]}
    )
    scheduler = Scheduler(folder_bucket, "later", client=s3)
    for key in KEYS:
        scheduler.schedule(timedelta(0), "shop-emails", key, f"content of {key}")
    run_due(scheduler).raise_for_failures()
    messages = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
    bodies = [json.loads(message["Body"]) for message in messages]
    return [body for body in bodies if "Records" in body]


def names_of(events: list[Any]) -> list[str]:
    return [record["eventName"] for event in events for record in event["Records"]]


@pytest.fixture
def consumer(s3: Any) -> Any:
    """Yield the recipe's consumer, which keeps what it was to do in `done`."""
    module = loaded("consumer/app.py")
    module.done = []
    module.do = module.done.append
    yield module
    module.s3.close()


@pytest.mark.slow
def test_the_arrival_starts_the_consumer(s3: Any, consumer: Any) -> None:
    """S3 tells of a copy, with the key encoded; the consumer reads what was scheduled."""
    events = arrivals(s3, "s3:ObjectCreated:*")
    assert names_of(events) == ["ObjectCreated:Copy"] * len(KEYS)
    for event in events:
        consumer.handler(event, None)
    assert sorted(consumer.done) == sorted(f"content of {key}".encode() for key in KEYS)


def test_a_second_call_for_one_event_is_harmless(s3: Any, consumer: Any) -> None:
    """The consumer works once for each key, and marks each key by itself."""
    events = arrivals(s3, "s3:ObjectCreated:*")
    for event in events + events:
        consumer.handler(event, None)
    assert len(consumer.done) == len(KEYS)


@pytest.mark.slow
def test_a_crash_before_the_mark_repeats_the_work(s3: Any, consumer: Any) -> None:
    """What could not be done is not marked as done."""
    [event, *_] = arrivals(s3, "s3:ObjectCreated:*")
    tried = []

    def do(content: bytes) -> None:
        tried.append(content)
        if len(tried) == 1:
            raise ConnectionError

    consumer.do = do
    with pytest.raises(ConnectionError):
        consumer.handler(event, None)
    consumer.handler(event, None)
    consumer.handler(event, None)
    assert len(tried) == 2


def test_a_trigger_on_put_never_fires(s3: Any) -> None:
    """An event arrives as a copy, so a trigger must be on s3:ObjectCreated:*."""
    assert arrivals(s3, "s3:ObjectCreated:Put") == []


@pytest.mark.parametrize("prefix", ["welcome/", ""])
@pytest.mark.slow
def test_target_and_folder_in_one_bucket(s3: Any, prefix: str) -> None:
    """With a prefix, only arrivals fire the trigger; without one, schedule itself does."""
    found = names_of(arrivals(s3, "s3:ObjectCreated:*", prefix, folder_bucket="shop-emails"))
    assert "ObjectCreated:Copy" in found
    assert ("ObjectCreated:Put" in found) is (prefix == "")


# --- Coming from 0.0.x ----------------------------------------------------------------------------


def old_name(when: datetime, bucket: str, path: str, folder: str = "later") -> str:
    """Name an event as 0.0.3 did."""
    path = quote(path.removeprefix("/")).replace("/", "~~")
    return f"{folder}/|{quote(str(when))}|{quote(bucket)}|{path}"


def test_old_names_are_what_the_readme_shows() -> None:
    """The name in the README is the one that 0.0.3 would have given."""
    name = old_name(datetime(2018, 8, 5, tzinfo=timezone.utc), "bucket", "path/with/slashes")
    assert f"`{name}`" in (RECIPES / "migrate/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("old_path", ["later", "/later", "old/path"])
@pytest.mark.slow
def test_events_under_old_names_are_brought_over(s3: Any, old_path: str) -> None:
    """They wait for when and where 0.0.3 would have delivered them, and no others are touched."""
    east = timezone(timedelta(hours=3))
    waiting = {
        "path/with/slashes": datetime(2018, 8, 5, tzinfo=timezone.utc),
        "a b+c%|d/é ☃.txt": datetime(2030, 1, 31, 12, 0, 0, 123456, tzinfo=east),
    }
    for key, when in waiting.items():
        name = old_name(when, "target.bucket", key, old_path)
        s3.put_object(Bucket="my-bucket", Key=name, Body=f"content of {key}".encode())
    s3.put_object(Bucket="my-bucket", Key=f"{old_path}2/|kept", Body=b"")
    scheduler = Scheduler("my-bucket", "later", client=s3)
    new = scheduler.schedule(timedelta(days=1), "target.bucket", "new", "x")

    assert loaded("migrate/migrate.py").migrate(s3, "my-bucket", old_path, "later") == 2

    found = [event for event in scheduler.pending() if event.name != new]
    assert {event.key: event.due for event in found} == waiting
    assert {event.bucket for event in found} == {"target.bucket"}
    for event in found:
        body = s3.get_object(Bucket="my-bucket", Key=event.name)["Body"].read()
        assert body == f"content of {event.key}".encode()
    names = {event.name for event in found}
    assert set(keys(s3, "my-bucket")) == {*names, new, f"{old_path}2/|kept"}


@pytest.mark.slow
def test_bringing_over_can_be_started_again(s3: Any) -> None:
    """Stopped before it could delete, it brings over the rest, and nothing twice."""
    name = old_name(datetime(2030, 1, 31, tzinfo=timezone.utc), "b-b", "k")
    s3.put_object(Bucket="my-bucket", Key=name, Body=b"content")
    migrate = loaded("migrate/migrate.py").migrate

    def refuse(**_: object) -> None:
        raise ConnectionError

    s3.meta.events.register("before-call.s3.DeleteObject", refuse)
    with pytest.raises(ConnectionError):
        migrate(s3, "my-bucket", "later", "later")
    assert len(keys(s3, "my-bucket")) == 2
    s3.meta.events.unregister("before-call.s3.DeleteObject", refuse)
    assert migrate(s3, "my-bucket", "later", "later") == 1
    assert migrate(s3, "my-bucket", "later", "later") == 0
    [event] = Scheduler("my-bucket", "later", client=s3).pending()
    assert keys(s3, "my-bucket") == [event.name]
