"""The two illustrations of docs/encodzall.md, which need no run.

python eval/experiments/encodzall/illustrations.py
"""

from itertools import pairwise
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


def plot_data_flow() -> None:
    """Boxes and arrows from bytes to the three outputs."""
    boxes = {
        "bytes of all texts\n(N)": (0, 1),
        "packed rows\n(rows, R)": (1, 1),
        "Encoder 1\ninside a word": (2, 1),
        "pooling\n(W, D)": (3, 1),
        "Encoder 2\nover the words": (4, 1),
        "memory\n(B, S, D)": (5, 1),
        "word decoder\neach word from its vector": (6.4, 2),
        "sequence decoder\nthe whole text": (6.4, 1),
        "mean over words\nembedding (B, D)": (6.4, 0),
    }
    figure, axis = plt.subplots(figsize=(13, 3.2), layout="constrained")
    for text, (x, y) in boxes.items():
        axis.text(x, y, text, ha="center", va="center", fontsize=9, bbox={"boxstyle": "round,pad=0.5", "fc": "#dbe9f6"})
    places = list(boxes.values())
    for start, end in [*pairwise(places[:6]), *((places[5], place) for place in places[6:])]:
        shrink = {"shrinkA": 38, "shrinkB": 42 if end[0] < 6 else 66}
        axis.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "->", **shrink})
    axis.set(xlim=(-0.6, 7.3), ylim=(-0.5, 2.5))
    axis.axis("off")
    figure.savefig(FIGURES / "encodzall-data-flow.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    plot_packing()
    plot_data_flow()
