"""A run in a storm, beside other runs, and among slow answers."""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from s3_scheduler import Scheduler, run_due
from support.fakes3 import Error, Reset
from support.folder import NOW, WIDTH, lost, opened, out_of_order, repeats
from support.once import either, needs_once

STORM = [Error(503, "SlowDown"), Error(500, "InternalError"), Reset(), Reset(after=True)]
SIZES = pytest.mark.parametrize("size", [120, pytest.param(1_000, marks=pytest.mark.slow)])


@pytest.fixture
def folder(fake):
    with opened(fake) as folder:
        yield folder


def fill(folder, events, targets):
    """Put events that are long due; what is to be on top of each target, at last."""
    on_top = {}
    for i in range(events):
        key = f"k{i * 7 % targets}"
        on_top[key] = b"%d" % i
        folder.put(10**6 - i, key, on_top[key])
    return on_top


def weather(*faults, share, seed=0):
    """Let each request meet each of the faults with a probability of `share`."""
    rng = random.Random(seed)

    def fault(request):
        number = int(rng.random() / share)
        return faults[number] if number < len(faults) else None

    return fault


def run_until_done(folder, runs, **options):
    """Repeat runs, of which some cannot list the folder; what they reported."""
    reports = []
    for _ in range(runs):
        if not folder.waiting:
            break
        with suppress(ClientError, BotoCoreError):
            reports.append(folder.run(**options))
    return reports


@either
@SIZES
@pytest.mark.slow
def test_storm(folder, size, once):
    """With 32 % of all requests failing, runs deliver all, lose nothing, quarantine nothing."""
    on_top = fill(folder, size, size if once else size * 2 // 3)
    folder.s3.fault = weather(*STORM, share=0.08)
    reports = run_until_done(folder, 200, once=once)
    assert folder.waiting == []
    assert folder.arrived == on_top
    assert lost(folder.s3.history) == []
    assert out_of_order(folder.s3.history) == []
    assert len(set(folder.deliveries)) == size
    most = 0 if once else (100 + WIDTH) * folder.s3.count()["ListObjectsV2"]
    assert repeats(folder.s3.history) <= most
    assert sum(report.failed for report in reports) > size / 20
    assert not any(failure.quarantined for report in reports for failure in report.failures)


@either
@pytest.mark.slow
def test_storm_with_retries(fake, once):
    """So it is when boto3 tries each request three times."""
    with opened(fake, retries={"mode": "standard", "total_max_attempts": 3}) as folder:
        on_top = fill(folder, 60, 60 if once else 40)
        folder.s3.fault = weather(*STORM, share=0.08)
        reports = run_until_done(folder, 50, once=once)
        assert folder.waiting == []
        assert folder.arrived == on_top
        assert lost(folder.s3.history) == []
        assert len(set(folder.deliveries)) == 60
        assert not once or repeats(folder.s3.history) == 0
        assert not any(failure.quarantined for report in reports for failure in report.failures)


@SIZES
@pytest.mark.slow
def test_overlap(folder, size):
    """Three runs at once over one backlog deliver every event, and nothing fails."""
    fill(folder, size, size * 4 // 5)
    rng = random.Random(0)
    folder.s3.latency = lambda request: rng.random() / 50
    clients = [folder.s3.client(max_pool_connections=WIDTH) for _ in range(3)]
    for _ in range(10):
        with ThreadPoolExecutor(3) as pool:
            runs = [
                pool.submit(run_due, Scheduler("events", "later", client=client), now=NOW)
                for client in clients
            ]
        assert [run.result().failed for run in runs] == [0, 0, 0]
        if not folder.waiting:
            break
    assert folder.waiting == []
    assert len(set(folder.deliveries)) == size
    assert lost(folder.s3.history) == []


@needs_once
@SIZES
@pytest.mark.slow
def test_overlap_in_a_storm(folder, size):
    """With `once` they repeat nothing, even with 32 % of all requests failing."""
    on_top = fill(folder, size, size)
    folder.s3.fault = weather(*STORM, share=0.08)
    rng = random.Random(0)
    folder.s3.latency = lambda request: rng.random() / 50
    with ThreadPoolExecutor(3) as pool:
        runners = [pool.submit(run_until_done, folder, 200, once=True) for _ in range(3)]
    reports = [report for runner in runners for report in runner.result()]
    assert folder.waiting == []
    assert folder.arrived == on_top
    assert len(folder.deliveries) == size
    assert repeats(folder.s3.history) == 0
    assert lost(folder.s3.history) == []
    assert not any(failure.quarantined for report in reports for failure in report.failures)


@either
@SIZES
@pytest.mark.slow
def test_throttled(folder, size, once):
    """Amid random latency and 5 % of throttling, all arrive in order; no failure, no repeat."""
    on_top = fill(folder, size, size if once else 6)
    rng = random.Random(0)
    folder.s3.latency = lambda request: rng.random() / 100
    folder.s3.fault = weather(Error(503, "SlowDown"), share=0.05)
    reports = run_until_done(folder, 300, once=once)
    assert folder.waiting == []
    assert out_of_order(folder.s3.history) == []
    assert folder.arrived == on_top
    assert len(set(folder.deliveries)) == size
    assert repeats(folder.s3.history) == 0
    assert sum(report.failed for report in reports) == 0
    assert 503 in {copy.status for copy in folder.requests("CopyObject")}


@pytest.mark.parametrize("shard", [(-1, 2), (2, 2), (0, 0)])
def test_missing_shard(folder, shard):
    """A shard that does not exist is refused."""
    with pytest.raises(ValueError, match="does not exist"):
        folder.run(shard=shard)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.slow
def test_shards(folder, count):
    """Shards at work at once share the targets: each event is delivered once, and in order."""
    on_top = fill(folder, 200, 40)
    with ThreadPoolExecutor(count) as pool:
        runs = [pool.submit(folder.run, shard=(i, count)) for i in range(count)]
    assert sum(run.result().copied for run in runs) == 200
    assert folder.arrived == on_top
    assert repeats(folder.s3.history) == 0
    assert out_of_order(folder.s3.history) == []
