"""What the sequence decoder of an EncodZall makes of realistic noise of one strength, whatever noise the run had."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from latentlm.runs import load_recipe
from latentlm.training import EncodzallTrainer
from latentlm.training.run import load_data

KEPT = ("bits_per_byte", "corrupted_loss", "corrupted_accuracy", "untouched_accuracy", "exact_words")


def measure(model: Any, tokenizer: Any, run: Path) -> dict[str, float]:
    """`realistic_<name>` of an evaluation on the run's validation rows, at its `noise_eval_strength`."""
    with TemporaryDirectory() as folder:
        fields = {"noise": "realistic", "noise_set_point": None, "output_dir": folder}
        recipe = load_recipe(run / "recipe.yaml", fields)
        weight, model.config.word_loss_weight = model.config.word_loss_weight, 0.0  # words may be joined or split
        data = load_data(recipe)
        trainer = EncodzallTrainer(
            model=model,
            args=recipe.training,
            eval_dataset=data.validation,
            processing_class=tokenizer,
            token_bytes=data.token_bytes,
        )
        scores = trainer.evaluate()
        model.config.word_loss_weight = weight
    return {f"realistic_{name}": scores[f"eval_{name}"] for name in KEPT}
