"""Draw the figures of the architecture pages: python docs/figures/draw.py

Plain Python, nothing to install. A test compares the files with what this writes.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

from svg import COLOURS, Area, Drawing

HERE = Path(__file__).parent
COLUMN, PANEL_HEIGHT = 320, 366
BOTTOM = 350  # of the stacks in a panel


class Panel:
    """A part of a drawing whose upper left corner is the origin of what is drawn in it."""

    def __init__(self, drawing: Drawing, x: float, y: float, title: str):
        self.drawing, self.x, self.y = drawing, x, y
        drawing.text(x + COLUMN / 2, y + 20, title, 15, bold=True)

    def box(self, x: float, y: float, width: float, height: float, content: str, kind: str) -> Area:
        return self.drawing.box(self.x + x, self.y + y, width, height, content, kind)

    def stack(self, x: float, width: float, blocks: list[tuple[str, str, float]], bottom: float = BOTTOM) -> list[Area]:
        return self.drawing.stack(self.x + x, self.y + bottom, width, blocks)

    def note(self, x: float, y: float, content: str) -> None:
        self.drawing.note(self.x + x, self.y + y, content)


def decoder_only(panel: Panel) -> None:
    panel.stack(
        85,
        150,
        [
            ("tokens", "data", 26),
            ("embedding", "vectors", 26),
            ("2L layers\nself-attention\nMLP", "decoder", 150),
            ("next token", "data", 26),
        ],
    )


def ar_encoder_decoder(panel: Panel) -> None:
    left = panel.stack(
        12,
        122,
        [
            ("tokens", "data", 26),
            ("embedding", "vectors", 26),
            ("encoder\nL layers:\nself-attention\nMLP", "encoder", 150),
        ],
    )
    right = panel.stack(
        186,
        122,
        [
            ("bridge", "vectors", 26),
            ("decoder\nL layers:\nself-attention\ncross-attention\nMLP", "decoder", 112),
            ("next token", "data", 26),
        ],
        bottom=262,
    )
    draw = panel.drawing
    middle = right[0].left()[1]
    draw.line([left[2].right(middle), right[0].left()])
    keys = right[1].left()[1]
    draw.line([left[2].right(keys), right[1].left()], "encoder")
    panel.note(160, keys - panel.y - 24, "keys,")
    panel.note(160, keys - panel.y - 10, "values")


def parallel_encoder_decoder(panel: Panel) -> None:
    left = panel.stack(
        12,
        122,
        [
            ("tokens", "data", 26),
            ("embedding", "vectors", 26),
            ("encoder layer 1", "encoder", 40),
            ("encoder layer 2", "encoder", 40),
            ("encoder layer L", "encoder", 40),
        ],
    )
    right = panel.stack(
        186,
        122,
        [
            ("bridge", "vectors", 26),
            ("decoder layer 1", "decoder", 40),
            ("decoder layer 2", "decoder", 40),
            ("decoder layer L", "decoder", 40),
            ("next token", "data", 26),
        ],
        bottom=BOTTOM - 44,
    )
    draw = panel.drawing
    draw.line([left[1].right(), right[0].left()])
    for encoder, decoder in zip(left[2:], right[1:4], strict=True):
        draw.line([encoder.right(), decoder.left()], "encoder")
    panel.note(160, left[2].y - panel.y + 4, "keys,")
    panel.note(160, left[2].y - panel.y + 34, "values")
    for column in (left[3:], right[2:4]):
        x, y = column[0].top
        draw.text(x + 14, y - 9, "⋯", 13)


def fsq_tokenizer(panel: Panel) -> None:
    left = panel.stack(
        12,
        122,
        [
            ("bytes of a piece", "data", 26),
            ("encoder\nconvolutions", "encoder", 50),
            ("FSQ\nrounded to a code", "codes", 56),
            ("decoder\nconvolutions", "decoder", 50),
            ("the same bytes", "data", 26),
        ],
    )
    right = panel.stack(
        186,
        122,
        [
            ("pieces of a text", "data", 26),
            ("embedding\nof their codes", "vectors", 54),
            ("layers\nself-attention\nMLP", "decoder", 76),
            ("heads, by digit", "codes", 26),
            ("next piece", "data", 26),
        ],
    )
    draw = panel.drawing
    start, end = left[2].right(), right[1].left()
    draw.line([start, (panel.x + 160, start[1]), (panel.x + 160, end[1]), end], "codes", dashed=True)


def encodzall(panel: Panel) -> None:
    column = panel.stack(
        65,
        190,
        [
            ("noisy bytes", "data", 26),
            ("Encoder 1\nattention inside each word", "encoder", 44),
            ("pooling: a vector per word", "codes", 26),
            ("Encoder 2\nattention over all words", "encoder", 44),
        ],
    )
    memory = column[-1]
    y = memory.y - panel.y - 26
    decoders = [
        panel.box(12, y - 46, 142, 46, "sequence decoder\ncross-attention", "decoder"),
        panel.box(166, y - 46, 142, 46, "word decoder\nfrom one vector", "decoder"),
    ]
    ends = [
        panel.box(12, y - 88, 142, 26, "the clean text", "data"),
        panel.box(166, y - 88, 142, 26, "each clean word", "data"),
    ]
    for decoder, end in zip(decoders, ends, strict=True):
        x = decoder.bottom[0]
        panel.drawing.line([(x, memory.y), decoder.bottom])
        panel.drawing.line([decoder.top, end.bottom])


def abstractinator(panel: Panel) -> None:
    left = panel.stack(
        12,
        140,
        [
            ("bytes", "data", 26),
            ("entropy model\nwhere to cut", "encoder", 44),
            ("compressor\npools a segment", "encoder", 44),
            ("quantizer\na code per segment", "codes", 44),
        ],
    )
    top = panel.box(12, 40, 296, 44, "top model\ncausal on codes: the next code", "decoder")
    expander = panel.box(172, 196, 136, 72, "expander\ncross-attention to\ntrue and next code", "decoder")
    end = panel.box(172, BOTTOM - 26, 136, 26, "next byte", "data")
    draw = panel.drawing
    draw.line([left[-1].top, (left[-1].top[0], top.y + top.height)])
    draw.line([(expander.x + 16, top.y + top.height), (expander.x + 16, expander.y)], "decoder")
    code, memory = left[-1].right(), expander.left()
    draw.line([code, (panel.x + 162, code[1]), (panel.x + 162, memory[1]), memory], "codes")
    draw.line([expander.bottom, end.top])
    panel.note(252, 124, "further levels")
    panel.note(252, 140, "repeat this")


PANELS: dict[str, Callable[[Panel], None]] = {
    "decoder-only": decoder_only,
    "auto-regressive encoder–decoder": ar_encoder_decoder,
    "parallel encoder–decoder": parallel_encoder_decoder,
    "FSQ tokenizer": fsq_tokenizer,
    "EncodZall": encodzall,
    "Abstractinator": abstractinator,
}


def architectures() -> Drawing:
    """The six architectures side by side, data flowing upwards."""
    drawing = Drawing(
        3 * COLUMN, 2 * PANEL_HEIGHT + 24, "The six architectures, each from its input (below) to its output"
    )
    for i, (title, draw) in enumerate(PANELS.items()):
        draw(Panel(drawing, i % 3 * COLUMN, i // 3 * (PANEL_HEIGHT + 8) + 4, title))
    for i in (1, 2):
        drawing.line([(i * COLUMN, 12), (i * COLUMN, drawing.height - 12)], width=0.4, arrow=False)
    middle = drawing.height / 2
    drawing.line([(12, middle), (drawing.width - 12, middle)], width=0.4, arrow=False)
    return drawing


def one_architecture(title: str) -> Drawing:
    """A panel of `architectures` by itself."""
    drawing = Drawing(COLUMN, PANEL_HEIGHT, f"{title}, from its input (below) to its output")
    PANELS[title](Panel(drawing, 0, 0, title))
    return drawing


def position_subtraction() -> Drawing:
    """What is added below and taken away above: one table, one row further."""
    drawing = Drawing(820, 400, "Position subtraction: the next position's embedding is taken from the output")
    width = 104
    columns = [150 + 160 * i for i in range(4)]
    model = drawing.box(columns[0], 190, columns[-1] + width - columns[0], 46,
                        "encoder, bridge, decoder, final LayerNorm", "plain")  # fmt: skip
    digits, words = "₀₁₂₃₄", ["the", "cat", "sat", "on", "the"]
    for i, x in enumerate(columns):
        middle = x + width / 2
        token = drawing.box(x, 358, width, 28, words[i], "data")
        embedding = drawing.box(x, 312, width, 28, "embedding", "vectors", 12)
        drawing.line([token.top, embedding.bottom])
        drawing.line([embedding.top, (middle, model.y + model.height)])
        drawing.circle(middle, 274, "+")
        logits = drawing.box(x, 84, width, 28, "logits", "decoder", 12)
        drawing.line([(middle, model.y), logits.bottom])
        drawing.circle(middle, 152, "−")
        for y, row in ((274, i), (152, i + 1)):
            position = drawing.box(x - 4, y - 13, 34, 26, f"p{digits[row]}", "encoder")
            drawing.line([position.right(), (middle - 9, y)])
        target = drawing.box(x, 40, width, 28, words[i + 1], "data")
        drawing.line([logits.top, target.bottom])
    drawing.text(410, 20, "One table of positions: row t is added to the input, row t + 1 is taken from the output")
    for y, content in ((54, "next token"), (152, "subtract"), (274, "add"), (372, "token")):
        drawing.note(128, y, content, "end")
    return drawing


def embedding_loss() -> Drawing:
    """The cumulative average of the embeddings beside the encoder's output."""
    drawing = Drawing(820, 400, "The embedding loss: averages of the input embeddings against the encoder's output")
    width, left, right = 220, 204, 616  # middles of both ways
    [embedding] = drawing.stack(300, 388, 220, [("E: input embeddings", "vectors", 32)])
    [norm] = drawing.stack(left - width / 2, 300, width, [("LayerNorm", "plain", 28)])
    shares = [[1 / (i + 1) if j <= i else 0.0 for j in range(4)] for i in range(4)]
    average = drawing.grid(left - 52, 144, shares, "vectors", 26)
    drawing.line([norm.top, average.bottom])
    drawing.note(left + 66, 178, "cumulative mean:", "start")
    drawing.note(left + 66, 196, "position t averages", "start")
    drawing.note(left + 66, 214, "positions up to t", "start")
    drawing.note(left - 64, 196, "t", "end")
    encoder = drawing.stack(
        right - width / 2,
        300,
        width,
        [("encoder", "encoder", 46), ("stop gradient", "plain", 28), ("LayerNorm", "plain", 28)],
    )
    x, y = embedding.top
    for block in (norm, encoder[0]):
        drawing.line([(x, y), (x, 330), (block.bottom[0], 330), block.bottom])
    loss = drawing.box(300, 42, 220, 48, "embedding loss\nmean (A − target)²", "loss")
    drawing.line([average.top, (left, 66), loss.left()])
    drawing.line([encoder[-1].top, (right, 66), loss.right()])
    drawing.note(left + 10, 104, "A", "start")
    drawing.note(right + 10, 104, "target", "start")
    drawing.text(410, 20, "Each position's encoder output is compared with the mean of the embeddings up to it")
    return drawing


