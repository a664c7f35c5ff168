"""A callback that prints the bits per byte of a model and of an n-gram model."""

from typing import Any

from transformers import TrainerCallback


class Yardstick(TrainerCallback):
    """A callback that prints, after each evaluation, the bits per byte of the model on the held-out text, and those of
    an n-gram model of the same training text.

    Args:
        bits_per_byte: bits per byte of the n-gram model.
        order: length of its longest n-grams.
    """

    def __init__(self, bits_per_byte: float, order: int):
        self.bits_per_byte, self.order = bits_per_byte, order

    def on_evaluate(self, args, state, control, metrics: dict[str, Any] | None = None, **kwargs):
        bits = (metrics or {}).get("eval_bits_per_byte")
        if bits is not None and state.is_world_process_zero:
            print(
                f"bits per byte {bits:.3f}; a table of {self.order}-gram counts of the same text gets "
                f"{self.bits_per_byte:.3f}"
            )
