"""A consumer that does its work once for each event, however often it is called."""

import os
from urllib.parse import unquote_plus

import boto3

s3 = boto3.client("s3")
MARKS_BUCKET = os.environ["MARKS_BUCKET"]  # one empty object for each event that is done


def do(content):
    """Put your work here: send the e-mail, charge the card."""
    print(content)


def handler(event, context):
    for record in event["Records"]:
        bucket = record["s3"]["bucket"]["name"]
        key = unquote_plus(record["s3"]["object"]["key"])  # S3 encodes it as a form would
        if not is_done(key):
            do(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
            # After the work: a crash before this line repeats the work, and loses nothing.
            s3.put_object(Bucket=MARKS_BUCKET, Key=key)


def is_done(key):
    """Say whether a mark has this very key: a listing needs no permission to read."""
    listed = s3.list_objects_v2(Bucket=MARKS_BUCKET, Prefix=key, MaxKeys=1)
    return [mark["Key"] for mark in listed.get("Contents", ())] == [key]
