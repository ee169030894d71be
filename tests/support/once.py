"""Whether this boto3 can copy on condition that the target does not exist."""

from __future__ import annotations

import boto3
import pytest

_CLIENT = boto3.Session("fake", "fake", region_name="us-east-1").client("s3")
_COPY = _CLIENT.meta.service_model.operation_model("CopyObject").input_shape

can_create = "IfNoneMatch" in _COPY.members
needs_once = pytest.mark.skipif(not can_create, reason="this boto3 does not know the condition")
either = pytest.mark.parametrize(
    "once",
    [False, pytest.param(True, marks=needs_once)],
    ids=["at-least-once", "once"],
)
"""A test of runs with `once` and without."""
