"""Never early, oldest first, in order for each target, and a rewrite is safe: promises 3 to 5."""

from datetime import datetime, timezone

import pytest

from support.fakes3 import Delay, Error, KeyErrors, Reset, sick
from support.folder import DENIED, due_name, only, opened

DAY = 86_400


@pytest.fixture
def folder(fake):
    with opened(fake) as folder:
        yield folder


# --- Never early ----------------------------------------------------------------------------------


def test_due_now(folder):
    """An event due exactly now is delivered, and one due a microsecond later is not."""
    now = folder.put(0, "now")
    soon = folder.put(-1e-6, "soon")
    report = folder.run()
    assert folder.delivered == [now]
    assert folder.waiting == [soon]
    assert (report.copied, report.unfinished) == (1, False)


@pytest.mark.parametrize(
    ("due", "on_time", "late"),
    [
        ("2030-01-31T12:00Z", "12:00:59.999999", "12:01:00"),
        ("2030-01-31T12:00:00Z", "12:00:00.999999", "12:00:01"),
        ("2030-01-31T12:00:00.5Z", "12:00:00.599999", "12:00:00.600000"),
        ("2030-01-31T12:00:00.000001Z", "12:00:00", "12:00:00.000001"),
    ],
)
def test_due_by_hand(folder, due, on_time, late):
    """A name written by hand is never delivered early, and late by the digits it leaves out."""
    folder.s3.put("events", f"later/{due}|target|k", b"content")
    folder.run(now=datetime.fromisoformat(f"2030-01-31T{on_time}+00:00"))
    assert folder.arrived == {}
    folder.run(now=datetime.fromisoformat(f"2030-01-31T{late}+00:00"))
    assert folder.arrived == {"k": b"content"}


def test_oldest_first(fake):
    """The oldest event is delivered first."""
    with opened(fake, max_pool_connections=1) as folder:
        names = [folder.put(100 - i, f"k{i * 7 % 50}") for i in range(50)]
        folder.run()
        assert folder.delivered == names


@pytest.mark.parametrize("now", [datetime.max, datetime(9999, 12, 31, 23, 59, 59)])  # noqa: DTZ001,DTZ901
def test_everything_is_due(folder, now):
    """The end of time, as `now`, delivers everything."""
    folder.put(-DAY)
    assert folder.run(now=now.replace(tzinfo=timezone.utc)).copied == 1
    assert folder.waiting == []


# --- In order for each target ---------------------------------------------------------------------


def test_one_after_the_other(folder):
    """An event is copied only when the earlier one for its target has left the folder."""
    names = [folder.put(60 - i, "k", b"%d" % i) for i in range(30)]
    report = folder.run()
    steps = [
        step for name in names for step in [("copy", "target", "k"), ("delete", "events", name)]
    ]
    assert [change[:3] for change in folder.s3.history[30:]] == steps
    assert folder.delivered == names
    assert (report.copied, report.unfinished) == (30, False)


@pytest.mark.slow
def test_awaited_delete(folder):
    """A delete that something waits for is sent at once."""
    folder.s3.create("other")
    names = [folder.put(20 - i) for i in range(10)]
    slow = folder.put(1, bucket="other")
    folder.s3.fault = sick("other", Delay(0.9))
    folder.run()
    assert folder.delivered == [*names, slow]


def rewrite(folder, operation, moment):
    """Rewrite the event at `k` while the first request acts that lists, copies or deletes it."""
    left = iter([True])

    def hook(request):
        named = due_name(2) in (*request.keys, *(request.source or ()))
        if request.operation == operation and (named or operation == "ListObjectsV2"):
            for _ in left:
                folder.put(2, content=b"rewritten")

    setattr(folder.s3, moment, hook)


REWRITES = [
    pytest.param("ListObjectsV2", "after", id="before-the-copy"),
    pytest.param("CopyObject", "after", id="between-copy-and-delete"),
    pytest.param("DeleteObjects", "before", id="during-the-delete"),
]


@pytest.mark.parametrize(("operation", "moment"), REWRITES)
def test_order_after_rewrite(folder, operation, moment):
    """When an event is rewritten in mid-run, its new content goes before later ones."""
    first = folder.put(2, content=b"first")
    second = folder.put(1, content=b"second")
    rewrite(folder, operation, moment)
    report = folder.run()
    assert folder.deliveries[-2:] == [(first, "k", b"rewritten"), (second, "k", b"second")]
    assert (report.failed, report.unfinished) == (0, False)
    assert folder.waiting == []


def test_order_after_failed_delete(folder):
    """When an event's delete fails, for its key alone, later ones for its target wait."""
    first, second = folder.put(3, content=b"first"), folder.put(2, content=b"second")
    other = folder.put(1, "other")
    folder.s3.fault = lambda request: (
        KeyErrors({first: "AccessDenied"}) if request.operation == "DeleteObjects" else None
    )
    report = folder.run()
    assert folder.waiting == [first, second]
    assert sorted(folder.delivered) == [first, other]
    assert [failure.event.name for failure in report.failures] == [first]
    assert report.unfinished
    folder.s3.fault = lambda request: None
    folder.run()
    assert folder.arrived["k"] == b"second"
    assert folder.waiting == []