def parallel_streams() -> Drawing:
    """One layer of both streams: what describes the text, and what predicts."""
    drawing = Drawing(820, 440, "One layer of the parallel model: the encoder stream and the decoder stream")
    columns = {"encoder": 300, "decoder": 690}
    blocks = {
        "encoder": [(318, "self-attention"), (256, "MLP")],
        "decoder": [(318, "self-attention"), (186, "cross-attention"), (116, "MLP")],
    }
    drawing.frame(24, 62, 772, 304)
    drawing.note(36, 78, "layer l of L", "start")
    for name, x in columns.items():
        drawing.line([(x, 384), (x, 36)], name, 4)
        for y, content in blocks[name]:
            box = drawing.box(x - 216, y - 18, 150, 36, content, name)
            entry = box.x + (110 if content == "cross-attention" else 75)
            drawing.line([(x, y + 30), (entry, y + 30), (entry, y + 18)])
            drawing.line([box.right(), (x - 9, y)])
            drawing.circle(x, y, "+")
    encoder, decoder = columns.values()
    keys = decoder - 176
    drawing.line([(encoder, 216), (keys, 216), (keys, 204)], "encoder", 2)
    drawing.note((encoder + keys) / 2, 230, "keys, values")
    drawing.note(decoder - 12, 230, "query", "end")
    drawing.text(encoder, 22, "encoder stream: the text so far")
    drawing.text(decoder - 40, 22, "decoder stream: the next token")
    embedding = drawing.box(encoder - 75, 384, 150, 30, "embedding", "vectors")
    bridge = drawing.box(decoder - 75, 384, 150, 30, "bridge", "vectors")
    drawing.line([embedding.right(), bridge.left()])
    return drawing


