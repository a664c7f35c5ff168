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
from architectures import ARCHITECTURES, each_architecture, each_causal_architecture
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


def run(script: Path, report: Path, models: dict[str, str | Path]) -> tuple[ElementTree.Element, str]:
    """Runs the tests of the classes of `models`, each with the configuration in its folder in hub_configs, all in one
    process. Returns the report and the end of what was printed."""
    code = [
        "import importlib.machinery as m, pathlib, subprocess, sys",
        "upstream = m.SourceFileLoader('upstream', sys.argv[1]).load_module()",
        "tree, files = upstream.suite(), []",
        "for name, config in zip(sys.argv[3::2], sys.argv[4::2]):",
        "    files.append(tree / 'tests' / f'test_project_{name}.py')",
        "    fields = {'package': 'latentlm', 'name': name, 'config': config, 'attentions': True}",
        "    files[-1].write_text(upstream.TEST.format(**fields))",
        "command = [sys.executable, '-m', 'pytest', '-q', '--tb=line', '-W', 'ignore', '-p', 'no:cacheprovider']",
        "sys.exit(subprocess.run([*command, sys.argv[2], *files], cwd=tree).returncode)",
    ]
    arguments = [part for name, config in models.items() for part in (name, REPOSITORY / "hub_configs" / config)]
    command = [sys.executable, "-c", "\n".join(code), script, f"--junitxml={report}", *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    output = done.stdout[-8000:] + done.stderr[-2000:]
    assert report.exists() and done.returncode in (0, 1), output
    return ElementTree.parse(report).getroot(), output


def check(report: tuple[ElementTree.Element, str], class_name: str, failing: Set[str], least: int) -> None:
    """All tests ran. Those that fail are exactly `failing`, and at least `least` pass; what fails or is skipped is
    listed in docs/limits.md."""
    root, output = report
    tests = [test for test in root.iter("testcase") if f"test_project_{class_name}." in f"{test.get('classname')}."]
    failed = {str(test.get("name")) for test in tests if list(test.iter("failure")) or list(test.iter("error"))}
    assert failed == failing, f"{class_name}: {output}"
    skips = {str(test.get("name")): str(skip.get("message")) for test in tests for skip in test.iter("skipped")}
    assert len({test.get("name") for test in tests} - failed) - len(skips) >= least, class_name
    listed = set(re.findall(r"`(test_\w+\*?)`", (REPOSITORY / "docs" / "limits.md").read_text(encoding="utf-8")))
    assert failed <= listed
    unlisted = {name: why for name, why in skips.items() if not any(fnmatch(name, one) for one in listed)}
    assert not unlisted, f"{class_name}: skipped, but not in docs/limits.md: {unlisted}"


# What fails, and why, is in docs/limits.md.
TRAINING = {
    "test_training",
    "test_training_gradient_checkpointing",
    "test_training_gradient_checkpointing_use_reentrant_false",
    "test_training_gradient_checkpointing_use_reentrant_true",
}


def test_upstream_tests_of_the_heads(upstream_tests, tmp_path):
    """In one process: its imports take as long as the tests."""
    models = {row.head_class.__name__: row.tiny for row in ARCHITECTURES}
    report = run(upstream_tests, tmp_path / "report.xml", models)
    for row in ARCHITECTURES:
        check(report, row.head_class.__name__, row.upstream_failures, row.upstream_passes)


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
    report = run(upstream_tests, tmp_path / "report.xml", {name: tmp_path})
    check(report, name, failing, architecture.upstream_passes)


@pytest.mark.slow
@each_causal_architecture
def test_upstream_tests_of_the_model_without_head(architecture, upstream_tests, tmp_path):
    """The training tests want a loss, which a model without head does not have."""
    failing = architecture.upstream_failures | TRAINING
    name = architecture.model_class.__name__
    check(run(upstream_tests, tmp_path / "report.xml", {name: architecture.tiny}), name, failing, 85)
