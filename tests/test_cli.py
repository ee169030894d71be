"""The command line, run as a person and as cron run it."""

import functools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import boto3
import pytest

import s3_scheduler
from s3_scheduler import Scheduler
from s3_scheduler.__main__ import main
from support.fakes3 import Empty, Error, always, on
from support.once import needs_once

CLI = [sys.executable, "-m", "s3_scheduler"]
FOLDER = "s3://events/later"
NEW_YEAR = "2030-01-01T00:00:00.000000Z"
LONG_AGO = "2020-01-01T00:00:00.000000Z"
MOMENT = "write it like 2030-01-31T09:00:00Z, or +2h for two hours from now"
REPORT = r"\S+Z  copied"
FAILED = f"failed/AccessDenied/{LONG_AGO}|target|"
posix = pytest.mark.skipif(os.name != "posix", reason="signals and pipes as POSIX has them")


@pytest.fixture(autouse=True)
def as_found(tmp_path, monkeypatch):
    """What a command leaves to a process that ends: handlers of signals, and the log's."""
    monkeypatch.chdir(tmp_path)
    handlers = [(signum, signal.getsignal(signum)) for signum in (signal.SIGINT, signal.SIGTERM)]
    yield
    for signum, handler in handlers:
        signal.signal(signum, handler)
    logging.getLogger("s3_scheduler").handlers.clear()


class Cli:
    """The command line in this process: its exit code, output and errors."""

    def __init__(self, capsys, url):
        self.capsys = capsys
        self.url = url

    def __call__(self, *arguments):
        try:
            code: object = main([*arguments, "--endpoint-url", self.url])
        except SystemExit as exit_:
            code = exit_.code
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def lines(self, *arguments):
        code, out, err = self(*arguments)
        assert (code, err) == (0, "")
        return out.splitlines()

    def line(self, *arguments):
        [line] = self.lines(*arguments)
        return line

    def refusal(self, *arguments, code=2):
        """The one line that a refused command says."""
        actual, out, err = self(*arguments)
        assert (actual, out, err.count("\n")) == (code, "", 1)
        return err.removeprefix("s3-scheduler: ").strip()

    def misuse(self, *arguments):
        """The last line, behind the usage, about arguments that make no sense."""
        code, out, err = self(*arguments)
        assert (code, out) == (2, "")
        return err.splitlines()[-1]


@pytest.fixture
def real(capsys, seaweed, monkeypatch):
    """The command line against SeaweedFS, with credentials in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
    return Cli(capsys, seaweed.url)


@pytest.fixture
def fresh(capsys, fake):
    """The command line against the S3 in memory, with the buckets "events" and "target"."""
    fake.fill()
    return Cli(capsys, fake.url)


shared_session = functools.cache(boto3.Session)


@pytest.fixture
def cli(fresh, monkeypatch):
    """The same, in less time: a session's first client reads what boto3 knows of S3 for 60 ms."""
    monkeypatch.setattr(boto3, "Session", shared_session)
    return fresh


@pytest.fixture
def file(tmp_path):
    """The path of a file to schedule."""
    path = tmp_path / "welcome.json"
    path.write_text('{"hello": "world"}')
    return str(path)


def put(fake, *names, content=b"content"):
    for name in names:
        fake.put("events", f"later/{name}", content)


def environment(server):
    return {**os.environ, "AWS_ENDPOINT_URL_S3": server.url}


def real_environment(seaweed):
    keys = {"AWS_ACCESS_KEY_ID": seaweed.access_key, "AWS_SECRET_ACCESS_KEY": seaweed.secret_key}
    return {**environment(seaweed), **keys}


def program(fake, *arguments, **options):
    """The command line as a program of its own, against the S3 in memory."""
    options = {"env": environment(fake), "capture_output": True, "check": False, **options}
    return subprocess.run([*CLI, *arguments], **options)  # noqa: PLW1510 - in the options


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- As it is installed ---------------------------------------------------------------------------


@pytest.mark.slow
def test_an_event_s_whole_life(real, seaweed, seaweed_client, bucket, target, file):
    """On a real server: every command says what it did, and the usual exit codes are met."""
    folder = f"s3://{bucket}/later"
    uri = real.line("schedule", folder, NEW_YEAR, f"s3://{target}/a.json", file)
    assert uri == f"{folder}/{NEW_YEAR}|{target}|a.json"
    piped = ["schedule", folder, "+1d", f"s3://{target}/b", "-", "--content-type", "text/plain"]
    done = program(seaweed, *piped, env=real_environment(seaweed), input=b"from a pipe")
    assert (done.returncode, done.stderr) == (0, b"")
    other = done.stdout.decode().strip()
    assert real.lines("list", folder, "--uri") == [other, uri]
    real.line("reschedule", other, "+0s")
    assert re.fullmatch(rf"{REPORT} 1 .+ failed 0 .+", real.line("run", folder))
    arrived = seaweed_client.get_object(Bucket=target, Key="b")
    assert (arrived["Body"].read(), arrived["ContentType"]) == (b"from a pipe", "text/plain")
    assert real.line("cancel", uri) == uri
    real.refusal("cancel", uri, code=1)
    uri = real.line("schedule", folder, LONG_AGO, f"s3://{bucket}/k", file)
    code, out, _ = real("run", folder, "--target-bucket", target)
    assert code == 1
    assert re.match(f"{REPORT} 0 .+ failed 1 ", out)
    assert real.line("retry", folder) == uri
    real.refusal("list", "s3://nobody-has-it/later")


