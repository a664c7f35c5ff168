"""The test environment itself: what the other tests take for granted."""

import os
import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def test_blocked_process_cannot_import_latentlm(run_without_latentlm):
    code = """
import importlib, os
for name in ("latentlm", "latentlm.models"):
    try:
        importlib.import_module(name)
    except ImportError:
        print("blocked", name)
print(sys.argv[1], os.environ["WORD"])
"""
    lines = run_without_latentlm(code, "argument", env={"WORD": "here"}).splitlines()
    assert lines == ["blocked latentlm", "blocked latentlm.models", "argument here"]


def test_blocked_process_reports_failure(run_without_latentlm):
    with pytest.raises(AssertionError, match=r"exit status 1(?s:.*)ValueError: seen"):
        run_without_latentlm("raise ValueError('seen')")


def test_mini_hub_takes_and_gives_a_file(mini_hub, run_without_latentlm):
    code = """
from huggingface_hub import HfApi, hf_hub_download
HfApi().create_repo("org/name")
HfApi().upload_file(path_or_fileobj=b"text", path_in_repo="README.md", repo_id="org/name")
print(open(hf_hub_download("org/name", "README.md")).read())
"""
    assert run_without_latentlm(code, env=mini_hub.environment).strip().endswith("text")
    assert (mini_hub.root / "org" / "name" / "README.md").read_bytes() == b"text"


def test_tests_keep_to_their_own_caches():
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    assert os.environ["HF_HOME"] == constants.HF_HOME
    assert Path.home() not in Path(constants.HF_HOME).parents


def test_constraints_pin_every_direct_requirement():
    pins = dict(
        line.split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for requirement in [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]:
        name = re.match(r"[\w.-]+", requirement)[0]
        assert re.sub(r"[-_.]+", "-", name).lower() in names, f"constraints.txt has no pin for {name}"
    assert "+" not in pins["torch"], "a local build suffix of torch would not install elsewhere"
