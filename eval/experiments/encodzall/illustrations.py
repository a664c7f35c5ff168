"""The illustration of packed words in docs/encodzall.md, which needs no run.

python eval/experiments/encodzall/illustrations.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from latentlm.models.block_ragged import take
from latentlm.models.encodzall_packing import pack_words
from latentlm.models.encodzall_words import find_words

FIGURES = Path(__file__).parents[3] / "docs" / "results" / "figures"
TEXT = "Words of many texts lie one after the other in rows, none crosses an edge."


def plot_packing() -> None:
    """Two rows of packed words, and which byte may look at which."""
    ids = torch.tensor([[*TEXT.encode()]])
    packing = pack_words(find_words(ids, 16), 40)
    letters = take(ids, packing["source"]).tolist()
    figure, axes = plt.subplots(1, len(letters), figsize=(6 * len(letters), 6), layout="constrained")
    for axis, words, row in zip(axes, packing["word"], letters, strict=True):
        allowed = (words[:, None] == words[None]) & (words[:, None] < packing["lengths"].numel())
        axis.imshow(torch.where(allowed, words[:, None] % 5 + 1, 0), cmap="Blues", vmin=0, vmax=7)
        names = [chr(id_) if id_ > 32 else "·" if id_ else "" for id_ in row]
        axis.set_xticks(range(len(names)), names, fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set(xlabel="key", ylabel="query")
    figure.suptitle("Encoder 1: packed words, each sees itself alone (a dot is a space; empty slots are padding)")
    figure.savefig(FIGURES / "encodzall-packing.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    plot_packing()