def test_the_installed_script():
    """Installing the package brings the same command as `s3-scheduler`."""
    script = shutil.which("s3-scheduler", path=str(Path(sys.executable).parent))
    if not script:
        pytest.skip("the package is not installed")
    expected = subprocess.check_output([*CLI, "--help"])
    assert subprocess.check_output([script, "--help"]) == expected


def test_the_package_knows_its_names():
    """The package lists what it offers before that is imported, and offers nothing else."""
    assert {"Scheduler", "run_due", "__name__"} <= set(dir(s3_scheduler))
    assert not hasattr(s3_scheduler, "Handler")


@pytest.mark.slow
def test_the_demo_is_a_command():
    """`demo` runs, and ends with its own exit code."""
    with subprocess.Popen([*CLI, "demo"], stdout=subprocess.PIPE) as demo:
        assert any(b"SCHEDULE" in line for line in demo.stdout)
        demo.send_signal(signal.SIGINT)
        demo.communicate()
    assert demo.returncode == 130


# --- schedule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "span"),
    [
        ("+0s", timedelta()),
        ("+90s", timedelta(seconds=90)),
        ("+90", timedelta(seconds=90)),
        ("+10m", timedelta(minutes=10)),
        ("+2h", timedelta(hours=2)),
        ("+1.5h", timedelta(minutes=90)),
        ("+1h30m", timedelta(minutes=90)),
        ("+3d", timedelta(days=3)),
        ("+1w", timedelta(days=7)),
        ("-5m", -timedelta(minutes=5)),
    ],
)
def test_a_moment_from_now(cli, fake, file, when, span):
    """WHEN may be a span from now, or a span ago."""
    before = datetime.now(timezone.utc)
    uri = cli.line("schedule", FOLDER, when, "s3://target/k", file)
    after = datetime.now(timezone.utc)
    [event] = Scheduler("events", "later", client=fake.client()).pending()
    assert uri == f"s3://events/{event.name}"
    assert before + span <= event.due <= after + span


def test_a_moment_with_a_zone(cli, file):
    """WHEN may be an ISO 8601 time with an offset."""
    arguments = ("schedule", f"{FOLDER}/", "2030-01-01T01:00+01:00", "s3://target//k", file)
    assert cli.line(*arguments) == f"{FOLDER}/{NEW_YEAR}|target|/k"


@pytest.mark.parametrize(
    ("when", "advice"),
    [
        ("2030-01-01T00:00", f"has no zone; {MOMENT}"),
        ("tomorrow", f"is not a moment; {MOMENT}"),
        ("2h", f"is not a moment; {MOMENT}"),
        ("+3x", "is not a span; write it like 90s, 10m, 2h, 3d or 1h30m"),
        (f"+{'9' * 9}d", f"is outside the years 1 to 9999; {MOMENT}"),
        (f"+{'9' * 400}", f"is outside the years 1 to 9999; {MOMENT}"),
    ],
)
def test_a_bad_moment(cli, file, when, advice):
    """What is no moment is refused with advice in the command line's terms, not in Python's."""
    line = cli.misuse("schedule", FOLDER, when, "s3://target/k", file)
    assert line.endswith(advice)
    assert not re.search("datetime|timedelta|isoformat|Error", line)


def test_a_moment_before_the_first_year(cli, file):
    """A moment that only other zones have is refused as it was written."""
    moment = "0001-01-01T00:00+23:00"
    refusal = cli.refusal("schedule", FOLDER, moment, "s3://target/k", file)
    assert refusal.startswith(f"{moment!r} is outside the years 1 to 9999")


def test_what_comes_with_an_event(cli, fake, file):
    """--content-type, --metadata and --tag, repeated as needed, arrive at the target."""
    pairs = ["--metadata", "a=1", "--metadata", "b=x=y", "--tag", "paid=no", "--tag", "who=a b+c"]
    arguments = ["schedule", FOLDER, "-5m", "s3://target/k", file, "--content-type", "text/x"]
    cli.line(*arguments, *pairs)
    cli.line("run", FOLDER)
    arrived = fake.buckets["target"]["k"]
    assert arrived.headers["content-type"] == "text/x"
    assert arrived.metadata == {"a": "1", "b": "x=y"}
    assert arrived.tags == {"paid": "no", "who": "a b+c"}


def test_no_replace(cli, fake, file):
    """With --no-replace, an event that is waiting already keeps its content: exit code 1."""
    arguments = ("schedule", FOLDER, NEW_YEAR, "s3://target/k")
    uri = cli.line(*arguments, file, "--no-replace")
    refusal = cli.refusal(*arguments, os.devnull, "--no-replace", code=1)
    assert refusal.startswith(f"'later/{NEW_YEAR}|target|k' is already waiting")
    [obj] = fake.buckets["events"].values()
    assert obj.content == Path(file).read_bytes()
    assert cli.line(*arguments, os.devnull) == uri
    [obj] = fake.buckets["events"].values()
    assert obj.content == b""


def test_no_replace_from_a_pipe(fake, cli):
    """A pipe will do for --no-replace, too."""
    arguments = ["schedule", FOLDER, NEW_YEAR, "s3://target/k", "-", "--no-replace"]
    assert program(fake, *arguments, input=b"from a pipe").returncode == 0
    [obj] = fake.buckets["events"].values()
    assert obj.content == b"from a pipe"


# --- list -----------------------------------------------------------------------------------------


def test_the_list(cli, fake):
    """One event a line, soonest first, aligned: due, bytes, target."""
    put(fake, f"{LONG_AGO}|target|old", "2999-01-01T00:00:00.5Z|target|a key", content=b"x" * 1234)
    old, new = cli.lines("list", FOLDER)
    assert old == "2020-01-01T00:00:00Z           1,234 B  s3://target/old"
    assert new == "2999-01-01T00:00:00Z           1,234 B  s3://target/a key"


