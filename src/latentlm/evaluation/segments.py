"""Pictures of the segments of an Abstractinator, with the entropy of each byte and the codes of every level."""

import html
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from latentlm.models.modeling_abstractinator import AbstractinatorForCausalLM

COLOURS = ("#bcd9f2", "#f7d9b0", "#c9e7c3", "#ead0e6")
ROW = 96  # number of bytes of a line of the picture


@dataclass
class Inspection:
    """The segments, entropies and codes of a text of n bytes.

    Attributes:
        data: the bytes, without the begin.
        entropies: n values, the entropy in nats of the distribution that predicts each byte.
        segments: for each level, n values, the segment of each byte.
        codes: for each level, the digits of the code of each segment.
    """

    data: bytes
    entropies: list[float]
    segments: list[list[int]]
    codes: list[list[list[int]]]

    def pieces(self, level: int) -> list[tuple[bytes, list[int]]]:
        """Return the bytes and the code of each segment of a level, from 0 on."""
        segments: dict[int, bytearray] = {}
        for byte, segment in zip(self.data, self.segments[level], strict=True):
            segments.setdefault(segment, bytearray()).append(byte)
        return [(bytes(piece), self.codes[level][segment]) for segment, piece in segments.items()]


@torch.no_grad()
def inspect(model: AbstractinatorForCausalLM, data: bytes) -> Inspection:
    """Return the segments, entropies and codes of a text.

    Raises:
        ValueError: if the text is empty, or longer than the context of the model, or if the configuration has no
            `bos_token_id`.
    """
    if not data:
        raise ValueError("The text is empty: there is nothing to show.")
    if model.config.bos_token_id is None:
        raise ValueError("`bos_token_id` is None, but the entropy of the first byte is that after a begin symbol.")
    ids = torch.tensor([[model.config.bos_token_id, *data]], device=model.device)
    _, pyramid = model.eval().model.read(ids)
    inside = torch.arange(1, ids.shape[1], device=ids.device)  # the begin belongs to the first segment
    segments, codes = [], []
    for i, compressed in enumerate(pyramid.levels):
        index = compressed.segments.index[0]
        # The segment of a byte is that of its segment on the level below, whose index is shifted by the begin symbol.
        inside = index[inside if i == 0 else inside + 1]
        segments.append(inside.tolist())
        codes.append(compressed.quantized.codes[0, : compressed.segments.count[0]].tolist())
    entropies = pyramid.levels[0].segments.entropies[0, 1 : ids.shape[1]].tolist()
    return Inspection(data, entropies, segments, codes)


def segments_of_codes(
    model: AbstractinatorForCausalLM, data: bytes, level: int
) -> dict[tuple[int, ...], Counter[bytes]]:
    """Return, for each code of a level, by its digits, the byte strings of its segments with their counts in a text.

    Args:
        model: the model.
        data: a text of any length, which is read in rows that fill the context. A segment also ends with its row.
        level: the level, from 0 on.
    """
    row = model.config.max_position_embeddings - 1  # one position is that of the begin
    segments: dict[tuple[int, ...], Counter[bytes]] = defaultdict(Counter)
    for begin in range(0, len(data), row):
        for piece, code in inspect(model, data[begin : begin + row]).pieces(level):
            segments[tuple(code)][piece] += 1
    return dict(segments)


def letter(byte: int) -> str:
    """Return the text that represents a byte in the picture."""
    return chr(byte) if 32 < byte < 127 else "·" if byte == 32 else "↵" if byte == 10 else f"{byte:02x}"


def draw(inspection: Inspection, path: Path) -> None:
    """Save a picture of lines of text, with the entropy above each line and a coloured band for each level."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    lines = range(0, len(inspection.data), ROW)
    levels = len(inspection.segments)
    highest = max(max(inspection.entropies), 0.1)
    width = min(ROW, len(inspection.data))
    figure, axes = plt.subplots(
        len(lines), 1, figsize=(max(4, 0.135 * width), (1.1 + 0.22 * levels) * len(lines)), squeeze=False
    )
    for axis, begin in zip(axes[:, 0], lines, strict=True):
        part = range(begin, min(begin + ROW, len(inspection.data)))
        columns = [i - begin for i in part]
        axis.plot(
            columns, [inspection.entropies[i] / highest for i in part], color="#555555", linewidth=0.9, marker=".", ms=2
        )
        for level, segments in enumerate(inspection.segments):
            for column, i in zip(columns, part, strict=True):
                low = -0.35 * (level + 1)
                colour = COLOURS[(2 * level + segments[i] % 2) % len(COLOURS)]
                axis.add_patch(Rectangle((column - 0.5, low), 1, 0.32, color=colour, linewidth=0))
                if level == 0:
                    axis.text(
                        column,
                        low + 0.16,
                        letter(inspection.data[i]),
                        ha="center",
                        va="center",
                        size=6.5,
                        family="monospace",
                    )
                elif i == 0 or segments[i] != segments[i - 1]:
                    code = "/".join(map(str, inspection.codes[level][segments[i]]))
                    axis.text(column - 0.4, low + 0.16, code, ha="left", va="center", size=4.5, color="#444444")
        axis.set(xlim=(-0.6, width - 0.4), ylim=(-0.35 * levels - 0.05, 1.1))
        axis.set_yticks([0, 1], ["0", f"{highest:.1f}"], fontsize=6)
        axis.set_xticks([])
        for side in ("top", "right", "bottom"):
            axis.spines[side].set_visible(False)
    axes[0, 0].set_title("nats of the distribution that predicts each byte; bands: segments of each level", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write_html(inspection: Inspection, path: Path) -> None:
    """Write an HTML page with the segments of every level in colours. The tooltip of a segment is its code."""
    parts = ["<!doctype html><meta charset='utf-8'><title>Segments</title>", "<style>span{padding:2px 0}</style>"]
    for level in range(len(inspection.segments)):
        parts.append(f"<h3>level {level + 1}</h3><p style='font-family:monospace;line-height:1.9'>")
        for i, (piece, code) in enumerate(inspection.pieces(level)):
            text = html.escape(piece.decode("utf-8", "backslashreplace")).replace("\n", "↵<br>")
            colour = COLOURS[(2 * level + i % 2) % len(COLOURS)]
            title = " / ".join(map(str, code))
            parts.append(f"<span style='background:{colour}' title='{title}'>{text.replace(' ', '&nbsp;')}</span><wbr>")
        parts.append("</p>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
