"""The folder in S3: what each of its requests means, and what it believes of the answers."""

from collections import Counter
from datetime import datetime, timezone

import pytest
from botocore.exceptions import ClientError, HTTPClientError

from s3_scheduler import Event, SchedulerError, copies, folder
from s3_scheduler.folder import Changed, Folder, Gone
from s3_scheduler.names import parse
from support.fakes3 import Cut, Empty, Error, Html, KeyErrors, Rate, Reset, always, any_of, on
from support.once import needs_once

NINE = "later/2030-01-31T09:00:00.000000Z|target|k"
TEN = "later/2030-01-31T10:00:00.000000Z|target|k"
FAILED = "later/failed/NoSuchBucket/2030-01-31T09:00:00.000000Z|target|k"
CUT = Cut(announced=False)
CONFIRM_NOTHING = [Empty(), Empty(after=True), Html(), Html(after=True), CUT]
GONE = Error(404, "NoSuchKey")
CHANGED = Error(412, "PreconditionFailed")
CONFLICT = Error(409, "ConditionalRequestConflict")
INTERNAL = Error(500, "InternalError")
SLOW_DOWN = Error(503, "SlowDown")
DENIED = Error(403, "AccessDenied")


@pytest.fixture
def s3(fake, monkeypatch):
    """Yield a `FakeS3` with buckets, to which all is sent again without a pause."""
    monkeypatch.setattr(folder, "CONFLICT_AFTER", (0.0,) * len(folder.CONFLICT_AFTER))
    monkeypatch.setattr(folder, "RESEND_AFTER", (0.0,) * len(folder.RESEND_AFTER))
    fake.create("events", "target")
    return fake


@pytest.fixture
def later(s3):
    """Yield the folder `events/later/`, whose client makes one attempt at each request."""
    client = s3.client(max_pool_connections=8)
    yield Folder("events", "later", client)
    client.close()


def put(s3, name, content=b"body", **more):
    """Store an event, and tell what a listing would tell of it."""
    obj = s3.put("events", name, content, **more)
    return Event(*parse("later/", name), name, obj.size, obj.etag)


def put_many(s3, count, content=b"body"):
    names = [f"later/2030-01-31T09:00:00.{number:06}Z|target|k{number}" for number in range(count)]
    return [put(s3, name, content) for name in names]


def contents(s3, bucket="events"):
    return {name: obj.content for name, obj in s3.buckets[bucket].items()}


def meanwhile(s3, operation, act):
    """Do this once, just before S3 acts on a request of this operation."""
    acts = [act]

    def before(request):
        if request.operation == operation and acts:
            acts.pop()()

    s3.before = before


# --- Client ---------------------------------------------------------------------------------------


def test_width(s3, later):
    """A run has as many copies in flight as the client has connections."""
    assert later.width == 8


def test_arguments_for_copies(later):
    """What boto3 takes for a copy passes; what it does not is a ValueError that names it."""
    copies.check_arguments(later.client, {"ACL": "private", "StorageClass": "STANDARD_IA"})
    with pytest.raises(ValueError, match=r"(?s)extra_args .*\"StorageClas\""):
        copies.check_arguments(later.client, {"StorageClas": "STANDARD_IA"})
    with pytest.raises(ValueError, match="ACL, value: 1"):
        copies.check_arguments(later.client, {"ACL": 1})


# --- Names ----------------------------------------------------------------------------------------


def test_names_of_what_failed(later):
    """The code stands between `failed/` and the name, which is whole, and sorts after all times."""
    name = later.failed_name(TEN, "AccessDenied")
    assert name == "later/failed/AccessDenied/2030-01-31T10:00:00.000000Z|target|k"
    assert name > "later/9999-12-31T23:59:59.999999Z|target|k"
    assert later.failure_code(name) == "AccessDenied"
    assert later.original_name(name) == TEN
    assert later.parse(name) == later.parse(TEN)


