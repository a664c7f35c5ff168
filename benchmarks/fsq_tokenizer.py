"""Speed of the FSQ tokenizer against a word-level tokenizer and the BPEs of `tokenizers`, SentencePiece and tiktoken,
all of one vocabulary size and trained on the same text; of its network; and of generation in bytes per second.

    pip install sentencepiece tiktoken
    python benchmarks/fsq_tokenizer.py TRAIN.txt HELD_OUT.txt TOKENIZER [--repeats 5] [--only generation]

TOKENIZER is a folder of `latentlm tokenizer build`. Every side encodes the lines of HELD_OUT, one core each.
"""

import argparse
import copy
import os
import resource

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


from collections.abc import Callable
from pathlib import Path

import torch
from timing import lowest_cpu_seconds, machine, median_seconds
from transformers import PreTrainedTokenizerFast

import latentlm
from latentlm import FSQTokenizer, FSQTokenizerFast
from latentlm.data.tokenizers import train_bpe
from latentlm.models.fsq_vocabulary import Segmenter


def word_level(text: str, size: int) -> PreTrainedTokenizerFast:
    """The commonest words as `tokenizers` cuts them; all others are unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([text], trainers.WordLevelTrainer(vocab_size=size, special_tokens=["<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def bpe_of(options: argparse.Namespace, size: int) -> PreTrainedTokenizerFast:
    """A BPE of the same text."""
    folder = options.cache / f"bpe-{size}"
    if not folder.exists():
        train_bpe([options.train.read_text(encoding="utf-8")], size).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def tiktoken_of(bpe: PreTrainedTokenizerFast):
    """The same BPE in tiktoken: tokens of the byte-level alphabet, ranked by their ids."""
    import tiktoken

    from latentlm.models.block_byte_pieces import from_characters

    special = set(bpe.all_special_tokens)
    ranks = {from_characters(token): index for token, index in bpe.get_vocab().items() if token not in special}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    ordered = {token: rank for rank, token in enumerate(sorted(ranks, key=ranks.__getitem__))}
    return tiktoken.Encoding("bpe", pat_str=pattern, mergeable_ranks=ordered, special_tokens={})


def sentencepiece_of(train: Path, folder: Path, size: int):
    import sentencepiece

    model = folder / "sentencepiece.model"
    if not model.exists():
        sentencepiece.SentencePieceTrainer.train(
            input=str(train),
            model_prefix=str(model.with_suffix("")),
            vocab_size=size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            num_threads=1,
            minloglevel=2,
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def encoders(options: argparse.Namespace) -> dict[str, Callable[[list[str]], list[list[int]]]]:
    text = options.train.read_text(encoding="utf-8")
    fast = FSQTokenizerFast.from_pretrained(options.tokenizer)
    slow = FSQTokenizer.from_pretrained(options.tokenizer)
    uncached = FSQTokenizer.from_pretrained(options.tokenizer, cache_size=0)
    size = len(fast)
    bpe = bpe_of(options, size)
    words = word_level(text, size)
    tik, spm = tiktoken_of(bpe), sentencepiece_of(options.train, options.cache, size)

    def call(tokenizer) -> Callable[[list[str]], list[list[int]]]:
        return lambda lines: tokenizer(lines, add_special_tokens=False, return_attention_mask=False).input_ids

    return {
        "FSQTokenizerFast": call(fast),
        "FSQTokenizer": call(slow),
        "FSQTokenizer, no cache": call(uncached),
        "word-level (tokenizers)": call(words),
        "BPE (tokenizers)": call(bpe),
        "BPE (tiktoken)": lambda lines: [tik.encode_ordinary(line) for line in lines],
        "BPE (SentencePiece)": spm.encode,
    }


def table(options: argparse.Namespace) -> None:
    lines = options.held_out.read_text(encoding="utf-8").splitlines(keepends=True)
    size = sum(len(line.encode()) for line in lines)
    sides = encoders(options)
    seconds = lowest_cpu_seconds({name: lambda f=f: f(lines) for name, f in sides.items()}, options.repeats)
    peer = seconds["word-level (tokenizers)"]
    print("\n| tokenizer | MB/s | time / word-level's | bytes per token |\n|---|--:|--:|--:|")
    for name, encode in sides.items():
        tokens = sum(map(len, encode(lines)))
        print(f"| {name} | {size / 1e6 / seconds[name]:.2f} | {seconds[name] / peer:.2f} | {size / tokens:.3f} |")


def network(options: argparse.Namespace) -> None:
    """The autoencoder alone, per chunk and in batches; neural mode; memory; int8 and bfloat16 weights."""
    tokenizer = FSQTokenizer.from_pretrained(options.tokenizer)
    model = tokenizer.autoencoder
    chunks, lengths = (torch.from_numpy(part[:-4]) for part in tokenizer.piece_table())
    codes = torch.from_numpy(tokenizer.codes[:-4])
    some = slice(1000, 1256)
    halved = {"hidden_size": 128, "deconv_channels": [128, 64, 32]}
    half = latentlm.FSQAutoencoderModel(latentlm.FSQAutoencoderConfig(levels=model.config.levels, **halved)).eval()
    sides = {
        "encode one chunk": lambda: model.encode(chunks[1000:1001], lengths[1000:1001]),
        "decode one token": lambda: model.decode(codes[1000:1001]),
        "encode 256 chunks": lambda: model.encode(chunks[some], lengths[some]),
        "decode 256 tokens": lambda: model.decode(codes[some]),
        "decode one token, half-size decoder": lambda: half.decode(codes[1000:1001]),
        "decode 256 tokens, half-size decoder": lambda: half.decode(codes[some]),
    }
    torch.set_num_threads(1)
    seconds = lowest_cpu_seconds(sides, options.repeats * 20)
    print("\n| network | ms per chunk | target |\n|---|--:|--:|")
    aims = ("≤ 0.35", "≤ 0.4", "≤ 0.05", "≤ 0.05", "", "")
    for (name, value), target in zip(seconds.items(), aims, strict=True):
        print(f"| {name} | {1000 * value / (256 if '256' in name else 1):.3f} | {target} |")

    text = options.held_out.read_bytes()[:20_000]
    neural = Segmenter(tokenizer.vocabulary, 1 << 16, neural=True, autoencoder=model)
    plain = Segmenter(tokenizer.vocabulary, 1 << 16)
    tokens = {"table": len(plain(text)), "neural": len(neural(text))}
    times = median_seconds({"neural, first time": lambda: Segmenter(tokenizer.vocabulary, 0, True, model)(text)}, 3)
    print(
        f"\n20 kB: {tokens['table']:,} tokens by the table, {tokens['neural']:,} with what the network gets right "
        f"({len(text) / 1e3 / times['neural, first time']:.0f} kB/s without its cache)"
    )
    counts = {
        name: sum(weight.numel() for part in (side.from_code, side.decoder) for weight in part.parameters())
        for name, side in (("full", model), ("half", half))
    }
    print(f"decoder: {counts['full']:,} parameters, half-size {counts['half']:,}")
    reference = model.encode(chunks, lengths)
    print("\n| weights of the encoder | MB | codes unchanged |\n|---|--:|--:|")
    for name, width, change in (
        ("float32", 4, lambda w: w),
        ("bfloat16", 2, lambda w: w.bfloat16().float()),
        ("int8, one scale per channel", 1, to_int8),
    ):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in changed.encoder.parameters():
                parameter.copy_(change(parameter))
        share = (changed.encode(chunks, lengths) == reference).double().mean().item()
        count = sum(parameter.numel() for parameter in changed.encoder.parameters())
        print(f"| {name} | {count * width / 1e6:.2f} | {share:.2%} |")


def to_int8(weight: torch.Tensor) -> torch.Tensor:
    """Rounded to 255 steps of the largest value of each output channel."""
    rows = weight.flatten(1) if weight.ndim > 1 else weight[None]
    step = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return ((rows / step).round() * step).view_as(weight)


def memory(options: argparse.Namespace) -> None:
    """Resident memory that loading adds, in a process that has imported everything."""
    before = resident()
    tokenizer = FSQTokenizerFast.from_pretrained(options.tokenizer)
    after_tokenizer = resident()
    tokenizer.autoencoder.encode(torch.zeros(1, 16, dtype=torch.uint8), torch.ones(1, dtype=torch.long))
    print(
        f"\nmemory: tokenizer {after_tokenizer - before:.0f} MB, with the network {resident() - before:.0f} MB (< 100)"
    )


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def generation(options: argparse.Namespace) -> None:
    """Text out of random models of one size, cached: tokens per second of processor time, times bytes per token on the
    held-out text."""
    text = options.held_out.read_text(encoding="utf-8")[:200_000]
    torch.set_num_threads(1)
    fast = FSQTokenizerFast.from_pretrained(options.tokenizer)
    bpe = bpe_of(options, len(fast))
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 4, "max_position_embeddings": 256}
    special = {"vocab_size": len(fast), "eos_token_id": None, "bos_token_id": 1, "pad_token_id": 0}
    models = {
        "FSQ": latentlm.FSQForCausalLM(latentlm.FSQConfig(**sizes, **special)),
        "FSQ, factorised head": latentlm.FSQForCausalLM(latentlm.FSQConfig(**sizes, **special, head="factorised")),
        "BPE": latentlm.DecoderOnlyForCausalLM(latentlm.DecoderOnlyConfig(**sizes, **special)),
    }
    prompt = fast(text[:200], return_tensors="pt").input_ids[:, :32]
    tokenizers = {name: bpe if name == "BPE" else fast for name in models}

    def write(name: str) -> Callable[[], object]:
        model = models[name].eval()
        return lambda: tokenizers[name].decode(model.generate(prompt, max_new_tokens=128, do_sample=False)[0])

    seconds = lowest_cpu_seconds({name: write(name) for name in models}, options.repeats)
    print("\n| model and tokenizer | tokens/s | bytes/token | bytes/s |\n|---|--:|--:|--:|")
    for name, value in seconds.items():
        ids = tokenizers[name](text, add_special_tokens=False, verbose=False).input_ids
        per_token = len(text.encode()) / len(ids)
        print(f"| {name} | {128 / value:.0f} | {per_token:.2f} | {128 / value * per_token:.0f} |")


PARTS = (memory, table, network, generation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--only", choices=[part.__name__ for part in PARTS], help="one part of it")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    print(machine())
    for part in PARTS:
        if options.only in (None, part.__name__):
            part(options)


if __name__ == "__main__":
    main()
