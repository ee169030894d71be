"""`python -m support.fakes3`: serve from a process of its own."""

import argparse
import signal
import sys

from .server import FakeS3


def main() -> None:
    parser = argparse.ArgumentParser(description="An S3 in memory: prints its URL and serves.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before a request acts")
    parser.add_argument("--until-eof", action="store_true", help="end with standard input")
    for name in ("waiting", "due", "size"):
        parser.add_argument(f"--{name}", type=int, default=0, help="see FakeS3.fill")
    for name, default in (("bucket", "events"), ("folder", "later"), ("target", "target")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--key", default="{i}")
    options = vars(parser.parse_args())
    until_eof, latency = options.pop("until_eof"), options.pop("latency")
    with FakeS3(port=options.pop("port"), recording=False) as s3:
        s3.latency = latency
        s3.fill(**options)
        print(s3.url, flush=True)  # noqa: T201  (its one line)
        if until_eof:
            sys.stdin.read()
        else:
            signal.pause()


if __name__ == "__main__":
    main()
