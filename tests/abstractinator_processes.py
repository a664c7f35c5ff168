"""What one or two training processes run; started by test_abstractinator_training.py.

abstractinator_processes.py FOLDER
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from test_abstractinator import BYTES, build
from training_setup import Rows, make_trainer

if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    count = dist.get_world_size()
    trainer = make_trainer(
        Path(sys.argv[1]),
        build("two_levels", **BYTES),
        train=Rows(16),
        max_steps=2,
        optim="sgd",
        learning_rate=0.0,
        per_device_train_batch_size=8 // count,
    )
    for level in trainer.model.model.levels:
        level.quantizer.updates.fill_(1)  # the first update replaces the whole codebook
        level.quantizer.reset_after = float("inf")
    trainer.train()
    trainer.save_model()
    quantizer = trainer.model.model.levels[0].quantizer
    books = [torch.zeros_like(quantizer.codebook) for _ in range(count)]
    dist.all_gather(books, quantizer.codebook)
    assert all(torch.equal(book, books[0]) for book in books)
    dist.barrier()
    time.sleep(1)  # gloo's threads release their last tensors; destroying the group before hangs
    dist.destroy_process_group()
