"""Tiny rows, models and trainers for the training tests; also imported by the processes they start."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

import latentlm
from latentlm.architectures import architecture
from latentlm.training import LatentTrainer
from latentlm.training.callbacks import TIMINGS

LENGTH = 24
# What sharding has to cope with: a gate of one value, and LearnedDropout with a rounding that is not drawn, so that one
# process can be compared with two.
MASKED = {"learned_dropout": "sigmoid", "learned_dropout_shift": 1.3, "mask_entropy_loss_weight": 0.5}
MASKED |= {"cross_attention_gate": True}
TOKEN_BYTES = np.array([1] * 256 + [0] * 3, dtype=np.float32)


class Rows(Dataset):
    """Rows of bytes; each row has its own number of predicted tokens, so that a mean of means is a different number."""

    def __init__(self, count: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.rows = []
        for index in range(count):
            ids = torch.randint(97, 123, (LENGTH,), generator=generator)
            labels = ids.clone()
            labels[0] = -100
            labels[LENGTH - 3 * (index % 5) :] = -100
            self.rows.append({"input_ids": ids, "position_ids": torch.arange(LENGTH), "labels": labels})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


class Texts(Dataset):
    """Clean texts with their ends, for EncodZall; each has its own number of bytes and words."""

    TEXTS = ("words that are packed", "a", "some longer text, with a longword in it", "it ends", "two words", "x y z")

    def __init__(self, count: int):
        texts = [self.TEXTS[i % len(self.TEXTS)] + " and more" * (i % 3) for i in range(count)]
        tokenizer = latentlm.EncodzallTokenizer()
        self.ids = tokenizer(texts, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
        self.labels = self.ids.masked_fill(self.ids == tokenizer.pad_token_id, -100)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


class Chunks(Dataset):
    """Chunks of 1 to 4 letters, for the autoencoder, and how often a text uses each."""

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


class Stream(IterableDataset):
    def __init__(self, rows: Rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows.rows)


def make_model(dropout: float = 0.0, **fields: Any) -> torch.nn.Module:
    torch.manual_seed(1)
    config = latentlm.AREncoderDecoderConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        max_position_embeddings=64,
        embedding_loss="mse",
        hidden_dropout=dropout,
        **{"vocab_size": 259, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258} | fields,
    )
    return latentlm.AREncoderDecoderForCausalLM(config)


def make_trainer(
    folder: Path,
    model: Any = None,
    train: Dataset | None = None,
    evaluation: Dataset | None = None,
    options: dict[str, Any] | None = None,
    **arguments: Any,
) -> LatentTrainer:
    """A trainer in `folder`, with more `options` of the constructor and `arguments` of the training."""
    defaults = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "sample_prompts": 0,
        "disable_tqdm": True,
    }
    model = make_model() if model is None else model
    trainer_class = architecture(model.config.model_type).trainer_class
    return trainer_class(
        model=model,
        args=trainer_class.arguments_class(**{**defaults, **arguments}),
        train_dataset=Rows(37) if train is None else train,
        eval_dataset=Rows(11, seed=1) if evaluation is None else evaluation,
        processing_class=latentlm.ByteTokenizer(),
        token_bytes=TOKEN_BYTES,
        **options or {},
    )


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """`metrics.jsonl` without what measures the machine."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMINGS} for line in lines]


def weights_of(trainer: LatentTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
