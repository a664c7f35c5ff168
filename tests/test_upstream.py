"""transformers' own common model tests, from the sdist of the installed version, on the tiny published configurations.

What they skip is listed in docs/limits.md: an unlisted skip fails here.
"""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from architectures import each_architecture
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


def run(script: Path, class_name: str, config: str, report: Path, *options: str) -> tuple[int, dict[str, str]]:
    """Number of tests passed, and the reason of each skip by the name of the test; fails if one of them failed."""
    command = [
        sys.executable,
        script,
        class_name,
        REPOSITORY / "hub_configs" / config,
        f"--junitxml={report}",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    tests = list(ElementTree.parse(report).iter("testcase"))
    skips = {str(test.get("name")): str(skip.get("message")) for test in tests for skip in test.iter("skipped")}
    return len({test.get("name") for test in tests}) - len(skips), skips


def assert_listed(skips: dict[str, str]) -> None:
    listed = set(re.findall(r"`(test_\w+)`", (REPOSITORY / "docs" / "limits.md").read_text(encoding="utf-8")))
    unlisted = {name: reason for name, reason in skips.items() if name not in listed}
    assert not unlisted, f"skipped, but not in docs/limits.md: {unlisted}"


NO_ATTENTIONS = "attention_outputs"  # an exception of the table of architectures


@each_architecture
def test_upstream_tests_of_the_head(architecture, upstream_tests, tmp_path):
    options = ["-k", "not attention_outputs and not attentions"] if NO_ATTENTIONS in architecture.exceptions else []
    passed, skips = run(
        upstream_tests, architecture.head_class.__name__, architecture.tiny, tmp_path / "report.xml", *options
    )
    assert passed >= (85 if options else 90)
    assert_listed(skips)


# What is left out asks for attentions or for hidden states of each id of the input: docs/limits.md.
OTHERS = {
    "EncodzallForMaskedDenoising": ("encodzall-tiny", "not attention_outputs and not hidden_states_output", 90),
    "FSQAutoencoderModel": ("fsq-tokenizer-tiny", "not attention and not hidden and not sdpa and not capture", 50),
}


@pytest.mark.parametrize("class_name", OTHERS)
def test_upstream_tests_of_models_that_are_no_language_models(class_name, upstream_tests, tmp_path):
    config, deselect, least = OTHERS[class_name]
    passed, skips = run(upstream_tests, class_name, config, tmp_path / "report.xml", "-k", deselect)
    assert passed >= least
    assert_listed(skips)


@pytest.mark.slow
@each_architecture
def test_upstream_tests_with_learned_dropout(architecture, upstream_tests, tmp_path):
    """The published tiny models have it off."""
    if "learned_dropout" not in architecture.own_fields:
        pytest.skip("has no LearnedDropout")
    config = json.loads((REPOSITORY / "hub_configs" / architecture.tiny / "config.json").read_text(encoding="utf-8"))
    config |= {"learned_dropout": "bernoulli", "learned_dropout_shift": 1.5, "mask_entropy_loss_weight": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    passed, skips = run(upstream_tests, architecture.head_class.__name__, str(tmp_path), tmp_path / "report.xml")
    assert passed >= 90
    assert_listed(skips)


# The training tests want a loss, which a model without head does not have.
NEEDS_A_LOSS = "not test_training and not test_training_gradient_checkpointing"


@pytest.mark.slow
@each_architecture
def test_upstream_tests_of_the_model_without_head(architecture, upstream_tests, tmp_path):
    report = tmp_path / "report.xml"
    without = " and not attention_outputs and not attentions" if NO_ATTENTIONS in architecture.exceptions else ""
    passed, skips = run(
        upstream_tests, architecture.model_class.__name__, architecture.tiny, report, "-k", NEEDS_A_LOSS + without
    )
    assert passed >= 90
    assert_listed(skips)
