"""How much of a vocabulary a text uses that nothing was chosen on: 32,768 tokens, ten million of them from books.

    python eval/experiments/fsq-tokenizer/use.py BOOKS      # folder of train-0.parquet to train-2.parquet

The pieces are chosen on the first file; or more of them, of which those stay that the first half of the second file
uses most. Both are measured on the rest of the second file and most of the third.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from datasets import Dataset

from latentlm.data.pieces import choose_pieces, segment
from latentlm.models.block_byte_pieces import NUM_SPECIAL_TOKENS, bytes_pattern, to_characters

SIZE = 32768
CANDIDATES = 36864


def stretches(texts: list[str]) -> Counter[bytes]:
    counted: Counter[bytes] = Counter()
    for text in texts:
        counted.update(bytes_pattern("words").findall(text.encode()))
    return counted


def uses(pieces: list[bytes], counted: Counter[bytes]) -> np.ndarray:
    """How often each byte and piece is a token, `(256 + len(pieces),)`."""
    weights = np.array(list(counted.values()), dtype=np.float64)
    return segment(pieces, list(map(to_characters, counted)), weights)[0]


def report(name: str, pieces: list[bytes], counted: Counter[bytes]) -> None:
    used = uses(pieces, counted)
    size = sum(len(stretch) * count for stretch, count in counted.items())
    print(
        f"{name}: {np.count_nonzero(used) / (SIZE - NUM_SPECIAL_TOKENS):.2%} of bytes and pieces used by "
        f"{used.sum():,.0f} tokens, {size / used.sum():.3f} bytes per token",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    folder = parser.parse_args().books
    first, second, third = (
        list(Dataset.from_parquet(str(folder / f"train-{part}.parquet"))["text"]) for part in range(3)
    )
    choosing, held_out = stretches(second[:35]), stretches(second[35:] + third[:60])
    report("chosen on the first", choose_pieces(first, SIZE).pieces, held_out)
    more = choose_pieces(first, CANDIDATES).pieces
    most_used = np.argsort(-uses(more, choosing)[256:], kind="stable")[: SIZE - 256 - NUM_SPECIAL_TOKENS]
    report(f"the most used of {CANDIDATES:,}", [more[index] for index in np.sort(most_used)], held_out)


if __name__ == "__main__":
    main()
