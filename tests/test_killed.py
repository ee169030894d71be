"""A runner in a process of its own, killed at random moments while it works off a backlog."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.folder import NOW, WIDTH, lost, opened, out_of_order, repeats, unconfirmed

RUNNER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from support import fakes3
from s3_scheduler import Scheduler, run_due
from datetime import datetime
url, now = sys.argv[1:]
client = fakes3.client(url, max_pool_connections={WIDTH})
run_due(Scheduler("events", "later", client), now=datetime.fromisoformat(now))
"""


@pytest.fixture
def folder(fake):
    with opened(fake) as folder:
        yield folder


def start(folder):
    command = [sys.executable, "-c", RUNNER, folder.s3.url, NOW.isoformat()]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed_after(folder, copies):
    """Let a runner work until so many of its copies have been made, or it is done; kill it."""
    enough = len(folder.s3.history) + copies
    with start(folder) as process:

        def kill(request):
            if len(folder.s3.history) >= enough:
                process.kill()

        folder.s3.after = kill
        process.wait()
    folder.s3.after = lambda request: None
    while True:  # what it had sent may still act
        before = len(folder.s3.log)
        time.sleep(0.02)
        if len(folder.s3.log) == before:
            return process.returncode


def between(folder):
    """Events that are delivered and still in the folder."""
    return set(folder.waiting) & set(folder.delivered)


def check(folder, contents):
    """Every event arrived with its content, at no instant was one lost, and all are in order."""
    assert folder.waiting == []
    assert {(name, content) for name, _, content in folder.deliveries} == set(contents.items())
    assert lost(folder.s3.history) == []
    assert out_of_order(folder.s3.history) == []
    on_top = {name.split("|")[2]: contents[name] for name in sorted(contents)}
    assert folder.arrived == on_top


@pytest.mark.slow
def test_killed(folder):
    """However often a runner is killed, every event arrives whole, and few are repeated.

    It is killed until 20 times something was between its copy and its delete.
    """
    rng = random.Random(0)
    kills, contents = 0, {}
    while kills < 20:
        while len(folder.waiting) < 2_000:
            key, content = f"k{rng.randrange(2_000)}", b"%d" % len(contents)
            contents[folder.put(10**6 - len(contents), key, content)] = content
        first = len(folder.s3.history)
        killed_after(folder, rng.randrange(1, 400))
        kills += bool(between(folder))
        assert unconfirmed(folder.s3.history[first:]) <= 100 + WIDTH
        assert lost(folder.s3.history) == []
    folder.run()
    check(folder, contents)
    assert 0 < repeats(folder.s3.history) <= kills * (100 + WIDTH)


def test_killed_once(folder):
    """What a killed runner has copied and not deleted, the next delivers again."""
    contents = {folder.put(400 - i, f"k{i}", b"%d" % i): b"%d" % i for i in range(400)}
    assert killed_after(folder, 250) < 0
    again = between(folder)
    assert 0 < len(again) <= 100 + WIDTH
    left = len(folder.waiting)
    assert folder.run().copied == left
    check(folder, contents)
    assert repeats(folder.s3.history) == len(again)