@pytest.mark.parametrize("code", ["Some Code/of|theirs", "../..", "höhö"])
def test_codes_that_no_name_can_hold(later, code):
    """A code of a server's own invention makes a name that can be read back, too."""
    name = later.failed_name(TEN, code)
    assert later.original_name(name) == TEN
    assert later.failed_name(TEN, later.failure_code(name)) == name


# --- Listing --------------------------------------------------------------------------------------


def test_a_page(s3, later):
    """A page has the events, what is not one, and the name after which the listing goes on."""
    events = put_many(s3, 3)
    s3.put("events", "later/0note")
    s3.put("events", "later2/0note")
    page = later.page("later/", limit=3)
    assert (page.events, page.invalid) == (events[:2], ["later/0note"])
    assert page.last == events[1].name
    page = later.page(page.last, limit=3)
    assert (page.events, page.invalid, page.last) == (events[2:], [], None)


def test_a_page_ends_at_its_bound(s3, later):
    """What is not before the bound is not in the page, which is then the last."""
    events = put_many(s3, 5)
    page = later.page("later/", events[2].name, limit=3)
    assert (page.events, page.last) == (events[:2], None)
    page = later.page("later/", events[3].name, limit=3)
    assert (page.events, page.last) == (events[:3], events[2].name)


def test_pages(s3, later):
    """Pages are of 1,000 names, and each is asked for only when it is wanted."""
    events = put_many(s3, 1001)
    pages = later.pages()
    assert s3.count() == Counter()
    assert next(pages).events == events[:1000]
    assert s3.log[-1].query["max-keys"] == "1000"
    assert next(pages).events == events[1000:]
    assert next(pages, None) is None
    assert s3.count() == Counter(ListObjectsV2=2)


def test_the_marker_of_the_folder(s3, later):
    """The object that consoles make for the folder itself is passed over in silence."""
    s3.put("events", "later/")
    page = later.page("")
    assert (page.events, page.invalid, page.last) == ([], [], None)


@pytest.mark.parametrize("answer", CONFIRM_NOTHING, ids=str)
def test_an_answer_that_is_not_a_listing(s3, later, answer):
    """An answer without the elements of a listing is an error: it does not say "nothing is due"."""
    put(s3, NINE)
    s3.fault = on("ListObjectsV2", answer)
    with pytest.raises(SchedulerError, match="did not list s3://events/later/"):
        later.page("later/")


def test_a_page_without_names_that_says_there_are_more(s3, later):
    """A page that is cut short and names nothing is an error: nobody could go on from it."""

    def lose(parsed, **_):
        parsed["IsTruncated"] = True
        del parsed["Contents"]

    put(s3, NINE)
    later.client.meta.events.register("after-call.s3.ListObjectsV2", lose)
    with pytest.raises(SchedulerError, match="did not list s3://events/later/"):
        list(later.pages("later/"))


def test_a_listing_refused(s3, later):
    """What else S3 answers passes through."""
    s3.fault = on("ListObjectsV2", DENIED)
    with pytest.raises(ClientError, match="AccessDenied"):
        later.page("later/")


# --- Looking --------------------------------------------------------------------------------------


def test_look(s3, later):
    """A look tells what a listing would; None if nothing is there."""
    assert later.look(NINE) is None
    event = put(s3, NINE)
    assert later.look(NINE) == event
    put(s3, FAILED.replace("later/failed/NoSuchBucket/", "later/"))
    s3.put("events", FAILED, b"body")
    assert (later.look(FAILED).due, later.look(FAILED).key) == (event.due, "k")


def test_a_look_refused(s3, later):
    """A look that is refused does not say that nothing is there."""
    s3.fault = on("HeadObject", DENIED)
    with pytest.raises(ClientError, match="403"):
        later.look(NINE)


def test_a_look_without_an_answer(s3, later):
    """Nor does an answer that describes no object."""
    put(s3, NINE)
    s3.fault = on("HeadObject", Html())
    with pytest.raises(SchedulerError, match="200 and did not confirm what s3://"):
        later.look(NINE)


