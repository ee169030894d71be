"""`s3-scheduler check`: what it says of each store and each permission, and what it leaves behind.

Nothing, but what it says it leaves.
"""

import json
import os
import signal
from contextlib import closing
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from s3_scheduler.__main__ import main
from s3_scheduler.check import Check
from s3_scheduler.folder import Folder
from support.fakes3 import SERVERS, Error, FakeS3, Reset, always, on, sick
from support.once import can_create, needs_once

POLICIES = Path(__file__).parent / "recipes" / "policies"
ROLES = ("application", "runner")
VERSIONS = "the permission s3:GetBucketVersioning on arn:aws:s3:::my-bucket"
NO_VERSIONS = "my-bucket keeps no old versions"
POSIX = os.name == "posix"


@pytest.fixture
def s3():
    """S3 in memory, with the buckets of the README's policies."""
    with FakeS3("my-bucket", "shop-emails") as server:
        yield server


PROMISES = 13 + 2 * can_create
WORKS = {
    "application": "applications can schedule in s3://my-bucket/later/",
    "runner": "runs can deliver from s3://my-bucket/later/",
}
DELIVERS = "runs can deliver to s3://shop-emails/"
REPLACE = "replace=False never overwrites: this store "
CANCEL = "cancel never removes a replacement that it has not seen: this store ignores"
LOST = "an event replaced during its delivery is never lost: this store ignores"
TWICE = "an event replaced during its delivery is not delivered twice: this store ignores"
ONCE = "once=True never overwrites: this store "
KNOWS = "once=True knows what it has delivered to s3://shop-emails/"


def check(server, roles=ROLES, targets=("shop-emails",), bucket="my-bucket", **config):
    """The lines of a check: pairs of a status and a text."""
    lines = []
    client = server.client(**config)
    checked = Folder(bucket, "later", client)
    with closing(Check(checked, lambda *line: lines.append(line))) as checking:
        checking.run(roles, targets)
    return lines


def of(lines, *statuses):
    return [text for status, text in lines if status in statuses]


def left_in(s3):
    """The URIs of all objects."""
    return [f"s3://{bucket}/{key}" for bucket, objects in s3.buckets.items() for key in objects]


# --- Stores ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_promises_hold_on_a_real_store(seaweed, seaweed_client, bucket, target):
    """On SeaweedFS every promise holds, for each role, and nothing is left behind."""
    lines = check(seaweed, targets=[target], bucket=bucket)
    assert not of(lines, "weaker", "missing", "left", "advice")
    assert len(of(lines, "ok")) == PROMISES
    for name in (bucket, target):
        assert not seaweed_client.list_objects_v2(Bucket=name).get("Contents")
        assert not seaweed_client.list_multipart_uploads(Bucket=name).get("Uploads")