def test_the_list_of_a_while(cli, fake):
    """--from and --until choose: from then on, and before then."""
    put(fake, *(f"2030-01-0{day}T00:00:00.000000Z|target|{day}" for day in (1, 2, 3)))
    between = ("--from", "2030-01-02T00:00Z", "--until", "2030-01-03T00:00Z")
    assert cli.line("list", FOLDER, *between).endswith("s3://target/2")
    assert len(cli.lines("list", FOLDER, "--from", "-5m")) == 3


def test_uris_alone(cli, fake):
    """--uri prints URIs and nothing else, one a line."""
    put(fake, f"{NEW_YEAR}|target|a", f"{NEW_YEAR}|target|b", FAILED + "c")
    assert cli.lines("list", "--uri", FOLDER) == [f"{FOLDER}/{NEW_YEAR}|target|{k}" for k in "ab"]
    assert cli.line("list", "--uri", "--failed", FOLDER) == f"{FOLDER}/{FAILED}c"


def test_json(cli, fake):
    """--json gives each event as one JSON object on a line of its own, names exact."""
    name = f"{NEW_YEAR}|target|a\nb%0A|é"
    put(fake, name, f"{FAILED}c")
    obj = fake.buckets["events"][f"later/{name}"]
    assert json.loads(cli.line("list", FOLDER, "--json")) == {
        "due": "2030-01-01T00:00:00+00:00",
        "bucket": "target",
        "key": "a\nb%0A|é",
        "name": f"later/{name}",
        "size": 7,
        "etag": obj.etag,
        "uri": f"{FOLDER}/{NEW_YEAR}|target|a%0Ab%250A|é",
    }
    failed = json.loads(cli.line("list", FOLDER, "--json", "--failed"))
    assert (failed["code"], failed["name"]) == ("AccessDenied", f"later/{FAILED}c")


def test_the_list_of_what_failed(cli, fake):
    """--failed shows the error code that stopped each event."""
    put(fake, f"{FAILED}a", f"failed/NoSuchBucket/{LONG_AGO}|nobody|b", f"{NEW_YEAR}|target|c")
    denied, missing = cli.lines("list", FOLDER, "--failed")
    assert re.search(r"Z +7 B  AccessDenied +s3://target/a$", denied)
    assert re.search(r"Z +7 B  NoSuchBucket +s3://nobody/b$", missing)


def test_the_list_of_what_is_not_an_event(cli, fake):
    """--invalid shows what does not parse as an event, past or future, in `failed/`, too."""
    typo, past = "2030-01-31 09:00Z|target|k", "2020-01-01|target|k\n"
    failed = f"failed/{LONG_AGO}|target|without a code"
    put(fake, typo, past, failed, f"{NEW_YEAR}|target|good", f"{FAILED}good", "")
    shown = [past.replace("\n", "%0A"), typo, failed]
    assert cli.lines("list", FOLDER, "--invalid") == [f"{FOLDER}/{name}" for name in shown]
    objects = map(json.loads, cli.lines("list", FOLDER, "--invalid", "--json"))
    assert next(objects) == {"name": f"later/{past}", "uri": f"{FOLDER}/{shown[0]}"}


@pytest.mark.parametrize("which", ["--failed", "--invalid"])
def test_bounds_are_for_what_waits(cli, which):
    """--from and --until are refused where they would choose nothing."""
    refusal = cli.refusal("list", FOLDER, which, "--until", "+1h")
    assert refusal == "--from and --until do not go with --failed or --invalid; leave them out"


def test_any_key(cli, fake):
    """URIs take one line each, whatever the keys; `cancel` takes them back."""
    keys = ["a b", "a|b|", "a\nb", "\x1b[2J", "a%0Ab", "100%", "%25", "%41", "\u00fc", " a  b "]
    put(fake, *(f"{NEW_YEAR}|target|{key}" for key in keys))
    lines = cli.lines("list", FOLDER, "--uri")
    assert len(lines) == len(keys)
    assert all(line.isprintable() for line in lines)
    cli.lines("cancel", *lines)
    assert not fake.buckets["events"]


def test_no_other_event_is_meant(cli, fake):
    """What no URI has escaped means what it says."""
    keys = ["a b", "a%20b", "100%"]
    put(fake, *(f"{NEW_YEAR}|target|{key}" for key in keys))
    fake.put("events", f"l%61ter/{NEW_YEAR}|target|k")
    cli.line("cancel", f"{FOLDER}/{NEW_YEAR}|target|a%20b")
    cli.line("cancel", f"{FOLDER}/{NEW_YEAR}|target|100%")
    cli.line("cancel", f"s3://events/l%61ter/{NEW_YEAR}|target|k")
    assert list(fake.buckets["events"]) == [f"later/{NEW_YEAR}|target|a b"]


# --- cancel and reschedule ------------------------------------------------------------------------


def test_cancel_several(cli, fake):
    """`cancel` takes failed events, too; exit code 1 if any was no longer waiting."""
    names = [f"{NEW_YEAR}|target|a", f"{NEW_YEAR}|target|b", f"{FAILED}c"]
    put(fake, names[0], names[2])
    code, out, err = cli("cancel", *(f"{FOLDER}/{name}" for name in names))
    assert code == 1
    assert out == f"{FOLDER}/{names[0]}\n{FOLDER}/{names[2]}\n"
    assert err.startswith(f"s3-scheduler: 'later/{names[1]}' is not waiting")
    assert not fake.buckets["events"]


