"""What the command line takes: commands, spans, moments and URIs. Pure: no I/O."""

import argparse
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from importlib import metadata
from typing import Any
from urllib.parse import quote, unquote

from dateutil.parser import isoparse

_UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1, "": 1}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_BUCKET = "s3://(arn:.+?accesspoint[/:][^/]+|[^/]+)/"
# The folder ends where a due time first begins, for a key may look like another event's name.
_NAME = r"(.+?)/(?:failed/[\w.-]+/)?[0-9-]+T[0-9:.]+Z\|.+"


def _seconds(text: str, least: float = 0) -> float:
    text = text.strip()
    if not re.fullmatch(f"{_NUMBER}|(?:{_NUMBER}[wdhms])+", text):
        raise ArgumentTypeError(f"{text!r} is not a span; write it like 90s, 10m, 2h, 3d or 1h30m")
    parts = re.findall(f"({_NUMBER})([wdhms]?)", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds < least:
        raise ArgumentTypeError(f"{text!r} is too short")
    return seconds


def _when(text: str) -> datetime | str:
    text = text.strip()
    fault = "has no zone"
    try:
        if text[:1] in ("+", "-"):
            span = timedelta(seconds=_seconds(text[1:]))
            return datetime.now(timezone.utc) + (span if text[0] == "+" else -span)
        if isoparse(text).tzinfo:
            return text
    except OverflowError:
        fault = "is outside the years 1 to 9999"
    except ValueError:
        fault = "is not a moment"
    raise ArgumentTypeError(
        f"{text!r} {fault}; write it like 2030-01-31T09:00:00Z, or +2h for two hours from now"
    )


def _like(pattern: str, advice: str, convert: type = str) -> Callable[[str], Any]:
    """What parses a text that matches: into its groups or, without any, into itself."""

    def parse(text: str) -> Any:
        if match := re.fullmatch(pattern, text, re.DOTALL):
            return tuple(map(convert, match.groups())) or text
        raise ArgumentTypeError(f"{text!r} is not {advice}")

    return parse


_shard = _like("([0-9]+)/([0-9]+)", "a shard; of two runners' write 0/2 and 1/2", int)
_pair = _like("([^=]+)=(.*)", "a pair like a=b")
_name = _like("(?!s3://).+", "the name of a bucket; write it like shop-emails")
place = _like(_BUCKET + "(.+)", "the URI of a folder or object; write it like s3://my-bucket/later")
_event = _like(f"{_BUCKET}({_NAME})", "the URI of an event; `list --uri` prints those")


def event(uri: str) -> Any:
    """Bucket, name and folder of an event; raises `ArgumentTypeError` if that is no event's URI."""
    return _event(re.sub("%(?:[01][0-9A-F]|25|7F)", lambda match: unquote(match[0]), uri))


def uri(bucket: str, key: str) -> str:
    """The URI on one line, whatever the key."""
    return re.sub("[%\x00-\x1f\x7f]", lambda match: quote(match[0]), f"s3://{bucket}/{key}")


_EXIT_CODES = """\
exit codes: 0, done; 1, an event was not waiting, was waiting already, or failed in the last run, or
a promise is weaker here; 2, it could not be done; 3, its output could not be written; 130,
interrupted; 141, nobody read its output"""

_POSITIONAL: dict[str, Any] = {
    "FOLDER": {"type": place, "help": "such as s3://my-bucket/later"},
    "WHEN": {"type": _when, "help": "2030-01-31T09:00:00Z, or from now like +90s or +1h30m"},
    "TARGET": {"type": place, "help": "such as s3://shop/welcome/42.json"},
    "FILE": {"type": lambda path: 0 if path == "-" else path, "help": "-: standard input"},
    "EVENT": {"nargs": "+", "help": "URIs, as `list --uri` prints them (quote the |)"},
}


def parse(argv: list[str]) -> Namespace:  # noqa: PLR0915 - a list of arguments
    """The options of a command; `argv` without the program. Exits if it asks for help, or errs."""
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

    def command(name: str, positional: str, text: str, example: str) -> Callable[..., object]:
        texts: Any = {"help": text, "description": text}
        texts["epilog"] = f"example: s3-scheduler {name} {example}".rstrip()
        added = commands.add_parser(name, **texts, **(shape if example else {}))
        for argument in positional.split():
            added.add_argument(argument, **_POSITIONAL[argument])
        return added.add_argument

    flag: Any = {"action": "store_true"}
    pairs: Any = {"action": "append", "default": [], "metavar": "K=V", "type": _pair}
    span: Any = {"metavar": "SPAN", "type": _seconds}
    pause: Any = {"metavar": "SPAN", "type": partial(_seconds, least=0.001)}
    bucket: Any = {"action": "append", "metavar": "B", "type": _name, "dest": "target_buckets"}

    text = "Let the content of FILE appear at TARGET at WHEN, and print the event's URI."
    example = "s3://my-bucket/later +2h s3://shop/welcome/42.json welcome.json"
    add = command("schedule", "FOLDER WHEN TARGET FILE", text, example)
    add("--no-replace", dest="replace", action="store_false", help="fail if the same event waits")
    add("--content-type", metavar="TYPE", help="such as text/plain")
    add("--metadata", **pairs, help="that arrives with it; repeatable")
    add("--tag", **pairs, help="that arrives with it; repeatable")

    text = "Show what waits, soonest first: when it is due (UTC), bytes, target."
    add = command("list", "FOLDER", text, "s3://my-bucket/later --until +1h")
    add("--from", metavar="WHEN", type=_when, dest="after", help="due then or later")
    add("--until", metavar="WHEN", type=_when, dest="before", help="due before then")
    add("--failed", **flag, help="show what was moved to FOLDER/failed, with its error code")
    add("--invalid", **flag, help="show names that do not parse as events")
    add("--uri", **flag, help="URIs only, one a line, as cancel takes them")
    add("--json", **flag, help="one JSON object a line")

    example = "'s3://my-bucket/later/2030-01-31T09:00:00.000000Z|shop|welcome/42.json'"
    command("cancel", "EVENT", "Remove events, also failed ones, and print their URIs.", example)
    text = "Move events to WHEN, replacing any there for the same target; print the new URIs."
    command("reschedule", "EVENT WHEN", text, f"{example} +3d")
    text = "Put failed events back, or all of a folder that is given instead, and print their URIs."
    command("retry", "EVENT", text, "s3://my-bucket/later")

    text = "Deliver what is due, once or every SPAN, and print what each run did, if anything."
    add = command("run", "FOLDER", text, "s3://my-bucket/later --every 1m --time-limit 50s")
    add("--every", **pause, default=0, help="every SPAN until SIGTERM or Ctrl-C, with --ahead SPAN")
    add("--ahead", **span, help="deliver what falls due within SPAN, too, each at its moment")
    add("--once", **flag, help="never overwrite a target, so that nothing is delivered twice")
    add("--time-limit", **pause, help="start no copy after SPAN")
    add("--retry-for", **span, default="1d", help="before what fails goes to FOLDER/failed (1d)")
    add("--shard", metavar="I/N", type=_shard, default=(0, 1), help="of two runners: 0/2, 1/2")
    add("--target-bucket", **bucket, help="an event for any other fails; repeatable")

    text = "Try what the library needs of this store and these credentials, on objects of its own."
    add = command("check", "FOLDER", text, "s3://my-bucket/later --target-bucket shop-emails")
    roles = ("application", "runner")
    add("--target-bucket", **bucket, help="try to copy to it; repeatable")
    add("--as", dest="roles", nargs=1, choices=roles, default=roles, help="try only what it needs")
    add("--json", **flag, help="one JSON object a line")

    command("demo", "", "Watch it at work on an S3 server of its own: no AWS account needed.", "")
    # argparse would take a moment such as -5m for an option.
    arguments = [re.sub("^(?=-[0-9][0-9.wdhms]*$)", " ", text) for text in argv]
    return parser.parse_args(arguments, Namespace(endpoint_url=None, profile=None, region=None))
