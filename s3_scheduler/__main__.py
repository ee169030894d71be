"""The command line: `python -m s3_scheduler`, or `s3-scheduler`."""

from __future__ import annotations

import argparse
import contextlib
import io
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
from urllib.parse import quote, unquote, urlencode

from .errors import AlreadyScheduled, InvalidEvent, NotScheduled

if TYPE_CHECKING:
    from collections.abc import Callable

    from .folder import Folder
    from .names import Event
    from .scheduler import Scheduler

_SECONDS = "%Y-%m-%dT%H:%M:%SZ"
_UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1, "": 1}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_SPAN = rf"(?:{_NUMBER}[wdhms])+"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL = 0.1  # seconds between two looks for a signal while `run --every` waits


class OutputError(Exception):
    """What a command had to say could not be written."""


# Commands


def schedule(options: Namespace) -> int:
    """At WHEN, let the content of FILE appear at TARGET; prints the event's URI."""
    scheduler = _scheduler(options, *_split(options.FOLDER))
    extra = {
        "ContentType": options.content_type,
        "Metadata": dict(options.metadata),
        "Tagging": urlencode(dict(options.tags)),
    }
    with open(options.FILE, "rb", closefd=options.FILE != 0) as file:
        name = scheduler.schedule(
            options.WHEN,
            *_split(options.TARGET),
            file if not options.no_replace or file.seekable() else file.read(),
            replace=not options.no_replace,
            extra_args={argument: value for argument, value in extra.items() if value},
        )
    _say(_uri(scheduler.folder, name))
    return 0


def list_(options: Namespace) -> int:
    """Show what waits, soonest first: when (UTC), how far off, bytes, target."""
    bounds = {"after": options.after, "before": options.before}
    if any(bounds.values()) and (options.failed or options.invalid):
        raise ValueError("--from and --until choose from what waits; leave them out")
    scheduler = _scheduler(options, *_split(options.FOLDER))
    if options.invalid:
        for name in (name for page in scheduler.folder.pages() for name in page.invalid):
            uri = _uri(scheduler.folder, name)
            _say(json.dumps({"name": name, "uri": uri}) if options.json else uri)
        return 0
    for event in scheduler.failed() if options.failed else scheduler.pending(**bounds):
        _say(_line(scheduler.folder, event, options))
    return 0


def _line(folder: Folder, event: Event, options: Namespace) -> str:
    from .names import format_due

    uri = _uri(folder, event.name)
    code = folder.failure_code(event.name) if options.failed else ""
    if options.json:
        more = {"due": format_due(event.due), "uri": uri, **({"code": code} if code else {})}
        return json.dumps({**asdict(event), **more})
    if options.uri:
        return uri
    left = event.due - datetime.now(timezone.utc)
    off = f"in {_words(left)}" if left > timedelta() else f"{_words(-left)} late"
    code = code and f"{code:<20}  "
    target = escaped(f"s3://{event.bucket}/{event.key}")
    return f"{event.due:{_SECONDS}}  {off:>16}  {event.size:>14,} B  {code}{target}"


def cancel(options: Namespace) -> int:
    """Remove events, also failed ones, and print their URIs."""

    def remove(scheduler: Scheduler, name: str) -> str:
        if not scheduler.cancel(name):
            raise NotScheduled(name)
        return name

    return _change(options, remove)


def reschedule(options: Namespace) -> int:
    """Move events to WHEN, in place of any there for the same target, and print their new URIs."""

    def move(scheduler: Scheduler, name: str) -> str:
        if scheduler.folder.is_failed(name):
            raise InvalidEvent(f"{name!r} has failed; retry it first")
        return scheduler.reschedule(name, options.WHEN)

    return _change(options, move)


def retry(options: Namespace) -> int:
    """Put failed events back, all of a folder or some, and print their URIs."""

    def put_back(scheduler: Scheduler, name: str) -> str:
        folder = scheduler.folder
        if not folder.is_failed(name):  # the name that it had before
            failed = (event.name for event in scheduler.failed())
            name = next((each for each in failed if folder.original_name(each) == name), name)
        return scheduler.retry(name)

    return _change(options, put_back)


def _change(options: Namespace, change: Callable[[Scheduler, str], str]) -> int:
    """Change events, told by their URIs, or by the folder's URI and names; print the new URIs."""
    scheduler, texts = _told(options)
    # HEAD does not say what is missing, or why it is refused; LIST does.
    scheduler.folder.page("", limit=1)
    status = 0
    for text in texts or (event.name for event in scheduler.failed()):
        try:
            new_name = change(scheduler, _name(scheduler.folder, text))
        except Exception as error:  # noqa: BLE001 - the others can be changed all the same
            status = max(status, _complain(error))
        else:
            _say(_uri(scheduler.folder, new_name))
    return status


