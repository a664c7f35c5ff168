"""The table of architectures that every shared test runs over. A new architecture joins all of them with one row.

A row says what its model is, how a batch of it looks, and what it cannot do (`exceptions`): no shared test asks for a
name. A row may also come from outside: with `LATENTLM_TEST_ROWS=package.module:ROW` (several with spaces
between them) in the environment, the object of that name, an `Architecture`, is appended, here and in the processes
that tests start. Its module may import anything that is defined above the table. To see one row alone:

    LATENTLM_TEST_ROWS=toy.row:ROW pytest tests -k toy

Every model here is tiny and all its parameters are random, norm gains, biases and gates included: a parameter that is
ignored, doubled or read from the wrong place then changes the output.
"""

import dataclasses
import functools
import os
import pkgutil
import re
import typing
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from training_setup import Chunks, Rows, Texts
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from latentlm import (
    AbstractinatorConfig,
    AbstractinatorForCausalLM,
    AbstractinatorModel,
    AREncoderDecoderConfig,
    AREncoderDecoderForCausalLM,
    AREncoderDecoderModel,
    ByteTokenizer,
    DecoderOnlyConfig,
    DecoderOnlyForCausalLM,
    DecoderOnlyModel,
    EncodzallConfig,
    EncodzallForMaskedDenoising,
    EncodzallForMaskedLM,
    EncodzallForSequenceClassification,
    EncodzallForTokenClassification,
    EncodzallModel,
    EncodzallTokenizer,
    FSQAutoencoderConfig,
    FSQAutoencoderModel,
    FSQConfig,
    FSQForCausalLM,
    FSQModel,
    ParallelEncoderDecoderConfig,
    ParallelEncoderDecoderForCausalLM,
    ParallelEncoderDecoderModel,
)
from latentlm.models.block_learned_dropout import LearnedDropout

PAD = 0
"""Padding id of the tiny models. They have no end-of-sequence token, so that generation has a known length."""

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
}

Batch = dict[str, torch.Tensor]


