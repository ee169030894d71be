"""The command line: `python -m s3_scheduler`, or `s3-scheduler`."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import signal
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlencode

from .errors import AlreadyScheduled, NotScheduled

if TYPE_CHECKING:
    from .scheduler import Scheduler

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1, "": 1}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_SPAN = rf"(?:{_NUMBER}[wdhms])+"


def schedule(options: Namespace) -> None:
    """Let the content of FILE appear at TARGET at WHEN, and print the event's URI."""
    scheduler = _open(options)(*options.FOLDER)
    extra: Any = {"Metadata": dict(options.metadata), "Tagging": urlencode(options.tags)}
    extra = {key: value for key, value in extra.items() if value}
    if options.content_type:
        extra["ContentType"] = options.content_type
    with open(options.FILE, "rb", closefd=options.FILE != 0) as file:
        body = file if options.replace or file.seekable() else file.read()
        event = (options.WHEN, *options.TARGET, body)
        name = scheduler.schedule(*event, replace=options.replace, extra_args=extra)
    _say(_uri(scheduler.folder.bucket, name))


def list_(options: Namespace) -> None:
    """Show what waits, soonest first: when it is due (UTC), bytes, target."""
    bounds = {"after": options.after, "before": options.before}
    if any(bounds.values()) and (options.failed or options.invalid):
        raise ValueError("--from and --until do not go with --failed or --invalid; leave them out")
    scheduler = _open(options)(*options.FOLDER)
    folder = scheduler.folder
    if options.invalid:
        found: Any = ({"name": name} for page in folder.pages() for name in page.invalid)
    else:
        found = map(asdict, scheduler.failed() if options.failed else scheduler.pending(**bounds))
    for fields in found:
        line = uri = _uri(folder.bucket, fields["name"])
        code = {"code": folder.failure_code(fields["name"])} if options.failed else {}
        if options.json:
            line = json.dumps({**fields, **code, "uri": uri}, default=datetime.isoformat)
        elif not (options.uri or options.invalid):
            columns = [f"{fields['due']:{_TIME}}", f"{fields['size']:>14,} B"]
            columns += [f"{each:<20}" for each in code.values()]
            line = "  ".join([*columns, _uri(fields["bucket"], fields["key"])])
        _say(line, unread=0)


def cancel(options: Namespace) -> int:
    """Remove events, also failed ones, and print their URIs."""

    def remove(scheduler: Scheduler, name: str) -> str:
        if not scheduler.cancel(name):
            raise NotScheduled(name)
        return name

    return _change(options, remove)


def reschedule(options: Namespace) -> int:
    """Move events to WHEN, in place of any there for the same target, and print their new URIs."""
    return _change(options, lambda scheduler, name: scheduler.reschedule(name, options.WHEN))


def retry(options: Namespace) -> int:
    """Put failed events back, all of a folder or some, and print their URIs."""
    if len(options.EVENT) == 1 and "|" not in options.EVENT[0]:
        scheduler = _open(options)(*_place(options.EVENT[0]))
        bucket = scheduler.folder.bucket
        options.EVENT = (_uri(bucket, event.name) for event in scheduler.failed())
    return _change(options, lambda scheduler, name: scheduler.retry(name))


def _change(options: Namespace, change: Callable[[Scheduler, str], str]) -> int:
    """Change each event, and print its new URI; one that cannot be changed stops no other."""
    open_folder = _open(options)
    status = 0
    for uri in options.EVENT:
        try:
            scheduler, name = _find(uri, open_folder)
            try:
                _say(_uri(scheduler.folder.bucket, change(scheduler, name)))
            except Exception:
                # HEAD does not tell what is missing, or why it is refused; LIST does.
                scheduler.folder.page(name, limit=1)
                raise
        except Exception as error:  # noqa: BLE001 - the others can be changed all the same
            status = max(status, _complain(error))
    return status


