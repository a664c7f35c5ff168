"""Short trainings of every architecture; run by test_two_processes.py in one process, and here in each of two.

train_each_architecture.py FOLDER [PART_OF_A_NAME ...]
"""

import gc
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from architectures import ARCHITECTURES, Case, loss_terms
from training_setup import make_trainer

from latentlm.training import LatentTrainer

TRAININGS = {f"{row.name}-{variant}": Case(row, variant) for row in ARCHITECTURES for variant in row.variants}


def train(name: str, folder: Path, batch_size: int, checkpointing: bool) -> LatentTrainer:
    """Two steps of two micro-batches, each with an evaluation of a few rows (which leave one of two processes without
    any) and of many. Leaves `metrics.jsonl`, the model and, with a PID loop, its state in `folder`."""
    case = TRAININGS[name]
    rows = case.architecture.rows
    torch.manual_seed(1)
    trainer = make_trainer(
        folder,
        case.model(**case.architecture.training_fields),
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
        **case.architecture.training_arguments,
    )
    trainer.train()
    trainer.save_model()
    if hasattr(trainer, "pid"):
        (folder / "pid.json").write_text(json.dumps(trainer.pid.state()["attributes"]))
    return trainer


@torch.no_grad()
def trainings() -> Iterator[tuple[str, bool]]:
    """One variant of each architecture for each set of named losses, with gradient checkpointing, and the typical one
    also without. Nothing else that a variant changes is shared by processes: that its losses add up over parts of a
    batch, and that every parameter gets a gradient, is tested for all of them in one process."""
    for row in ARCHITECTURES:
        trained = set()
        for variant in dict.fromkeys([row.typical, *row.variants]):
            case = Case(row, variant)
            losses = frozenset(loss_terms(case.model().train()(**case.batch())))
            if losses not in trained and "gradient_checkpointing" not in row.exceptions:
                yield f"{row.name}-{variant}", True
            trained.add(losses)
        yield f"{row.name}-{row.typical}", False


if __name__ == "__main__":
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    torch.set_num_threads(1)
    gc.freeze()  # every training collects garbage several times: what is imported need not be looked through
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
