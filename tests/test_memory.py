"""How much memory a run takes, in a process of its own.

Its client is boto3's, but answers come from a function instead of a connection: with 50,000
requests that saves minutes, and no server's memory is in the way.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

MB = 1024**2
STATUS = Path("/proc/self/status")

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells")

RUNS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_memory, sabotage
sabotage.from_environment()
test_memory.runs(int(sys.argv[1]), sys.argv[2])
"""


def answers(due, waiting, status):
    """S3's answers: pages of a folder, and the same status to every copy."""
    from urllib.parse import parse_qs, urlsplit  # noqa: PLC0415

    def page(query):
        first = int(query.get("continuation-token", ["0"])[0])
        count = min(1_000, due + waiting - first)
        entries = "".join(
            f"<Contents><Key>later/{'2001' if i < due else '2999'}-01-01T00:00:00.{i:06}Z"
            f"%7Cbucket%7C{'key' * 50}/{i}</Key><Size>1</Size><ETag>&quot;{i:032}&quot;</ETag>"
            "</Contents>"
            for i in range(first, first + count)
        )
        more = first + count < due + waiting
        token = f"<NextContinuationToken>{first + count}</NextContinuationToken>" if more else ""
        return (
            "<ListBucketResult><EncodingType>url</EncodingType>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        )

    def answer(request):
        url = urlsplit(request.url)
        if request.method == "GET":
            return 200, page(parse_qs(url.query))
        if request.method == "POST":
            return 200, "<DeleteResult/>"
        if status == 200:
            return 200, "<CopyObjectResult><ETag>e</ETag></CopyObjectResult>"
        return status, f"<Error><Code>Nope</Code><Message>{'No. ' * 100}</Message></Error>"

    return answer


def client(s3):
    """A client whose requests never leave the process: `s3["answer"]` answers them."""
    import io  # noqa: PLC0415

    import boto3  # noqa: PLC0415
    from botocore.awsrequest import AWSResponse  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    class Raw(io.BytesIO):
        def stream(self, **_):
            yield self.read()

    def send(request, **_):
        status, body = s3["answer"](request)
        return AWSResponse(request.url, status, {}, Raw(body.encode()))

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
    s3 = {}
    scheduler = Scheduler("events", "later", client(s3))
    peaks = []
    for count in (1_500, due):
        sizes = (1_500, count) if kind == "waiting" else (count, 0)
        s3["answer"] = answers(*sizes, status)
        report = run_due(scheduler, retry_for=None)
        done = report.copied if status == 200 else report.failed_count
        # A target may be taken for another that failed: then it is the next run's.
        assert 0.9 * sizes[0] < done <= sizes[0]
        peaks.append(peak())
    print(peaks[1] - peaks[0])  # noqa: T201


def peak():
    # Not getrusage's, which starts from that of the process that started this one.
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def growth(due, kind):
    command = [sys.executable, "-c", RUNS, str(due), kind]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


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
