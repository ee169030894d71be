"""The command line: `python -m s3_scheduler`, or `s3-scheduler`."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import signal
import sys
import time
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, unquote

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from . import demo, names
from .errors import AlreadyScheduled, InvalidEvent, NotScheduled
from .objects import error_code, head, move
from .runner import run_due
from .scheduler import CONFIG, Scheduler

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__package__)

_SECONDS = "%Y-%m-%dT%H:%M:%SZ"


def _span(text: str) -> timedelta:
    match = re.fullmatch("([0-9]{1,9})([smhd])", text)
    if not match:
        raise ArgumentTypeError(f"{text!r} is not a span of time; write it like 90s, 10m, 2h or 3d")
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    return timedelta(seconds=int(match[1]) * seconds[match[2]])


def _moment(text: str) -> datetime:
    try:
        if text == "now":
            return datetime.now(timezone.utc)
        return names.to_utc(_span(text[1:]) if text.startswith("+") else text)
    except InvalidEvent as error:
        raise ArgumentTypeError(
            f"{text!r} is not a moment with a time zone, in the years 1 to 9999; "
            "write it like 2030-01-31T09:00:00+01:00, or +2h for two hours from now"
        ) from error


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    return int(index), int(count)


_URI = re.compile(r"s3://(arn:[^/]+/[^/]+|[^/]+)/(.+)", re.DOTALL)
_EVENT = re.compile(r"(?P<folder>.+?)/[0-9]{4}-[0-9]{2}-[0-9]{2}T.+", re.DOTALL)

# An event's URI takes one line and can be given back. So control characters are escaped, and what
# looks like such an escape; any other URI is just the bucket and the name.
_ESCAPE = re.compile("%(?:[01][0-9A-F]|7F|25)")
_ESCAPED = re.compile(f"[\x00-\x1f\x7f]|{_ESCAPE.pattern}")


def _uri(bucket: str, key: str) -> str:
    return _ESCAPED.sub(lambda match: quote(match[0]), f"s3://{bucket}/{key}")


def _unescaped(uri: str) -> str:
    return _ESCAPE.sub(lambda match: unquote(match[0]), uri)


def _split(uri: str) -> tuple[str, str]:
    match = _URI.fullmatch(uri)
    if not match:
        raise InvalidEvent(f"{uri!r} is no URI of a folder or key; write it like s3://bucket/key")
    return match[1], match[2]


def _events(options: Namespace, client: S3Client) -> tuple[Scheduler, list[str]]:
    """The folder and the names: from URIs of events, or the folder's URI and names in it."""
    first, *rest = map(_unescaped, options.EVENT)
    bucket, key = _split(first)
    event = _EVENT.fullmatch(key)
    scheduler = Scheduler(bucket, event["folder"] if event else key, client)
    told = [first, *rest] if event else rest
    if not told and options.command != "retry":
        raise InvalidEvent(f"{first!r} is no event; write the names of some behind it")
    ends = (text.removeprefix(f"s3://{bucket}/").removeprefix(scheduler.prefix) for text in told)
    chosen = [scheduler.prefix + end for end in ends]
    for name in chosen:
        names.parse(scheduler.prefix, name)  # refuses what is no event, before any is touched
    # HEAD does not say what is missing, or why it is refused; LIST does.
    client.list_objects_v2(Bucket=bucket, Prefix=scheduler.prefix, MaxKeys=1)
    return scheduler, chosen


def schedule(options: Namespace, client: S3Client) -> int:
    """At WHEN, let the content of FILE appear at TARGET; prints the event's URI."""
    scheduler = Scheduler(*_split(options.FOLDER), client)
    target = _split(options.TARGET)
    replace = not options.no_replace
    extra = {"ContentType": options.content_type} if options.content_type else {}
    with open(options.FILE, "rb", closefd=options.FILE != 0) as file:
        body = file if replace or file.seekable() else file.read()
        try:
            name = scheduler.schedule(
                options.WHEN, *target, body, replace=replace, extra_args=extra
            )
        except AlreadyScheduled as error:
            uri = _uri(scheduler.bucket, error.name)
            complain(f"{uri} is already scheduled; to swap its content, leave out --no-replace")
            return 1
    print(_uri(scheduler.bucket, name))
    return 0


def list_(options: Namespace, client: S3Client) -> int:
    """Show what waits, soonest first: when (UTC), how far off, bytes, target."""
    bucket, folder = _split(options.FOLDER)
    if options.failed:
        folder = folder.rstrip("/") + "/failed"
    scheduler, event = Scheduler(bucket, folder, client), None
    for event in scheduler.pending(after=options.after, before=options.before):
        uri = _uri(bucket, event.name)
        if options.json:
            line = json.dumps(asdict(event) | {"due": names.stamp(event.due), "uri": uri})
        else:
            ahead = event.due - datetime.now(timezone.utc)
            off = f"in {_words(ahead)}" if ahead > timedelta() else f"{_words(-ahead)} late"
            where = uri if options.uri else _uri(event.bucket, event.key)
            line = f"{event.due:{_SECONDS}}  {off:>16}  {event.size:>9,} B  {where}"
        # At once: a reader who has seen enough ends us before the next request.
        print(line, flush=True)
    if not event:
        print(f"no events in s3://{bucket}/{scheduler.prefix}", file=sys.stderr)
    return 0


