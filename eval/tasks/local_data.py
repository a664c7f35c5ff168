"""Documents for the task files beside this one: local files, or the stock Hub datasets.

lm-eval expands no environment variables in its YAML, so the choice is made here: with LATENTLM_EVAL_DATA set, every
task reads JSON-lines files (plain or .gz) from that folder; without it, the dataset that lm-eval's own task names.
lm-eval loads this file by path, once, so it stands alone and imports no neighbour.
"""

import gzip
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import lm_eval.tasks
import yaml
from datasets import Dataset, DatasetDict, load_dataset
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask

logger = logging.getLogger("lm_eval.tasks.latentlm")  # below lm_eval, whose level decides what is shown

VARIABLE = "LATENTLM_EVAL_DATA"
SPLITS = ("train", "validation", "test")


def data_folder() -> Path | None:
    """The folder named by LATENTLM_EVAL_DATA, None when the variable is unset or empty.

    Raises:
        FileNotFoundError: the variable names something that is not a folder.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    folder = Path(value).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{VARIABLE}={value!r} is not a folder; unset it to use the stock Hub datasets")
    return folder


def read_json_lines(path: Path) -> Dataset:
    """One row per line of a UTF-8 JSON-lines file; a name ending in .gz is unpacked.

    Raises:
        ValueError: the file is empty, is not UTF-8 or holds a line that is not a JSON object.
    """
    rows = []
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
                raise ValueError(f"{path}, line {number}: expected a JSON object in UTF-8, got {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty; expected one JSON object per line")
    return Dataset.from_list(rows)


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of `names` in `folder`, as it stands or with .gz appended; None when there is none."""
    candidates = (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def load(
    *,
    local_files: Mapping[str, Sequence[str]],
    local_optional: Mapping[str, Sequence[str]] | None = None,
    hub_path: str,
    hub_name: str | None = None,
    **_: object,
) -> DatasetDict:
    """`custom_dataset` of every task file here; the keywords come from its `dataset_kwargs`.

    Args:
        local_files: split -> file names relative to the data folder, the first that exists is read. Required: these
            are the documents that get scored.
        local_optional: the same for splits that few-shot prompts draw from; a split without a file is empty, which
            is harmless as long as `--num_fewshot` is 0.
        hub_path, hub_name: the stock dataset, for when LATENTLM_EVAL_DATA is not set.
        _: lm-eval adds the task's metadata and the model's arguments; they do not matter here.

    Raises:
        FileNotFoundError: LATENTLM_EVAL_DATA is set and none of the names of a required split is there.
    """
    folder = data_folder()
    if folder is None:
        return load_dataset(hub_path, hub_name)

    splits = {}
    for split, names in {**(local_optional or {}), **local_files}.items():
        path = find_file(folder, names)
        if path is not None:
            splits[split] = read_json_lines(path)
            logger.info("%s: %d documents from %s", split, len(splits[split]), path)
        elif split in local_files:
            raise FileNotFoundError(
                f"{VARIABLE}={folder} holds none of {', '.join(names)} (plain or .gz) for {hub_path}; "
                f"add the file, or unset {VARIABLE} to use the Hub dataset"
            )
    # lm-eval looks at every split that the stock task declares, used or not.
    features = next(iter(splits.values())).features
    empty = Dataset.from_dict({name: [] for name in features}, features=features)
    return DatasetDict({split: splits.get(split, empty) for split in SPLITS})


def blimp_group() -> Group:
    """The group `local_blimp`: lm-eval's `blimp`, over whichever paradigms the data folder holds.

    lm-eval's YAML groups list their members by name, so one absent file would stop all of them. Its `class` key may
    call any function, and the loader takes a Group from it as readily as a Task. Every `blimp/*.jsonl` becomes a task
    `blimp_<paradigm>` with the stock template; without LATENTLM_EVAL_DATA the members are those of the stock group.

    Raises:
        FileNotFoundError: LATENTLM_EVAL_DATA is set and its folder has no `blimp/*.jsonl`.
    """
    stock = Path(lm_eval.tasks.__file__).parent / "blimp"
    template = yaml.safe_load((stock / "_template_yaml").read_text(encoding="utf-8"))
    group_config = yaml.safe_load((stock / "_blimp.yaml").read_text(encoding="utf-8"))
    members = group_config.pop("task")

    folder = data_folder()
    if folder is None:
        paradigms = [name.removeprefix("blimp_") for name in members]
    else:
        files = [*folder.glob("blimp/*.jsonl"), *folder.glob("blimp/*.jsonl.gz")]
        paradigms = sorted({path.name.partition(".jsonl")[0] for path in files})
        if not paradigms:
            raise FileNotFoundError(f"{VARIABLE}={folder} holds no blimp/*.jsonl, one file per paradigm")

    group = Group.from_config({**group_config, "group": "local_blimp"})
    for paradigm in paradigms:
        config = {
            **template,
            "task": f"blimp_{paradigm}",
            "dataset_name": paradigm,
            "custom_dataset": load,
            "dataset_kwargs": {
                "local_files": {template["validation_split"]: [f"blimp/{paradigm}.jsonl"]},
                "hub_path": template["dataset_path"],
                "hub_name": paradigm,
            },
        }
        group.add(ConfigurableTask(config=config))
    return group
