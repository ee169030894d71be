"""The name of an event, version 1: what is kept for ever, and the laws behind it."""

import pickle
import re
import string
from dataclasses import FrozenInstanceError
from datetime import date, datetime, timedelta, timezone

import pytest
from dateutil.tz import gettz
from hypothesis import given
from hypothesis import strategies as st

from s3_scheduler import Event, InvalidEvent
from s3_scheduler.names import (
    MAX_NAME,
    build,
    folder_prefix,
    format_due,
    lower_bound,
    parse,
    shard_of,
    to_utc,
    upper_bound,
)

UTC = timezone.utc
NINE = datetime(2030, 1, 31, 9, tzinfo=UTC)
# Keys are any text that UTF-8 can hold; these alphabets make the separators frequent.
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80) | st.text(
    "|/~%+ ?&#\\\n\0é😀:-Z0123456789", min_size=1
)
BUCKETS = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=63) | st.just(
    "arn:aws:s3:eu-west-1:111122223333:accesspoint/mail"
)
MOMENTS = st.datetimes(timezones=st.just(UTC))
FOLDERS = st.sampled_from(["later/", "a/b/", "|/", "später/"])


def test_a_name_says_when_and_where():
    """A name is folder, moment in UTC with microseconds, bucket and key, and nothing is escaped."""
    name = build("later/", NINE, "shop-emails", "welcome/42.json")
    assert name == "later/2030-01-31T09:00:00.000000Z|shop-emails|welcome/42.json"


@pytest.mark.parametrize(
    ("name", "event"),
    [
        (
            "later/2030-01-31T09:00:00.000000Z|shop-emails|welcome/42.json",
            (NINE, "shop-emails", "welcome/42.json"),
        ),
        (
            "later/2031-12-31T23:59:59.999999Z|b|k",
            (datetime(2031, 12, 31, 23, 59, 59, 999999, UTC), "b", "k"),
        ),
        ("later/0001-01-01T00:00:00.000000Z|b|k", (datetime(1, 1, 1, tzinfo=UTC), "b", "k")),
        ("later/2028-02-29T09:00:00.000000Z|b|k", (datetime(2028, 2, 29, 9, tzinfo=UTC), "b", "k")),
        # Written by hand: a time may stop at the minutes, the seconds or any fraction.
        ("later/2030-01-31T09:00Z|b|k", (NINE, "b", "k")),
        ("later/2030-01-31T09:00:07Z|b|k", (NINE.replace(second=7), "b", "k")),
        ("later/2030-01-31T09:00:00.5Z|b|k", (NINE.replace(microsecond=500_000), "b", "k")),
        ("later/2030-01-31T09:00:00.025Z|b|k", (NINE.replace(microsecond=25_000), "b", "k")),
        # The key is all that follows the second bar.
        ("later/2030-01-31T09:00Z|b|||", (NINE, "b", "||")),
        ("later/2030-01-31T09:00Z|b|/a//b/", (NINE, "b", "/a//b/")),
        ("later/2030-01-31T09:00Z|b|c|d\ne 😀%7C", (NINE, "b", "c|d\ne 😀%7C")),
        ("later/2030-01-31T09:00Z|b|\n", (NINE, "b", "\n")),
        # The bucket is anything that S3 takes as one.
        ("later/2030-01-31T09:00Z|My_Old.Bucket|k", (NINE, "My_Old.Bucket", "k")),
        (
            "later/2030-01-31T09:00Z|arn:aws:s3:eu-west-1:111122223333:accesspoint/mail|k",
            (NINE, "arn:aws:s3:eu-west-1:111122223333:accesspoint/mail", "k"),
        ),
        (
            "later/2030-01-31T09:00Z|mail-abcdefghijklmnopqrstuvwxyz1234567890-s3alias|k",
            (NINE, "mail-abcdefghijklmnopqrstuvwxyz1234567890-s3alias", "k"),
        ),
    ],
)
def test_names_of_version_1(name, event):
    """These names parse for ever, each to its moment, bucket and key."""
    assert parse("later/", name) == event
    assert parse("later/", name)[0].tzinfo is UTC


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "note.txt",
        "failed/2030-01-31T09:00:00.000000Z|b|k",
        "2030-01-31T09:00:00.000000Z",
        "2030-01-31T09:00:00.000000Z|b",
        "2030-01-31T09:00:00.000000Z|b|",
        "2030-01-31T09:00:00.000000Z||k",
        "2030-01-31T09:00:00.000000Z|b/c|k",
        "2030-01-31T09:00:00.000000Z|b c|k",
        "2030-01-31T09:00:00.000000Z|" + "b" * 256 + "|k",
        "2030-01-31T09:00:00.000000|b|k",
        "2030-01-31T09:00:00.000000+00:00|b|k",
        "2030-01-31T09:00:00.000000z|b|k",
        "2030-01-31T09:00:00.0000000Z|b|k",
        "2030-01-31T09:00:00.Z|b|k",
        "2030-01-31T09:00:00,5Z|b|k",
        "2030-01-31T09:00:Z|b|k",
        "2030-01-31T09Z|b|k",
        "2030-01-31T9:00Z|b|k",
        "2030-01-31 09:00Z|b|k",
        "2030-01-31Z|b|k",
        "20300131T090000Z|b|k",
        "2030-W05-4T09:00Z|b|k",
        "+2030-01-31T09:00Z|b|k",
        "12030-01-31T09:00Z|b|k",
        " 2030-01-31T09:00Z|b|k",
        "٢٠٣٠-01-31T09:00Z|b|k",
    ],
)
def test_what_is_not_a_name(rest):
    """A name of any other form is not an event's, and the advice shows one that is."""
    with pytest.raises(InvalidEvent) as caught:
        parse("later/", "later/" + rest)
    assert repr("later/" + rest) in str(caught.value)
    assert "'later/2030-01-31T09:00:00.000000Z|bucket|key'" in str(caught.value)


