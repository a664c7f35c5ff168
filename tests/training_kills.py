"""Run a recipe again and again, each time killed with SIGKILL at another moment; started by test_training_processes.py.

    training_kills.py RECIPE RUN_FOLDER MOMENT...

Every attempt is a process of its own (forked: the imports are paid once) that runs the command line of latentlm.train.
A last attempt, not killed, must end the run.
"""

import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable

import torch

from latentlm.runs import checkpoints
from latentlm.train import main
from latentlm.training import saving, trainer


def die(*args, **kwargs) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: object, name: str, when: Callable[..., bool]) -> None:
    """Let the process die where `owner.name` is called for the first time `when` its arguments say so."""
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        if when(*args, **kwargs):
            die()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def half_an_optimizer(state, path, *args) -> bool:
    """Leaves half of the optimizer's file and says: now."""
    if str(path).endswith("checkpoint-6/optimizer.pt"):
        with open(path, "wb") as file:
            file.write(b"half")
        return True
    return False


MOMENTS: dict[str, Callable[[], None]] = {
    "first_steps": lambda: before(trainer.LatentTrainer, "training_step", lambda self, *a: self.state.global_step == 1),
    "evaluation": lambda: before(
        trainer.LatentTrainer, "prediction_step", lambda self, *a, **k: self.state.global_step == 4
    ),
    "half_an_optimizer": lambda: before(torch, "save", half_an_optimizer),
    "before_the_manifest": lambda: before(saving, "write_manifest", lambda folder, facts: facts["step"] == 6),
    "before_the_name": lambda: before(saving, "publish", lambda staging, final: final.name == "checkpoint-6"),
    "after_the_name": lambda: before(saving, "rotate", lambda folder, *a: (folder / "checkpoint-6").exists()),
    "between_checkpoints": lambda: before(
        trainer.LatentTrainer, "training_step", lambda self, *a: self.state.global_step == 8
    ),
    "while_deleting": lambda: before(checkpoints.shutil, "rmtree", lambda path, **k: "checkpoint-3" in str(path)),
    "the_finished_model": lambda: before(
        saving.os, "replace", lambda old, new: ".saving-model" in str(old) and "checkpoint" not in str(new)
    ),
}


def attempt(arguments: list[str], moment: str | None) -> int:
    """Exit status of one attempt, negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if moment is not None and moment in MOMENTS:
                MOMENTS[moment]()
            main(arguments)
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    if moment is not None and moment.startswith("random"):
        random.seed(moment)
        time.sleep(random.uniform(0.3, 2.0))
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    recipe, run_folder, *moments = sys.argv[1:]
    arguments = [recipe, "--output_dir", run_folder]
    gc.freeze()  # every training collects garbage several times: not among what is imported
    for moment in moments:
        status = attempt(arguments, moment)
        print(f"{moment}: {status}", flush=True)
        assert status == -signal.SIGKILL or (moment.startswith("random") and status == 0), (moment, status)
    assert attempt(arguments, None) == 0
