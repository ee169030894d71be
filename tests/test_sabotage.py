"""Each test of a promise fails without what it proves."""

import inspect
import traceback
from contextlib import ExitStack
from pathlib import Path

import pytest
from s3transfer import copies

import sabotage
import test_interleaving
import test_killed
import test_memory
import test_promises
import test_storm
from support import fakes3
from support.fakes3 import Error, FakeS3, Reset
from support.folder import opened

GIB = 1024**3
TESTS = Path(__file__).parent

BEFORE, BETWEEN, DURING = [
    {"operation": param.values[0], "moment": param.values[1]} for param in test_promises.REWRITES
]
TOO_LARGE = {"size": 5 * GIB + 1}
DENIED = Error(403, "AccessDenied")

# What is taken away, and the tests that must see it, each with its arguments.
SABOTAGES = {
    # 1
    "delete_what_was_not_copied": [
        ("unconfirmed_copy", {"fault": fault})
        for fault in (Error(500, "InternalError"), DENIED, fakes3.CopyError("SlowDown"), Reset())
    ]
    + ["either_here_or_there", "storm", "many_interleavings"],
    "delete_before_the_copy": ["either_here_or_there", "killed_once", "killed"],
    # 2
    "never_deliver_again": ["again"],
    "places_without_end": [
        "slow_deletes",
        ("refused_deletes", {"each": False}),
        ("refused_deletes", {"each": True}),
        "killed_once",
    ],
    "free_the_places_of_failed_deletes": [
        ("refused_deletes", {"each": False}),
        ("refused_deletes", {"each": True}),
        "deletes_that_meet_a_change",
    ],
    "leave_what_was_copied": ["no_more_threads"],
    "delete_none_by_itself": ["a_store_that_wants_an_md5"],
    "free_the_places_of_lost_answers": ["lost_answers"],
    "count_what_was_never_sent": ["unreachable"],
    "see_no_failed_delete": [
        "again",
        "order_after_failed_delete",
        ("deleted_by_itself", {"status": 403, "code": "AccessDenied"}),
        "order",
    ],
    "send_no_key_again": [("key_sent_again", {"code": "SlowDown", "times": 1})],
    "send_keys_again_for_ever": [("key_sent_again", {"code": "SlowDown", "times": 4})],
    "wait_for_others_for_ever": ["patience"],
    # 3
    "early": [
        "due_now",
        *(
            ("due_by_hand", dict(zip(("due", "on_time", "late"), times, strict=True)))
            for times in (
                ("2030-01-31T12:00Z", "12:00:59.999999", "12:01:00"),
                ("2030-01-31T12:00:00.5Z", "12:00:00.599999", "12:00:00.600000"),
            )
        ),
    ],
    "newest_first": ["oldest_first"],
    # 4
    "no_order": ["one_after_the_other", "order", "many_interleavings"],
    "go_on_after_what_stays": [
        ("order_after_rewrite", BEFORE),
        ("order_after_rewrite", BETWEEN),
        ("order_after_rewrite", DURING),
        "order_after_failed_delete",
        ("order_after_failed_copy", {"fault": DENIED}),
        "order",
        "many_interleavings",
    ],
    "forget_what_stays": [("order_after_failed_copy", {"fault": Reset(after=True)})],
    "let_others_wait_for_deletes": ["awaited_delete"],
    "take_gone_for_changed": ["order_after_gone", "gone", "gone_when_large"],
    # 5
    "copy_whatever_is_there": [("rewrite", BEFORE), "parts_of_the_same"],
    "delete_whatever_is_there": [
        ("rewrite", BETWEEN),
        ("rewrite", DURING),
        ("order_after_rewrite", BETWEEN),
        "many_interleavings",
    ],
    "delete_one_whatever_it_is": ["rewrite_of_an_odd_name", "rewrite_before_it_is_set_aside"],
    # 6
    "take_gone_for_a_failure": [
        "gone",
        "gone_when_large",
        "deleted_by_another",
        "overlap",
        ("deleted_by_itself", {"status": 404, "code": "NoSuchKey"}),
    ],
    "believe_every_404": ["404_of_something_else", "404_that_cannot_be_asked_about"],
    "take_a_missing_bucket_for_gone": [
        ("missing_bucket", {"size": 0}),
        ("missing_bucket", {"size": 6 * GIB}),
    ],
    # 7
    "stop_at_a_failure": [("unconfirmed_copy", {"fault": DENIED})],
    "blame_every_event": [
        *(
            ("not_its_fault", {"status": status, "code": code})
            for status, code in test_promises.STAY
        ),
        *(("no_answer", {"fault": fault}) for fault in (Reset(), fakes3.CopyError("SlowDown"))),
        "storm",
    ],
    "judge_by_the_status": [
        ("not_its_fault", {"status": status, "code": code})
        for status, code in (
            (400, "ExpiredToken"),
            (400, "SlowDown"),
            (403, "RequestTimeTooSkewed"),
        )
    ],
    "blame_no_event": [
        *(("its_own_fault", {"status": status, "code": code}) for status, code in test_promises.GO),
        "put_back",
        "target_buckets",
    ],
    "retry_for_no_time": [
        (
            "retry_for",
            {"ago": 86_400 - 1e-6, "retry_for": test_promises.timedelta(1), "moved": False},
        ),
        ("retry_for", {"ago": 10**8, "retry_for": None, "moved": False}),
    ],
    "any_bucket": ["target_buckets"],
    "move_the_bytes_only": [("its_own_fault", {"status": 403, "code": "AccessDenied"})],
    "move_in_vain": ["failed_is_closed"],
    "withdraw_what_is_set_aside": ["set_aside_by_two"],
    "names_without_end": ["no_room_for_failed"],
    "say_nothing": ["logged"],
    "stop_telling": ["many_failures", "order_after_failed_delete"],
    # 8
    "copy_at_once": [("whole", TOO_LARGE)],
    "copy_no_headers": [
        ("whole", {"size": None}),
        ("whole", TOO_LARGE),
        ("directives", {"directive": "COPY"}),
        ("directives", {"directive": "REPLACE"}),
    ],
    "copy_no_tags": [("whole", {"size": None}), ("whole", TOO_LARGE)],
    "any_owner": [
        ("owner", {"size": size, "check": check})
        for size in (None, 6 * GIB)
        for check in ("ExpectedBucketOwner", "ExpectedSourceBucketOwner")
    ],
    "expect_the_other_owner": ["two_owners"],
    "look_at_the_target": ["large_copy_needs_no_reading_of_the_target"],
    # 9
    "never_end": ["no_time", "time_limit", "foreign_folder"],
    "read_everything": ["idle", "due_and_one_page"],
    "hold_all_of_one_target": ["a_hundred_for_one_target"],
    "hold_all": ["a_thousand_in_all"],
    "hold_back_all": ["a_thousand_in_all"],
    "report_every_name": ["foreign_folder"],
    "report_every_failure": [("due", {"kinds": ["failed"], "due": 10_000})],
    "remember_every_event": [("due", {"kinds": ["copied"], "due": 10_000})],
    "stop_in_mid_step": [("interrupted", {"operation": "CopyObject"})],
    "share_nothing": [("shards", {"count": 3})],
    # Other servers
    "no_fallback": [
        ("other_servers", {"conditions": "refused"}),
        ("other_servers", {"conditions": "NotImplemented"}),
    ],
}
# Where the tests are, and those that prove no promise or are longer versions of others.
MODULES = [test_promises, test_storm, test_killed, test_interleaving, test_memory]
NO_PROMISE = {
    "everything_is_due",
    "large_on_a_real_server",
    "missing_shard",
    "interleaving",
    "moto",
    "storm_with_retries",
    "strays",
    "the_end_of_the_list",
    "waiting",
}

