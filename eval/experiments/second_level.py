"""The second level of the Abstractinator, trained on the codes of a first level that stays as it is.

    OMP_NUM_THREADS=1 python eval/experiments/second_level.py ENTRY [ENTRY ...] [--bytes N] [--level_1 FOLDER]

Level 1 is that of a finished model of one level, by default of hub_configs/abstractinator-wikitext2. Its codes and
vectors of all of WikiText-2 are found once, in rows of `ROW` bytes, and kept below `--folder`; a level on them alone
sees a quarter of the places and needs no expander of bytes. A run goes on where it was stopped. Each entry leaves a
record in eval/records/second-level and, below `--folder`, a model of two levels that can be trained on.
"""

import argparse
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from context_cost import count_operations
from entries import read_list
from records import REPOSITORY, RUN, Record, circumstances, corpora, count_parameters, curves, write_record
from texts import prepare_text, read_documents
from torch import nn
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from latentlm import AbstractinatorConfig, AbstractinatorForCausalLM
from latentlm.evaluation.ngram import NGram, choose_order
from latentlm.models.abstractinator_base import Pyramid
from latentlm.models.abstractinator_level import Compressed, Cut
from latentlm.models.abstractinator_losses import entropy_nats
from latentlm.models.block_ngram_embedding import NgramEmbedding
from latentlm.models.block_quantization import code_usage, prefix_keys
from latentlm.models.block_segmentation import segment_index
from latentlm.models.configuration_abstractinator import LevelConfig
from latentlm.training.abstractinator import FIRST_SHARE, load_parts
from latentlm.training.muon import make_muon

PAGE = "second-level"
LEVEL_1 = REPOSITORY / "hub_configs" / "abstractinator-wikitext2"
ALL_BYTES = 10797148  # of WikiText-2's training text
ROW = 1024  # ids
CHUNK = 512  # rows to a file
BATCH = 8  # rows to a step, some 2,080 codes
FIXED_CODE_STEPS = 50  # as `fixed_code_steps` of the trainer
CHECKPOINT_STEPS = 50
OPTIMIZER = SimpleNamespace(
    learning_rate=4e-3,
    muon_learning_rate=2.5e-3,
    muon_momentum=0.95,
    weight_decay=0.1,
    adam_beta1=0.9,
    adam_beta2=0.95,
    adam_epsilon=1e-8,
)  # the track's
LEVEL = {
    "num_entropy_layers": 1,
    "num_compressor_layers": 1,
    "num_expander_layers": 2,
    "shares_trunk": True,
    "num_codes": 1024,
    "commitment": 0.25,
    "codebook_decay": 0.95,
    "delta": 0.3,
    "target_segment_length": 3.0,
    "max_segment_length": 12,
}


@dataclass(frozen=True)
class Entry:
    """Args:
    label: how tables call it.
    level: what differs from `LEVEL`; None for no second level, a top model alone.
    num_top_layers: of the language model on the last codes.
    words: whether segments are of two words each, in place of what the entropy says.
    vectors: whether a top model alone reads the vectors of level 1 in place of its codes, as level 2 does.
    ngrams: whether a top model alone adds embeddings of n-grams of codes, those of `NGRAMS`, as level 2 can.
    """

    label: str
    level: dict[str, Any] | None
    num_top_layers: int = 2
    words: bool = False
    vectors: bool = False
    ngrams: bool = False


NGRAMS = {"ngram_embedding": [2, 3], "ngram_buckets": 8192}
FIXED = {"delta": 1e9, "target_segment_length": None}
ENTRIES = {
    "vq": Entry("level 2, 1,024 codes", {}),
    "flat": Entry("no level 2: five layers on the codes of level 1", None, 5),
    "flat-shallow": Entry("no level 2: two layers on the codes of level 1", None, 2),
    "flat-vectors": Entry("no level 2: five layers on the vectors of level 1", None, 5, vectors=True),
    "flat-ngrams": Entry("no level 2: five layers on embeddings of 1, 2 and 3 codes", None, 5, ngrams=True),
    "fixed": Entry("level 2, three codes to a segment by rule", {**FIXED, "max_segment_length": 3}),
    "words": Entry(
        "level 2, two words to a segment by rule", {"target_segment_length": None, "max_segment_length": 64}, words=True
    ),
    "continuous": Entry("level 2, vectors in place of codes", {"quantizer": "none"}),
    "fsq": Entry("level 2, FSQ of 1,000 codes", {"quantizer": "fsq", "fsq_levels": [8, 5, 5, 5]}),
    "ngrams": Entry("level 2, embeddings of 1, 2 and 3 codes", NGRAMS),
}


