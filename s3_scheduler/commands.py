"""The commands of the command line, thin over the library; True asks for exit code 1."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import signal
import sys
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, BinaryIO, NoReturn
from urllib.parse import quote, unquote

from botocore.exceptions import BotoCoreError, ClientError

from . import names
from .errors import AlreadyScheduled, InvalidEvent, NotScheduled
from .objects import CHANGED, CONFLICT, GONE, error_code, head, move
from .runner import run_due
from .scheduler import Scheduler

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client

    from .names import Event

# A URI is one line, and what is printed is taken back: escaped is only what would break the line
# or move a cursor, and a % that would read as such an escape.
_URI = re.compile(r"s3://(arn:[^/]+:accesspoint[:/][^/]+|[^/]+)/(.+)", re.DOTALL)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ESCAPE = re.compile("%(?:[01][0-9A-F]|25|7F|C2%[89][0-9A-F]|E2%80%A[89])")


def _uri(bucket: str, key: str) -> str:
    marked = _ESCAPE.sub(lambda escape: "%25" + escape[0][1:], f"s3://{bucket}/{key}")
    return _CONTROL.sub(lambda character: quote(character[0]), marked)


def _read_uri(text: str) -> tuple[str, str]:
    match = _URI.fullmatch(text)
    if not match:
        raise InvalidEvent(f"{text!r} is no URI of a folder or key; write it like s3://bucket/key")
    return match[1], match[2]


def _scheduler(uri: str, client: S3Client) -> Scheduler:
    return Scheduler(*_read_uri(uri), client)


def _chosen(arguments: list[str], client: S3Client) -> list[tuple[Scheduler, str]]:
    """Folders and names, from whole URIs and `FOLDER NAME…`; a folder alone has no name."""
    chosen: list[tuple[Scheduler, str]] = []
    for argument in arguments:
        if argument.startswith("s3://"):
            bucket, name = _read_uri(_ESCAPE.sub(lambda escape: unquote(escape[0]), argument))
            folder = _folder_of(name)
            base = names.folder_prefix(folder or name)
        elif chosen:
            name = base + argument.removeprefix(base)
            folder = _folder_of(name)
            if not folder:
                raise InvalidEvent(f"{argument!r} is not the name of an event; see what list says")
            if not chosen[-1][1]:
                chosen.pop()
        else:
            raise InvalidEvent(
                f"{argument!r} follows no folder; write s3://bucket/folder before it"
            )
        chosen.append((Scheduler(bucket, folder or name, client), name if folder else ""))
    return chosen


def _folder_of(key: str) -> str:
    """The folder that the key is an event of, if it is."""
    for slash in re.finditer("/", key):
        with contextlib.suppress(InvalidEvent):
            names.parse(key[: slash.end()], key)
            return key[: slash.start()]
    return ""


def _events(options: Namespace, client: S3Client) -> list[tuple[Scheduler, str]]:
    chosen = _chosen(options.EVENT, client)
    if not all(name for _, name in chosen):
        raise InvalidEvent("a folder alone tells no event; write the names of some behind it")
    return chosen


def _not_there(scheduler: Scheduler, name: str, why: str) -> bool:
    # HEAD answers 404 for a missing bucket, too; LIST says which it is.
    scheduler.client.list_objects_v2(Bucket=scheduler.bucket, Prefix=scheduler.prefix, MaxKeys=1)
    complain(f"{_uri(scheduler.bucket, name)} {why}")
    return True


_NOT_WAITING = "is not waiting: it was delivered or cancelled, or never scheduled"


def schedule(options: Namespace, client: S3Client) -> bool:
    """Write an event."""
    scheduler = _scheduler(options.FOLDER, client)
    bucket, key = _read_uri(options.TARGET)
    extra = {"ContentType": options.content_type} if options.content_type else {}
    file = 0 if options.FILE == "-" else options.FILE
    with open(file, "rb", closefd=file != 0) as opened:
        body: BinaryIO = opened
        if options.no_replace and not body.seekable():
            body = io.BytesIO(body.read())
        try:
            name = scheduler.schedule(
                options.WHEN, bucket, key, body, replace=not options.no_replace, extra_args=extra
            )
        except AlreadyScheduled as error:
            uri = _uri(scheduler.bucket, error.name)
            complain(f"{uri} is already scheduled; to swap its content, leave out --no-replace")
            return True
    print(_uri(scheduler.bucket, name))
    return False


def list_(options: Namespace, client: S3Client) -> bool:
    """Show events, soonest first."""
    scheduler = _scheduler(options.FOLDER.rstrip("/") + "/failed" * options.failed, client)
    # A pipe holds a page of lines: in a short one, `| head` ends us before the next request.
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl  # noqa: PLC0415  (Linux)

        fcntl.fcntl(sys.stdout, fcntl.F_SETPIPE_SZ, 4096)
    event = None
    for event in scheduler.pending(after=getattr(options, "from"), before=options.until):
        uri = _uri(scheduler.bucket, event.name)
        print(_json(event, uri) if options.json else _line(event, uri if options.uri else None))
    if not event:
        _say_none(scheduler)
    return False


def _say_none(scheduler: Scheduler) -> None:
    print(f"no events in {_uri(scheduler.bucket, scheduler.prefix)}", file=sys.stderr)


def _json(event: Event, uri: str) -> str:
    due = names.stamp(event.due)
    fields = {"bucket": event.bucket, "key": event.key, "name": event.name, "size": event.size}
    return json.dumps({"due": due, **fields, "etag": event.etag, "uri": uri})


def _line(event: Event, uri: str | None) -> str:
    ahead = event.due - datetime.now(timezone.utc)
    off = f"in {_words(ahead)}" if ahead > timedelta() else f"{_words(-ahead)} late"
    where = uri or _uri(event.bucket, event.key)
    return f"{names.stamp(event.due)[:19]}Z  {off:>16}  {event.size:>9,} B  {where}"


_MINUTE, _HOUR, _DAY = 60, 3600, 86400  # seconds


def _words(span: timedelta) -> str:
    """How long that is, as one would say it."""
    seconds = span.total_seconds()
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    large, small, unit, units = (
        ("h", "min", _MINUTE, 60) if seconds < _DAY else ("d", "h", _HOUR, 24)
    )
    count, rest = divmod(round(seconds / unit), units)
    return f"{count} {large} {rest} {small}" if rest else f"{count} {large}"


def cancel(options: Namespace, client: S3Client) -> bool:
    """Remove events."""
    amiss = False
    for scheduler, name in _events(options, client):
        if scheduler.cancel(name):
            print(f"cancelled {_uri(scheduler.bucket, name)}")
        else:
            amiss = _not_there(scheduler, name, _NOT_WAITING)
    return amiss


def reschedule(options: Namespace, client: S3Client) -> bool:
    """Move events to another moment."""
    amiss = False
    events = _events(options, client)
    for scheduler, name in events:
        if scheduler.prefix.endswith("/failed/"):
            raise InvalidEvent(f"{_uri(scheduler.bucket, name)} has failed; retry it first")
    for scheduler, name in events:
        try:
            print(_uri(scheduler.bucket, scheduler.reschedule(name, options.WHEN)))
        except NotScheduled:
            amiss = _not_there(scheduler, name, _NOT_WAITING)
    return amiss


def retry(options: Namespace, client: S3Client) -> bool:
    """Put failed events back."""
    amiss = False
    for folder, name in _chosen(options.EVENT, client):
        home = Scheduler(folder.bucket, folder.prefix.removesuffix("/failed/"), client)
        away = Scheduler(folder.bucket, home.prefix + "failed", client)
        failed = away.prefix + name.removeprefix(folder.prefix)
        event = None
        for event in [_find(away, failed)] if name else away.pending():
            amiss |= event is None or _put_back(home, away, event)
        if not event and not name:
            _say_none(away)
    return amiss


def _find(away: Scheduler, name: str) -> Event | None:
    seen = head(away.client, away.bucket, name)
    if seen:
        due, bucket, key = names.parse(away.prefix, name)
        return names.Event(due, bucket, key, name, seen["ContentLength"], seen["ETag"])
    _not_there(away, name, "is not there: it was put back or cancelled, or never failed")
    return None


def _put_back(home: Scheduler, away: Scheduler, event: Event) -> bool:
    name, uri = home.prefix + event.name.removeprefix(away.prefix), _uri(home.bucket, event.name)
    if head(home.client, home.bucket, name):
        complain(f"{uri} stays: the same event is waiting again; cancel one of the two")
        return True
    try:
        move(home.client, home.bucket, event, name)
    except ClientError as error:
        if error_code(error) not in GONE | CHANGED | CONFLICT:
            raise
        complain(f"{uri} changed meanwhile, or is gone; look again")
        return True
    print(_uri(home.bucket, name))
    return False


def run(options: Namespace, client: S3Client) -> bool:
    """Run once, or every so often until a signal comes."""
    scheduler = _scheduler(options.FOLDER, client)
    log, library = _Log(), logging.getLogger(__package__)
    library.addHandler(log)
    _at_signals(_stop)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                began = time.monotonic()
                log.failed = False
                _run_once(scheduler, options, log)
                # Python drops what a handler raises while, say, a finalizer is at work.
                if not options.every or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
                    break
                time.sleep(max(0.0, began + options.every - time.monotonic()))
    finally:
        _at_signals(signal.SIG_IGN)  # nothing is left to stop
        library.removeHandler(log)
    return log.failed


def _run_once(scheduler: Scheduler, options: Namespace, log: _Log) -> None:
    keywords = ("time_limit", "retry_for", "shard")
    try:
        report = run_due(
            scheduler,
            target_buckets=options.target_bucket,
            **{keyword: getattr(options, keyword) for keyword in keywords},
        )
    except (BotoCoreError, ClientError) as error:
        if not options.every:
            raise
        log.failed = True
        complain(f"{explain(error)}; trying again in {options.every:g} s")
        return
    facts = [f"{report.copied} delivered, up to {_words(report.max_delay)} late"]
    facts = facts * bool(report.copied) + [f"{report.failed_count} failed"] * log.failed
    facts += ["more are due"] * report.unfinished
    if facts:
        print(f"{names.stamp(datetime.now(timezone.utc))[:19]}Z  {'; '.join(facts)}", flush=True)


def _at_signals(handler: Callable[..., object] | signal.Handlers) -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, handler)


def _stop(*_: object) -> NoReturn:
    _at_signals(signal.SIG_IGN)  # once is enough: a second must not disturb the finishing
    with contextlib.suppress(OSError):
        os.write(2, b"s3-scheduler: stopping; what is in flight is finished\n")
    raise KeyboardInterrupt


class _Log(logging.StreamHandler):  # type: ignore[type-arg]
    """What the library logs, shown as it happens: an interrupted run has no report."""

    failed = False

    def format(self, record: logging.LogRecord) -> str:
        self.failed |= record.levelno >= logging.ERROR
        advice = [_advice(value) for value in record.args or () if isinstance(value, Exception)]
        message = record.getMessage().rstrip(".")
        return _one_line("; ".join([f"s3-scheduler: {message}", *filter(None, advice)]))


_ADVICE = {
    "create the bucket, or correct its name": "NoSuchBucket",
    "grant the permission to these credentials, or use others": "AccessDenied 403",
    "set them up with `aws configure`, or choose some with --profile": (
        "NoCredentialsError PartialCredentialsError CredentialRetrievalError ProfileNotFound"
    ),
    "renew the credentials, or choose others with --profile": (
        "ExpiredToken InvalidAccessKeyId InvalidToken SignatureDoesNotMatch SSOError "
        "TokenRetrievalError 400"
    ),
    "name the bucket's own --region": "PermanentRedirect AuthorizationHeaderMalformed 301",
    "set this machine's clock": "RequestTimeTooSkewed",
    "check the network and --endpoint-url": "ConnectionError HTTPClientError",
}


def _advice(error: Exception) -> str:
    codes = {error_code(error), *(kind.__name__ for kind in type(error).__mro__)}
    return next((text for text, known in _ADVICE.items() if codes & {*known.split()}), "")


def explain(error: Exception) -> str:
    """Say what went wrong, and what to do about it."""
    return "; ".join(filter(None, [str(error).rstrip("."), _advice(error)]))


def complain(text: str) -> None:
    """Say it on standard error."""
    print(_one_line(f"s3-scheduler: {text}"), file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())
