"""Make the tokenizers that the entries of this page compare, all of 32,768 tokens and from the same text.

    python eval/experiments/fsq-tokenizer/prepare.py PROSE.txt VALIDATION.txt [--autoencoder RUN] [--out FOLDER]

PROSE is what they are trained on. Writes to FOLDER/tokenizers: `bpe` (byte-level), `words` (whole words, others in
bytes), `fsq-words-random` and `fsq-lines-random` (pieces inside words and across spaces, random codes), and, with the
run of an autoencoder, `fsq-words` (its codes). Also the first 80 kB of VALIDATION, on which entries are evaluated.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

from latentlm import FSQTokenizerFast
from latentlm.data.pieces import choose_pieces
from latentlm.data.tokenizers import train_bpe
from latentlm.models.block_byte_pieces import byte_characters, bytes_pattern, to_characters
from latentlm.models.fsq_vocabulary import FSQVocabulary
from latentlm.models.tokenization_fsq_fast import build_pre_tokenizer
from latentlm.training.fsq_tokenizer import build

SIZE = 32768
LEVELS = [8, 8, 8, 8, 8, 5, 5, 5]
VALIDATION_BYTES = 80_000


def word_level(text: str) -> PreTrainedTokenizerFast:
    """The commonest words, with the space before them, as tokens; every other word is spelled in bytes."""
    words = Counter(bytes_pattern("words").findall(text.encode()))
    most = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))[: SIZE - 259]
    names = ["<pad>", "<bos>", "<eos>", *byte_characters(), *map(to_characters, most)]
    # A BPE without merges that may take a whole word if it knows it, and otherwise has only its bytes.
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    tokenizer.pre_tokenizer = build_pre_tokenizer("words")
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B:1", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def random_codes(text: str, boundary: str, folder: Path) -> FSQTokenizerFast:
    """The FSQ tokenizer with codes that know nothing of spelling: the control for code embeddings."""
    pieces = choose_pieces([text], SIZE, boundary).pieces
    codes = np.random.default_rng(0).permutation(np.prod(LEVELS))[: 256 + len(pieces)]
    vocabulary = FSQVocabulary(boundary, LEVELS, pieces, codes, moved=[], inexact=[])
    tokenizer = FSQTokenizerFast.from_vocabulary(vocabulary)
    tokenizer.save_pretrained(folder)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prose", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--autoencoder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/experiments/fsq-tokenizer"))
    options = parser.parse_args()
    text = options.prose.read_text(encoding="utf-8")
    held_out = options.validation.read_text(encoding="utf-8")
    folder = options.out / "tokenizers"
    made = {
        "bpe": lambda path: train_bpe([text], SIZE).save_pretrained(path),
        "words": lambda path: word_level(text).save_pretrained(path),
        "fsq-words-random": lambda path: random_codes(text, "words", path),
        "fsq-lines-random": lambda path: random_codes(text, "lines", path),
    }
    if options.autoencoder is not None:
        made["fsq-words"] = lambda path: build(options.autoencoder, path)
    options.out.mkdir(parents=True, exist_ok=True)
    lines = held_out[:VALIDATION_BYTES].rpartition("\n")[0] + "\n"
    (options.out / "validation.txt").write_text(lines, encoding="utf-8")
    for name, make in made.items():
        if not (folder / name).exists():
            make(folder / name)
        tokenizer = (FSQTokenizerFast if name.startswith("fsq") else PreTrainedTokenizerFast).from_pretrained(
            folder / name
        )
        counts = [len(tokenizer(part, add_special_tokens=False, verbose=False).input_ids) for part in (text, held_out)]
        sizes = [len(part.encode()) for part in (text, held_out)]
        print(
            f"{name}: {len(tokenizer):,} tokens; bytes per token {sizes[0] / counts[0]:.3f} on the text it is from, "
            f"{sizes[1] / counts[1]:.3f} held out",
            flush=True,
        )


if __name__ == "__main__":
    main()
