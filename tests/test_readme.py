"""The README's Python and shell, run as its reader would run them, on the fake S3."""

import inspect
import io
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlparse

import boto3
import pytest
from moto import mock_aws

from s3_scheduler import RunFailed, Scheduler, run_due
from support import readme
from support.fakes3 import FakeS3
from support.folder import repeats

LAMBDA = SimpleNamespace(get_remaining_time_in_millis=lambda: 30_000)
BLOCKS = readme.blocks("python")
DUE = "later/2020-01-31T09:00Z|shop-emails|k"
DEPLOY = "Deploy it in ten minutes"


@pytest.fixture
def s3(monkeypatch, tmp_path):
    """Yield a `FakeS3` with the README's buckets, where boto3's default clients go."""
    (tmp_path / "invoice.pdf").write_bytes(b"%PDF-")
    monkeypatch.chdir(tmp_path)
    buckets = ("my-bucket", "shop", "shop-emails", "shop-invoices", "shop-reports")
    with FakeS3(*buckets) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
        yield s3


@pytest.fixture
def page():
    """Yield the README's namespace: its blocks share it, as those of one page do."""
    names = {"__name__": "readme"}
    yield names
    for scheduler in [names.get("scheduler"), *names.get("folders", ())]:
        if scheduler:
            scheduler.folder.client.close()


def run(block, names):
    """Run a block, and return what it prints; a traceback shows its lines in the README."""
    code = compile("\n" * (block.line - 1) + block.text, str(readme.README), "exec")
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue()


def python(containing):
    [found] = [block for block in BLOCKS if containing in block.text]
    return found


def start(script):
    """Start a line of shell, in a session of its own; `s3-scheduler` in it is this version."""
    own = Path("bin/s3-scheduler")
    own.parent.mkdir(exist_ok=True)
    own.write_text(f'#!/bin/sh\nexec {sys.executable} -m s3_scheduler "$@"\n')
    own.chmod(0o755)
    path = f"{own.parent.resolve()}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["/bin/bash", "-o", "pipefail", "-c", script],
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def shell(script):
    """Run a line of shell, and return what it prints."""
    process = start(script)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


# --- Python ---------------------------------------------------------------------------------------


def test_every_block_works_in_the_order_of_the_page(s3, page):
    """Whoever types one after the other gets no error."""
    for block in BLOCKS:
        run(block, page)


def test_the_first_screen_schedules_and_delivers(s3, page):
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


def test_the_application_leaves_waiting_what_its_reader_expects(s3, page):
    """It prints what is due within 30 days, and what failed waits again."""
    run(BLOCKS[0], page)
    s3.put("my-bucket", "later/failed/AccessDenied/2030-01-31T09:00Z|shop-emails|failed.txt", b"")
    printed = run(python("scheduler.cancel("), page)
    waiting = [(event.bucket, event.key) for event in page["scheduler"].pending()]
    assert waiting == [
        ("shop-emails", "welcome/42.json"),
        ("shop-invoices", "2030/42.pdf"),
        ("shop-emails", "failed.txt"),
        ("shop-emails", "reminders/43.txt"),
    ]
    assert list(page["scheduler"].failed()) == []
    assert len(printed.splitlines()) == 2
    (invoice,) = [o for name, o in s3.buckets["my-bucket"].items() if name.endswith(".pdf")]
    assert (invoice.content, invoice.headers["content-type"]) == (b"%PDF-", "application/pdf")
    assert (invoice.metadata, invoice.tags) == ({"order": "42"}, {"paid": "no"})


def test_a_consumer_schedules_the_next_recurrence_once(s3, page):
    """However often it is called, one event waits, at the rule's next moment."""
    for block in (BLOCKS[0], python("scheduler.cancel("), python("rrule(")):
        run(block, page)
    for _ in range(2):
        page["weekly_report"]({}, LAMBDA)
    [event] = [it for it in page["scheduler"].pending() if it.bucket == "shop-reports"]
    assert event.due > datetime.now(timezone.utc)
    assert (event.due.weekday(), event.due.hour) == (0, 9)


@pytest.mark.slow
def test_time_travel_under_moto():
    """With moto and `now`, a test of the user's sees its event arrive."""
    assert "`run_due(scheduler, now=monday)`" in readme.text()
    monday = datetime(2030, 2, 4, 9, tzinfo=timezone.utc)
    with mock_aws():
        client = boto3.client("s3")
        for bucket in ("my-bucket", "shop-emails"):
            client.create_bucket(Bucket=bucket)
        scheduler = Scheduler("my-bucket", "later", client=client)
        scheduler.schedule(monday, "shop-emails", "k", "body")
        assert run_due(scheduler, now=monday - timedelta(seconds=1)).copied == 0
        assert run_due(scheduler, now=monday).copied == 1
        client.close()


