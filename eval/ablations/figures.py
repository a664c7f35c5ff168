"""The figures of a results page, from run folders: losses, embeddings, the masks of LearnedDropout."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from latentlm.models.block_learned_dropout import record_masks

PREFIX = "mask_density_"
SENTENCE = " The river rises in the hills of the north , and flows for 40 miles to the sea ."


def plot_losses(all_runs: list[Any], path: Path) -> None:
    """Validation bits per byte over training, and training loss, one line per row."""
    figure, axes = plt.subplots(1, 2, figsize=(15, 5), layout="constrained")
    colours = plt.get_cmap("tab20").colors
    for runs, colour in zip(all_runs, colours * 2, strict=False):
        for axis, name in zip(axes, ("lm_loss", "eval_bits_per_byte"), strict=True):
            if curve := runs.curve(name):
                axis.plot(*zip(*curve, strict=True), label=runs.row.label, color=colour, linewidth=1.2)
    axes[0].set(xlabel="step", ylabel="training loss (nats per token)")
    axes[1].set(xlabel="step", ylabel="validation bits per byte")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save(figure, path)


def embedding_statistics(runs: Any) -> dict[str, torch.Tensor]:
    """Norms of token and position embeddings, and cosines between every token and every position."""
    weights = load_file(runs.folders[0] / "model.safetensors")
    tokens = next(value for name, value in weights.items() if "embed_tokens" in name or "lm_head" in name)
    positions = next((value for name, value in weights.items() if "embed_positions" in name), None)
    if positions is None:
        return {}
    unit = [torch.nn.functional.normalize(value.float(), dim=-1) for value in (tokens, positions)]
    neighbours = (unit[1][1:] * unit[1][:-1]).sum(-1)
    return {
        "token norm": tokens.float().norm(dim=-1),
        "position norm": positions.float().norm(dim=-1),
        "cosine token–position": (unit[0] @ unit[1].T).flatten()[:: max(1, len(tokens) // 64)],
        "cosine of neighbouring positions": neighbours,
    }


def plot_embeddings(all_runs: list[Any], path: Path) -> None:
    """Distributions of embedding norms and cosines per variant (first seed)."""
    found = {runs.row.label: stats for runs in all_runs if (stats := embedding_statistics(runs))}
    names = list(next(iter(found.values())))
    figure, axes = plt.subplots(
        1, len(names), figsize=(4 * len(names), 0.32 * len(found) + 2), sharey=True, layout="constrained"
    )
    for axis, name in zip(axes, names, strict=True):
        axis.boxplot([stats[name].numpy() for stats in found.values()], orientation="horizontal", showfliers=False)
        axis.set_title(name, fontsize=10)
        axis.set_yticks(range(1, len(found) + 1), list(found), fontsize=8)
    axes[0].invert_yaxis()  # the axes share it
    save(figure, path)


def panels(count: int, **options: Any) -> tuple[plt.Figure, Any]:
    """A grid of small axes, three in a row; those that are left over are blank."""
    height = -(-count // 3)
    figure, axes = plt.subplots(height, 3, figsize=(13.8, 2.7 * height), layout="constrained", squeeze=False, **options)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes.flat[:count]


def plot_masks_over_training(rows: list[Any], path: Path) -> None:
    """For each row, the fraction of ones by layer (first seed)."""
    figure, axes = panels(len(rows), sharey=True)
    for axis, runs in zip(axes, rows, strict=True):
        names = sorted({name for entry in runs.metrics[0] for name in entry if name.startswith(PREFIX)})
        for name, colour in zip(names, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(names))), strict=True):
            points = [(entry["step"], entry[name]) for entry in runs.metrics[0] if name in entry]
            label = name.removeprefix(PREFIX).replace("_layers.", " ").replace("layers.", "layer ")
            axis.plot(*zip(*points, strict=True), label=label, color=colour, linewidth=1.3)
        axis.set_title(runs.row.label, fontsize=9)
        axis.set_ylim(-0.03, 1.03)
        axis.legend(fontsize=6, ncols=2)
    figure.supxlabel("step")
    figure.supylabel("fraction of ones in the rounded masks, held-out text", fontsize=9)
    save(figure, path)


def plot_masks_by_position(rows: list[Any], text: Path, path: Path, count: int = 48) -> None:
    """For each row (first seed), the fraction of ones by layer and position, over windows of held-out text."""
    figure, axes = panels(len(rows))
    for axis, runs in zip(axes, rows, strict=True):
        tokenizer, model = load(runs.folders[0])
        length = model.config.max_position_embeddings
        ids = tokenizer(text.read_text(encoding="utf-8")[: 12 * count * length], return_tensors="pt").input_ids[0]
        masks = run_recorded(model, ids[: count * length].view(count, length))
        density = torch.stack([(mask >= 0.5).float().mean((0, 2)) for mask in masks.values()])
        image = axis.imshow(density, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axis.set_yticks(range(len(masks)), list(masks), fontsize=6)
        axis.set_title(runs.row.label, fontsize=9)
    figure.colorbar(image, ax=list(axes), fraction=0.02, label="ones")
    figure.supxlabel("position")
    save(figure, path)


def load(folder: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()


def run_recorded(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """M `(B, T, M)` of each masked block by a short name."""
    with torch.no_grad(), record_masks(model) as masks:
        model(ids)
    return {
        name.removeprefix("model.").removesuffix(".mlp.learned_dropout").replace("layers.", "").replace("_", " "): mask
        for name, mask in masks.items()
    }


def plot_masks_of_a_sentence(rows: list[Any], path: Path) -> None:
    """For each row (first seed): the fraction of ones by layer and token; beside it every value of one layer's mask."""
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(16, 2.6 * len(rows)), squeeze=False, width_ratios=(1, 1), layout="constrained"
    )
    for (left, right), runs in zip(axes, rows, strict=True):
        tokenizer, model = load(runs.folders[0])
        ids = tokenizer(SENTENCE, return_tensors="pt").input_ids
        tokens = [tokenizer.decode([i]).replace(" ", "␣") for i in ids[0]]
        masks = {name: mask[0] for name, mask in run_recorded(model, ids).items()}
        density = torch.stack([(mask >= 0.5).float().mean(-1) for mask in masks.values()])
        image = left.imshow(density, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        left.set_yticks(range(len(masks)), list(masks), fontsize=7)
        left.set_title(runs.row.label, fontsize=9)
        figure.colorbar(image, ax=left, fraction=0.03, label="ones")
        middle = list(masks)[len(masks) // 2]
        right.imshow(masks[middle].T, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        right.set_title(f"M of {middle}: white 1, black 0", fontsize=9)
        right.set_ylabel("channel" if masks[middle].shape[-1] > 64 else "group", fontsize=7)
        for axis in (left, right):
            axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=6)
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(path)