def _told(options: Namespace) -> tuple[Scheduler, list[str]]:
    """The scheduler of the folder, and the events; none: all that failed."""
    from .folder import Folder

    bucket, key = _split(unescaped(options.EVENT[0]))
    # An event's URI is read from its front: its key may look like another event's.
    for folder in (key[: slash.start()] for slash in re.finditer("/", key)):
        with contextlib.suppress(ValueError):
            Folder(bucket, folder).parse(key)
            return _scheduler(options, bucket, folder), options.EVENT
    first, *rest = options.EVENT
    if not (rest or options.command == "retry"):
        raise ValueError(f"{first!r} is not the URI of an event; write the names of some behind it")
    return _scheduler(options, *_split(first)), rest


def _name(folder: Folder, text: str) -> str:
    """The name of an event, told by its URI, or by its name with or without the folder."""
    home = f"s3://{folder.bucket}/{folder.prefix}"
    if text.startswith("s3://"):
        text = unescaped(text)
        if not text.startswith(home):
            raise InvalidEvent(f"{text!r} is not in {home}; name the events of one folder at once")
    return folder.prefix + text.removeprefix(home).removeprefix(folder.prefix)


def run(options: Namespace) -> int:
    """Deliver what is due, once or every so often."""
    scheduler = _scheduler(options, *_split(options.FOLDER))
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: _complain(record.getMessage())  # type: ignore[assignment]
    logging.getLogger(__package__).handlers = [handler]
    stopped: list[int] = []
    for signum in _SIGNALS:
        # A flag, so that an interrupted run finishes what is in flight, and reports it.
        signal.signal(signum, lambda number, _: stopped.append(number))
    status = 0
    while not stopped:
        began = time.monotonic()
        status = _run_once(scheduler, options, lambda: bool(stopped))
        if not options.every:
            break
        while not stopped and (left := began + options.every - time.monotonic()) > 0:
            time.sleep(min(left, _POLL))
    return status


def _run_once(scheduler: Scheduler, options: Namespace, stop: Callable[[], bool]) -> int:
    from .runner import run_due

    try:
        report = run_due(
            scheduler,
            ahead=(options.every or 0) if options.ahead is None else options.ahead,
            time_limit=options.time_limit,
            retry_for=options.retry_for,
            once=options.once,
            target_buckets=options.target_buckets or None,
            shard=options.shard,
            stop=stop,
        )
    except Exception as error:
        if not options.every or type(error) is ValueError:  # an argument, which stays wrong
            raise
        _complain(f"{error}; trying again in {options.every:g} s")
        return 2
    if report.copied or report.delivered_before or report.failed or report.unfinished:
        late = f", up to {_words(report.max_lateness)} late" if report.copied else ""
        before = f"; {report.delivered_before} delivered before" if report.delivered_before else ""
        line = f"{report.copied} delivered{late}{before}; {report.failed} failed"
        more = "; more are due" if report.unfinished else ""
        _say(f"{datetime.now(timezone.utc):{_SECONDS}}  {line}{more}")
    return 1 if report.failed else 0


def check(options: Namespace) -> int:
    """Try what the library needs of this store and these credentials, on objects of its own."""
    from .check import Check

    statuses = [0]

    def tell(status: str, text: str) -> None:
        statuses.append({"weaker": 1, "missing": 2}.get(status, 0))
        as_json = json.dumps({"status": status, "text": text})
        _say(as_json if options.json else f"{status:<8} {text}")

    for signum in _SIGNALS:
        signal.signal(signum, _interrupt)
    folder = _scheduler(options, *_split(options.FOLDER)).folder
    roles = [options.role] if options.role else ["application", "runner"]
    Check(folder, tell).run(roles, options.target_buckets)
    return max(statuses)


def _interrupt(*_: object) -> NoReturn:
    # Once is enough: a second signal must not disturb the cleaning up.
    for signum in _SIGNALS:
        signal.signal(signum, lambda *_: None)
    raise KeyboardInterrupt


def demo(_: Namespace) -> int:
    """Watch it at work on an S3 server of its own: no AWS account needed."""
    from . import demo

    return demo.main()


# What goes in and comes out


def _scheduler(options: Namespace, bucket: str, folder: str) -> Scheduler:
    import boto3

    from .folder import CONFIG
    from .scheduler import Scheduler

    session = boto3.Session(profile_name=options.profile, region_name=options.region)
    client = session.client("s3", endpoint_url=options.endpoint_url, config=CONFIG)
    return Scheduler(bucket, folder, client=client)


def _split(uri: str) -> tuple[str, str]:
    match = re.fullmatch(r"s3://(arn:.+?accesspoint[/:][^/]+|[^/]+)/(.+)", uri, re.DOTALL)
    if not match:
        raise ValueError(f"{uri!r} names no folder or key; write it like s3://my-bucket/later")
    return match[1], match[2]


