"""Modules that move by what training forwards gathered, once per optimizer step, whoever writes the loop."""

import functools
import weakref

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

FOLLOWERS: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
"""In the order in which they came: updates of several processes meet."""


@torch.compiler.disable
def follow_optimizer(module: nn.Module) -> None:
    """From now on call `module.update()` after each step of the torch optimizer that holds `module.followed`, a
    parameter. Accumulated micro-batches, and steps that a gradient scaler leaves out, are no steps."""
    FOLLOWERS[id(module)] = module
    watch_optimizers()


@functools.cache
def watch_optimizers() -> None:
    """A hook on all optimizers: a model is not told which one trains it."""
    register_optimizer_step_post_hook(update_followers)


def update_followers(optimizer: torch.optim.Optimizer, args, kwargs) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for module in list(FOLLOWERS.values()):
        if id(module.followed) in held:
            module.update()