@pytest.mark.parametrize(
    ("target", "same"),
    [(None, None), (b"body", True), (b"other", False), (b"ydob", False)],
)
def test_has_content(s3, later, target, same):
    """The ETag tells whether an object has the event's content; None: there is no object."""
    event = put(s3, NINE)
    if target is not None:
        s3.put("target", "k", target)
    assert later.has_content(event, "target", "k") is same


@pytest.mark.parametrize(
    ("content", "same"), [(b"body", True), (b"ydob", True), (b"another", False), (b"b", False)]
)
@pytest.mark.parametrize("bucket", ["events", "target"])
def test_has_content_under_kms(s3, later, bucket, content, same):
    """Where KMS encrypts either of them, ETags do not tell, but sizes do."""
    s3.encryption[bucket] = "aws:kms"
    for place, body in (("events", b"body"), ("target", content)):
        key = NINE if place == "events" else "k"
        later.client.put_object(Bucket=place, Key=key, Body=body)
    assert later.has_content(later.look(NINE), "target", "k") is same


@pytest.mark.parametrize(("size", "same"), [(2**31, True), (2**31 + 1, False), (2**31 - 1, False)])
def test_has_content_of_large_objects(s3, later, size, same):
    """The ETags of objects in parts do not tell, but their sizes do."""
    event = put(s3, NINE, size=2**31)
    s3.put("target", "k", b"body", size=size)
    obj = s3.buckets["target"]["k"]
    obj.etag = '"0123456789abcdef0123456789abcdef-8"'
    assert later.has_content(event, "target", "k") is same


def test_has_content_of_what_goes_meanwhile(s3, later):
    """An event that is gone cannot be compared, and says so."""
    event = put(s3, NINE)
    s3.put("target", "k", b"other")
    s3.delete("events", NINE)
    with pytest.raises(Gone):
        later.has_content(event, "target", "k")


def test_has_content_checks_the_owner(s3, later):
    """The object is looked at only in a bucket of the owner that the copy expects."""
    event = put(s3, NINE)
    s3.put("target", "k", b"body")
    others = {"ACL": "private", "StorageClass": "STANDARD_IA"}  # which are not for a look
    ours = {"ExpectedBucketOwner": s3.owner, **others}
    assert later.has_content(event, "target", "k", **ours) is True
    with pytest.raises(ClientError, match="403"):
        later.has_content(event, "target", "k", ExpectedBucketOwner="999999999999")


# --- Copying --------------------------------------------------------------------------------------


def test_copy(s3, later):
    """A copy carries headers, metadata and tags, and is conditional on the ETag; it returns its."""
    event = put(s3, NINE, content_type="text/plain", x_amz_tagging="a=b")
    assert later.copy(event, "target", "k") == s3.buckets["target"]["k"].etag
    (request,) = s3.log
    assert request.headers["x-amz-copy-source-if-match"] == event.etag
    assert "if-none-match" not in request.headers
    copied = s3.buckets["target"]["k"]
    assert (copied.content, copied.headers["content-type"]) == (b"body", "text/plain")
    assert copied.tags == {"a": "b"}


@needs_once
def test_copy_that_creates(s3, later):
    """With If-None-Match S3 answers 412 if the target exists, and it is left as it is."""
    event = put(s3, NINE)
    later.copy(event, "target", "k", IfNoneMatch="*")
    s3.put("target", "k", b"other")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        later.copy(event, "target", "k", IfNoneMatch="*")
    assert contents(s3, "target") == {"k": b"other"}


@pytest.mark.parametrize("size", [4, 2**31])
@pytest.mark.parametrize("answer", CONFIRM_NOTHING, ids=str)
def test_a_copy_without_confirmation(s3, later, answer, size):
    """An answer of 200 without the copy's ETag confirms nothing."""
    event = put(s3, NINE, size=size)
    operation = "CopyObject" if size < 2**30 else "CompleteMultipartUpload"
    s3.fault = on(operation, answer)
    with pytest.raises(SchedulerError, match="did not confirm the copy"):
        later.copy(event, "target", "k")


