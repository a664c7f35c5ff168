"""Make a folder of `hub_configs` that ships a trained model: weights in bfloat16 (float32 once loaded), configuration,
tokenizer and what else a run leaves for its reader. The card and the recipe are written by hand.

python eval/experiments/ship.py runs/x hub_configs/x
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME

import latentlm
from latentlm.architectures import architecture
from latentlm.models.encodzall_base import SENTENCE_TRANSFORMERS_FILES
from latentlm.runs import load_recipe
from latentlm.training.run import load_data

TOKENIZER_CONFIG = "tokenizer_config.json"
OF_LOADING = {"auto_map", "is_local", "local_files_only", "model_specific_special_tokens"}  # not of the tokenizer


def own_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Every field of the configuration's class, in its order, without what transformers' base adds."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    names = [field.name for field in dataclasses.fields(type(config)) if field.name not in inherited]
    values = config.to_dict()
    return {name: values[name] for name in names if name in values}


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def ship(run: Path, folder: Path) -> int:
    """Make the folder; returns the bytes of its weights.

    Raises:
        ValueError: if the run holds no model of an architecture here.
    """
    [name] = json.loads((run / CONFIG_NAME).read_text(encoding="utf-8"))["architectures"]
    model_class: Any = getattr(latentlm, name, None)
    if model_class is None:
        raise ValueError(f"{run / CONFIG_NAME} names the class {name}, which latentlm does not have.")
    model = model_class.from_pretrained(run)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": [name], "model_type": model.config.model_type, **own_fields(model.config)}
    write_json(folder / CONFIG_NAME, config | {"dtype": "float32"})
    with TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        AutoTokenizer.from_pretrained(run).save_pretrained(saved)
        weights = load_file(Path(saved) / SAFE_WEIGHTS_NAME)
        rounded = {name: w.bfloat16() if w.is_floating_point() else w for name, w in weights.items()}
        save_file(rounded, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        for file in SENTENCE_TRANSFORMERS_FILES:
            if (Path(saved) / file).exists():
                shutil.copy(Path(saved) / file, folder / file)
        tokenizer = json.loads((Path(saved) / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    write_json(folder / TOKENIZER_CONFIG, {k: v for k, v in tokenizer.items() if k not in OF_LOADING})
    ids = {name: value for name, value in config.items() if name.endswith("_token_id") and value is not None}
    write_json(folder / GENERATION_CONFIG_NAME, dict(sorted(ids.items())))
    (folder / SAFE_WEIGHTS_NAME).chmod(0o644)
    return (folder / SAFE_WEIGHTS_NAME).stat().st_size


def evaluate(run: Path, folder: Path) -> dict[str, float]:
    """What the model as it ships scores on the validation text of its run."""
    with TemporaryDirectory() as output:
        recipe = load_recipe(run / "recipe.yaml", {"output_dir": output})
        data, row = load_data(recipe), architecture(recipe.model_type)
        trainer = row.trainer_class(
            model=row.trainer_class.auto_class.from_pretrained(folder),
            args=recipe.training,
            eval_dataset=data.validation,
            processing_class=data.tokenizer,
            token_bytes=data.token_bytes,
        )
        return trainer.evaluate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder with a trained model")
    parser.add_argument("folder", type=Path, help="in hub_configs")
    parser.add_argument("--evaluate", action="store_true", help="on the validation text of the run, as its recipe does")
    options = parser.parse_args()
    print(f"{options.folder}: {ship(options.run, options.folder) / 1e6:.2f} MB of weights")
    if options.evaluate:
        print(json.dumps(evaluate(options.run, options.folder), indent=2))


if __name__ == "__main__":
    main()
