"""LearnedDropout: a dropout whose mask is computed from the input, so that it also acts at inference.

The original design and its follow-up come from github.com/yiphei/yif-AI. With M in [0, 1]:

    A = causal multi-head attention of the mask input (no output projection, no residual)
    M = 0.5 cos(A + shift) + 0.5
    output = X * round(M)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import logging
from transformers.utils.import_utils import is_torchdynamo_compiling

from .block_attention import Attention

logger: Any = logging.get_logger(__name__)  # with `warning_once`, of transformers

ENTROPY_FLOOR = 1e-6
"""The logarithm in -M log2 M is held below this value: M reaches exactly 0, where the slope has no bound."""


class MaskAttention(Attention):
    """The attention that computes masks: from D channels to one value per channel, without rotary positions."""

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx, num_heads=config.num_mask_heads, num_key_value_groups=1, has_output=False)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attention's output without the probabilities, which do not belong to the model's `attentions`."""
        return super().forward(*args, **kwargs)[0], None


class SharedMaskAttention(MaskAttention):
    """Attention over the input embeddings, computed once for the masks of all layers, each of which has its own shift.
    With `learned_dropout_detach` no gradient reaches it: it keeps its random weights, and only the shifts are
    learned."""

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        self.detach = config.learned_dropout_detach
        if self.detach:  # buffers: a parameter without gradient would stop DDP, and loading would thaw a frozen one
            for name, parameter in list(self.qkv_proj.named_parameters()):
                delattr(self.qkv_proj, name)
                self.qkv_proj.register_buffer(name, parameter.detach())

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            return super().forward(*args, **kwargs)


class LearnedDropout(nn.Module):
    """The mask of one feed-forward block.

    `config.learned_dropout` names the rounding:
        bernoulli:        training: 1 with probability M, gradient of M (straight-through); evaluation: M >= 0.5
        sigmoid:          sigmoid(60 (M - 0.5))
        sigmoid_detached: the same value, gradient of M
    """

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.rounding = config.learned_dropout
        self.initial_shift = config.learned_dropout_shift
        self.config = config
        hidden_state = config.learned_dropout_input == "hidden_state"
        self.attention = MaskAttention(config, layer_idx) if hidden_state else None
        self.shift = nn.Parameter(torch.empty(config.hidden_size))

    def initialize_parameters(self) -> None:
        init.constant_(self.shift, self.initial_shift)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        shared_attention: torch.Tensor | None = None,  # (B, T, D), what SharedMaskAttention gave, if the model has one
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rounded mask and M itself, both `(B, T, D)`; M is float32."""
        if self.attention is not None:
            shared_attention, _ = self.attention(hidden_states, **kwargs)
        assert shared_attention is not None
        probability = 0.5 * torch.cos(shared_attention.float() + self.shift.float()) + 0.5
        return self.round(probability).to(hidden_states.dtype), probability

    def round(self, probability: torch.Tensor) -> torch.Tensor:
        if self.rounding == "bernoulli":
            hard = self.draw(probability.detach()) if self.training else (probability >= 0.5).float()
        else:
            hard = torch.sigmoid(60 * (probability - 0.5))
            if self.rounding == "sigmoid":
                return hard
        return hard.detach() + (probability - probability.detach())  # in this order the value is exactly `hard`

    def draw(self, probability: torch.Tensor) -> torch.Tensor:
        # Not torch.bernoulli, which stops the process where a diverging run has NaN.
        return (torch.rand_like(probability) < probability).to(probability.dtype)

    def penalise(self, probability: torch.Tensor) -> torch.Tensor | None:
        """Return the penalties of each token `(B, T, K)`, means over its mask, one for each of `config.mask_losses`;
        None without any.

        mask_entropy_loss: -M log2 M, which pushes M to 0 or 1;  mask_l1_loss: M^2 / 2 ("squared") or M ("absolute").
        """
        terms = {
            "mask_entropy_loss": mask_entropy,
            "mask_l1_loss": lambda m: m.square() / 2 if self.config.mask_l1_loss == "squared" else m,
        }
        penalties = [terms[name](probability).mean(-1) for name in self.config.mask_losses]
        return torch.stack(penalties, -1) if penalties else None


def make_learned_dropout(config, layer_idx: int) -> LearnedDropout | None:
    """Make the mask of one block, if the configuration asks for it; `layer_idx` is the cache layer of its attention."""
    return LearnedDropout(config, layer_idx) if config.learned_dropout != "none" else None


def make_shared_mask_attention(config, layer_idx: int) -> SharedMaskAttention | None:
    """Make the attention over the input of a stack, or of a model, that computes the masks of all layers after it, if
    the configuration asks for it."""
    shared = config.learned_dropout != "none" and config.learned_dropout_input == "embedding"
    return SharedMaskAttention(config, layer_idx) if shared else None


def mask_entropy(probability: torch.Tensor) -> torch.Tensor:
    """Return -M log2 M, elementwise."""
    return -probability * probability.clamp(min=ENTROPY_FLOOR).log2()


def mean_penalties(layers: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Return the mean of the penalties `(B, T, K)` over all LearnedDropout modules."""
    penalties = [value for value in layers if value is not None]
    if not penalties:
        return None
    total = penalties[0]
    for value in penalties[1:]:
        total = total + value.to(total.device)  # the layers of a model may lie on several devices
    return total / len(penalties)


Part = tuple[int, torch.Tensor | None, torch.Tensor]
"""A part of a model: the number of its modules, their mean penalties `(..., K)`, and the weight of each `(...)`."""


def mean_mask_losses(config, parts: list[Part], count: torch.Tensor | int) -> dict[str, torch.Tensor]:
    """Return the named losses of masks at different positions: weighted sums of the penalties, averaged over all
    modules and divided by `count`. The result is empty where no part has masks."""
    totals, modules = [], 0
    for number, penalties, weights in parts:
        if penalties is not None:
            weights = weights.unsqueeze(-1)
            totals.append(number * (penalties.where(weights > 0, 0) * weights).flatten(0, -2).sum(0))
            modules += number
    if not totals:
        return {}
    means = torch.stack(totals).sum(0) / modules / count
    return dict(zip(config.mask_losses, means.unbind(), strict=True))


def mask_loss_weight(
    config, name: str, training_step: torch.Tensor | None, training: bool = False
) -> torch.Tensor | float:
    """Return the weight of the loss `name`: w(step) = min(exp(rate step) - 1 + w_min, w_max), or w_max without a rate
    or a step. In `training`, warn once where there is a rate without a step."""
    weight, rate = getattr(config, f"{name}_weight"), getattr(config, f"{name}_rate")
    if training and rate is not None and training_step is None and not is_torchdynamo_compiling():
        logger.warning_once(
            f"`{name}_rate` is {rate}, but the forward gets no `training_step`: the weight does not rise, it is "
            f"`{name}_weight` {weight} from the first step on. latentlm's `LearnedDropoutTrainer` gives the step."
        )
    if rate is None or training_step is None:
        return weight
    return (torch.expm1(rate * training_step) + getattr(config, f"{name}_weight_min")).clamp(max=weight)


@contextmanager
def record_masks(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Collect M `(B, T, D)`, float32, of every LearnedDropout of `model` by module name, from the last forward."""
    masks: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: masks.update({name: output[1].detach()}))
        for name, module in model.named_modules()
        if type(module).__name__ == LearnedDropout.__name__  # a model loaded from the Hub has a class of its own
    ]
    try:
        yield masks
    finally:
        for handle in handles:
            handle.remove()