def test_a_copy_whose_answer_is_cut(s3, later):
    """Some releases of boto3 take a cut answer for success, others for an error: so do we not."""
    event = put(s3, NINE)
    s3.fault = on("CopyObject", Cut(), Cut(after=True))
    for _ in range(2):
        with pytest.raises((SchedulerError, HTTPClientError)):
            later.move(event, FAILED)
    assert contents(s3)[NINE] == b"body"


@pytest.mark.parametrize("size", [4, 2**31])
def test_copy_of_what_is_gone(s3, later, size):
    """A source that is not there any more is Gone."""
    event = put(s3, NINE, size=size)
    s3.delete("events", NINE)
    with pytest.raises(Gone):
        later.copy(event, "target", "k")
    assert s3.uploads == {}


@pytest.mark.parametrize("size", [4, 2**31])
def test_copy_of_what_was_replaced(s3, later, size):
    """A source that was replaced is Changed, which has what is there now."""
    event = put(s3, NINE, size=size)
    new = put(s3, NINE, b"new")
    with pytest.raises(Changed) as caught:
        later.copy(event, "target", "k")
    assert caught.value.event == new
    assert str(caught.value) == f"{NINE!r} was replaced meanwhile"
    assert contents(s3, "target") == s3.uploads == {}


@pytest.mark.parametrize("answer", [GONE, CHANGED])
def test_a_copy_refused_without_truth(s3, later, answer):
    """NoSuchKey for what is there, and 412 for its very ETag, are S3's error: neither is passed
    over as gone or changed.
    """
    event = put(s3, NINE)
    s3.fault = on("CopyObject", answer)
    with pytest.raises(ClientError, match=answer.code):
        later.copy(event, "target", "k")


def test_copy_to_a_missing_bucket(s3, later):
    """A missing target bucket is not a missing source."""
    with pytest.raises(ClientError, match="NoSuchBucket"):
        later.copy(put(s3, NINE), "missing", "k")


def test_copy_where_conditions_are_refused(s3, later):
    """Where S3 refuses the condition on the source, the copy is made without."""
    s3.differ(copy_source_if_match="refused")
    later.copy(put(s3, NINE), "target", "k")
    assert contents(s3, "target") == {"k": b"body"}
    assert s3.count() == Counter(CopyObject=2)


def test_copy_meets_another_write(s3, later):
    """After 409 the copy is tried again, five times in all."""
    event = put(s3, NINE)
    s3.fault = on("CopyObject", *[CONFLICT] * 4)
    later.copy(event, "target", "k")
    assert s3.count() == Counter(CopyObject=5)
    s3.fault = always("CopyObject", CONFLICT)
    with pytest.raises(ClientError, match="ConditionalRequestConflict"):
        later.copy(event, "target", "k")
    assert s3.count() == Counter(CopyObject=10)


# --- Moving ---------------------------------------------------------------------------------------


def test_move(s3, later):
    """A move is a copy and a conditional delete."""
    later.move(put(s3, NINE), FAILED)
    assert contents(s3) == {FAILED: b"body"}
    assert s3.count() == Counter(CopyObject=1, DeleteObject=1)


@pytest.mark.parametrize("answer", CONFIRM_NOTHING, ids=str)
def test_a_move_without_confirmation(s3, later, answer):
    """What S3 has not confirmed as copied is not deleted."""
    event = put(s3, NINE)
    s3.fault = on("CopyObject", answer)
    with pytest.raises(SchedulerError, match="did not confirm the copy"):
        later.move(event, FAILED)
    assert contents(s3)[NINE] == b"body"
    assert "DeleteObject" not in s3.count()


def test_move_of_what_is_replaced_meanwhile(s3, later):
    """The old content's copy is removed, and what replaced it stays."""
    event = put(s3, NINE)
    meanwhile(s3, "DeleteObject", lambda: put(s3, NINE, b"new"))
    with pytest.raises(Changed) as caught:
        later.move(event, FAILED)
    assert caught.value.event.size == 3
    assert contents(s3) == {NINE: b"new"}