def test_reschedule_several(cli, fake):
    """`reschedule` prints the new URIs; exit code 1 if any was no longer waiting."""
    put(fake, f"{NEW_YEAR}|target|a", f"{NEW_YEAR}|target|b")
    chosen = (f"{FOLDER}/{NEW_YEAR}|target|{key}" for key in "xab")
    code, out, err = cli("reschedule", *chosen, "2031-01-01T00:00Z")
    assert code == 1
    moved = [f"later/2031-01-01T00:00:00.000000Z|target|{key}" for key in "ab"]
    assert out == "".join(f"s3://events/{name}\n" for name in moved)
    assert err.startswith(f"s3-scheduler: 'later/{NEW_YEAR}|target|x' is not waiting")
    assert list(fake.buckets["events"]) == moved


def test_a_failed_event_is_not_rescheduled(cli, fake):
    """`reschedule` of a failed event is refused, and changes nothing."""
    put(fake, f"{FAILED}a")
    assert "quarantined" in cli.refusal("reschedule", f"{FOLDER}/{FAILED}a", "+1h", code=1)
    assert list(fake.buckets["events"]) == [f"later/{FAILED}a"]


@pytest.mark.parametrize(
    "trouble",
    [
        on("HeadObject", Error(403, "AccessDenied")),
        on("CopyObject", Empty()),
        on("CopyObject", Error(500, "InternalError"), Error(500, "X"), Error(500, "X")),
    ],
)
def test_one_event_does_not_keep_the_rest(cli, fake, trouble):
    """An event that cannot be changed is told, exit code 2; all others are changed."""
    there = [f"{NEW_YEAR}|target|{key}" for key in "abc"]
    put(fake, *there)
    fake.fault = trouble
    uris = [f"{FOLDER}/{name}" for name in there]
    code, out, err = cli("reschedule", *uris, "no event", "2031-01-01T00:00Z")
    assert (code, out.count("\n"), err.count("\n")) == (2, 2, 2)
    assert sorted(name.rpartition("|")[2] for name in fake.buckets["events"]) == ["a", "b", "c"]
    assert sum(name.startswith("later/2031") for name in fake.buckets["events"]) == 2


def test_an_event_whose_target_is_a_folder_of_events(cli, fake):
    """An event's URI is read from its front: its key may look like another event's."""
    name = f"later/{NEW_YEAR}|events|later/{LONG_AGO}|target|k"
    fake.put("events", name, b"")
    assert cli.line("cancel", f"s3://events/{name}") == f"s3://events/{name}"


def test_an_access_point(cli):
    """A folder may be in an access point."""
    arn = "arn:aws:s3:us-east-1:111122223333:accesspoint/mine"
    refusal = cli.refusal("list", f"s3://{arn}/later")
    assert "//mine-111122223333." in refusal  # a host that the S3 in memory does not have
    assert "prefix=later%2F" in refusal


@pytest.mark.parametrize(
    "arguments",
    [
        ["cancel", FOLDER],
        ["cancel", f"{NEW_YEAR}|target|k"],
        ["cancel", "s3://events"],
        ["cancel", "s3://events//k"],
        ["retry", "later"],
        ["retry", f"{FOLDER}/2030-01-01 00:00Z|target|k"],
        ["schedule", FOLDER, "+0s", "s3://bad bucket/k", "{file}"],
        ["schedule", FOLDER, "+0s", "s3://target/k", "{file}.none"],
        ["schedule", FOLDER, "+0s", "s3://target/\udcff", "{file}"],
        ["run", "s3://events--usw2-az1--x-s3/later"],
    ],
    ids=" ".join,
)
def test_bad_input(cli, fake, file, arguments):
    """What makes no sense is refused in one line, with exit code 2, and nothing changes."""
    cli.refusal(*(argument.replace("{file}", file) for argument in arguments))
    assert set(fake.count()) <= {"ListObjectsV2"}


def test_events_of_several_folders(cli, fake):
    """Events of several folders and buckets are changed in one call."""
    put(fake, f"{NEW_YEAR}|target|k")
    fake.put("events", f"x/{NEW_YEAR}|target|k", b"")
    fake.put("target", f"later/{NEW_YEAR}|target|k", b"")
    folders = [FOLDER, "s3://nobody/later", "s3://events/x", "s3://target/later"]
    code, out, err = cli("cancel", *(f"{folder}/{NEW_YEAR}|target|k" for folder in folders))
    assert (code, out.count("\n"), err.count("\n")) == (2, 3, 1)
    assert "(NoSuchBucket)" in err
    assert not fake.buckets["events"] | fake.buckets["target"]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["cancel"], "EVENT"),
        (["reschedule", f"{FOLDER}/{LONG_AGO}|target|k"], "WHEN"),
        (["run", FOLDER, "--shard", "2"], "write 0/2 and 1/2"),
        (["run", FOLDER, "--every", "often"], "write it like 90s"),
        (["run", FOLDER, "--every", "+1m"], "write it like 90s"),
        (["run", FOLDER, "--every", "0"], "is too short"),
        (["run", FOLDER, "--time-limit", "0s"], "is too short"),
        (["run", FOLDER, "--time-limit", "nan"], "write it like 90s"),
        (["run", FOLDER, "--retry-for", "long"], "write it like 90s"),
        (["run", FOLDER, "--retry-for", "-5m"], "'-5m' is not a span"),
        (["run", FOLDER, "--target-bucket", "s3://shop/"], "not the name of a bucket"),
        (["check", FOLDER, "--target-bucket", "s3://shop"], "write it like shop-emails"),
        (["check", FOLDER, "--as", "root"], "application"),
        (["schedule", FOLDER, "+1h", "s3://t/k", "-", "--tag", "a"], "'a' is not a pair like a=b"),
        (["schedule", FOLDER, "+1h", "s3://t/k", "-", "--metadata", "=a"], "is not a pair"),
        (["schedule", FOLDER, "+1h", "t/k", "-"], "write it like s3://my-bucket/later"),
        (["schedule", FOLDER, "+1h", "s3://t", "-"], "'s3://t' is not the URI"),
        (["run", "later"], "write it like s3://my-bucket/later"),
        (["run"], "FOLDER"),
        (["frobnicate"], "schedule"),
        ([], "COMMAND"),
    ],
    ids=str,
)
def test_misuse(cli, fake, arguments, advice):
    """What is no command is refused with advice, exit code 2, before anything is sent."""
    line = cli.misuse(*arguments)
    assert "error: " in line
    assert advice in line
    assert not fake.count()