@pytest.mark.slow
def test_a_mock_keeps_less(monkeypatch):
    """Moto's server ignores conditions: what that costs is told, promise by promise."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        moto = FakeS3(port=port)  # never started: it makes the clients
        client = moto.client()
        for name in ("my-bucket", "shop-emails"):
            client.create_bucket(Bucket=name)
        lines = check(moto)
        weaker = " ".join(of(lines, "weaker"))
        assert LOST in weaker
        assert (ONCE + "ignores" in weaker) == can_create
        assert CANCEL.partition(":")[0] in of(lines, "ok")
        assert not of(lines, "missing", "left")
        for name in ("my-bucket", "shop-emails"):
            assert not client.list_objects_v2(Bucket=name).get("Contents")
        client.close()
    finally:
        server.stop()
    assert host


@pytest.mark.parametrize(
    ("condition", "what", "weaker"),
    [
        ("put_if_none_match", "ignored", [REPLACE + "ignores"]),
        ("put_if_none_match", "refused", [REPLACE + "refuses"]),
        ("delete_if_match", "ignored", [CANCEL, LOST]),
        ("delete_if_match", "refused", [CANCEL, LOST]),
        ("delete_objects_etag", "ignored", [LOST]),
        ("delete_objects_etag", "refused", []),  # DeleteObject does instead
        ("delete_objects", Error(405, "MethodNotAllowed"), []),
        ("copy_source_if_match", "ignored", [TWICE]),
        ("copy_source_if_match", "refused", [TWICE]),
        pytest.param("copy_if_none_match", "ignored", [ONCE + "ignores"], marks=needs_once),
        pytest.param("copy_if_none_match", "refused", [ONCE + "refuses"], marks=needs_once),
        pytest.param("copy_if_none_match", "source", [ONCE + "refuses"], marks=needs_once),
    ],
)
def test_a_condition_that_a_store_does_not_honour(s3, condition, what, weaker):
    """Each is one line about the promise that rests on it; all other promises hold."""
    s3.differ(**{condition: what})
    lines = check(s3)
    told = of(lines, "weaker")
    assert len(told) == len(weaker)
    assert all(text.startswith(begin) for text, begin in zip(told, weaker, strict=True))
    assert len(of(lines, "ok")) == PROMISES - len(weaker)
    assert not of(lines, "missing", "left")
    assert not left_in(s3)


@pytest.mark.parametrize("condition", ["copy_source_if_match", "delete_if_match"])
def test_a_condition_that_breaks_every_run(s3, condition):
    """A store that refuses a condition in its own words cannot be worked with: the line says so."""
    s3.differ(**{condition: Error(400, "InvalidArgument")})
    lines = check(s3)
    assert any("(InvalidArgument)" in text for text in of(lines, "missing"))
    assert not left_in(s3)


@pytest.mark.parametrize("name", SERVERS)
def test_stores_that_people_have(name):
    """Of each store it tells the truth, and leaves nothing there."""
    known = SERVERS[name]
    with FakeS3("my-bucket", "shop-emails", server=name) as s3:
        lines = check(s3)
        weaker = " ".join(of(lines, "weaker"))
        assert bool(of(lines, "missing")) == known.loses_colons
        if not known.loses_colons:
            assert (ONCE in weaker) == (can_create and known.copy_if_none_match != "honoured")
            assert (CANCEL in weaker) == (known.delete_if_match != "honoured")
        assert not left_in(s3)
        assert not s3.uploads


@needs_once
def test_once_where_etags_do_not_tell(s3):
    """once=True is judged by size where the target is encrypted by KMS, as a run does."""
    s3.encryption["shop-emails"] = "aws:kms"
    assert KNOWS in of(check(s3), "ok")


@needs_once
def test_once_where_copies_look_different(s3):
    """Where a copy does not look like its original, once=True would fail: the line says so."""

    def rewrite(request):
        if request.operation == "HeadObject" and request.bucket == "shop-emails":
            s3.put("shop-emails", request.key, b"something else")

    s3.before = rewrite
    [weaker] = of(check(s3), "weaker")
    assert weaker == f"{KNOWS}: this store changes their ETags"


def test_a_boto3_that_does_not_know_once(s3, monkeypatch):
    """With a boto3 of 2024, copies work and once=True does not: it names the version needed."""
    monkeypatch.setattr(Folder, "can_create", False)
    lines = check(s3)
    assert DELIVERS in of(lines, "ok")
    assert of(lines, "skipped") == ["once=True never overwrites: it needs boto3 1.40.65 or later"]
    assert not of(lines, "weaker", "missing")
    assert not any("once=True" in line for line in of(lines, "ok"))


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("content_type", "content type and metadata"),
        ("x_amz_meta_check", "content type and metadata"),
        ("x_amz_tagging", "tags"),
    ],
)
def test_a_store_that_loses_what_comes_with_an_event(s3, header, kept):
    """Content type, metadata or tags that a copy does not keep are told."""

    def lose(request):
        if request.operation == "CopyObject" and request.key.endswith("-copy"):
            kept = {
                "content_type": "text/x-check",
                "x_amz_meta_check": "1",
                "x_amz_tagging": "check=1",
            }
            del kept[header]
            s3.put(request.bucket, request.key, b"first", **kept)

    s3.after = lose
    weaker = of(check(s3), "weaker")
    assert len(weaker) == 2
    assert all(text.endswith(f"{kept}: this store loses them") for text in weaker)


def test_a_store_that_hides_what_was_written(s3):
    """A listing that lacks what was written is told: such a store would deliver nothing."""
    s3.after = lambda request: (
        request.operation == "HeadObject" and s3.put(request.bucket, request.key, b"another")
    )
    missing = of(check(s3), "missing")
    assert len(missing) == 2
    assert all("this store does not list 'later/" in text for text in missing)


def test_old_versions_are_advice(s3):
    """A versioned folder bucket is no fault, and worth a line."""
    s3.versioning["my-bucket"] = "Enabled"
    [advice] = of(check(s3), "advice")
    assert advice.startswith(f"{NO_VERSIONS}: it does, and every delivery leaves one")


# --- Permissions ----------------------------------------------------------------------------------


def grants(role):
    """The pairs of action and resource that a policy in tests/recipes grants."""
    policy = json.loads((POLICIES / f"{role}.json").read_text("utf-8"))
    return [
        (action, resource)
        for statement in policy["Statement"]
        for action in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    ]


def as_list(value):
    return [value] if isinstance(value, str) else value


def allow(s3, permissions):
    """Deny everything else."""

    def denied(action, resource):
        return not any(
            action == allowed and fnmatchcase(resource, where) for allowed, where in permissions
        )

    s3.denied = denied


TAGS = {
    "application": [
        ("s3:PutObjectTagging", "arn:aws:s3:::my-bucket/later/*"),
        ("s3:GetObjectTagging", "arn:aws:s3:::my-bucket/later/*"),
    ],
    "runner": [
        ("s3:GetObjectTagging", "arn:aws:s3:::my-bucket/later/*"),
        ("s3:PutObjectTagging", "arn:aws:s3:::my-bucket/later/failed/*"),
        ("s3:PutObjectTagging", "arn:aws:s3:::shop-emails/*"),
    ],
}
ONCE_NEEDS = ("s3:GetObject", "arn:aws:s3:::shop-emails/*")
EACH = [(role, grant) for role in ROLES for grant in grants(role)]
EACH_OF_TAGS = [(role, grant) for role in ROLES for grant in TAGS[role]]


@pytest.mark.parametrize("role", ROLES)
def test_the_policies_suffice(s3, role):
    """With the README's policy of a role it works; what the policy leaves out is skipped."""
    allow(s3, grants(role))
    lines = check(s3, [role])
    assert not of(lines, "weaker", "missing")
    skipped = of(lines, "skipped")
    assert f"{NO_VERSIONS}: {VERSIONS}" in skipped
    assert any("tags: the permission s3:PutObjectTagging on " in text for text in skipped)
    # A runner may not delete what it delivered, so that is told.
    assert [text.split(",")[0] for text in of(lines, "left")] == left_in(s3)
    assert len(left_in(s3)) == (role == "runner")