def test_move_of_what_goes_meanwhile(s3, later):
    """The copy stays: another may have moved it to the same name."""
    event = put(s3, NINE)
    meanwhile(s3, "DeleteObject", lambda: s3.delete("events", NINE))
    later.move(event, FAILED)
    assert contents(s3) == {FAILED: b"body"}


# --- Deleting one ---------------------------------------------------------------------------------


def test_delete(s3, later):
    """A delete is conditional on the ETag."""
    event = put(s3, NINE)
    later.delete(event)
    (request,) = s3.log
    assert request.headers["if-match"] == event.etag
    assert contents(s3) == {}


@pytest.mark.parametrize("answer", [None, CHANGED])
def test_delete_of_what_is_gone(s3, later, answer):
    """What is not there is Gone, also where S3 answers 412 to that."""
    event = put(s3, NINE)
    s3.delete("events", NINE)
    s3.fault = on("DeleteObject", answer)
    with pytest.raises(Gone):
        later.delete(event)


def test_delete_of_what_was_replaced(s3, later):
    """What was replaced is Changed, and stays."""
    event = put(s3, NINE)
    new = put(s3, NINE, b"new")
    with pytest.raises(Changed) as caught:
        later.delete(event)
    assert caught.value.event == new
    assert contents(s3) == {NINE: b"new"}


@pytest.mark.parametrize("answer", [GONE, CHANGED])
def test_a_delete_refused_without_truth(s3, later, answer):
    """NoSuchKey for what is there, and 412 for its very ETag, are S3's error."""
    event = put(s3, NINE)
    s3.fault = on("DeleteObject", answer)
    with pytest.raises(ClientError, match=answer.code):
        later.delete(event)
    assert contents(s3) == {NINE: b"body"}


def test_delete_where_conditions_are_refused(s3, later):
    """Where S3 refuses the condition, the delete is made without."""
    s3.differ(delete_if_match="refused")
    later.delete(put(s3, NINE))
    assert contents(s3) == {}


@pytest.mark.parametrize("answer", [Empty(), Html()], ids=str)
def test_a_delete_without_confirmation(s3, later, answer):
    """What is still there after an answer of 200 is not deleted."""
    event = put(s3, NINE)
    s3.fault = on("DeleteObject", answer)
    with pytest.raises(SchedulerError, match="did not delete"):
        later.delete(event)
    assert contents(s3) == {NINE: b"body"}


def test_stores_that_confirm_deletes_otherwise(s3, later):
    """An answer of 200 is believed where the event is gone, or was replaced at once."""
    s3.fault = on("DeleteObject", Html(after=True), Html(after=True))
    later.delete(put(s3, NINE))
    event = put(s3, NINE)
    s3.after = lambda request: (
        s3.put("events", NINE, b"new") if request.operation == "DeleteObject" else None
    )
    later.delete(event)
    assert contents(s3) == {NINE: b"new"}


def test_delete_meets_another_write(s3, later):
    """After 409 it is tried again."""
    event = put(s3, NINE)
    s3.fault = on("DeleteObject", *[CONFLICT] * 4)
    later.delete(event)
    assert contents(s3) == {}


# --- Deleting many --------------------------------------------------------------------------------


def test_delete_all(s3, later):
    """Many go in one request, in which each has its ETag; nothing is failed."""
    events = put_many(s3, 50)
    assert later.delete_all(events) == {}
    assert contents(s3) == {}
    assert s3.count() == Counter(DeleteObjects=1)
    etags = [each.findtext("{*}ETag") for each in s3.log[0].xml.iterfind("{*}Object")]
    assert etags == [event.etag for event in events]
    assert s3.log[0].xml.findtext("{*}Quiet") == "false"


def test_delete_all_of_what_is_gone_or_was_replaced(s3, later):
    """What is gone is deleted; what was replaced stays, and has failed with Changed."""
    gone, changed, there = put_many(s3, 3)
    s3.delete("events", gone.name)
    new = put(s3, changed.name, b"new")
    failures = later.delete_all([gone, changed, there])
    assert list(failures) == [changed.name]
    assert isinstance(failures[changed.name], Changed)
    assert failures[changed.name].event == new
    assert contents(s3) == {changed.name: b"new"}


