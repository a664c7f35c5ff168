"""Configuration of the gated window, the toy architecture of test_toy_architecture.py."""

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


@strict
class GatedWindowConfig(PreTrainedConfig):
    """A language model whose layers gate a sum over the last few tokens.

    Args:
        vocab_size: number of token ids.
        hidden_size: width D.
        num_hidden_layers: number of layers.
        window: tokens that a layer sees, its own included.
        max_position_embeddings: longest context in tokens.
        initializer_range: standard deviation of the initial weights.
    """

    model_type = "gated_window"
    keys_to_ignore_at_inference = ["lm_loss"]

    vocab_size: int = 259
    hidden_size: int = 16
    num_hidden_layers: int = 2
    window: int = 4
    max_position_embeddings: int = 64
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "configuration_gated_window.GatedWindowConfig",
            "AutoModel": "modeling_gated_window.GatedWindowModel",
            "AutoModelForCausalLM": "modeling_gated_window.GatedWindowForCausalLM",
        }

    def validate_sizes(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "window", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but it must be at least 1.")
