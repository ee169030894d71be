"""The command line, run as a person and as cron run it."""

import json
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

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_scheduler import __main__ as cli_module
from s3_scheduler import names
from s3_scheduler.__main__ import main
from support.buckets import emptied
from support.fakes3 import Error, on

CLI = [sys.executable, "-m", "s3_scheduler"]
NEW_YEAR = "2030-01-01T00:00:00.000000Z"
LONG_AGO = "2020-01-01T00:00:00.000000Z"


@pytest.fixture(autouse=True)
def as_found(tmp_path, monkeypatch):
    """What `run` leaves to a process that ends: handlers of signals, and the log's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handlers = [(signum, signal.getsignal(signum)) for signum in (signal.SIGINT, signal.SIGTERM)]
    yield
    for signum, handler in handlers:
        signal.signal(signum, handler)
    cli_module.logger.handlers.clear()


class Cli:
    """The command line in this process: its exit code, output and errors."""

    def __init__(self, capsys, url):
        self.capsys = capsys
        self.url = url

    def __call__(self, *arguments):
        try:
            code = main([*arguments, "--endpoint-url", self.url])
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
def cli(capsys, fake):
    """The command line against the fake, with the buckets "events" and "target"."""
    fake.fill()
    return Cli(capsys, fake.url)


@pytest.fixture
def folder(bucket):
    """The URI of an empty folder on SeaweedFS."""
    return f"s3://{bucket}/later"


@pytest.fixture
def file(tmp_path):
    """The path of a file to schedule."""
    path = tmp_path / "welcome.json"
    path.write_text('{"hello": "world"}')
    return str(path)


def put(fake, *names, content=b"content"):
    for name in names:
        fake.put("events", f"later/{name}", content)


def environment(seaweed):
    keys = {
        "AWS_ACCESS_KEY_ID": seaweed.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweed.secret_key,
        "AWS_ENDPOINT_URL_S3": seaweed.url,
    }
    return {**os.environ, **keys}


def content(client, bucket, key):
    answer = client.get_object(Bucket=bucket, Key=key)
    return answer["Body"].read().decode(), answer["ContentType"]


def keys(client, bucket):
    answer = client.list_objects_v2(Bucket=bucket)
    return [entry["Key"] for entry in answer.get("Contents", ())]


# As it is installed


def test_an_event_s_whole_life(seaweed, seaweed_client, folder, bucket, target, file):
    """As a program of its own: every command says what it did, and every exit code is met."""

    def shell(*arguments, code=0, **options):
        done = subprocess.run(
            [*CLI, *arguments],
            env=environment(seaweed),
            capture_output=True,
            check=False,
            **options,
        )
        assert (done.returncode, done.stderr.count(b"\n")) == (code, int(code > 0))
        return done.stdout.decode()

    uri = shell("schedule", folder, NEW_YEAR, f"s3://{target}/a.json", file).strip()
    assert uri == f"{folder}/{NEW_YEAR}|{target}|a.json"
    told = ["schedule", folder, "+1d", f"s3://{target}/b.txt", "-", "--content-type", "text/plain"]
    other = shell(*told, input=b"from a pipe").strip()
    assert [line.split("  ")[-1] for line in shell("list", folder).splitlines()] == [
        f"s3://{target}/b.txt",
        f"s3://{target}/a.json",
    ]
    shell("reschedule", other, "+0s")
    assert re.fullmatch(r"\S+Z  1 delivered, up to \d+ s late; 0 failed\n", shell("run", folder))
    assert content(seaweed_client, target, "b.txt") == ("from a pipe", "text/plain")
    assert shell("cancel", uri) == f"{uri}\n"
    assert shell("cancel", uri, code=1) == ""
    uri = shell("schedule", folder, LONG_AGO, f"s3://{bucket}/k", "-", input=b"astray")
    assert shell("run", folder, "--target-bucket", target, code=1).endswith(
        "Z  0 delivered; 1 failed\n"
    )
    assert shell("retry", folder) == uri
    assert shell("list", "s3://nobody-has-it/later", code=2) == ""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_loop_on_a_real_server(seaweed, folder, target, file, signum):
    """As a program of its own, `run --every` delivers until a signal ends it, exit code 0."""
    env = environment(seaweed)
    scheduling = [*CLI, "schedule", folder, "+0s", f"s3://{target}/k", file]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*CLI, "run", folder, "--every", "0.2"], env=env, **pipes) as loop:
        for _ in range(2):
            subprocess.run(scheduling, env=env, check=True, stdout=subprocess.DEVNULL)
            assert "1 delivered" in loop.stdout.readline()
        loop.send_signal(signum)
        assert loop.communicate() == ("", "")
    assert loop.returncode == 0


def test_a_closed_pipe_on_a_real_server(seaweed, seaweed_client, folder, bucket, target):
    """As a program of its own, `list` ends in silence when its reader has seen enough."""
    for i in range(50):
        name = f"later/{NEW_YEAR}|{target}|{i}"
        seaweed_client.put_object(Bucket=bucket, Key=name, Body=b"")
    with subprocess.Popen(
        [*CLI, "list", folder, "--json"],
        env=environment(seaweed),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pipesize=4096,  # so that it has to wait for its reader
    ) as listing:
        assert json.loads(listing.stdout.readline())["key"] == "0"
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 0


def test_the_installed_script():
    """Installing the package brings the same command as `s3-scheduler`."""
    script = shutil.which("s3-scheduler", path=str(Path(sys.executable).parent))
    if not script:
        pytest.skip("the package is not installed")
    expected = subprocess.check_output([*CLI, "--help"])
    assert subprocess.check_output([script, "--help"]) == expected


def test_the_library_does_without_it():
    """`import s3_scheduler` imports nothing of the command line."""
    code = "import sys, s3_scheduler; print(*(name for name in sys.modules if 's3_sch' in name))"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "s3_scheduler.runner" in loaded
    assert not {"s3_scheduler.__main__", "s3_scheduler.demo"} & {*loaded}


def test_the_demo_is_a_command():
    """`demo` runs, and ends with its own exit code."""
    with subprocess.Popen([*CLI, "demo"], stdout=subprocess.PIPE) as demo:
        assert any(b"coffee" in line for line in demo.stdout)  # and then it sleeps
        demo.send_signal(signal.SIGINT)
        demo.communicate()
    assert demo.returncode == 130


# schedule


@pytest.mark.parametrize(
    ("when", "span"),
    [
        ("+0s", timedelta()),
        ("+90s", timedelta(seconds=90)),
        ("+10m", timedelta(minutes=10)),
        ("+2h", timedelta(hours=2)),
        ("+3d", timedelta(days=3)),
    ],
)
def test_a_moment_from_now(cli, file, when, span):
    """WHEN may be a span from now, in seconds to days."""
    before = datetime.now(timezone.utc)
    uri = cli.line("schedule", "s3://events/later", when, "s3://target/k", file)
    after = datetime.now(timezone.utc)
    due, _, _ = names.parse("s3://events/later/", uri)
    assert before + span <= due <= after + span


def test_a_moment_with_a_zone(cli, file):
    """WHEN may be an ISO 8601 time with an offset."""
    arguments = ("schedule", "s3://events/later/", "2030-01-01T01:00+01:00", "s3://target//k", file)
    assert cli.line(*arguments) == f"s3://events/later/{NEW_YEAR}|target|/k"


@pytest.mark.parametrize("when", ["2030-01-01T00:00", "tomorrow", "+3", "+3x", f"+{'9' * 9}d"])
def test_a_bad_moment(cli, file, when):
    """A moment without a zone, or that is none, is refused with advice."""
    code, out, err = cli("schedule", "s3://events/later", when, "s3://target/k", file)
    assert (code, out) == (2, "")
    assert re.search("write it like|such as|choose", err.splitlines()[-1])


def test_no_replace(cli, fake, file, monkeypatch):
    """With --no-replace, an event that is waiting already keeps its content: exit code 1."""
    arguments = ("schedule", "s3://events/later", NEW_YEAR, "s3://target/k")
    uri = cli.line(*arguments, file, "--no-replace")
    refusal = cli.refusal(*arguments, os.devnull, "--no-replace", code=1)
    assert refusal.startswith(f"'later/{NEW_YEAR}|target|k' is already scheduled")
    [obj] = fake.buckets["events"].values()
    assert obj.content == Path(file).read_bytes()
    assert cli.line(*arguments, os.devnull) == uri
    [obj] = fake.buckets["events"].values()
    assert obj.content == b""


def test_no_replace_from_a_pipe(fake, cli):
    """A pipe will do for --no-replace, too."""
    done = subprocess.run(
        [*CLI, "schedule", "s3://events/later", NEW_YEAR, "s3://target/k", "-", "--no-replace"],
        input=b"from a pipe",
        env={**os.environ, "AWS_ENDPOINT_URL_S3": fake.url},
        check=True,
        capture_output=True,
    )
    assert done.stdout.decode() == f"s3://events/later/{NEW_YEAR}|target|k\n"
    [obj] = fake.buckets["events"].values()
    assert obj.content == b"from a pipe"


# list


def test_the_list(cli, fake):
    """One event a line, soonest first, aligned: due, how far off, bytes, target."""
    put(fake, f"{LONG_AGO}|target|old", "2999-01-01T00:00:00.5Z|target|a key", content=b"x" * 1234)
    old, new = cli.lines("list", "s3://events/later")
    assert re.fullmatch(r"2020-01-01T00:00:00Z +\d+ d \d+ h late +1,234 B  s3://target/old", old)
    assert re.fullmatch(r"2999-01-01T00:00:00Z +in \d+ d \d+ h +1,234 B  s3://target/a key", new)
    assert old.index("s3://") == new.index("s3://")


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (timedelta(seconds=0.4), "0 s"),
        (timedelta(seconds=42), "42 s"),
        (timedelta(minutes=17, seconds=29), "17 min"),
        (timedelta(hours=3, minutes=12, seconds=20), "3 h 12 min"),
        (timedelta(days=1), "1 d 0 h"),
        (timedelta(days=12, hours=4, minutes=31), "12 d 4 h"),
    ],
)
def test_spans_in_words(span, words):
    """How far off, in words a person uses."""
    assert cli_module._words(span) == words


def test_the_list_of_a_while(cli, fake):
    """--from and --until choose: from then on, and before then."""
    put(fake, *(f"2030-01-0{day}T00:00:00.000000Z|target|{day}" for day in (1, 2, 3)))
    between = ("--from", "2030-01-02T00:00Z", "--until", "2030-01-03T00:00Z")
    assert cli.line("list", "s3://events/later", *between).endswith("s3://target/2")
    assert len(cli.lines("list", "s3://events/later", "--from", "+0s")) == 3


def test_json(cli, fake):
    """--json gives each event as one JSON object on a line of its own, names exact."""
    name = f"{NEW_YEAR}|target|a\nb%0A|é"
    put(fake, name)
    [obj] = fake.buckets["events"].values()
    assert json.loads(cli.line("list", "s3://events/later", "--json")) == {
        "due": NEW_YEAR,
        "bucket": "target",
        "key": "a\nb%0A|é",
        "name": f"later/{name}",
        "size": 7,
        "etag": obj.etag,
        "uri": f"s3://events/later/{NEW_YEAR}|target|a%0Ab%250A|é",
    }


def test_any_key(cli, fake):
    """URIs take one line each, whatever the keys; `cancel` takes them back."""
    keys = ["a b", "a|b|", "a\nb", "\x1b[2J", "a%0Ab", "100%", "%25", "%41", "\u00fc", " a  b "]
    put(fake, *(f"{NEW_YEAR}|target|{key}" for key in keys))
    lines = cli.lines("list", "s3://events/later", "--uri")
    assert len(lines) == len(keys)
    assert all(line.isprintable() for line in lines)
    cli.lines("cancel", *(line[line.index("s3://") :] for line in lines))
    assert not fake.buckets["events"]


@given(st.text(st.sampled_from("%0A125\n\x7f/|x") | st.characters(codec="utf-8"), min_size=1))
def test_uris_are_taken_back(key):
    """What is printed for an event is one line that reads as this event, and no other."""
    uri = cli_module._uri("bucket", f"later/{NEW_YEAR}|target|{key}")
    assert not re.search("[\x00-\x1f]", uri)
    assert cli_module._plain(uri) == f"s3://bucket/later/{NEW_YEAR}|target|{key}"


def test_no_other_event_is_meant(cli, fake):
    """A folder's URI and a name, and what is escaped in no URI, mean what they say."""
    keys = ["a b", "a%20b", "100%"]
    put(fake, *(f"{NEW_YEAR}|target|{key}" for key in keys))
    fake.put("events", f"l%61ter/{NEW_YEAR}|target|k")
    cli.line("cancel", f"s3://events/later/{NEW_YEAR}|target|a%20b")
    cli.line("cancel", "s3://events/later", f"{NEW_YEAR}|target|100%")
    cli.line("cancel", "s3://events/l%61ter", f"{NEW_YEAR}|target|k")
    assert list(fake.buckets["events"]) == [f"later/{NEW_YEAR}|target|a b"]


