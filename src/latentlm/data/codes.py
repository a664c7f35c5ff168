"""What a language model on codes takes from its tokenizer."""

from typing import Any

from transformers import PreTrainedTokenizerBase


def code_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of [`FSQConfig`] that the tokenizer decides; it may be one of a checkpoint's own code.

    Raises:
        ValueError: for a tokenizer without codes.
    """
    codes = getattr(tokenizer, "codes", None)
    if codes is None:
        raise ValueError(
            "it has no codes, and this model needs an FSQ tokenizer (latentlm tokenizer build); or train another."
        )
    # Without a network the levels alone say what a code is.
    autoencoder = getattr(tokenizer, "autoencoder_config", None) or {"levels": getattr(tokenizer, "levels", None)}
    return {"autoencoder": autoencoder, "num_special_tokens": int((codes < 0).sum())}