def _find(uri: str, open_folder: Callable[[str, str], Scheduler]) -> tuple[Scheduler, str]:
    """The scheduler of an event's folder, and the event's name."""
    bucket, name = _place(re.sub("%(?:[01][0-9A-F]|25|7F)", lambda match: unquote(match[0]), uri))
    # Read from the front, for the key may look like another event's name.
    for slash in re.finditer("/", name):
        with suppress(ValueError):
            scheduler = open_folder(bucket, name[: slash.start()])
            scheduler.folder.parse(name)
            return scheduler, name
    raise ValueError(f"{uri!r} is not the URI of an event; `list --uri` prints those")


def run(options: Namespace) -> int:
    """Deliver what is due, in one run or every SPAN, and print what each run did, if anything."""
    from .runner import run_due

    scheduler = _open(options)(*options.FOLDER)
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: _complain(record.getMessage())  # type: ignore[assignment]
    logging.getLogger(__package__).handlers = [handler]
    # A flag, so that an interrupted run finishes what is in flight, and reports it.
    stopped: list[int] = []
    _at_signals(lambda number, _: stopped.append(number))
    options.ahead = options.every if options.ahead is None else options.ahead
    names = ("ahead", "time_limit", "retry_for", "once", "target_buckets", "shard")
    arguments: Any = {name: getattr(options, name) for name in names}
    while True:
        began = time.monotonic()
        try:
            report = run_due(scheduler, **arguments, stop=lambda: bool(stopped))
            status = 1 if report.failed else 0
            did = status or report.copied or report.delivered_before
            if did or (report.unfinished and not stopped):
                _say(f"{datetime.now(timezone.utc):{_TIME}}  {report}")
        except Exception as error:
            if not options.every or type(error) is ValueError:  # an argument, which stays wrong
                raise
            status = _complain(f"{error}; trying again in {options.every:g} s")
        while not stopped and (left := began + options.every - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))  # for a signal does not end a sleep
        if stopped or not options.every:
            return status


def check(options: Namespace) -> int:
    """Try what the library needs of this store and these credentials, on objects of its own."""
    from .check import Check

    codes = [0]

    def tell(status: str, text: str) -> None:
        codes.append({"weaker": 1, "missing": 2}.get(status, 0))
        as_json = json.dumps({"status": status, "text": text})
        _say(as_json if options.json else f"{status:<8} {text}")

    stopped: list[int] = []

    def note(number: int, _: object) -> None:
        stopped.append(number)  # nothing may disturb the cleaning up

    def interrupt(*_: object) -> None:
        _at_signals(note)
        raise KeyboardInterrupt

    folder = _open(options)(*options.FOLDER).folder
    _at_signals(interrupt)
    with closing(Check(folder, tell)) as checking:
        try:
            checking.run(options.roles, options.target_buckets or [])
        finally:
            _at_signals(note)
    return 130 if stopped else max(codes)


def demo(_: Namespace) -> int:
    """Watch it at work on an S3 server of its own: no AWS account needed."""
    from . import demo

    return demo.main()


def _at_signals(handler: Callable[..., None]) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, handler)


def _open(options: Namespace) -> Callable[[str, str], Scheduler]:
    """What makes the scheduler of a folder; all of them share one client."""
    import boto3

    from .folder import CONFIG
    from .scheduler import Scheduler

    session = boto3.Session(profile_name=options.profile, region_name=options.region)
    client = session.client("s3", endpoint_url=options.endpoint_url, config=CONFIG)
    return partial(Scheduler, client=client)


def _uri(bucket: str, key: str) -> str:
    """The URI on one line, whatever the key."""
    return re.sub("[%\x00-\x1f\x7f]", lambda match: quote(match[0]), f"s3://{bucket}/{key}")


def _say(line: str, unread: int = 141) -> None:
    """Print it at once; `unread` is the exit code if its reader has gone."""
    try:
        print(line, flush=True)
    except OSError as error:
        # Or Python would try to write what is still in the buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            sys.exit(unread)
        _complain(f"the output could not be written: {error}")
        sys.exit(3)


