"""transformers' own common model tests, from the sdist of the installed version, on the tiny published configurations.

What they skip is listed in docs/limits.md: an unlisted skip fails here.
"""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Set
from fnmatch import fnmatch
from pathlib import Path

import pytest
from architectures import each_architecture, each_causal_architecture
from conftest import REPOSITORY
from filelock import FileLock


@pytest.fixture(scope="session")
def upstream_tests(shared_checks, tmp_path_factory) -> Path:
    """The script that runs them, with the sdist at hand; skips where it cannot be downloaded."""
    script = shared_checks / "upstream_model_tests"
    lock = tmp_path_factory.getbasetemp().parent / "upstream.lock"  # the parent is the same for every pytest worker
    with FileLock(lock):
        fetch = (
            "import importlib.machinery as m, sys; m.SourceFileLoader('upstream', sys.argv[1]).load_module().suite()"
        )
        done = subprocess.run([sys.executable, "-c", fetch, script], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no sdist of transformers: {done.stderr.splitlines()[-1]}")
    return script


def check(script: Path, class_name: str, config: str, report: Path, failing: Set[str], least: int) -> None:
    """All tests run. Those that fail are exactly `failing`, and at least `least` pass; what fails or is skipped is
    listed in docs/limits.md."""
    command = [sys.executable, script, class_name, REPOSITORY / "hub_configs" / config, f"--junitxml={report}"]
    done = subprocess.run(command, capture_output=True, text=True)
    output = done.stdout[-8000:] + done.stderr[-2000:]
    assert done.returncode == bool(failing), output
    tests = list(ElementTree.parse(report).iter("testcase"))
    failed = {str(test.get("name")) for test in tests if list(test.iter("failure")) or list(test.iter("error"))}
    assert failed == failing, output
    skips = {str(test.get("name")): str(skip.get("message")) for test in tests for skip in test.iter("skipped")}
    assert len({test.get("name") for test in tests} - failed) - len(skips) >= least
    listed = set(re.findall(r"`(test_\w+\*?)`", (REPOSITORY / "docs" / "limits.md").read_text(encoding="utf-8")))
    assert failed <= listed
    unlisted = {name: why for name, why in skips.items() if not any(fnmatch(name, one) for one in listed)}
    assert not unlisted, f"skipped, but not in docs/limits.md: {unlisted}"


# What fails, and why, is in docs/limits.md.
TRAINING = {
    "test_training",
    "test_training_gradient_checkpointing",
    "test_training_gradient_checkpointing_use_reentrant_false",
    "test_training_gradient_checkpointing_use_reentrant_true",
}


@each_architecture
def test_upstream_tests_of_the_head(architecture, upstream_tests, tmp_path):
    name, passes = architecture.head_class.__name__, architecture.upstream_passes
    check(upstream_tests, name, architecture.tiny, tmp_path / "report.xml", architecture.upstream_failures, passes)


@each_causal_architecture
def test_gradients_of_hidden_states_without_attentions(architecture, upstream_tests, tmp_path):
    """What fails above for want of attentions passes without them."""
    if "test_retain_grad_hidden_states_attentions" not in architecture.upstream_failures:
        pytest.skip("has attentions")
    command = [sys.executable, upstream_tests, architecture.head_class.__name__]
    command += [REPOSITORY / "hub_configs" / architecture.tiny, "-k", "test_retain_grad_hidden_states_attentions"]
    environment = os.environ | {"UPSTREAM_ATTENTIONS": "False"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


@pytest.mark.slow
@each_architecture
def test_upstream_tests_with_learned_dropout(architecture, upstream_tests, tmp_path):
    """The published tiny models have it off."""
    if "learned_dropout" not in architecture.own_fields:
        pytest.skip("has no LearnedDropout")
    config = json.loads((REPOSITORY / "hub_configs" / architecture.tiny / "config.json").read_text(encoding="utf-8"))
    config |= {"learned_dropout": "bernoulli", "learned_dropout_shift": 1.5, "mask_entropy_loss_weight": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    name, failing = architecture.head_class.__name__, architecture.upstream_failures
    if architecture.head_class(architecture.config_class(**config)).num_parameters() >= 1_000_000:
        failing = failing | {"test_model_is_small"}  # without masks it is
    check(upstream_tests, name, str(tmp_path), tmp_path / "report.xml", failing, architecture.upstream_passes)


@pytest.mark.slow
@each_causal_architecture
def test_upstream_tests_of_the_model_without_head(architecture, upstream_tests, tmp_path):
    """The training tests want a loss, which a model without head does not have."""
    failing = architecture.upstream_failures | TRAINING
    name = architecture.model_class.__name__
    check(upstream_tests, name, architecture.tiny, tmp_path / "report.xml", failing, 90)
