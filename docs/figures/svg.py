"""A drawing in the one style of this folder: text, boxes, arrows and grids, as SVG that reads on light and dark pages.

Sizes are in pixels of the drawing; y grows downwards. Colours say what something is, the same in every figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

# Fill and stroke: after Okabe & Ito (2008), told apart by the colour-blind.
COLOURS = {
    "data": ("#eef1f5", "#5b6673"),
    "vectors": ("#fdf1d3", "#a87400"),
    "encoder": ("#dbeaf7", "#0072b2"),
    "decoder": ("#fbe2d4", "#c25400"),
    "codes": ("#d8f0e6", "#00805d"),
    "loss": ("#f5e1ee", "#a84f87"),
    "plain": ("#ffffff", "#5b6673"),
}
INK, QUIET, PAPER, EDGE = "#1f2933", "#52606d", "#ffffff", "#d0d7de"
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
CHARACTER = 0.6  # width of a character over the font size: that of the widest of these fonts


@dataclass(frozen=True)
class Area:
    """A rectangle of the drawing, with the points where arrows begin and end."""

    x: float
    y: float
    width: float
    height: float

    @property
    def top(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y

    @property
    def bottom(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height

    def left(self, y: float | None = None) -> tuple[float, float]:
        return self.x, self.y + self.height / 2 if y is None else y

    def right(self, y: float | None = None) -> tuple[float, float]:
        return self.x + self.width, self.y + self.height / 2 if y is None else y

    def overlaps(self, other: "Area") -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


@dataclass
class Drawing:
    """One figure.

    Args:
        width, height: of the drawing.
        title: what a reader who does not see it is told first.
    """

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)
    texts: list[tuple[str, Area]] = field(default_factory=list)  # where each text lies, at most

    def text(
        self,
        x: float,
        y: float,
        content: str,
        size: int = 13,
        anchor: str = "middle",
        bold: bool = False,
        ink: str = INK,
    ) -> None:
        """One line whose middle is at the height `y`."""
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y + 0.35 * size:g}" font-size="{size}" text-anchor="{anchor}" fill="{ink}"{weight}>'
            f"{escape(content)}</text>"
        )
        width = CHARACTER * size * len(content) * (1.1 if bold else 1.0)
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        self.texts.append((content, Area(left, y - size / 2, width, size)))

    def note(self, x: float, y: float, content: str, anchor: str = "middle", size: int = 12) -> None:
        """A remark beside what is drawn."""
        self.text(x, y, content, size, anchor, ink=QUIET)

    def box(self, x: float, y: float, width: float, height: float, content: str, kind: str, size: int = 13) -> Area:
        """A block; of several lines the first is bold, the others are smaller."""
        fill, stroke = COLOURS[kind]
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="{fill}" stroke="{stroke}" '
            'stroke-width="1.3"/>'
        )
        lines = content.split("\n")
        step = size + 3
        first = y + height / 2 - step * (len(lines) - 1) / 2
        for i, line in enumerate(lines):
            self.text(
                x + width / 2, first + i * step, line, size if i == 0 else size - 1, bold=i == 0 and len(lines) > 1
            )
        return Area(x, y, width, height)

    def frame(self, x: float, y: float, width: float, height: float) -> Area:
        """A dashed line around what belongs together."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="none" stroke="{QUIET}" '
            'stroke-width="1" stroke-dasharray="4 3"/>'
        )
        return Area(x, y, width, height)

    def line(self, points: Sequence[tuple[float, float]], kind: str = "plain", width: float = 1.5, arrow: bool = True,
             dashed: bool = False) -> None:  # fmt: skip
        """A line through points, with an arrow head at its end."""
        stroke = COLOURS[kind][1]
        style = ' stroke-dasharray="5 3"' if dashed else ""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width:g}"{style}/>')
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            length = max(((x - x0) ** 2 + (y - y0) ** 2) ** 0.5, 1e-9)
            dx, dy = (x - x0) / length, (y - y0) / length
            wings = [(x - 8 * dx + side * 4 * dy, y - 8 * dy - side * 4 * dx) for side in (1, -1)]
            head = " ".join(f"{a:.1f},{b:.1f}" for a, b in [(x, y), *wings])
            self.parts.append(f'<polygon points="{head}" fill="{stroke}"/>')

    def circle(self, x: float, y: float, content: str, kind: str = "plain") -> None:
        """An operation: + or ⊙."""
        fill, stroke = COLOURS[kind]
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="9" fill="{fill}" stroke="{stroke}" stroke-width="1.3"/>')
        self.text(x, y, content, 14)

    def grid(self, x: float, y: float, cells: Sequence[Sequence[float]], kind: str, size: float = 16) -> Area:
        """Values from 0 (empty) to 1 (full colour), a row below the other."""
        stroke = COLOURS[kind][1]
        for i, values in enumerate(cells):
            for j, value in enumerate(values):
                self.parts.append(
                    f'<rect x="{x + j * size:g}" y="{y + i * size:g}" width="{size:g}" height="{size:g}" '
                    f'fill="{stroke}" fill-opacity="{value:.2f}" stroke="{stroke}" stroke-width="0.7"/>'
                )
        return Area(x, y, size * len(cells[0]), size * len(cells))

    def stack(self, x: float, bottom: float, width: float, blocks: Sequence[tuple[str, str, float]],
              gap: float = 18) -> list[Area]:  # fmt: skip
        """Blocks (content, kind, height) from the bottom upwards, each with an arrow to the next."""
        areas: list[Area] = []
        for content, kind, height in blocks:
            bottom -= height
            areas.append(self.box(x, bottom, width, height, content, kind))
            if len(areas) > 1:
                self.line([areas[-2].top, areas[-1].bottom])
            bottom -= gap
        return areas

    def collisions(self) -> list[str]:
        """Texts that overlap each other, or leave the drawing."""
        page = Area(0, 0, self.width, self.height)
        problems = [
            f"{one!r} leaves the drawing"
            for one, area in self.texts
            if area.x < page.x or area.y < page.y or area.right()[0] > page.width or area.bottom[1] > page.height
        ]
        for i, (one, area) in enumerate(self.texts):
            problems += [f"{one!r} overlaps {other!r}" for other, place in self.texts[i + 1 :] if area.overlaps(place)]
        return problems

    def to_svg(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="{FONT}" role="img">'
        )
        paper = (
            f'<rect x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="10" fill="{PAPER}" '
            f'stroke="{EDGE}"/>'
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", paper, *self.parts, "</svg>"]) + "\n"
