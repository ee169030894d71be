"""A runner in a process of its own, killed at random moments while it works off a backlog."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.folder import NOW, WIDTH, lost, opened, out_of_order, repeats, unconfirmed
from support.once import either, needs_once

RUNNER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from datetime import datetime
from s3_scheduler import Scheduler, run_due
from support import fakes3
url, now, once = sys.argv[1:]
client = fakes3.client(url, max_pool_connections={WIDTH})
scheduler = Scheduler("events", "later", client=client)
run_due(scheduler, now=datetime.fromisoformat(now), once=once == "True")
"""


@pytest.fixture
def folder(fake):
    with opened(fake) as folder:
        yield folder


def start(folder, once):
    command = [sys.executable, "-c", RUNNER, folder.s3.url, NOW.isoformat(), str(once)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed_after(folder, changes, *, once, runners=1):
    """Let runners work until so many changes have been made, or they are done; kill them."""
    enough = len(folder.s3.history) + changes
    processes = [start(folder, once) for _ in range(runners)]

    def kill(request):
        if len(folder.s3.history) >= enough:
            for process in processes:
                process.kill()

    folder.s3.after = kill
    codes = [process.wait() for process in processes]
    folder.s3.after = lambda request: None
    while True:  # what they had sent may still act
        before = len(folder.s3.log)
        time.sleep(0.02)
        if len(folder.s3.log) == before:
            return codes


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
@pytest.mark.timeout(600)
def test_killed_often(folder):
    """However often a runner is killed, every event arrives whole, and few are repeated.

    It is killed until 10 times something was between its copy and its delete.
    """
    rng = random.Random(0)
    kills, contents = 0, {}
    while kills < 10:
        while len(folder.waiting) < 2_000:
            key, content = f"k{rng.randrange(2_000)}", b"%d" % len(contents)
            contents[folder.put(10**6 - len(contents), key, content)] = content
        first = len(folder.s3.history)
        killed_after(folder, rng.randrange(1, 400), once=False)
        kills += bool(between(folder))
        assert unconfirmed(folder.s3.history[first:]) <= 100 + WIDTH
        assert lost(folder.s3.history) == []
    folder.run()
    check(folder, contents)
    assert 0 < repeats(folder.s3.history) <= kills * (100 + WIDTH)


@needs_once
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("runners", [1, 3])
def test_killed_often_with_once(folder, runners):
    """With `once` none is repeated, however often one is killed, or three that overlap."""
    rng = random.Random(0)
    kills, contents = 0, {}
    while kills < 10:
        while len(folder.waiting) < 2_000:
            number = len(contents)
            contents[folder.put(10**6 - number, f"k{number}", b"%d" % number)] = b"%d" % number
        killed_after(folder, rng.randrange(1, 400), once=True, runners=runners)
        kills += bool(between(folder))
        assert lost(folder.s3.history) == []
        assert repeats(folder.s3.history) == 0
    again = len(between(folder))
    report = folder.run(once=True)
    assert (report.delivered_before, report.failed) == (again, 0)
    check(folder, contents)
    assert repeats(folder.s3.history) == 0


@either
@pytest.mark.slow
def test_killed(folder, once):
    """What a killed runner has copied and not deleted, the next delivers again; not with `once`."""
    contents = {folder.put(400 - i, f"k{i}", b"%d" % i): b"%d" % i for i in range(400)}
    (code,) = killed_after(folder, 250, once=once)
    assert code < 0
    again = between(folder)
    assert 0 < len(again) <= 100 + WIDTH
    left = len(folder.waiting)
    report = folder.run(once=once)
    assert report.copied + report.delivered_before == left
    assert report.delivered_before == (len(again) if once else 0)
    check(folder, contents)
    assert repeats(folder.s3.history) == (0 if once else len(again))
