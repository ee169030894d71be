"""`python -m s3_scheduler demo`, run as a person runs it."""

import os
import re
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import s3_scheduler

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


def start(env, *argv):
    return subprocess.Popen(
        argv or [sys.executable, "-m", "s3_scheduler", "demo"],
        env=env,
        cwd=Path(env["TMPDIR"]).parent,  # not the checkout: the installed package is tested
        stdin=subprocess.PIPE,
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
    assert files_in(env) == []


def test_a_second_terminal_can_look(env):
    """The lines that the demo prints for a second terminal work there as they are."""
    waiting = "import sys, time; time.sleep = lambda seconds: sys.stdin.readline()"
    running = "from s3_scheduler.__main__ import main; main(['demo'])"
    demo = start(env, sys.executable, "-c", f"{waiting}; {running}")
    try:
        demo.stdin.write("hints\n1. SCHEDULE\n2. LOOK\n")
        demo.stdin.flush()
        shown = read_until(demo, f"|inbox|{EVENTS[-1]}\n")
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


@pytest.mark.parametrize("moment", ["answers", "SCHEDULE", "RUN"])
def test_an_interrupted_demo_ends_in_silence(env, moment):
    """Ctrl-C ends it soon, with status 130; no file stays."""
    demo = start(env)
    read_until(demo, moment)
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate()
    assert (demo.returncode, errors) == (130, "")
    assert files_in(env) == []


@pytest.fixture
def python_without_demo(tmp_path):
    """A Python that has all of this one's packages but moto."""
    venv.create(tmp_path / "venv")
    [there] = tmp_path.glob("venv/lib/python*/site-packages")
    here = Path(sysconfig.get_path("purelib"))
    packages = [path for path in here.iterdir() if path.name != "moto"]
    for path in {path.name: path for path in [*packages, Path(s3_scheduler.__path__[0])]}.values():
        (there / path.name).symlink_to(path)
    return tmp_path / "venv" / "bin" / "python"


def test_a_missing_extra_takes_one_line(env, python_without_demo):
    """Without moto the demo says what to install, and nothing else."""
    demo = start(env, python_without_demo, "-m", "s3_scheduler", "demo")
    advice = "No module named 'moto'; pip install 'moto[s3]' flask flask-cors"
    assert demo.communicate() == ("", f"s3-scheduler: {advice}\n")
    assert demo.returncode == 2
