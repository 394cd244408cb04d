"""What GitHub Actions runs."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from conftest import REPO
from packaging.specifiers import SpecifierSet

BIN = Path(sys.executable).parent
FILE = REPO / ".github" / "workflows" / "ci.yml"
WORKFLOW = yaml.safe_load(FILE.read_text(encoding="utf-8"))
JOBS = WORKFLOW["jobs"]


def commands(job: str) -> list[str]:
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def test_it_runs_what_ci_runs():
    assert commands("all") == [".ci/run"]
    assert os.access(REPO / ".ci" / "run", os.X_OK)
    assert commands("fast") == ["make test-fast"]
    assert re.search(r"^test-fast:", (REPO / "Makefile").read_text(), re.MULTILINE)


def test_it_runs_on_each_python_that_the_project_names():
    (first,) = (step["with"]["python-version"] for step in JOBS["all"]["steps"] if "python" in str(step))
    tested = {first, *JOBS["fast"]["strategy"]["matrix"]["python"]}
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    allowed = SpecifierSet(project["requires-python"])
    assert tested == {version for minor in range(9, 30) if (version := f"3.{minor}") in allowed}
    named = {word.rpartition(" ")[2] for word in project["classifiers"] if ":: Python :: 3." in word}
    assert named == tested


def test_it_may_read_and_nothing_more_and_what_it_uses_is_one_commit():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not [job for job in JOBS.values() if "permissions" in job]
    used = re.findall(r"uses: (\S+)(.*)", FILE.read_text())
    assert used
    for action, comment in used:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_it_is_linted():
    """zizmor's audits that need no network: permissions, credentials left behind, expressions that run what others wrote."""
    asked = [BIN / "zizmor", "--offline", "--persona", "pedantic", "--no-progress", "--color", "never", FILE]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([BIN / "shellcheck", REPO / ".ci" / "run"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
