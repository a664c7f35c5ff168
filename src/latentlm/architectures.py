"""The table of architectures: one row per model type says everything that is not written in its model files.

The Auto classes, recipes, training, evaluation, the command line and the tests read it. Another package adds a row with
[`register`], in a module that its entry point of the group `latentlm.architectures` names.

Rows refer to classes and functions as `"module:name"`, resolved when they are used: the table imports nothing, so that
everything may import it.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

ENTRY_POINTS = "latentlm.architectures"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture of the table. Only `model_type`, `config` and `heads` are required; the defaults of the other
    fields are those of a causal language model.

    Args:
        model_type: its name, that of the configuration.
        config: the configuration class.
        heads: the model class of each Auto class, by the name of the Auto class.
        tokenizer: the tokenizer class that AutoTokenizer falls back to; a tokenizer of transformers named in
            tokenizer_config.json has precedence.
        fast_tokenizer: the fast class of the same tokenizer, if it has one.
        trainer: a [`LatentTrainer`], which names the class of the recipe's training section (`arguments_class`) and the
            Auto class of the head that it trains (`auto_class`).
        data: the class of the recipe's data section, a [`SourceConfig`].
        prepare: makes [`PreparedData`] from that section; also takes `max_position_embeddings` if the configuration has
            it.
        tokenizer_fields: a function of the tokenizer that returns the configuration fields that it determines, beside
            its size and special tokens; raises ValueError for a tokenizer that does not fit.
        adapter: lm-eval's model class, if its `hf` cannot score the architecture; `--model <model_type>` finds it.
        inspection: for `latentlm inspect`: a function of model and bytes that returns an [`Inspection`].
    """

    model_type: str
    config: str
    heads: Mapping[str, str]
    tokenizer: str = "latentlm.models.tokenization_byte:ByteTokenizer"
    fast_tokenizer: str | None = None
    trainer: str = "latentlm.training:LatentTrainer"
    data: str = "latentlm.data:DataConfig"
    prepare: str = "latentlm.data:prepare_data"
    tokenizer_fields: str | None = None
    adapter: str | None = None
    inspection: str | None = None

    @property
    def trainer_class(self) -> Any:
        return resolve(self.trainer)

    @property
    def data_class(self) -> Any:
        return resolve(self.data)


_ROWS = (
    Architecture(
        model_type="ar_encoder_decoder",
        config="latentlm.models.configuration_ar_encoder_decoder:AREncoderDecoderConfig",
        heads={
            "AutoModel": "latentlm.models.modeling_ar_encoder_decoder:AREncoderDecoderModel",
            "AutoModelForCausalLM": "latentlm.models.modeling_ar_encoder_decoder:AREncoderDecoderForCausalLM",
        },
        trainer="latentlm.training:LearnedDropoutTrainer",
    ),
    Architecture(
        model_type="parallel_encoder_decoder",
        config="latentlm.models.configuration_parallel_encoder_decoder:ParallelEncoderDecoderConfig",
        heads={
            "AutoModel": "latentlm.models.modeling_parallel_encoder_decoder:ParallelEncoderDecoderModel",
            "AutoModelForCausalLM": (
                "latentlm.models.modeling_parallel_encoder_decoder:ParallelEncoderDecoderForCausalLM"
            ),
        },
        trainer="latentlm.training:LearnedDropoutTrainer",
    ),
    Architecture(
        model_type="decoder_only",
        config="latentlm.models.configuration_decoder_only:DecoderOnlyConfig",
        heads={
            "AutoModel": "latentlm.models.modeling_decoder_only:DecoderOnlyModel",
            "AutoModelForCausalLM": "latentlm.models.modeling_decoder_only:DecoderOnlyForCausalLM",
        },
        trainer="latentlm.training:LearnedDropoutTrainer",
    ),
    Architecture(
        model_type="fsq",
        config="latentlm.models.configuration_fsq:FSQConfig",
        heads={
            "AutoModel": "latentlm.models.modeling_fsq:FSQModel",
            "AutoModelForCausalLM": "latentlm.models.modeling_fsq:FSQForCausalLM",
        },
        tokenizer="latentlm.models.tokenization_fsq:FSQTokenizer",
        fast_tokenizer="latentlm.models.tokenization_fsq_fast:FSQTokenizerFast",
        trainer="latentlm.training:FSQTrainer",
        tokenizer_fields="latentlm.data.codes:code_fields",
    ),
    Architecture(
        model_type="fsq_autoencoder",
        config="latentlm.models.configuration_fsq_autoencoder:FSQAutoencoderConfig",
        heads={"AutoModel": "latentlm.models.modeling_fsq_autoencoder:FSQAutoencoderModel"},
        tokenizer="latentlm.models.tokenization_fsq:FSQTokenizer",
        fast_tokenizer="latentlm.models.tokenization_fsq_fast:FSQTokenizerFast",
        trainer="latentlm.training:FSQAutoencoderTrainer",
        data="latentlm.data:ChunkConfig",
        prepare="latentlm.data:prepare_chunks",
    ),
    Architecture(
        model_type="abstractinator",
        config="latentlm.models.configuration_abstractinator:AbstractinatorConfig",
        heads={
            "AutoModel": "latentlm.models.modeling_abstractinator:AbstractinatorModel",
            "AutoModelForCausalLM": "latentlm.models.modeling_abstractinator:AbstractinatorForCausalLM",
        },
        trainer="latentlm.training:AbstractinatorTrainer",
        adapter="latentlm.evaluation.abstractinator:AbstractinatorLM",
        inspection="latentlm.evaluation.segments:inspect",
    ),
    Architecture(
        model_type="encodzall",
        config="latentlm.models.configuration_encodzall:EncodzallConfig",
        heads={
            "AutoModel": "latentlm.models.modeling_encodzall:EncodzallModel",
            "AutoModelForSeq2SeqLM": "latentlm.models.modeling_encodzall:EncodzallForMaskedDenoising",
            "AutoModelForMaskedLM": "latentlm.models.modeling_encodzall:EncodzallForMaskedLM",
            "AutoModelForSequenceClassification": (
                "latentlm.models.modeling_encodzall:EncodzallForSequenceClassification"
            ),
            "AutoModelForTokenClassification": "latentlm.models.modeling_encodzall:EncodzallForTokenClassification",
        },
        tokenizer="latentlm.models.tokenization_encodzall:EncodzallTokenizer",
        trainer="latentlm.training:EncodzallTrainer",
        data="latentlm.data:TextConfig",
        prepare="latentlm.data:prepare_texts",
        adapter="latentlm.evaluation.encodzall:EncodzallLM",
    ),
)

