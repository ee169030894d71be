"""The runner: a Lambda function that delivers, every minute, what is due."""

import logging
import os

from s3_scheduler import Scheduler, run_due

logging.getLogger("s3_scheduler").setLevel(logging.INFO)  # one line for each run, to alarm on
scheduler = Scheduler(os.environ["FOLDER_BUCKET"], os.environ["FOLDER"])
shard, shards = map(int, os.environ.get("SHARD", "0/1").split("/"))


def handler(event, context):
    run_due(
        scheduler,
        time_limit=context.get_remaining_time_in_millis() / 1000 - 10,  # 10 s for copies in flight
        target_buckets={os.environ["TARGET_BUCKET"]},
        shard=(shard, shards),
    ).raise_for_failures()
