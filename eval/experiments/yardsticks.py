"""What a text says about itself without a model: counts of n-grams, and xz that has read the training text.

    python eval/experiments/yardsticks.py [--page yardsticks] [--records FOLDER] [--any_data_field value ...]
    python eval/experiments/yardsticks.py --dataset train.txt --validation_dataset held_out.txt --tokenizer bpe

Bits per byte of the held-out text, in whole documents; every field of the data section can be set. Leaves a record of
each in `eval/records/PAGE`.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers import xz
from records import RECORDS, REPOSITORY, Record, RecordError, circumstances, portable, write_record

from latentlm.cli.arguments import parse_command_line
from latentlm.data import DataConfig, prepare_data
from latentlm.evaluation.ngram import score_ngram
from latentlm.runs import Recipe, RecipeError, load_recipe

RECIPE = REPOSITORY / "hub_configs" / "decoder-only-tiny" / "recipe.yaml"  # only its data section is used


def measure_ngram(recipe: Recipe) -> dict[str, Any]:
    """Fields of the record of the n-grams of a text, in the tokens of its tokenizer."""
    started = time.perf_counter()
    assert isinstance(recipe.data, DataConfig)
    data = prepare_data(recipe.data)
    score = score_ngram(data)
    return {
        "metrics": {
            "eval_bits_per_byte": score.bits_per_byte,
            "eval_loss": score.nats_per_token,
            "order": float(score.order),
        },
        "steps": 0,
        "seconds": time.perf_counter() - started,
        "flops": 0.0,
        "flops_method": "counting: no floating-point arithmetic in training",
        "parameters": {"total": score.num_counts, "embedding": score.num_counts, "body": 0},
        "tokens_seen": data.info["train"]["tokens"],
        "bytes_seen": data.info["train"]["bytes"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    try:
        path, fields = parse_command_line(arguments)
        if path is not None:
            raise RecipeError(f"unexpected argument {path!r}; fields are written --name value.")
        page = str(fields.pop("page", "yardsticks"))
        records = Path(fields.pop("records", RECORDS))
        recipe = load_recipe(RECIPE, {f"data.{name}": value for name, value in fields.items()})
        assert isinstance(recipe.data, DataConfig)
        text = Path(recipe.data.dataset).stem.lower()
        kinds: dict[str, tuple[str, Callable[[Recipe], dict[str, Any]]]] = {
            f"{text}-ngram-{Path(recipe.data.tokenizer).stem.lower()}": ("n-grams (counts)", measure_ngram),
            f"{text}-xz": ("xz", xz.fit),
        }
        for entry, (label, measure) in kinds.items():
            started = time.perf_counter()
            record = Record(
                page=page,
                entry=entry,
                label=label,
                seed=0,
                num_seeds=1,
                **measure(recipe),
                configuration={"model": {}, "data": portable(recipe.to_dict()["data"]), "training": {}},
                wall_seconds=time.perf_counter() - started,
                **circumstances(),
            )
            order = f" of order {record.metrics['order']:.0f}" if "order" in record.metrics else ""
            bits = record.metrics["eval_bits_per_byte"]
            print(
                f"{entry}{order}: {bits:.3f} bits per byte ({record.seconds:.1f} s, {record.bytes_seen:,} bytes read)"
            )
            print(write_record(record, records))
    except (RecipeError, RecordError, ValueError, OSError) as error:
        sys.exit(f"yardsticks.py: {error}")


if __name__ == "__main__":
    main()