def _complain(error: object) -> int:
    """Say it on standard error, in one line; returns an exit code."""
    with suppress(AttributeError, OSError):  # nobody reads
        sys.stderr.write(f"s3-scheduler: {' '.join(str(error).splitlines())}\n")
    return 1 if isinstance(error, AlreadyScheduled | NotScheduled) else 2


def _seconds(text: str, least: float = 0) -> float:
    text = text.strip()
    if not re.fullmatch(f"{_NUMBER}|{_SPAN}", text):
        raise ArgumentTypeError(f"{text!r} is not a span; write it like 90s, 10m, 2h, 3d or 1h30m")
    parts = re.findall(f"({_NUMBER})([wdhms]?)", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not least <= seconds <= timedelta.max.total_seconds():
        raise ArgumentTypeError(f"{text!r} is too {'short' if seconds < least else 'long'}")
    return seconds


def _when(text: str) -> datetime | str:
    from dateutil.parser import isoparse

    text = text.strip()
    advice = "is not a moment with a zone; write it like 2030-01-31T09:00:00Z or +2h from now"
    try:
        if text[:1] in ("+", "-"):
            span = timedelta(seconds=_seconds(text[1:]))
            return datetime.now(timezone.utc) + (span if text[0] == "+" else -span)
        if isoparse(text).tzinfo:
            return text
    except OverflowError:
        advice = "is outside the years 1 to 9999"
    except ValueError:
        if re.fullmatch(_SPAN, text):
            advice = f"is a span; for that long from now write +{text}"
    raise ArgumentTypeError(f"{text!r} {advice}")


def _like(pattern: str, advice: str, convert: type = str) -> Callable[[str], Any]:
    """What parses a text that matches: into its groups or, without any, into itself."""

    def parse(text: str) -> Any:
        if match := re.fullmatch(pattern, text, re.DOTALL):
            return tuple(map(convert, match.groups())) or text
        raise ArgumentTypeError(f"{text!r} is not {advice}")

    return parse


_place = _like(
    "s3://(arn:.+?accesspoint[/:][^/]+|[^/]+)/(.+)",
    "the URI of a folder or an object; write it like s3://my-bucket/later",
)

_EXIT_CODES = """\
exit codes: 0, done; 1, an event was not waiting, was waiting already, or failed in the last run, or
a promise is weaker here; 2, it could not be done; 3, its output could not be written; 130,
interrupted; 141, nobody read its output"""


def _parser() -> ArgumentParser:  # noqa: PLR0915 - a list of arguments
    settings = ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    settings.add_argument("--endpoint-url", metavar="URL", help="of an S3 that is not Amazon's")
    settings.add_argument("--profile", metavar="NAME", help="of your AWS configuration")
    settings.add_argument("--region", metavar="NAME", help="of the folder's bucket")
    shape: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "parents": [settings]}
    text = "One-time events in a folder of an S3 bucket: see them, change them, run them."
    parser = ArgumentParser(prog="s3-scheduler", description=text, epilog=_EXIT_CODES, **shape)
    with suppress(metadata.PackageNotFoundError):  # in a mere checkout
        version = f"%(prog)s {metadata.version('s3-scheduler')}"
        parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(run: Callable[[Namespace], int | None], example: str = "") -> Callable[..., Any]:
        name = run.__name__.rstrip("_")
        texts: Any = {"help": run.__doc__, "description": run.__doc__}
        epilog = f"example: s3-scheduler {name} {example}".rstrip()
        added = commands.add_parser(name, **texts, epilog=epilog, **(shape if example else {}))
        added.set_defaults(run=run)
        return added.add_argument

    event = "'s3://my-bucket/later/2030-01-31T09:00:00.000000Z|shop|welcome/42.json'"
    events: Any = {"nargs": "+", "help": "URIs, as `list --uri` prints them (quote the |)"}
    folder: Any = {"type": _place, "help": "such as s3://my-bucket/later"}
    when: Any = {"type": _when, "help": "2030-01-31T09:00:00Z, or from now like +90s or +1h30m"}
    span: Any = {"metavar": "SPAN", "type": _seconds}
    pause: Any = {"metavar": "SPAN", "type": partial(_seconds, least=0.001)}
    flag: Any = {"action": "store_true"}
    several: Any = {"action": "append", "default": []}
    pairs: Any = {**several, "metavar": "K=V", "type": _like("([^=]+)=(.*)", "a pair like a=b")}
    name = _like("(?!s3://).+", "the name of a bucket; write it like shop-emails")
    bucket: Any = {"action": "append", "metavar": "B", "type": name, "dest": "target_buckets"}

    add = command(schedule, "s3://my-bucket/later +2h s3://shop/welcome/42.json welcome.json")
    add("FOLDER", **folder)
    add("WHEN", **when)
    add("TARGET", type=_place, help="such as s3://shop/welcome/42.json")
    add("FILE", type=lambda path: 0 if path == "-" else path, help="-: standard input")
    add("--no-replace", dest="replace", action="store_false", help="fail if the same event waits")
    add("--content-type", metavar="TYPE", help="such as text/plain")
    add("--metadata", **pairs, help="that arrives with it; repeatable")
    add("--tag", **pairs, dest="tags", help="that arrives with it; repeatable")

    add = command(list_, "s3://my-bucket/later --until +1h")
    add("FOLDER", **folder)
    add("--from", metavar="WHEN", type=_when, dest="after", help="due then or later")
    add("--until", metavar="WHEN", type=_when, dest="before", help="due before then")
    add("--failed", **flag, help="show what was moved to FOLDER/failed, with its error code")
    add("--invalid", **flag, help="show names that do not parse as events")
    add("--uri", **flag, help="URIs only, one a line, as cancel takes them")
    add("--json", **flag, help="one JSON object a line")

    command(cancel, event)("EVENT", **events)
    add = command(reschedule, f"{event} +3d")
    add("EVENT", **events)
    add("WHEN", **when)
    events["help"] = f"the URI of a folder, for all that failed there; or {events['help']}"
    command(retry, "s3://my-bucket/later")("EVENT", **events)

    add = command(run, "s3://my-bucket/later --every 1m --time-limit 50s")
    add("FOLDER", **folder)
    add("--every", **pause, default=0, help="every SPAN until SIGTERM or Ctrl-C, with --ahead SPAN")
    add("--ahead", **span, help="deliver what falls due within SPAN, too, each at its moment")
    add("--once", **flag, help="never overwrite a target, so that nothing is delivered twice")
    add("--time-limit", **pause, help="start no copy after SPAN")
    add("--retry-for", **span, default="1d", help="before what fails goes to FOLDER/failed (1d)")
    shard = _like("([0-9]+)/([0-9]+)", "a shard; of two runners' write 0/2 and 1/2", int)
    add("--shard", metavar="I/N", type=shard, default=(0, 1), help="of two runners: 0/2, 1/2")
    add("--target-bucket", **bucket, help="an event for any other fails; repeatable")

    add = command(check, "s3://my-bucket/later --target-bucket shop-emails")
    add("FOLDER", **folder)
    add("--target-bucket", **bucket, help="try to copy to it; repeatable")
    roles = ("application", "runner")
    add("--as", dest="roles", nargs=1, choices=roles, default=roles, help="try only what it needs")
    add("--json", **flag, help="one JSON object a line")

    command(demo)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code; `argv` without the program, None: the shell's."""
    arguments = sys.argv[1:] if argv is None else argv
    # argparse would take a moment such as -5m for an option.
    arguments = [re.sub("^(?=-[0-9][0-9.wdhms]*$)", " ", text) for text in arguments]
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        options = Namespace(endpoint_url=None, profile=None, region=None)
        _parser().parse_args(arguments, options)
        if sys.stdout is None:
            _complain("standard output is closed; send it to /dev/null if nobody reads it")
            return 3
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - one clear line, whatever it is
        return _complain(error)


if __name__ == "__main__":
    sys.exit(main())
