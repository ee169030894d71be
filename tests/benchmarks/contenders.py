"""One contender, run as `python contenders.py NAME OPTIONS`: its CPU and memory are its own.

Where S3 answers is in AWS_ENDPOINT_URL. All have the same client: the library's default one.
"""

import io
import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from s3_scheduler import Scheduler, run_due
from s3_scheduler import scheduler as library

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


def started(width=library.WIDTH):
    """Make a scheduler whose client exists, for making one costs a run nothing but the first."""
    config = library.CONFIG.merge(Config(max_pool_connections=width))
    return Scheduler("events", "later", boto3.client("s3", config=config))


# --- Delivering what is due -----------------------------------------------------------------------


@contender
def run(width, shard=(0, 1)):
    """Do what the library does."""
    scheduler = started(width)
    return measured(lambda: run_due(scheduler, shard=tuple(shard)).copied)


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
    client = started(width).client

    def work():
        with ThreadPoolExecutor(width) as threads:
            return len(list(threads.map(lambda name: move(client, name), due(client))))

    return measured(work)


@contender
def one_by_one(width):
    """(b) The same without threads."""
    client = started(width).client
    return measured(lambda: len([move(client, name) for name in due(client)]))


@contender
def mv_lines(width):
    """(c) is another program: print what it is to do."""
    client = started(width).client
    moves = (("events", name, *name.split("|", 2)[1:]) for name in due(client))
    return ["mv 's3://{}/{}' 's3://{}/{}'".format(*move) for move in moves]


@contender
def floor(width):
    """(d) Copies in a pool, and deletes by 100 as they come: no order, no bound, no condition."""
    client = started(width).client

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
    client = started().client
    schedulers = [Scheduler("events", folder, client) for folder in folders]
    spent = [0.0] * len(folders)
    for i in range(runs + 1):
        for place, scheduler in enumerate(schedulers):
            before = time.process_time()
            assert run_due(scheduler).copied == 0
            spent[place] += (time.process_time() - before) * (i > 0)  # the first one connects
    return [seconds / runs for seconds in spent]


class Nothing(io.BytesIO):
    def stream(self, *_, **__):
        yield b""


@contender
def schedule(calls):
    """Seconds of CPU of a `put_object`, and of a `schedule`, that go nowhere."""
    scheduler = started()
    scheduler.client.meta.events.register(
        "before-send.s3", lambda request, **_: AWSResponse(request.url, 200, {}, Nothing())
    )
    when = datetime.now(timezone.utc) + timedelta(days=1)
    name = scheduler.schedule(when, "target", "key", b"body")
    spent = [0.0, 0.0]
    for _ in range(calls):
        before = time.process_time()
        scheduler.client.put_object(Bucket="events", Key=name, Body=b"body")
        between = time.process_time()
        scheduler.schedule(when, "target", "key", b"body")
        spent[0] += between - before
        spent[1] += time.process_time() - between
    return [seconds / calls for seconds in spent]


if __name__ == "__main__":
    json.dump(CONTENDERS[sys.argv[1]](**json.loads(sys.argv[2])), sys.stdout)
