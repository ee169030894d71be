"""What the commands of the command line do, and how they report it."""

import json
import logging
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

import boto3

from .arguments import event, place, uri
from .check import Check
from .errors import AlreadyScheduled, NotScheduled
from .folder import CONFIG
from .runner import run_due
from .scheduler import Scheduler

_TIME = "%Y-%m-%dT%H:%M:%SZ"


def execute(options: Namespace) -> int:
    """Run the command, and return its exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    if sys.stdout is None:
        return _complain("standard output is closed; send it to /dev/null if nobody reads it", 3)
    commands = {"schedule": _schedule, "list": _list, "run": _run, "check": _check}
    try:
        if options.command == "demo":
            from . import demo  # noqa: PLC0415 - it needs an extra

            return demo.main()
        session = boto3.Session(profile_name=options.profile, region_name=options.region)
        client = session.client("s3", endpoint_url=options.endpoint_url, config=CONFIG)
        if options.command in commands:
            return commands[options.command](Scheduler(*options.FOLDER, client=client), options)
        return _change(client, options)
    except Exception as error:  # noqa: BLE001 - one clear line, whatever it is
        return _complain(error)


def _schedule(scheduler: Scheduler, options: Namespace) -> int:
    fields, tags = dict(options.metadata), urlencode(options.tag)
    extra = {"ContentType": options.content_type, "Metadata": fields, "Tagging": tags}
    extra = {name: value for name, value in extra.items() if value}
    with open(options.FILE, "rb", closefd=options.FILE != 0) as file:
        body = file if options.replace or file.seekable() else file.read()
        positional = (options.WHEN, *options.TARGET, body)
        name = scheduler.schedule(*positional, replace=options.replace, extra_args=extra)
    _say(uri(scheduler.folder.bucket, name))
    return 0


def _list(scheduler: Scheduler, options: Namespace) -> int:
    if (options.after or options.before) and (options.failed or options.invalid):
        raise ValueError("--from and --until do not go with --failed or --invalid; leave them out")
    folder = scheduler.folder
    if options.invalid:
        found: Any = ({"name": name} for page in folder.pages() for name in page.invalid)
    elif options.failed:
        found = ({**asdict(e), "code": folder.failure_code(e.name)} for e in scheduler.failed())
    else:
        found = map(asdict, scheduler.pending(after=options.after, before=options.before))
    for fields in found:
        line = fields["uri"] = uri(folder.bucket, fields["name"])
        if options.json:
            line = json.dumps(fields, default=datetime.isoformat)
        elif not (options.uri or options.invalid):
            code = f"{fields['code']:<20}  " if options.failed else ""
            target = uri(fields["bucket"], fields["key"])
            line = f"{fields['due']:{_TIME}}  {fields['size']:>14,} B  {code}{target}"
        _say(line, unread=0)
    return 0


def _change(client: Any, options: Namespace) -> int:
    """Cancel, reschedule or retry events; one that cannot be changed stops no other."""
    uris = options.EVENT
    if options.command == "retry" and len(uris) == 1 and "|" not in uris[0]:
        scheduler = Scheduler(*place(uris[0]), client=client)
        uris = (uri(scheduler.folder.bucket, found.name) for found in scheduler.failed())
    status = 0
    for each in uris:
        try:
            bucket, name, folder = event(each)
            scheduler = Scheduler(bucket, folder, client=client)
            _say(uri(bucket, _change_one(scheduler, name, options)))
        except Exception as error:  # noqa: BLE001 - the others can be changed all the same
            status = max(status, _complain(error))
    return status


def _change_one(scheduler: Scheduler, name: str, options: Namespace) -> str:
    """Change the event, and return its new name."""
    try:
        if options.command == "reschedule":
            return scheduler.reschedule(name, options.WHEN)
        if options.command == "retry":
            return scheduler.retry(name)
        if not scheduler.cancel(name):
            raise NotScheduled(name)
    except Exception:
        scheduler.folder.page(name, limit=1)  # LIST says what is wrong, HEAD does not
        raise
    return name


def _run(scheduler: Scheduler, options: Namespace) -> int:
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: _complain(record.getMessage())  # type: ignore[assignment]
    logging.getLogger(__package__).handlers = [handler]
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


def _check(scheduler: Scheduler, options: Namespace) -> int:
    codes = [0]

    def tell(status: str, text: str) -> None:
        codes.append({"weaker": 1, "missing": 2}.get(status, 0))
        as_json = json.dumps({"status": status, "text": text})
        _say(as_json if options.json else f"{status:<8} {text}")

    def interrupt(*_: object) -> None:
        _at_signals(lambda *_: None)  # with SIG_IGN, Python would complain of a pending signal
        raise KeyboardInterrupt

    _at_signals(interrupt)
    with closing(Check(scheduler.folder, tell)) as checking:
        try:
            checking.run(options.roles, options.target_buckets or [])
        finally:
            _at_signals(lambda *_: codes.append(130))  # nothing may disturb the cleaning up
    return max(codes)


def _at_signals(handler: Callable[..., None]) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, handler)


def _say(line: str, unread: int = 141) -> None:
    """Print it at once; `unread` is the exit code if its reader has gone."""
    try:
        print(line)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python, as it exits, writes what is left
        if not isinstance(error, BrokenPipeError):
            unread = _complain(f"the output could not be written: {error}", 3)
        sys.exit(unread)


def _complain(error: object, code: int = 2) -> int:
    """Say it on standard error, in one line; returns the exit code."""
    with suppress(AttributeError, OSError):  # nobody reads
        sys.stderr.write(f"s3-scheduler: {' '.join(str(error).splitlines())}\n")
    return 1 if isinstance(error, AlreadyScheduled | NotScheduled) else code
