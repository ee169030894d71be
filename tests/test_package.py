"""What is published, and what importing it costs."""

import ast
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "from setuptools.build_meta import *; build_wheel('dist'); build_sdist('dist')"


def run(code, cwd):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A wheel and an sdist, built from a copy, so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("build")
    for name in ("setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("s3_scheduler", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(BUILD, copy)
    return copy / "dist"


def test_the_wheel_holds_the_package_and_its_types_and_nothing_else(dist):
    """Every module and `py.typed` are in it; tests are not."""
    [wheel] = dist.glob("*.whl")
    assert wheel.name == "s3_scheduler-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {f"s3_scheduler/{path.name}" for path in (ROOT / "s3_scheduler").glob("*.py")}
    assert names == modules | {"s3_scheduler/py.typed"}


def test_the_metadata_says_what_it_needs(dist):
    """Name, Python, run-time dependencies, licence, command and a README that can be shown."""
    [wheel] = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        info = "s3_scheduler-1.0.0.dist-info/"
        metadata = message_from_bytes(archive.read(info + "METADATA"))
        commands = archive.read(info + "entry_points.txt").decode()
        assert b"MIT License" in archive.read(info + "licenses/LICENSE")
    needs = {need for need in metadata.get_all("Requires-Dist") if "extra ==" not in need}
    assert needs == {"boto3>=1.35.67", "python-dateutil>=2.8"}
    assert metadata["Name"] == "s3-scheduler"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme = (ROOT / "README.md").read_bytes()
    assert metadata.get_payload(decode=True).strip() == readme.strip()
    assert "s3-scheduler = s3_scheduler.__main__:main" in commands


def test_the_sdist_can_be_built_from(dist, tmp_path):
    """What a distributor downloads makes the same wheel."""
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    run(BUILD, tmp_path / "s3_scheduler-1.0.0")
    [again] = tmp_path.glob("*/dist/*.whl")
    [wheel] = dist.glob("*.whl")
    with zipfile.ZipFile(again) as copy, zipfile.ZipFile(wheel) as original:
        assert copy.namelist() == original.namelist()


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
    assert run(code, tmp_path).split() == ["s3_scheduler"]


def imports(module):
    """The modules of the package that a module needs at run time."""
    tree = ast.parse(module.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body.clear()
    froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    return {name for n in froms for name in ([n.module] if n.module else [a.name for a in n.names])}


def test_the_arrows_between_modules_point_one_way():
    """From the pure name format up to the command line, never round; names do no I/O."""
    modules = {path.stem: imports(path) for path in (ROOT / "s3_scheduler").glob("*.py")}
    order = list(TopologicalSorter(modules).static_order())
    story = ["errors", "names", "scheduler", "runner", "__main__"]
    assert sorted(story, key=order.index) == story
    assert modules["errors"] == set()
    assert modules["names"] == {"errors"}
