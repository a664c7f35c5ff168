"""Checks that an FSQ tokenizer is lossless, and analyses of the use of its vocabulary and codes."""

import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from latentlm.data.codes import refuse_added_tokens
from latentlm.models.block_fsq import FSQ
from latentlm.models.tokenization_fsq import FSQTokenizer
from latentlm.models.tokenization_fsq_fast import FSQTokenizerFast

SURROGATES = range(0xD800, 0xE000)
RANDOM_STRINGS = 10_000
NEIGHBOURS = 8
NEIGHBOURHOODS = 256  # number of pieces that are compared with their neighbours
RANKS_PER_OCTAVE = 4
ZIPF_RANKS = (16, 1024)  # first and last + 1 rank of the fit of the exponent
SAMPLES = (b" the", b"ing", b" 19", b",", b" government", b"\xc3\xa9")


def load_pair(folder: Path) -> tuple[FSQTokenizer, FSQTokenizerFast]:
    """Return the slow and the fast tokenizer of a repository."""
    return FSQTokenizer.from_pretrained(folder), FSQTokenizerFast.from_pretrained(folder)


def check_tokenizer(folder: Path, texts: Iterable[Path] = ()) -> None:
    """Encode and decode every Unicode scalar value, random bytes and text files with both classes, and print the
    results.

    Raises:
        ValueError: if decoding does not restore an input, or the two classes differ.
    """
    console = Console(soft_wrap=True)
    slow, fast = load_pair(folder)
    table = Table("text", "bytes", "tokens", "bytes per token", "slow MB/s", "fast MB/s")
    files = [(path.name, path.read_text(encoding="utf-8")) for path in texts]
    with Progress(console=console) as progress:
        for name, text in progress.track([("every Unicode scalar", every_scalar()), *files], description="Checking"):
            table.add_row(*(name, *compare(slow, fast, name, text)))
        generator = random.Random(0)
        for _ in progress.track(range(RANDOM_STRINGS), description="Random bytes"):
            data = generator.randbytes(generator.randrange(64))
            for tokenizer in (slow, fast):
                if tokenizer.decode_bytes(tokenizer.encode_bytes(data)) != data:
                    raise ValueError(f"{type(tokenizer).__name__} loses the bytes {data!r}")
    console.print(table)
    console.print(f"Nothing is lost, also of {RANDOM_STRINGS:,} random byte strings; both classes give the same ids.")


def every_scalar() -> str:
    """Return a text of all Unicode scalar values."""
    return "".join(map(chr, (code for code in range(0x110000) if code not in SURROGATES)))


def compare(slow: FSQTokenizer, fast: FSQTokenizerFast, name: str, text: str) -> Iterator[str]:
    """Yield the cells of a row of the table: bytes, tokens, bytes per token, and the speeds of both classes in MB/s.
    Special tokens in the text are read as plain text.

    Raises:
        ValueError: if decoding does not restore the text, or the two classes differ.
    """
    encoded, speeds = [], []
    size = len(text.encode())
    for tokenizer in (slow, fast):
        started = time.perf_counter()
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        speeds.append(size / 1e6 / (time.perf_counter() - started))
        if tokenizer.decode(ids) != text:
            raise ValueError(f"{type(tokenizer).__name__} loses something of {name}")
        encoded.append(ids)
    if encoded[0] != encoded[1]:
        first = next(i for i, (a, b) in enumerate(zip(*encoded, strict=False)) if a != b)
        raise ValueError(f"{name}: the slow and the fast tokenizer differ from token {first} on")
    yield from (f"{size:,}", f"{len(ids):,}", f"{size / max(len(ids), 1):.3f}", *(f"{speed:.1f}" for speed in speeds))