# --- retry ----------------------------------------------------------------------------------------


def test_retry_all(cli, fake):
    """`retry FOLDER` puts all failed events back, whole, whatever failed them."""
    fake.put("events", f"later/{FAILED}a", b"a", content_type="text/plain")
    put(fake, f"failed/NoSuchBucket/{LONG_AGO}|target|b")
    restored = [f"later/{LONG_AGO}|target|{key}" for key in "ab"]
    assert cli.lines("retry", FOLDER) == [f"s3://events/{name}" for name in restored]
    assert list(fake.buckets["events"]) == restored
    assert fake.buckets["events"][restored[0]].headers == {"content-type": "text/plain"}
    assert cli("retry", FOLDER) == (0, "", "")


def test_retry_some(cli, fake):
    """By URIs, as `list --failed --uri` prints them; exit code 1 if any is not there."""
    put(fake, *(FAILED + key for key in "abc"))
    uris = cli.lines("list", FOLDER, "--failed", "--uri")
    code, out, err = cli("retry", uris[0], f"{FOLDER}/{FAILED}x", uris[2])
    restored = [f"{FOLDER}/{LONG_AGO}|target|{key}" for key in "ac"]
    assert (code, out.splitlines()) == (1, restored)
    assert err.startswith(f"s3-scheduler: 'later/{FAILED}x' is not waiting")
    assert cli.line("list", FOLDER, "--failed").endswith("s3://target/b")


def test_retry_of_what_waits(cli, fake):
    """`retry` of an event that has not failed says that it is waiting: exit code 1."""
    put(fake, f"{NEW_YEAR}|target|k")
    refusal = cli.refusal("retry", f"{FOLDER}/{NEW_YEAR}|target|k", code=1)
    assert refusal.startswith(f"'later/{NEW_YEAR}|target|k' is already waiting")
    assert list(fake.buckets["events"]) == [f"later/{NEW_YEAR}|target|k"]


def test_retry_does_not_replace(cli, fake):
    """A failed event that was scheduled again meanwhile stays: the newer content is not lost."""
    put(fake, f"{FAILED}a", content=b"old")
    put(fake, f"{LONG_AGO}|target|a", content=b"new")
    assert "is already waiting" in cli.refusal("retry", FOLDER, code=1)
    assert [obj.content for obj in fake.buckets["events"].values()] == [b"new", b"old"]


def test_a_folder_named_failed(cli, fake):
    """A folder that is itself called "failed" has failed events as any other."""
    for folder in ("failed", "jobs/failed"):
        fake.put("events", f"{folder}/failed/NoSuchBucket/{LONG_AGO}|target|k", b"")
        uri = f"s3://events/{folder}/{LONG_AGO}|target|k"
        assert cli.lines("retry", f"s3://events/{folder}") == [uri]
        assert cli.lines("list", "--uri", f"s3://events/{folder}") == [uri]
        assert cli.lines("cancel", uri) == [uri]


# --- run ------------------------------------------------------------------------------------------


def test_a_run(cli, fake):
    """`run` delivers what is due and prints its report; if nothing was due, it says nothing."""
    assert cli("run", FOLDER) == (0, "", "")
    put(fake, f"{LONG_AGO}|target|k")
    line = cli.line("run", FOLDER)
    report = r"1 delivered_before 0 failed 0 invalid 0 unfinished 0 max_lateness \d+\.\d+"
    assert re.fullmatch(f"{REPORT} {report}", line)
    assert list(fake.buckets["target"]) == ["k"]
    assert cli("run", FOLDER) == (0, "", "")


def test_failures_of_a_run(cli, fake):
    """Each failure is a line on standard error; the exit code is 1."""
    put(fake, f"{LONG_AGO}|target|k", f"{LONG_AGO}|nobody|k", "2020-01-01|not an event")
    code, out, err = cli("run", FOLDER, "--retry-for", "9999999d")
    assert code == 1
    assert re.match(f"{REPORT} 1 .+ failed 1 ", out)
    invalid, failed = sorted(err.splitlines(), key=lambda line: "failed" in line)
    assert "is not the name of an event" in invalid
    assert f"'later/{LONG_AGO}|nobody|k' failed, the next run tries it again" in failed
    assert "(NoSuchBucket)" in failed


@pytest.mark.parametrize(
    ("option", "moved"),
    [
        (["--retry-for", "2h"], ["a", "b"]),
        (["--retry-for", "86400"], ["b"]),
        (["--retry-for", "1w"], []),
        ([], ["b"]),
    ],
)
def test_how_long_failures_are_tried(cli, fake, option, moved):
    """--retry-for tells when a failing event is moved to failed/; it is a day if not given."""
    for key, span in {"a": "-23h", "b": "-25h"}.items():
        cli.line("schedule", FOLDER, span, f"s3://nobody/{key}", os.devnull)
    code, _, err = cli("run", FOLDER, *option)
    assert (code, err.count("it was moved to failed/")) == (1, len(moved))
    failed = [name for name in fake.buckets["events"] if name.startswith("later/failed/")]
    assert sorted(name.rpartition("|")[2] for name in failed) == moved


