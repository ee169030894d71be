"""What the README says of deployment, as far as it runs without the tools of deployment."""

import json
import logging
import re
import types
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

import boto3
import pytest
from moto import mock_aws

import readme
import test_recipes
from metric_filter import extract
from s3_scheduler import Scheduler, run_due

PATTERN = re.search('FilterPattern: "(.+)"', readme.find("What to alarm on", "yaml"))[1]
NOTIFICATION = readme.find("The target side", "json")
KEYS = ["welcome/42.json.old", "welcome/42.json", "welcome/a b+c%20d.json", "welcome/é ☃|=&.json"]


def executed(code, **names):
    exec(compile(code, str(readme.README), "exec"), names)
    return types.SimpleNamespace(**names)


def test_every_block_is_checked():
    """No fenced block of the README is left to good faith."""
    recipes = {readme.find(*place, fold=fold) for _, place, fold in test_recipes.RECIPES.values()}
    left = [
        block
        for block in readme.blocks()
        if block.text not in recipes
        and not (block.language == "python" and not block.fold)  # test_readme.py
    ]
    assert [(block.section, block.language) for block in left] == [("Command line", "console")]


# --- What to alarm on -------------------------------------------------------------------------


def summary(caplog, fake, folder="later", ago=None):
    """Run, and return its summary line as Lambda's text format writes it."""
    caplog.set_level(logging.INFO, "s3_scheduler")
    caplog.clear()
    client = fake.client()
    client.create_bucket(Bucket="my-bucket")
    scheduler = Scheduler("my-bucket", folder, client)
    if ago:
        client.create_bucket(Bucket="shop-emails")
        scheduler.schedule(datetime.now(timezone.utc) - ago, "shop-emails", "k", "x")
    run_due(scheduler)
    [record] = caplog.records
    request_id = "5f2c1a9e-3b7d-4c1e-9a53-0d0f6c1b2a3c"
    # https://docs.aws.amazon.com/lambda/latest/dg/python-logging.html
    return f"[{record.levelname}]\t2030-01-31T09:00:12.345Z\t{request_id}\t{record.getMessage()}"


def test_the_metric_is_the_lateness(caplog, fake):
    """The README's filter takes the seconds from the line that a run really logs."""
    line = summary(caplog, fake, ago=timedelta(minutes=7))
    assert 420 <= float(extract(PATTERN, line)["$seconds"]) < 480


@pytest.mark.parametrize("folder", ["later", "with some spaces", "later/max_delay 7"])
def test_an_idle_run_counts_as_punctual(caplog, fake, folder):
    """Without a delivery the metric is zero, not missing; whatever the folder is called."""
    assert extract(PATTERN, summary(caplog, fake, folder))["$seconds"] == "0.000"


@pytest.mark.parametrize(
    "line",
    [
        "START RequestId: 5f2c1a9e Version: $LATEST",
        "REPORT RequestId: 5f2c1a9e\tDuration: 100.00 ms\tMax Memory Used: 80 MB\t",
        "[ERROR]\t2030-01-31T09:00:12.345Z\t5f2c1a9e\t'later/x' failed, it was moved",
        "max_delay",
        "",
    ],
)
def test_other_lines_are_no_metric(line):
    """Nothing else that a function logs is taken for a lateness."""
    assert extract(PATTERN, line) is None


@pytest.mark.parametrize(
    "wrong",
    [
        "[..., label = maxdelay, seconds]",
        "[..., label = max_delay, seconds, folder]",
        "[level, time, label = max_delay, seconds]",
    ],
)
def test_a_wrong_pattern_matches_nothing(caplog, fake, wrong):
    """The matcher is none that matches everything."""
    assert extract(wrong, summary(caplog, fake)) is None


# The examples of https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/FilterAndPatternSyntax.html
ACCESS = '127.0.0.1 Prod frank [10/Oct/2000:13:25:15 -0700] "GET /index.html HTTP/1.0" 404 1534'


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("[ip, server, username, timestamp, request, status_code, bytes]", True),
        ("[ip, server, username, timestamp, request = *html*, status_code = 4*, bytes]", True),
        ("[..., status_code, bytes]", True),
        ("[ip, ..., status_code, bytes]", True),
        ("[ip, server, ...]", True),
        ("[..., request = *html*, status_code = 5*, bytes]", False),
        ("[ip, server, username]", False),
    ],
)
def test_the_matcher_is_as_aws_documents_it(pattern, matches):
    """It tells AWS's own examples apart."""
    assert (extract(pattern, ACCESS) is not None) is matches


# --- The target side --------------------------------------------------------------------------


def notified(configuration, folder_bucket="my-bucket"):
    """Deliver KEYS under this configuration: the notifications, with SQS in Lambda's place."""
    s3, sqs = boto3.client("s3"), boto3.client("sqs")
    queue = sqs.create_queue(QueueName="arrivals")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]
    for bucket in ("my-bucket", "shop-emails", "shop-done"):
        s3.create_bucket(Bucket=bucket)
    [function] = configuration["LambdaFunctionConfigurations"]
    queued = {name: value for name, value in function.items() if name != "LambdaFunctionArn"}
    s3.put_bucket_notification_configuration(
        Bucket="shop-emails",
        NotificationConfiguration={
            "QueueConfigurations": [{**queued, "QueueArn": arn["QueueArn"]}]
        },
    )
    scheduler = Scheduler(folder_bucket, "later")
    for number, key in enumerate([*KEYS, "elsewhere/1.json"]):
        scheduler.schedule(timedelta(seconds=number - 60), "shop-emails", key, f"content of {key}")
    run_due(scheduler).raise_for_failures()
    messages = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
    bodies = [json.loads(message["Body"]) for message in messages]
    return [body for body in bodies if "Records" in body]


