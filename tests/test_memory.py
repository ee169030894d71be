"""How much memory a run takes, in a process of its own.

Its client is boto3's, but answers come from a function instead of a connection: with 50,000
requests that saves minutes, and no server's memory is in the way.
"""

import itertools
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

MB = 1024**2
STATUS = Path("/proc/self/status")

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells")

RUNS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_memory
test_memory.runs(int(sys.argv[1]), sys.argv[2])
"""


def answers(due, waiting, status):
    """S3's answers: pages of a folder, and the same status to every copy to a target."""
    from urllib.parse import parse_qs, urlsplit  # noqa: PLC0415

    def name(i):
        return (
            f"later/{'2001' if i < due else '2999'}-01-01T00:00:00.{i:06}Z|bucket|{i}{'key' * 50}"
        )

    gone = bytearray(due)

    def page(query):
        after, limit = query["start-after"][0], int(query["max-keys"][0])
        first = int(after.partition(".")[2][:6]) if "." in after else 0
        first += name(first) <= after
        there = (i for i in range(first, due + waiting) if i >= due or not gone[i])
        entries = "".join(
            f"<Contents><Key>{name(i)}</Key><Size>1</Size><ETag>&quot;{i:032}&quot;</ETag>"
            "</Contents>"
            for i in itertools.islice(there, limit)
        )
        more = next(there, None) is not None
        token = "<NextContinuationToken>token</NextContinuationToken>" if more else ""
        truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        return f"<ListBucketResult>{truncated}{token}{entries}</ListBucketResult>"

    def delete(name):
        gone[int(name.partition(".")[2][:6])] = 1

    def answer(request):
        url = urlsplit(request.url)
        if request.method == "GET":
            return 200, page(parse_qs(url.query))
        if request.method == "POST":
            keys = re.findall("<Key>(.*?)</Key>", request.body.decode())
            list(map(delete, keys))
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return 200, f"<DeleteResult>{deleted}</DeleteResult>"
        if request.method == "DELETE":
            delete(url.path)
            return 204, ""
        source = request.headers.get("x-amz-copy-source", url.path.encode()).decode()
        if "later/2" in source and gone[int(source.partition(".")[2][:6])]:
            return 404, "<Error><Code>NoSuchKey</Code></Error>" if request.method == "PUT" else ""
        if status == 200 or url.netloc.startswith("events."):
            return 200, "<CopyObjectResult><ETag>e</ETag></CopyObjectResult>"
        return status, f"<Error><Code>Nope</Code><Message>{'No. ' * 100}</Message></Error>"

    return answer


class Server:
    """What answers now."""

    answer: Any


def client(s3):
    """A client whose requests never leave the process: `s3.answer` answers them."""
    import io  # noqa: PLC0415

    import boto3  # noqa: PLC0415
    from botocore.awsrequest import AWSResponse  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    class Raw(io.BytesIO):
        def stream(self, **_):
            yield self.read()

    headers: Any = {}

    def send(request, **_):
        status, body = s3.answer(request)
        return AWSResponse(request.url, status, headers, Raw(body.encode()))

    config = Config(max_pool_connections=8, retries={"total_max_attempts": 1})
    client = boto3.Session("fake", "fake", region_name="us-east-1").client("s3", config=config)
    client.meta.events.register("before-send.s3", send)
    return client


def runs(due, kind):
    """Print by how many bytes the peak of a run exceeds that of one with a page of events."""
    import logging  # noqa: PLC0415

    from s3_scheduler import Scheduler, run_due  # noqa: PLC0415

    logging.disable()
    status = {"copied": 200, "waiting": 200, "failed": 403}[kind]
    s3 = Server()
    scheduler = Scheduler("events", "later", client=client(s3))
    peaks = []
    for count in (1_500, due):
        events, waiting = (1_500, count) if kind == "waiting" else (count, 0)
        s3.answer = answers(events, waiting, status)
        report = run_due(scheduler, retry_for=0)
        assert (report.copied if status == 200 else report.failed) == events
        assert not report.unfinished
        peaks.append(peak())
    print(peaks[1] - peaks[0])  # noqa: T201


def peak():
    # Not getrusage's, which starts from that of the process that started this one.
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def growth(due, kind):
    command = [sys.executable, "-c", RUNS, str(due), kind]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


@pytest.mark.slow
def test_waiting():
    """The memory of a run does not grow with the events that wait."""
    assert growth(1_000_000, "waiting") < 4 * MB


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("due", "kinds"), [(50_000, ("copied", "failed"))])
def test_due(due, kinds):
    """Nor by 30 MB with 50,000 that are due, be they delivered or do they all fail."""
    with ThreadPoolExecutor() as pool:
        growths = pool.map(growth, [due] * len(kinds), kinds)
        assert max(growths) < 30 * MB