@dataclass(frozen=True)
class Analysis:
    """The use of the vocabulary and the codes of a tokenizer in a text, in values that JSON can represent.

    Attributes:
        numbers: the counts `bytes`, `tokens` and `vocabulary` (bytes and pieces). Shares of the vocabulary:
            `vocabulary_used`, `moved`, `exact`. Shares of the tokens: `single_bytes`, `exact_by_use`, and `kept_K` of
            the K most used bytes and pieces. `zipf_exponent`. `edits_of_neighbours` and `edits_at_random` (see
            [`mean_edits`]). With residual codes, also `coarse_codes`, the number of distinct coarse codes, and
            `edits_in_families`, between pieces with the same coarse code.
        use: pairs (rank, number of uses) of bytes and pieces, by rank.
        digits: share of each digit value in each dimension, over the vocabulary and over the text.
        neighbours: for some pieces, the pieces with the nearest codes, all in the form of [`show`].
        families: with residual codes, for the same pieces, the most used others with the same coarse code.
    """

    numbers: dict[str, float | int]
    use: list[list[int]]
    digits: dict[str, list[list[float]]]
    neighbours: dict[str, list[str]]
    families: dict[str, list[str]]

    @property
    def use_table(self) -> str:
        """The use of the vocabulary in the text, as Markdown."""
        one = self.numbers
        lines = [
            f"- {one['bytes']:,} bytes, {one['tokens']:,} tokens: {one['bytes'] / one['tokens']:.3f} bytes per token",
            f"- vocabulary used: {one['vocabulary_used']:.2%} of {one['vocabulary']:,} bytes and pieces",
            f"- tokens that are single bytes: {one['single_bytes']:.2%}",
            f"- use falls with rank to the power of -{one['zipf_exponent']:.2f} from rank {ZIPF_RANKS[0]} to "
            f"{ZIPF_RANKS[1]:,} (Zipf's law: -1)",
            "",
            "Kept if the vocabulary were pruned to the most used bytes and pieces:",
            "",
            "| kept | of all tokens |",
            "| --: | --: |",
        ]
        shares = {int(name[5:]): share for name, share in one.items() if name.startswith("kept_")}
        return "\n".join([*lines, *(f"| {size:,} | {share:.2%} |" for size, share in shares.items())])

    @property
    def code_table(self) -> str:
        """The properties of the codes, as Markdown."""
        one = self.numbers
        lines = [
            f"- codes moved to a free place: {one['moved']:.2%}; spelled exactly by the network: {one['exact']:.2%}, "
            f"{one['exact_by_use']:.2%} by use",
            f"- edits that turn a piece into another, divided by the bytes of the longer: "
            f"{one['edits_of_neighbours']:.3f} to its {NEIGHBOURS} neighbours by code, {one['edits_at_random']:.3f} to "
            "pieces drawn at random",
            "",
            "Nearest in code space (distance between values):",
            "",
            "| piece | neighbours |",
            "| --- | --- |",
        ]
        lines += [f"| {piece} | {' '.join(near)} |" for piece, near in self.neighbours.items()]
        if self.families:
            lines += [
                "",
                f"Pieces with the same coarse code, of {one['coarse_codes']:,} that are used, are "
                f"{one['edits_in_families']:.3f} edits a byte apart:",
                "",
                "| piece | others with its coarse code, the most used first |",
                "| --- | --- |",
            ]
            lines += [f"| {piece} | {' '.join(family) or '–'} |" for piece, family in self.families.items()]
        return "\n".join(lines)


def analyse_tokenizer(folder: Path, text: Path, out: Path) -> None:
    """Write `analysis.md` and its figures to `out`, with the analysis of a tokenizer on a text file.

    Raises:
        ValueError: if the file is empty, or the tokenizer has added tokens.
    """
    content = text.read_text(encoding="utf-8")
    if not content:
        raise ValueError(f"{text} is empty: it does not say which tokens are used")
    analysis = analyse(*load_pair(folder), content)
    out.mkdir(parents=True, exist_ok=True)
    plot_use(analysis.use, analysis.numbers["tokens"], out / "use.png")
    plot_digits(analysis.digits, out / "digits.png")
    figures = ["![Use by rank](use.png)", "", "![Digits of the codes](digits.png)"]
    lines = [f"# {folder.name} on {text.name}", "", analysis.use_table, "", analysis.code_table, "", *figures, ""]
    (out / "analysis.md").write_text("\n".join(lines), encoding="utf-8")
    print(out / "analysis.md")