def test_head_takes_one_request(fake, cli):
    """`list | head -1` over 5,000 events makes one request, and the closed pipe is silent."""
    fake.fill(waiting=5000)
    script = 'set -o pipefail; "$@" | head -1'
    done = subprocess.run(
        ["/bin/bash", "-c", script, "-", *CLI, "list", "s3://events/later"],
        env={**os.environ, "AWS_ENDPOINT_URL_S3": fake.url},
        capture_output=True,
        check=True,
    )
    assert (done.stdout.count(b"\n"), done.stderr) == (1, b"")
    assert fake.count() == {"ListObjectsV2": 1}


def test_a_closed_output(fake, cli):
    """A command without any output does its work all the same."""
    put(fake, f"{LONG_AGO}|target|k")
    run = ["/bin/sh", "-c", '"$@" >&-', "-", *CLI, "run", "s3://events/later"]
    environment = {**os.environ, "AWS_ENDPOINT_URL_S3": fake.url}
    done = subprocess.run(run, env=environment, stderr=subprocess.PIPE, check=True)
    assert done.stderr == b""
    assert list(fake.buckets["target"]) == ["k"]


def test_a_closed_pipe_is_silent(fake, cli):
    """Nor does another command complain that nobody reads: it ends as the shell's would, 141."""
    put(fake, f"{NEW_YEAR}|target|k")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*CLI, "cancel", "s3://events/later", f"{NEW_YEAR}|target|k"],
        env={**os.environ, "AWS_ENDPOINT_URL_S3": fake.url},
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