@pytest.mark.parametrize("fault", [DENIED, Reset(after=True), Error(500, "InternalError")])
def test_order_after_failed_copy(folder, fault):
    """When an event's copy fails, later ones for its target wait, those of later pages too."""
    first = folder.put(DAY)
    for i in range(1_000):
        folder.s3.put("events", f"later/2030-01-31T00:00:{i:04}")
    later = [folder.put(2), folder.put(1)]
    folder.s3.latency = lambda request: 0.5 if "continuation-token" in request.query else 0
    folder.s3.fault = only("CopyObject", fault, first)
    report = folder.run(retry_for=None)
    assert set(folder.delivered) <= {first}
    assert report.invalid == 1_000
    assert [name for name in folder.waiting if "|" in name] == [first, *later]
    assert report.unfinished


def test_order_after_gone(folder):
    """An earlier event that is found gone holds back nothing."""
    first, second = folder.put(2), folder.put(1)
    folder.s3.after = lambda request: (
        folder.s3.delete("events", first) if request.operation == "ListObjectsV2" else None
    )
    report = folder.run()
    assert folder.delivered == [second]
    assert (report.copied, report.failed, report.unfinished) == (1, 0, False)


# --- A rewrite in mid-run is safe -----------------------------------------------------------------


@pytest.mark.parametrize(("operation", "moment"), REWRITES)
def test_rewrite(folder, operation, moment):
    """Content replaced in mid-run is delivered once, in this run, and never deleted unread."""
    name = folder.put(2, content=b"first")
    rewrite(folder, operation, moment)
    report = folder.run()
    first = [] if operation == "ListObjectsV2" else [(name, "k", b"first")]
    assert folder.deliveries == [*first, (name, "k", b"rewritten")]
    assert (report.copied, report.failed, report.unfinished) == (len(first) + 1, 0, False)
    assert folder.waiting == []


@pytest.mark.parametrize(("operation", "moment"), REWRITES[1:])
def test_rewrite_when_time_is_over(folder, operation, moment):
    """When no time is left, the new content waits for the next run, as do later events for it."""
    first, second = folder.put(2, content=b"first"), folder.put(1, content=b"second")
    rewrite(folder, operation, moment)
    report = folder.run(stop=lambda: bool(folder.requests("CopyObject")))
    assert folder.waiting == [first, second]
    assert folder.s3.buckets["events"][first].content == b"rewritten"
    assert (report.failed, report.unfinished) == (0, True)
    folder.run()
    assert folder.deliveries[-2:] == [(first, "k", b"rewritten"), (second, "k", b"second")]
    assert folder.waiting == []


def test_rewritten_again_and_again(folder):
    """What is replaced before each copy waits for the next run, and stops nothing else."""
    first, second = folder.put(2), folder.put(1)
    other = folder.put(1, "other")
    contents = iter(b"%d" % i for i in range(100))
    folder.s3.before = lambda request: (
        folder.put(2, content=next(contents))
        if request.operation == "CopyObject" and request.key == "k"
        else None
    )
    report = folder.run()
    assert folder.delivered == [other]
    assert folder.waiting == [first, second]
    assert (report.failed, report.unfinished) == (0, True)


def test_rewrite_of_an_odd_name(folder):
    """So it is for a name that DeleteObjects cannot carry, and that is deleted by itself."""
    odd = folder.put(1, "odd\x01\n", content=b"first")
    plain = folder.put(2, "plain")
    left = iter([True])
    folder.s3.before = lambda request: [
        folder.put(1, "odd\x01\n", content=b"rewritten")
        for _ in (left if request.operation == "DeleteObject" else ())
    ]
    report = folder.run()
    assert (report.copied, report.failed, report.unfinished) == (3, 0, False)
    assert odd in folder.delivered
    assert folder.arrived == {"odd\x01\n": b"rewritten", "plain": b"content"}
    assert folder.delivered.count(plain) == 1
    assert folder.waiting == []


def test_rewrite_before_it_is_quarantined(folder):
    """Content that replaces what is being moved to `failed/` is not moved, and not deleted."""
    name = folder.put(2 * DAY, content=b"first")
    folder.s3.fault = only("CopyObject", DENIED, "k")
    folder.s3.after = lambda request: (
        folder.put(2 * DAY, content=b"second") if "failed/" in request.key else None
    )
    report = folder.run()
    assert [failure.quarantined for failure in report.failures] == [False]
    assert folder.waiting == [name]
    assert folder.s3.buckets["events"][name].content == b"second"


def test_quarantined_by_two(folder):
    """What an overlapping run moved to `failed/` at the same time is there, and only there."""
    name = folder.put(2 * DAY, content=b"body")
    folder.s3.fault = only("CopyObject", DENIED, "k")
    folder.s3.after = lambda request: (
        folder.s3.delete("events", name) if "failed/" in request.key else None
    )
    report = folder.run()
    assert [failure.quarantined for failure in report.failures] == [True]
    assert folder.waiting == [name.replace("later/", "later/failed/AccessDenied/")]