@pytest.mark.parametrize(
    "due",
    [
        "2030-02-30T09:00Z",
        "2029-02-29T09:00Z",
        "2030-00-01T09:00Z",
        "2030-13-01T09:00Z",
        "2030-01-31T24:00Z",
        "2030-01-31T09:60Z",
        "2030-01-31T09:00:60Z",
        "0000-01-31T09:00Z",
    ],
)
def test_a_time_that_does_not_exist(due):
    """A name with a time that no clock shows is not an event's."""
    with pytest.raises(InvalidEvent, match=due.replace("+", r"\+")):
        parse("later/", f"later/{due}|b|k")


@pytest.mark.parametrize("name", ["later2/2030-01-31T09:00Z|b|k", "2030-01-31T09:00Z|b|k", ""])
def test_a_name_outside_the_folder(name):
    """A name outside the folder is refused, and the error names both."""
    with pytest.raises(InvalidEvent) as caught:
        parse("later/", name)
    assert repr(name) in str(caught.value)
    assert "'later/'" in str(caught.value)


@given(FOLDERS, MOMENTS, BUCKETS, KEYS)
def test_round_trip(prefix, due, bucket, key):
    """Parsing a name gives back what it was built from, for every key that S3 can hold."""
    assert parse(prefix, build(prefix, due, bucket, key)) == (due, bucket, key)


@given(st.lists(st.tuples(MOMENTS, BUCKETS, KEYS), min_size=2, max_size=8))
def test_order(events):
    """Sorted by their UTF-8 bytes, as S3 lists them, names are in order of their due times."""
    names = sorted((build("later/", *event) for event in events), key=str.encode)
    dues = [parse("later/", name)[0] for name in names]
    assert dues == sorted(dues)
    assert names == sorted(names)  # the library compares names as str


@given(MOMENTS, st.sampled_from([0, 1, -1]) | st.integers(-(10**12), 10**12), BUCKETS, KEYS)
def test_bounds(moment, microseconds, bucket, key):
    """Names from the lower bound on are not earlier, and names below the upper one not later."""
    try:
        due = moment + timedelta(microseconds=microseconds)
    except OverflowError:
        return
    name = build("later/", due, bucket, key)
    assert (name >= lower_bound("later/", moment)) is (due >= moment)
    assert (name < upper_bound("later/", moment)) is (due <= moment)
    assert name < upper_bound("later/", None)


