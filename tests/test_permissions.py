"""The policies let through what the library asks of S3, and nothing that it does not ask.

What is asked is taken from boto3's own events; what S3 demands for it is what AWS documents. (moto
cannot tell: it allows and denies other things than AWS.)
"""

import io
import json
import re
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError

from s3_scheduler import AlreadyScheduled, NotScheduled, Scheduler, run_due
from support.fakes3 import Error
from support.once import needs_once

NOW = datetime(2030, 1, 31, 9, tzinfo=timezone.utc)
LARGE = 6 * 1024**3
POLICIES = Path(__file__).parent / "recipes" / "policies"
POLICIES = Path(__file__).parent / "recipes" / "policies"


class Need(NamedTuple):
    """A permission that S3 demands for a request."""

    action: str
    resource: str
    prefix: str | None = None  # the condition key s3:prefix


def arn(bucket, key=None):
    return f"arn:aws:s3:::{bucket}" if key is None else f"arn:aws:s3:::{bucket}/{key}"


def listing(params):
    return [Need("s3:ListBucket", arn(params["Bucket"]), params.get("Prefix"))]


def reading(action):
    def needs(params):
        bucket, key = params["Bucket"], params["Key"]
        # Whether a missing key is a 404 or a 403 is decided as a listing of that key would be:
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
        return [Need(action, arn(bucket, key)), Need("s3:ListBucket", arn(bucket), key)]

    return needs


def writing(params):
    needs = [Need("s3:PutObject", arn(params["Bucket"], params["Key"]))]
    if params.get("Tagging"):
        needs.append(Need("s3:PutObjectTagging", arn(params["Bucket"], params["Key"])))
    return needs


def copying(params, tagged=frozenset()):
    source, target = params["CopySource"], arn(params["Bucket"], params["Key"])
    needs = reading("s3:GetObject")(source) + writing(params)
    if source["Key"] in tagged:
        needs.append(Need("s3:GetObjectTagging", arn(source["Bucket"], source["Key"])))
        needs.append(Need("s3:PutObjectTagging", target))
    return needs


def deleting(bucket, key, condition):
    needs = [Need("s3:DeleteObject", arn(bucket, key))]
    return needs + ([Need("s3:GetObject", arn(bucket, key))] if condition else [])


API = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_"
GUIDE = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/"
# What an operation demands, and where AWS says so.
DEMANDS = {
    "ListObjectsV2": (listing, API + "ListObjectsV2.html"),
    "HeadObject": (reading("s3:GetObject"), API + "HeadObject.html"),
    "GetObjectTagging": (reading("s3:GetObjectTagging"), API + "GetObjectTagging.html"),
    "PutObject": (writing, API + "PutObject.html"),
    "PutObjectTagging": (
        lambda params: [Need("s3:PutObjectTagging", arn(params["Bucket"], params["Key"]))],
        API + "PutObjectTagging.html",
    ),
    "CopyObject": (copying, API + "CopyObject.html"),
    "DeleteObject": (
        lambda params: deleting(params["Bucket"], params["Key"], params.get("IfMatch")),
        GUIDE + "conditional-deletes.html",
    ),
    "DeleteObjects": (
        lambda params: [
            need
            for entry in params["Delete"]["Objects"]
            for need in deleting(params["Bucket"], entry["Key"], entry.get("ETag"))
        ],
        GUIDE + "conditional-deletes.html",
    ),
    "CreateMultipartUpload": (writing, GUIDE + "mpuoverview.html#mpuAndPermissions"),
    "UploadPart": (writing, GUIDE + "mpuoverview.html#mpuAndPermissions"),
    "UploadPartCopy": (copying, GUIDE + "mpuoverview.html#mpuAndPermissions"),
    "CompleteMultipartUpload": (writing, GUIDE + "mpuoverview.html#mpuAndPermissions"),
    "AbortMultipartUpload": (
        lambda params: [Need("s3:AbortMultipartUpload", arn(params["Bucket"], params["Key"]))],
        GUIDE + "mpuoverview.html#mpuAndPermissions",
    ),
}
# Parameters that demand nothing more: content and headers, conditions, and how the bytes travel.
INNOCENT = {
    *("Bucket", "Key", "Body", "Prefix", "StartAfter", "MaxKeys", "ContinuationToken", "Delete"),
    *("ContentType", "Metadata", "Tagging", "MetadataDirective", "TaggingDirective"),
    *("IfMatch", "IfNoneMatch", "CopySource", "CopySourceIfMatch", "CopySourceRange"),
    *("UploadId", "PartNumber", "MultipartUpload", "ChecksumAlgorithm", "ChecksumType"),
    *("ExpectedBucketOwner", "ExpectedSourceBucketOwner", "EncodingType", "MpuObjectSize"),
}


