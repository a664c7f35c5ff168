"""What an FSQ tokenizer says about its codes: the fields of a language model's configuration that it determines, and
whether all its tokens are in its table."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from ..models.tokenization_fsq import FSQTable


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


def refuse_added_tokens(tokenizer: FSQTable) -> None:
    """Raise ValueError if a tokenizer has added tokens, which its table of pieces and codes lacks."""
    added = len(tokenizer) - tokenizer.vocabulary.size
    if added:
        raise ValueError(
            f"{tokenizer.name_or_path} has {added} added tokens, which are not in its table of pieces and "
            "codes: use the tokenizer without them"
        )
