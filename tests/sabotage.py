"""Small sabotages: each takes away one thing that the promises rest on.

A sabotage is a function that takes pytest's `MonkeyPatch`. In a process of its own, the
environment names the one to apply (see `test_killed.py`).
"""

import heapq
import os
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
from botocore.exceptions import ConnectionError as NoConnection
from botocore.exceptions import HTTPClientError

from s3_scheduler import backlog, delivery, names, objects, report, runner
from support import fakes3

MANY = 10**9


def from_environment():
    if name := os.environ.get("SABOTAGE"):
        globals()[name](pytest.MonkeyPatch())


def wrap(patch, owner, name, wrapper):
    """Replace a function by one that gets it as its first argument."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))


def hook(patch, change, *operations):
    """Let every client change the parameters of some operations before it sends them."""

    def make(original, url, **config):
        client = original(url, **config)
        for operation in operations:
            event = f"before-parameter-build.s3.{operation}"
            client.meta.events.register(event, lambda params, **_: change(params))
        return client

    wrap(patch, fakes3, "client", make)


def without(patch, parameter, *operations):
    hook(patch, lambda params: params.pop(parameter, None), *operations)


COPIES = ("CopyObject", "UploadPartCopy")
LARGE_COPY = (
    *("GetObjectTagging", "HeadObject", "CreateMultipartUpload", "UploadPartCopy"),
    *("CompleteMultipartUpload", "PutObjectTagging"),
)


# 1. Nothing is lost


def delete_what_was_not_copied(patch):
    def copy(original, self, event):
        outcome = original(self, event)
        return "copied" if isinstance(outcome, report.Failure) else outcome

    wrap(patch, delivery.Delivery, "copy", copy)


def delete_before_the_copy(patch):
    def copy(client, bucket, event, to_bucket, to_key, extra_args):
        body = client.get_object(Bucket=bucket, Key=event.name)["Body"].read()
        client.delete_object(Bucket=bucket, Key=event.name)
        client.put_object(Bucket=to_bucket, Key=to_key, Body=body)

    patch.setattr(delivery, "copy", copy)


# 2. At least once, and few repeats


def never_deliver_again(patch):
    """Delete what could not be deleted, whatever it takes."""

    def delete(original, self, batch):
        errors = original(self, batch)
        for event in batch:
            self.client.delete_object(Bucket=self.bucket, Key=event.name)
        return errors

    wrap(patch, delivery.Delivery, "delete", delete)


def places_without_end(patch):
    patch.setattr(runner, "PLACES", MANY)
    patch.setattr(runner, "BATCH", 1_000)


def free_the_places_of_failed_deletes(patch):
    wrap(patch, runner._Run, "_held", lambda original, self: original(self) - self.stuck)


def leave_what_was_copied(patch):
    wrap(patch, delivery.Delivery, "delete", lambda original, self, batch: {})


def delete_none_by_itself(patch):
    wrap(patch, delivery.Delivery, "_delete_each", lambda original, self, batch: {})


def free_the_places_of_lost_answers(patch):
    patch.setattr(runner, "HTTPClientError", KeyboardInterrupt)


def count_what_was_never_sent(patch):
    patch.setattr(runner, "HTTPClientError", (HTTPClientError, NoConnection))


def send_no_key_again(patch):
    patch.setattr(delivery, "RESENDS", 0)


def send_keys_again_for_ever(patch):
    patch.setattr(delivery, "RESENDS", 5)


def wait_for_others_for_ever(patch):
    patch.setattr(runner, "PATIENCE", 60)


def see_no_failed_delete(patch):
    wrap(
        patch,
        delivery.Delivery,
        "delete",
        lambda original, self, batch: original(self, batch) and {},
    )


# 3. Never early, oldest first


def early(patch):
    wrap(
        patch,
        names,
        "end",
        lambda original, prefix, moment: original(prefix, moment + timedelta(microseconds=1)),
    )


def newest_first(patch):
    def pop(self):
        newest = max(self._ready)
        self._ready.remove(newest)
        heapq.heapify(self._ready)
        return newest[1]

    patch.setattr(backlog.Backlog, "pop", pop)


# 4. In order for each target


def no_order(patch):
    def add(self, event):
        heapq.heappush(self._ready, (event.name, event))

    patch.setattr(backlog.Backlog, "add", add)
    patch.setattr(backlog.Backlog, "is_awaited", lambda self, event: False)
    patch.setattr(backlog.Backlog, "release", lambda self, event: None)
    patch.setattr(backlog.Backlog, "block", lambda self, event: None)


def go_on_after_what_stays(patch):
    def block(self, event):
        self.left_out = True
        self.release(event)

    patch.setattr(backlog.Backlog, "block", block)


def forget_what_stays(patch):
    def block(original, self, event):
        original(self, event)
        self._blocked = bytearray(len(self._blocked))

    wrap(patch, backlog.Backlog, "block", block)


def let_others_wait_for_deletes(patch):
    patch.setattr(backlog.Backlog, "is_awaited", lambda self, event: False)


def take_gone_for_changed(patch):
    def copy(original, self, event):
        outcome = original(self, event)
        return "changed" if outcome == "gone" else outcome

    wrap(patch, delivery.Delivery, "copy", copy)


# 5. A rewrite in mid-run is safe


def copy_whatever_is_there(patch):
    without(patch, "CopySourceIfMatch", *COPIES)


def delete_whatever_is_there(patch):
    def strip(params):
        for entry in params["Delete"]["Objects"]:
            entry.pop("ETag", None)

    hook(patch, strip, "DeleteObjects")


def delete_one_whatever_it_is(patch):
    without(patch, "IfMatch", "DeleteObject")


# 6. Gone is not a failure


def take_gone_for_a_failure(patch):
    patch.setattr(delivery, "GONE", set())


def believe_every_404(patch):
    patch.setattr(delivery.Delivery, "_is_gone", lambda self, event: True)


def take_a_missing_bucket_for_gone(patch):
    patch.setattr(delivery, "GONE", {*objects.GONE, "NoSuchBucket"})


# 7. One bad event stops no other


def stop_at_a_failure(patch):
    def fail(original, self, failure):
        original(self, failure)
        self.stopping = True

    wrap(patch, runner._Run, "_fail", fail)


def blame_every_event(patch):
    patch.setattr(delivery, "_is_callers_fault", lambda error: True)


def judge_by_the_status(patch):
    patch.setattr(delivery, "_NOT_THE_EVENT", set())


def blame_no_event(patch):
    patch.setattr(delivery, "_is_callers_fault", lambda error: False)


def retry_for_no_time(patch):
    patch.setattr(timedelta_of(patch), "days", 0)


def timedelta_of(patch):
    """Have each delivery know another `retry_for` than it is given."""

    class Days:
        days = 1

    def make(original, *args):
        args = [timedelta(Days.days) if i == 4 else arg for i, arg in enumerate(args)]
        return original(*args)

    wrap(patch, runner, "Delivery", make)
    return Days


def any_bucket(patch):
    def make(original, *args):
        return original(*[None if i == 5 else arg for i, arg in enumerate(args)])

    wrap(patch, runner, "Delivery", make)


def move_the_bytes_only(patch):
    def move(client, bucket, event, name, extra_args=None):
        body = client.get_object(Bucket=bucket, Key=event.name)["Body"].read()
        client.put_object(Bucket=bucket, Key=name, Body=body)
        client.delete_object(Bucket=bucket, Key=event.name)

    patch.setattr(delivery, "move", move)


def move_in_vain(patch):
    """Set aside the event whether or not its copy is in `failed/`."""

    def move(original, client, bucket, event, name, extra_args=None):
        try:
            original(client, bucket, event, name, extra_args)
        except objects.ClientError:
            client.delete_object(Bucket=bucket, Key=event.name)

    wrap(patch, delivery, "move", move)


def withdraw_what_is_set_aside(patch):
    def move(original, *args):
        original(*args, withdraw=True)

    wrap(patch, delivery, "move", move)


def names_without_end(patch):
    patch.setattr(names, "MAX_NAME", MANY)


def stop_telling(patch):
    wrap(patch, runner._Run, "_fail", lambda original, self, failure: None)


def say_nothing(patch):
    patch.setattr(runner.logger, "error", lambda *args: None)


# 8. Everything that S3 can copy arrives


def copy_at_once(patch):
    patch.setattr(objects, "MAX_COPY", 10**15)


def copy_no_headers(patch):
    hook(patch, lambda params: params.update(MetadataDirective="REPLACE"), "CopyObject")
    patch.setattr(objects, "_KEPT", ())


def copy_no_tags(patch):
    hook(patch, lambda params: params.update(TaggingDirective="REPLACE"), "CopyObject")
    patch.setattr(objects, "urlencode", lambda tags: "")


def any_owner(patch):
    for name in ("ExpectedBucketOwner", "ExpectedSourceBucketOwner"):
        without(patch, name, "CopyObject", *LARGE_COPY)


def expect_the_other_owner(patch):
    def change(params):
        if "ExpectedBucketOwner" in params:
            params["ExpectedBucketOwner"] = "2" * 12

    hook(patch, change, "HeadObject", "GetObjectTagging")


def take_a_missing_target_for_gone(patch):
    patch.setattr(objects, "GONE", set())


def look_at_the_target(patch):
    def copy(original, client, bucket, event, to_bucket, to_key, extra_args):
        original(client, bucket, event, to_bucket, to_key, extra_args)
        client.head_object(Bucket=to_bucket, Key=to_key)

    wrap(patch, delivery, "copy", copy)


# 9. It ends, and stays small


def never_end(patch):
    def may_begin(self):
        return not self.stopping and self._held() < runner.PLACES

    patch.setattr(runner._Run, "_may_begin", may_begin)


def read_everything(patch):
    def take_page(original, self, page):
        original(self, page)
        self.listed = not page.result().get("IsTruncated")

    wrap(patch, runner._Run, "_take_page", take_page)


def hold_all_of_one_target(patch):
    patch.setattr(backlog, "MOST_FOR_ONE", MANY)


def hold_all(patch):
    patch.setattr(backlog, "MOST", MANY)
    patch.setattr(backlog, "MOST_FOR_ONE", MANY)


def hold_back_all(patch):
    """Read no further while any target is slow."""

    def read_on(original, self):
        if not self.backlog._waiting_behind:
            original(self)

    wrap(patch, runner._Run, "_read_on", read_on)


def report_every_name(patch):
    patch.setattr(runner, "REPORTED_INVALID", MANY)


def report_every_failure(patch):
    patch.setattr(runner, "REPORTED_FAILURES", MANY)
    patch.setattr(delivery, "_alone", lambda error: error)


def remember_every_event(patch):
    def settle_delete(original, self, done, batch):
        original(self, done, batch)
        self.__dict__.setdefault("all", []).extend(
            [event, bytearray(b"x") * 4_000] for event in batch
        )

    wrap(patch, runner._Run, "_settle_delete", settle_delete)


def stop_in_mid_step(patch):
    """Run where an interrupt falls, in the main thread, and leave then what is in flight."""

    class Here(ThreadPoolExecutor):
        def __new__(cls, workers, name):
            return super().__new__(cls) if workers == 1 else ThreadPoolExecutor(workers, name)

        def submit(self, work):
            future = Future()
            future.set_result(work())
            return future

    def deliver(original, self):
        try:
            original(self)
        except KeyboardInterrupt:
            self.in_flight, self.copied = 0, []
            raise

    patch.setattr(runner, "ThreadPoolExecutor", Here)
    wrap(patch, runner._Run, "_deliver", deliver)


def share_nothing(patch):
    class Any:
        def __eq__(self, other):
            return True

        __hash__ = None

    patch.setattr(names, "share", lambda *target: Any())


# Other servers


def no_fallback(patch):
    patch.setattr(objects, "error_code", lambda error: "")
