"""Configuration of the Abstractinator."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_learned_dropout import LearnedDropoutConfig
from .configuration_ngram_embedding import NgramEmbeddingConfig

NUM_SPECIAL_CODES = 3
"""Padding, begin and end follow the codes of every alphabet above the first."""


@strict
@dataclass
class LevelConfig(NgramEmbeddingConfig):
    """One level of the pyramid, from its symbols (bytes, or codes of the level below) to codes and back.

    Arguments are those of [`NgramEmbeddingConfig`], which apply to every part of this level that embeds symbols, each
    with a table of its own, and:

    Args:
        num_entropy_layers, entropy_window: layers and attention window of the small language model whose next-symbol
            entropy cuts the sequence.
        entropy_head: `"categorical"` (cross-entropy of the next symbol), `"gaussian"` (negative log-likelihood of its
            embedding, detached) or `"both"`, which cuts by the categorical one.
        delta: a segment opens where the entropy, in nats, rises by more than this.
        threshold: a segment also opens where the entropy is above this; None for never.
        min_segment_length, max_segment_length: limits of the length of a segment, in symbols.
        target_segment_length: adapt `delta` in training until segments have this mean length; None leaves it as it is.
        num_compressor_layers, compressor_window: layers before pooling, and their causal attention window.
        compressor_attention: `"window"`, or `"segment"`, which attends only within the window and the own segment.
        num_queries: learned queries that pool a segment.
        quantizer: `"vq"`, `"rvq"` (of `depth` stages), `"fsq"`, or `"none"`, which only the top level may have.
        num_codes: codes of each vq or rvq stage.
        code_dim: size of the space in which vectors are quantized and codes are distinguished.
        depth: number of rvq stages.
        fsq_levels: levels of each fsq dimension.
        commitment: weight of the commitment loss within `vq_loss`.
        codebook_decay: decay of the moving averages of the codebook.
        num_expander_layers, expander_window: layers and attention window of the decoder; with `expander_window` None it
            sees the whole row.
        shares_trunk: whether the expander, and the first level's compressor, read the states of the entropy model in
            place of embeddings of their own.
        lookback: number of previous segments whose memory vectors a symbol sees beside that of its own segment.
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
        """Codes of one stage."""
        return math.prod(self.fsq_levels) if self.quantizer == "fsq" else self.num_codes

    @property
    def num_digits(self) -> int:
        return self.depth if self.quantizer == "rvq" else 1


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
}


@strict
class AbstractinatorConfig(LearnedDropoutConfig):
    """A hierarchical VQ autoencoder over bytes, and a language model on its top codes.

    Arguments are those of [`LearnedDropoutConfig`] and the ones below. Memory rows are read by regular attention
    whatever `attention_form` is; LearnedDropout acts in every part.

    Args:
        vocab_size: symbols of the first level, special ids included.
        hidden_size: width D of every part.
        num_attention_heads: heads of every attention; must divide `hidden_size` into heads of an even size.
        intermediate_size: width of the SwiGLU layers, `4 * hidden_size` when None.
        max_position_embeddings: longest text in symbols.
        byte_code_dim: size of a smaller space for embedding and logits of the first level's symbols; None for none.
        levels: one mapping of [`LevelConfig`] fields for each level, from the bytes up.
        num_top_layers: layers of the language model on the top codes, which sees all of them; 0 for no such model.
        top_head: `"categorical"`, or `"continuous"`: mean squared error to the next vector, which has no likelihood.
        reconstruction_loss_weight, vq_loss_weight, entropy_loss_weight, top_lm_loss_weight, lm_loss_weight: weights of
            the losses. [`AbstractinatorTrainer`] raises that of `lm_loss` over the first tenth of a run.
        freeze_entropy, freeze_base: leave the entropy models, or all but the top model, as they are.
        num_frozen_levels: leave so many levels, from the first one on, as they are.
        hidden_dropout, attention_dropout: on what each block adds; on probabilities.

    The defaults are the original's small configuration.
    """

    model_type = "abstractinator"
    # What `compute_metrics` of a Trainer is not given: it expects the logits alone.
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
        # Whole levels are kept, so that another version's defaults cannot change a saved model.
        self.levels = [asdict(LevelConfig(**level)) for level in self.levels]
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
        """How many levels, from the first one on, are left as they are."""
        return len(self.levels) if self.freeze_base else self.num_frozen_levels

    @property
    def base_model_fsdp_plan(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of layers the feed-forward part alone, which holds most weights: decoding with a cache calls their attention
        in pieces, and what is sharded is gathered for whole calls."""
        stacks = ["levels.*.entropy_model.stack", "levels.*.expander"]
        if any(level["num_compressor_layers"] for level in self.levels):
            stacks.append("levels.*.compressor")
        if self.num_top_layers:
            stacks.append("top.stack")
        return {f"{stack}.layers.*.mlp": "free_full_weight" for stack in stacks}

    @property
    def num_hidden_layers(self) -> int:
        """Layers on bytes that predict the next one: those of the first expander."""
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
            if getattr(self, f"{name}_loss_weight") < 0:
                weight = getattr(self, f"{name}_loss_weight")
                raise ValueError(f"`{name}_loss_weight` is {weight}, but it must be at least 0.")

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
                if getattr(level, name) < least:
                    raise ValueError(
                        f"`levels[{i}].{name}` is {getattr(level, name)}, but it must be at least {least}."
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
