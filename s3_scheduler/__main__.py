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
import traceback
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, unquote

import boto3

from . import demo, names
from .errors import AlreadyScheduled, InvalidEvent, NotScheduled
from .objects import head, move
from .runner import run_due
from .scheduler import CONFIG, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__package__)

_SECONDS = "%Y-%m-%dT%H:%M:%SZ"
_EVENT = re.compile(r"(?P<folder>.+?)/[0-9]{4}-[0-9]{2}-[0-9]{2}T.+", re.DOTALL)


def _split(uri: str) -> tuple[str, str]:
    match = re.fullmatch(r"s3://(arn:.+?accesspoint[/:][^/]+|[^/]+)/(.+)", uri, re.DOTALL)
    if not match:
        raise InvalidEvent(f"{uri!r} is no URI of a folder or key; write it like s3://bucket/key")
    return match[1], match[2]


def _uri(bucket: str, key: str) -> str:
    # One line, whatever the key, which `_plain` takes back.
    return f"s3://{bucket}/" + re.sub("[%\x00-\x1f\x7f]", lambda match: quote(match[0]), key)


def _plain(text: str) -> str:
    # Only the URIs of events are escaped, and in them no more than `_uri` escapes.
    if not (text.startswith("s3://") and _EVENT.fullmatch(text)):
        return text
    return re.sub("%(?:[01][0-9A-F]|25|7F)", lambda match: unquote(match[0]), text)


def schedule(options: Namespace, client: S3Client) -> int:
    """At WHEN, let the content of FILE appear at TARGET; prints the event's URI."""
    scheduler = Scheduler(*_split(options.FOLDER), client)
    target = _split(options.TARGET)
    extra = {"ContentType": options.content_type} if options.content_type else {}
    with open(options.FILE, "rb", closefd=options.FILE != 0) as file:
        body = file if options.replace or file.seekable() else file.read()
        name = scheduler.schedule(
            options.WHEN, *target, body, replace=options.replace, extra_args=extra
        )
    print(_uri(scheduler.bucket, name))
    return 0


def list_(options: Namespace, client: S3Client) -> int:
    """Show what waits, soonest first: when (UTC), how far off, bytes, target."""
    bucket, folder = _split(options.FOLDER)
    if options.failed:
        folder = names.folder_prefix(folder) + "failed"
    scheduler = Scheduler(bucket, folder, client)
    for event in scheduler.pending(after=options.after, before=options.before):
        uri = _uri(bucket, event.name)
        if options.json:
            line = json.dumps(asdict(event) | {"due": names.stamp(event.due), "uri": uri})
        else:
            ahead = event.due - datetime.now(timezone.utc)
            off = f"in {_words(ahead)}" if ahead > timedelta() else f"{_words(-ahead)} late"
            where = uri if options.uri else _uri(event.bucket, event.key)
            line = f"{event.due:{_SECONDS}}  {off:>16}  {event.size:>14,} B  {where}"
        # At once: a reader who has seen enough ends us before the next request.
        print(line, flush=True)
    return 0