def token_ids(*shape: int, vocab_size: int = 64, seed: int = 0) -> torch.Tensor:
    """Random token ids `shape`, int64, none of them padding."""
    return torch.randint(1, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def causal_batch(count: int, seed: int = 0) -> Batch:
    """Rows of 12 tokens, each of which predicts the next."""
    ids = token_ids(count, 12, seed=seed)
    return {"input_ids": ids, "labels": ids}


def text_batch(count: int, seed: int = 0) -> Batch:
    """Texts of unequal lengths, padded, with every third byte changed, unless it is white space, and their labels."""
    words = ["words", "alongerwordthatiscut", "of", "several", "lengths", "in", "texts", "and", "others", "too."]
    texts = [" ".join(words[(seed + i + k) % len(words)] for k in range(2 + (seed + i) % 4)) for i in range(count)]
    inputs = EncodzallTokenizer()(texts, padding=True, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    changed = (torch.arange(ids.shape[1]) % 3 == 0) & (ids > ord(" ")) & (ids < 256)
    labels = ids.masked_fill(mask == 0, -100)
    noisy = ids.masked_fill(changed, ord("x"))
    return {"input_ids": noisy, "attention_mask": mask, "labels": labels, "clean_input_ids": ids}


def chunk_batch(count: int, seed: int = 0) -> Batch:
    """Chunks of 4, 3, 2 and 1 bytes, and the end of those that are shorter than 4."""
    lengths = 4 - (torch.arange(count) + seed) % 4
    place = torch.arange(4)
    chunks = token_ids(count, 4, vocab_size=256, seed=seed).where(place < lengths[:, None], 256)
    return {"input_ids": chunks, "labels": chunks.where(place <= lengths[:, None], -100)}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One row.

    Args:
        config_class, model_class, head_class: configuration, model without head, model with its main head; a model that
            has no head stands in both places.
        auto_class: the Auto class of `head_class`; with `AutoModelForCausalLM` the row joins every causal test.
        sizes: configuration fields of the tiny model.
        variants: named changes to them, which together switch on every code path; shared tests run over all of them.
        typical: the variant that stands for the architecture in tests that take minutes.
        tiny: folder in hub_configs with the tiny published configuration, or the path of one elsewhere.
        batch: from a number of examples and a seed to what a training step of the main head takes, labels included.
        tokenizer: makes the tokenizer of a checkpoint; none where the model is a part of one.
        task: PEFT's name for what the main head does.
        further_heads: other heads by their Auto classes.
        rows: makes the rows, as many as asked for, that latentlm's trainer takes.
        training_fields, training_arguments: what such a training changes in the configuration, and its arguments.
        loss_base: changes under which every term of the loss exists.
        changes: for configuration fields whose possible values are not in their type: a value that is not the default.
        needs: for options that matter only beside another: that other one.
        inert: fields that leave the training step alone, and the test that covers each.
        exceptions: what it cannot do: capability, then the reason. Each is a row in docs/limits.md.
        upstream_failures: of transformers' own tests those that fail, each listed in docs/limits.md.
        upstream_passes: how many of them pass at least.
    """

    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    head_class: type[PreTrainedModel]
    auto_class: type
    sizes: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    typical: str
    tiny: str
    batch: Callable[[int, int], Batch] = causal_batch
    tokenizer: Callable[[], PreTrainedTokenizerBase] | None = ByteTokenizer
    task: str = "CAUSAL_LM"
    further_heads: dict[type, type[PreTrainedModel]] = dataclasses.field(default_factory=dict)
    rows: Callable[[int], Dataset] = Rows
    training_fields: dict[str, Any] = dataclasses.field(default_factory=lambda: {"vocab_size": 260})
    training_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss_base: dict[str, Any] = dataclasses.field(default_factory=dict)
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    needs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    inert: dict[str, str] = dataclasses.field(default_factory=dict)
    exceptions: dict[str, str] = dataclasses.field(default_factory=dict)
    upstream_failures: frozenset[str] = frozenset()
    upstream_passes: int = 90

    @property
    def name(self) -> str:
        return self.config_class.model_type

    @property
    def causal(self) -> bool:
        return self.auto_class is AutoModelForCausalLM

    @property
    def generates(self) -> bool:
        return issubclass(self.head_class, GenerationMixin)

    @property
    def heads(self) -> dict[type, type[PreTrainedModel]]:
        """Every class of the architecture by its Auto class."""
        return {AutoModel: self.model_class, self.auto_class: self.head_class, **self.further_heads}

    @property
    def own_fields(self) -> list[str]:
        """Configuration fields that transformers' base class does not have."""
        base = set(PreTrainedConfig.__dataclass_fields__)
        return [name for name in self.config_class.__dataclass_fields__ if name not in base]


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny model of the table: `case.model()`, `case.config()`, both with further changes to the configuration."""

    architecture: Architecture
    variant: str

    def config(self, **changes: Any) -> PreTrainedConfig:
        fields = self.architecture.sizes | self.architecture.variants[self.variant] | changes
        return self.architecture.config_class(**fields)

    def model(self, attn_implementation: str | None = None, **changes: Any) -> Any:
        """The model with its head, all parameters random, in evaluation mode."""
        return build(self.architecture.head_class, self.config(**changes), attn_implementation)

    def batch(self, count: int = 2, seed: int = 0) -> Batch:
        """What a training step takes: `count` examples with their labels."""
        return self.architecture.batch(count, seed)

    def prompt(self, count: int = 2, seed: int = 0) -> Batch:
        """The same without what only a loss needs: what `generate`, or the model without head, takes."""
        batch = self.batch(count, seed)
        return {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}

    def skip_if_excepted(self, *capabilities: str) -> None:
        """Skip where the table says that the architecture lacks one of `capabilities`."""
        for capability in capabilities:
            if reason := self.architecture.exceptions.get(capability):
                pytest.skip(f"{self.architecture.name}: {reason} (docs/limits.md, {capability})")

    @property
    def tolerance(self) -> float:
        """How far results of equal shapes may be apart when only the content of other tokens changed: mostly not at
        all."""
        return 2e-5 if "equal_shapes" in self.architecture.exceptions else 0.0


def build(model_class: Any, config: PreTrainedConfig, attn_implementation: str | None = None) -> Any:
    """A model in evaluation mode, all parameters random; with `sdpa` where nothing else is asked for."""
    config._attn_implementation = attn_implementation or ("sdpa" if model_class._supports_sdpa else "eager")
    model = model_class(config).eval()
    randomise(model)
    for module in model.modules():
        if isinstance(module, LearnedDropout):
            module.draw = fixed_draw
    return model


def fixed_draw(probability: torch.Tensor) -> torch.Tensor:
    """In place of random rounding, so that two ways of training can be compared: each channel has its own threshold."""
    return (probability > (torch.arange(probability.shape[-1]) + 0.5) / probability.shape[-1]).float()


RENAMED: list[tuple[str, str]] = [
    # EncodZall's and the Abstractinator's layers
    (r"^((word_)?decoder\.layers\.\d+)\.cross_attn_query_norm", r"\1.cross_attn_norm"),
    (r"(expander\.layers\.\d+)\.cross_attn_query_norm", r"\1.row_attn_norm"),
    (r"(expander\.layers\.\d+)\.cross_attn\.", r"\1.row_attn."),
]
"""Regular expressions of parameter names, and what those names were when golden.json was written."""

FUSED: list[tuple[str, dict[str, int]]] = [
    (
        r"(word_encoder|context_encoder|^(word_)?decoder\.layers)\S*self_attn\.qkv_proj",
        {"q_proj": 0, "k_proj": 1, "v_proj": 1},
    ),
    (r"^(word_)?decoder\.layers\S*\.kv_proj", {"k_proj": 1, "v_proj": 1}),
    (r"(stack|compressor|expander)\.layers\S*self_attn\.qkv_proj", {"q_proj": 0, "kv_proj": 1}),
]
"""Regular expressions of projections that were several when golden.json was written: the name of each, and whether it
is one of those that share what is left of the rows beside D of queries."""


def former_names(name: str, parameter: torch.Tensor) -> dict[str, int]:
    """The names that a parameter, or each part of it, had when golden.json was written, and their rows."""
    for pattern, former in RENAMED:
        name = re.sub(pattern, former, name)
    for pattern, parts in FUSED:
        if re.search(pattern, name):
            width, fused = parameter.shape[1], re.search(r"q?kv_proj", name).group()
            rest = len(parameter) - (width if 0 in parts.values() else 0)
            sizes = {part: rest // sum(parts.values()) if shares else width for part, shares in parts.items()}
            return {name.replace(fused, part): size for part, size in sizes.items()}
    return {name: parameter.shape[0] if parameter.ndim else 1}


@functools.cache
def noise_of(name: str, numel: int) -> torch.Tensor:
    """The first `numel` of the random values of `name`. Kept: nearly every test makes the same few models."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(max(1 << 16, numel), generator=generator)[:numel].clone()


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Give every parameter random values that depend on its name alone, so that two variants of a model agree wherever
    they have the same parameter. A longer table starts with the rows of a shorter one."""
    fixed = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith(("_proj.weight", ".codebook"))]
    for name, parameter in [*model.named_parameters(), *fixed]:
        parts = []
        for former, rows in former_names(name, parameter).items():
            parts.append(noise_of(former, rows * parameter[:1].numel() if parameter.ndim else 1))
        noise = torch.cat(parts).view_as(parameter)
        if parameter.ndim < 2:  # gains, biases, gates: around what they start from
            parameter.add_(0.3 * noise)
        else:
            parameter.copy_(0.2 * noise)


def loss_terms(output: Any) -> dict[str, torch.Tensor]:
    """The named losses of a model output: every field that ends in `_loss` and is not None."""
    return {name: value for name, value in output.items() if name.endswith("_loss")}


def options(architecture: Architecture) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every option of the configuration: its name, the fields before, and the fields with one other value of it.

    Choices and switches are read from the types, so a new one cannot be forgotten; anything else needs an entry in
    `changes` or `inert`."""
    for name in architecture.own_fields:
        field = architecture.config_class.__dataclass_fields__[name]
        base = architecture.sizes | architecture.loss_base | architecture.needs.get(name, {})
        before = base.get(name, field.default)
        if typing.get_origin(field.type) is typing.Literal:
            values = [value for value in typing.get_args(field.type) if value != before]
        elif field.type is bool and name not in architecture.inert:
            values = [not before]
        elif name in architecture.changes:
            values = [architecture.changes[name]]
        else:
            continue
        for value in values:
            yield f"{name}={value}", base | {name: before}, base | {name: value}


LANGUAGE_MODEL_INERT = {
    "max_position_embeddings": "test_generation.py: contexts that do not fit",
    "initializer_range": "test_reference.py: initial weights",
    "use_cache": "test_generation.py: use_cache of the configuration",
    "pad_token_id": "for generate()",
    "bos_token_id": "for generate()",
    "eos_token_id": "for generate()",
}
LEARNED_DROPOUT_CHANGES = {
    "learned_dropout_shift": 0.5,
    "learned_dropout_heads": 1,
    "mask_entropy_loss_weight": 0.5,
    "mask_entropy_loss_weight_min": 0.1,
    "mask_entropy_loss_rate": 0.01,
    "mask_l1_loss_weight": 0.5,
    "mask_l1_loss_weight_min": 0.05,
    "mask_l1_loss_rate": 0.01,
}
LANGUAGE_MODEL_CHANGES = LEARNED_DROPOUT_CHANGES | {
    "vocab_size": 65,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "query_latent_size": 8,
    "key_value_latent_size": 6,
    "latent_rope_size": 2,
    "intermediate_size": 40,
    "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
    "layer_norm_eps": 0.1,
    "hidden_dropout": 0.5,
    "attention_dropout": 0.5,
    "ngram_embedding": [3],
    "ngram_embedding_size": 8,
    "ngram_buckets": 16,
    "ngram_multiplier": 5,
}
NGRAMS = {"ngram_embedding": [2, 4], "ngram_buckets": 32}
NGRAM_CHANGES = {name: value for name, value in LANGUAGE_MODEL_CHANGES.items() if name.startswith("ngram_")}
NARROW_NGRAMS = NGRAMS | {"ngram_embedding_size": 6}
NGRAM_NEEDS = dict.fromkeys(("ngram_embedding_size", "ngram_buckets", "ngram_multiplier"), NGRAMS)
BLOCK_OPTIONS = {
    "hidden_act": "relu2",
    "tie_word_embeddings": False,
}
LEARNED_DROPOUT = {"learned_dropout": "bernoulli", "learned_dropout_shift": 1.2}
LATENT = {"attention_form": "latent", "query_latent_size": 12, "key_value_latent_size": 8, "latent_rope_size": 4}
LATENT_NEEDS = dict.fromkeys(("query_latent_size", "key_value_latent_size", "latent_rope_size"), LATENT)
LEARNED_DROPOUT_NEEDS = {
    **dict.fromkeys(
        [
            "learned_dropout_input",
            "learned_dropout_heads",
            "learned_dropout_stacks",
            "mask_entropy_loss_weight",
            "mask_l1_loss",
            "mask_l1_loss_weight",
            "mask_l1_loss_rate",
        ],
        LEARNED_DROPOUT,
    ),
    "learned_dropout_shift": {"learned_dropout": "bernoulli"},
    "learned_dropout_detach": LEARNED_DROPOUT | {"learned_dropout_input": "embedding"},
    "mask_entropy_loss_rate": LEARNED_DROPOUT | {"mask_entropy_loss_weight": 0.5},
    "mask_entropy_loss_weight_min": LEARNED_DROPOUT | {"mask_entropy_loss_weight": 0.5, "mask_entropy_loss_rate": 0.01},
    "mask_l1_loss_weight_min": LEARNED_DROPOUT | {"mask_l1_loss_rate": 0.01},
}
NEEDS = (
    LATENT_NEEDS
    | LEARNED_DROPOUT_NEEDS
    | {name: {"ngram_embedding": [2]} for name in NGRAM_NEEDS}
    | {"rope_parameters": {"position_embedding_type": "rotary"}}
)
ENCODER_DECODER_CHANGES = LANGUAGE_MODEL_CHANGES | {
    "num_encoder_layers": 3,
    "num_decoder_layers": 1,
    "num_cross_attention_heads": 1,
    "embedding_loss_weight": 3.0,
    "embedding_loss_kernel_size": 3,
}
ENCODER_DECODER_NEEDS = NEEDS | {"embedding_loss_kernel_size": {"embedding_loss_aggregation": "convolution"}}

AUTOENCODER = {
    "max_chunk_bytes": 4,
    "embedding_size": 8,
    "hidden_size": 16,
    "conv_channels": [8, 16],
    "conv_strides": [1, 2],
    "deconv_channels": [16, 8],
    "deconv_strides": [2, 2],
    "levels": [8, 8, 5],
}

LEVEL = {
    "num_entropy_layers": 1,
    "entropy_window": 5,
    "delta": 0.05,
    "max_segment_length": 5,
    "num_compressor_layers": 1,
    "compressor_window": 4,
    "num_codes": 16,
    "code_dim": 8,
    "num_expander_layers": 1,
    "expander_window": 6,
    "lookback": 2,
}
"""One level of a tiny Abstractinator, with windows shorter than its texts."""

ENCODZALL_SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_word_encoder_layers": 2,
    "num_context_encoder_layers": 2,
    "num_decoder_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "packed_row_length": 24,
}

ONE_LAYER_EACH = {
    "hidden_size": 32,
    "num_word_encoder_layers": 1,
    "num_context_encoder_layers": 1,
    "num_decoder_layers": 1,
}
"""With masks and random weights, gradients of deeper ones magnify what is rounded."""

WITHOUT_ATTENTIONS = frozenset({"test_attention_outputs", "test_retain_grad_hidden_states_attentions"})
"""Upstream's tests of a model whose output has no attentions."""

ARCHITECTURES = [
    Architecture(
        DecoderOnlyConfig,
        DecoderOnlyModel,
        DecoderOnlyForCausalLM,
        AutoModelForCausalLM,
        sizes=SIZES | {"num_hidden_layers": 2},
        variants={
            "default": {},
            "subtraction": {"position_subtraction": "plain", "use_bias": True},
            "rotary": {"position_embedding_type": "rotary", "position_subtraction": "layer_norm"},
            "grouped": {"num_key_value_heads": 1, "use_bias": True},
            "latent": LATENT | {"position_embedding_type": "rotary"},
            "learned_dropout": LEARNED_DROPOUT | {"mask_entropy_loss_weight": 0.5, "mask_l1_loss": "absolute"},
            "learned_dropout_embedding": LEARNED_DROPOUT
            | {
                "learned_dropout": "sigmoid",
                "learned_dropout_input": "embedding",
                "learned_dropout_detach": True,
                "position_embedding_type": "rotary",
            },
            "ngrams": NGRAMS,
        },
        typical="subtraction",
        tiny="decoder-only-tiny",
        changes=LANGUAGE_MODEL_CHANGES | {"num_hidden_layers": 1},
        needs=NEEDS,
        inert=LANGUAGE_MODEL_INERT,
    ),
    Architecture(
        AREncoderDecoderConfig,
        AREncoderDecoderModel,
        AREncoderDecoderForCausalLM,
        AutoModelForCausalLM,
        sizes=SIZES | {"num_encoder_layers": 2, "num_decoder_layers": 2},
        variants={
            "default": {},
            "original": {"position_subtraction": "plain", "embedding_loss": "mse", "embedding_loss_weight": 8.0},
            "grouped": {"num_key_value_heads": 1, "position_embedding_type": "rotary"},
            "block_options": BLOCK_OPTIONS | {"num_key_value_heads": 1, "position_embedding_type": "rotary"},
            "rotary": {
                "position_embedding_type": "rotary",
                "position_subtraction": "layer_norm",
                "num_decoder_layers": 1,
                "embedding_loss": "cosine",
                "embedding_loss_aggregation": "convolution",
                "embedding_loss_kernel_size": 3,
                "embedding_loss_input_norm": "after",
                "embedding_loss_detach": "none",
            },
            "cross_first": {
                "decoder_order": "cross_first",
                "num_encoder_layers": 1,
                "num_cross_attention_heads": 1,
                "bridge_layer_norm": True,
                "add_next_position": True,
                "cross_attention_gate": True,
                "use_bias": True,
                "embedding_loss": "log_cosine",
                "embedding_loss_aggregation": "mixing",
                "embedding_loss_output_norm": "plain",
                "embedding_loss_detach": "embeddings",
            },
            "no_norms": {
                "embedding_loss": "mse",
                "embedding_loss_weight": 0.5,
                "embedding_loss_output_norm": "none",
                "embedding_loss_input_norm": "none",
            },
            "learned_dropout": LEARNED_DROPOUT
            | {
                "learned_dropout": "sigmoid_detached",
                "learned_dropout_stacks": "decoder",
                "embedding_loss": "mse",
                "mask_entropy_loss_weight": 0.5,
            },
            "ngrams": NARROW_NGRAMS | {"position_embedding_type": "rotary", "embedding_loss": "mse"},
        },
        typical="original",
        tiny="ar-encoder-decoder-tiny",
        loss_base={"embedding_loss": "mse"},
        changes=ENCODER_DECODER_CHANGES,
        needs=ENCODER_DECODER_NEEDS,
        inert=LANGUAGE_MODEL_INERT,
    ),
    Architecture(
        ParallelEncoderDecoderConfig,
        ParallelEncoderDecoderModel,
        ParallelEncoderDecoderForCausalLM,
        AutoModelForCausalLM,
        sizes=SIZES | {"num_encoder_layers": 2, "num_decoder_layers": 2},
        variants={
            "default": {},
            "original": {
                "position_subtraction": "plain",
                "add_next_position": True,
                "embedding_loss": "mse",
                "embedding_loss_weight": 0.25,
            },
            "learned_dropout": LEARNED_DROPOUT | {"mask_entropy_loss_weight": 1.0, "mask_l1_loss_weight": 1.0},
            "latent": LATENT | LEARNED_DROPOUT,
            "late_decoder": LEARNED_DROPOUT
            | {
                "num_decoder_layers": 1,
                "decoder_self_attention": False,
                "learned_dropout_input": "embedding",
                "embedding_loss": "cosine",
                "bridge_layer_norm": True,
            },
            "cross_first": LEARNED_DROPOUT
            | {
                "decoder_order": "cross_first",
                "num_cross_attention_heads": 1,
                "cross_attention_gate": True,
                "use_bias": True,
                "mask_l1_loss_weight": 0.0,
            },
            "rotary": LEARNED_DROPOUT
            | {
                "position_embedding_type": "rotary",
                "position_subtraction": "layer_norm",
                "learned_dropout": "sigmoid",
                "learned_dropout_stacks": "encoder",
                "learned_dropout_heads": 4,
            },
        },
        typical="learned_dropout",
        tiny="parallel-encoder-decoder-tiny",
        loss_base={"embedding_loss": "mse"},
        changes=ENCODER_DECODER_CHANGES,
        needs=ENCODER_DECODER_NEEDS,
        inert=LANGUAGE_MODEL_INERT,
    ),
    Architecture(
        FSQConfig,
        FSQModel,
        FSQForCausalLM,
        AutoModelForCausalLM,
        sizes=SIZES | {"num_hidden_layers": 2, "autoencoder": AUTOENCODER},
        variants={
            "default": {},
            "factorised": {"head": "factorised", "position_embedding_type": "rotary", "code_embedding_size": 0},
            "byte_head": {"byte_loss_weight": 0.5, "train_decoder": True, "use_bias": True},
            "joint": LEARNED_DROPOUT | {"joint": True, "byte_loss_weight": 0.25, "reconstruction_loss_weight": 0.5},
        },
        typical="joint",
        tiny="fsq-tiny",
        changes=LANGUAGE_MODEL_CHANGES
        | {
            "num_hidden_layers": 1,
            "autoencoder": AUTOENCODER | {"levels": [5, 8, 8]},
            "num_special_tokens": 20,
            "code_embedding_size": 8,
            "byte_loss_weight": 0.5,
            "reconstruction_loss_weight": 2.0,
        },
        needs=NEEDS | {"reconstruction_loss_weight": {"joint": True}},
        inert=LANGUAGE_MODEL_INERT
        | {
            "min_code_entropy": "test_fsq_stages.py: joint training stops",
            "train_decoder": "test_fsq_lm.py: what gets gradients",
        },
    ),
    Architecture(
        AbstractinatorConfig,
        AbstractinatorModel,
        AbstractinatorForCausalLM,
        AutoModelForCausalLM,
        sizes=SIZES | {"levels": [LEVEL], "num_top_layers": 1, "bos_token_id": None, "eos_token_id": None},
        variants={
            "default": {},
            "grouped": {"num_key_value_heads": 1, "levels": [LEVEL | NGRAMS], "byte_code_dim": 8},
            "two_levels": {"levels": [LEVEL, LEVEL]},
            "shared_trunk": {  # with a delta where 16 further ids cut alike
                "levels": [level | {"shares_trunk": True, "delta": 0.1} for level in (LEVEL | NGRAMS, LEVEL)],
            },
            "latent": {
                "levels": [
                    LEVEL | {"quantizer": "rvq", "depth": 2},
                    LEVEL | {"quantizer": "fsq", "fsq_levels": [4, 4]},
                ],
                "attention_form": "latent",
                "query_latent_size": 12,
                "key_value_latent_size": 8,
                "latent_rope_size": 4,
            },
            "no_top": {"levels": [LEVEL | {"compressor_attention": "segment"}, LEVEL], "num_top_layers": 0},
            "continuous": {
                "levels": [LEVEL | {"quantizer": "none", "entropy_head": "both", "num_queries": 2}],
                "top_head": "continuous",
                "byte_code_dim": 8,
            },
            "learned_dropout": LEARNED_DROPOUT
            | {
                "levels": [
                    LEVEL | NGRAMS | {"quantizer": "rvq", "depth": 2},
                    LEVEL | NARROW_NGRAMS | {"compressor_attention": "segment"},
                ],
                "mask_entropy_loss_weight": 0.5,
            },
            "learned_dropout_embedding": LEARNED_DROPOUT
            | {
                "learned_dropout": "sigmoid",
                "learned_dropout_input": "embedding",
                "learned_dropout_detach": True,
                "levels": [LEVEL | {"delta": 0.1}],  # where 16 further ids cut alike
                "num_key_value_heads": 1,
                "mask_l1_loss": "absolute",
            },
        },
        typical="two_levels",
        tiny="abstractinator-tiny",
        changes=LEARNED_DROPOUT_CHANGES
        | {
            "vocab_size": 65,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 40,
            "query_latent_size": 8,
            "key_value_latent_size": 8,
            "latent_rope_size": 2,
            "byte_code_dim": 8,
            "levels": [LEVEL | {"num_codes": 17}],
            "num_top_layers": 2,
            "reconstruction_loss_weight": 2.0,
            "vq_loss_weight": 2.0,
            "entropy_loss_weight": 2.0,
            "top_lm_loss_weight": 2.0,
            "lm_loss_weight": 2.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
            "rms_norm_eps": 0.1,
            "hidden_dropout": 0.5,
            "attention_dropout": 0.5,
        },
        needs=LEARNED_DROPOUT_NEEDS
        | {
            name: {"attention_form": "latent"}
            for name in ("query_latent_size", "key_value_latent_size", "latent_rope_size")
        },
        inert={
            "max_position_embeddings": "test_generation.py: contexts that do not fit",
            "initializer_range": "test_abstractinator.py: initial weights",
            "use_cache": "test_generation.py: use_cache of the configuration",
            "pad_token_id": "for generate()",
            "bos_token_id": "for generate_bytes()",
            "eos_token_id": "test_abstractinator.py: the end of a text",
            "freeze_entropy": "test_abstractinator.py: what is frozen",
            "freeze_base": "test_abstractinator.py: what is frozen",
            "num_frozen_levels": "test_abstractinator.py: what is frozen",
        },
        exceptions={
            "cache_implementation": "it has a cache of its own kind",
            "assisted_decoding": "closed segments cannot be taken back",
            "inputs_embeds": "it has several embeddings",
            "cache_layers": "its cache has no list of layers",
            "continuous_batching": "its cache is of its own kind, not keys and values of equal layers",
            "smaller_vocabulary": "the entropy over fewer symbols cuts elsewhere",
            "near_float32": "where a segment is cut can turn on rounding",
            "torch_compile": "the number of segments is known only when they are cut: not one graph",
            "export": "the number of segments is known only when they are cut",
            "plain_step": "its trainer begins with fixed codes and a small share of lm_loss",
            "attention_outputs": "its layers are those of several stacks with sequences of their own",
            "equal_shapes": "with another segmentation its products have other shapes",
        },
        upstream_failures=WITHOUT_ATTENTIONS,
    ),
    Architecture(
        EncodzallConfig,
        EncodzallModel,
        EncodzallForMaskedDenoising,
        AutoModelForSeq2SeqLM,
        sizes=ENCODZALL_SIZES,
        variants={
            "default": {},
            "grouped": {"num_key_value_heads": 2, "word_pooling": "query", "word_decoder": "shared"},
            "plain": {"word_pooling": "max", "cross_attention_positions": "none", "word_decoder": "none"},
            "no_word_loss": {"word_loss_weight": 0.0, "contrastive_loss_weight": 0.5, "contrastive_scale": 2.0},
            "latent": LATENT | NARROW_NGRAMS,
            "learned_dropout": LEARNED_DROPOUT | ONE_LAYER_EACH | {"mask_entropy_loss_weight": 0.5},
            "learned_dropout_embedding": LEARNED_DROPOUT
            | ONE_LAYER_EACH
            | {
                "learned_dropout": "sigmoid",
                "learned_dropout_input": "embedding",
                "learned_dropout_detach": True,
                "word_decoder": "shared",
                "num_key_value_heads": 2,
                "mask_l1_loss": "absolute",
            },
        },
        typical="default",
        tiny="encodzall-tiny",
        batch=text_batch,
        tokenizer=EncodzallTokenizer,
        task="SEQ_2_SEQ_LM",
        further_heads={
            AutoModelForMaskedLM: EncodzallForMaskedLM,
            AutoModelForSequenceClassification: EncodzallForSequenceClassification,
            AutoModelForTokenClassification: EncodzallForTokenClassification,
        },
        rows=Texts,
        training_fields={},
        training_arguments={"noise_strength": 0.4, "noise_set_point": 5.0},
        loss_base={"contrastive_loss_weight": 0.5},
        changes=LEARNED_DROPOUT_CHANGES
        | {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "query_latent_size": 8,
            "key_value_latent_size": 12,
            "latent_rope_size": 2,
            "num_word_encoder_layers": 1,
            "num_context_encoder_layers": 1,
            "num_decoder_layers": 1,
            "intermediate_size": 40,
            "max_word_bytes": 8,
            "sequence_loss_weight": 0.5,
            "word_loss_weight": 0.5,
            "contrastive_loss_weight": 0.25,
            "word_loss_gamma": 0.0,
            "contrastive_scale": 5.0,
            "rms_norm_eps": 1e-2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
            "hidden_dropout": 0.5,
            "attention_dropout": 0.5,
            **NGRAM_CHANGES,
        },
        needs=LATENT_NEEDS | LEARNED_DROPOUT_NEEDS | NGRAM_NEEDS,
        inert={
            "vocab_size": "fixed",
            "max_position_embeddings": "test_encodzall.py: bad input",
            "packed_row_length": "test_encodzall.py: packed words are those of one word a row",
            "gate_loss_weight": "test_encodzall_repair.py: the gate's loss",
            "edit_cost": "test_encodzall_repair.py: scores",
            "denoise_threshold": "test_encodzall_repair.py: thresholds",
            "dictionary_bytes": "test_encodzall_repair.py: the dictionary",
            "unknown_word_odds": "test_encodzall_repair.py: the dictionary",
            "text_ngrams": "test_encodzall_embedding.py: beside the other outputs",
            "text_prefixes": "test_encodzall_embedding.py",
            "text_ngram_buckets": "test_encodzall_embedding.py",
            "text_context_share": "test_encodzall_embedding.py",
            "initializer_range": "test_upstream.py: initialization",
            "classifier_dropout": "of the other heads",
            "use_cache": "test_encodzall.py: the cache changes nothing",
            "tie_word_embeddings": "for transformers",
            "pad_token_id": "fixed",
            "bos_token_id": "for generate()",
            "eos_token_id": "for generate()",
            "decoder_start_token_id": "for generate()",
        },
        exceptions={
            "torch_compile": "the number of words is known only when they are found: not one graph",
            "inputs_embeds": "words are found and compared by their bytes",
        },
        upstream_failures=frozenset({"test_attention_outputs", "test_hidden_states_output"}),
    ),
    Architecture(
        FSQAutoencoderConfig,
        FSQAutoencoderModel,
        FSQAutoencoderModel,
        AutoModel,
        sizes=AUTOENCODER,
        variants={
            "default": {},
            "margin": {"margin_loss_weight": 0.5, "pooling": "attention"},
            "flatten": {"pooling": "flatten", "temperature": 0.7},
        },
        typical="margin",
        tiny="fsq-tokenizer-tiny",
        batch=chunk_batch,
        tokenizer=None,
        task="FEATURE_EXTRACTION",
        rows=Chunks,
        training_fields={},
        loss_base={"margin_loss_weight": 0.5, "code_entropy_loss_weight": 0.5},
        changes={
            "max_chunk_bytes": 8,
            "embedding_size": 4,
            "hidden_size": 8,
            "conv_channels": [8, 8],
            "conv_strides": [1, 1],
            "deconv_channels": [8, 8],
            "deconv_strides": [1, 2],
            "kernel_size": 5,
            "levels": [5, 8, 8],
            "num_quantizers": 2,
            "temperature": 0.5,
            "quantization_noise": 0.5,
            "margin": 0.4,
            "margin_loss_weight": 0.1,
            "code_entropy_loss_weight": 0.1,
            "hidden_act": "relu",
            "layer_norm_eps": 0.5,
        },
        inert={
            "vocab_size": "fixed",
            "initializer_range": "of the byte embedding alone",
            "pad_token_id": "fixed",
        },
        exceptions={
            "gradient_checkpointing": "it has no layers",
            "attention": "it has no attention",
            "near_float32": "a value near a border between two digits turns over",
        },
        upstream_failures=WITHOUT_ATTENTIONS | {"test_hidden_states_output"},
        upstream_passes=50,
    ),
]


for reference in os.environ.get("LATENTLM_TEST_ROWS", "").split():  # of other packages, "module:name"
    ARCHITECTURES.append(pkgutil.resolve_name(reference))


def parameters(architectures: list[Architecture]) -> list[Any]:
    return [
        pytest.param(Case(architecture, variant), id=f"{architecture.name}-{variant}")
        for architecture in architectures
        for variant in architecture.variants
    ]


CAUSAL = [architecture for architecture in ARCHITECTURES if architecture.causal]

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda row: row.name)
each_causal_architecture = pytest.mark.parametrize("architecture", CAUSAL, ids=lambda row: row.name)
each_case = pytest.mark.parametrize("case", parameters(ARCHITECTURES))
typical_causal_case = pytest.mark.parametrize(
    "case", [pytest.param(Case(row, row.typical), id=f"{row.name}-{row.typical}") for row in CAUSAL]
)
each_causal_case = pytest.mark.parametrize("case", parameters(CAUSAL))
each_typical_case = pytest.mark.parametrize(
    "case", [pytest.param(Case(row, row.typical), id=f"{row.name}-{row.typical}") for row in ARCHITECTURES]
)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of every parameter that has one, by name; clears them."""
    values = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return values