# cancel and reschedule


def test_cancel_several(cli, fake):
    """`cancel` takes URIs and names in a folder; exit code 1 if any was no longer waiting."""
    there = [f"{NEW_YEAR}|target|{key}" for key in "abcd"]
    put(fake, *there[:3])
    code, out, err = cli("cancel", "s3://events/later", there[0], f"later/{there[1]}", there[3])
    assert code == 1
    assert out == "".join(f"s3://events/later/{name}\n" for name in there[:2])
    assert err.startswith(f"s3-scheduler: 'later/{there[3]}' is not waiting")
    assert list(fake.buckets["events"]) == [f"later/{there[2]}"]


def test_reschedule_several(cli, fake):
    """`reschedule` prints the new URIs; exit code 1 if any was no longer waiting."""
    put(fake, f"{NEW_YEAR}|target|a", f"{NEW_YEAR}|target|b")
    chosen = (f"{NEW_YEAR}|target|{key}" for key in "xab")
    code, out, err = cli("reschedule", "s3://events/later", *chosen, "2031-01-01T00:00Z")
    assert code == 1
    moved = [f"later/2031-01-01T00:00:00.000000Z|target|{key}" for key in "ab"]
    assert out == "".join(f"s3://events/{name}\n" for name in moved)
    assert err.startswith(f"s3-scheduler: 'later/{NEW_YEAR}|target|x' is not waiting")
    assert list(fake.buckets["events"]) == moved