# ---- Codes of the first level ----


@dataclass
class Codes:
    """Level 1's codes of N rows of text, one row after the other.

    Attributes:
        lengths: `(N,)` codes of each row.
        codes: `(M,)`.
        vectors: `(M, D)`, float16, before quantization.
        after_space: `(M,)`, bool, whether the bytes of a code end with white space.
        num_bytes: that the rows predict.
        given_nats: of these bytes given their codes.
    """

    lengths: np.ndarray
    codes: np.ndarray
    vectors: np.ndarray
    after_space: np.ndarray
    num_bytes: int
    given_nats: float

    @property
    def starts(self) -> np.ndarray:
        return self.lengths.cumsum() - self.lengths

    def batch(self, rows: np.ndarray) -> "Batch":
        """Rows of these numbers, padded."""
        size = int(self.lengths[rows].max())
        codes = torch.zeros(len(rows), size, dtype=torch.long)
        vectors = torch.zeros(len(rows), size, self.vectors.shape[1])
        after_space = torch.zeros(len(rows), size, dtype=torch.bool)
        for i, row in enumerate(rows):
            place = slice(int(self.starts[row]), int(self.starts[row] + self.lengths[row]))
            count = place.stop - place.start
            codes[i, :count] = torch.from_numpy(self.codes[place].astype(np.int64))
            vectors[i, :count] = torch.from_numpy(self.vectors[place].astype(np.float32))
            after_space[i, :count] = torch.from_numpy(self.after_space[place])
        return Batch(codes, vectors, after_space, torch.from_numpy(self.lengths[rows]))

    @property
    def history(self) -> np.ndarray:
        """`(M,)` codes of the same row before each."""
        return np.arange(len(self.codes)) - np.repeat(self.starts, self.lengths)


@dataclass
class Batch:
    """R rows of at most S codes: `(R, S)`, `(R, S, D)`, `(R, S)` and `(R,)`, as in [`Codes`]."""

    codes: torch.Tensor
    vectors: torch.Tensor
    after_space: torch.Tensor
    lengths: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        return torch.arange(self.codes.shape[1]) < self.lengths.unsqueeze(1)


def digest_of(level_1: Path) -> str:
    """What tells a level 1 from others, whose codes differ: a short digest of its weights and configuration."""
    digest = hashlib.sha256()
    for name in (SAFE_WEIGHTS_NAME, CONFIG_NAME):
        digest.update((level_1 / name).read_bytes())
    return digest.hexdigest()[:8]


def rows_of_text(text: str, model: Any) -> list[np.ndarray]:
    """Rows of ids in which each byte is predicted once: they share one id."""
    config = model.config
    ids = np.concatenate(([config.bos_token_id], np.frombuffer(text.encode(), np.uint8), [config.eos_token_id]))
    return [ids[start : start + ROW].astype(np.int64) for start in range(0, len(ids) - 1, ROW - 1)]


@torch.no_grad()
def encode(model: Any, rows: list[np.ndarray], known: bool) -> dict[str, Any]:
    """The arrays of [`Codes`] of some rows; with `known` also the nats of their bytes."""
    level = model.model.levels[0]
    lengths, codes, vectors, after_space, nats = [], [], [], [], 0.0
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        ids = torch.full((len(batch), max(map(len, batch))), model.config.pad_token_id)
        for i, row in enumerate(batch):
            ids[i, : len(row)] = torch.from_numpy(row)
        sizes = torch.tensor([len(row) for row in batch])
        compressed = level.compress(ids.unsqueeze(-1), None, sizes, model.model.ends_text(ids))
        if known:
            own = level.code_rows(compressed.quantized.vectors)
            nats += model.nats_given(compressed, {"own": own})["own"].double().sum().item()
        for i, (row, count) in enumerate(zip(batch, compressed.segments.count.tolist(), strict=True)):
            lengths.append(count)
            codes.append(compressed.quantized.codes[i, :count, 0].numpy().astype(np.int16))
            vectors.append(compressed.vectors[i, :count].numpy().astype(np.float16))
            ends = np.append(np.flatnonzero(np.diff(compressed.segments.index[i, : len(row)].numpy())), len(row) - 1)
            after_space.append(np.isin(row[ends], (ord(" "), ord("\n"))))
    return {
        "lengths": np.array(lengths),
        "codes": np.concatenate(codes),
        "vectors": np.concatenate(vectors),
        "after_space": np.concatenate(after_space),
        "num_bytes": np.array(sum(len(row) - 1 for row in rows)),
        "given_nats": np.array(nats),
    }


