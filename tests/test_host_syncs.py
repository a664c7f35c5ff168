"""How often the host waits for an accelerator: in a training step, and in a decoding step with a cache.

CPU tensors stand for those of an accelerator. Counted is what needs a value, or a size that follows from values.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import encodzall_setup
import pytest
import test_abstractinator
import torch
from architectures import AUTOENCODER, PAD, Case, build, each_causal_case, token_ids
from encodzall_setup import each_variant, encode, labels_of
from test_abstractinator import BYTES
from torch.utils._python_dispatch import TorchDispatchMode
from training_setup import Rows, Texts, make_trainer

from latentlm import (
    EncodzallForSequenceClassification,
    EncodzallForTokenClassification,
    FSQAutoencoderConfig,
    FSQAutoencoderModel,
)
from latentlm.models import block_positions

WAITING = {
    "_local_scalar_dense",  # item(), int(), float(), bool(), if
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
    "bincount",
}
METHODS = {
    torch.Tensor: ("tolist", "numpy", "cpu", "__array__"),  # read
    torch: ("tensor",),  # copied from the host
}


class HostSyncs(TorchDispatchMode):
    """Counts, while active, what makes the host wait, by its name."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.counts[name] += 1
        elif name == "repeat_interleave" and isinstance(args[-1], torch.Tensor):
            if (kwargs or {}).get("output_size") is None:
                self.counts[name] += 1
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
            filled = name != "index" and args[2].numel() == 1  # that is a masked fill
            if masked and not filled:
                self.counts[f"{name} by a mask"] += 1
        return func(*args, **kwargs or {})

    def __enter__(self) -> "HostSyncs":
        self.stack = ExitStack()
        for owner, names in METHODS.items():
            for name in names:
                self.stack.enter_context(patch.object(owner, name, self.counted(name, getattr(owner, name))))
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self.stack.close()

    def counted(self, name: str, method: Callable) -> Callable:
        def waiting(*args: Any, **kwargs: Any) -> Any:
            self.counts[name] += 1
            return method(*args, **kwargs)

        return waiting


@pytest.fixture(autouse=True)
def _positions_as_on_an_accelerator(monkeypatch):
    """They are read and checked where that costs nothing: on the CPU, and not in compiled code."""
    monkeypatch.setattr(block_positions, "is_torchdynamo_compiling", lambda: True)


@pytest.mark.parametrize(
    ("work", "count"),
    [
        (lambda t: t.sum().item(), 1),
        (lambda t: bool((t > 0).all()), 1),
        (lambda t: 1 if t[0] > 0 else 0, 1),
        (lambda t: t[t > 0], 1),
        (lambda t: t.clone().__setitem__(t > 0, t[:2]), 1),
        (lambda t: t.clone().__setitem__(t > 0, 0.0), 0),
        (lambda t: t.nonzero(), 1),
        (lambda t: torch.where(t > 0), 1),
        (lambda t: t.unique(), 1),
        (lambda t: t.unique_consecutive(), 1),
        (lambda t: t.repeat_interleave(t.long()), 1),
        (lambda t: t.repeat_interleave(t.long(), output_size=3), 0),
        (lambda t: t.repeat_interleave(2), 0),
        (lambda t: torch.equal(t, t), 1),
        (lambda t: t.masked_select(t > 0), 1),
        (lambda t: t.tolist(), 1),
        (lambda t: t.cpu(), 1),
        (lambda t: t.numpy(), 1),
        (lambda t: torch.tensor([1.0, 2.0], device=t.device), 1),
        (lambda t: torch.full((), 2.0, device=t.device), 0),
        (lambda t: [*t], 0),
        (lambda t: torch.where(t > 0, t, 0)[t.long()], 0),
    ],
)
def test_what_waits_is_counted(work: Callable, count: int):
    values = torch.tensor([1.0, 2.0, 0.0])
    with HostSyncs() as syncs:
        work(values)
    assert syncs.counts.total() == count, syncs.counts