def demands(operation, params, tagged):
    unknown = params.keys() - INNOCENT
    assert operation in DEMANDS, f"nobody has looked up what {operation} demands"
    assert not unknown, f"nobody has looked up what {unknown} of {operation} demand"
    mapped, _url = DEMANDS[operation]
    return mapped(params, tagged) if operation == "CopyObject" else mapped(params)


class Caller:
    """A scheduler on the fake S3 that takes down what S3 would demand of it."""

    def __init__(self, fake, tagged):
        self.needs = []
        client = fake.client(retries={"total_max_attempts": 1})
        client.meta.events.register_first("provide-client-params.s3", self._record)
        self.tagged = tagged
        self.scheduler = Scheduler("my-bucket", "later", client=client)

    def _record(self, params, model, **_):
        self.needs += demands(model.name, params, self.tagged)


@pytest.fixture
def callers(fake):
    """Two who share a folder: an application, and a runner that may also write to its target."""
    client = fake.client()
    for name in ("my-bucket", "shop-emails"):
        client.create_bucket(Bucket=name)
    tagged = set()
    return Caller(fake, tagged), Caller(fake, tagged)


def refuse(fake, *operations, key=None):
    def fault(request):
        met = request.operation in operations and key in (None, request.key)
        return Error(403, "AccessDenied") if met else None

    fake.fault = fault


def use(fake, application, **extra):
    """Do all that an application can do, and leave events of every kind for a run."""
    scheduler, later = application.scheduler, NOW + timedelta(days=1)

    def schedule(when, key, body=b"x", bucket="shop-emails", **options):
        if "Tagging" in extra:
            due = when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            application.tagged.add(f"later/{due}|{bucket}|{key}")
        return scheduler.schedule(when, bucket, key, body, extra_args=extra, **options)

    name = schedule(later, "1")
    schedule(later, "1", b"replaced")
    schedule(later, "2", replace=False)
    with suppress(AlreadyScheduled):
        schedule(later, "2", replace=False)
    schedule(NOW, "in parts", io.BytesIO(bytes(9 * 1024**2)))
    refuse(fake, "UploadPart")
    with suppress(ClientError, S3UploadFailedError):  # as the version of boto3 has it
        schedule(NOW, "aborted", io.BytesIO(bytes(9 * 1024**2)))
    refuse(fake, "CopyObject", key="refused")
    name = scheduler.reschedule(name, later + timedelta(days=1))
    if "Tagging" in extra:
        application.tagged.add(name)
    assert scheduler.cancel(name) is True
    assert scheduler.cancel(name) is False
    with suppress(NotScheduled):
        scheduler.reschedule(name, later)
    assert [event.key for event in scheduler.pending(after=later)] == ["2"]
    schedule(NOW, "due")
    schedule(NOW, "due\r")  # deleted by itself: XML cannot hold its name
    schedule(NOW - timedelta(days=2), "refused")


def run(runner, **options):
    report = run_due(runner.scheduler, now=NOW, **options)
    return report.copied, [failure.quarantined for failure in report.failures]


def put_back(fake, application):
    """Do what an operator does once the fault is mended."""
    fake.fault = lambda request: None
    for event in application.scheduler.failed():
        application.scheduler.retry(event.name)


def add_large(fake, key, **headers):
    """Put an event of 6 GiB there, due two days ago."""
    name = f"later/2030-01-29T09:00:00.000000Z|shop-emails|{key}"
    fake.put("my-bucket", name, b"x", size=LARGE, **headers)
    return name


# --- Policies ---------------------------------------------------------------------------------


def policy(role):
    """Read the grants of a policy."""
    grants = set()
    text = (POLICIES / f"{role}.json").read_text(encoding="utf-8")
    for statement in json.loads(text)["Statement"]:
        assert statement["Effect"] == "Allow"
        prefix = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix")
        for action in aslist(statement["Action"]):
            grants |= {Need(action, it, prefix) for it in aslist(statement["Resource"])}
    return grants


def aslist(value):
    return [value] if isinstance(value, str) else value


def added(row, role):
    """Read what a row of the table beside the policies adds for a role."""
    text = (POLICIES / "README.md").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    cell = line.split("|")[2 + ROLES.index(role)]
    grants = set()
    for clause in cell.split(";") if cell.strip() else ():
        actions, resources = (re.findall("`(.+?)`", part) for part in clause.split(" on "))
        grants |= {Need(action, arn(it)) for action in actions for it in resources}
    return grants


def permits(grant, need):
    if grant.action != need.action or not fnmatchcase(need.resource, grant.resource):
        return False
    return grant.prefix is None or fnmatchcase(need.prefix or "", grant.prefix)


