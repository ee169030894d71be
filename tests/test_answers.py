"""What an answer of S3 means, by its code and status."""

from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ParamValidationError,
    ReadTimeoutError,
    UnsupportedS3AccesspointConfigurationError,
)

from s3_scheduler.answers import (
    UnconfirmedAnswer,
    error_code,
    http_status,
    is_callers_fault,
    is_throttling,
    is_transient,
    may_have_arrived,
    was_retried,
    without_traceback,
)
from s3_scheduler.errors import CopyRefused


def answer(status, code, **metadata):
    response: Any = {
        "Error": {"Code": code, "Message": ""},
        "ResponseMetadata": {"HTTPStatusCode": status, **metadata},
    }
    return ClientError(response, "CopyObject")


ELSEWHERE = EndpointConnectionError(endpoint_url="http://127.0.0.1")
TIMED_OUT = ReadTimeoutError(endpoint_url="http://127.0.0.1")
NO_ARN = UnsupportedS3AccesspointConfigurationError(msg="no")


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (answer(403, "AccessDenied"), "AccessDenied", 403),
        (ClientError({"Error": {"Code": "NoSuchKey"}}, "DeleteObjects"), "NoSuchKey", 0),
        (ClientError({}, "CopyObject"), "", 0),
        (NO_ARN, "InvalidTarget", 0),
        (ParamValidationError(report="Invalid bucket name"), "InvalidTarget", 0),
        (CopyRefused("TargetNotAllowed", "not one of them"), "TargetNotAllowed", 0),
        (ELSEWHERE, "", 0),
        (OSError(), "", 0),
        (None, "", 0),
    ],
)
def test_codes(error, code, status):
    """An error has S3's code and status, or this library's code, or neither."""
    assert (error_code(error), http_status(error)) == (code, status)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "NoSuchBucket"),
        (403, "AccessDenied"),
        (403, "AllAccessDisabled"),
        (403, "InvalidObjectState"),
        (400, "InvalidRequest"),
        (400, "KeyTooLongError"),
        (400, "EntityTooLarge"),
        (400, "InvalidTag"),
        (405, "MethodNotAllowed"),
    ],
)
def test_the_callers_fault(status, code):
    """What S3 refuses, and will refuse again, goes to quarantine in the end."""
    assert is_callers_fault(answer(status, code))
    assert not is_transient(answer(status, code))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (500, "InternalError"),
        (501, "NotImplemented"),
        (503, "SlowDown"),
        (503, "ServiceUnavailable"),
        (400, "RequestTimeout"),
        (500, "Unheard"),
        (408, "Unheard"),
        (429, "Unheard"),
        (408, "RequestTimeout"),
        (409, "OperationAborted"),
        (409, "ConditionalRequestConflict"),
        (412, "PreconditionFailed"),
        (429, "TooManyRequests"),
        (400, "ThrottlingException"),
        (403, "RequestThrottled"),
        (400, "ExpiredToken"),
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (403, "RequestTimeTooSkewed"),
        (401, "Unauthorized"),
        (403, "403"),
        (404, "404"),
        (0, "AccessDenied"),
    ],
)
def test_not_the_callers_fault(status, code):
    """Outages, throttling, the runner's credentials and clock, and mere statuses quarantine
    nothing.
    """
    assert not is_callers_fault(answer(status, code))


@pytest.mark.parametrize(
    ("error", "at_fault"),
    [
        (NO_ARN, True),
        (CopyRefused("TargetExists", "it holds something else"), True),
        (UnconfirmedAnswer("nothing said"), False),
        (TIMED_OUT, False),
        (ELSEWHERE, False),
        (MemoryError(), False),
    ],
)
def test_faults_that_are_not_answers(error, at_fault):
    """What is refused before anything is sent is the event's own fault; silence is not."""
    assert is_callers_fault(error) is at_fault


def test_what_the_library_itself_refuses():
    """Such an error says its code and its reason, as one of S3's does."""
    assert str(CopyRefused("TargetExists", "it is there")) == "TargetExists: it is there"


@pytest.mark.parametrize(
    ("error", "throttled", "transient"),
    [
        (answer(503, "SlowDown"), True, True),
        (answer(503, "503"), True, True),
        (answer(429, "429"), True, True),
        (answer(400, "Throttling"), True, True),
        (answer(400, "KMS.ThrottlingException"), True, True),
        (ClientError({"Error": {"Code": "SlowDownWrite"}}, "DeleteObjects"), True, True),
        (answer(500, "InternalError"), False, True),
        (answer(500, "500"), False, True),
        (answer(409, "OperationAborted"), False, True),
        (answer(403, "AccessDenied"), False, False),
        (TIMED_OUT, False, False),
    ],
)
def test_for_the_moment(error, throttled, transient):
    """Throttling asks for fewer requests; that and internal errors may be over in a moment."""
    assert (is_throttling(error), is_transient(error)) == (throttled, transient)


def test_success_is_not_transient():
    """Where there is no error there is nothing to send again."""
    assert not is_transient(None)


@pytest.mark.parametrize(
    ("error", "maybe"),
    [
        (TIMED_OUT, True),
        (UnconfirmedAnswer("nothing said"), True),
        (answer(500, "InternalError"), False),
        (answer(200, "500"), True),
        (answer(502, "502"), True),
        (answer(504, "504"), True),
        (NO_ARN, False),
        (OSError(), False),
    ],
)
def test_what_may_have_arrived(error, maybe):
    """After silence, or an answer that confirms nothing, nobody knows whether S3 has acted."""
    assert may_have_arrived(error) is maybe


def test_what_was_never_sent():
    """A connection that was never made has carried nothing."""
    assert not may_have_arrived(ConnectTimeoutError(endpoint_url="http://127.0.0.1"))
    assert not may_have_arrived(ELSEWHERE)


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (answer(404, "NoSuchKey", RetryAttempts=1), True),
        (answer(404, "NoSuchKey", RetryAttempts=0), False),
        (answer(404, "NoSuchKey"), False),
        (OSError(), False),
        (None, False),
    ],
)
def test_was_retried(error, retried):
    """boto3 tells whether an answer is that to a second attempt."""
    assert was_retried(error) is retried


def test_without_traceback():
    """An error that a report keeps holds no frames and no other errors."""
    try:
        try:
            raise ELSEWHERE
        except EndpointConnectionError as error:
            raise NO_ARN from error
    except UnsupportedS3AccesspointConfigurationError as error:
        kept = without_traceback(error)
    assert kept is NO_ARN
    assert kept.__traceback__ is kept.__cause__ is kept.__context__ is None
