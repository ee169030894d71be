"""The README's Python, run as its reader would run it, with the default client, on the fake S3."""

import io
import logging
import types
from contextlib import redirect_stdout

import pytest

import readme
from s3_scheduler import RunFailed
from support.fakes3 import FakeS3

BUCKETS = ("my-bucket", "shop-emails", "shop-invoices", "shop-done")
LAMBDA = types.SimpleNamespace(get_remaining_time_in_millis=lambda: 30_000)
# Recipes in a fold are for tools of their own: test_recipes.py runs those.
BLOCKS = [block for block in readme.blocks() if block.language == "python" and not block.fold]
LATER, DUE = "later/9999-12-31T00:00Z|shop-emails|k", "later/2020-01-31T09:00Z|shop-emails|k"


@pytest.fixture
def s3(monkeypatch, tmp_path):
    """Yield a `FakeS3` with the README's buckets, where boto3's default clients go."""
    (tmp_path / "invoice.pdf").write_bytes(b"%PDF-")
    monkeypatch.chdir(tmp_path)
    with FakeS3(*BUCKETS) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
        yield s3


@pytest.fixture
def page():
    """Yield the README's namespace: its blocks share it, as those of one page do."""
    names = {"__name__": "readme"}
    level = logging.getLogger("s3_scheduler").level
    yield names
    logging.getLogger("s3_scheduler").setLevel(level)
    for client in [names.get("s3"), getattr(names.get("scheduler"), "client", None)]:
        if client:
            client.close()


def run(block, names):
    """Run a block; a traceback shows its lines in the README."""
    before = readme.README.read_text(encoding="utf-8").partition(block.text)[0]
    code = "\n" * before.count("\n") + block.text
    exec(compile(code, str(readme.README), "exec"), names)


def block(containing):
    [found] = [block for block in BLOCKS if containing in block.text]
    return found


def test_every_block(s3, page):
    """Run in the order of the page, every block works."""
    page["send_mail"] = print
    for each in BLOCKS:
        if page.get("s3"):
            page.pop("s3").close()
        with redirect_stdout(io.StringIO()):
            run(each, page)


def test_the_first_screen(s3, page):
    """It schedules, and its handler delivers what is due and raises what failed."""
    run(BLOCKS[0], page)
    (name,) = s3.buckets["my-bucket"]
    assert name == page["name"]
    assert s3.buckets["my-bucket"][name].content == b'{"user": 42}'
    s3.put("my-bucket", DUE, b"due")
    page["handler"]({}, LAMBDA)
    assert s3.buckets["shop-emails"]["k"].content == b"due"
    s3.put("my-bucket", DUE.replace("shop-emails", "missing"))
    with pytest.raises(RunFailed):
        page["handler"]({}, LAMBDA)
    assert name in s3.buckets["my-bucket"]


def test_in_your_application(s3, page):
    """It leaves waiting what its reader would expect, and prints it."""
    run(BLOCKS[0], page)
    with redirect_stdout(io.StringIO()) as printed:
        run(block("scheduler.cancel("), page)
    waiting = [(event.bucket, event.key) for event in page["scheduler"].pending()]
    assert waiting == [
        ("shop-emails", "welcome/42.json"),
        ("shop-invoices", "2030/42.pdf"),
        ("shop-emails", "reminders/43.txt"),
    ]
    assert len(printed.getvalue().splitlines()) == 2
    (invoice,) = [o for name, o in s3.buckets["my-bucket"].items() if name.endswith(".pdf")]
    assert (invoice.content, invoice.headers["content-type"]) == (b"%PDF-", "application/pdf")
    assert (invoice.metadata, invoice.tags) == ({"order": "42"}, {"paid": "no"})


def test_the_function(s3, page, monkeypatch):
    """It delivers its share of what is due to the buckets it names, and raises for others."""
    run(block("SHARD"), page)
    s3.put("my-bucket", DUE, b"due")
    s3.put("my-bucket", LATER)
    page["handler"]({}, LAMBDA)
    assert list(s3.buckets["shop-emails"]) == ["k"]
    s3.put("my-bucket", DUE.replace("shop-emails", "shop-done"))
    with pytest.raises(RunFailed, match="shop-done"):
        page["handler"]({}, LAMBDA)
    assert list(s3.buckets["shop-done"]) == []
    assert LATER in s3.buckets["my-bucket"]


def test_finer_than_a_minute(s3, page):
    """It runs until its time is used up, and raises what failed."""
    run(block("SHARD"), page)
    run(block("time.sleep"), page)
    page["time"] = types.SimpleNamespace(sleep=lambda seconds: None)
    s3.put("my-bucket", DUE)
    left = iter([60_000])
    context = types.SimpleNamespace(get_remaining_time_in_millis=lambda: next(left, 0))
    page["handler"]({}, context)
    assert list(s3.buckets["shop-emails"]) == ["k"]


def test_the_target_side(s3, page):
    """It reads what arrived, whatever its key, and does its work once."""
    sent = []
    page["send_mail"] = sent.append
    run(block("unquote_plus(record"), page)
    s3.put("shop-emails", "welcome/a b+é.json", b"body")
    record = {
        "eventName": "ObjectCreated:Copy",
        "s3": {
            "bucket": {"name": "shop-emails"},
            "object": {"key": "welcome/a+b%2B%C3%A9.json"},
        },
    }
    for _ in range(2):
        page["welcome"]({"Records": [record]}, LAMBDA)
    assert sent == [b"body"]


OLD = [
    ("later/|2038-08-05%2000%3A00%3A00%2B00%3A00|shop-emails|path~~with~~slashes", b"old"),
    ("later/|2018-08-05%2000%3A00%3A00%2B00%3A00|shop-emails|%C3%A9", b"due"),
]


def test_coming_from_an_older_version(s3, page):
    """What waits under old names is brought over, in one go or in several."""
    run(BLOCKS[0], page)
    page["scheduler"].cancel(page["name"])
    for name, body in OLD:
        s3.put("my-bucket", name, body)
    for _ in range(2):  # the second finds nothing left to do
        run(block("path"), page)
    assert {name: obj.content for name, obj in s3.buckets["my-bucket"].items()} == {
        "later/2018-08-05T00:00:00.000000Z|shop-emails|é": b"due",
        "later/2038-08-05T00:00:00.000000Z|shop-emails|path/with/slashes": b"old",
    }