def read_codes(model: Any, text: Path, folder: Path, known: bool, limit: int | None = None) -> Codes:
    """The codes of a text, of its first `limit` bytes if given; those that are not below `folder` are made."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of_text("".join(read_documents(text)), model)[: math.ceil(limit / (ROW - 1)) if limit else None]
    parts = []
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        path = folder / f"{start:06d}-{len(some)}.npz"
        if not path.exists():
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, **encode(model, some, known))
            partial.rename(path)
            print(path, flush=True)
        with np.load(path) as content:
            parts.append(dict(content))
    joined = {
        name: np.concatenate([part[name] for part in parts]) for name in ("lengths", "codes", "vectors", "after_space")
    }
    return Codes(
        **joined,
        num_bytes=int(sum(part["num_bytes"] for part in parts)),
        given_nats=float(sum(part["given_nats"] for part in parts)),
    )


# ---- The level above ----


def make_model(run: Path, entry: Entry, seed: int) -> AbstractinatorForCausalLM:
    """A model of two levels, or of one, whose first level is that of a run; the others begin anew."""
    config = AbstractinatorConfig.from_pretrained(run)
    levels = [*config.levels[:1]] + ([] if entry.level is None else [LEVEL | entry.level])
    changed = {"levels": levels, "num_top_layers": entry.num_top_layers, "max_position_embeddings": ROW}
    changed["top_head"] = "continuous" if levels[-1].get("quantizer") == "none" else "categorical"
    torch.manual_seed(seed)
    model = AbstractinatorForCausalLM(AbstractinatorConfig(**{**config.to_dict(), **changed}))
    load_parts(model, run, "run", ["model.levels.0."])
    return model


@dataclass
class Sums:
    """Nats of a batch, summed over its codes, and what is counted.

    Attributes:
        nats: `next_code` with predicted memory, `entropy` of the entropy model, `given` the codes of level 2, `top` of
            those codes.
        vq: their loss, each as often as it has codes of level 1.
        counts: `(K,)` uses of level 2's codes, or None.
        segments, symbols, longest: segments of level 2, their symbols, and how many of them have the greatest length.
    """

    nats: dict[str, torch.Tensor]
    vq: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    segments: int = 0
    symbols: int = 0
    longest: int = 0


class Upper:
    """What is above the first level of a model: it reads codes and vectors in place of bytes."""

    def __init__(
        self, model: AbstractinatorForCausalLM, words: bool = False, vectors: bool = False, ngrams: bool = False
    ):
        self.model, self.first, self.vectors = model, model.model.levels[0], vectors
        self.whole = model.model.levels
        self.first.requires_grad_(False).eval()
        self.level = self.whole[1] if len(self.whole) > 1 else None
        if self.level is not None:
            model.model.levels = self.whole[1:]  # all that follows works on these
        self.after_space: torch.Tensor | None = None
        self.ngrams: NgramEmbedding | None = None
        if ngrams:
            config = SimpleNamespace(**vars(LevelConfig(**NGRAMS)), hidden_size=model.config.hidden_size)
            self.ngrams = NgramEmbedding(config)
            self.ngrams.table.initialize_parameters()
            model.model.top.embed_ngrams = self.ngrams  # pyright: ignore[reportOptionalMemberAccess]
        if words and self.level is not None:
            self.by_entropy: Callable[..., Cut] = self.level.cut
            self.level.cut = self.by_words  # pyright: ignore[reportAttributeAccessIssue]

    def by_words(self, *arguments: Any) -> Cut:
        """Where the level cuts, if two words are a segment."""
        cut, after_space = self.by_entropy(*arguments), self.after_space
        assert after_space is not None
        opens = torch.zeros_like(cut.segments.opens)
        opens[:, 2:] = after_space & (after_space.cumsum(1) % 2 == 0)
        opens[:, 0] = True
        cut.segments.opens, cut.segments.index = opens, segment_index(opens)
        return cut

    def save(self, folder: Path) -> None:
        self.model.model.levels = self.whole
        self.model.save_pretrained(folder)

    def read(self, batch: Batch, train_codes: bool = True, known: bool = True) -> Pyramid:
        """The pyramid above the codes."""
        level = self.level
        assert level is not None
        codes = nn.functional.pad(batch.codes, (1, 0), value=level.alphabet.begin)
        begin = level.begin(codes.new_zeros(len(codes), 1))
        keys = prefix_keys(codes) if level.training and torch.is_grad_enabled() else None
        self.after_space = batch.after_space
        vectors = torch.cat((begin, batch.vectors.to(begin.dtype)), 1)
        closes = torch.zeros_like(codes, dtype=torch.bool)
        compressed = level.compress(codes.unsqueeze(-1), vectors, batch.lengths + 1, closes, keys)
        if not train_codes:
            compressed.quantized = compressed.quantized.with_zero_gradient()
        return self.model.model.expand_rows([compressed], known)

    def sums(self, batch: Batch, train_codes: bool = True) -> Sums:
        model = self.model
        if self.level is None:
            top: Any = model.model.top
            embedded = self.first.quantizer.embed(batch.codes.unsqueeze(-1))
            rows = self.first.code_rows(batch.vectors if self.vectors else embedded)
            if self.ngrams is not None:
                depth = torch.arange(batch.codes.shape[1]).unsqueeze(0)
                rows = rows + self.ngrams(batch.codes, depth)
            nats = top.losses(top(rows).states[:, :-1], batch.codes.unsqueeze(-1), rows)
            return Sums({"next_code": nats.where(batch.real, 0).sum()})
        pyramid = self.read(batch, train_codes)
        compressed: Compressed = pyramid.levels[0]
        nats = model.code_nats(pyramid)
        assert nats.levels is not None and nats.top is not None
        real = compressed.segments.real.float()
        ahead = nn.functional.pad(real[:, 1:], (0, 1))
        next_code = self.level.head.losses(pyramid.states[0][:, :-1], compressed.symbols[:, 1:])
        sums = {
            "next_code": (next_code * ahead[:, :-1]).sum(),
            "entropy": entropy_nats(self.level, compressed, ahead),
            "given": nats.levels[0].sum(),
            "top": nats.top.sum(),
        }
        loss, exists = compressed.quantized.loss, compressed.exists
        lengths = compressed.segments.totals(torch.ones_like(compressed.segments.index[:, :-1]), exists.shape[1])
        counts = None
        if loss is not None or self.level.level_config.quantizer == "fsq":
            uses = torch.zeros(self.level.quantizer.num_codes, dtype=torch.long)  # pyright: ignore[reportArgumentType, reportCallIssue]
            counts = uses.index_add(
                0, compressed.quantized.codes[..., 0].clamp(min=0).flatten(), exists.long().flatten()
            )
        return Sums(
            sums,
            None if loss is None else (loss * compressed.weights(ahead)).sum(),
            counts,
            int(exists.sum()),
            int(compressed.segments.lengths.sum()),
            int((lengths == self.level.level_config.max_segment_length).sum()),
        )


def losses(sums: Sums, num_codes: int, next_scale: float) -> torch.Tensor:
    """As the model weighs them: all 1, that of the next code rising."""
    total = torch.stack([value * (next_scale if name == "next_code" else 1) for name, value in sums.nats.items()]).sum()
    return (total if sums.vq is None else total + sums.vq) / num_codes


def ordered_rows(codes: Codes, seed: int) -> Iterator[np.ndarray]:
    """The rows of each step, once each; the few that would not fill a step are left out."""
    order = np.random.default_rng(seed).permutation(len(codes.lengths))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        yield order[start : start + BATCH]


def train(upper: Upper, codes: Codes, seed: int, checkpoint: Path) -> list[dict[str, Any]]:
    """Read all codes once; what is logged."""
    model, log = upper.model, []
    decayed = [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    optimizer = make_muon(model, decayed, OPTIMIZER)
    batches = list(ordered_rows(codes, seed))
    steps, warm_up, begun, seconds = len(batches), max(len(batches) // 20, 1), 0, 0.0
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up))
    )
    state = [model, optimizer, schedule]
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        for part, content in zip(state, saved["state"], strict=True):
            part.load_state_dict(content)
        begun, log, seconds = saved["step"], saved["log"], saved["seconds"]
    model.train()
    started, recent = time.process_time(), []
    for step in range(begun, steps):
        batch = codes.batch(batches[step])
        count = int(batch.lengths.sum())
        with torch.autocast("cpu", torch.bfloat16):
            scale = FIRST_SHARE + (1 - FIRST_SHARE) * min(1.0, step / max(steps // 10, 1))
            sums = upper.sums(batch, train_codes=step >= FIXED_CODE_STEPS)
            loss = losses(sums, count, scale if upper.level is not None else 1.0)
        loss.backward()
        if step < FIXED_CODE_STEPS:
            for parameter in model.model.code_parameters():
                parameter.grad = None
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append({name: value.item() / count / math.log(2) for name, value in sums.nats.items()})
        if (step + 1) % 50 == 0 or step + 1 == steps:
            means = {name: float(np.mean([one[name] for one in recent])) for name in recent[0]}
            passed = seconds + time.process_time() - started
            log.append({"step": step + 1, "seconds": passed, **means, **usage(sums)})
            recent = []
            print(time.strftime("%H:%M:%S"), {name: round(value, 3) for name, value in log[-1].items()}, flush=True)
        if (step + 1) % CHECKPOINT_STEPS == 0:
            states = [part.state_dict() for part in state]
            content = {
                "state": states,
                "step": step + 1,
                "log": log,
                "seconds": seconds + time.process_time() - started,
            }
            torch.save(content, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").rename(checkpoint)
    return log


def usage(sums: Sums) -> dict[str, float]:
    """Of level 2's segments and codes."""
    if not sums.segments:
        return {}
    result = {"length": sums.symbols / sums.segments, "longest_share": sums.longest / sums.segments}
    if sums.counts is not None:
        result["perplexity"], result["codes_used"] = code_usage(sums.counts)
    return result


