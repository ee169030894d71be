"""What an answer of S3, or its absence, means. Pure: no I/O."""

import re
from typing import Any

from botocore import exceptions
from botocore.exceptions import ClientError, HTTPClientError

from .errors import CopyRefused, SchedulerError

# An answer to HEAD has no body, and so no code but its status.
GONE = {"NoSuchKey", "404"}
CHANGED = {"PreconditionFailed", "412"}
CONFLICT = {"ConditionalRequestConflict", "OperationAborted", "409"}
UNSUPPORTED = {"NotImplemented", "501"}

_THROTTLED = re.compile(
    "(?i)throttl|throughput|slowdown|unavailable|toomanyrequests|(^|request|bandwidth)limitexceeded"
)

# Codes of 4xx that say nothing of the event: the runner's credentials or clock, or the network.
# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
# https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html
_ENVIRONMENT_CODES = """
    AccountProblem AuthFailure AuthorizationHeaderMalformed BadDigest CredentialsNotSupported
    ExpiredToken ExpiredTokenException IncompleteBody IncompleteSignature InvalidAccessKeyId
    InvalidClientTokenId InvalidSecurity InvalidToken MissingAuthenticationToken NoSuchUpload
    NotSignedUp PriorRequestNotComplete RequestExpired RequestTimeTooSkewed RequestTimeout
    SignatureDoesNotMatch TokenRefreshRequired UnrecognizedClientException XAmzContentSHA256Mismatch
""".split()  # noqa: SIM905 - with a line for each of these words nobody would read on

# What botocore itself refuses to send: a bucket that has no endpoint.
_INVALID_TARGET = (
    exceptions.EndpointProviderError,
    exceptions.ParamValidationError,
    exceptions.UnsupportedS3AccesspointConfigurationError,
    exceptions.UnsupportedS3ConfigurationError,
)


class UnconfirmedAnswer(SchedulerError):
    """An answer of 200 that lacks what would confirm that S3 did what was asked."""


def confirmed(answer: Any, field: str, what: str) -> str:
    """The field of an answer; raises `UnconfirmedAnswer` without it: boto3 takes any 200."""
    if not answer.get(field):
        raise UnconfirmedAnswer(f"S3 answered 200 and did not confirm {what}")
    return str(answer[field])


def error_code(error: BaseException | None) -> str:
    """S3's error code, or this library's; empty if the error has none."""
    if isinstance(error, ClientError):
        return error.response.get("Error", {}).get("Code") or ""
    if isinstance(error, _INVALID_TARGET):
        return "InvalidTarget"
    return error.code if isinstance(error, CopyRefused) else ""


def http_status(error: BaseException | None) -> int:
    """The HTTP status of S3's answer; 0 if the error is not an answer."""
    return int(_metadata(error).get("HTTPStatusCode", 0))


def was_retried(error: BaseException | None) -> bool:
    """True if boto3 sent the request more than once, so that an earlier attempt may have acted."""
    return bool(_metadata(error).get("RetryAttempts"))


def _metadata(error: BaseException | None) -> Any:
    return error.response.get("ResponseMetadata", {}) if isinstance(error, ClientError) else {}


def is_throttling(error: Exception | None) -> bool:
    """True if S3 asked for fewer requests, and says nothing of this one."""
    return http_status(error) in (429, 503) or bool(_THROTTLED.search(error_code(error)))


def is_transient(error: Exception | None) -> bool:
    """True if the same request may succeed in a moment."""
    return is_throttling(error) or error_code(error) in {"InternalError", "500", *CONFLICT}


def is_callers_fault(error: Exception) -> bool:
    """True if S3 will refuse this event until somebody mends it, its target or a policy."""
    code, status = error_code(error), http_status(error)
    if not isinstance(error, ClientError):
        return bool(code)
    # An answer without a body has only its status for a code, which tells too little.
    tells = code not in _ENVIRONMENT_CODES and not code.isdigit() and not is_throttling(error)
    return tells and status in range(400, 500) and status not in (401, 408, 409, 412, 429)


def may_have_arrived(error: Exception) -> bool:
    """True if a request was sent and its answer, if any, does not tell whether S3 acted."""
    # A gateway's answer, or one that was cut short, has no code of S3's own.
    unread = error_code(error) in {"500", "502", "504"}
    return unread or isinstance(error, HTTPClientError | UnconfirmedAnswer)


def without_traceback(error: Exception) -> Exception:
    """The error without the frames it came through, whose memory a report would keep."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