def test_an_event_whose_target_is_a_folder_of_events(cli, fake):
    """An event's URI is read from its front: its key may look like another event's."""
    name = f"later/{NEW_YEAR}|events|later/{LONG_AGO}|target|k"
    fake.put("events", name, b"")
    assert cli.line("cancel", f"s3://events/{name}") == f"s3://events/{name}"


def test_an_access_point():
    """A folder may be in an access point."""
    arn = "arn:aws:s3:us-east-1:111122223333:accesspoint/mine"
    assert cli_module._split(f"s3://{arn}/later/x") == (arn, "later/x")


@pytest.mark.parametrize(
    "arguments",
    [
        ["cancel", "s3://events/later"],
        ["cancel", f"{NEW_YEAR}|target|k"],
        ["cancel", "s3://events/later", "k"],
        ["cancel", f"s3://events/later/{NEW_YEAR}|target|k", f"s3://target/later/{NEW_YEAR}|t|k"],
        ["cancel", f"s3://events/later/{NEW_YEAR}|target|k", f"s3://events/x/{NEW_YEAR}|target|k"],
        ["cancel", "s3://events"],
        ["reschedule", f"s3://events/later/failed/{LONG_AGO}|target|k", "+1h"],
        ["retry", "later"],
        ["schedule", "s3://events/later", "+0s", "s3://bad bucket/k", "{file}"],
        ["schedule", "s3://events/later", "+0s", "target/k", "{file}"],
        ["schedule", "s3://events/later", "+0s", "s3://target/k", "{file}.none"],
        ["schedule", "s3://events/later", "+0s", "s3://target/\udcff", "{file}"],
        ["run", "s3://events/later", "--shard", "2/2"],
    ],
    ids=" ".join,
)
def test_bad_input(cli, fake, file, arguments):
    """What makes no sense is refused in one line, with exit code 2, and nothing changes."""
    cli.refusal(*(argument.replace("{file}", file) for argument in arguments))
    assert set(fake.count()) <= {"ListObjectsV2"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["cancel"],
        ["reschedule", f"s3://events/later/{LONG_AGO}|target|k"],
        ["run", "s3://events/later", "--shard", "2"],
        ["run", "s3://events/later", "--every", "often"],
        ["run", "s3://events/later", "--every", "0"],
        ["run", "s3://events/later", "--every", "inf"],
        ["run", "s3://events/later", "--time-limit", "nan"],
        ["run", "s3://events/later", "--retry-for", "long"],
        ["run"],
        ["frobnicate"],
        [],
    ],
    ids=" ".join,
)
def test_misuse(cli, fake, arguments):
    """What is no command is refused with its usage, exit code 2, before anything is sent."""
    assert "error: " in cli.misuse(*arguments)
    assert not fake.count()


