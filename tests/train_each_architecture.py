"""Short trainings of every architecture; run by test_two_processes.py in one process, and here in each of two.

train_each_architecture.py FOLDER
"""

import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import encodzall_setup
import torch
import torch.distributed as dist
from architectures import ARCHITECTURES, Case, build
from encodzall_setup import tokenizer
from torch.utils.data import Dataset
from training_setup import Rows, make_trainer

from latentlm import FSQAutoencoderConfig, FSQAutoencoderModel
from latentlm.training import LatentTrainer

TEXTS = ["words that are packed", "a", "some longer text, with a longword in it", "it ends", "two words", "x y z"]


class Texts(Dataset):
    """Clean texts with their ends, for EncodZall; each has its own number of bytes and words."""

    def __init__(self, count: int):
        texts = [TEXTS[i % len(TEXTS)] + " and more" * (i % 3) for i in range(count)]
        self.ids = tokenizer(texts, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self.ids[index]
        return {"input_ids": ids, "labels": ids.masked_fill(ids == tokenizer.pad_token_id, -100)}


class Chunks(Dataset):
    """Chunks of 1 to 4 bytes, for the autoencoder."""

    def __init__(self, count: int):
        generator = torch.Generator().manual_seed(count)
        lengths = torch.arange(count) % 4 + 1
        place = torch.arange(4)
        self.ids = torch.randint(97, 123, (count, 4), generator=generator)
        self.ids = self.ids.where(place < lengths[:, None], 256)
        self.labels = self.ids.where(place <= lengths[:, None], -100)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index], "use": torch.tensor(1.0 + index)}


def autoencoder() -> FSQAutoencoderModel:
    sizes = next(row for row in ARCHITECTURES if row.name == "fsq").sizes["autoencoder"]
    return build(FSQAutoencoderModel, FSQAutoencoderConfig(**sizes, margin_loss_weight=0.1), "eager")


def encodzall(**fields: Any) -> torch.nn.Module:
    return encodzall_setup.build(**fields)


PID = {"noise_strength": 0.4, "noise_set_point": 5.0}
TRAININGS: dict[str, tuple[Any, type[Dataset], dict[str, Any]]] = {
    f"{row.name}-{variant}": (partial(Case(row, variant).model, vocab_size=260), Rows, {})
    for row in ARCHITECTURES
    for variant in row.variants
} | {
    "encodzall-default": (partial(encodzall, contrastive_loss_weight=0.5), Texts, PID),
    "encodzall-no_word_loss": (partial(encodzall, word_loss_weight=0.0), Texts, PID),
    "encodzall-plain": (partial(encodzall, variant="plain"), Texts, {"noise": "realistic", **PID}),
    "fsq_autoencoder": (autoencoder, Chunks, {}),
}
"""Of each, what makes the model, its rows, and arguments of its trainer."""


def train(name: str, folder: Path, batch_size: int, checkpointing: bool) -> LatentTrainer:
    """Two steps of two micro-batches, each with an evaluation of a few rows (which leave one of two processes without
    any) and of many. Leaves `metrics.jsonl`, the model and, with a PID loop, its state in `folder`."""
    make, rows, arguments = TRAININGS[name]
    torch.manual_seed(1)
    trainer = make_trainer(
        folder,
        make(),
        train=rows(32),
        evaluation={"few": rows(3), "many": rows(11)},
        max_steps=2,
        optim="sgd",  # the new weights show the gradient, without Adam's division by its size
        learning_rate=1e-3,
        max_grad_norm=0.0,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=2,
        gradient_checkpointing=checkpointing,
        eval_strategy="steps",
        eval_steps=1,
        **arguments,
    )
    trainer.train()
    trainer.save_model()
    if hasattr(trainer, "pid"):
        (folder / "pid.json").write_text(json.dumps(trainer.pid.state()["attributes"]))
    return trainer


def trainings() -> Iterator[tuple[str, bool]]:
    """Every variant with gradient checkpointing, and one of each architecture without."""
    typical = {f"{row.name}-{row.typical}" for row in ARCHITECTURES} | {"encodzall-default", "fsq_autoencoder"}
    for name in TRAININGS:
        if name != "fsq_autoencoder":  # it has no layers to checkpoint
            yield name, True
        if name in typical:
            yield name, False


if __name__ == "__main__":
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    torch.set_num_threads(1)
    only = sys.argv[2:]
    for name, checkpointing in trainings():
        if only and not any(part in name for part in only):
            continue
        folder = Path(sys.argv[1]) / f"{name}-{checkpointing}"
        try:
            trainer = train(name, folder, 4, checkpointing)
            assert isinstance(trainer.model_wrapped, torch.nn.parallel.DistributedDataParallel)
        except Exception as error:
            # The other process fails as well, or waits for this one: the rest could not run.
            raise RuntimeError(f"{name}, gradient checkpointing {checkpointing}") from error
    dist.barrier()
    time.sleep(1)  # gloo's threads release their last tensors; destroying the group before hangs
    dist.destroy_process_group()