@pytest.mark.parametrize("answer", CONFIRM_NOTHING, ids=str)
def test_delete_all_without_confirmation(s3, later, answer):
    """A key that the answer does not name is not known to be deleted: it is deleted alone."""
    events = put_many(s3, 3)
    s3.fault = on("DeleteObjects", answer)
    assert later.delete_all(events) == {}
    assert contents(s3) == {}
    assert s3.count()["DeleteObject"] == 3


def test_delete_all_when_one_key_is_not_named(s3, later):
    """Of an answer that names some of the keys, the others are deleted alone."""
    first, second, third = put_many(s3, 3)
    later.client.meta.events.register(
        "after-call.s3.DeleteObjects", lambda parsed, **_: parsed["Deleted"].pop(1)
    )
    s3.fault = on("DeleteObjects", KeyErrors({second.name: "NeverNamed"}))
    later.client.meta.events.register(
        "after-call.s3.DeleteObjects", lambda parsed, **_: parsed.pop("Errors")
    )
    assert later.delete_all([first, second, third]) == {}
    assert contents(s3) == {}
    assert {request.key for request in s3.log[1:]} == {second.name, third.name}


@pytest.mark.parametrize("code", ["InternalError", "SlowDown", "ServiceUnavailable"])
def test_delete_all_sends_again_what_s3_could_not_delete(s3, later, code):
    """A key that fails for the moment is sent again, and the others are not."""
    events = put_many(s3, 3)
    busy = events[1]
    s3.fault = on("DeleteObjects", *[KeyErrors({busy.name: code})] * 3)
    assert later.delete_all(events) == {}
    assert [len(request.keys) for request in s3.log] == [3, 1, 1, 1]
    assert contents(s3) == {}


@pytest.mark.parametrize("answer", [SLOW_DOWN, INTERNAL])
def test_delete_all_sends_a_whole_batch_again(s3, later, answer):
    """So is a whole batch that S3 could not take."""
    events = put_many(s3, 3)
    s3.fault = on("DeleteObjects", answer, answer)
    assert later.delete_all(events) == {}
    assert s3.count() == Counter(DeleteObjects=3)


def test_delete_all_under_a_limit(s3, later):
    """When S3 takes some keys of each request, all are deleted in the end."""
    events = put_many(s3, 50)
    clock = iter(range(10**6))
    s3.limit = Rate(writes=10, clock=lambda: next(clock) / 20)
    assert later.delete_all(events) == {}
    assert contents(s3) == {}


def test_delete_all_gives_up(s3, later):
    """What S3 cannot delete time after time has failed with its last answer."""
    events = put_many(s3, 2)
    s3.fault = always("DeleteObjects", KeyErrors({events[0].name: "InternalError"}))
    failures = later.delete_all(events)
    assert {name: str(error) for name, error in failures.items()} == {
        events[0].name: "An error occurred (InternalError) when calling the DeleteObjects "
        "operation: InternalError"
    }
    assert s3.count() == Counter(DeleteObjects=1 + len(folder.RESEND_AFTER))
    assert list(contents(s3)) == [events[0].name]


@pytest.mark.parametrize("answer", [DENIED, Reset()])
def test_delete_all_refused(s3, later, answer):
    """What S3 refuses has failed, each event, and is not sent again."""
    events = put_many(s3, 2)
    s3.fault = always("DeleteObjects", answer)
    assert list(later.delete_all(events)) == [event.name for event in events]
    assert s3.count() == Counter(DeleteObjects=1)


def test_delete_all_of_a_key_denied(s3, later):
    """A key that S3 refuses to delete has failed, and the others are deleted."""
    events = put_many(s3, 3)
    s3.fault = always("DeleteObjects", KeyErrors({events[1].name: "AccessDenied"}))
    (failure,) = later.delete_all(events).items()
    assert failure[0] == events[1].name
    assert "AccessDenied" in str(failure[1])
    assert list(contents(s3)) == [events[1].name]


