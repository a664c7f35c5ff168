"""The fields of the configuration of a language model on codes that its tokenizer determines."""

from typing import Any

from transformers import PreTrainedTokenizerBase


def code_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the fields of [`FSQConfig`] that the tokenizer determines. Its class may come from the code of a
    checkpoint.

    Raises:
        ValueError: if the tokenizer has no codes.
    """
    codes = getattr(tokenizer, "codes", None)
    if codes is None:
        raise ValueError(
            "it has no codes, and this model needs an FSQ tokenizer (latentlm tokenizer build); or train another."
        )
    # Without a network, the levels alone define the codes.
    autoencoder = getattr(tokenizer, "autoencoder_config", None) or {"levels": getattr(tokenizer, "levels", None)}
    return {"autoencoder": autoencoder, "num_special_tokens": int((codes < 0).sum())}
