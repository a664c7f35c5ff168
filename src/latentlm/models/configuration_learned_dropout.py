"""Configuration fields and checks of LearnedDropout, for every architecture that can switch it on."""

import copy
import dataclasses
import math
from typing import Literal, Self

from huggingface_hub.dataclasses import strict

from .configuration_attention import AttentionConfig, divisors


@strict
class LearnedDropoutConfig(AttentionConfig):
    """Fields of attention and of LearnedDropout; not a model by itself.

    Arguments are those of [`AttentionConfig`], and:

    Args:
        learned_dropout: `"none"`, or how masks are rounded: `"bernoulli"` (drawn in training, M >= 0.5 in evaluation),
            `"sigmoid"` or `"sigmoid_detached"` (the same value, gradient of M).
        learned_dropout_input: what decides masks: the `"hidden_state"` that each is applied to, or the input
            `"embedding"`, through one attention pass that all layers share (all layers of a stack, where a model has
            several that read each their own input).
        learned_dropout_detach: with `"embedding"`: no gradient of the masks through that pass.
        learned_dropout_shift: initial value of the learned shift, in [0, pi]: at 0 all masks start at 1, at pi at 0.
        learned_dropout_heads: heads of the attention that decides masks, `num_attention_heads` when `None`; must
            divide its width.
        learned_dropout_groups: `None` for one mask value per channel of the feed-forward output. A number: one per
            group of the feed-forward's inner channels, decided before it, so that dropped groups are not computed at
            inference. Must divide `intermediate_size`.
        mask_entropy_loss_weight, mask_l1_loss_weight: weights of the two penalties; with weight 0 one is not computed.
        mask_entropy_loss_rate, mask_l1_loss_rate: `None` for a constant weight. A number: the weight rises with the
            training step as `min(exp(rate * step) - 1 + weight_min, weight)`.
        mask_entropy_loss_weight_min, mask_l1_loss_weight_min: where such a weight starts.
        mask_l1_loss: mean of M^2 / 2 (`"squared"`) or of M (`"absolute"`).
    """

    learned_dropout: Literal["none", "bernoulli", "sigmoid", "sigmoid_detached"] = "none"
    learned_dropout_input: Literal["hidden_state", "embedding"] = "hidden_state"
    learned_dropout_detach: bool = False
    learned_dropout_shift: float | int = 0.0
    learned_dropout_heads: int | None = None
    learned_dropout_groups: int | None = None
    mask_entropy_loss_weight: float | int = 0.0
    mask_entropy_loss_weight_min: float | int = 0.0
    mask_entropy_loss_rate: float | int | None = None
    mask_l1_loss: Literal["squared", "absolute"] = "squared"
    mask_l1_loss_weight: float | int = 0.1
    mask_l1_loss_weight_min: float | int = 0.0
    mask_l1_loss_rate: float | int | None = None

    @property
    def mask_size(self) -> int:
        """Values of one mask."""
        return self.learned_dropout_groups or self.hidden_size

    @property
    def num_mask_heads(self) -> int:
        return self.num_attention_heads if self.learned_dropout_heads is None else self.learned_dropout_heads

    @property
    def mask_losses(self) -> list[str]:
        """Names of the penalties that are computed."""
        names = ("mask_entropy_loss", "mask_l1_loss") if self.learned_dropout != "none" else ()
        return [name for name in names if getattr(self, f"{name}_weight")]

    @property
    def mask_cache_config(self) -> Self:
        """What an attention that decides masks keeps in a cache, with its own number and size of heads."""
        return self.with_heads(self.num_mask_heads, self.mask_size)

    def with_heads(self, num_heads: int, width: int | None = None, num_key_value_groups: int = 1) -> Self:
        """A copy that describes an attention of `num_heads` heads on `width` channels, of which so many share a key and
        a value."""
        config = copy.copy(self)
        config.num_attention_heads = num_heads
        config.num_key_value_heads = num_heads // num_key_value_groups
        config.hidden_size = width or self.hidden_size
        return config

    def validate_learned_dropout(self) -> None:
        self.validate_sizes()  # validators run in the order of their names
        if self.learned_dropout == "none":
            set_without = {
                field.name: field.default
                for field in dataclasses.fields(self)
                if field.name.startswith(("learned_dropout", "mask_")) and getattr(self, field.name) != field.default
            }
            if set_without:
                values = ", ".join(f"`{name}` is {getattr(self, name)!r}" for name in set_without)
                defaults = ", ".join(f"{name} {default!r}" for name, default in set_without.items())
                raise ValueError(
                    f"{values}, but `learned_dropout` is 'none'. Set `learned_dropout` to 'bernoulli', 'sigmoid' or "
                    f"'sigmoid_detached', or go back to the defaults: {defaults}."
                )
            return
        if not 0 <= self.learned_dropout_shift <= math.pi:
            raise ValueError(f"`learned_dropout_shift` is {self.learned_dropout_shift}, but it must lie in [0, pi].")
        if self.learned_dropout_detach and self.learned_dropout_input != "embedding":
            raise ValueError(
                "`learned_dropout_detach` is True, but it needs `learned_dropout_input` 'embedding', got "
                f"{self.learned_dropout_input!r}."
            )
        groups, heads = self.learned_dropout_groups, self.num_mask_heads
        if groups is not None:
            assert self.intermediate_size is not None  # since it was made
            if groups < 1 or self.intermediate_size % groups:
                raise ValueError(
                    f"`learned_dropout_groups` is {groups}, which does not divide `intermediate_size` "
                    f"{self.intermediate_size}; possible values: {divisors(self.intermediate_size)}."
                )
            if self.learned_dropout != "bernoulli":
                raise ValueError(
                    f"`learned_dropout_groups` is {groups}, but groups are skipped where a mask is exactly 0: "
                    f"`learned_dropout` must be 'bernoulli', got {self.learned_dropout!r}."
                )
        if heads < 1 or self.mask_size % heads:
            width = "hidden_size" if groups is None else "learned_dropout_groups"
            raise ValueError(
                f"`learned_dropout_heads` is {heads} (by default `num_attention_heads`), which does not divide "
                f"`{width}` {self.mask_size}; possible values: {divisors(self.mask_size)}."
            )

    def validate_mask_losses(self) -> None:
        for name in ("mask_entropy_loss", "mask_l1_loss"):
            weight, start = getattr(self, f"{name}_weight"), getattr(self, f"{name}_weight_min")
            rate = getattr(self, f"{name}_rate")
            if weight < 0:
                raise ValueError(f"`{name}_weight` is {weight}, but it must be 0 or more.")
            if rate is None:
                if start:
                    raise ValueError(
                        f"`{name}_weight_min` is {start}, but without `{name}_rate` the weight is constant; "
                        "give a rate, or leave the field out."
                    )
                continue
            if not 0 <= start < weight:
                raise ValueError(
                    f"`{name}_weight_min` is {start}, but a weight that rises to `{name}_weight` {weight} must start "
                    "at 0 or more and below it."
                )
            if rate <= 0:
                raise ValueError(
                    f"`{name}_rate` is {rate}, so the weight never reaches its maximum {weight}; it must be above 0."
                )

    def mask_loss_steps(self, name: str) -> int:
        """Training steps after which the weight of the loss `name` has reached its maximum."""
        rate = getattr(self, f"{name}_rate")
        if rate is None:
            return 0
        return math.ceil(math.log1p(getattr(self, f"{name}_weight") - getattr(self, f"{name}_weight_min")) / rate)


__all__ = ["LearnedDropoutConfig"]
