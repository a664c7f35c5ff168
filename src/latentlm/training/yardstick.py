"""Where a model stands, in a line that needs no knowledge of losses."""

from typing import Any

from transformers import TrainerCallback


class Yardstick(TrainerCallback):
    """Says after each evaluation how many bits the model needs for a byte of the held-out text, and how many the counts
    of n-grams of the same training text do.

    Args:
        bits_per_byte: of the counts.
        order: of the longest n-grams.
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
