"""What two training processes run together; started by test_training_processes.py through `accelerate launch`.

training_processes.py FOLDER
"""

import gc
import json
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from training_setup import MASKED, Rows, Stream, make_model, make_trainer
from transformers.distributed import DistributedConfig

import latentlm
from latentlm.training import LatentTrainer, muon

# Plain SGD: the new weights show the gradient, without Adam's division by its size.
STEPS = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "per_device_train_batch_size": 4}
# Without AdamW's division of gradients that are nearly nothing.
MUON = {"optim": "muon", "muon_learning_rate": 0.02, "learning_rate": 0.02, "adam_epsilon": 1e-3, "weight_decay": 0.1}


def take_steps(folder: Path, model: torch.nn.Module, **arguments) -> LatentTrainer:
    """Two steps on 2 × 4 rows; weights and metrics are left in `folder`."""
    trainer = make_trainer(
        folder, model, train=Rows(8), eval_strategy="steps", eval_steps=1, sample_prompts=1, **STEPS | arguments
    )
    trainer.train()
    trainer.save_model()
    return trainer


def run_ddp(folder: Path, **arguments) -> None:
    trainer = take_steps(folder, make_model(vocab_size=260, **MASKED), **arguments)
    assert isinstance(trainer.model_wrapped, torch.nn.parallel.DistributedDataParallel)


def run_fsdp(folder: Path, **arguments) -> None:
    """The same on parameters that are sharded over the two processes (FSDP2)."""
    for vocab_size in (259, 260):
        if dist.get_rank() == 0:
            make_model(vocab_size=vocab_size, **MASKED).save_pretrained(folder / str(vocab_size))
        dist.barrier()
        model = latentlm.AREncoderDecoderForCausalLM.from_pretrained(
            folder / str(vocab_size), distributed_config=DistributedConfig(fsdp_size=2)
        )
        sharded = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
        assert len(sharded) == len(list(model.parameters()))
        if vocab_size == 259:
            with pytest.raises(ValueError, match="vocab_size 259 is not a multiple of the 2 processes"):
                take_steps(folder, model, save_only_model=True, **arguments)
        else:
            take_steps(folder, model, save_only_model=True, **arguments)


def run_resumed(folder: Path) -> None:
    """A run with dropout and two optimizers, and the same resumed in its middle."""
    for name, checkpoint in (("whole", None), ("again", folder / "whole" / "checkpoint-2")):
        model = make_model(dropout=0.1, learned_dropout="bernoulli", learned_dropout_shift=1.5)
        options = {"optim": "muon"}
        trainer = make_trainer(folder / name, model, save_strategy="steps", save_steps=2, **options)
        trainer.train(resume_from_checkpoint=checkpoint)


def run_best(folder: Path) -> None:
    """Both processes end with the best checkpoint, which is the first one here."""
    best = {"load_best_model_at_end": True, "greater_is_better": True, "save_strategy": "steps", "save_steps": 1}
    trainer = take_steps(folder, make_model(), **best)
    assert trainer.state.best_model_checkpoint == str(folder / "checkpoint-1")
    weights = load_file(folder / "checkpoint-1" / "model.safetensors")
    for name, parameter in trainer.unwrapped_model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    sharded = latentlm.AREncoderDecoderForCausalLM.from_pretrained(
        folder / "checkpoint-1", distributed_config=DistributedConfig(fsdp_size=2)
    )
    with pytest.raises(ValueError, match="load_best_model_at_end is True"):
        take_steps(folder / "sharded", sharded, save_only_model=True, **best)


def run_evaluation(folder: Path) -> None:
    """What `compute_metrics` and `predict` get: each row once, also where one process has none in its last batch."""
    folder.mkdir(exist_ok=True)
    facts = {}
    for name, count, evaluation in (("rows", 11, Rows), ("few", 10, Rows), ("stream", 11, lambda n: Stream(Rows(n)))):
        rows = Rows(count)
        trainer = make_trainer(
            folder / name,
            make_model(),
            evaluation=evaluation(count),
            options={"compute_metrics": lambda p: {"rows": len(p.predictions), "first": p.label_ids[:, 1].tolist()}},
        )
        predicted = trainer.predict(trainer.eval_dataset)
        assert predicted.label_ids.tolist() == [row["labels"].tolist() for row in rows.rows]
        metrics = trainer.evaluate()
        facts[name] = {
            "expected": [int(row["labels"][1]) for row in rows.rows],
            "seen": metrics["eval_first"],
            "losses": [metrics["eval_loss"], predicted.metrics["test_loss"]],
        }
    if dist.get_rank() == 0:
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    torch.set_num_threads(1)
    gc.freeze()  # every training collects garbage several times: not among what is imported
    folder = Path(sys.argv[1])
    run_ddp(folder / "ddp")
    run_fsdp(folder / "fsdp")
    muon.iteration_dtype = lambda device: torch.float64  # in bfloat16, rounding differs
    run_ddp(folder / "ddp_muon", **MUON)
    run_fsdp(folder / "fsdp_muon", **MUON)
    run_resumed(folder)
    run_best(folder / "best")
    (folder / "best" / "done").touch()
    run_evaluation(folder / "evaluation")
    dist.barrier()
    time.sleep(1)  # gloo's threads release their last tensors; destroying the group before hangs
    dist.destroy_process_group()
