"""EncodZall: packed against one word a row and against distinct words; training and embedding against peers.

    python benchmarks/encodzall.py [--config hub_configs/encodzall-xs] [--repeats 5] [--threads 2] [--bf16]
        [--only training|embedding]

The text is the documentation inside Python. The peer is transformers' T5 on bytes (ByT5's shape), as many parameters.
On one thread the processor's time is measured, the least of all repeats.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pydoc_data.topics import topics
from typing import Any
from unittest.mock import patch

import torch
from timing import machine, measured_seconds, products
from transformers import T5Config, T5ForConditionalGeneration

import latentlm
from latentlm.models import encodzall_packing
from latentlm.models.encodzall_packing import pack_batch
from latentlm.training.masking import mask_texts
from latentlm.training.noise import corrupt_texts
from latentlm.training.randomness import row_keys

BYTES = 400


def one_word_a_row(lengths: torch.Tensor, row_length: int) -> tuple[torch.Tensor, int, int]:
    """Every word padded to the longest, in a row of its own: what packing is for."""
    longest = int(lengths.max())
    return torch.arange(len(lengths)) * longest, len(lengths), longest


def texts(count: int) -> list[str]:
    text = " ".join(" ".join(topics.values()).split())
    return [text[i * BYTES : (i + 1) * BYTES - 1] for i in range(count)]


def step(model: torch.nn.Module, inputs: dict, bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def peer(parameters: int, vocab_size: int) -> T5ForConditionalGeneration:
    """ByT5's shape, encoder twice as deep as the decoder, as wide as size xs."""
    sizes = {"d_model": 256, "d_kv": 64, "num_heads": 4, "feed_forward_proj": "gated-gelu", "vocab_size": vocab_size}
    best = min(
        range(256, 4096, 32),
        key=lambda d_ff: abs(8 * 4 * 256**2 + 6 * 3 * 256 * d_ff + vocab_size * 512 - parameters),
    )
    config = T5Config(**sizes, d_ff=best, num_layers=4, num_decoder_layers=2, pad_token_id=256, eos_token_id=258)
    config.decoder_start_token_id = 257
    config.tie_word_embeddings = False
    return T5ForConditionalGeneration(config)


def time_training(model: latentlm.EncodzallForMaskedDenoising, options: argparse.Namespace) -> None:
    """A training step beside its peers, and how far the collator keeps ahead of it."""
    tokenizer = latentlm.EncodzallTokenizer()
    other = peer(model.num_parameters(), model.config.vocab_size)
    print(f"{model.num_parameters():,} parameters, the peer {other.num_parameters():,}")

    # Training: a step on 8 texts of 400 bytes, everything trained.
    inputs = dict(tokenizer(texts(8), padding=True, return_tensors="pt"))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 256, -100)
    given = inputs | {"labels": labels}
    packed = step(model.train(), given, options.bf16)
    pack: Any = pack_batch
    ahead = step(model, given | model.pack(**given, bucketed=True), options.bf16)

    def every() -> None:
        with patch.object(type(model), "pack", lambda model, *args, **batch: pack(model.config, *args, **batch)):
            packed()

    def padded() -> None:
        with patch.object(encodzall_packing, "lay_words", one_word_a_row):
            every()

    flat = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}
    sides = {
        "packed": packed,
        "packed, equal words as well": every,
        "packed ahead, bucketed": ahead,
        "one word a row": padded,
        "T5 on bytes": step(other.train(), flat, options.bf16),
    }
    floors = {f"{name}: its matrix products": products(sides[name]) for name in ("packed", "T5 on bytes")}
    seconds = measured_seconds(sides | floors, options.repeats)
    size = 8 * BYTES
    print(f"\n| training step, {size} bytes | kB/s | time / packed |\n|---|--:|--:|")
    for name, value in seconds.items():
        print(f"| {name} | {size / 1e3 / value:.2f} | {value / seconds['packed']:.2f} |")

    # Noise against training: strength 1, one core.
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    rows = [row[kept].numpy() for row, kept in zip(ids, real, strict=True)]

    def corrupt(function: Callable) -> Callable[[], object]:
        return lambda: function(ids, real, 1.0, row_keys(rows, 0, 1), 16)

    sides = {"masks": corrupt(mask_texts), "realistic noise": corrupt(corrupt_texts)}
    sides["packing for training"] = lambda: model.pack(**given, bucketed=True)
    noise = measured_seconds(sides, options.repeats)
    for name, value in noise.items():
        print(f"{name}: {size / 1e3 / value:.0f} kB/s, {seconds['packed'] / value:.0f} × training")


def time_embedding(model: latentlm.EncodzallForMaskedDenoising, options: argparse.Namespace) -> None:
    """Of one text and of 256; with `text_ngrams` in the configuration `text_embeds` is made too."""
    tokenizer = latentlm.EncodzallTokenizer()
    encoders: Any = model.model.eval()
    half = deepcopy(encoders).bfloat16()
    pack: Any = pack_batch
    sides = {}
    for count in (1, 256):
        batch = dict(tokenizer(texts(count), padding=True, return_tensors="pt"))

        def embed(
            encoders: Any = encoders,
            batch: dict = batch,
            distinct: bool = True,
            lay: Callable = encodzall_packing.lay_words,
            in_groups: bool = True,
        ) -> None:
            whole = nullcontext() if in_groups else patch.object(encoders, "encodes_in_groups", lambda values: False)
            with torch.no_grad(), whole, patch.object(encodzall_packing, "lay_words", lay):
                encoders(**batch, **pack(encoders.config, **batch, distinct=distinct))

        sides[f"{count}, distinct words once"] = embed
        sides[f"{count}, in bfloat16"] = partial(embed, half)
        sides[f"{count}, all rows at once"] = partial(embed, in_groups=False)
        sides[f"{count}, packed"] = partial(embed, distinct=False)
        sides[f"{count}, one word a row"] = partial(embed, distinct=False, lay=one_word_a_row)
    seconds = measured_seconds(sides, options.repeats)
    print(f"\n| embedding, texts of {BYTES} bytes | ms | kB/s |\n|---|--:|--:|")
    for name, value in seconds.items():
        print(f"| {name} | {1e3 * value:.1f} | {int(name.split(',')[0]) * BYTES / 1e3 / value:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="hub_configs/encodzall-xs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--only", choices=["training", "embedding"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(machine())
    model = latentlm.EncodzallForMaskedDenoising(latentlm.EncodzallConfig.from_pretrained(options.config))
    if options.only != "embedding":
        time_training(model, options)
    if options.only != "training":
        time_embedding(model, options)


if __name__ == "__main__":
    main()