def test_target_buckets(cli, fake):
    """With --target-bucket, events for other buckets fail."""
    put(fake, f"{LONG_AGO}|target|a", f"{LONG_AGO}|other|b")
    arguments = ("--target-bucket", "target", "--target-bucket", "more")
    code, _, err = cli("run", FOLDER, *arguments)
    assert (code, err.count("\n")) == (1, 1)
    assert list(fake.buckets["target"]) == ["a"]


@needs_once
def test_once(cli, fake):
    """With --once, what an earlier run had delivered is not delivered again, and is told."""
    put(fake, *(f"{LONG_AGO}|target|{key}" for key in "ab"))
    fake.put("target", "a", b"content")
    line = cli.line("run", FOLDER, "--once")
    assert "  copied 1 delivered_before 1 failed 0 " in line
    assert sum(change.key == "a" for change in fake.history if change.bucket == "target") == 1


def test_shards(cli, fake):
    """Of the shards 0/2 and 1/2, each delivers its share, and together all."""
    fake.fill(due=20)
    cli.line("run", FOLDER, "--shard", "0/2")
    assert 0 < len(fake.buckets["target"]) < 20
    cli.line("run", FOLDER, "--shard", "1/2")
    assert len(fake.buckets["target"]) == 20


def test_the_time_limit(cli, fake):
    """After --time-limit nothing new is begun, and the line says that some are left."""
    fake.fill(due=300)
    fake.latency = lambda request: 0.2 * (request.operation == "CopyObject")
    assert " unfinished 1 " in cli.line("run", FOLDER, "--time-limit", "0.3")
    assert len(fake.buckets["target"]) < 300


@pytest.mark.slow
def test_ahead(cli, fake, file):
    """With --ahead, a run also delivers what falls due in that time."""
    uri = cli.line("schedule", FOLDER, "+1s", "s3://target/k", file)
    assert "copied 1 " in cli.line("run", FOLDER, "--ahead", "1m")
    [copy] = [change for change in fake.history if change.action == "copy"]
    assert copy.source == ("events", uri.removeprefix("s3://events/"))


class Running:
    """`run` in a process of its own, against the S3 in memory."""

    def __init__(self, fake, *arguments):
        self.process = subprocess.Popen(
            [*CLI, "run", FOLDER, *arguments],
            env=environment(fake),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def stop(self, signum=signal.SIGTERM):
        """Its exit code, and what it still had to say."""
        self.process.send_signal(signum)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def read(self):
        return self.process.stdout.readline()


@posix
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_runs_until_a_signal(fake, cli, signum):
    """With --every, it runs again and again; a signal between runs ends it at once, code 0."""
    fake.fill(due=1)
    with Running(fake, "--every", "0.2s") as running:
        assert "copied 1 " in running.read()
        put(fake, f"{LONG_AGO}|target|another")
        assert "copied 1 " in running.read()
        assert running.stop(signum) == (0, "", "")


@posix
def test_a_signal_before_the_first_copy(fake, cli):
    """A run that is told to stop before it delivered anything ends in silence, code 0."""
    fake.fill(due=5)
    fake.latency = lambda request: 0.5 * (request.operation == "ListObjectsV2")
    with Running(fake, "--every", "1m") as running:
        wait_for(lambda: fake.count()["ListObjectsV2"])
        assert running.stop() == (0, "", "")
    assert fake.count() == {"ListObjectsV2": 1}


@posix
@pytest.mark.slow
def test_a_loop_is_punctual(fake, cli, file):
    """With --every, a run stays for what falls due before the next; a signal ends the wait."""
    for when in ("+2s", "+1h"):
        cli.line("schedule", FOLDER, when, "s3://target/k", file)
    with Running(fake, "--every", "1d") as running:
        wait_for(lambda: fake.buckets["target"])
        code, out, err = running.stop()
    assert (code, err) == (0, "")
    assert re.match(f"{REPORT} 1 .+ failed 0 ", out)
    assert fake.count()["CopyObject"] == 1


@posix
@pytest.mark.parametrize(
    ("signum", "every"), [(signal.SIGTERM, ["--every", "60"]), (signal.SIGINT, [])]
)
@pytest.mark.slow
def test_a_signal_during_a_run(fake, cli, signum, every):
    """What is in flight arrives and leaves the folder, the rest stays: nothing is half done."""
    fake.fill(due=5000)
    put(fake, f"{LONG_AGO}|nobody|k")
    fake.latency = lambda request: 0.2 * (request.operation == "CopyObject")
    with Running(fake, *every, "--retry-for", "9999999d") as running:
        wait_for(lambda: len(fake.buckets["target"]) > 20)
        running.process.send_signal(signum)  # and once more, as impatient people do
        code, out, err = running.stop(signum)
    assert code == 1
    assert "|nobody|k' failed" in err
    left = {name.split("|")[2] for name in fake.buckets["events"]}
    assert 20 < len(fake.buckets["target"]) < 5000
    assert f"  copied {len(fake.buckets['target'])} " in out
    assert " failed 1 invalid 0 unfinished 1 " in out
    assert left == {"k", *map(str, range(5000))} - {*fake.buckets["target"]}


@posix
@pytest.mark.slow
def test_a_signal_that_another_thread_takes(cli, fake):
    """Whichever thread the system interrupts, the run ends early."""
    fake.fill(due=5000)
    fake.latency = lambda request: 0.2 * (request.operation == "CopyObject")
    in_time = iter([lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)])
    fake.before = lambda request: next(in_time, str)() if fake.buckets["target"] else None
    assert cli("run", FOLDER)[0] == 0
    assert 0 < len(fake.buckets["target"]) < 5000


