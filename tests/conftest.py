"""What every test gets: no way to a real account, and servers that behave like S3."""

import gc
import os
import signal
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

for _name in [name for name in os.environ if name.startswith(("AWS_", "PYTHONUNBUFFERED"))]:
    del os.environ[_name]
os.environ |= {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}

from hypothesis import settings  # noqa: E402  (the environment comes first)

from support.buckets import emptied  # noqa: E402

if TYPE_CHECKING:
    from support.fakes3 import FakeS3

# A job in the background of a shell ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Or the tests would spend a sixth of their time on looking for garbage.
gc.set_threshold(20_000)

# Derandomized, so that a run fails for a change in the code and for nothing else;
# `--hypothesis-profile=explore` goes looking for new examples. A slow machine is no failure.
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.register_profile("default", deadline=None, derandomize=True, database=None)
settings.load_profile("default")


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Any]:
    """A SeaweedFS for the whole session: an `Endpoint`, with `.client(**config)`."""
    from support.seaweedfs import seaweedfs  # noqa: PLC0415  (most tests do without)

    with seaweedfs() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def seaweed_client(seaweed: Any) -> Iterator[Any]:
    """A client of the session's SeaweedFS."""
    client = seaweed.client(max_pool_connections=50)
    yield client
    client.close()


# Not of the session, so that an error of the server is that of one test.
@pytest.fixture
def bucket(seaweed_client: Any) -> str:
    """Name the session's bucket on SeaweedFS, empty."""
    return emptied(seaweed_client, "events")


@pytest.fixture
def target(seaweed_client: Any) -> str:
    """Name a second one, for events to arrive in, empty."""
    return emptied(seaweed_client, "target")


@pytest.fixture
def folder() -> str:
    """Name a folder that no other test has."""
    return f"later-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def fake() -> "Iterator[FakeS3]":
    """A fresh `FakeS3`: S3 in memory, which counts calls and fails on demand."""
    from support.fakes3 import FakeS3  # noqa: PLC0415  (most tests do without)

    with FakeS3() as s3:
        yield s3
