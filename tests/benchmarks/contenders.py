"""One contender, run as `python contenders.py NAME OPTIONS`: its CPU and memory are its own.

Where S3 answers is in AWS_ENDPOINT_URL. All have the same client: the library's default one.
"""

import io
import json
import logging
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import unquote, urlsplit

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from s3_scheduler import Scheduler, run_due

# As the library's own, by value, for an older checkout kept it elsewhere.
CONFIG = Config(
    connect_timeout=5, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 3}
)
WIDTH = 32
CONTENDERS = {}


def contender(function):
    CONTENDERS[function.__name__] = function
    return function


def used():
    """Seconds of CPU, of user and system, that this process has had."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measured(work, *args, **options):
    began, before = time.time(), used()
    events = work(*args, **options)
    cpu, ended = used() - before, time.time()
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"events": events, "cpu": cpu, "memory": memory, "began": began, "ended": ended}


def started(width=WIDTH, **config):
    """Make a client beforehand, for making one costs a run nothing but the first."""
    options: Any = {"max_pool_connections": width, **config}
    return boto3.client("s3", config=CONFIG.merge(Config(**options)))


def scheduler_of(client, folder="later"):
    return Scheduler("events", folder, client=client)


# --- Delivering what is due -----------------------------------------------------------------------


@contender
def run(width, shard=(0, 1)):
    """Do what the library does."""
    scheduler = scheduler_of(started(width))
    return measured(lambda: run_due(scheduler, shard=tuple(shard)).copied)


@contender
def healthy(width, time_limit):
    """Deliver what is due for one bucket, beside one that is sick; from first to last arrival."""
    client, arrivals = started(width, read_timeout=5, retries={"total_max_attempts": 1}), []

    def note(http_response, **_):
        if http_response.status_code == 200 and urlsplit(http_response.url).path[:8] == "/target/":
            arrivals.append(time.time())

    client.meta.events.register("after-call.s3.CopyObject", note)
    scheduler = scheduler_of(client)
    found = measured(lambda: run_due(scheduler, time_limit=time_limit).copied)
    first, last = min(arrivals), max(arrivals)
    waited = first - found["began"]
    return {**found, "events": len(arrivals), "began": first, "ended": last, "waited": waited}


@contender
def punctual(events, seconds, ahead):
    """How late each copy is sent, in seconds, of events that fall due while a run waits for them.

    Negative: early. And the seconds of CPU of the whole run.
    """
    client, lateness = started(), []

    def note(request, **_):
        name = unquote(request.headers["x-amz-copy-source"].decode()).partition("later/")[2]
        due = datetime.fromisoformat(name.partition("Z|")[0] + "+00:00")
        lateness.append((datetime.now(timezone.utc) - due).total_seconds())

    client.meta.events.register("before-send.s3.CopyObject", note)
    scheduler = scheduler_of(client)
    start = datetime.now(timezone.utc) + timedelta(seconds=2)

    def schedule(i):
        scheduler.schedule(start + timedelta(seconds=seconds * i / events), "target", str(i), b"")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(schedule, range(events)))
    if datetime.now(timezone.utc) > start:
        raise AssertionError("the first event fell due before the run began")
    before = used()
    assert run_due(scheduler, ahead=ahead).copied == events
    return sorted(lateness), used() - before


@contender
def folders(count, time_limit):
    """Deliver from several folders, a runner each; in one process, for they wait more than work."""
    client = started(4 * count)
    runners = [scheduler_of(client, f"later/{i}") for i in range(count)]

    def work():
        with ThreadPoolExecutor(count) as threads:
            reports = threads.map(lambda each: run_due(each, time_limit=time_limit), runners)
            return sum(report.copied for report in reports)

    return measured(work)


def due(client):
    """Yield the names that are due, page by page."""
    bound = f"later/{datetime.now(timezone.utc).replace(tzinfo=None).isoformat()}"
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="events", Prefix="later/"):
        for entry in page["Contents"]:
            if entry["Key"] > bound:
                return
            yield entry["Key"]


def copy(client, name):
    _, bucket, key = name.split("|", 2)
    client.copy_object(Bucket=bucket, Key=key, CopySource={"Bucket": "events", "Key": name})


def move(client, name):
    copy(client, name)
    client.delete_object(Bucket="events", Key=name)


@contender
def pool(width):
    """(a) A thread pool of copies, each followed by its delete."""
    client = started(width)

    def work():
        with ThreadPoolExecutor(width) as threads:
            return len(list(threads.map(lambda name: move(client, name), due(client))))

    return measured(work)


@contender
def one_by_one(width):
    """(b) The same without threads."""
    client = started(width)
    return measured(lambda: len([move(client, name) for name in due(client)]))


@contender
def mv_lines(width):
    """(c) is another program: print what it is to do."""
    client = started(width)
    moves = (("events", name, *name.split("|", 2)[1:]) for name in due(client))
    return ["mv 's3://{}/{}' 's3://{}/{}'".format(*move) for move in moves]


@contender
def floor(width):
    """(d) Copies in a pool, and deletes by 100 as they come: no order, no bound, no condition."""
    client = started(width)

    def delete(names):
        objects = [{"Key": name} for name in names]
        client.delete_objects(Bucket="events", Delete={"Objects": objects, "Quiet": True})

    def work():
        count, copied = 0, []
        with ThreadPoolExecutor(width) as threads:
            for name in threads.map(lambda name: copy(client, name) or name, due(client)):
                count += 1
                copied.append(name)
                if len(copied) == 100:
                    threads.submit(delete, copied)
                    copied = []
            if copied:
                delete(copied)
        return count

    return measured(work)


# --- Doing little ---------------------------------------------------------------------------------


@contender
def idle(folders, runs):
    """Seconds of CPU of a run that finds nothing due: the mean for each folder, run in turn."""
    client = started()
    schedulers = [scheduler_of(client, folder) for folder in folders]
    return means(runs, [lambda each=each: run_due(each) for each in schedulers])


def means(runs, works):
    """Seconds of CPU of each, which take turns."""
    spent = [0.0] * len(works)
    for i in range(runs + 1):
        for place, work in enumerate(works):
            before = time.process_time()
            work()
            spent[place] += (time.process_time() - before) * (i > 0)  # the first one connects
    return [seconds / runs for seconds in spent]


@contender
def pages(folder, sizes, runs):
    """Seconds of CPU of an idle run, and of pages of these sizes: the means."""
    client = started()
    scheduler = scheduler_of(client, folder)
    place = {"Bucket": "events", "Prefix": f"{folder}/"}
    lists = [lambda size=size: client.list_objects_v2(**place, MaxKeys=size) for size in sizes]
    return means(runs, [lambda: run_due(scheduler), *lists])


class Nothing(io.BytesIO):
    def stream(self, *_, **__):
        yield b""


@contender
def schedule(calls):
    """Seconds of CPU of a `put_object`, and of a `schedule`, that go nowhere."""
    client = started()
    headers: Any = {"etag": '"etag"'}
    client.meta.events.register(
        "before-send.s3", lambda request, **_: AWSResponse(request.url, 200, headers, Nothing())
    )
    scheduler = scheduler_of(client)
    when = datetime.now(timezone.utc) + timedelta(days=1)
    name = scheduler.schedule(when, "target", "key", b"body")
    spent = [0.0, 0.0]
    for _ in range(calls):
        before = time.process_time()
        client.put_object(Bucket="events", Key=name, Body=b"body")
        between = time.process_time()
        scheduler.schedule(when, "target", "key", b"body")
        spent[0] += between - before
        spent[1] += time.process_time() - between
    return [seconds / calls for seconds in spent]


if __name__ == "__main__":
    logging.disable()  # or the failures of a sick bucket would be told one by one
    json.dump(CONTENDERS[sys.argv[1]](**json.loads(sys.argv[2])), sys.stdout)
