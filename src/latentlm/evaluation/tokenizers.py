"""Is a tokenizer lossless, and how are its vocabulary and its codes used?"""

import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from latentlm.models.block_fsq import FSQ
from latentlm.models.tokenization_fsq import FSQTokenizer
from latentlm.models.tokenization_fsq_fast import FSQTokenizerFast

SURROGATES = range(0xD800, 0xE000)
RANDOM_STRINGS = 10_000
NEIGHBOURS = 8
SAMPLES = (b" the", b"ing", b" 19", b",", b" government", b"\xc3\xa9")


def load_pair(folder: Path) -> tuple[FSQTokenizer, FSQTokenizerFast]:
    """Slow and fast tokenizer of one repository."""
    return FSQTokenizer.from_pretrained(folder), FSQTokenizerFast.from_pretrained(folder)


def check_tokenizer(folder: Path, texts: Iterable[Path] = ()) -> None:
    """Encode and decode every Unicode scalar, random bytes and the given text files with both classes, and print what
    came out.

    Raises:
        ValueError: if anything is lost, or the two classes disagree.
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
    return "".join(map(chr, (code for code in range(0x110000) if code not in SURROGATES)))


def compare(slow: FSQTokenizer, fast: FSQTokenizerFast, name: str, text: str) -> Iterator[str]:
    """The cells of one row; the text's special tokens are read as text."""
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


def analyse_tokenizer(folder: Path, text: Path, out: Path) -> None:
    """Write `analysis.md` and its figures to `out`: use of vocabulary and codes on `text`, pruning, neighbours."""
    slow, fast = load_pair(folder)
    content = text.read_text(encoding="utf-8")
    ids = np.array(fast(content, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids)
    counts = np.bincount(ids, minlength=len(fast))
    size = len(content.encode())
    coded = slow.codes >= 0
    fsq = FSQ(slow.levels)
    out.mkdir(parents=True, exist_ok=True)
    plot_use(counts[coded], out / "use.png")
    plot_digits(fsq, slow.codes[coded], counts[coded], out / "digits.png")
    lengths, table = slow.piece_table()[1], slow.vocabulary
    lines = [
        f"# {folder.name} on {text.name}",
        "",
        f"- {size:,} bytes, {len(ids):,} tokens: {size / len(ids):.3f} bytes per token",
        f"- vocabulary used: {np.count_nonzero(counts[coded]) / coded.sum():.2%} of {coded.sum():,} bytes and pieces",
        f"- tokens that are single bytes: {counts[lengths == 1].sum() / len(ids):.2%}",
        f"- codes moved to a free place: {len(table.moved) / coded.sum():.2%}; spelled exactly by the network: "
        f"{1 - len(table.inexact) / coded.sum():.2%}, {1 - counts[table.inexact].sum() / len(ids):.2%} by use",
        "",
        "Kept if the vocabulary were pruned to the most used bytes and pieces:",
        "",
        "| kept | of all tokens |",
        "| --: | --: |",
    ]
    most = np.sort(counts[coded])[::-1].cumsum()
    for size_kept in (2**k for k in range(8, 16) if 2**k <= len(most)):
        lines.append(f"| {size_kept:,} | {most[size_kept - 1] / len(ids):.2%} |")
    lines += ["", "Nearest in code space (distance between values):", "", "| piece | neighbours |", "| --- | --- |"]
    lines += [f"| {show(piece)} | {' '.join(near)} |" for piece, near in neighbours(slow, fsq)]
    lines += ["", "![Use by rank](use.png)", "", "![Digits of the codes](digits.png)", ""]
    (out / "analysis.md").write_text("\n".join(lines), encoding="utf-8")
    print(out / "analysis.md")


def show(piece: bytes) -> str:
    text = repr(piece.decode("utf-8", "backslashreplace"))[1:-1]
    return f"`{text.replace(' ', '␣').replace('|', '¦')}`"


def neighbours(tokenizer: FSQTokenizer, fsq: FSQ) -> Iterator[tuple[bytes, list[str]]]:
    """The pieces whose codes are nearest to those of a few samples."""
    import torch

    spellings = tokenizer.vocabulary.spellings
    values = fsq.values(fsq.digits(torch.from_numpy(tokenizer.vocabulary.codes)))
    for sample in SAMPLES:
        if sample in spellings:
            index = spellings.index(sample)
            nearest = (values - values[index]).norm(dim=-1).argsort(stable=True)
            yield sample, [show(spellings[other]) for other in nearest.tolist() if other != index][:NEIGHBOURS]


def plot_use(counts: np.ndarray, path: Path) -> None:
    """Use by rank, and what the most used cover together."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ordered = np.sort(counts)[::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    rank = np.arange(1, len(ordered) + 1)
    left.loglog(rank, np.maximum(ordered, 0.5))
    left.set(xlabel="rank", ylabel="times used", title="use of bytes and pieces")
    right.semilogx(rank, 100 * ordered.cumsum() / max(ordered.sum(), 1))
    right.set(xlabel="most used bytes and pieces kept", ylabel="share of tokens (%)", title="pruning")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_digits(fsq: FSQ, codes: np.ndarray, counts: np.ndarray, path: Path) -> None:
    """How often each digit value occurs in each dimension: over the vocabulary, and over the text."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import torch

    digits = fsq.digits(torch.from_numpy(codes)).numpy()
    figure, axes = plt.subplots(1, len(fsq.levels), figsize=(1.8 * len(fsq.levels), 3), layout="constrained")
    for dimension, (axis, levels) in enumerate(zip(np.atleast_1d(axes), fsq.levels, strict=True)):
        for shift, weights, label in ((-0.2, None, "vocabulary"), (0.2, counts, "text")):
            shares = np.bincount(digits[:, dimension], weights, minlength=levels).astype(float)
            axis.bar(np.arange(levels) + shift, 100 * shares / max(shares.sum(), 1), width=0.4, label=label)
        axis.set(title=f"dimension {dimension + 1}", xlabel="digit")
    np.atleast_1d(axes)[0].set(ylabel="share (%)")
    np.atleast_1d(axes)[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
