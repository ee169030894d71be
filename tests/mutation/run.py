"""Which mistakes in the pure modules and in the delivery no test notices: `tox -e mutation`.

cosmic-ray makes one small mistake after another in a copy of this checkout, and runs the tests that
are to notice it. What survives is printed as a diff: write a test for it, or find that it changes
nothing. It takes an hour or more for each 200 lines. Name modules to try only these:
`tox -e mutation -- names backlog`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The tests of a module, the quickest to fail first.
TESTS = {
    "names": "names scheduler",
    "answers": "answers failures folder nothing_lost",
    "report": "runner failures",
    "backlog": "backlog",
    "window": "backlog",
    "unconfirmed": "unconfirmed limits",
    "copies": "multipart folder",
    "folder": "folder multipart nothing_lost failures scheduler",
    "delivery": "failures once order nothing_lost runner",
}
CONFIG = """
[cosmic-ray]
module-path = "s3_scheduler/{module}.py"
timeout = {timeout}
excluded-modules = []
test-command = "{python} -m pytest -x -q -n 0 -p no:cacheprovider {tests}"

[cosmic-ray.distributor]
name = "local"

# `|` is in annotations, which no test can notice.
[cosmic-ray.filters.operators-filter]
exclude-operators = ["core/ReplaceBinaryOperator_BitOr_.*"]
"""


def mutate(module: str, timeout: float) -> str:
    """Make all mistakes in one module, in a copy of its own; what survived."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "copy")
        for name in ("s3_scheduler", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "tox.ini", copy)
        tests = " ".join(f"tests/test_{name}.py" for name in TESTS[module].split())
        text = CONFIG.format(module=module, timeout=timeout, python=sys.executable, tests=tests)
        (copy / "mutation.toml").write_text(text)

        def tool(name: str, *arguments: str) -> str:
            command = [str(Path(sys.executable).with_name(name)), *arguments]
            # The copy, not the package that is installed.
            environment = {**os.environ, "PYTHONPATH": str(copy)}
            return subprocess.run(
                command, cwd=copy, env=environment, check=True, stdout=subprocess.PIPE, text=True
            ).stdout

        tool("cosmic-ray", "baseline", "mutation.toml")  # without a mistake they must pass
        tool("cosmic-ray", "init", "mutation.toml", "session.sqlite")
        tool("cr-filter-operators", "session.sqlite", "mutation.toml")
        tool("cosmic-ray", "exec", "mutation.toml", "session.sqlite")
        return tool("cr-report", "--surviving-only", "--show-diff", "session.sqlite")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", choices=[*TESTS, []], help="default: all")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for the tests")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="modules at once")
    options = parser.parse_args()
    modules = options.modules or list(TESTS)
    with ThreadPoolExecutor(options.jobs) as pool:
        reports = pool.map(lambda module: mutate(module, options.timeout), modules)
        for module, report in zip(modules, reports, strict=True):
            print(f"\n=== {module} ===\n{report}", flush=True)


if __name__ == "__main__":
    main()