def _uri(folder: Folder, name: str) -> str:
    return escaped(f"s3://{folder.bucket}/{name}")


def escaped(uri: str) -> str:
    """The URI on one line, whatever the key."""
    return re.sub("[%\x00-\x1f\x7f]", lambda match: quote(match[0]), uri)


def unescaped(uri: str) -> str:
    """What `escaped` was given."""
    return re.sub("%(?:[01][0-9A-F]|25|7F)", lambda match: unquote(match[0]), uri)


def _words(span: timedelta) -> str:
    hours, minutes = divmod(span.seconds // 60, 60)
    if span.days:
        return f"{span.days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{span.seconds} s"


def _say(line: str) -> None:
    try:
        # At once: a reader who has seen enough ends us before the next request.
        print(line, flush=True)
    except OSError as error:
        raise OutputError(f"the output could not be written: {error}") from error


_ADVICE = {
    "(NoSuchBucket)": "create the bucket, or correct its name",
    "(AccessDenied)": "grant the permission to these credentials, or use others",
    "(403)": "grant the permission to these credentials, or use others",
    "Unable to locate credentials": "run `aws configure`, or choose some with --profile",
    "endpoint URL: ": "check the network and --endpoint-url",
}


def _complain(error: object) -> int:
    """Say it on standard error, in one line, with advice; returns an exit code."""
    line = " ".join(str(error).splitlines()).rstrip(".")
    advice = "".join(f"; {advice}" for words, advice in _ADVICE.items() if words in line)
    with contextlib.suppress(AttributeError, OSError):  # nobody reads
        sys.stderr.write(f"s3-scheduler: {line}{advice}\n")
    return 1 if isinstance(error, AlreadyScheduled | NotScheduled) else 2


# Arguments


def _seconds(text: str) -> float:
    if not re.fullmatch(f"{_NUMBER}|{_SPAN}", text):
        text = text.strip()
        raise ArgumentTypeError(f"{text!r} is not a span; write it like 90s, 10m, 2h, 3d or 1h30m")
    parts = re.findall(f"({_NUMBER})([wdhms]?)", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds > timedelta.max.total_seconds():
        raise ArgumentTypeError(f"{text!r} is too long")
    return seconds


def _pause(text: str) -> float:
    if not (seconds := _seconds(text)):
        raise ArgumentTypeError(f"{text!r} is no time at all")
    return seconds


def _when(text: str) -> datetime:
    from .names import to_utc

    text = text.strip()
    try:
        if text[:1] in ("+", "-"):
            span = timedelta(seconds=_seconds(text[1:]))
            return datetime.now(timezone.utc) + (span if text[0] == "+" else -span)
        return to_utc(text)
    except OverflowError:
        advice = "is outside the years 1 to 9999"
    except ValueError:
        advice = "is not a moment with a zone; write it like 2030-01-31T09:00:00Z or +2h from now"
        if re.fullmatch(_SPAN, text):
            advice = f"is a span; for that long from now write +{text}"
    raise ArgumentTypeError(f"{text!r} {advice}")


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch("([0-9]+)/([0-9]+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ArgumentTypeError(f"{text!r} is not a shard; of two runners' write 0/2 and 1/2")
    return int(match[1]), int(match[2])


def _bucket(text: str) -> str:
    if text.startswith("s3://"):
        raise ArgumentTypeError(f"{text!r} is a URI; write the bucket alone: {text[5:].strip('/')}")
    return text


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ArgumentTypeError(f"{text!r} is not a pair; write it like author=ann")
    return key, value


class _Version(argparse.Action):
    def __call__(self, parser: ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        _say(f"s3-scheduler {version('s3-scheduler')}")
        parser.exit()


_EXIT_CODES = """\
exit codes: 0, done; 1, an event was not waiting, or was already, or failed in the last run, or a
promise is weaker here; 2, it could not be done; 3, its output could not be written; 130 and 141,
interrupted, or nobody read its output"""


def _parser() -> ArgumentParser:  # noqa: PLR0915 - a list of arguments
    settings = ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    settings.add_argument("--endpoint-url", metavar="URL", help="of an S3 that is not Amazon's")
    settings.add_argument("--profile", metavar="NAME", help="of your AWS configuration")
    settings.add_argument("--region", metavar="NAME", help="of the folder's bucket")
    settings.add_argument("--debug", action="store_true", help="show tracebacks")
    shape: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "parents": [settings]}
    text = "One-time events in a folder of an S3 bucket: see them, change them, run them."
    parser = ArgumentParser(prog="s3-scheduler", description=text, epilog=_EXIT_CODES, **shape)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(run: Callable[[Namespace], int], example: str = "", *, folder: bool = False) -> Any:
        name = run.__name__.rstrip("_")
        texts: Any = {"help": run.__doc__, "description": run.__doc__}
        example = f"example: s3-scheduler {name} {example}"
        added = commands.add_parser(name, **texts, epilog=example, **shape)
        added.set_defaults(run=run)
        if folder:
            added.add_argument("FOLDER", help="such as s3://my-bucket/later")
        return added.add_argument

    event = "'s3://my-bucket/later/2030-01-31T09:00:00.000000Z|shop|welcome/42.json'"
    events = "URIs (quote them: they hold a |), or the folder's URI and names"
    when = "like 2030-01-31T09:00:00Z, or from now like +90s, +10m, +2h, +3d, +1w, +1h30m"
    flag: Any = {"action": "store_true"}
    several: Any = {"action": "append", "default": []}
    pairs = {**several, "metavar": "K=V", "type": _pair}
    buckets = {**several, "metavar": "B", "type": _bucket, "dest": "target_buckets"}

    example = "s3://my-bucket/later +2h s3://shop/welcome/42.json welcome.json"
    add = command(schedule, example, folder=True)
    add("WHEN", type=_when, help=when)
    add("TARGET", help="such as s3://shop/welcome/42.json")
    add("FILE", type=lambda path: 0 if path == "-" else path, help="-: standard input")
    add("--no-replace", **flag, help="exit code 1 if this very event is waiting")
    add("--content-type", metavar="TYPE", help="such as text/plain")
    add("--metadata", **pairs, help="that arrives with it; repeatable")
    add("--tag", **pairs, dest="tags", help="that arrives with it; repeatable")

    add = command(list_, "s3://my-bucket/later --until +1h", folder=True)
    add("--from", metavar="WHEN", type=_when, dest="after", help="due then or later")
    add("--until", metavar="WHEN", type=_when, dest="before", help="due before then")
    add("--failed", **flag, help="what was moved to FOLDER/failed instead, with S3's code")
    add("--invalid", **flag, help="what does not parse as an event instead, past or future")
    add("--uri", **flag, help="URIs only, one a line, as cancel takes them")
    add("--json", **flag, help="one JSON object a line")

    command(cancel, event)("EVENT", nargs="+", help=events)
    add = command(reschedule, f"{event} +3d")
    add("EVENT", nargs="+", help=events)
    add("WHEN", type=_when, help=when)
    text = f"the folder's URI alone, for all; {events}"
    command(retry, "s3://my-bucket/later")("EVENT", nargs="+", help=text)

    add = command(run, "s3://my-bucket/later --every 1m --time-limit 50s", folder=True)
    span: Any = {"metavar": "SPAN", "type": _seconds}
    text = "again, until SIGTERM or Ctrl-C; punctually, for it stands for --ahead, too"
    add("--every", **{**span, "type": _pause}, help=text)
    add("--ahead", **span, help="deliver what falls due within SPAN, too, each at its moment")
    add("--once", **flag, help="never overwrite a target, so that nothing is delivered twice")
    add("--time-limit", **{**span, "type": _pause}, help="begin nothing after it")
    text = "before a failing event is moved to FOLDER/failed; 1d if not given"
    add("--retry-for", **span, default="1d", help=text)
    add("--shard", metavar="I/N", type=_shard, default=(0, 1), help="of two at once: 0/2, 1/2")
    add("--target-bucket", **buckets, help="that events may go to, and to no other; repeatable")

    add = command(check, "s3://my-bucket/later --target-bucket shop-emails", folder=True)
    add("--target-bucket", **buckets, help="that one object is copied to; repeatable")
    roles: Any = {"dest": "role", "choices": ["application", "runner"]}
    add("--as", **roles, help="only what this role needs; both if not given")
    add("--json", **flag, help="one JSON object a line")
    command(demo)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code; `argv` without the program, None: the shell's."""
    options = Namespace(endpoint_url=None, profile=None, region=None, debug=False, command="")
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        # argparse would take a moment such as -5m for an option.
        past = re.compile(rf"-({_SPAN}|{_NUMBER})")
        arguments = sys.argv[1:] if argv is None else argv
        arguments = [f" {text}" if past.fullmatch(text) else text for text in arguments]
        options = _parser().parse_args(arguments, options)
        if sys.stdout is None:
            raise OutputError("standard output is closed; send it to /dev/null if nobody reads it")
        status: int = options.run(options)
    except OutputError as error:
        return _give_up_output(error, options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - one clear line, whatever it is
        if options.debug:
            traceback.print_exc()
        return _complain(error)
    return status


def _give_up_output(error: OutputError, options: Namespace) -> int:
    if sys.stdout is not None:
        # Or Python would try to write what is still in the buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error.__cause__, BrokenPipeError):
        return 0 if options.command == "list" else 141  # the reader has seen enough
    _complain(error)
    return 3


if __name__ == "__main__":
    sys.exit(main())
