"""The requests that a run makes, and that the benchmarks work; times are theirs to tell."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from s3_scheduler import Scheduler, run_due
from support.fakes3 import Rate, spawn

BENCHMARKS = Path(__file__).with_name("benchmarks")


@pytest.mark.slow
def test_a_run_makes_at_most_1_03_requests_an_event_whatever_waits():
    """A busy run costs its copies, few deletes and few pages; an idle one costs one request."""
    with (
        spawn(due=1_000, waiting=100_000) as s3,
        closing(s3.client(max_pool_connections=16)) as client,
    ):
        scheduler = Scheduler("events", "later", client=client)
        assert run_due(scheduler).copied == 1_000
        busy = s3.count()
        assert busy["CopyObject"] == 1_000
        assert busy.total() <= 1.03 * 1_000
        assert run_due(scheduler).copied == 0
        assert s3.count() - busy == {"ListObjectsV2": 1}
        assert s3.sizes() == {"events": 100_000, "target": 1_000}


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 16])
def test_each_folder_delivers_what_its_partition_of_keys_allows(fake, count):
    """S3 limits the writes to a partition of keys: 16 folders deliver 16 times what one does."""
    folders = [f"later/{i}" for i in range(count)]
    for folder in folders:
        fake.fill(due=40, folder=folder, key=f"{folder}/{{i}}")
    # A second that does not end, in which S3 allows so many writes.
    fake.limit = Rate(writes=20, per="folder", clock=lambda: 0)
    client = fake.client(max_pool_connections=16)

    def run(folder):
        return run_due(Scheduler("events", folder, client=client))

    with ThreadPoolExecutor(count) as pool:
        reports = list(pool.map(run, folders))
    assert sum(report.copied for report in reports) == 40 * count
    assert fake.sizes() == {"events": 20 * count, "target": 40 * count}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_benchmarks_run():
    """`python tests/benchmarks --quick` tells how every contender did."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS, "--quick"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    parts = ("run_due", "(a)", "(b)", "(d)", "width 64", "4 shards", "Idle run: 1.000", "ahead=5")
    for label in (*parts, "hangs ", "16 folders ", "put_object takes"):
        assert f"\n{label}" in done.stdout
    assert "only" not in done.stdout  # beside a sick bucket all of a healthy one's are delivered