# retry

FAILED = f"failed/{LONG_AGO}|target|"


def test_retry_all(cli, fake):
    """`retry FOLDER` puts all failed events back, whole."""
    fake.put("events", f"later/{FAILED}a", b"a", content_type="text/plain")
    put(fake, f"{FAILED}b")
    assert cli.lines("retry", "s3://events/later") == [
        f"s3://events/later/{LONG_AGO}|target|{key}" for key in "ab"
    ]
    assert list(fake.buckets["events"]) == [f"later/{LONG_AGO}|target|{key}" for key in "ab"]
    assert fake.buckets["events"][f"later/{LONG_AGO}|target|a"].headers == {
        "content-type": "text/plain"
    }
    assert cli("retry", "s3://events/later") == (0, "", "")


def test_retry_some(cli, fake):
    """By URIs, or by the names that they had; exit code 1 if any is not there."""
    put(fake, *(FAILED + key for key in "abcd"))
    restored = [f"s3://events/later/{LONG_AGO}|target|{key}" for key in "abc"]
    uris = [f"s3://events/later/{FAILED}{key}" for key in "ab"]
    assert cli.lines("retry", *uris) == restored[:2]
    told = [f"later/{LONG_AGO}|target|{key}" for key in "cx"]
    code, out, err = cli("retry", "s3://events/later", *told)
    assert (code, out.splitlines()) == (1, restored[2:])
    assert err.startswith(f"s3-scheduler: 'later/{FAILED}x' is not waiting")
    assert cli.line("list", "s3://events/later/", "--failed").endswith("s3://target/d")


def test_retry_does_not_replace(cli, fake):
    """A failed event that was scheduled again meanwhile stays: the newer content is not lost."""
    put(fake, f"{FAILED}a", content=b"old")
    put(fake, f"{LONG_AGO}|target|a", content=b"new")
    assert "cancel it first" in cli.refusal("retry", "s3://events/later", code=1)
    assert [obj.content for obj in fake.buckets["events"].values()] == [b"new", b"old"]


def test_a_folder_named_failed(cli, fake):
    """A folder that is itself called "failed" has failed events as any other."""
    for folder in ("failed", "jobs/failed"):
        fake.put("events", f"{folder}/{LONG_AGO}|target|waiting", b"")
        fake.put("events", f"{folder}/failed/{LONG_AGO}|target|k", b"")
        uri = f"s3://events/{folder}/{LONG_AGO}|target|k"
        assert cli.lines("retry", f"s3://events/{folder}") == [uri]
        assert cli.lines("list", "--uri", f"s3://events/{folder}")[0].endswith(uri)


# run


def test_a_run(real, folder, target, file, seaweed_client):
    """`run` delivers what is due and says so in a line; if nothing was due, it says nothing."""
    assert real("run", folder) == (0, "", "")
    real.line("schedule", folder, LONG_AGO, f"s3://{target}/k", file)
    line = real.line("run", folder)
    assert re.fullmatch(r"\S+Z  1 delivered, up to \d+ d \d+ h late; 0 failed", line)
    assert keys(seaweed_client, target) == ["k"]
    assert real("run", folder) == (0, "", "")