@posix
def test_an_outage_passes(cli, fake):
    """With --every, an outage takes one line a run, and the loop goes on."""
    outage = Error(403, "RequestTimeTooSkewed")
    fake.fill(due=1)
    fake.fault = on("ListObjectsV2", outage, outage)

    def stop(request):
        if fake.buckets["target"]:
            os.kill(os.getpid(), signal.SIGTERM)

    fake.after = stop
    code, out, err = cli("run", FOLDER, "--every", "0.1")
    assert (code, out.count("copied 1 ")) == (0, 1)
    assert err.count("(RequestTimeTooSkewed)") == 2
    assert err.count("trying again in 0.1 s\n") == 2
    assert err.count("\n") == 2


@posix
def test_an_outage_at_the_end(cli, fake):
    """If the last run of a loop could not list the folder, the exit code is 2."""
    fake.fault = always("ListObjectsV2", Error(403, "RequestTimeTooSkewed"))
    with Running(fake, "--every", "1h") as running:
        assert running.process.stderr.readline().endswith("trying again in 3600 s\n")
        assert running.stop() == (2, "", "")


@posix
@pytest.mark.slow
def test_credentials_that_cannot_be_had(fake, cli, tmp_path, monkeypatch):
    """Nor does a loop end because there are no valid credentials for a while."""

    def provide(expiration):
        keys = {"Version": 1, "AccessKeyId": "key", "SecretAccessKey": "secret"}
        (tmp_path / "new").write_text(json.dumps(keys | {"Expiration": expiration}))
        (tmp_path / "new").replace(tmp_path / "keys")

    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = cat {tmp_path}/keys\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    fake.fill(due=1)
    provide(LONG_AGO)
    with Running(fake, "--every", "0.1") as running:
        assert "trying again in 0.1 s" in running.process.stderr.readline()
        provide("2999-01-01T00:00:00Z")
        assert "copied 1 " in running.read()
        assert running.stop()[0] == 0


def test_an_argument_that_stays_wrong_ends_a_loop(cli, fake, monkeypatch):
    """What no later run could mend is refused at once, with --every, too."""
    from s3_scheduler.folder import Folder  # noqa: PLC0415

    monkeypatch.setattr(Folder, "can_create", False)  # as with a boto3 of 2024
    refusal = cli.refusal("run", FOLDER, "--every", "1m", "--once")
    assert refusal.startswith("once=True needs boto3 1.40.65")


# --- Output that cannot be written ----------------------------------------------------------------


@posix
def test_nobody_reads_the_lines_of_a_loop(fake, cli):
    """When its reader goes away, a loop ends in silence as the shell's programs do: 141."""
    fake.fill(due=1)
    with Running(fake, "--every", "0.1") as running:
        assert "copied 1 " in running.read()
        running.process.stdout.close()
        running.process.stdout = None
        put(fake, f"{LONG_AGO}|target|another")
        _, err = running.process.communicate(timeout=60)
    assert (running.process.returncode, err) == (141, "")


@posix
def test_nobody_reads_the_complaints_of_a_loop(fake, cli):
    """When its standard error is closed, a loop goes on."""
    put(fake, f"{LONG_AGO}|nobody|k")
    with Running(fake, "--every", "0.1", "--retry-for", "9999999d") as running:
        running.process.stderr.close()
        running.process.stderr = None
        assert "copied 0 delivered_before 0 failed 1 " in running.read()
        put(fake, f"{LONG_AGO}|target|k")
        while "copied 1 " not in running.read():
            assert running.process.poll() is None