@torch.no_grad()
def evaluate(upper: Upper, codes: Codes) -> dict[str, float]:
    """Bits of a code of level 1 of held-out text, and what level 2 makes of them."""
    upper.model.eval()
    nats: dict[str, float] = {}
    total = Sums({})
    for start in range(0, len(codes.lengths), 2 * BATCH):
        sums = upper.sums(codes.batch(np.arange(start, min(start + 2 * BATCH, len(codes.lengths)))))
        for name, value in sums.nats.items():
            nats[name] = nats.get(name, 0.0) + value.item()
        total.segments, total.symbols = total.segments + sums.segments, total.symbols + sums.symbols
        total.longest += sums.longest
        if sums.counts is not None:
            total.counts = sums.counts if total.counts is None else total.counts + sums.counts
    coded = upper.level is None or total.counts is not None
    if not coded:
        del nats["top"]  # squared errors
    metrics = {f"{name}_bits": value / len(codes.codes) / math.log(2) for name, value in nats.items()}
    # Two parts: the codes of the last level, what is below given them, and the bytes given the codes of level 1.
    if coded:
        two_part = nats["next_code"] if upper.level is None else nats["top"] + nats["given"]
        metrics["two_part_bits"] = two_part / len(codes.codes) / math.log(2)
        metrics["two_part_bits_per_byte"] = (two_part + codes.given_nats) / codes.num_bytes / math.log(2)
    batch = codes.batch(np.arange(BATCH))
    with count_operations() as operations:
        if upper.level is None:
            upper.sums(batch)
        else:
            upper.level.head.digit_logits(upper.read(batch, known=False).states[0], None, 0)
    metrics["mflop_a_code"] = operations.get_total_flops() / int(batch.lengths.sum()) / 1e6
    if hasattr(upper.level, "delta"):
        metrics["delta"] = float(upper.level.delta)  # pyright: ignore[reportOptionalMemberAccess]
    return metrics | usage(total)