@pytest.mark.parametrize("due", ["2030-01-31T09:00Z", "2030-01-31T09:00:00Z"])
def test_a_short_name_counts_where_s3_lists_it(due):
    """A time that stops early sorts after all of its minute or second, so it is due a bit late."""
    name = f"later/{due}|b|k"
    assert name > upper_bound("later/", NINE)
    assert name < upper_bound("later/", NINE + timedelta(minutes=1))


@pytest.mark.parametrize(
    ("folder", "prefix"),
    [
        ("later", "later/"),
        ("later/", "later/"),
        ("/later", "later/"),
        ("//later//", "later/"),
        ("a/b c", "a/b c/"),
        ("|", "|/"),
    ],
)
def test_a_folder_in_all_its_spellings(folder, prefix):
    """Slashes at the ends of a folder make no difference."""
    assert folder_prefix(folder) == prefix


@pytest.mark.parametrize("folder", ["", "/", "///"])
def test_an_empty_folder(folder):
    """An empty folder is refused, and the advice names one."""
    with pytest.raises(ValueError, match=rf"'{folder}' is empty.*'later'") as caught:
        folder_prefix(folder)
    assert not isinstance(caught.value, InvalidEvent)


@pytest.mark.parametrize(
    "when",
    [
        NINE,
        datetime(2030, 1, 31, 10, tzinfo=timezone(timedelta(hours=1))),
        datetime(2030, 1, 31, 4, tzinfo=gettz("America/New_York")),
        "2030-01-31T09:00:00Z",
        "2030-01-31T09:00Z",
        "2030-01-31T09Z",
        "2030-01-31T10:00:00+01:00",
        "2030-01-31T10:00:00.000000+0100",
        "2030-01-31T02:30-06:30",
        "20300131T090000Z",
        "2030-W05-4T09:00Z",
        "2030-01-31 09:00Z",
    ],
)
def test_when(when):
    """A moment is an aware datetime of any zone, or an ISO 8601 string with an offset."""
    assert to_utc(when) == NINE
    assert to_utc(when).utcoffset() == timedelta(0)


def test_due_times_are_of_one_width():
    """A due time always has its microseconds, which `isoformat` would drop when they are zero."""
    assert format_due(NINE) == "2030-01-31T09:00:00.000000Z"


def test_when_from_now():
    """A timedelta counts from now."""
    before = datetime.now(UTC)
    moment = to_utc(timedelta(days=3))
    assert before <= moment - timedelta(days=3) <= datetime.now(UTC)


def test_a_repeated_hour():
    """An hour that a clock shows twice is two moments, and `fold` tells which."""
    zone = gettz("Europe/Berlin")
    first = datetime(2030, 10, 27, 2, 30, tzinfo=zone)
    assert to_utc(first) == datetime(2030, 10, 27, 0, 30, tzinfo=UTC)
    assert to_utc(first.replace(fold=1)) == datetime(2030, 10, 27, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("when", "advice"),
    [
        (datetime(2030, 1, 31, 9), "datetime.now(timezone.utc) + timedelta(hours=1)"),  # noqa: DTZ001
        ("2030-01-31T09:00:00", "'2030-01-31T09:00:00+01:00'"),
        ("2030-01-31", "'2030-01-31T09:00:00+01:00'"),
        ("tomorrow", "'2030-01-31T09:00:00Z'"),
        ("", "'2030-01-31T09:00:00Z'"),
        ("2030-02-30T09:00Z", "'2030-01-31T09:00:00Z'"),
        ("2030-01-31T09:00:00.000000Zulu", "'2030-01-31T09:00:00Z'"),
        ("2030-01-31T09:00:00 Z", "'2030-01-31T09:00:00Z'"),
        ("２０３０-01-31T09:00Z", "'2030-01-31T09:00:00Z'"),
        (date(2030, 1, 31), "'2030-01-31T09:00:00Z'"),
        (1896080400, "timedelta from now"),
        (1896080400.5, "timedelta from now"),
        (None, "aware datetime"),
        (b"2030-01-31T09:00:00Z", "aware datetime"),
        (timedelta.max, "years 1 to 9999"),
        (-timedelta(days=1_000_000), "years 1 to 9999"),
        (datetime.max.replace(tzinfo=timezone(-timedelta(hours=1))), "years 1 to 9999"),
        ("0001-01-01T00:00+01:00", "years 1 to 9999"),
        ("9999-12-31T24:00Z", "years 1 to 9999"),
    ],
)
def test_what_is_not_a_moment(when, advice):
    """What is not one moment is refused, with the value and what would be right."""
    with pytest.raises(ValueError, match=re.escape(advice)) as caught:
        to_utc(when)
    assert not isinstance(caught.value, InvalidEvent)
    assert repr(when) in str(caught.value)


