"""What is published, what importing it costs, and how its modules depend on each other."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from graphlib import TopologicalSorter
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "s3_scheduler"
BUILD = "from setuptools.build_meta import *; build_wheel('dist'); build_sdist('dist')"
[VERSION] = re.findall(r'version="(.+)"', (ROOT / "setup.py").read_text("utf-8"))


def run(*arguments, cwd=ROOT, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- Wheel and source distribution ----------------------------------------------------------------


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A wheel and an sdist, built from a copy, so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("build") / "source"
    leave_out = ("__pycache__", ".git", ".tox", ".*_cache", "*.egg-info", "build", "dist", ".venv")
    copytree(ROOT, copy, ignore=ignore_patterns(*leave_out))
    run("-c", BUILD, cwd=copy, GITHUB_SERVER_URL="https://github.com", GITHUB_REPOSITORY="us/it")
    return copy / "dist"


@pytest.fixture
def unpacked(dist, tmp_path):
    """The sdist's one folder."""
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [folder] = tmp_path.iterdir()
    return folder


def test_the_wheel_holds_the_package_and_its_types_and_nothing_else(dist):
    """Every module and `py.typed` are in it; tests are not."""
    [wheel] = dist.glob("*.whl")
    assert wheel.name == f"s3_scheduler-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {f"s3_scheduler/{path.name}" for path in PACKAGE.glob("*.py")}
    assert names == modules | {"s3_scheduler/py.typed"}


def test_the_metadata_says_what_it_needs(dist):
    """Name, Python, run-time dependencies, licence, links, command and a README that is shown."""
    [wheel] = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        info = f"s3_scheduler-{VERSION}.dist-info/"
        metadata = message_from_bytes(archive.read(info + "METADATA"))
        commands = archive.read(info + "entry_points.txt").decode()
        assert b"MIT License" in archive.read(info + "licenses/LICENSE")
    needs = {need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need}
    assert needs == {"boto3>=1.35.67", "python-dateutil>=2.8"}
    assert metadata["Name"] == "s3-scheduler"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Source, https://github.com/us/it" in metadata.get_all("Project-URL", [])
    shown = metadata.get_payload(decode=True)
    assert isinstance(shown, bytes)
    assert shown.strip() == (ROOT / "README.md").read_bytes().strip()
    assert "s3-scheduler = s3_scheduler.__main__:main" in commands


def test_the_sdist_can_be_built_from(dist, unpacked):
    """What a distributor downloads makes the same wheel."""
    run("-c", BUILD, cwd=unpacked)
    [again] = unpacked.glob("dist/*.whl")
    [wheel] = dist.glob("*.whl")
    with zipfile.ZipFile(again) as copy, zipfile.ZipFile(wheel) as original:
        assert copy.namelist() == original.namelist()


@pytest.mark.slow
def test_the_sdist_holds_all_that_its_tests_need(unpacked):
    """In what a distributor downloads every test can be collected."""
    listed = run("-m", "pytest", "--collect-only", "-q", "-n0", "-m", "", cwd=unpacked)
    assert "error" not in listed.splitlines()[-1]
    for name in ("tox.ini", ".ruff.toml", ".github/workflows/ci.yml", "tests/support/folder.py"):
        assert (unpacked / name).is_file(), name
    tests = {path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py")}
    assert not {path for path in tests if not (unpacked / path).is_file()}


# --- Importing ------------------------------------------------------------------------------------


def test_importing_it_loads_nothing_that_boto3_has_not_loaded(tmp_path):
    """An application that uses boto3 pays for this package alone."""
    code = """
import sys, boto3
boto3.client("s3", region_name="us-east-1")
before = set(sys.modules)
import s3_scheduler
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(loaded - sys.stdlib_module_names))
"""
    assert run("-c", code, cwd=tmp_path).split() == ["s3_scheduler"]


def test_importing_it_loads_nothing_else(tmp_path):
    """Not even the standard library: the command line heeds Ctrl-C from its start."""
    code = "import sys; old = {*sys.modules}; import s3_scheduler; print(*{*sys.modules} - old)"
    assert run("-c", code, cwd=tmp_path).split() == ["s3_scheduler"]


def test_the_package_s_names(tmp_path):
    """Each name can be imported by itself, all at once, and what is pickled can be loaded."""
    code = """
import pickle, s3_scheduler
from s3_scheduler import *
assert {*s3_scheduler.__all__} <= {*globals()} & {*dir(s3_scheduler)}
for name in s3_scheduler.__all__:
    assert getattr(s3_scheduler, name) is globals()[name]
    assert globals()[name].__name__ == name
print(pickle.dumps(NotScheduled("later/name"), protocol=0).decode())
"""
    pickled = run("-c", code, cwd=tmp_path)
    load = f"import pickle; print(repr(pickle.loads({pickled.strip()!r}.encode())))"
    assert run("-c", load, cwd=tmp_path).strip() == "NotScheduled('later/name')"


def test_importing_it_loads_no_more_of_it_than_its_users_need(tmp_path):
    """The command line, the check of a store and the demo are loaded by who asks for them."""
    code = "import sys; from s3_scheduler import *; run_due; print(*sys.modules)"
    loaded = set(run("-c", code, cwd=tmp_path).split())
    assert "s3_scheduler.runner" in loaded
    others = ("__main__", "arguments", "commands", "check", "demo")
    assert not loaded & {f"s3_scheduler.{name}" for name in others}


WINDOWS = """
import signal
HAS = "SIGABRT SIGFPE SIGILL SIGINT SIGSEGV SIGTERM SIG_DFL SIG_IGN".split()
for name in dir(signal):
    if name.startswith(("SIG", "pthread_", "setitimer", "getitimer", "alarm")) and name not in HAS:
        delattr(signal, name)
"""
START = """
import runpy, sys
sys.argv[1:] = ["--help"]
runpy.run_module("s3_scheduler", run_name="__main__", alter_sys=True)
"""


def test_the_command_line_works_where_signals_are_few(tmp_path):
    """On Windows, where `signal` has no SIGHUP and no SIGPIPE, the command line starts."""
    assert "schedule" in run("-c", WINDOWS + START, cwd=tmp_path)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_command_line_explains_itself_without_boto3(option, tmp_path):
    """boto3 takes 0.4 s of CPU to import, for which nobody waits who asks for help."""
    listed = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "s3_scheduler", option],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert listed.stdout
    imported = {line.rpartition("|")[2].strip() for line in listed.stderr.splitlines()}
    assert "s3_scheduler.arguments" in imported
    assert not imported & {"boto3", "botocore.session", "botocore.client"}


# --- Structure ------------------------------------------------------------------------------------


def imports(module):
    """The modules of the package that a module needs, be it for type checking only."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found - {"__init__"}


def test_the_arrows_between_modules_point_one_way():
    """From what is pure to what asks S3, to the run, to the command line: nothing goes round.

    Not even for type checking: whoever reads the modules in this order never meets a name that
    comes later.
    """
    modules = {path.stem: imports(path) for path in PACKAGE.glob("*.py")}
    order = list(TopologicalSorter(modules).static_order())  # raises CycleError
    story = ["errors", "names", "folder", "delivery", "runner", "commands", "__main__"]
    assert sorted(story, key=order.index) == story
    assert modules["errors"] == set()
    assert modules["names"] <= {"errors"}
    assert modules["backlog"] <= {"names", "window"}  # no I/O
    assert modules["window"] == set()
    assert modules["arguments"] == set()
    assert "__main__" not in set().union(*modules.values())