@pytest.mark.parametrize("role", ROLES)
def test_nothing_is_asked_that_a_role_does_not_need(s3, role):
    """With all that the README's table adds, nothing is denied but the look at versions."""
    asked = []
    more = [ONCE_NEEDS, ("s3:DeleteObject", "arn:aws:s3:::shop-emails/*")]
    allow(s3, grants(role) + TAGS[role] + more * (role == "runner"))
    is_denied = s3.denied

    def denied(action, resource):
        if is_denied(action, resource):
            asked.append(f"the permission {action} on {resource}")
        return is_denied(action, resource)

    s3.denied = denied
    lines = check(s3, [role])
    skipped = [text for text in of(lines, "skipped") if "boto3" not in text]
    assert skipped == [f"{NO_VERSIONS}: {VERSIONS}"]
    assert set(asked) == {VERSIONS}
    assert not left_in(s3)


@pytest.mark.parametrize(("role", "withheld"), EACH, ids=str)
def test_a_permission_less(s3, role, withheld):
    """The one missing permission is named, in the words of the README's policy, and no other."""
    allow(s3, [grant for grant in grants(role) if grant != withheld])
    lines = check(s3, [role])
    action, resource = withheld
    prefix = " with the prefix later/*" * (action == "s3:ListBucket")
    promise = DELIVERS if resource == "arn:aws:s3:::shop-emails/*" else WORKS[role]
    assert of(lines, "missing") == [f"{promise}: the permission {action} on {resource}{prefix}"]
    assert [text.split(", if")[0] for text in of(lines, "left")] == left_in(s3)


@pytest.mark.parametrize(("role", "withheld"), EACH_OF_TAGS, ids=str)
def test_a_permission_for_tags_less(s3, role, withheld):
    """Without all permissions for tags, the one that lacks is named; untagged events go on."""
    allow(s3, [grant for grant in grants(role) + TAGS[role] if grant != withheld])
    lines = check(s3, [role])
    action, resource = withheld
    [skipped] = [text for text in of(lines, "skipped") if "tags" in text]
    assert skipped.endswith(f": the permission {action} on {resource}")
    assert not of(lines, "missing", "weaker")