ARCHITECTURES: dict[str, Architecture] = {row.model_type: row for row in _ROWS}
"""The rows by model type."""

# For the causal language models of transformers itself, which a recipe may name too.
_OTHER = Architecture(model_type="", config="transformers:PreTrainedConfig", heads={})
_known_to_transformers = False


def architecture(model_type: str) -> Architecture:
    """The row of a model type; the defaults of a row for an architecture of transformers itself."""
    return ARCHITECTURES.get(model_type, _OTHER)


def resolve(reference: str) -> Any:
    """The class or function that a row names as `"module:name"`.

    Raises:
        ImportError: if it is not there.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(f"{reference!r}: {module} has no {name!r}.") from error


def find_head(model_type: str, class_name: str) -> tuple[str, Any] | None:
    """Return the Auto class, by name, and the model class of that name in a row; None if the row has no such head."""
    for auto_class, reference in architecture(model_type).heads.items():
        if reference.endswith(f":{class_name}"):
            return auto_class, resolve(reference)
    return None


def register(row: Architecture) -> None:
    """Add an architecture to the table; from then on it works like those of this package.

    Raises:
        ValueError: if the model type is taken, or is not the configuration's.
    """
    if ARCHITECTURES.get(row.model_type, row) != row:
        raise ValueError(f"model_type {row.model_type!r} is taken by {ARCHITECTURES[row.model_type].config}.")
    if _known_to_transformers:
        _tell_transformers(row)
    ARCHITECTURES[row.model_type] = row


def register_plugins() -> None:
    """Import the modules that installed packages name as their entry points; each calls [`register`]."""
    for plugin in entry_points(group=ENTRY_POINTS):
        plugin.load()


def plugin_versions() -> dict[str, str]:
    """Return the versions of the installed packages that name such entry points."""
    packages = [plugin.dist for plugin in entry_points(group=ENTRY_POINTS)]
    return {package.name: package.version for package in packages if package is not None}


def tell_transformers() -> None:
    """Make the Auto classes know every row, and every one that is registered later."""
    global _known_to_transformers
    _known_to_transformers = True
    for row in ARCHITECTURES.values():
        _tell_transformers(row)


def _tell_transformers(row: Architecture) -> None:
    import transformers

    config_class = resolve(row.config)
    if config_class.model_type != row.model_type:
        raise ValueError(f"model_type {row.model_type!r}: that of {row.config} is {config_class.model_type!r}.")
    transformers.AutoConfig.register(row.model_type, config_class, exist_ok=True)
    config_class.register_for_auto_class()
    tokenizers = {"slow_tokenizer_class": resolve(row.tokenizer)}
    if row.fast_tokenizer is not None:
        tokenizers["fast_tokenizer_class"] = resolve(row.fast_tokenizer)
    transformers.AutoTokenizer.register(config_class, **tokenizers, exist_ok=True)
    for name, model in row.heads.items():
        getattr(transformers, name).register(config_class, resolve(model), exist_ok=True)
        resolve(model).register_for_auto_class(name)
    for tokenizer_class in tokenizers.values():
        if not tokenizer_class.__module__.startswith("transformers."):  # saving copies the code of the others
            tokenizer_class.register_for_auto_class()
