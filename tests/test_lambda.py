"""The recipes' runner, as Lambda, cron, systemd and Kubernetes run it.

Lambda's front end is AWS's own Runtime Interface Emulator; its Python runtime is AWS's own
`awslambdaric`; S3 is SeaweedFS. The emulator is in the package aws-sam-cli:
https://docs.aws.amazon.com/lambda/latest/dg/images-test.html
"""

import configparser
import importlib.metadata
import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml

from s3_scheduler import Scheduler
from support.buckets import emptied

pytestmark = pytest.mark.recipes

RECIPES = Path(__file__).parent / "recipes"
NAMES = {"FOLDER_BUCKET": "my-bucket", "FOLDER": "later", "TARGET_BUCKET": "shop-emails"}
RUNNER = (RECIPES / "sam" / "runner" / "app.py").read_text(encoding="utf-8")
# A run without a time limit, as on the first screen of the README. S3 stops answering it.
HANGING = """
import itertools, time
import boto3
from s3_scheduler import Scheduler, run_due

client = boto3.client("s3")
copies = itertools.count()

def hang(**_):
    if next(copies) >= 20:
        time.sleep(1000)

client.meta.events.register("before-call.s3.CopyObject", hang)
scheduler = Scheduler("my-bucket", "later", client=client)

def handler(event, context):
    run_due(scheduler).raise_for_failures()
"""


@pytest.fixture
def s3(seaweed_client: Any) -> Any:
    """Yield a client of a SeaweedFS with the recipes' buckets, empty."""
    for bucket in ("my-bucket", "shop-emails"):
        emptied(seaweed_client, bucket)
    return seaweed_client


@pytest.fixture
def environ(seaweed: Any) -> dict[str, str]:
    """Where S3 is, and nothing else."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL_S3": seaweed.url,
        "AWS_ACCESS_KEY_ID": seaweed.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweed.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def emulator() -> Any:
    arch = {"x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine()]
    [file] = [
        file
        for file in importlib.metadata.files("aws-sam-cli") or ()
        if file.name == f"aws-lambda-rie-{arch}"
    ]
    return file.locate()


def free_ports(count: int) -> list[int]:
    """Find ports below those that outgoing connections take."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(22_000, 32_000)
        with socket.socket() as taken:
            if taken.connect_ex(("127.0.0.1", port)) != 0:
                found.add(port)
    return list(found)