def refused(grants, needs):
    # A listing of the target's bucket decides only how a 404 there would be told, and none is.
    folder = [it for it in needs if it.action != "s3:ListBucket" or it.resource == arn("my-bucket")]
    return {need for need in folder if not any(permits(grant, need) for grant in grants)}


def superfluous(grants, needs):
    return {grant for grant in grants if not any(permits(grant, need) for need in needs)}


ROLES = RUNNER, APPLICATION = "runner", "application"
ONCE, TAGS, LARGE_ONES = "`once`", "tags", "events above 1 GiB"


def test_policies_suffice_and_no_more(fake, callers):
    """Everything that both do is permitted, and everything that is permitted is done."""
    application, runner = callers
    use(fake, application)
    assert run(runner) == (3, [True])
    put_back(fake, application)
    for caller, role in zip(callers, (APPLICATION, RUNNER), strict=True):
        assert refused(policy(role), caller.needs) == set()
        assert superfluous(policy(role), caller.needs) == set()


def test_policies_with_tags(fake, callers):
    """With tags, they need what the table says to add, and nothing else."""
    application, runner = callers
    use(fake, application, Tagging="paid=no")
    assert run(runner) == (3, [True])
    for caller, role in zip(callers, (APPLICATION, RUNNER), strict=True):
        more = added(TAGS, role)
        assert refused(policy(role) | more, caller.needs) == set()
        assert superfluous(more, caller.needs) == set()
        assert refused(policy(role), caller.needs) != set()


@needs_once
def test_policies_with_once(fake, callers):
    """With once=True, a runner looks at the target where one exists, and needs nothing else."""
    application, runner = callers
    use(fake, application)
    fake.put("shop-emails", "due", b"x")
    fake.put("shop-emails", "in parts", b"something else")
    assert run(runner, once=True)[0] == 1
    more = added(ONCE, RUNNER)
    assert refused(policy(RUNNER) | more, runner.needs) == set()
    assert refused(policy(RUNNER), runner.needs) == {
        Need("s3:GetObject", arn("shop-emails", key)) for key in ("due", "in parts")
    }
    assert superfluous(more, runner.needs) == set()


@pytest.mark.parametrize(
    ("tags", "once"),
    [
        (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=[needs_once, pytest.mark.slow]),
        pytest.param(True, True, marks=needs_once),
    ],
)
def test_policies_for_large_objects(fake, callers, tags, once):
    """Likewise for objects that are copied in parts: delivered, refused, or moved."""
    application, runner = callers
    headers = {"x_amz_tagging": "paid=no"} if tags else {}
    moved = add_large(fake, "moved", **headers)
    application.scheduler.reschedule(moved, NOW + timedelta(days=1))
    add_large(fake, "large", **headers)
    add_large(fake, "refused", **headers)
    refuse(fake, "CreateMultipartUpload", key="refused")
    assert run(runner, once=once) == (1, [True])

    # Parts that fail are cleaned up, at the target and in failed/.
    add_large(fake, "another", **headers)
    refuse(fake, "UploadPartCopy")
    assert run(runner, once=once) == (0, [False])

    for caller, role in zip(callers, (APPLICATION, RUNNER), strict=True):
        more = added(LARGE_ONES, role)
        all_of_it = policy(role) | more | (added(TAGS, role) if tags else set())
        assert refused(all_of_it, caller.needs) == set()
        assert superfluous(more, caller.needs) == set()
        assert refused(policy(role), caller.needs) != set()


def test_expected_owners(fake, callers):
    """ExpectedBucketOwner demands no permission."""
    _, runner = callers
    add_large(fake, "large")
    fake.put("my-bucket", "later/2030-01-29T09:00:00.000000Z|shop-emails|small", b"x")
    owners = {"ExpectedBucketOwner": fake.owner, "ExpectedSourceBucketOwner": fake.owner}
    assert run(runner, extra_args=owners) == (2, [])
    assert refused(policy(RUNNER) | added(LARGE_ONES, RUNNER), runner.needs) == set()


@pytest.mark.parametrize("role", ROLES)
def test_any_action_less_is_refused(fake, callers, role):
    """The check would have found a missing action, and a target that the policy does not name."""
    application, runner = callers
    use(fake, application)
    run(runner)
    needs = (runner if role == RUNNER else application).needs
    for grant in policy(role):
        assert refused(policy(role) - {grant}, needs) != set()
    assert refused(policy(role), [Need("s3:PutObject", arn("another-bucket", "k"))]) != set()


def test_an_unknown_request_is_refused(callers):
    """The check would have found a request that nobody has looked up."""
    application, _ = callers
    with pytest.raises(AssertionError, match="what GetObject demands"):
        application.scheduler.folder.client.get_object(Bucket="my-bucket", Key="k")
    with pytest.raises(AssertionError, match="ACL"):
        application.scheduler.folder.client.put_object(Bucket="my-bucket", Key="k", ACL="private")