def learned_dropout() -> Drawing:
    """From the output of a feed-forward block to the masked output."""
    drawing = Drawing(820, 330, "LearnedDropout: a mask that attention computes from the input")
    tokens, channels, size = 5, 8, 13
    values = [[0.25 + 0.65 * abs(math.sin(3.7 * i + 2.3 * j + 1)) for j in range(channels)] for i in range(tokens)]
    angles = [[math.pi * abs(math.sin(1.7 * i + 0.9 * j * j)) for j in range(channels)] for i in range(tokens)]
    mask = [[0.5 * math.cos(angle) + 0.5 for angle in line] for line in angles]
    rounded = [[float(m >= 0.5) for m in line] for line in mask]
    masked = [[x * m for x, m in zip(*lines, strict=True)] for lines in zip(values, rounded, strict=True)]
    y = 196
    source = drawing.grid(46, y, values, "vectors", size)
    attention = drawing.box(186, y, 118, 66, "attention\ncausal, own\nprojections", "encoder")
    plot = curve(drawing, Area(336, y - 6, 150, 78))
    soft = drawing.grid(524, y, mask, "codes", size)
    hard = drawing.grid(680, y, rounded, "codes", size)
    middle = soft.left()[1]
    chain = [source, attention, plot, soft, hard]
    for before, after in pairwise(chain):
        drawing.line([before.right(middle), after.left(middle)])
    drawing.note(320, middle - 12, "A")
    drawing.note(654, middle - 12, "round")
    output = drawing.grid(680, 48, masked, "decoder", size)
    x = hard.top[0]
    drawing.line([source.top, (source.top[0], 154), (x - 9, 154)])
    drawing.line([hard.top, (x, 163)], arrow=False)
    drawing.line([(x, 145), output.bottom])
    drawing.circle(x, 154, "⊙")
    for area, name, remark in (
        (source, "X: output of an MLP", "tokens × channels"),
        (plot, "M = ½ cos(A + shift) + ½", "shift: learned, per channel"),
        (soft, "M", "0 to 1"),
        (hard, "mask", "0 or 1"),
    ):
        drawing.text(area.bottom[0], y + 90, name)
        drawing.note(area.bottom[0], y + 108, remark)
    drawing.text(x, 32, "output")
    drawing.note(410, 138, "multiplied, in training and at inference")
    return drawing


