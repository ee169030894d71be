"""An S3 in memory, over real HTTP on 127.0.0.1, that fails on demand in every way S3 can.

    with FakeS3("events", "target") as s3:
        s3.put("events", name, b"body", content_type="text/plain", x_amz_tagging="a=1")
        s3.fault = on("CopyObject", Reset(after=True))  # the first copy happens, its answer is lost
        client = s3.client(retries={"total_max_attempts": 3})
        run_due(Scheduler("events", "later", client=client))
        assert s3.count()["CopyObject"] == 2
        assert [change.action for change in s3.history] == ["put", "copy", "copy", "delete"]

What becomes of requests:

    s3.fault = on("CopyObject", Error(503, "SlowDown"), None, Hang())     one request after another
    s3.fault = always("DeleteObjects", Empty(after=True))                 each request
    s3.fault = any_of(sick("bad", Hang()), sick("worse", Reset()))        each copy to a bucket
    s3.fault = lambda request: ...                                        a `Fault` or None
    s3.latency = 0.03; s3.latency = lambda request: ...                   seconds before it acts
    s3.before = lambda request: s3.put(...); s3.after                     called as it acts

`Error`, `CopyError`, `Empty`, `Html`, `Cut`, `Hang`, `Reset`, `Delay` and `KeyErrors` are the
faults; with `after=True` the request has acted.

What the server is:

    FakeS3("events", "target", server="swift")           one of SERVERS
    s3.differ(delete_if_match="ignored")                 any field of `Server`
    s3.conditions = "refused"                            all five conditions at once
    s3.limit = Rate(writes=100, per="all")               SlowDown beyond it
    s3.denied = {("s3:PutObject", "arn:aws:s3:::target/*")}
    s3.versioning["events"] = "Enabled"
    s3.encryption["target"] = "aws:kms"                  ETags are no MD5s there
    s3.put("events", name, b"begins so", size=2**41)     pretends to be large

What happened: `s3.log` (each `Request`, with its `status`), `s3.count()` (by operation), and
`s3.history` (each `Change`: what really happened to an object, in order). `s3.buckets[name]` maps
keys to `Obj`, sorted. `support.folder` reads the history.

For a benchmark, in a process of its own: `with spawn(latency=0.03, waiting=1_000_000) as s3`, or
`python -m support.fakes3 --latency 0.03 --waiting 1000000`, which prints its URL and serves.

It answers as AWS documents it, and is nowhere kinder (`test_conformance.py` holds it against a real
server). Keys are sorted as `str`, which is the order of their UTF-8 bytes. Signatures are not
checked.
"""

from .clients import Remote, client, spawn
from .faults import (
    COPIES,
    Change,
    CopyError,
    Cut,
    Delay,
    Empty,
    Error,
    Fault,
    Faults,
    Hang,
    Html,
    KeyErrors,
    Obj,
    Rate,
    Request,
    Reset,
    always,
    any_of,
    on,
    sick,
)
from .server import FakeS3
from .servers import SERVERS, Server

__all__ = [
    "COPIES",
    "SERVERS",
    "Change",
    "CopyError",
    "Cut",
    "Delay",
    "Empty",
    "Error",
    "FakeS3",
    "Fault",
    "Faults",
    "Hang",
    "Html",
    "KeyErrors",
    "Obj",
    "Rate",
    "Remote",
    "Request",
    "Reset",
    "Server",
    "always",
    "any_of",
    "client",
    "on",
    "sick",
    "spawn",
]
