"""What is copied and not yet confirmed deleted: when it is deleted, and how much there may be."""

from datetime import datetime, timezone

import pytest

from s3_scheduler import Event
from s3_scheduler.unconfirmed import Unconfirmed

DUE = datetime(2030, 1, 31, tzinfo=timezone.utc)


def events(count, start=0):
    keys = [f"k{i}" for i in range(start, start + count)]
    return [Event(DUE, "b", key, f"later/{key}", 1, '"etag"') for key in keys]


@pytest.fixture
def held():
    return Unconfirmed()


def add(held, count, now=0.0):
    for event in events(count, start=len(held.copied)):
        held.add(event, now)


def test_none(held):
    """While nothing is copied there is nothing to delete."""
    assert (held.is_ripe(0.0), held.is_full, held.take()) == (False, False, [])


def test_a_batch_goes_at_once(held):
    """Fifty or more are deleted at once, all together."""
    add(held, 49)
    assert not held.is_ripe(0.0)
    add(held, 1)
    assert held.is_ripe(0.0)
    add(held, 1)
    assert held.is_ripe(0.0)
    assert held.take() == events(51)
    assert not held.is_ripe(0.0)


def test_a_few_linger(held):
    """Fewer wait for others, a second after the first of them at most."""
    held.add(events(1)[0], 10.0)
    held.add(events(2)[1], 10.6)
    assert [held.is_ripe(now) for now in (10.99, 11.0, 99.0)] == [False, True, True]
    assert held.take() == events(2)
    held.add(events(1)[0], 20.0)
    assert not held.is_ripe(20.0)


@pytest.mark.parametrize("deleting", [0, 30])
def test_a_hundred(held, deleting):
    """At a hundred no copy may start, whether they wait for their delete or are being deleted."""
    add(held, deleting)
    held.take()
    add(held, 99 - deleting)
    assert not held.is_full
    add(held, 1)
    assert held.is_full
    add(held, 8)  # were in flight
    assert held.is_full


def test_the_deleted_make_room(held):
    """What is deleted leaves its place; what S3 did not delete keeps it."""
    add(held, 100)
    batch = held.take()
    assert held.is_full
    held.settle(batch, stuck=1)
    assert not held.is_full
    add(held, 98)
    assert not held.is_full
    add(held, 1)
    assert held.is_full


def test_no_place_and_nothing_under_way(held):
    """When there is no place left and no delete under way, the few that there are go at once."""
    add(held, 99)
    held.settle(held.take(), stuck=99)
    add(held, 1)
    assert held.is_full
    assert held.is_ripe(0.0)


def test_no_place_while_some_are_deleted(held):
    """While a delete is under way, which may make room, they wait for others."""
    add(held, 99)
    held.take()
    add(held, 1)
    assert held.is_full
    assert not held.is_ripe(0.0)