@pytest.mark.parametrize(
    "bucket", ["", "a|b", "a b", "a/b", "münchen", "b" * 256, "arn:", "arn:aws:s3:::b", "a\n"]
)
def test_what_is_not_a_bucket(bucket):
    """A bucket that S3 would not take is refused, and so is a bar in one."""
    with pytest.raises(InvalidEvent, match=r"is not a bucket; pass its name, or the ARN") as caught:
        build("later/", NINE, bucket, "k")
    assert repr(bucket) in str(caught.value)


def test_an_empty_key():
    """An empty key is refused."""
    with pytest.raises(InvalidEvent, match="the key is empty"):
        build("later/", NINE, "b", "")


def test_a_key_that_is_not_text():
    """Half a surrogate pair has no UTF-8, so S3 cannot hold it."""
    with pytest.raises(InvalidEvent, match="UTF-8") as caught:
        build("later/", NINE, "b", "broken \ud83d")
    assert repr("broken \ud83d") in str(caught.value)


@pytest.mark.parametrize("character", ["k", "é", "😀"])
def test_the_longest_name(character):
    """A name has at most 1,024 bytes of UTF-8; one more is refused with both numbers."""
    room = MAX_NAME - len(build("later/", NINE, "b", "k")) + 1
    count, rest = divmod(room, len(character.encode()))
    key = character * count + "x" * rest
    assert len(build("later/", NINE, "b", key).encode()) == 1024
    with pytest.raises(InvalidEvent, match=r"1025 bytes of UTF-8 and S3 takes 1024.* 1 bytes"):
        build("later/", NINE, "b", key + "x")


@pytest.mark.parametrize(
    ("bucket", "key", "of_4", "of_1000"),
    [
        ("shop-emails", "welcome/42.json", 0, 904),
        ("shop-emails", "welcome/43.json", 3, 219),
        ("b", "k", 3, 579),
        ("b", "c|d\n😀", 0, 888),
    ],
)
def test_shards_of_version_1(bucket, key, of_4, of_1000):
    """These targets are in these shards for ever, on all machines, or runners would overlap."""
    assert (shard_of(bucket, key, 4), shard_of(bucket, key, 1000)) == (of_4, of_1000)


@given(BUCKETS, KEYS, st.integers(1, 10_000))
def test_each_target_is_in_one_shard(bucket, key, shards):
    """A target is in exactly one shard, whatever its due time."""
    assert 0 <= shard_of(bucket, key, shards) < shards
    assert shard_of(bucket, key, 1) == 0


def test_shards_are_even():
    """Shards are of about one size."""
    sizes = [0] * 8
    for number in range(8_000):
        sizes[shard_of("b", f"welcome/{number}.json", 8)] += 1
    assert all(800 < size < 1200 for size in sizes)


def test_events_are_values():
    """An event is frozen, hashable, and survives a pickle."""
    event = Event(NINE, "b", "k", "later/2030-01-31T09:00Z|b|k", 1, '"e"')
    with pytest.raises(FrozenInstanceError):
        event.key = "other"  # type: ignore[misc]  # that it cannot be set is the point
    assert {event: 1}[pickle.loads(pickle.dumps(event))] == 1
