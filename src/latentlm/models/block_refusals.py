"""Inputs that tools for other models pass to a forward, and that cannot work here: they are refused before they do
harm."""

from typing import Any

from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils.import_utils import is_torchdynamo_compiling

WORKS = "Adapters inside of layers, such as LoRA, work."


def refuse_embeddings(kwargs: dict[str, Any], reason: str) -> None:
    """Take embeddings out of a forward's keyword arguments, where PEFT passes them as None.

    Raises:
        ValueError: if there are any, as prompt tuning and P-tuning make them.
    """
    for name in ("inputs_embeds", "decoder_inputs_embeds"):
        if kwargs.pop(name, None) is not None:
            ids = name.replace("inputs_embeds", "input_ids")
            raise ValueError(
                f"`{name}` is given, but {reason}: give `{ids}`. Prompt tuning and P-tuning have no ids for their "
                f"virtual tokens. {WORKS}"
            )


def check_filled_cache(past_key_values: Cache | None, config: PreTrainedConfig) -> None:
    """Check once a cache that prefix tuning may have filled with keys and values.

    Raises:
        ValueError: if a layer is missing or has another number of heads.
    """
    if type(past_key_values) is not DynamicCache or is_torchdynamo_compiling() or hasattr(past_key_values, "fits"):
        return
    layers: list[Any] = past_key_values.layers
    filled = [layer.keys.shape[1] for layer in layers if layer.is_initialized]
    if not filled:
        return
    heads = [getattr(layer, "num_key_value_heads", layer.num_attention_heads) for layer in config.per_layer_config]
    if filled[: len(heads)] != heads:
        hint = f"it fits a model whose heads are equal, with `PrefixTuningConfig(num_layers={len(heads)})`"
        if getattr(config, "ngram_embedding", None) is not None:
            hint = "it fits no model with `ngram_embedding`, the last layer of whose cache holds ids"
        raise ValueError(
            f"`past_key_values` has {len(filled)} layers, of {filled} heads, but this model's cache has {len(heads)}, "
            f"of {heads} heads. Prefix tuning makes all layers alike: {hint}. {WORKS}"
        )
    # The configuration of every layer takes a tenth of a decoding step to make.
    past_key_values.fits = True  # pyright: ignore[reportAttributeAccessIssue]
