"""The command line: `python -m s3_scheduler`, or `s3-scheduler`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from datetime import datetime, timedelta
from typing import Any, NoReturn

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from . import commands, demo, names
from .errors import InvalidEvent, SchedulerError
from .scheduler import CONFIG

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")


def _span(text: str) -> timedelta:
    if not re.fullmatch(f"(?:{_SPAN.pattern})+", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a span of time; write it like 90s, 10m, 2h, 3d, 1w or 1d12h"
        )
    try:
        spans = (timedelta(**{_UNITS[unit]: float(count)}) for count, unit in _SPAN.findall(text))
        return sum(spans, timedelta())
    except OverflowError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is too long; choose a shorter one") from error


def _moment(text: str) -> datetime:
    when: str | timedelta = text
    if text == "now":
        when = timedelta()
    elif text.startswith(("+", "-")):
        when = _span(text[1:]) * (1 if text[0] == "+" else -1)
    try:
        return names.to_utc(when)
    except InvalidEvent as error:
        what = str(error).partition("; ")[0]  # the library's advice is for programs
        raise argparse.ArgumentTypeError(
            f"{what}; write it like 2030-01-31T09:00:00+01:00, +2h or now"
        ) from error


def _patience(text: str) -> timedelta | None:
    return None if text in ("forever", "none") else _span(text)


def _seconds(text: str) -> float:
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text) and float(text):
        return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds; write it like 60")


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match and int(match[1]) < int(match[2]):
        return int(match[1]), int(match[2])
    raise argparse.ArgumentTypeError(f"{text!r} is not a shard; the two halves are 0/2 and 1/2")


_FLAG = {"action": "store_true"}
_AWS = "--endpoint-url --profile --region --debug"
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "FOLDER": {"help": "such as s3://my-bucket/later"},
    "WHEN": {
        "type": _moment,
        "help": "with a zone: 2030-01-31T09:00:00Z, or from now: +10m, +2h, +3d, now",
    },
    "TARGET": {"help": "such as s3://shop/welcome/42.json"},
    "FILE": {"help": "-: standard input"},
    "EVENT": {"nargs": "+", "help": "its URI (quote it: it holds a |), or FOLDER and NAMEs"},
    "--no-replace": {**_FLAG, "help": "exit code 1 if this very event is waiting already"},
    "--content-type": {"metavar": "TYPE", "help": "such as text/plain"},
    "--from": {
        "metavar": "T",
        "type": _moment,
        "help": "due at 2030-01-31T09:00:00Z, now, +1h or later",
    },
    "--until": {"metavar": "T", "type": _moment, "help": "due before such a time"},
    "--failed": {**_FLAG, "help": "what was moved to FOLDER/failed instead"},
    "--uri": {**_FLAG, "help": "whole URIs, as cancel takes them, in place of targets"},
    "--json": {**_FLAG, "help": "one JSON object a line"},
    "--every": {"metavar": "SECONDS", "type": _seconds, "help": "again, until SIGTERM or Ctrl-C"},
    "--time-limit": {"metavar": "SECONDS", "type": _seconds, "help": "begin nothing after it"},
    "--shard": {
        "metavar": "I/N",
        "type": _shard,
        "default": (0, 1),
        "help": "of two at once: 0/2, 1/2",
    },
    "--target-bucket": {
        "metavar": "B",
        "action": "append",
        "help": "the only one, or one of several",
    },
    "--retry-for": {
        "metavar": "SPAN",
        "type": _patience,
        "default": "1d",
        "help": "before a failing event is moved to failed/: 90m, 1d (the default), forever",
    },
    "--endpoint-url": {"metavar": "URL", "help": "of an S3 that is not Amazon's"},
    "--profile": {"metavar": "NAME", "help": "of your AWS configuration"},
    "--region": {"metavar": "NAME", "help": "of the folder's bucket"},
    "--debug": {**_FLAG, "help": "show tracebacks"},
}
_EVENT = "s3://my-bucket/later/2030-01-31T09:00:00.000000Z|shop|welcome/42.json"
_COMMANDS = {
    commands.schedule: (
        "FOLDER WHEN TARGET FILE --no-replace --content-type",
        "at WHEN, let the content of FILE appear at TARGET; prints the event's URI",
        "s3://my-bucket/later +2h s3://shop/welcome/42.json welcome.json",
    ),
    commands.list_: (
        "FOLDER --from --until --failed --uri --json",
        "show what waits, soonest first: when (UTC), how far off, bytes, target",
        "s3://my-bucket/later --until +1h",
    ),
    commands.cancel: (
        "EVENT",
        "remove events; exit code 1 if any was no longer waiting",
        f"'{_EVENT}'",
    ),
    commands.reschedule: (
        "EVENT WHEN",
        "move events to another moment; prints their new URIs",
        f"'{_EVENT}' +3d",
    ),
    commands.retry: (
        "EVENT",
        "put failed events back, all of a FOLDER or some; prints their URIs",
        "s3://my-bucket/later",
    ),
    commands.run: (
        "FOLDER --every --time-limit --shard --target-bucket --retry-for",
        "deliver what is due, once or every so often; exit code 1 if the last run had failures",
        "s3://my-bucket/later --every 60 --time-limit 50",
    ),
}


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=form, **options)

    def add(self, arguments: str, **common: Any) -> None:
        for name in arguments.split():
            self.add_argument(name, **common, **_ARGUMENTS[name])

    def error(self, message: str) -> NoReturn:
        commands.complain(f"{message}; see {self.prog} --help")
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="s3-scheduler",
        description="One-time events in a folder of an S3 bucket: see them, change them, run them.",
        epilog="exit codes: 0, done; 1, an event was not waiting, or failed in the last run; "
        "2, it could not be done",
    )
    parser.add(_AWS)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for run, (arguments, text, example) in _COMMANDS.items():
        name = run.__name__.rstrip("_")
        epilog = f"example: s3-scheduler {name} {example}"
        command = subparsers.add_parser(name, help=text, description=text, epilog=epilog)
        command.add(arguments)
        command.add(_AWS, default=argparse.SUPPRESS)  # or it would undo what stands before
        command.set_defaults(run=run)
    text = "watch it at work on an S3 server of its own: no AWS account needed"
    subparsers.add_parser("demo", help=text, description=text).set_defaults(run=None)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code; `argv` without the program, None: the shell's."""
    options = _parser().parse_args(argv)
    try:
        if not options.run:
            return demo.main()
        session = boto3.Session(profile_name=options.profile, region_name=options.region)
        client = session.client("s3", endpoint_url=options.endpoint_url, config=CONFIG)
        status = int(options.run(options, client))
        print(end="", flush=True)
    except BrokenPipeError:
        # Whoever read has seen enough: what is still in the buffer goes nowhere, in silence.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0 if options.command == "list" else 141
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if options.debug:
            raise
        known = isinstance(
            error, SchedulerError | ClientError | BotoCoreError | OSError | ValueError
        )
        commands.complain(commands.explain(error) + ("" if known else "; --debug shows where"))
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
