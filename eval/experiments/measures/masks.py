"""LearnedDropout's masks in a finished model: how many values lie between 0 and 1, and whether scaling by them makes
the gradients below vanish, as the original warns.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml

from latentlm.models.block_learned_dropout import LearnedDropout, record_masks

from .probes import read_rows

ROWS = 16
BETWEEN = (0.1, 0.9)
ROUNDINGS: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    "rounded": None,  # as in evaluation, with the gradient that the configuration says
    "scaled": lambda probability: probability,
    "open": torch.ones_like,
}


def mask_modules(model: Any) -> list[Any]:
    """Every LearnedDropout, also of a model from the Hub, whose class is its own."""
    return [module for module in model.modules() if type(module).__name__ == LearnedDropout.__name__]


def share_between(masks: Iterable[torch.Tensor]) -> float:
    """The share of mask values that are neither near 0 nor near 1."""
    values = torch.cat([mask.flatten() for mask in masks])
    return ((values > BETWEEN[0]) & (values < BETWEEN[1])).float().mean().item()


def watch_gradients(layers: Any) -> Callable[[], dict[str, float]]:
    """Hooks on a stack whose layers have a feed-forward block `mlp`. What is returned tells, after a backward pass, the
    norm of the gradient below the stack and the mean of those of the blocks' inputs, over the norm above the stack; and
    the mean norm of the gradients of the blocks' first matrices."""
    sizes: dict[str, float] = {}

    def watch(name: str, states: torch.Tensor) -> None:
        if states.requires_grad:
            states.register_hook(lambda gradient: sizes.update({name: gradient.norm().item()}))

    layers[0].register_forward_pre_hook(lambda _, inputs: watch("below", inputs[0]))
    layers[-1].register_forward_hook(lambda _, __, output: watch("above", output[0]))
    for i, layer in enumerate(layers):
        layer.mlp.register_forward_pre_hook(lambda _, inputs, i=i: watch(f"block_{i}", inputs[0]))

    def look() -> dict[str, float]:
        blocks = [size for name, size in sizes.items() if name.startswith("block")]
        return {
            "stream_gradient": sizes["below"] / sizes["above"],
            "block_gradient": fmean(blocks) / sizes["above"],
            "weight_gradient": fmean(layer.mlp.up_proj.weight.grad.norm().item() for layer in layers),
        }

    return look


def measure(model: Any, tokenizer: Any, run: Path) -> dict[str, float]:
    """`mask_between`, and what `watch_gradients` says as `<rounded, scaled or open>_…`, on the first rows of half B:
    with masks as they are, with outputs multiplied by M itself, and with masks of 1. Without masks the three are one,
    `open_…`."""
    recipe: Any = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    data = recipe["data"]
    text = Path(data["validation_dataset"]).parent / "validation-b.jsonl"
    ids = read_rows(text, tokenizer, data["context_length"])[:ROWS].to(next(model.parameters()).device)
    look, measured, modules = watch_gradients(model.model.layers), {}, mask_modules(model)
    for name, rounding in ROUNDINGS.items() if modules else [("open", None)]:
        for module in modules:
            if rounding is not None:
                module.round = rounding
        model.zero_grad()
        with record_masks(model) as masks:
            model(ids, labels=ids, use_cache=False).lm_loss.backward()
        measured |= {f"{name}_{what}": value for what, value in look().items()}
        if modules:
            measured["mask_between"] = share_between(masks.values())
    model.zero_grad()
    for module in modules:
        del module.round
    return measured