if hasattr(copies, "CopyCompleteMultipartUploadTask"):  # which sets the tags last
    SABOTAGES["take_a_missing_target_for_gone"] = ["large_and_taken_at_once"]
    SABOTAGES["free_the_places_of_failed_deletes"].append("arrived_without_its_tags")
else:
    NO_PROMISE |= {"large_and_taken_at_once", "arrived_without_its_tags"}


def find(name):
    (test,) = [vars(each)[f"test_{name}"] for each in MODULES if f"test_{name}" in vars(each)]
    return test


def cases():
    for name, tests in SABOTAGES.items():
        for test in tests:
            test_name, arguments = (test, {}) if isinstance(test, str) else test
            told = "-".join(map(str, arguments.values()))
            yield pytest.param(name, test_name, arguments, id=f"{name}-{test_name}-{told}")


def sabotaged(name, test, arguments, request):
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        getattr(sabotage, name)(patch)
        patch.setenv("SABOTAGE", name)
        makers = {
            "fake": lambda: stack.enter_context(FakeS3()),
            "folder": lambda: stack.enter_context(opened(stack.enter_context(FakeS3()))),
            "monkeypatch": lambda: patch,
            "caplog": lambda: request.getfixturevalue("caplog"),
        }
        missing = inspect.signature(test).parameters.keys() - arguments.keys()
        test(**arguments, **{argument: makers[argument]() for argument in missing})


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "test_name", "arguments"), list(cases()))
def test_sabotage(name, test_name, arguments, request):
    """Each test of a promise fails, at an assertion of its own, when the promise is sabotaged."""
    with pytest.raises(AssertionError) as caught:
        sabotaged(name, find(test_name), arguments, request)
    assert Path(traceback.extract_tb(caught.tb)[-1].filename).parent == TESTS


def test_every_promise_is_sabotaged():
    """No test of a promise is without a sabotage that it sees."""
    tests = {
        name.removeprefix("test_")
        for module in MODULES
        for name, value in vars(module).items()
        if name.startswith("test_") and callable(value)
    }
    seen = {test if isinstance(test, str) else test[0] for t in SABOTAGES.values() for test in t}
    assert tests - seen == NO_PROMISE