def _words(span: timedelta) -> str:
    hours, minutes = divmod(span.seconds // 60, 60)
    if span.days:
        return f"{span.days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{span.seconds} s"


def cancel(options: Namespace, client: S3Client) -> int:
    """Remove events, and print their URIs."""

    def remove(scheduler: Scheduler, name: str) -> str:
        if not scheduler.cancel(name):
            raise NotScheduled(name)
        return name

    return _change(options, client, remove)


def reschedule(options: Namespace, client: S3Client) -> int:
    """Move events to WHEN, in place of any there for the same target, and print their new URIs."""

    def move_on(scheduler: Scheduler, name: str) -> str:
        if scheduler.prefix.endswith("/failed/"):
            raise InvalidEvent(f"what is in {scheduler.prefix} has failed; retry it first")
        return scheduler.reschedule(name, options.WHEN)

    return _change(options, client, move_on)


def retry(options: Namespace, client: S3Client) -> int:
    """Put failed events back, all of a folder or some, and print their URIs."""

    def put_back(failed: Scheduler, name: str) -> str:
        seen = head(client, failed.bucket, name)
        if not seen:
            raise NotScheduled(name)
        new_name = failed.prefix.removesuffix("failed/") + name.removeprefix(failed.prefix)
        if head(client, failed.bucket, new_name):
            raise AlreadyScheduled(new_name)
        entry: Any = {"Key": name, "Size": seen["ContentLength"], "ETag": seen["ETag"]}
        move(client, failed.bucket, names.event_from(failed.prefix, entry), new_name)
        return new_name

    return _change(options, client, put_back)


def _change(options: Namespace, client: S3Client, change: Callable[[Scheduler, str], str]) -> int:
    """Change events, told by their URIs, or by the folder's URI and names; print the new URIs."""
    within = "failed/" if options.command == "retry" else ""
    first, *rest = map(_plain, options.EVENT)
    bucket, key = _split(first)
    event = _EVENT.fullmatch(key)
    home = names.folder_prefix(event["folder"] if event else key)
    if event and within:  # a folder may itself be called "failed"
        home = names.folder_prefix(home.removesuffix(f"/{within}"))
    folder = Scheduler(bucket, home + within, client)
    told = [first, *rest] if event else rest
    if not (told or within):
        raise InvalidEvent(f"{first!r} is no event; write the names of some behind it")
    ends = (text.removeprefix(f"s3://{bucket}/").removeprefix(home) for text in told)
    told = [folder.prefix + end.removeprefix(within) for end in ends]
    for name in told:
        names.parse(folder.prefix, name)  # refuses what is no event, before any is touched
    # HEAD does not say what is missing, or why it is refused; LIST does.
    client.list_objects_v2(Bucket=bucket, Prefix=folder.prefix, MaxKeys=1)
    status = 0
    for name in told or (event.name for event in folder.pending()):
        try:
            print(_uri(bucket, change(folder, name)), flush=True)
        except (AlreadyScheduled, NotScheduled) as error:
            complain(str(error))
            status = 1
    return status


def run(options: Namespace, client: S3Client) -> int:
    """Deliver what is due, once or every so often."""
    scheduler = Scheduler(*_split(options.FOLDER), client)
    log = _Log()
    logger.handlers = [log]
    logger.setLevel(logging.INFO)
    # An interrupted run finishes what is in flight.
    with contextlib.suppress(KeyboardInterrupt):
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, _stop)
        while True:
            began = time.monotonic()
            log.failures = 0
            _run_once(scheduler, options)
            # Python drops what a handler raises while a finalizer is at work.
            if not options.every or signal.getsignal(signal.SIGTERM) is not _stop:
                break
            time.sleep(max(0.0, began + options.every - time.monotonic()))
    return 1 if log.failures else 0


def _stop(*_: object) -> NoReturn:
    # Once is enough: a second signal must not disturb the finishing.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.unraisablehook = lambda _: None  # should Python drop this, it need not say so
    raise KeyboardInterrupt


def _run_once(scheduler: Scheduler, options: Namespace) -> None:
    try:
        run_due(
            scheduler,
            time_limit=options.time_limit,
            retry_for=options.retry_for,
            target_buckets=options.target_buckets,
            shard=options.shard,
        )
    except Exception as error:
        if not options.every or isinstance(error, InvalidEvent | BrokenPipeError):
            raise
        logger.error("%s; trying again in %g s", error, options.every)  # noqa: TRY400 - one line


class _Log(logging.Handler):
    """Shows what the library logs: an interrupted run returns no report."""

    failures = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.failures += record.levelno >= logging.ERROR
        if record.levelno > logging.INFO:
            complain(record.getMessage())
            return
        arguments: Any = record.args
        _, _, copied, failed, _, unfinished, max_delay = arguments
        if copied or failed or unfinished:
            late = f", up to {_words(timedelta(seconds=max_delay))} late" if copied else ""
            more = "; more are due" if unfinished else ""
            line = f"{copied} delivered{late}; {failed} failed{more}"
            print(f"{datetime.now(timezone.utc):{_SECONDS}}  {line}", flush=True)


_ADVICE = {
    "(NoSuchBucket)": "create the bucket, or correct its name",
    "(AccessDenied)": "grant the permission to these credentials, or use others",
    "(403)": "grant the permission to these credentials, or use others",
    "Unable to locate credentials": "run `aws configure`, or choose some with --profile",
    "endpoint URL: ": "check the network and --endpoint-url",
}


def complain(text: str) -> None:
    """Say it on standard error, in one line, with advice."""
    line = " ".join(text.splitlines()).rstrip(".")
    advice = "".join(f"; {advice}" for words, advice in _ADVICE.items() if words in line)
    with contextlib.suppress(OSError):  # nobody reads
        print(f"s3-scheduler: {line}{advice}", file=sys.stderr)