def test_failures_of_a_run(cli, fake):
    """Each failure is a line with advice on standard error; the exit code is 1."""
    put(fake, f"{LONG_AGO}|target|k", f"{LONG_AGO}|nobody|k", "2020-01-01|not an event")
    code, out, err = cli("run", "s3://events/later", "--retry-for", "9999999d")
    assert code == 1
    assert re.fullmatch(r"\S+Z  1 delivered, up to \d+ d.* late; 1 failed\n", out)
    invalid, failed = sorted(err.splitlines(), key=lambda line: "failed" in line)
    assert "is not the name of an event" in invalid
    assert f"'later/{LONG_AGO}|nobody|k' failed, the next run tries it again" in failed
    assert failed.endswith("create the bucket, or correct its name")


@pytest.mark.parametrize(
    ("option", "moved"),
    [(["--retry-for", "2h"], ["b", "a"]), (["--retry-for", "9999999d"], []), ([], ["b"])],
)
def test_how_long_failures_are_tried(cli, fake, option, moved):
    """--retry-for tells when a failing event is moved to failed/; it is a day if not given."""
    for key, hours in {"a": 23, "b": 25}.items():
        due = datetime.now(timezone.utc) - timedelta(hours=hours)
        put(fake, f"{names.stamp(due)}|nobody|{key}")
    assert cli("run", "s3://events/later", *option)[0] == 1
    failed = [name for name in fake.buckets["events"] if name.startswith("later/failed/")]
    assert [name.rpartition("|")[2] for name in failed] == moved


def test_target_buckets(cli, fake):
    """With --target-bucket, events for other buckets fail."""
    put(fake, f"{LONG_AGO}|target|a", f"{LONG_AGO}|other|b")
    arguments = ("--target-bucket", "target", "--target-bucket", "more")
    code, _, err = cli("run", "s3://events/later", *arguments)
    assert (code, err.count("\n")) == (1, 1)
    assert list(fake.buckets["target"]) == ["a"]


def test_shards(cli, fake):
    """Of the shards 0/2 and 1/2, each delivers its share, and together all."""
    fake.fill(due=20)
    cli.line("run", "s3://events/later", "--shard", "0/2")
    assert 0 < len(fake.buckets["target"]) < 20
    cli.line("run", "s3://events/later", "--shard", "1/2")
    assert len(fake.buckets["target"]) == 20


def test_the_time_limit(cli, fake):
    """After --time-limit nothing new is begun, and the line says that more are due."""
    fake.fill(due=300)
    fake.latency = lambda request: 0.2 * (request.operation == "CopyObject")
    assert cli.line("run", "s3://events/later", "--time-limit", "0.3").endswith("more are due")
    assert len(fake.buckets["target"]) < 300


class Running:
    """`run` in a process of its own, against the fake."""

    def __init__(self, fake, *arguments):
        self.process = subprocess.Popen(
            [*CLI, "run", "s3://events/later", *arguments],
            env={**os.environ, "AWS_ENDPOINT_URL_S3": fake.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def stop(self, signum):
        """Its exit code, and what it still had to say on standard error."""
        self.process.send_signal(signum)
        self.rest, err = self.process.communicate(timeout=30)
        return self.process.returncode, err

    def read(self):
        return self.process.stdout.readline()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_runs_until_a_signal(fake, cli, signum):
    """With --every, it runs again and again; a signal between runs ends it at once, code 0."""
    fake.fill(due=1)
    with Running(fake, "--every", "0.2") as running:
        assert "1 delivered" in running.read()
        put(fake, f"{LONG_AGO}|target|another")
        assert "1 delivered" in running.read()
        code, err = running.stop(signum)
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("signum", "every"), [(signal.SIGTERM, ["--every", "60"]), (signal.SIGINT, [])]
)
def test_a_signal_during_a_run(fake, cli, signum, every):
    """What is in flight arrives and leaves the folder, the rest stays: nothing is half done."""
    fake.fill(due=5000)
    fake.latency = lambda request: 0.2 * (request.operation == "CopyObject")
    with Running(fake, *every) as running:
        wait_for(lambda: fake.buckets["target"])
        running.process.send_signal(signum)  # and once more, as impatient people do
        time.sleep(0.1)
        code, err = running.stop(signum)
    assert (code, err) == (0, "")
    arrived = {name.split("|")[2] for name in fake.buckets["events"]}
    assert 0 < len(fake.buckets["target"]) < 5000
    assert f"  {len(fake.buckets['target'])} delivered, " in running.rest
    assert arrived == {str(i) for i in range(5000)} - {*fake.buckets["target"]}


def test_a_signal_that_another_thread_takes(cli, fake):
    """Whichever thread the system interrupts, the run ends early."""
    fake.fill(due=5000)
    fake.latency = lambda request: 0.2 * (request.operation == "CopyObject")
    in_time = iter([lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)])
    fake.before = lambda request: next(in_time, str)() if fake.buckets["target"] else None
    assert cli("run", "s3://events/later")[0] == 0
    assert 0 < len(fake.buckets["target"]) < 5000


