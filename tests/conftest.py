"""What every test gets: no way to a real account, and servers that behave like S3."""

import os
import uuid
from concurrent.futures import ThreadPoolExecutor

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

from s3_scheduler.demo import seaweedfs  # noqa: E402

# Derandomized, so that a run fails for a change in the code and for nothing else;
# `--hypothesis-profile=explore` goes looking for new examples. A slow machine is no failure.
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.register_profile("default", deadline=None, derandomize=True, database=None)
settings.load_profile("default")


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory):
    """A SeaweedFS for the whole session: an `Endpoint`, with `.client(**config)`."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def seaweed_client(seaweed):
    """A client of the session's SeaweedFS."""
    client = seaweed.client(max_pool_connections=50)
    yield client
    client.close()


@pytest.fixture(scope="session")
def new_buckets(seaweed_client):
    """Yield buckets without end, made 16 at a time: each waits 0.2 s for its first object."""

    def make(_):
        name = f"test-{uuid.uuid4().hex}"
        seaweed_client.create_bucket(Bucket=name)
        seaweed_client.put_object(Bucket=name, Key="first", Body=b"x")
        seaweed_client.delete_object(Bucket=name, Key="first")
        return name

    def batches():
        with ThreadPoolExecutor(16) as pool:
            while True:
                yield from pool.map(make, range(16))

    return batches()


@pytest.fixture
def bucket(new_buckets):
    """Name an empty bucket on SeaweedFS that no other test has touched."""
    return next(new_buckets)


@pytest.fixture
def target(new_buckets):
    """Name a second one, for events to arrive in."""
    return next(new_buckets)


@pytest.fixture
def fake():
    """A fresh `FakeS3`: S3 in memory, which counts calls and fails on demand."""
    from support.fakes3 import FakeS3  # noqa: PLC0415  (most tests do without)

    with FakeS3() as s3:
        yield s3
