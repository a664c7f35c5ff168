"""Figures of a results page from the curves of records, readable at page width and by the colour-blind."""

import fnmatch
import hashlib
import json
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image
from tables import Group, pick

# Okabe & Ito (2008), without yellow, which is hard to see on white; a line style per round of colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv*PX"
STYLES = ("-", "--", ":", "-.")
DIGEST = "Description"  # field of the PNG, or of the SVG, that says what was drawn
DRAWING = 2  # of `draw`: figures are drawn anew when it changes
LABEL_SIZE, LABEL_WIDTH = 8, 24  # points, and characters in a line
X_NAMES = {
    "bytes": "MB of text seen",
    "flops": "TFLOP of training",
    "layer": "layers since the input",
    "context": "bytes of context",
    "seen": "times that the piece is in the training text, at least",
}


def points(group: Group, name: str, x: str, bits: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """The curve of each record, over its own first numbers (`step`, `context`), `bytes` (in MB) or `flops` (in 10¹², as
    `measures/operations.py` counts them); with `bits`, nats of a token as bits per byte."""
    curves = []
    for record in group.records:
        curve = np.array(record.curve.get(name, []), dtype=float).reshape(-1, 2)
        megabytes = (record.bytes_seen or 0) / max(record.steps or 1, 1) / 1e6
        per_step = {"bytes": megabytes, "flops": megabytes * record.metrics.get("in_training", 0.0)}.get(x, 1.0)
        if len(curve) > 2 and curve[-1, 0] - curve[-2, 0] < (curve[-2, 0] - curve[-3, 0]) / 2:
            curve = curve[:-1]  # what was left at the end: a mean over few steps
        if len(curve) and per_step:
            scale = (record.tokens_seen or 0) / (record.bytes_seen or 1) / math.log(2) if bits else 1.0
            curves.append((curve[:, 0] * per_step, curve[:, 1] * scale))
    return curves


def marks(groups: Sequence[Group], panel: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each entry that has both numbers, the mean over seeds of `value` over that of `over`, and the spread."""
    over = panel["over"]
    found = []
    for i, group in enumerate(groups):
        x, y = group.mean(over["value"], over.get("per")), group.mean(panel["value"])
        if x and y is not None:
            spread = group.spread(panel["value"]) or 0.0
            label = group.label + (" (one seed)" if group.num_seeds == 1 else "")
            x = round(x * over.get("scale", 1.0), 6)
            found.append({"index": i, "label": label, "x": x, "y": round(y, 6), "spread": round(spread, 6)})
    return found


def by_layer(group: Group, name: str) -> dict[str, dict[int, list[float]]]:
    """What a measure says of each layer, `<name>_<stack>_<depth>`, by stack and depth; a stack that reads the embedding
    begins with it."""
    stacks: dict[str, dict[int, list[float]]] = {}
    for record in group.records:
        for metric, value in record.metrics.items():
            if match := re.fullmatch(rf"{re.escape(name)}_([a-z]+)_(\d+)", metric):
                stacks.setdefault(match[1], {}).setdefault(int(match[2]), []).append(float(value))
    embedding = stacks.pop("embedding", {})
    return {stack: ({} if stack == "decoder" else embedding) | layers for stack, layers in stacks.items()}


def layer_lines(group: Group, name: str) -> list[dict[str, Any]]:
    """A line for each stack of an entry."""
    lines = []
    for stack, layers in by_layer(group, name).items():
        depths = sorted(layers)
        rows = np.array([layers[depth] for depth in depths]).T  # of each record
        label = group.label + ("" if stack == "layer" else f": {stack}")
        lines.append(line_of(label, depths, rows))
    return lines


def seen_lines(group: Group, other: Group, name: str) -> list[dict[str, Any]]:
    """A line for how many bits per byte more than another entry with the same seed an entry needs, by how often pieces
    were seen: `<name>_<times>_bits` of `measures/pieces.py`."""
    bins = sorted(
        {int(match[1]) for metric in group.records[0].metrics if (match := re.fullmatch(rf"{name}_(\d+)_bits", metric))}
    )
    ones, others = ([each.by_seed(f"{name}_{times}_bits") for times in bins] for each in (group, other))
    seeds = sorted(set[int].intersection(*map(set, (*ones, *others)))) if bins else []
    changes = [[one[seed] - rival[seed] for one, rival in zip(ones, others, strict=True)] for seed in seeds]
    return [line_of(group.label, bins, np.array(changes))] if seeds else []


def line_of(label: str, x: Sequence[float] | np.ndarray, ys: np.ndarray) -> dict[str, Any]:
    """One line of a panel: the mean over records, `(records, points)`, with their lowest and highest."""
    return {
        "label": label + (" (one seed)" if len(ys) == 1 else ""),
        "x": np.round(x, 6).tolist(),
        "mean": ys.mean(0).round(6).tolist(),
        "low": ys.min(0).round(6).tolist(),
        "high": ys.max(0).round(6).tolist(),
    }


def series_lines(groups: dict[str, Group], panel: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each name in `series`, through the points of [`marks`] of its entries, which may be patterns."""
    lines = []
    for label, patterns in panel["series"].items():
        members = [groups[name] for name in groups if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
        found = sorted(marks(members, panel), key=lambda mark: mark["x"])
        if found:
            x, mean, spread = (np.array([mark[key] for mark in found]) for key in ("x", "y", "spread"))
            lines.append(line_of(label, x, np.array([mean - spread, mean, mean + spread])))
    return lines


def contents(groups: dict[str, Group], figure: dict[str, Any], where: str) -> dict[str, Any]:
    """Everything that a figure shows, as plain numbers."""
    chosen = pick(groups, figure["entries"], where)
    panels = []
    for panel in figure["panels"]:
        if "series" in panel:
            panels.append({**panel, "lines": series_lines(groups, panel), "yardsticks": {}})
            continue
        if "over" in panel:
            panels.append({**panel, "lines": [], "yardsticks": {}, "marks": marks(chosen, panel)})
            continue
        lines = []
        for group in chosen:
            if panel.get("x") == "layer":
                lines += layer_lines(group, panel["value"])
                continue
            if panel.get("x") == "seen":
                lines += seen_lines(group, pick(groups, [panel["less"]], where)[0], panel["value"])
                continue
            curves = points(group, panel["value"], panel.get("x", "step"), panel.get("bits", False))
            if curves:
                shared = min(len(x) for x, _ in curves)
                ys = np.array([y[:shared] for _, y in curves])
                lines.append(line_of(group.label, curves[0][0][:shared], ys))
        level = panel.get("level", panel["value"])  # the metric that yardsticks have of what is drawn
        yardsticks = {group.label: group.mean(level) for group in pick(groups, panel.get("yardsticks", []), where)}
        panels.append({**panel, "lines": lines, "yardsticks": yardsticks})
    return {"panels": panels}


def digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([DRAWING, content], sort_keys=True).encode()).hexdigest()


def drawn_digest(path: Path) -> str | None:
    """What the figure in a file was drawn from; None if there is none, or it is not ours."""
    if path.suffix == ".svg":
        match = re.search(r"<dc:description>(\w+)<", path.read_text(encoding="utf-8")) if path.exists() else None
        return match and match[1]
    try:
        with Image.open(path) as image:
            return image.info.get(DIGEST)
    except OSError:
        return None


def label_ends(axis: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Write names, `(name, x, y, colour)`, to the right of a panel beside the ends of their lines, without overlaps."""
    axis.figure.canvas.draw()  # places in the panel are known now
    to_panel = axis.transAxes.inverted()
    places = [to_panel.transform(axis.transData.transform((x, y))) for _, x, y, _ in ends]
    names = [textwrap.fill(name, LABEL_WIDTH) for name, *_ in ends]
    line = 1.25 * LABEL_SIZE / 72 * axis.figure.dpi / axis.bbox.height  # as a share of the panel's height
    heights = [line * (name.count("\n") + 1.4) for name in names]
    for i, y in spread_out([float(place[1]) for place in places], heights).items():
        axis.annotate(
            names[i],
            xy=(float(places[i][0]), float(places[i][1])),
            xycoords="axes fraction",
            xytext=(1.06, y),
            textcoords="axes fraction",
            va="center",
            fontsize=LABEL_SIZE,
            color=ends[i][3],
            arrowprops={"arrowstyle": "-", "color": ends[i][3], "linewidth": 0.6, "alpha": 0.6, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def spread_out(wanted: Sequence[float], heights: Sequence[float]) -> dict[int, float]:
    """By index, middles near those wanted, between 0 and 1 where there is room, of boxes that do not overlap."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    room = max(sum(heights), 1.0)
    low, places = (1 - room) / 2, {}
    for i in order:
        places[i] = max(min(max(wanted[i], 0.0), 1.0), low + heights[i] / 2)
        low = places[i] + heights[i] / 2
    high = (1 + room) / 2
    for i in reversed(order):
        places[i] = min(places[i], high - heights[i] / 2)
        high = places[i] - heights[i] / 2
    return places


def draw(content: dict[str, Any], path: Path) -> None:
    """One panel beside the other: the mean over seeds as a line, lowest to highest as a band, yardsticks as grey lines
    across; or a mark for each entry. Names stand beside the last panel, each where its line ends."""
    panels: Sequence[dict[str, Any]] = content["panels"]
    width = 3.3 * len(panels) + 2.4  # and the names
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 3.4), layout="constrained", squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        ends: list[tuple[str, float, float, str]] = []
        for i, line in enumerate(panel["lines"]):
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i // len(COLOURS) % len(STYLES)]}
            if "series" in panel:  # whose points are runs of their own, some with one seed
                errors = np.abs(np.array([line["low"], line["high"]]) - line["mean"])
                axis.errorbar(line["x"], line["mean"], yerr=errors, marker="o", markersize=4, capsize=3, **style)
            else:
                axis.plot(line["x"], line["mean"], linewidth=1.5, **style)
                axis.fill_between(line["x"], line["low"], line["high"], color=style["color"], alpha=0.2, linewidth=0)
            ends.append((line["label"], line["x"][-1], line["mean"][-1], style["color"]))
        for mark in panel.get("marks", []):
            i = mark["index"]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
            axis.errorbar(mark["x"], mark["y"], yerr=mark["spread"], capsize=2, **style)
            ends.append((mark["label"], mark["x"], mark["y"], style["color"]))
        if "marks" in panel:
            axis.set_xlim(0, 1.1 * max((mark["x"] for mark in panel["marks"]), default=1))
        over = panel.get("over", {}).get("heading")
        axis.set_xlabel(over or X_NAMES.get(panel.get("x", "step"), "step"), fontsize=9)
        axis.set_ylabel(panel.get("heading", panel["value"]), fontsize=9)
        axis.tick_params(labelsize=8)
        if panel.get("x") == "context":
            axis.set_xscale("log", base=2)
            ticks = sorted({float(x) for line in panel["lines"] for x in line["x"]})
            axis.set_xticks(ticks, labels=[f"{length:,.0f}" for length in ticks])
        if panel.get("x") == "seen":
            axis.set_xscale("symlog", base=4, linthresh=1)
            ticks = panel["lines"][0]["x"] if panel["lines"] else []
            axis.set_xticks(ticks, labels=[f"{times:.0f}" for times in ticks])
            axis.axhline(0, color="#555555", linewidth=1)
        if panel.get("x") == "layer":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25, linewidth=0.5)
        if "range" in panel:
            axis.set_ylim(*panel["range"])
        axis.margins(x=0.02)
        for i, (label, value) in enumerate(panel["yardsticks"].items()):
            if value is not None:
                axis.axhline(value, color="#555555", linestyle=STYLES[1 + i % 3], linewidth=1)
                ends.append((label, axis.get_xlim()[1], value, "#555555"))
        if axis is axes[0][-1]:
            label_ends(axis, ends)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {DIGEST: digest(content)} | ({"Date": None} if path.suffix == ".svg" else {})
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "latentlm"}):
        figure.savefig(path, dpi=150, metadata=metadata)
    plt.close(figure)
