"""The command line: `python -m s3_scheduler`, or `s3-scheduler`."""

from __future__ import annotations

import argparse
import sys

from . import demo


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status; `argv` without the program, None: the shell's."""
    parser = argparse.ArgumentParser(prog="s3-scheduler", description="S3 as a scheduler.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser(
        "demo", help="watch it at work on an S3 server of its own: no AWS account needed"
    ).set_defaults(run=demo.main)
    status: int = parser.parse_args(argv).run()
    return status


if __name__ == "__main__":
    sys.exit(main())
