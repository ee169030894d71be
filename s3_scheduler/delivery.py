"""One event's way out of the folder: copied to its target, deleted, or set aside."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from botocore.exceptions import ClientError

from . import names
from .errors import InvalidEvent
from .objects import CHANGED, CONFLICT, GONE, UNSUPPORTED, copy, delete, error_code, head, move
from .report import Failure

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime, timedelta

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

    from .names import Event

logger = logging.getLogger(__name__)

RESENDS = 3
"""Times that a key is sent again which DeleteObjects reports as worth another try."""

# boto3 tries whole requests again, but not what DeleteObjects reports of a single key.
_TRY_AGAIN = {"InternalError", "ServiceUnavailable", "SlowDown", *CONFLICT}

# Answers of 4xx that say nothing of the event: the runner's credentials or clock, or the traffic.
# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_NOT_THE_EVENT = {
    "AccountProblem",
    "AuthFailure",
    "AuthorizationHeaderMalformed",
    "BadDigest",
    "BandwidthLimitExceeded",
    "CredentialsNotSupported",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteBody",
    "IncompleteSignature",
    "InternalError",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidToken",
    "LimitExceededException",
    "MissingAuthenticationToken",
    "NoSuchUpload",
    "NotSignedUp",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "RequestExpired",
    "RequestLimitExceeded",
    "RequestTimeTooSkewed",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SignatureDoesNotMatch",
    "SlowDown",
    "TokenRefreshRequired",
    "TooManyRequests",
    "TooManyRequestsException",
    "TransactionInProgressException",
    "UnrecognizedClientException",
    "XAmzContentSHA256Mismatch",
}


Outcome: TypeAlias = Failure | Literal["copied", "gone", "changed"]
"""What became of a copy; gone and changed: the object is no longer what was listed."""


@dataclass(frozen=True)
class Delivery:
    """The requests that a run makes for its events. It has no state, so that threads share it."""

    client: S3Client
    bucket: str
    prefix: str
    now: datetime
    retry_for: timedelta | None
    target_buckets: Collection[str] | None
    extra_args: Mapping[str, Any]

    def copy(self, event: Event) -> Outcome:
        """Copy an event to its target; what S3 will never take is set aside."""
        try:
            if self.target_buckets is not None and event.bucket not in self.target_buckets:
                raise InvalidEvent(
                    f"{event.bucket!r} is not one of target_buckets {sorted(self.target_buckets)}; "
                    "add it there if events may go to it"
                )
            copy(self.client, self.bucket, event, event.bucket, event.key, self.extra_args)
        except Exception as error:  # noqa: BLE001 - one bad event stops no other
            code = error_code(error)
            if code in GONE and (code != "404" or self._is_gone(event)):
                return "gone"
            if code in CHANGED:
                return "changed"
            return Failure(event, _alone(error), self._set_aside(event, error))
        return "copied"

    def _is_gone(self, event: Event) -> bool:
        # A 404 without a body does not tell what it misses.
        try:
            return head(self.client, self.bucket, event.name) is None
        except Exception:  # noqa: BLE001 - then it is not known to be
            return False

    def _set_aside(self, event: Event, error: Exception) -> bool:
        """Move the event to `failed/` if its time is over, and the fault its own."""
        if self.retry_for is None or self.now - event.due < self.retry_for:
            return False
        name = names.failed_name(self.prefix, event.name)
        if not _is_callers_fault(error) or len(name.encode()) > names.MAX_NAME:
            return False
        owner = self.extra_args.get("ExpectedSourceBucketOwner")
        owners = {"ExpectedBucketOwner": owner, "ExpectedSourceBucketOwner": owner} if owner else {}
        try:
            move(self.client, self.bucket, event, name, owners)
        except Exception as refusal:  # noqa: BLE001 - it stays, and is tried again
            logger.warning("%r could not be moved to %r: %s", event.name, name, refusal)
            return False
        return True

    def delete(self, batch: list[Event]) -> dict[str, Exception]:
        """Delete copied events that are still what was copied; returns the failures by name."""
        # The XML of DeleteObjects cannot hold every character that a key can.
        odd = [event for event in batch if not event.name.isprintable()]
        plain = [event for event in batch if event.name.isprintable()]
        return self._delete_together(plain) | self._delete_each(odd)

    def _delete_each(self, batch: list[Event]) -> dict[str, Exception]:
        errors: dict[str, Exception] = {}
        for event in batch:
            try:
                delete(self.client, self.bucket, event.name, event.etag)
            except Exception as error:  # noqa: BLE001 - the report carries it
                if error_code(error) not in GONE:
                    errors[event.name] = _alone(error)
        return errors

    def _delete_together(self, batch: list[Event]) -> dict[str, Exception]:
        errors: dict[str, Exception] = {}
        for resend in range(1 + RESENDS):
            if not batch:
                break
            if resend:
                time.sleep(0.1 * 2**resend)
            try:
                answers = self._delete_objects(batch)
            except Exception as error:  # noqa: BLE001 - the report carries it
                # A store that wants of DeleteObjects the MD5 that boto3 gave up sending.
                if error_code(error) == "MissingContentMD5":
                    return self._delete_each(batch)
                return errors | dict.fromkeys((event.name for event in batch), _alone(error))
            for event in batch:
                errors.pop(event.name, None)
            errors |= answers
            batch = [e for e in batch if error_code(errors.get(e.name)) in _TRY_AGAIN]
        return errors

    def _delete_objects(self, batch: list[Event]) -> dict[str, ClientError]:
        seen: list[ObjectIdentifierTypeDef] = [{"Key": e.name, "ETag": e.etag} for e in batch]
        try:
            answer = self.client.delete_objects(
                Bucket=self.bucket, Delete={"Objects": seen, "Quiet": True}
            )
        except ClientError as error:
            if error_code(error) not in {"MalformedXML", *UNSUPPORTED}:
                raise
            # A store without conditional deletes: what was listed has to do.
            answer = self.client.delete_objects(
                Bucket=self.bucket,
                Delete={"Objects": [{"Key": e.name} for e in batch], "Quiet": True},
            )
        return {
            error["Key"]: ClientError({"Error": error}, "DeleteObjects")
            for error in answer.get("Errors", ())
            if error["Code"] not in GONE
        }


def _is_callers_fault(error: Exception) -> bool:
    if not isinstance(error, ClientError):
        return isinstance(error, InvalidEvent)
    code = error_code(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    # An answer without a body has only its status for a code, which tells too little.
    tells = code not in _NOT_THE_EVENT and not code.isdigit() and "throttl" not in code.lower()
    return tells and status in range(400, 500) and status not in (401, 408, 409, 412, 429)


def _alone(error: Exception) -> Exception:
    """The error without the frames it came through, whose memory a report would keep."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