def curve(drawing: Drawing, area: Area) -> Area:
    """M over A + shift, from −π to π, with the half above which it is rounded to 1."""
    drawing.parts.append(
        f'<rect x="{area.x:g}" y="{area.y:g}" width="{area.width:g}" height="{area.height:g}" rx="5" fill="#ffffff" '
        f'stroke="{COLOURS["codes"][1]}" stroke-width="1.3"/>'
    )
    inner = Area(area.x + 8, area.y + 8, area.width - 16, area.height - 16)
    points = []
    for i in range(41):
        angle = (i / 20 - 1) * math.pi
        points.append((inner.x + inner.width * i / 40, inner.y + inner.height * (0.5 - 0.5 * math.cos(angle))))
    drawing.line([(round(x, 1), round(y, 1)) for x, y in points], "codes", 2, arrow=False)
    middle = inner.left()[1]
    drawing.line([(inner.x, middle), (inner.x + inner.width, middle)], width=0.8, arrow=False, dashed=True)
    return area


FIGURES: dict[str, Callable[[], Drawing]] = {
    "architectures": architectures,
    "decoder-only": partial(one_architecture, "decoder-only"),
    "ar-encoder-decoder": partial(one_architecture, "auto-regressive encoder–decoder"),
    "fsq-tokenizer": partial(one_architecture, "FSQ tokenizer"),
    "encodzall": partial(one_architecture, "EncodZall"),
    "abstractinator": partial(one_architecture, "Abstractinator"),
    "position-subtraction": position_subtraction,
    "embedding-loss": embedding_loss,
    "parallel-streams": parallel_streams,
    "learned-dropout": learned_dropout,
}


def main() -> None:
    for name, draw in FIGURES.items():
        path = HERE / f"{name}.svg"
        path.write_text(draw().to_svg(), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
