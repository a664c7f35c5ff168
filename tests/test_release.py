"""What a release says of itself agrees, and the wheel holds every package; CI installs it and runs the smoke test."""

import re
import tomllib

import pytest
import yaml
from conftest import REPOSITORY

import latentlm

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == latentlm.__version__
    assert re.search(
        rf"^## \[{re.escape(latentlm.__version__)}\] - {citation['date-released']}$", changes, re.MULTILINE
    )
    assert citation["repository-code"] == PROJECT["project"]["urls"]["Repository"]


def test_the_wheel_holds_every_package():
    source = REPOSITORY / "src"
    packages = {".".join(path.parent.relative_to(source).parts) for path in (source / "latentlm").rglob("*.py")}
    assert packages | {"latentlm.evaluation.tasks"} == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_names_targets_and_files_that_exist(path):
    steps = [step for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values() for step in job["steps"]]
    commands = "\n".join(step.get("run", "") for step in steps)
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in re.findall(r"\bmake (\w+)", commands))
    assert all((REPOSITORY / name).is_file() for name in re.findall(r"GITHUB_WORKSPACE/([\w./-]+)", commands))
