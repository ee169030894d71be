"""Bring over what waits under the names of s3-scheduler 0.0.x.

Switch the old runner off first. If this stops half-way, start it again: what it has brought over
is not brought over twice.
"""

import argparse
from urllib.parse import unquote

import boto3
from dateutil.parser import parse

from s3_scheduler import Scheduler


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bucket", help="the bucket that holds the folder")
    parser.add_argument("old_path", help="the path that 0.0.x was given, exactly as it was given")
    parser.add_argument("folder", help="the folder for version 1, such as: later")
    arguments = parser.parse_args()
    count = migrate(boto3.client("s3"), **vars(arguments))
    print(f"{count} brought over")


def migrate(s3, bucket, old_path, folder):
    scheduler = Scheduler(bucket, folder, client=s3)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{old_path}/|")
    # All names first: what is written meanwhile must not disturb the listing.
    names = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    for name in names:
        _, due, target_bucket, path = name.split("|")
        key = unquote(path).replace("~~", "/")
        body = s3.get_object(Bucket=bucket, Key=name)["Body"]
        scheduler.schedule(parse(unquote(due)), unquote(target_bucket), key, body)
        s3.delete_object(Bucket=bucket, Key=name)
    return len(names)


if __name__ == "__main__":
    main()