MASK = "transformers looks whether the mask of padding is full"
SEGMENTS = "how many segments the longest row has, for each level: without it all above works on as many as symbols"
CLOSES = "whether a segment closes, for each level: if none does, all above is skipped"
ABSTRACTINATOR = f"{SEGMENTS}; in decoding {CLOSES}"

SYNCS: dict[str, tuple[int, int, str]] = {
    "decoder_only": (0, 1, MASK),
    "ar_encoder_decoder": (0, 1, MASK),
    "parallel_encoder_decoder": (0, 1, MASK),
    "fsq": (0, 1, MASK),
    "abstractinator": (1, 1, ABSTRACTINATOR),
    "abstractinator/two_levels": (2, 2, ABSTRACTINATOR),
    "abstractinator/shared_trunk": (2, 2, ABSTRACTINATOR),
    "abstractinator/latent": (2, 2, ABSTRACTINATOR),
    "abstractinator/no_top": (2, 2, ABSTRACTINATOR),
    "abstractinator/learned_dropout": (2, 2, ABSTRACTINATOR),
    "encodzall": (0, 0, ""),
    "fsq_autoencoder": (0, 0, ""),
}
"""Of each architecture or variant: how often the host waits in a training step, on a batch as the library's data sets
and trainers make it, and at most in a decoding step with a cache; why, where it is not 0."""


def expected(architecture: str, variant: str = "") -> tuple[int, int, str]:
    return SYNCS.get(f"{architecture}/{variant}") or SYNCS[architecture]


