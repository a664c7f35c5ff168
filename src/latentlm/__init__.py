"""Encoder-decoder ("learned latent") language models for the Hugging Face ecosystem.

Importing this package registers every architecture with the Auto classes of transformers.
"""

import sys
from pathlib import Path

from .architectures import ARCHITECTURES, Architecture, register, register_plugins, tell_transformers

__version__ = "0.2.0"


def _answers_help() -> bool:
    """Whether this process is `latentlm … --help` or `python -m latentlm… --help`. That is answered from the sources
    alone; importing torch and the models would take several times as long."""
    program = sys.argv[0] if sys.argv else ""  # "-m" while Python looks for the module to run
    return (program == "-m" or Path(program).stem == "latentlm") and bool({"-h", "--help"} & set(sys.argv[1:]))


register_plugins()
if not _answers_help():
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
        EncodzallForMaskedLM,
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

    tell_transformers()

__all__ = [
    "ARCHITECTURES",
    "AREncoderDecoderConfig",
    "AREncoderDecoderForCausalLM",
    "AREncoderDecoderModel",
    "AbstractinatorConfig",
    "AbstractinatorForCausalLM",
    "AbstractinatorModel",
    "Architecture",
    "ByteTokenizer",
    "DecoderOnlyConfig",
    "DecoderOnlyForCausalLM",
    "DecoderOnlyModel",
    "EncodzallConfig",
    "EncodzallForMaskedDenoising",
    "EncodzallForMaskedLM",
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
    "register",
]