def test_a_signal_that_python_drops(cli, monkeypatch):
    """When a signal falls into a finalizer, whose exceptions are dropped, the loop ends as well."""

    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(cli_module, "run_due", lambda *_, **__: Finalized() and None)
    assert cli("run", "s3://events/later", "--every", "3600") == (0, "", "")


def test_a_signal_during_a_run_with_failures(fake, cli):
    """The exit code of an interrupted run, too, tells of its failures, and it names them."""
    fake.fill(due=5000)
    put(fake, f"{LONG_AGO}|nobody|k")
    fake.latency = lambda request: 0.2 * (request.operation == "CopyObject")
    with Running(fake, "--retry-for", "9999999d") as running:
        wait_for(lambda: len(fake.buckets["target"]) > 20)
        code, err = running.stop(signal.SIGTERM)
    assert code == 1
    assert "|nobody|k' failed" in err


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_outage_passes(fake, cli):
    """With --every, an outage takes one line a run, and the loop goes on."""
    outage = Error(403, "RequestTimeTooSkewed")
    fake.fill(due=1)
    fake.fault = on("ListObjectsV2", outage, outage)
    with Running(fake, "--every", "0.1") as running:
        assert "1 delivered" in running.read()
        code, err = running.stop(signal.SIGTERM)
    assert code == 0
    assert err.count("(RequestTimeTooSkewed)") == 2
    assert err.count("trying again in 0.1 s\n") == 2
    assert err.count("\n") == 2


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
        assert "1 delivered" in running.read()
        assert running.stop(signal.SIGTERM)[0] == 0


def test_an_outage_at_the_end(fake, cli):
    """If the last run of a loop met an outage, the exit code is 1."""
    fake.fault = lambda request: Error(403, "RequestTimeTooSkewed")
    with Running(fake, "--every", "60") as running:
        assert "RequestTimeTooSkewed" in running.process.stderr.readline()
        assert running.stop(signal.SIGTERM)[0] == 1


def test_nobody_reads_the_lines_of_a_loop(fake, cli):
    """When its output is closed, a loop ends in silence."""
    fake.fill(due=1)
    with Running(fake, "--every", "0.1") as running:
        assert "1 delivered" in running.read()
        running.process.stdout.close()
        running.process.stdout = None
        put(fake, f"{LONG_AGO}|target|another")
        _, err = running.process.communicate(timeout=30)
    assert (running.process.returncode, err) == (141, "")


def test_nobody_reads_the_complaints_of_a_loop(fake, cli):
    """When its standard error is closed, a loop goes on."""
    put(fake, f"{LONG_AGO}|nobody|k")
    with Running(fake, "--every", "0.1", "--retry-for", "9999999d") as running:
        running.process.stderr.close()
        running.process.stderr = None
        assert "0 delivered; 1 failed" in running.read()
        put(fake, f"{LONG_AGO}|target|k")
        while "1 delivered" not in running.read():
            assert running.process.poll() is None


# What goes wrong

IN_BUCKET = [
    ["schedule", "s3://{}/later", "+0s", "s3://target/k", os.devnull],
    ["list", "s3://{}/later"],
    ["cancel", "s3://{}/later", f"{NEW_YEAR}|target|k"],
    ["reschedule", "s3://{}/later", f"{NEW_YEAR}|target|k", "+1h"],
    ["retry", "s3://{}/later"],
    ["retry", "s3://{}/later", f"{NEW_YEAR}|target|k"],
    ["run", "s3://{}/later"],
]


@pytest.mark.parametrize("arguments", IN_BUCKET, ids=" ".join)
def test_a_missing_bucket(real, arguments):
    """No command takes a missing bucket for an empty one: one line, exit code 2."""
    refusal = real.refusal(*(argument.replace("{}", "there-is-none") for argument in arguments))
    assert refusal.endswith("create the bucket, or correct its name")


