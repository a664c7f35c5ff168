"""Configuration fields and checks of LearnedDropout, which most architectures of this package can switch on."""

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
        learned_dropout: `"none"`, or how a mask M in [0, 1] is rounded: `"bernoulli"` (1 with probability M in
            training, M >= 0.5 in evaluation, with the gradient of M), `"sigmoid"` (sigmoid(60 (M - 0.5))) or
            `"sigmoid_detached"` (the same value with the gradient of M).
        learned_dropout_input: the input from which masks are computed. With `"hidden_state"` each mask is computed from
            the hidden state that it masks. With `"embedding"` one attention over the input embeddings serves all
            layers: those of both stacks in the causal encoder-decoders, while in EncodZall and the Abstractinator each
            stack has one over its own input.
        learned_dropout_detach: with `"embedding"`, whether the gradient of the masks stops at that attention, so that
            only the shifts are trained.
        learned_dropout_shift: initial value of the learned shift, in [0, pi]; all masks start at 1 for 0, and at 0 for
            pi.
        learned_dropout_heads: number of heads of the attention that computes masks, `num_attention_heads` when None;
            must divide its width.
        mask_entropy_loss_weight, mask_l1_loss_weight: weights of the two penalties; a penalty with weight 0 is not
            computed.
        mask_entropy_loss_rate, mask_l1_loss_rate: None for a constant weight. With a rate, the weight rises with the
            training step as `min(exp(rate * step) - 1 + weight_min, weight)`.
        mask_entropy_loss_weight_min, mask_l1_loss_weight_min: initial value of a weight that rises.
        mask_l1_loss: the penalty, mean of M^2 / 2 (`"squared"`) or of M (`"absolute"`).
    """

    learned_dropout: Literal["none", "bernoulli", "sigmoid", "sigmoid_detached"] = "none"
    learned_dropout_input: Literal["hidden_state", "embedding"] = "hidden_state"
    learned_dropout_detach: bool = False
    learned_dropout_shift: float | int = 0.0
    learned_dropout_heads: int | None = None
    mask_entropy_loss_weight: float | int = 0.0
    mask_entropy_loss_weight_min: float | int = 0.0
    mask_entropy_loss_rate: float | int | None = None
    mask_l1_loss: Literal["squared", "absolute"] = "squared"
    mask_l1_loss_weight: float | int = 0.1
    mask_l1_loss_weight_min: float | int = 0.0
    mask_l1_loss_rate: float | int | None = None

    @property
    def num_mask_heads(self) -> int:
        """The number of heads of an attention that computes masks."""
        return self.num_attention_heads if self.learned_dropout_heads is None else self.learned_dropout_heads

    @property
    def mask_losses(self) -> list[str]:
        """The names of the penalties that are computed."""
        names = ("mask_entropy_loss", "mask_l1_loss") if self.learned_dropout != "none" else ()
        return [name for name in names if getattr(self, f"{name}_weight")]

    @property
    def mask_cache_config(self) -> Self:
        """The configuration from which transformers allocates the cache of an attention that computes masks."""
        return self.with_heads(self.num_mask_heads)

    def with_heads(self, num_heads: int, num_key_value_groups: int = 1) -> Self:
        """Return a copy that describes an attention with `num_heads` heads, of which `num_key_value_groups` share a key
        and a value."""
        config = copy.copy(self)
        config.num_attention_heads = num_heads
        config.num_key_value_heads = num_heads // num_key_value_groups
        return config

    def validate_learned_dropout(self) -> None:
        self.validate_sizes()  # validators run in the order of their names
        if (groups := getattr(self, "learned_dropout_groups", None)) is not None:  # of latentlm 0.2.0
            raise ValueError(
                f"`learned_dropout_groups` is {groups}, but masks of groups are gone: they saved time only where "
                "nearly all were off. Leave the field out for a mask value per channel; latentlm 0.2.0 has such models."
            )
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
        heads = self.num_mask_heads
        if heads < 1 or self.hidden_size % heads:
            raise ValueError(
                f"`learned_dropout_heads` is {heads} (by default `num_attention_heads`), which does not divide "
                f"`hidden_size` {self.hidden_size}; possible values: {divisors(self.hidden_size)}."
            )

    def validate_mask_losses(self) -> None:
        for name in ("mask_entropy_loss", "mask_l1_loss"):
            weight, start = getattr(self, f"{name}_weight"), getattr(self, f"{name}_weight_min")
            rate = getattr(self, f"{name}_rate")
            if not weight >= 0:
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
            if not rate > 0:
                raise ValueError(
                    f"`{name}_rate` is {rate}, so the weight never reaches its maximum {weight}; it must be above 0."
                )

    def mask_loss_steps(self, name: str) -> int:
        """Return the number of training steps after which the weight of the loss `name` has reached its maximum."""
        rate = getattr(self, f"{name}_rate")
        if rate is None:
            return 0
        return math.ceil(math.log1p(getattr(self, f"{name}_weight") - getattr(self, f"{name}_weight_min")) / rate)


__all__ = ["LearnedDropoutConfig"]