@needs_once
def test_the_permission_for_once(s3):
    """once=True needs to look at targets: without that permission it is skipped, and named."""
    allow(s3, grants("runner"))
    assert f"{KNOWS}: the permission {' on '.join(ONCE_NEEDS)}" in of(check(s3), "skipped")
    allow(s3, [*grants("runner"), ONCE_NEEDS])
    assert KNOWS in of(check(s3, ["runner"]), "ok")


def test_a_bucket_that_is_not_there(s3):
    """A missing bucket is named, the folder's and a target's; other targets are still tried."""
    [missing] = of(check(s3, targets=["nobody", "shop-emails"]), "missing")
    assert missing.startswith("runs can deliver to s3://nobody/: this store refuses it: ")
    assert "(NoSuchBucket)" in missing
    missing = of(check(s3, bucket="nobody"), "missing")
    assert len(missing) == 2
    assert all("(NoSuchBucket)" in text and "s3://nobody/" in text for text in missing)
    assert not of(check(s3, targets=["nobody"], bucket="nobody"), "left")
    assert not left_in(s3)


def test_an_access_point(s3):
    """For a target that is an access point, too, the permission is named as a policy has it."""
    arn = "arn:aws:s3:us-east-1:111122223333:accesspoint/mine"

    def refuse(params, **_):
        if params["Bucket"] == arn:
            answer: Any = {"ResponseMetadata": {"HTTPStatusCode": 403}}
            raise ClientError({"Error": {"Code": "AccessDenied"}, **answer}, "CopyObject")

    lines = []
    client = s3.client()
    client.meta.events.register("before-parameter-build.s3.CopyObject", refuse)
    checked = Folder("my-bucket", "later", client)
    with closing(Check(checked, lambda *line: lines.append(line))) as checking:
        checking.run(ROLES, [arn])
    [missing] = of(lines, "missing")
    assert missing.endswith(f": the permission s3:PutObject on {arn}/object/*")
    assert not of(lines, "left")


def test_no_target_bucket(s3):
    """Without --target-bucket, all is tried within the folder, and what is not is told."""
    lines = check(s3, targets=[])
    assert "copies to targets: name their buckets with --target-bucket" in of(lines, "skipped")
    assert not of(lines, "weaker", "missing")
    assert {request.bucket for request in s3.log} == {"my-bucket"}


# --- What it leaves alone, and what it leaves -----------------------------------------------------


def test_events_are_left_alone(s3):
    """Neither events nor what failed nor targets are touched, and no more than a name is listed."""
    names = [
        "later/2020-01-01T00:00:00.000000Z|shop-emails|due",
        "later/9999-12-31T23:59:59.999999Z|shop-emails|at the end of time",
        "later/failed/AccessDenied/2020-01-01T00:00:00.000000Z|shop-emails|k",
        "later/not an event",
    ]
    for name in names:
        s3.put("my-bucket", name, b"content")
    s3.put("shop-emails", "k", b"content")
    s3.history.clear()
    check(s3)
    assert all("s3-scheduler-check-" in change.key for change in s3.history)
    assert sorted(left_in(s3)) == sorted(
        [f"s3://my-bucket/{name}" for name in names] + ["s3://shop-emails/k"]
    )
    limits = {r.query["max-keys"] for r in s3.log if r.operation == "ListObjectsV2"}
    assert limits == {"1"}


def test_one_key_in_each_target(s3):
    """Each target bucket sees one key, and no run would ever read the others."""
    s3.create("other")
    check(s3, targets=["shop-emails", "other"])
    made = {(c.bucket, c.key) for c in s3.history if c.action != "delete"}
    assert sorted(bucket for bucket, _ in made if bucket != "my-bucket") == ["other", "shop-emails"]
    own = [key for bucket, key in made if bucket == "my-bucket"]
    assert all(key.startswith(("later/9999-12-31T23:59:59", "later/failed/")) for key in own)


@pytest.mark.parametrize("operation", ["PutObject", "HeadObject", "CopyObject", "DeleteObjects"])
def test_a_failure_half_way(s3, operation):
    """After a failure in the middle, what was written is removed all the same."""
    s3.fault = on(operation, None, Error(500, "InternalError"))
    assert of(check(s3), "missing", "skipped", "ok")
    assert not left_in(s3)


