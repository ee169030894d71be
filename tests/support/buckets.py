"""Buckets on a real server, which tests share: each finds them empty."""

from typing import Any


def emptied(client: Any, name: str) -> str:
    """Make the bucket, or remove what an earlier test left in it; its name."""
    if name not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=name)
    for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", []):
        client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
    while page := client.list_objects_v2(Bucket=name).get("Contents"):
        objects = [{"Key": entry["Key"]} for entry in page]
        client.delete_objects(Bucket=name, Delete={"Objects": objects})
    return name