def test_delete_all_believes_nosuchkey(s3, later):
    """A key that DeleteObjects does not find is deleted; it is not looked for."""
    events = put_many(s3, 2)
    for event in events:
        s3.delete("events", event.name)
    assert later.delete_all(events) == {}
    assert s3.count() == Counter(DeleteObjects=1)


def test_delete_all_looks_after_412(s3, later):
    """A server that finds each ETag wrong has its keys deleted alone, where it judges better."""
    events = put_many(s3, 2)
    s3.differ(delete_objects_etag=Error(412, "PreconditionFailed"))
    assert later.delete_all(events) == {}
    assert contents(s3) == {}


def test_delete_all_when_412_is_untrue(s3, later):
    """412 for an ETag that has not changed is a failure with that code, never success."""
    events = put_many(s3, 2)
    s3.fault = any_of(
        on("DeleteObjects", KeyErrors({events[0].name: "PreconditionFailed"})),
        always("DeleteObject", CHANGED),
    )
    failures = later.delete_all(events)
    assert list(failures) == [events[0].name]
    assert "PreconditionFailed" in str(failures[events[0].name])
    assert list(contents(s3)) == [events[0].name]


REFUSALS = [
    Error(400, "BadDigest"),
    Error(400, "InvalidRequest"),
    Error(405, "MethodNotAllowed"),
    Error(501, "NotImplemented"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_delete_all_where_it_is_refused_as_a_whole(s3, later, refusal):
    """A store without DeleteObjects is served with DeleteObject."""
    events = put_many(s3, 3)
    s3.differ(delete_objects=refusal)
    new = put(s3, events[0].name, b"new")
    assert list(later.delete_all(events)) == [events[0].name]
    assert contents(s3) == {new.name: b"new"}


@pytest.mark.parametrize("character", ["\n", "\x01", "\x7f", "\ufffe"])
def test_delete_all_of_names_that_xml_cannot_hold(s3, later, character):
    """A name with a control character is deleted alone, and the others go together."""
    odd = put(s3, f"later/2030-01-31T09:00:00.000000Z|target|a{character}b")
    plain = put(s3, TEN)
    assert later.delete_all([odd, plain]) == {}
    assert contents(s3) == {}
    assert s3.count() == Counter(DeleteObjects=1, DeleteObject=1)
    assert later.delete_all([put(s3, odd.name)]) == {}
    assert s3.count() == Counter(DeleteObjects=1, DeleteObject=2)


@pytest.mark.parametrize("key", ["é😀", "a b", "&<>\"'", "%20+", "\u00a0", "c|d"])
def test_delete_all_of_odd_names(seaweed_client, bucket, key):
    """Names with any other character are deleted on a real server, and no other name is."""
    later = Folder(bucket, "later", seaweed_client)
    for name in (f"later/2030-01-31T09:00Z|target|{key}", TEN):
        seaweed_client.put_object(Bucket=bucket, Key=name, Body=b"body")
    odd, other = (event for page in later.pages("later/") for event in page.events)
    if odd.name == TEN:
        odd, other = other, odd
    assert later.delete_all([odd]) == {}
    assert later.look(odd.name) is None
    assert later.look(TEN) == other


def test_delete_all_of_nothing(s3, later):
    """Nothing to delete takes no request."""
    assert later.delete_all([]) == {}
    assert s3.count() == Counter()


def test_a_failure_keeps_no_memory(s3, later):
    """A failure that a report keeps holds no frames, and so no memory of the run."""
    events = put_many(s3, 2)
    s3.fault = always("DeleteObjects", DENIED)
    for error in later.delete_all(events).values():
        assert error.__traceback__ is error.__context__ is error.__cause__ is None


def test_due_times_are_aware(s3, later):
    """A listing tells due times in UTC."""
    put(s3, NINE)
    (event,) = later.page("later/").events
    assert event.due == datetime(2030, 1, 31, 9, tzinfo=timezone.utc)
