"""Modules that move by what training forwards gathered, once per optimizer step, whoever writes the loop."""

import functools
import weakref
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook


class Follower(Protocol):
    """A module with state that moves once per optimizer step."""

    @property
    def followed(self) -> nn.Parameter:
        """The parameter whose steps it follows."""
        ...

    def update(self) -> None:
        """Move by what was gathered since the last time."""
        ...


FOLLOWERS: weakref.WeakValueDictionary[int, Follower] = weakref.WeakValueDictionary()
"""In the order in which they came: updates of several processes meet."""


@torch.compiler.disable
def follow_optimizer(module: Follower) -> None:
    """From now on call `module.update()` after each step of the torch optimizer that holds `module.followed`, a
    parameter. Accumulated micro-batches, and steps that a gradient scaler leaves out, are no steps."""
    FOLLOWERS[id(module)] = module
    watch_optimizers()


@functools.cache
def watch_optimizers() -> None:
    """A hook on all optimizers: a model is not told which one trains it."""
    register_optimizer_step_post_hook(update_followers)


def update_followers(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Update what follows a parameter of this optimizer, which has taken a step."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for module in list(FOLLOWERS.values()):
        if id(module.followed) in held:
            module.update()