@mock_aws
def test_the_arrival_starts_the_target_function():
    """S3 tells of a copy, with the key encoded; the README's function reads what was scheduled."""
    events = notified(json.loads(NOTIFICATION))
    records = [record for event in events for record in event["Records"]]
    assert [record["eventName"] for record in records] == ["ObjectCreated:Copy"] * len(KEYS)
    sent = []
    target = executed(readme.find("The target side", "python"), send_mail=sent.append)
    for event in events:
        target.welcome(event, None)
    assert sorted(sent) == sorted(f"content of {key}".encode() for key in KEYS)


@mock_aws
def test_a_second_call_for_one_event_is_harmless():
    """The README's function does its work once for a key, and marks each key by itself."""
    events = notified(json.loads(NOTIFICATION))
    sent = []
    target = executed(readme.find("The target side", "python"), send_mail=sent.append)
    for event in events + events:
        target.welcome(event, None)
    assert len(sent) == len(KEYS)


@mock_aws
def test_a_crash_before_the_mark_repeats_the_work():
    """What could not be done is not marked as done."""
    events = notified(json.loads(NOTIFICATION))
    sent = []

    def send_mail(content):
        sent.append(content)
        if len(sent) == 1:
            raise ConnectionError

    target = executed(readme.find("The target side", "python"), send_mail=send_mail)
    with pytest.raises(ConnectionError):
        target.welcome(events[0], None)
    target.welcome(events[0], None)
    target.welcome(events[0], None)
    assert len(sent) == 2


@mock_aws
def test_a_trigger_on_put_never_fires():
    """As the README warns."""
    configuration = json.loads(NOTIFICATION.replace("ObjectCreated:*", "ObjectCreated:Put"))
    assert notified(configuration) == []


@mock_aws
@pytest.mark.parametrize("filtered", [True, False])
def test_the_prefix_where_target_and_folder_share_a_bucket(filtered):
    """With the filter only arrivals fire the trigger; without it, schedule itself does."""
    configuration = json.loads(NOTIFICATION)
    if not filtered:
        del configuration["LambdaFunctionConfigurations"][0]["Filter"]
    events = notified(configuration, folder_bucket="shop-emails")
    names = {record["eventName"] for event in events for record in event["Records"]}
    assert "ObjectCreated:Copy" in names
    assert ("ObjectCreated:Put" in names) is not filtered


# --- Coming from 0.0.x ------------------------------------------------------------------------


def old_name(when, bucket, path):
    """Name an event as 0.0.3 did."""
    path = quote(path.removeprefix("/")).replace("/", "~~")
    return f"later/|{quote(str(when))}|{quote(bucket)}|{path}"


def test_events_under_old_names_are_brought_over(fake):
    """They arrive when and where 0.0.3 would have delivered them, and no others are touched."""
    client = fake.client()
    for bucket in ("my-bucket", "target.bucket"):
        client.create_bucket(Bucket=bucket)
    east = timezone(timedelta(hours=3))
    waiting = {
        "path/with/slashes": datetime(2018, 8, 5, tzinfo=timezone.utc),
        "a b+c%|d/é ☃.txt": datetime(2030, 1, 31, 12, 0, 0, 123456, tzinfo=east),
        "late": datetime(2031, 1, 1, tzinfo=timezone.utc),
    }
    names = [old_name(when, "target.bucket", key) for key, when in waiting.items()]
    assert (
        names[0] == "later/|2018-08-05%2000%3A00%3A00%2B00%3A00|target.bucket|path~~with~~slashes"
    )
    assert names[0].replace("target.", "") in readme.README.read_text(encoding="utf-8")
    for name, key in zip(names, waiting, strict=True):
        fake.put("my-bucket", name, f"content of {key}".encode())
    fake.put("my-bucket", "later2/|kept", b"")
    scheduler = Scheduler("my-bucket", "later", client)
    new = scheduler.schedule(timedelta(days=1), "target.bucket", "new", "x")

    executed(readme.find("Coming from 0.0.x", "python"), scheduler=scheduler)

    found = {event.key: event.due for event in scheduler.pending() if event.name != new}
    assert found == waiting
    run_due(scheduler, now=datetime(2030, 2, 1, tzinfo=timezone.utc))
    arrived = {key: obj.content for key, obj in fake.buckets["target.bucket"].items()}
    due = [key for key in waiting if key != "late"]
    assert {key: arrived[key] for key in due} == {key: f"content of {key}".encode() for key in due}
    left = list(fake.buckets["my-bucket"])
    assert "later2/|kept" in left
    assert not set(names) & set(left)


def test_bringing_over_can_be_started_again(fake):
    """Stopped between its two steps, it brings over the rest, and nothing twice."""
    client = fake.client()
    client.create_bucket(Bucket="my-bucket")
    scheduler = Scheduler("my-bucket", "later", client)
    name = old_name(datetime(2030, 1, 31, tzinfo=timezone.utc), "b", "k")
    fake.put("my-bucket", name, b"content")
    snippet = readme.find("Coming from 0.0.x", "python")
    executed(snippet.replace("s3.delete_object(", "dict("), scheduler=scheduler)
    assert len(fake.buckets["my-bucket"]) == 2
    executed(snippet, scheduler=scheduler)
    executed(snippet, scheduler=scheduler)
    [event] = scheduler.pending()
    assert list(fake.buckets["my-bucket"]) == [event.name]