def training_syncs(model: torch.nn.Module, inputs: dict[str, Any]) -> Counter[str]:
    """Of forward, backward and the optimizer's step, by which codebooks move."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    with HostSyncs() as syncs:
        model(**inputs).loss.backward()
        optimizer.step()
    return syncs.counts


def decoding_syncs(model: Any, **inputs: Any) -> Counter[str]:
    """Of the forward of a generation that has most, but for the first."""
    steps: list[Counter[str]] = []
    forward = model.forward

    @wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        with HostSyncs() as syncs:
            output = forward(*args, **kwargs)
        steps.append(syncs.counts)
        return output

    with patch.object(model, "forward", counted):
        model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert len(steps) == 8
    return max(steps[1:], key=Counter.total)


def test_what_waits_has_a_reason():
    assert all(bool(training or decoding) == bool(reason) for training, decoding, reason in SYNCS.values())


@each_causal_case
def test_causal_models(case: Case):
    training, decoding, _ = expected(case.architecture.name, case.variant)
    ids = token_ids(2, 12)
    packed = torch.cat([torch.arange(n) for n in (5, 1, 6)]).expand(2, -1)
    model, inputs = case.model(), {"input_ids": ids, "labels": ids, "position_ids": packed}
    pack = getattr(model, "pack", dict)  # what the trainer finds on the CPU
    counts = training_syncs(model, inputs | pack(**inputs))
    assert counts.total() == training, counts
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    counts = decoding_syncs(case.model(), input_ids=ids.masked_fill(mask == 0, PAD), attention_mask=mask)
    assert counts.total() == decoding, counts


# ---- The Abstractinator ----


@pytest.mark.parametrize("variant", ["default", "two_levels"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_the_abstractinators_documents_and_adapted_deltas(variant: str, is_packed: bool):
    """Documents that nobody has counted are, in one read: a bound would be a row for every symbol. What follows a
    target length is not read."""
    config = test_abstractinator.build(variant, **BYTES).config
    levels = [level | {"target_segment_length": 3.0} for level in config.levels]
    ids = token_ids(2, 30).masked_fill(torch.arange(30) < torch.tensor([[0], [4]]), BYTES["pad_token_id"])
    model = test_abstractinator.build(variant, levels=levels, **BYTES)
    deltas = [level.delta.clone() for level in model.model.levels]
    packed = {"position_ids": torch.cat((torch.arange(12), torch.arange(18))).expand(2, -1)} if is_packed else {}
    inputs = {"input_ids": ids, "labels": ids, **packed}
    assert torch.equal(model(**inputs).loss, model(**inputs, **model.pack(**inputs)).loss)
    counts = training_syncs(model, inputs)
    assert counts.total() == len(levels) + is_packed, counts
    assert all(level.delta != delta for level, delta in zip(model.model.levels, deltas, strict=True))


def test_the_abstractinators_trainer(tmp_path: Path):
    """It counts the documents of a batch before that leaves the CPU."""
    trainer = make_trainer(tmp_path, test_abstractinator.build("default", **BYTES), Rows(4), Rows(2))
    loader = trainer.get_train_dataloader()
    assert loader.device is None
    inputs = next(iter(loader))
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]) % 7
    inputs["position_ids"] = inputs["position_ids"].expand_as(inputs["input_ids"])
    inputs = trainer._prepare_inputs(inputs)
    model = trainer.model.train()
    with HostSyncs() as syncs:
        trainer.compute_loss(model, inputs).backward()
    assert syncs.counts.total() == 1, syncs.counts


def test_the_abstractinators_decoding_from_codes():
    """One a symbol, whether a row needs a code, and those of the prompts and the text."""
    model = test_abstractinator.build("default", **BYTES)
    totals = []
    for num_bytes in (1, 5, 9):
        with HostSyncs() as syncs:
            model.generate_bytes([b"a text", b"another one"], num_bytes)
        totals.append(syncs.counts.total())
    assert totals[1] - totals[0] == totals[2] - totals[1] == 4


# ---- EncodZall and the autoencoder ----


@each_variant
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_encodzall(variant: str, backend: str):
    training, decoding, _ = expected("encodzall", variant)
    model = encodzall_setup.build(variant, backend=backend, contrastive_loss_weight=0.5).train()
    inputs = {**encode(), "labels": labels_of(), "clean_input_ids": encode()["input_ids"]}
    counts = training_syncs(model, inputs | model.pack(**inputs, bucketed=True))
    assert counts.total() == training, counts
    counts = decoding_syncs(model.eval(), **encode())
    assert counts.total() == decoding, counts


@pytest.mark.parametrize("head", [EncodzallForSequenceClassification, EncodzallForTokenClassification])
def test_encodzall_with_labels_of_classes(head: type):
    model = encodzall_setup.build(model_class=head, num_labels=3).train()
    inputs = dict(encode())
    of_texts = head is EncodzallForSequenceClassification
    labels = torch.tensor([0, 2, 1, 1]) if of_texts else inputs["word_ids"] % 3
    counts = training_syncs(model, {**inputs, **model.pack(**inputs, bucketed=True), "labels": labels})
    assert not counts, counts


def test_encodzalls_trainer(tmp_path: Path):
    """What moves the noise with the loss is read once a step, not in it; batches leave the CPU when they are packed."""
    model = encodzall_setup.build(contrastive_loss_weight=0.5)
    trainer = make_trainer(tmp_path, model, Texts(8), Texts(2), noise_strength=0.4, noise_set_point=5.0)
    loader = trainer.get_train_dataloader()
    assert loader.device is None
    model.train()
    inputs, count = trainer._prepare_inputs(next(iter(loader))), torch.tensor(99)
    assert {"packing", "clean_packing", "spelling"} <= inputs.keys()
    with HostSyncs() as syncs:
        trainer.compute_loss(model, inputs, num_items_in_batch=count).backward()
    assert trainer.pid._sums is not None and not syncs.counts, syncs.counts


def test_the_autoencoder():
    model = build(FSQAutoencoderModel, FSQAutoencoderConfig(**AUTOENCODER), "eager")
    chunks = token_ids(6, 4, vocab_size=256)
    counts = training_syncs(model, {"input_ids": chunks, "labels": chunks})
    assert counts.total() == expected("fsq_autoencoder")[0], counts
