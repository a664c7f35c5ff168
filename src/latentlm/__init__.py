"""Encoder-decoder ("learned latent") language models for the Hugging Face ecosystem.

Importing this package registers every architecture with the Auto classes of transformers.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from .models.configuration_abstractinator import AbstractinatorConfig
from .models.configuration_ar_encoder_decoder import AREncoderDecoderConfig
from .models.configuration_decoder_only import DecoderOnlyConfig
from .models.configuration_encodzall import EncodzallConfig
from .models.configuration_fsq import FSQConfig
from .models.configuration_fsq_autoencoder import FSQAutoencoderConfig
from .models.configuration_parallel_encoder_decoder import ParallelEncoderDecoderConfig
from .models.modeling_abstractinator import AbstractinatorForCausalLM, AbstractinatorModel
from .models.modeling_ar_encoder_decoder import AREncoderDecoderForCausalLM, AREncoderDecoderModel
from .models.modeling_decoder_only import DecoderOnlyForCausalLM, DecoderOnlyModel
from .models.modeling_encodzall import (
    EncodzallForMaskedDenoising,
    EncodzallForSequenceClassification,
    EncodzallForTokenClassification,
    EncodzallModel,
)
from .models.modeling_fsq import FSQForCausalLM, FSQModel
from .models.modeling_fsq_autoencoder import FSQAutoencoderModel
from .models.modeling_parallel_encoder_decoder import ParallelEncoderDecoderForCausalLM, ParallelEncoderDecoderModel
from .models.tokenization_byte import ByteTokenizer
from .models.tokenization_encodzall import EncodzallTokenizer
from .models.tokenization_fsq import FSQTokenizer
from .models.tokenization_fsq_fast import FSQTokenizerFast

__version__ = "0.1.0"

# One row per architecture: configuration, then its class for each Auto class.
ARCHITECTURES = [
    (AREncoderDecoderConfig, {AutoModel: AREncoderDecoderModel, AutoModelForCausalLM: AREncoderDecoderForCausalLM}),
    (
        ParallelEncoderDecoderConfig,
        {AutoModel: ParallelEncoderDecoderModel, AutoModelForCausalLM: ParallelEncoderDecoderForCausalLM},
    ),
    (DecoderOnlyConfig, {AutoModel: DecoderOnlyModel, AutoModelForCausalLM: DecoderOnlyForCausalLM}),
    (FSQConfig, {AutoModel: FSQModel, AutoModelForCausalLM: FSQForCausalLM}),
    (FSQAutoencoderConfig, {AutoModel: FSQAutoencoderModel}),
    (AbstractinatorConfig, {AutoModel: AbstractinatorModel, AutoModelForCausalLM: AbstractinatorForCausalLM}),
    (
        EncodzallConfig,
        {
            AutoModel: EncodzallModel,
            AutoModelForSeq2SeqLM: EncodzallForMaskedDenoising,
            AutoModelForSequenceClassification: EncodzallForSequenceClassification,
            AutoModelForTokenClassification: EncodzallForTokenClassification,
        },
    ),
]

for config_class, model_classes in ARCHITECTURES:
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    config_class.register_for_auto_class()
    # What AutoTokenizer falls back to; a tokenizer of transformers named in tokenizer_config.json goes first.
    if config_class.model_type.startswith("fsq"):
        tokenizers = {"slow_tokenizer_class": FSQTokenizer, "fast_tokenizer_class": FSQTokenizerFast}
    elif config_class is EncodzallConfig:
        tokenizers = {"slow_tokenizer_class": EncodzallTokenizer}
    else:
        tokenizers = {"slow_tokenizer_class": ByteTokenizer}
    AutoTokenizer.register(config_class, **tokenizers, exist_ok=True)
    for auto_class, model_class in model_classes.items():
        auto_class.register(config_class, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_class.__name__)
for tokenizer_class in (ByteTokenizer, EncodzallTokenizer, FSQTokenizer, FSQTokenizerFast):
    tokenizer_class.register_for_auto_class()

__all__ = [
    "ARCHITECTURES",
    "AREncoderDecoderConfig",
    "AREncoderDecoderForCausalLM",
    "AREncoderDecoderModel",
    "AbstractinatorConfig",
    "AbstractinatorForCausalLM",
    "AbstractinatorModel",
    "ByteTokenizer",
    "DecoderOnlyConfig",
    "DecoderOnlyForCausalLM",
    "DecoderOnlyModel",
    "EncodzallConfig",
    "EncodzallForMaskedDenoising",
    "EncodzallForSequenceClassification",
    "EncodzallForTokenClassification",
    "EncodzallModel",
    "EncodzallTokenizer",
    "FSQAutoencoderConfig",
    "FSQAutoencoderModel",
    "FSQConfig",
    "FSQForCausalLM",
    "FSQModel",
    "FSQTokenizer",
    "FSQTokenizerFast",
    "ParallelEncoderDecoderConfig",
    "ParallelEncoderDecoderForCausalLM",
    "ParallelEncoderDecoderModel",
]