class Function:
    """A Lambda function: its code, its timeout in seconds, and what it has logged."""

    def __init__(self, directory: Path, code: str, timeout: int, environ: dict[str, str]) -> None:
        (directory / "app.py").write_text(code)
        rie = directory / "rie"
        shutil.copy(emulator(), rie)
        rie.chmod(0o755)
        port, api_port = free_ports(2)
        self.url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"
        self.log_file = directory / "log"
        # Without both addresses it listens on all interfaces.
        command = [
            *(str(rie), "--runtime-interface-emulator-address", f"127.0.0.1:{port}"),
            *("--runtime-api-address", f"127.0.0.1:{api_port}"),
            *(sys.executable, "-m", "awslambdaric", "app.handler"),
        ]
        environ = {
            **environ,
            **NAMES,
            "PYTHONPATH": f"{directory}:{os.environ.get('PYTHONPATH', '')}",
            "HOME": str(directory),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(timeout),
        }
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=directory, env=environ, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise TimeoutError(self.log)

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def invoke(self) -> Any:
        """Invoke it and wait: its answer, or what Lambda says of its end."""
        request = urllib.request.Request(self.url, b"{}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=100) as answer:
            text = answer.read().decode()
        return json.loads(text) if text[:1] in ("{", "n") else text

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def deploy(tmp_path: Path, environ: dict[str, str]) -> Iterator[Callable[..., Function]]:
    """Deploy a function; what was deployed ends with the test."""
    deployed: list[Function] = []

    def make(code: str = RUNNER, timeout: int = 60, **settings: str) -> Function:
        directory = tmp_path / str(len(deployed))
        directory.mkdir()
        deployed.append(Function(directory, code, timeout, {**environ, **settings}))
        return deployed[-1]

    yield make
    for function in deployed:
        function.kill()


def schedule(s3: Any, count: int, bucket: str = "shop-emails") -> set[str]:
    """Schedule events that are due, each a second after the one before; their keys."""
    scheduler = Scheduler("my-bucket", "later", client=s3)
    now = datetime.now(timezone.utc)

    def one(number: int) -> str:
        key = f"welcome/{number}.json"
        due = now - timedelta(seconds=count - number)
        scheduler.schedule(due, bucket, key, f"content of {key}")
        return key

    with ThreadPoolExecutor(16) as pool:
        return set(pool.map(one, range(count)))


def keys(s3: Any, bucket: str) -> list[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def test_the_runner_delivers_what_is_due(s3: Any, deploy: Callable[..., Function]) -> None:
    """What is due arrives, what is not stays, and each run logs its line for the alarm."""
    due = schedule(s3, 3)
    scheduler = Scheduler("my-bucket", "later", client=s3)
    later = scheduler.schedule(timedelta(hours=1), "shop-emails", "k", "")
    runner = deploy()
    assert runner.invoke() is None
    assert set(keys(s3, "shop-emails")) == due
    assert keys(s3, "my-bucket") == [later]
    assert runner.invoke() is None
    lateness = re.findall(r" max_lateness (\d+\.\d{3})$", runner.log, re.MULTILINE)
    assert len(lateness) == 2
    assert float(lateness[0]) >= 3
    assert float(lateness[1]) == 0


def test_a_failing_event_is_an_error_of_the_function(
    s3: Any, deploy: Callable[..., Function]
) -> None:
    """Lambda's own metric counts it, and the other events arrive all the same."""
    schedule(s3, 1, bucket="another-bucket")
    schedule(s3, 2)
    answer = deploy().invoke()
    assert answer["errorType"] == "RunFailed"
    assert "another-bucket" in answer["errorMessage"]
    assert len(keys(s3, "shop-emails")) == 2
    assert len(keys(s3, "my-bucket")) == 1


def test_a_timeout_that_leaves_a_run_no_time_is_an_error(
    s3: Any, deploy: Callable[..., Function]
) -> None:
    """Lambda's default of 3 s is refused in so many words, and nothing is touched."""
    schedule(s3, 1)
    answer = deploy(timeout=3).invoke()
    assert answer["errorType"] == "ValueError"
    assert "time_limit" in answer["errorMessage"]
    assert len(keys(s3, "my-bucket")) == 1


def test_a_run_ends_before_its_function_does(s3: Any, deploy: Callable[..., Function]) -> None:
    """However much is due, each run ends without a timeout, and the next goes on from there."""
    due = schedule(s3, 500)
    runner = deploy(timeout=11)  # a second for each run
    while keys(s3, "my-bucket"):
        assert runner.invoke() is None  # a timeout would be an answer
    assert set(keys(s3, "shop-emails")) == due


def test_a_timeout_that_kills_the_process_loses_nothing(
    s3: Any, deploy: Callable[..., Function]
) -> None:
    """Every event is at its source or its target, whole, and the next runs deliver the rest."""
    due = schedule(s3, 60)
    answer = deploy(HANGING, timeout=8).invoke()
    assert "Task timed out after 8.00 seconds" in str(answer)
    waiting = {name.split("|")[2] for name in keys(s3, "my-bucket")}
    arrived = set(keys(s3, "shop-emails"))
    assert waiting | arrived == due
    assert len(waiting) >= 40
    runner = deploy()
    while keys(s3, "my-bucket"):
        assert runner.invoke() is None
    for key in due:
        body = s3.get_object(Bucket="shop-emails", Key=key)["Body"].read()
        assert body == f"content of {key}".encode()


def test_shards_share_the_folder(s3: Any, deploy: Callable[..., Function]) -> None:
    """Each function takes its share by its environment, and none is left or delivered twice."""
    due = schedule(s3, 40)
    copied = 0
    for shard in range(4):
        runner = deploy(SHARD=f"{shard}/4")
        assert runner.invoke() is None
        copied += int(re.findall(r" copied (\d+) ", runner.log)[0])
    assert copied == 40
    assert keys(s3, "my-bucket") == []
    assert set(keys(s3, "shop-emails")) == due


def cron_command(tmp_path: Path) -> str:
    lines = (RECIPES / "cron" / "run-due.cron").read_text().splitlines()
    command = lines[-1].split(maxsplit=6)[6]
    return command.replace("/tmp/run-due.lock", str(tmp_path / "lock"))


def systemd_command(tmp_path: Path) -> str:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(RECIPES / "cron" / "run-due.service")
    return f"set -a; . {unit['Service']['EnvironmentFile']}; {unit['Service']['ExecStart']}"


def kubernetes_command(tmp_path: Path) -> str:
    [generator] = yaml.safe_load((RECIPES / "kubernetes/kustomization.yaml").read_text())[
        "configMapGenerator"
    ]
    names = dict(literal.split("=") for literal in generator["literals"])
    _, job = yaml.safe_load_all((RECIPES / "kubernetes" / "run-due.yaml").read_text())
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    words = [*container["command"], *container["args"]]
    return shlex.join(re.sub(r"\$\((\w+)\)", lambda it: names[it[1]], word) for word in words)


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        ("cron", cron_command),
        ("cron", systemd_command),
        ("kubernetes", kubernetes_command),
    ],
)
def test_outside_lambda(
    recipe: str,
    command: Callable[[Path], str],
    s3: Any,
    environ: dict[str, str],
    tmp_path: Path,
) -> None:
    """The README's example, and then the recipe's command, deliver an object."""
    readme = (RECIPES / recipe / "README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^ {4}(echo .+)$", readme, re.MULTILINE)
    for line in (example, command(tmp_path)):
        here = line.replace("/opt/run-due/bin/", f"{Path(sys.executable).parent}/")
        here = here.replace("/etc/run-due.env", str(RECIPES / "cron" / "run-due.env"))
        done = subprocess.run(
            ["/bin/sh", "-c", here], env=environ, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert keys(s3, "shop-emails") == ["hello.txt"]
    assert keys(s3, "my-bucket") == []
