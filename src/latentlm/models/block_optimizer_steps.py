"""Modules whose state moves once per optimizer step, by what training forwards gathered, whoever writes the training
loop."""

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
        """The parameter whose optimizer steps the module follows."""
        ...

    def update(self) -> None:
        """Move the state by what was gathered since the last update."""
        ...


FOLLOWERS: weakref.WeakValueDictionary[int, Follower] = weakref.WeakValueDictionary()
"""All followers, in the order of registration, so that the updates of several processes meet."""


@torch.compiler.disable
def follow_optimizer(module: Follower) -> None:
    """Call `module.update()` from now on after each step of the torch optimizer that holds the parameter
    `module.followed`. Accumulated micro-batches, and steps that a gradient scaler leaves out, are no steps."""
    FOLLOWERS[id(module)] = module
    watch_optimizers()


@functools.cache
def watch_optimizers() -> None:
    """Put a hook on all optimizers, since a model is not told which one trains it."""
    register_optimizer_step_post_hook(update_followers)


def update_followers(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Update the followers of parameters of this optimizer, which has taken a step."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for module in list(FOLLOWERS.values()):
        if id(module.followed) in held:
            module.update()