def analyse(slow: FSQTokenizer, fast: FSQTokenizerFast, text: str) -> Analysis:
    """Analyse the use of a vocabulary and its codes in a text. Both tokenizers must have the same vocabulary.

    Raises:
        ValueError: if they have added tokens.
    """
    refuse_added_tokens(fast)
    ids = np.array(fast(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids)
    counts = np.bincount(ids, minlength=len(fast))[slow.codes >= 0]
    table, total = slow.vocabulary, max(len(ids), 1)
    ordered = np.sort(counts)[::-1]
    numbers = {
        "bytes": len(text.encode()),
        "tokens": len(ids),
        "vocabulary": len(counts),
        "vocabulary_used": np.count_nonzero(counts) / len(counts),
        "single_bytes": counts[table.lengths == 1].sum() / total,
        "moved": len(table.moved) / len(counts),
        "exact": 1 - len(table.inexact) / len(counts),
        "exact_by_use": 1 - counts[table.inexact].sum() / total,
        "zipf_exponent": zipf_exponent(ordered),
    }
    for size in (2**k for k in range(8, 16) if 2**k <= len(ordered)):
        numbers[f"kept_{size}"] = ordered[:size].sum() / total
    fsq = code_space(slow)
    digits = fsq.digits(torch.from_numpy(table.codes))
    values = fsq.values(digits)
    chosen = range(256, len(table.spellings), max((len(table.spellings) - 256) // NEIGHBOURHOODS, 1))
    generator = random.Random(0)
    numbers["edits_of_neighbours"] = mean_edits(table.spellings, {i: nearest(values, i) for i in chosen})
    drawn = {i: generator.choices(range(256, len(table.spellings)), k=NEIGHBOURS) for i in chosen}
    numbers["edits_at_random"] = mean_edits(table.spellings, drawn)
    samples = [table.spellings.index(sample) for sample in SAMPLES if sample in table.spellings]
    families: dict[int, list[int]] = {}
    if len(fsq.levels) > fsq.num_dimensions:
        coarse = table.codes % math.prod(fsq.levels[: fsq.num_dimensions])
        numbers["coarse_codes"] = len(np.unique(coarse))
        families = {i: family(coarse, counts, i) for i in (*chosen, *samples)}
        drawn = {i: generator.sample(families[i], min(len(families[i]), NEIGHBOURS)) for i in chosen}
        numbers["edits_in_families"] = mean_edits(table.spellings, drawn)
    ranks = np.unique(np.geomspace(1, len(ordered), RANKS_PER_OCTAVE * len(ordered).bit_length()).round().astype(int))
    return Analysis(
        {name: round(float(value), 6) if isinstance(value, float) else int(value) for name, value in numbers.items()},
        [[int(rank), int(ordered[rank - 1])] for rank in ranks],
        {
            name: digit_shares(digits.numpy(), fsq.levels, uses)
            for name, uses in (("vocabulary", None), ("text", counts))
        },
        shown(table.spellings, {i: nearest(values, i) for i in samples}),
        shown(table.spellings, {i: families[i][:NEIGHBOURS] for i in samples if i in families}),
    )


def code_space(tokenizer: FSQTokenizer) -> FSQ:
    """Return the quantization of the codes of a tokenizer."""
    count = (tokenizer.autoencoder_config or {}).get("num_quantizers", 1)
    return FSQ(tokenizer.levels[: len(tokenizer.levels) // count], num_quantizers=count)


def zipf_exponent(ordered: np.ndarray) -> float:
    """Return the exponent s of Zipf's law, log(use) = c - s log(rank), by least squares over the ranks `ZIPF_RANKS`.
    `ordered` are the uses by rank. The result is 0 if fewer than two of these ranks are used."""
    ranks = np.arange(*ZIPF_RANKS)
    ranks = ranks[ranks <= np.count_nonzero(ordered)]
    return -float(np.polyfit(np.log(ranks), np.log(ordered[ranks - 1]), 1)[0]) if len(ranks) > 1 else 0.0


def nearest(values: torch.Tensor, index: int) -> list[int]:
    """Return the indices of the values `(V, n)` that are nearest to the one at `index`, without itself."""
    order = (values - values[index]).norm(dim=-1).argsort(stable=True)
    return order[order != index][:NEIGHBOURS].tolist()


def family(coarse: np.ndarray, counts: np.ndarray, index: int) -> list[int]:
    """Return the indices of the other tokens with the same one of coarse codes `(V,)`, by decreasing `counts`
    `(V,)`."""
    members = np.flatnonzero((coarse == coarse[index]) & (np.arange(len(coarse)) != index))
    return members[np.argsort(-counts[members], kind="stable")].tolist()


def shown(spellings: Sequence[bytes], others: dict[int, list[int]]) -> dict[str, list[str]]:
    """Return the pieces and, for each, the others, in the form of [`show`]."""
    return {show(spellings[i]): [show(spellings[j]) for j in ones] for i, ones in others.items()}


def digit_shares(digits: np.ndarray, levels: Sequence[int], uses: np.ndarray | None) -> list[list[float]]:
    """Return the share of each value in each column of digits `(V, n)`, weighted by `uses` `(V,)` if there are any."""
    counts = [np.bincount(column, uses, minlength=n).astype(float) for column, n in zip(digits.T, levels, strict=True)]
    return [(count / max(count.sum(), 1)).round(6).tolist() for count in counts]


def mean_edits(spellings: Sequence[bytes], others: dict[int, list[int]]) -> float:
    """Return the mean, over pairs of a piece and one of its others, of the number of edits between them divided by the
    number of bytes of the longer one."""
    ratios = [
        edits(spellings[piece], spellings[other]) / max(len(spellings[piece]), len(spellings[other]))
        for piece, ones in others.items()
        for other in ones
    ]
    return sum(ratios) / max(len(ratios), 1)


def edits(one: bytes, other: bytes) -> int:
    """Return the Levenshtein distance of two byte strings."""
    above = list(range(len(other) + 1))
    for i, byte in enumerate(one, 1):
        line = [i]
        for j, beside in enumerate(other, 1):
            line.append(min(above[j] + 1, line[-1] + 1, above[j - 1] + (byte != beside)))
        above = line
    return above[-1]


def show(piece: bytes) -> str:
    """Return a piece as Markdown code, with visible spaces and control characters."""
    characters = piece.decode("utf-8", "backslashreplace")
    text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in characters)
    text = text.replace(" ", "␣").replace("|", "¦")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def new_figure(columns: int, width: float, height: float) -> tuple[Any, Any]:
    """Return a figure that needs no display, and its axes side by side `(1, columns)`, of a size in inches."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)


def save_figure(figure: Any, path: Path) -> None:
    """Save a figure and close it."""
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_use(use: Sequence[Sequence[int]], tokens: float, path: Path) -> None:
    """Plot the use by rank, and Zipf's law for the same number of tokens."""
    figure, axes = new_figure(1, 6, 4)
    rank, times = np.array(use).T
    axes[0, 0].loglog(rank, np.maximum(times, 0.5), marker=".", label="bytes and pieces")
    axes[0, 0].loglog(rank, tokens / (rank * np.log(rank[-1])), "--", color="grey", label="Zipf: times · rank constant")
    axes[0, 0].set(xlabel="rank", ylabel="times used (0 drawn at 0.5)")
    axes[0, 0].legend(fontsize=8)
    save_figure(figure, path)


def plot_digits(digits: dict[str, list[list[float]]], path: Path) -> None:
    """Plot the share of each digit value in each dimension, over the vocabulary and over the text."""
    dimensions = len(next(iter(digits.values())))
    figure, axes = new_figure(dimensions, 1.8 * dimensions, 3)
    for shift, (label, shares) in zip((-0.2, 0.2), digits.items(), strict=True):
        for dimension, (axis, column) in enumerate(zip(axes[0], shares, strict=True)):
            axis.bar(np.arange(len(column)) + shift, 100 * np.array(column), width=0.4, label=label)
            axis.set(title=f"dimension {dimension + 1}", xlabel="digit")
    axes[0, 0].set(ylabel="share (%)")
    axes[0, 0].legend(fontsize=7)
    save_figure(figure, path)