@pytest.mark.parametrize("number", range(1, 15 + 2 * can_create))
def test_a_lost_answer(s3, number):
    """What was written all the same is removed, also if boto3's next attempt is refused for it."""
    writes = count(1)

    def lose(request):
        met = request.operation in ("PutObject", "CopyObject") and next(writes) == number
        return Reset(after=True) if met else None

    s3.fault = lose
    lines = check(s3, retries={"total_max_attempts": 2})
    assert next(writes) > number
    assert not of(lines, "missing", "left")
    assert not left_in(s3)


def test_an_error_that_tells_too_little(s3):
    """What S3 may have written in spite of an error is named if it cannot be removed."""
    allow(s3, grants("runner"))
    fault = Error(500, "InternalError", after=True)
    s3.fault = sick("shop-emails", fault)
    lines = check(s3, ["runner"])
    assert "(InternalError)" in " ".join(of(lines, "missing"))
    [left] = left_in(s3)
    assert [text.split(", if")[0] for text in of(lines, "left")] == [left]


def test_what_cannot_be_removed_is_told(s3):
    """When S3 stops deleting half-way, each object that is left is named."""
    s3.fault = always("DeleteObject", Error(500, "Broken"))
    left = of(check(s3), "left")
    assert sorted(text.split(", if")[0] for text in left) == sorted(left_in(s3))
    assert left


def run(capsys, s3, *options):
    """The command line's exit code, output and errors."""
    code = main(["check", "s3://my-bucket/later", "--endpoint-url", s3.url, *options])
    return code, *capsys.readouterr()


@pytest.fixture
def handlers():
    """Put back what the command does to signals."""
    before = [(signum, signal.getsignal(signum)) for signum in (signal.SIGINT, signal.SIGTERM)]
    yield
    for signum, handler in before:
        signal.signal(signum, handler)


@pytest.mark.skipif(not POSIX, reason="signals as POSIX has them")
@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("at", range(1, 46 + 3 * can_create, 3))
def test_an_interrupted_check(s3, capsys, at):
    """Ctrl-C or SIGTERM at any moment: silence, exit code 130, and nothing is left behind."""
    requests = count(1)

    def interrupt(request):
        if next(requests) == at:
            s3.before = lambda _: None
            # Twice, as impatient people do; what S3 is doing, it does.
            for signum in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), signum)

    s3.before = interrupt
    code, _, err = run(capsys, s3, "--target-bucket", "shop-emails")
    assert (code, err) == (130, "")
    assert not left_in(s3)
    assert not s3.uploads


# --- As a command ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("handlers")
def test_the_lines_of_the_command(s3, capsys):
    """A status and a promise a line; exit code 0 if all hold, 1 if some are weaker, 2 if not."""
    code, out, err = run(capsys, s3, "--target-bucket", "shop-emails", "--as", "runner")
    assert (code, err) == (0, "")
    assert f"ok       {WORKS['runner']}\n" in out
    assert "replace=False" not in out
    s3.conditions = "ignored"
    code, out, _ = run(capsys, s3, "--as", "application")
    assert code == 1
    assert f"weaker   {CANCEL} If-Match" in out
    assert "delivered" not in out
    s3.denied = {("s3:ListBucket", "*")}
    code, out, _ = run(capsys, s3)
    assert code == 2
    lack = "the permission s3:ListBucket on arn:aws:s3:::my-bucket with the prefix later/*\n"
    assert all(f"missing  {works}: {lack}" in out for works in WORKS.values())


@pytest.mark.usefixtures("handlers")
@pytest.mark.slow
def test_json(s3, capsys):
    """--json says the same as objects, one a line."""
    _, plain, _ = run(capsys, s3)
    code, out, _ = run(capsys, s3, "--json")
    objects = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [f"{o['status']:<8} {o['text']}" for o in objects] == plain.splitlines()


@pytest.mark.usefixtures("handlers")
def test_no_answer_is_no_verdict(s3, capsys):
    """A store that does not answer is one line on standard error, exit code 2."""
    code, out, err = run(capsys, s3, "--endpoint-url", "http://127.0.0.1:9")
    assert (code, out.count("\n")) == (2, 1)
    assert out.startswith("left     s3://my-bucket/later/9999-")  # for all that is known
    assert err.startswith("s3-scheduler: Could not connect to the endpoint URL")