def test_a_refused_permission(cli, fake, file):
    """A refused permission is one line, exit code 2."""
    fake.fault = lambda request: Error(403, "AccessDenied")
    for arguments in (
        ("schedule", "s3://events/later", "+0s", "s3://target/k", file),
        ("cancel", f"s3://events/later/{NEW_YEAR}|target|k"),
        ("run", "s3://events/later"),
    ):
        assert cli.refusal(*arguments).endswith("to these credentials, or use others")


def test_an_unreachable_endpoint(capsys):
    """An endpoint that does not answer is one line, exit code 2."""
    refusal = Cli(capsys, "http://127.0.0.1:9").refusal("run", "s3://events/later")
    assert refusal.endswith("check the network and --endpoint-url")


def test_missing_credentials(cli, monkeypatch):
    """Missing credentials are one line, exit code 2."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert cli.refusal("run", "s3://events/later").endswith("choose some with --profile")


def test_wrong_credentials(real, folder, monkeypatch):
    """Credentials that the server does not know are one line, exit code 2."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "(SignatureDoesNotMatch)" in real.refusal("list", folder)


def test_debug(cli):
    """--debug shows the traceback, too."""
    code, _, err = cli("list", "s3://nobody/later", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].endswith("create the bucket, or correct its name")


def test_a_failure_in_the_middle_of_retry(cli, fake):
    """`retry` stops at an answer that is not about the one event: exit code 2."""
    put(fake, f"{FAILED}a", f"{FAILED}b")
    fake.fault = on("CopyObject", Error(403, "AccessDenied"))
    cli.refusal("retry", "s3://events/later")


def test_an_error_nobody_thought_of(capsys):
    """What is none of S3's errors, nor ours, is one line too."""
    refusal = Cli(capsys, "nonsense").refusal("list", "s3://events/later")
    assert refusal.startswith("Invalid endpoint: nonsense")


def test_ctrl_c(cli, fake):
    """Ctrl-C in another command is no traceback either: exit code 130."""
    fake.latency = 30
    process = subprocess.Popen(
        [*CLI, "list", "s3://events/later"],
        env={**os.environ, "AWS_ENDPOINT_URL_S3": fake.url},
        stderr=subprocess.PIPE,
    )
    wait_for(fake.count)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")


# Settings and help


def test_settings_stand_anywhere(cli, capsys, fake, tmp_path, monkeypatch):
    """--profile, --region and --endpoint-url may stand before the command or behind it."""
    config = tmp_path / "config"
    secrets = "aws_access_key_id = one\naws_secret_access_key = secret\n"
    config.write_text(f"[profile one]\nendpoint_url = {fake.url}\n{secrets}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for arguments in (
        ["--profile", "one", "list", "s3://events/later", "--region", "eu-west-1"],
        ["--region", "eu-west-1", "list", "s3://events/later", "--profile", "one"],
        ["--endpoint-url", fake.url, "list", "s3://events/later", "--region", "eu-west-1"],
    ):
        assert main(arguments) == 0
        assert "/eu-west-1/s3/" in fake.log[-1].headers["authorization"]
    assert main(["--profile", "two", "list", "s3://events/later"]) == 2
    assert "The config profile (two) could not be found" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["schedule", "list", "cancel", "reschedule", "retry", "run"])
def test_help(cli, name):
    """Each command's --help explains it, with an example that can be copied."""
    code, out, _ = cli(name, "--help")
    assert code == 0
    *_, last = out.splitlines()
    assert last.startswith(f"example: s3-scheduler {name} ")


@pytest.mark.slow
def test_readme_session(seaweed, seaweed_client, bucket, target, tmp_path):
    """The session in the README happens as it is shown there, but for its times."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = re.search(
        r"^## Command line\n.*?```console\n(.*?)^```", readme, re.MULTILINE | re.DOTALL
    )
    if not section:
        pytest.skip("the README has no such section yet")
    session = section[1]
    audit = emptied(seaweed_client, "audit")
    for name, own in (("my-bucket", bucket), ("shop", target), ("audit", audit)):
        session = re.sub(rf"\b{name}\b", own, session)
    for exchange in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, _, shown = exchange.partition("\n")
        script = f's3-scheduler() {{ {sys.executable} -m s3_scheduler "$@"; }}; {command}'
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        bash = ["/bin/bash", "-c", script]
        done = subprocess.run(bash, env=environment(seaweed), cwd=tmp_path, check=False, **pipes)
        assert timeless(done.stdout) == timeless(shown)


def timeless(text):
    text = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", text)
    return re.sub(r"( +in)? +\d+ (d|h|min|s)\b( \d+ (h|min)\b)?( late)?", " SPAN", text)
