"""What one or two training processes run; started by test_abstractinator_training.py through `accelerate launch`.

abstractinator_processes.py FOLDER
"""

import gc
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from architectures import LEVEL
from test_abstractinator import BYTES, build
from torch.distributed.tensor import DTensor
from training_setup import Rows, make_trainer
from transformers.distributed import DistributedConfig

from latentlm.training import LatentTrainer

FOLLOWED = [LEVEL | {"target_segment_length": 3.0, "num_codes": 64}, LEVEL | {"num_codes": 64}]
"""Levels all of whose statistics move, with codebooks that a step fills in part."""
REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (5, {"fixed_code_steps": 0}),
    "fixed_codes": (3, {}),
    "checkpointed": (5, {"gradient_checkpointing": True}),
    "reentrant": (5, REENTRANT),
    "fsdp": (5, {"save_only_model": True, "sample_prompts": 1, "sample_new_tokens": 4}),
}
"""Held-out rows, of which the second process has one or none at all, and training arguments."""


def make_model():
    return build("two_levels", levels=FOLLOWED, **BYTES)


def sharded_model(folder: Path):
    """Over the two processes (FSDP2)."""
    if dist.get_rank() == 0:
        make_model().save_pretrained(folder)
    dist.barrier()
    model = type(make_model()).from_pretrained(folder, distributed_config=DistributedConfig(fsdp_size=2))
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def take_steps(folder: Path, model: Any, held_out: int, arguments: dict[str, Any], processes: int) -> LatentTrainer:
    """Two steps of eight rows, with evaluations; weights and metrics are left in `folder`."""
    torch.manual_seed(3)
    trainer = make_trainer(
        folder,
        model,
        train=Rows(16),
        evaluation=Rows(held_out, seed=1),
        max_steps=2,
        optim="sgd",
        learning_rate=0.01,
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4 // processes,
        **arguments,
    )
    for level in trainer.model.model.levels:
        level.quantizer.reset_after = 0.5
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    torch.set_num_threads(1)
    gc.freeze()  # every training collects garbage several times: not among what is imported
    for name, run in RUNS.items():
        folder = Path(sys.argv[1]) / name
        model = sharded_model(folder / "saved") if name == "fsdp" else make_model()
        take_steps(folder, model, *run, processes=2)
        for tensor in (*model.buffers(), *(p for p in model.parameters() if not isinstance(p, DTensor))):
            parts = [torch.zeros_like(tensor) for _ in range(2)]
            dist.all_gather(parts, tensor.detach())
            assert torch.equal(*parts)
    dist.barrier()
    time.sleep(1)  # gloo's threads release their last tensors; destroying the group before hangs
    dist.destroy_process_group()
