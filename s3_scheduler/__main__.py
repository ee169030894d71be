"""The command line: `python -m s3_scheduler`, or `s3-scheduler`."""

import sys


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code; `argv` without the program, None: the shell's."""
    # Imported here, so that Ctrl-C is silent meanwhile, too, and `--help` waits for no boto3.
    try:
        from . import arguments

        options = arguments.parse(sys.argv[1:] if argv is None else argv)
        from . import commands

        return commands.execute(options)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