@posix
def test_head_takes_one_request(fake, cli):
    """`list | head -1` over 5,000 events makes one request, and the closed pipe is silent."""
    fake.fill(waiting=5000)
    script = 'set -o pipefail; "$@" | head -1'
    # As JSON, for a page of shorter lines has room in the pipe even if nobody reads.
    shell = ["/bin/bash", "-c", script, "-", *CLI, "list", "--json", FOLDER]
    done = subprocess.run(shell, env=environment(fake), capture_output=True, check=True)
    assert (done.stdout.count(b"\n"), done.stderr) == (1, b"")
    assert fake.count() == {"ListObjectsV2": 1}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(fake, cli):
    """A full disk is an exit code of its own, and one line: what was done stays done."""
    fake.fill(due=1)
    with Path("/dev/full").open("wb") as full:
        done = program(
            fake, "run", FOLDER, capture_output=False, stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 3
    assert re.fullmatch(rb"s3-scheduler: the output could not be written: .*\n", done.stderr)
    assert len(fake.buckets["target"]) == 1


@posix
def test_a_closed_output(fake, cli):
    """Where nothing can be said, nothing is done: the same exit code, and one line."""
    fake.fill(due=1)
    shell = ["/bin/sh", "-c", '"$@" >&-', "-", *CLI, "run", FOLDER]
    done = subprocess.run(shell, env=environment(fake), stderr=subprocess.PIPE, check=False)
    assert done.returncode == 3
    assert re.fullmatch(rb"s3-scheduler: standard output is closed; .*\n", done.stderr)
    assert not fake.count()


def test_output_that_cannot_be_encoded(fake, cli):
    """What standard output cannot encode is escaped: no failure after the work is done."""
    environment_ = {**environment(fake), "PYTHONIOENCODING": "ascii"}
    arguments = ["schedule", FOLDER, NEW_YEAR, "s3://target/ü", "-"]
    done = program(fake, *arguments, input=b"x", env=environment_)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("ascii").strip() == f"{FOLDER}/{NEW_YEAR}|target|\\xfc"


# --- What goes wrong ------------------------------------------------------------------------------

IN_BUCKET = [
    ["schedule", "s3://{}/later", "+0s", "s3://target/k", os.devnull],
    ["list", "s3://{}/later"],
    ["cancel", f"s3://{{}}/later/{NEW_YEAR}|target|k"],
    ["reschedule", f"s3://{{}}/later/{NEW_YEAR}|target|k", "+1h"],
    ["retry", "s3://{}/later"],
    ["retry", f"s3://{{}}/later/{NEW_YEAR}|target|k"],
    ["run", "s3://{}/later"],
]


@pytest.mark.parametrize("arguments", IN_BUCKET, ids=" ".join)
def test_a_missing_bucket(real, arguments):
    """No command takes a missing bucket for an empty one: one line, exit code 2."""
    refusal = real.refusal(*(argument.replace("{}", "there-is-none") for argument in arguments))
    assert "(NoSuchBucket)" in refusal


def test_a_refused_permission(cli, fake, file):
    """A refused permission is one line, exit code 2."""
    fake.fault = lambda request: Error(403, "AccessDenied")
    for arguments in (
        ("schedule", FOLDER, "+0s", "s3://target/k", file),
        ("cancel", f"{FOLDER}/{NEW_YEAR}|target|k"),
        ("run", FOLDER),
    ):
        assert "(AccessDenied)" in cli.refusal(*arguments)


def test_an_unreachable_endpoint(capsys):
    """An endpoint that does not answer is one line, exit code 2."""
    refusal = Cli(capsys, "http://127.0.0.1:9").refusal("run", FOLDER)
    assert refusal.startswith("Could not connect to the endpoint URL")


def test_missing_credentials(fresh, monkeypatch):
    """Missing credentials are one line, exit code 2."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert fresh.refusal("run", FOLDER) == "Unable to locate credentials"


def test_wrong_credentials(real, bucket, monkeypatch):
    """Credentials that the server does not know are one line, exit code 2."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "(SignatureDoesNotMatch)" in real.refusal("list", f"s3://{bucket}/later")


def test_an_error_nobody_thought_of(capsys):
    """What is none of S3's errors, nor ours, is one line too."""
    refusal = Cli(capsys, "nonsense").refusal("list", FOLDER)
    assert refusal.startswith("Invalid endpoint: nonsense")


@posix
def test_ctrl_c(cli, fake):
    """Ctrl-C in another command is no traceback either: exit code 130."""
    fake.latency = 30
    with subprocess.Popen(
        [*CLI, "list", FOLDER], env=environment(fake), stderr=subprocess.PIPE
    ) as process:
        wait_for(fake.count)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


INTERRUPTED = """
import signal, sys
module, *sys.argv[1:] = sys.argv[1:]
class Interrupt:  # when this module is first imported, Ctrl-C comes
    def find_spec(self, name, *_):
        if name == module:
            signal.raise_signal(signal.SIGINT)
sys.modules.pop(module, None)
sys.meta_path.insert(0, Interrupt())
from s3_scheduler.__main__ import main
sys.exit(main())
"""
OURS = ["arguments", "commands", "check", "errors", "folder", "names", "runner", "scheduler"]
LIBRARIES = ["argparse", "importlib.metadata", "dateutil.parser", "json", "logging", "boto3"]


@pytest.mark.parametrize("module", [*LIBRARIES, *(f"s3_scheduler.{name}" for name in OURS)])
def test_ctrl_c_during_start_up(fake, cli, module):
    """Ctrl-C ends in silence whatever is being imported, too: exit code 130."""
    program_ = [sys.executable, "-c", INTERRUPTED, module, "list", FOLDER]
    done = subprocess.run(program_, env=environment(fake), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
    assert not fake.count()


# --- Settings and help ----------------------------------------------------------------------------


@pytest.mark.slow
def test_settings_stand_anywhere(fresh, capsys, fake, tmp_path, monkeypatch):
    """--profile, --region and --endpoint-url may stand before the command or behind it."""
    config = tmp_path / "config"
    secrets = "aws_access_key_id = one\naws_secret_access_key = secret\n"
    config.write_text(f"[profile one]\nendpoint_url = {fake.url}\n{secrets}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for arguments in (
        ["--profile", "one", "list", FOLDER, "--region", "eu-west-1"],
        ["--region", "eu-west-1", "list", FOLDER, "--profile", "one"],
        ["--endpoint-url", fake.url, "list", FOLDER, "--region", "eu-west-1"],
    ):
        assert main(arguments) == 0
        assert "/eu-west-1/s3/" in fake.log[-1].headers["authorization"]
    assert main(["--profile", "two", "list", FOLDER]) == 2
    assert "The config profile (two) could not be found" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["schedule", "list", "cancel", "reschedule", "retry", "run", "check", "demo"]
)
def test_help(cli, name):
    """Each command's --help explains it, with an example that can be copied."""
    code, out, _ = cli(name, "--help")
    assert code == 0
    *_, last = out.splitlines()
    assert last.startswith(f"example: s3-scheduler {name}")


def test_exit_codes_are_told(cli):
    """--help says what the exit codes mean, and --version which version this is."""
    assert "exit codes: 0, done; 1, " in cli("--help")[1]
    assert re.fullmatch(r"s3-scheduler \d+\.\d+.*\n", cli("--version")[1])
