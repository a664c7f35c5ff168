"""Configuration of the Abstractinator."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from .configuration_learned_dropout import LearnedDropoutConfig
from .configuration_ngram_embedding import NgramEmbeddingConfig

NUM_SPECIAL_CODES = 3
"""The number of special symbols (padding, begin and end), whose ids follow the codes in every alphabet above the
first."""


@strict
@dataclass
class LevelConfig(NgramEmbeddingConfig):
    """Fields of one level of the pyramid, which encodes its symbols (bytes, or codes of the level below) and decodes
    them.

    Arguments are those of [`NgramEmbeddingConfig`] and the ones below. The n-gram fields apply to every part of this
    level that embeds symbols, and each part has its own table.

    Args:
        num_entropy_layers, entropy_window: number of layers and attention window, in symbols, of the small language
            model whose next-symbol entropy determines where segments begin.
        entropy_head: loss of that model: `"categorical"` (cross-entropy of the next symbol), `"gaussian"` (negative
            log-likelihood of the detached embedding of the next symbol) or `"both"`, where the categorical entropy
            determines the segments.
        delta: a segment opens where the entropy, in nats, rises by more than this.
        threshold: a segment also opens where the entropy, in nats, is above this; None disables this rule.
        min_segment_length, max_segment_length: limits of the length of a segment, in symbols.
        target_segment_length: mean segment length, in symbols, that training approaches by adapting `delta`; None
            leaves `delta` unchanged.
        num_compressor_layers, compressor_window: number of layers before the pooling, and their causal attention window
            in symbols.
        compressor_attention: `"window"`, or `"segment"`, which restricts the window to the segment of the symbol.
        num_queries: number of learned queries that pool a segment.
        quantizer: `"vq"` (vector quantization), `"rvq"` (residual vector quantization), `"fsq"` (finite scalar
            quantization), or `"none"`, which only the top level may have.
        num_codes: number of codes of each stage of `"vq"` and `"rvq"`.
        code_dim: size of the space of the codebook entries, and of the embedding and output layer of codes.
        depth: number of stages of `"rvq"`.
        fsq_levels: number of values of each dimension of `"fsq"`.
        commitment: weight of the commitment loss within `vq_loss`.
        codebook_decay: decay of the exponential moving averages that define the codebook.
        num_expander_layers, expander_window: number of layers and causal attention window, in symbols, of the decoder;
            None for attention to all earlier symbols.
        shares_trunk: whether the expander, and the compressor of the first level, read the states of the entropy model
            instead of embeddings of their own.
        lookback: number of previous segments whose memory vectors a symbol attends to, in addition to that of its own
            segment.
    """

    num_entropy_layers: int = 12
    entropy_window: int = 64
    entropy_head: Literal["categorical", "gaussian", "both"] = "categorical"
    delta: float | int = 0.2
    threshold: float | int | None = None
    min_segment_length: int = 1
    max_segment_length: int = 32
    target_segment_length: float | int | None = None
    num_compressor_layers: int = 4
    compressor_window: int = 64
    compressor_attention: Literal["window", "segment"] = "window"
    num_queries: int = 1
    quantizer: Literal["none", "vq", "rvq", "fsq"] = "vq"
    num_codes: int = 8192
    code_dim: int = 64
    depth: int = 1
    fsq_levels: list[int] | tuple[int, ...] = (8, 8, 8, 5, 5)
    commitment: float | int = 0.25
    codebook_decay: float | int = 0.99
    num_expander_layers: int = 6
    expander_window: int | None = 64
    shares_trunk: bool = False
    lookback: int = 3

    @property
    def num_ids(self) -> int:
        """The number of codes of one stage."""
        return math.prod(self.fsq_levels) if self.quantizer == "fsq" else self.num_codes

    @property
    def num_digits(self) -> int:
        """The number of stages, each of which adds one digit to a code."""
        return self.depth if self.quantizer == "rvq" else 1


def make_level(number: int, values: dict[str, Any]) -> LevelConfig:
    """Make the configuration of a level.

    Raises:
        ValueError: for a field of the wrong type or value, with the number of the level.
    """
    try:
        return LevelConfig(**values)
    except (StrictDataclassError, ValueError) as error:
        raise ValueError(f"`levels[{number}]`: {error.__cause__ or error}") from error


LEAST = {
    "num_entropy_layers": 1,
    "entropy_window": 1,
    "min_segment_length": 1,
    "num_compressor_layers": 0,
    "compressor_window": 1,
    "num_queries": 1,
    "num_codes": 2,
    "code_dim": 1,
    "depth": 1,
    "num_expander_layers": 1,
    "lookback": 0,
    "commitment": 0,
    "codebook_decay": 0,
}
"""The smallest valid values of fields of [`LevelConfig`]."""


@strict
class AbstractinatorConfig(LearnedDropoutConfig):
    """A hierarchical VQ autoencoder over bytes, and a language model on its top-level codes.

    Arguments are those of [`LearnedDropoutConfig`] and the ones below. Cross-attention to memory vectors is regular
    attention for every `attention_form`. LearnedDropout acts in every part.

    Args:
        vocab_size: number of symbols of the first level, special ids included.
        hidden_size: width D of every part.
        num_attention_heads: number of heads of every attention; must divide `hidden_size` into heads of an even size.
        intermediate_size: width of the SwiGLU layers, `4 * hidden_size` when None.
        max_position_embeddings: maximum number of symbols of a text, or of a batch's width, padding included, where no
            documents are packed; longer inputs raise an error.
        byte_code_dim: size of a smaller space, through which the embedding and the logits of the first level's symbols
            are factorised; None for no factorisation.
        levels: one mapping of [`LevelConfig`] fields for each level, from the bytes up.
        num_top_layers: number of layers of the language model on the top-level codes, whose causal attention has no
            window; 0 for no such model.
        top_head: `"categorical"` (cross-entropy of the next code), or `"continuous"` (mean squared error of the next
            vector, which defines no likelihood).
        reconstruction_loss_weight, vq_loss_weight, entropy_loss_weight, top_lm_loss_weight, lm_loss_weight: weights of
            the losses. [`AbstractinatorTrainer`] raises the weight of `lm_loss` over the first tenth of a run.
        freeze_entropy, freeze_base: whether the entropy models, or all parts but the top model, are excluded from
            training.
        num_frozen_levels: number of levels, counted from the first one, that are excluded from training.
        hidden_dropout: dropout on the input of every stack of layers, and on what each block adds to the residual
            stream.
        attention_dropout: dropout on attention probabilities.

    The defaults are those of the small configuration of the original design.
    """

    model_type = "abstractinator"
    # A Trainer does not pass these outputs to `compute_metrics`, which expects the logits alone.
    keys_to_ignore_at_inference = [
        "past_key_values",
        "lm_loss",
        "reconstruction_loss",
        "vq_loss",
        "entropy_loss",
        "code_lm_loss",
        "level_losses",
        "mask_entropy_loss",
        "mask_l1_loss",
    ]

    vocab_size: int = 259
    hidden_size: int = 256
    num_attention_heads: int = 8
    intermediate_size: int | None = None
    max_position_embeddings: int = 8192
    byte_code_dim: int | None = None
    levels: list[dict[str, Any]] | tuple[dict[str, Any], ...] = ({},)
    num_top_layers: int = 12
    top_head: Literal["categorical", "continuous"] = "categorical"
    reconstruction_loss_weight: float | int = 1.0
    vq_loss_weight: float | int = 1.0
    entropy_loss_weight: float | int = 1.0
    top_lm_loss_weight: float | int = 1.0
    lm_loss_weight: float | int = 1.0
    freeze_entropy: bool = False
    freeze_base: bool = False
    num_frozen_levels: int = 0
    rope_parameters: dict | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    use_cache: bool = True
    pad_token_id: int | None = 256
    bos_token_id: int | None = 257
    eos_token_id: int | list[int] | None = 258

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        names = {field.name for field in fields(LevelConfig)}
        for i, level in enumerate(self.levels):
            if unknown := set(level) - names:
                raise ValueError(f"`levels[{i}]` has no field {sorted(unknown)}; possible: {sorted(names)}.")
        # All fields of a level are stored, so that the defaults of another version cannot change a saved model.
        self.levels = [asdict(make_level(i, level)) for i, level in enumerate(self.levels)]
        for level in self.levels:
            level["fsq_levels"] = list(level["fsq_levels"])
        super().__post_init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "configuration_abstractinator.AbstractinatorConfig",
            "AutoModel": "modeling_abstractinator.AbstractinatorModel",
            "AutoModelForCausalLM": "modeling_abstractinator.AbstractinatorForCausalLM",
        }

    @property
    def level_configs(self) -> list[LevelConfig]:
        return [LevelConfig(**level) for level in self.levels]

    @property
    def num_left_alone(self) -> int:
        """The number of levels, counted from the first one, that are excluded from training."""
        return len(self.levels) if self.freeze_base else self.num_frozen_levels

    @property
    def base_model_fsdp_plan(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The FSDP plan, which shards only the feed-forward block of each layer. This block holds most weights.
        Attention cannot be sharded, because weights are gathered for the call of a whole module, and decoding with a
        cache calls parts of an attention."""
        stacks = ["levels.*.entropy_model.stack", "levels.*.expander"]
        if any(level["num_compressor_layers"] for level in self.levels):
            stacks.append("levels.*.compressor")
        if self.num_top_layers:
            stacks.append("top.stack")
        return {f"{stack}.layers.*.mlp": "free_full_weight" for stack in stacks}

    @property
    def num_hidden_layers(self) -> int:
        """The number of layers of the first level's expander, which predicts the next byte."""
        return self.levels[0]["num_expander_layers"]

    def validate_sizes(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but it must be at least 1.")
        for name, least in {"max_position_embeddings": 1, "num_top_layers": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but it must be at least {least}.")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but a dropout rate lies in [0, 1).")
        for name in ("reconstruction", "vq", "entropy", "top_lm", "lm"):
            weight = getattr(self, f"{name}_loss_weight")
            if not 0 <= weight < math.inf:
                raise ValueError(f"`{name}_loss_weight` is {weight}, but it must be at least 0, and finite.")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"`initializer_range` is {self.initializer_range}, but it must be at least 0, and finite.")
        if self.byte_code_dim is not None and self.byte_code_dim < 1:
            raise ValueError(f"`byte_code_dim` is {self.byte_code_dim}, but it must be at least 1, or None.")

    def validate_with_sizes(self) -> None:  # validators run in the order of their names, and this one divides by sizes
        heads = self.num_attention_heads
        if self.hidden_size % heads or (self.hidden_size // heads) % 2:
            raise ValueError(
                f"`num_attention_heads` is {heads}, but must divide `hidden_size` {self.hidden_size} into heads of an "
                "even size, which rotary positions need."
            )

    def validate_levels(self) -> None:
        if not self.levels:
            raise ValueError("`levels` is empty, but the pyramid needs at least one level.")
        if not 0 <= self.num_frozen_levels <= len(self.levels):
            raise ValueError(
                f"`num_frozen_levels` is {self.num_frozen_levels}, but must lie between 0 and the number of `levels`, "
                f"{len(self.levels)}."
            )
        for i, level in enumerate(self.level_configs):
            for name, least in LEAST.items():
                if not least <= getattr(level, name) < math.inf:
                    raise ValueError(
                        f"`levels[{i}].{name}` is {getattr(level, name)}, but it must be at least {least}, and finite."
                    )
            for name in ("delta", "threshold"):
                value = getattr(level, name)
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"`levels[{i}].{name}` is {value}, but it must be a finite number of nats.")
            if level.codebook_decay >= 1:
                raise ValueError(
                    f"`levels[{i}].codebook_decay` is {level.codebook_decay}, but it must be below 1, or entries never "
                    "move."
                )
            if level.max_segment_length < level.min_segment_length:
                raise ValueError(
                    f"`levels[{i}].max_segment_length` is {level.max_segment_length}, but must be at least "
                    f"`min_segment_length` {level.min_segment_length}."
                )
            target = level.target_segment_length
            if target is not None and not level.min_segment_length <= target <= level.max_segment_length:
                raise ValueError(
                    f"`levels[{i}].target_segment_length` is {target}, but must lie between `min_segment_length` "
                    f"{level.min_segment_length} and `max_segment_length` {level.max_segment_length}."
                )
            if level.expander_window is not None and level.expander_window < 1:
                raise ValueError(
                    f"`levels[{i}].expander_window` is {level.expander_window}, but it must be at least 1, or None."
                )
            if level.depth > 1 and level.quantizer != "rvq":
                raise ValueError(
                    f"`levels[{i}].depth` is {level.depth}, but only the quantizer 'rvq' has more than one stage, and "
                    f"`quantizer` is {level.quantizer!r}."
                )
            if level.quantizer == "fsq" and min(level.fsq_levels, default=0) < 2:
                raise ValueError(f"`levels[{i}].fsq_levels` is {level.fsq_levels}, but each must be at least 2.")
        for i, level in enumerate(self.level_configs[:-1]):
            if level.quantizer == "none":
                raise ValueError(
                    f"`levels[{i}].quantizer` is 'none', but the level above reads its codes: use 'vq', 'rvq' or 'fsq'."
                )
        if self.levels[-1]["quantizer"] == "none" and self.num_top_layers and self.top_head == "categorical":
            raise ValueError(
                f"`levels[{len(self.levels) - 1}].quantizer` is 'none', so there are no codes that the top model with "
                "`top_head` 'categorical' could predict: quantize, or use 'continuous'."
            )


__all__ = ["AbstractinatorConfig", "LevelConfig"]