def _span(text: str) -> timedelta:
    match = re.fullmatch(r"\+?([0-9]{1,9})([smhd])", text)
    if not match:
        raise ArgumentTypeError(f"{text!r} is not a span of time; write it like 90s, 10m, 2h or 3d")
    return int(match[1]) * timedelta(seconds={"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]])


def _when(text: str) -> str | timedelta:
    return _span(text) if text.startswith("+") else text


def seconds(text: str) -> float:
    """Read a time that can be waited for."""
    if not 0 < (number := float(text)) < 1e9:  # noqa: PLR2004
        raise ValueError
    return number


def shard(text: str) -> tuple[int, int]:
    """Read I/N."""
    index, _, count = text.partition("/")
    return int(index), int(count)


_FOLDER = {"help": "such as s3://my-bucket/later"}
_WHEN = {"type": _when, "help": "like 2030-01-31T09:00:00Z, or from now like +10m, +2h, +3d"}
_EVENTS = {"nargs": "+", "help": "URIs (quote them: they hold a |), or the folder's URI and names"}
_NAME = "'s3://my-bucket/later/2030-01-31T09:00:00.000000Z|shop|welcome/42.json'"


def _parser() -> ArgumentParser:
    settings = ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    settings.add_argument("--endpoint-url", metavar="URL", help="of an S3 that is not Amazon's")
    settings.add_argument("--profile", metavar="NAME", help="of your AWS configuration")
    settings.add_argument("--region", metavar="NAME", help="of the folder's bucket")
    settings.add_argument("--debug", action="store_true", help="show tracebacks")
    parser = ArgumentParser(
        prog="s3-scheduler",
        description="One-time events in a folder of an S3 bucket: see them, change them, run them.",
        epilog="exit codes: 0, done; 1, an event was not waiting, or was already, or failed in the "
        "last run; 2, it could not be done",
        parents=[settings],
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(name: str, run: Callable[[Namespace, S3Client], int], example: str) -> Any:
        added = commands.add_parser(
            name,
            help=run.__doc__,
            description=run.__doc__,
            epilog=f"example: s3-scheduler {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # or it would wrap the example
            parents=[settings],
        )
        added.set_defaults(run=run)
        return added.add_argument

    example = "s3://my-bucket/later +2h s3://shop/welcome/42.json welcome.json"
    add = command("schedule", schedule, example)
    add("FOLDER", **_FOLDER)
    add("WHEN", **_WHEN)
    add("TARGET", help="such as s3://shop/welcome/42.json")
    add("FILE", type=lambda path: 0 if path == "-" else path, help="-: standard input")
    text = "exit code 1 if this very event is waiting"
    add("--no-replace", action="store_false", dest="replace", help=text)
    add("--content-type", metavar="TYPE", help="such as text/plain")

    add = command("list", list_, "s3://my-bucket/later --until +1h")
    add("FOLDER", **_FOLDER)
    add("--from", metavar="T", type=_when, dest="after", help="due at such a WHEN or later")
    add("--until", metavar="T", type=_when, dest="before", help="due before such a WHEN")
    add("--failed", action="store_true", help="what was moved to FOLDER/failed instead")
    add("--uri", action="store_true", help="the events' URIs, as cancel takes them, not targets")
    add("--json", action="store_true", help="one JSON object a line")

    command("cancel", cancel, _NAME)("EVENT", **_EVENTS)
    add = command("reschedule", reschedule, f"{_NAME} +3d")
    add("EVENT", **_EVENTS)
    add("WHEN", **_WHEN)
    add = command("retry", retry, "s3://my-bucket/later")
    add("EVENT", nargs="+", help=f"the folder's URI alone, for all; {_EVENTS['help']}")

    add = command("run", run, "s3://my-bucket/later --every 60 --time-limit 50")
    add("FOLDER", **_FOLDER)
    add("--every", metavar="SECONDS", type=seconds, help="again, until SIGTERM or Ctrl-C")
    add("--time-limit", metavar="SECONDS", type=seconds, help="begin nothing after it")
    add("--shard", metavar="I/N", type=shard, default=(0, 1), help="of two at once: 0/2, 1/2")
    text = "the only one that events may go to, or one of several"
    add("--target-bucket", metavar="B", action="append", dest="target_buckets", help=text)
    text = "before a failing event is moved to failed/, like 90m or 7d; 1d if not given"
    add("--retry-for", metavar="SPAN", type=_span, default="1d", help=text)

    text = "Watch it at work on an S3 server of its own: no AWS account needed."
    commands.add_parser("demo", help=text, description=text)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code; `argv` without the program, None: the shell's."""
    unset = Namespace(endpoint_url=None, profile=None, region=None, debug=False)
    options = _parser().parse_args(argv, unset)
    try:
        if options.command == "demo":
            return demo.main()
        session = boto3.Session(profile_name=options.profile, region_name=options.region)
        client = session.client("s3", endpoint_url=options.endpoint_url, config=CONFIG)
        status: int = options.run(options, client)
        print(end="", flush=True)
    except BrokenPipeError:
        # Whoever read has seen enough: what is still in the buffer goes nowhere, in silence.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0 if options.command == "list" else 141
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - one clear line, whatever it is
        if options.debug:
            traceback.print_exc()
        complain(str(error))
        return 1 if isinstance(error, AlreadyScheduled) else 2
    return status


if __name__ == "__main__":
    sys.exit(main())