def _words(span: timedelta) -> str:
    """How long that is, as one would say it."""
    if span < timedelta(minutes=1):
        return f"{span.seconds} s"
    hours, minutes = divmod(round(span / timedelta(minutes=1)), 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h".removesuffix(" 0 h")
    return f"{hours} h {minutes} min".removesuffix(" 0 min") if hours else f"{minutes} min"


_NOT_WAITING = "is not waiting: it was delivered or cancelled, or never scheduled"


def cancel(options: Namespace, client: S3Client) -> int:
    """Remove events; exit code 1 if any was no longer waiting."""
    status = 0
    scheduler, chosen = _events(options, client)
    for name in chosen:
        uri = _uri(scheduler.bucket, name)
        if scheduler.cancel(name):
            print(f"cancelled {uri}")
        else:
            complain(f"{uri} {_NOT_WAITING}")
            status = 1
    return status


def reschedule(options: Namespace, client: S3Client) -> int:
    """Move events to another moment; prints their new URIs."""
    status = 0
    scheduler, chosen = _events(options, client)
    if scheduler.prefix.endswith("/failed/"):
        raise InvalidEvent(f"what is in {scheduler.prefix} has failed; retry it first")
    for name in chosen:
        try:
            print(_uri(scheduler.bucket, scheduler.reschedule(name, options.WHEN)))
        except NotScheduled:
            complain(f"{_uri(scheduler.bucket, name)} {_NOT_WAITING}")
            status = 1
    return status


def retry(options: Namespace, client: S3Client) -> int:
    """Put failed events back, all of a folder or some; prints their URIs."""
    status = 0
    given, chosen = _events(options, client)
    home = Scheduler(given.bucket, given.prefix.removesuffix("/failed/"), client)
    failed = Scheduler(home.bucket, home.prefix + "failed", client)
    missing = {failed.prefix + name.removeprefix(given.prefix) for name in chosen}
    for event in failed.pending():
        if chosen and event.name not in missing:
            continue
        missing.discard(event.name)
        name = home.prefix + event.name.removeprefix(failed.prefix)
        if head(client, failed.bucket, name):
            uri = _uri(failed.bucket, event.name)
            complain(f"{uri} stays: the same event is waiting again; cancel one of the two")
            status = 1
        else:
            move(client, failed.bucket, event, name)
            print(_uri(failed.bucket, name))
    for name in sorted(missing):
        complain(f"{_uri(failed.bucket, name)} is not there: was it put back, or cancelled?")
        status = 1
    return status


def run(options: Namespace, client: S3Client) -> int:
    """Deliver what is due, once or every so often; exit code 1 if the last run had failures."""
    scheduler = Scheduler(*_split(options.FOLDER), client)
    log = _Log()
    logger.addHandler(log)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    # An interrupted run finishes what is in flight.
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            began = time.monotonic()
            log.failures = 0
            _run_once(scheduler, options)
            # Python drops what a handler raises while, say, a finalizer is at work.
            if not options.every or signal.getsignal(signal.SIGTERM) is not _stop:
                break
            time.sleep(max(0.0, began + options.every - time.monotonic()))
    return 1 if log.failures else 0


def _stop(*_: object) -> NoReturn:
    # Once is enough: a second signal must not disturb the finishing.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run_once(scheduler: Scheduler, options: Namespace) -> None:
    try:
        report = run_due(
            scheduler,
            time_limit=options.time_limit,
            retry_for=options.retry_for,
            target_buckets=options.target_buckets,
            shard=options.shard,
        )
    except (BotoCoreError, ClientError) as error:
        if not options.every:
            raise
        logger.error("%s; trying again in %g s", error, options.every)  # noqa: TRY400 - one line
        return
    facts = []
    if report.copied:
        facts.append(f"{report.copied} delivered, up to {_words(report.max_delay)} late")
    if report.failed_count:
        facts.append(f"{report.failed_count} failed")
    if report.unfinished:
        facts.append("more are due")
    if facts:
        print(f"{datetime.now(timezone.utc):{_SECONDS}}  {'; '.join(facts)}", flush=True)


class _Log(logging.Handler):
    """Shows what the library logs, and counts failures: an interrupted run has no report."""

    failures = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.failures += 1
        errors = [value for value in record.args or () if isinstance(value, Exception)]
        complain(record.getMessage(), *errors)


_CREDENTIALS = "renew the credentials, or choose others with --profile"
_NETWORK = "check the network and --endpoint-url"
_ADVICE = {
    "NoSuchBucket": "create the bucket, or correct its name",
    "AccessDenied": "grant the permission to these credentials, or use others",
    "NoCredentialsError": "set them up with `aws configure`, or choose some with --profile",
    "ExpiredToken": _CREDENTIALS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "PermanentRedirect": "name the bucket's own --region",
    "RequestTimeTooSkewed": "set this machine's clock",
    "EndpointConnectionError": _NETWORK,
    "ConnectTimeoutError": _NETWORK,
    "ReadTimeoutError": _NETWORK,
}


def complain(text: str, error: Exception | None = None) -> None:
    """Say it on standard error, in one line, with advice about the error."""
    advice = _ADVICE.get(error_code(error) or type(error).__name__)
    line = " ".join(text.splitlines()).rstrip(".")
    line = f"{line}; {advice}" if advice else line
    with contextlib.suppress(OSError):  # nobody reads
        print(f"s3-scheduler: {line}", file=sys.stderr)


_FOLDER_HELP = "such as s3://my-bucket/later"
_WHEN_HELP = "with a zone, like 2030-01-31T09:00:00Z; or from now, like +10m, +2h, +3d; or now"
_EVENTS_HELP = "URIs (quote them: they hold a |), or the folder's URI and names"
_EXAMPLE = "'s3://my-bucket/later/2030-01-31T09:00:00.000000Z|shop|welcome/42.json'"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="s3-scheduler",
        description="One-time events in a folder of an S3 bucket: see them, change them, run them.",
        epilog="exit codes: 0, done; 1, an event was not waiting, or failed in the last run; "
        "2, it could not be done",
    )
    _add_settings(parser, None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    example = "s3://my-bucket/later +2h s3://shop/welcome/42.json welcome.json"
    add = _command(commands, "schedule", schedule, example)
    add("FOLDER", help=_FOLDER_HELP)
    add("WHEN", type=_moment, help=_WHEN_HELP)
    add("TARGET", help="such as s3://shop/welcome/42.json")
    add("FILE", type=lambda path: 0 if path == "-" else path, help="-: standard input")
    add("--no-replace", action="store_true", help="exit code 1 if this very event is waiting")
    add("--content-type", metavar="TYPE", help="such as text/plain")

    add = _command(commands, "list", list_, "s3://my-bucket/later --until +1h")
    add("FOLDER", help=_FOLDER_HELP)
    add("--from", metavar="T", type=_moment, dest="after", help="due at such a WHEN or later")
    add("--until", metavar="T", type=_moment, dest="before", help="due before such a WHEN")
    add("--failed", action="store_true", help="what was moved to FOLDER/failed instead")
    add("--uri", action="store_true", help="the events' URIs, as cancel takes them, not targets")
    add("--json", action="store_true", help="one JSON object a line")

    add = _command(commands, "cancel", cancel, _EXAMPLE)
    add("EVENT", nargs="+", help=_EVENTS_HELP)

    add = _command(commands, "reschedule", reschedule, f"{_EXAMPLE} +3d")
    add("EVENT", nargs="+", help=_EVENTS_HELP)
    add("WHEN", type=_moment, help=_WHEN_HELP)

    add = _command(commands, "retry", retry, "s3://my-bucket/later")
    add("EVENT", nargs="+", help=f"the folder's URI alone, for all; {_EVENTS_HELP}")

    add = _command(commands, "run", run, "s3://my-bucket/later --every 60 --time-limit 50")
    add("FOLDER", help=_FOLDER_HELP)
    add("--every", metavar="SECONDS", type=float, help="again, until SIGTERM or Ctrl-C")
    add("--time-limit", metavar="SECONDS", type=float, help="begin nothing after it")
    add("--shard", metavar="I/N", type=_shard, default=(0, 1), help="of two at once: 0/2, 1/2")
    text = "the only one that events may go to, or one of several"
    add("--target-bucket", metavar="B", action="append", dest="target_buckets", help=text)
    text = "before a failing event is moved to failed/, like 90m or 7d; 1d if not given"
    add("--retry-for", metavar="SPAN", type=_span, default="1d", help=text)

    text = "Watch it at work on an S3 server of its own: no AWS account needed."
    commands.add_parser("demo", help=text, description=text)
    return parser


def _command(commands: Any, name: str, run: Any, example: str) -> Any:
    text, epilog = run.__doc__, f"example: s3-scheduler {name} {example}"
    command = commands.add_parser(name, help=text, description=text, epilog=epilog)
    command.formatter_class = argparse.RawDescriptionHelpFormatter  # it would wrap the example
    command.set_defaults(run=run)
    _add_settings(command, SUPPRESS)  # or it would undo what stands before the command
    return command.add_argument


def _add_settings(parser: ArgumentParser, default: Any) -> None:
    add = parser.add_argument
    add("--endpoint-url", metavar="URL", default=default, help="of an S3 that is not Amazon's")
    add("--profile", metavar="NAME", default=default, help="of your AWS configuration")
    add("--region", metavar="NAME", default=default, help="of the folder's bucket")
    add("--debug", action="store_true", default=default, help="show tracebacks")


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code; `argv` without the program, None: the shell's."""
    options = _parser().parse_args(argv)
    try:
        if options.command == "demo":
            return demo.main()
        session = boto3.Session(profile_name=options.profile, region_name=options.region)
        client = session.client("s3", endpoint_url=options.endpoint_url, config=CONFIG)
        status: int = options.run(options, client)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has seen enough: what is still in the buffer goes nowhere, in silence.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0 if options.command == "list" else 141
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if options.debug:
            raise
        complain(str(error), error)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