def test_the_table_of_arguments_is_run_dues_signature():
    """Each argument and default of `run_due` is in the table, in order, and no other."""
    table = re.findall(r"^\| `(\w+)=(.+?)` \|", readme.text(), re.MULTILINE)
    _, *parameters = inspect.signature(run_due).parameters.values()
    shown = [(name, eval(default, {"timedelta": timedelta})) for name, default in table]
    assert shown == [(it.name, it.default) for it in parameters]


# --- Shell ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line_answers_as_shown(s3):
    """The session happens as it is shown, but for its times."""
    [session] = readme.blocks("console")
    for exchange in re.split(r"^\$ ", session.text, flags=re.MULTILINE)[1:]:
        command, _, shown = exchange.partition("\n")
        assert timeless(shell(command)) == timeless(shown)


def timeless(text):
    text = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", text)
    return re.sub(r"max_lateness [0-9.]+", "max_lateness SECONDS", text)


@pytest.mark.slow
def test_the_line_that_cancels_everything_does(s3):
    """It cancels whatever waits, also under odd names."""
    for key in ("k", "a b", "é'\"|%2F\n"):
        s3.put("my-bucket", f"later/2030-01-31T09:00Z|shop-emails|{key}")
    [line] = re.findall(r"`(s3-scheduler list --uri .+?)`", readme.text())
    shell(line)
    assert list(s3.buckets["my-bucket"]) == []


def test_the_object_that_a_shell_script_writes_is_an_event(s3):
    """The name in the line for the AWS CLI is the one of an event."""
    [name] = re.findall(r"aws s3 cp note.txt 's3://my-bucket/(.+)'\n", readme.text())
    s3.put("my-bucket", name)
    scheduler = Scheduler("my-bucket", "later")
    [event] = scheduler.pending()
    assert (event.bucket, event.key) == ("shop-emails", "welcome/note.txt")
    scheduler.folder.client.close()


@pytest.mark.slow
def test_two_machines_deliver_each_event_once(s3):
    """Two runners started by the same line at once repeat nothing, and lose nothing."""
    [line] = re.findall(r"^ {4}(s3-scheduler run .+ --once .+)$", readme.text(), re.MULTILINE)
    for number in range(100):
        s3.put("my-bucket", f"{DUE}{number}", b"content")
    runners = [start(line) for _ in range(2)]
    while s3.buckets["my-bucket"]:
        time.sleep(0.05)
    for runner in runners:
        os.killpg(runner.pid, signal.SIGTERM)
        runner.communicate()
    assert len(s3.buckets["shop-emails"]) == 100
    assert repeats(s3.history) == 0


@pytest.mark.slow
def test_the_deployment_ends_with_a_check_and_an_event(s3):
    """Its lines for this library work; the object has arrived after a run."""
    [lines] = [block.text for block in readme.blocks("sh") if "check" in block.text]
    check, schedule = (line for line in lines.splitlines() if "s3-scheduler " in line)
    assert "ok" in shell(check)
    shell(schedule)
    shell("s3-scheduler run s3://my-bucket/later --target-bucket shop-emails")
    assert s3.buckets["shop-emails"]["hello.txt"].content == b"hello\n"


def test_the_names_to_change_are_the_templates():
    """The block of names is the template's, and its commands are its README's."""
    sam = readme.ROOT / "tests/recipes/sam"
    [names] = readme.blocks("yaml")
    assert names.text in (sam / "template.yaml").read_text(encoding="utf-8")
    told = (sam / "README.md").read_text(encoding="utf-8")
    for block in readme.blocks("sh"):
        for line in block.text.splitlines():
            assert f"    {line}\n" in told or "s3-scheduler check" in line


# --- Links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((\S+?)\)", readme.text()))))
def test_every_link_leads_somewhere(link):
    """What it links to in this repository is there, and so is each heading."""
    if urlparse(link).scheme:
        assert link.startswith("https://docs.aws.amazon.com/")
    elif link.startswith("#"):
        assert link[1:] in map(anchor, readme.headings())
    else:
        assert (readme.ROOT / link).is_file()


def anchor(heading):
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