def count_yardsticks(training: Codes, held_out: Codes, num_codes: int) -> dict[str, float]:
    """Bits of a held-out code by counts of the training text: of single codes, and of n-grams within a row."""
    ids, history = training.codes.astype(np.int64), training.history
    order = choose_order(num_codes, ids, history)
    orders = NGram(num_codes, order).fit(ids, history).by_order(held_out.codes.astype(np.int64), held_out.history)
    bits = [-np.log2(probabilities).mean() for probabilities in orders]
    return {
        "uniform_bits": math.log2(num_codes),
        "unigram_bits": bits[0],
        "ngram_bits": bits[-1],
        "ngram_order": float(order),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="+", choices=ENTRIES, metavar="ENTRY", help=f"of {', '.join(ENTRIES)}")
    parser.add_argument("--level_1", type=Path, default=LEVEL_1, help="folder of a model of one level")
    parser.add_argument("--text", type=Path, default=corpora(), help="folder of the corpora")
    parser.add_argument("--bytes", type=int, help="of training text; all of it by default")
    parser.add_argument("--held_out_bytes", type=int, help="of the text to score; all of it by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "experiments" / PAGE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    one_level: Any = AbstractinatorForCausalLM.from_pretrained(options.level_1, dtype=torch.float32).eval()
    symbols = one_level.model.levels[0].quantizer
    if one_level.config.levels[0]["quantizer"] not in ("vq", "fsq") or symbols.num_codes > np.iinfo(np.int16).max:
        parser.error(f"--level_1 {options.level_1}: its codes must be single numbers below 32,768 (vq or fsq).")
    text = prepare_text(read_list("track"), ALL_BYTES, options.text.resolve(), options.folder / "text")["result"]
    texts = {name: Path(text[name]) for name in ("dataset", "validation_dataset")}
    level_1 = digest_of(options.level_1)
    folders = {name: options.folder / f"{path.stem}-{level_1}" for name, path in texts.items()}
    held_out = read_codes(
        one_level, texts["validation_dataset"], folders["validation_dataset"], True, options.held_out_bytes
    )
    training = read_codes(one_level, texts["dataset"], folders["dataset"], False, options.bytes)
    counts = count_yardsticks(training, held_out, one_level.model.levels[0].quantizer.num_codes)
    # What the model of one level says of its own codes, for which its last part was trained along.
    counts["one_level_bits"] = evaluate(Upper(one_level), held_out)["next_code_bits"]
    print({name: round(value, 3) for name, value in counts.items()}, flush=True)
    below = "" if options.level_1.resolve() == LEVEL_1 else "-" + options.level_1.name.removesuffix(f"-{options.seed}")
    suffix = below + ("" if options.bytes is None else f"-{options.bytes}")
    scored = "" if options.held_out_bytes is None else f"-scored-{options.held_out_bytes}"
    tokens = int(sum(training.lengths[rows].sum() for rows in ordered_rows(training, options.seed)))
    for name in options.entries:
        started, entry = time.perf_counter(), ENTRIES[name]
        out = options.folder / f"{name}{suffix}{scored}-{level_1}-{options.seed}"
        if (out / "config.json").exists():
            continue
        out.mkdir(exist_ok=True)
        upper = Upper(make_model(options.level_1, entry, options.seed), entry.words, entry.vectors, entry.ngrams)
        parameters = count_parameters(nn.ModuleList(part for part in (upper.level, upper.model.model.top) if part))
        log = train(upper, training, options.seed, out / "checkpoint.pt")
        metrics = counts | evaluate(upper, held_out)
        print(name, {what: round(value, 3) for what, value in metrics.items()}, flush=True)
        names = sorted({what for line in log for what in line} - {"step", "seconds"})
        record = Record(
            PAGE,
            f"level-2-{name}{suffix}",
            f"{entry.label}, {training.num_bytes / 1e6:.1f} MB" + (f", of {below[1:]}" if below else ""),
            source=RUN,
            seed=options.seed,
            learning_rate=OPTIMIZER.muon_learning_rate,
            configuration={
                "model": upper.model.config.to_diff_dict(),
                "level_1": level_1,
                "data": {
                    "dataset": texts["dataset"].name,
                    "bytes": training.num_bytes,
                    "held_out_bytes": held_out.num_bytes,
                    "context_length": ROW,
                },
                "training": vars(OPTIMIZER) | {"per_device_train_batch_size": BATCH, "bf16": True},
            },
            curve=curves(log, names),
            metrics=metrics,
            steps=log[-1]["step"],
            seconds=log[-1]["seconds"],
            wall_seconds=time.perf_counter() - started,
            parameters=parameters,
            flops=6.0 * parameters["body"] * tokens,
            flops_method="6 N D: N parameters of the body above level 1, D its codes; attention is left out",
            tokens_seen=tokens,
            bytes_seen=training.num_bytes,
            **circumstances(),
        )
        print(write_record(record), flush=True)
        upper.save(out)
        (out / "checkpoint.pt").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
