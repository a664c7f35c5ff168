"""Attention in two forms, regular and multi-head latent, and its masks.

Each form makes one flat item per symbol, all that a cache has to keep, and unfolds items into keys and values.
"""

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from .block_attention import Rotary, call_backend
from .block_bidirectional_layers import rotate


def make_mask(config, states: torch.Tensor, num_keys: int, function):
    """The mask of the configured backend for queries `(B, T, D)` and `num_keys` keys.

    Args:
        function: of broadcastable indices (batch, head, query, key), whether the query sees the key.

    Raises:
        ValueError: if nothing makes masks for the backend.
    """
    kind = config._attn_implementation
    if kind not in ALL_MASK_ATTENTION_FUNCTIONS:
        raise ValueError(
            f"`attn_implementation` is {kind!r}, for which no mask function is registered, but windows and segments "
            f"need masks: call `transformers.AttentionMaskInterface.register({kind!r}, function)`."
        )
    return ALL_MASK_ATTENTION_FUNCTIONS[kind](
        batch_size=states.shape[0],
        q_length=states.shape[1],
        kv_length=num_keys,
        mask_function=function,
        allow_is_causal_skip=False,
        device=states.device,
        dtype=states.dtype,
        config=config,
    )


def step_mask(config, states: torch.Tensor, seen: torch.Tensor):
    """The mask of single steps `(n, 1, D)` that see what `seen` says, bool `(n, 1, 1, C)`."""
    if config._attn_implementation in ("eager", "sdpa", "flex_attention"):
        return seen  # as it is, which costs nothing
    return make_mask(config, states, seen.shape[-1], lambda batch, head, query, key: seen[batch, 0, query, key])


def causal_window(window: int | None):
    """Mask function: symbol t sees the last `window` symbols, itself included; all before it with None."""

    def visible(batch, head, query, key):
        seen = key <= query
        return seen if window is None else seen & (query - key < window)

    return visible


def same_segment(segments: torch.Tensor, inner):
    """Mask function: `inner`, within the segment of the query. Segments `(B, T)`."""

    def visible(batch, head, query, key):
        return inner(batch, head, query, key) & (segments[batch, query] == segments[batch, key])

    return visible


def look_back(segments: torch.Tensor, num_past: int, lookback: int):
    """Mask function for keys that are `num_past` rows of the past, then the current rows: a symbol of segment s
    `(B, T)` sees the rows s - `lookback` to s - 1 of the past and its own current row."""

    def visible(batch, head, query, key):
        segment = segments[batch, query]
        past = (key < num_past) & (key < segment) & (key >= segment - lookback)
        return past | (key == num_past + segment)

    return visible


class Band:
    """A causal window for sdpa without computing what is outside of it: blocks of `window` queries see their own block
    of keys and the one before. Costs O(T * window) where a dense mask costs O(T^2)."""

    def __init__(self, states: torch.Tensor, window: int):
        batch, self.length = states.shape[:2]
        self.window = window
        self.blocks = -(-self.length // window)
        query = torch.arange(window, device=states.device).unsqueeze(1)
        key = torch.arange(2 * window, device=states.device) - window  # from the block's first query
        visible = ((key <= query) & (query - key < window)).repeat(self.blocks, 1, 1)
        visible[0, :, :window] = False  # nothing comes before the first block
        self.mask = visible.repeat(batch, 1, 1).unsqueeze(1)  # (B * blocks, 1, window, 2 * window)

    def fold(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, H, T, d)` to blocks `(B, blocks, H, window, d)`."""
        states = nn.functional.pad(states, (0, 0, 0, self.blocks * self.window - self.length))
        return states.unflatten(2, (self.blocks, self.window)).transpose(1, 2)

    def fold_keys(self, states: torch.Tensor) -> torch.Tensor:
        """Each block with the one before it, `(B * blocks, H, 2 * window, d)`."""
        blocks = self.fold(states)
        before = nn.functional.pad(blocks[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
        return torch.cat((before, blocks), 3).flatten(0, 1)

    def unfold(self, output: torch.Tensor) -> torch.Tensor:
        """The backend's `(B * blocks, window, H, d)` to `(B, T, H, d)`."""
        return output.unflatten(0, (-1, self.blocks)).flatten(1, 2)[:, : self.length]


class FormAttention(nn.Module):
    """What the forms share: the call of the backend."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask) -> torch.Tensor:
        """Queries `(B, H, T, d)`, keys and values `(B, H, T_key, d)` to `(B, T, H * d_value)`; `mask` is the backend's,
        a [`Band`], None for all that came before, or that of [`step_mask`]."""
        kind = self.config._attn_implementation
        band = mask if isinstance(mask, Band) else None
        if band is not None:
            query, key, value = band.fold(query).flatten(0, 1), band.fold_keys(key), band.fold_keys(value)
            mask = band.mask
        elif kind == "flex_attention" and isinstance(mask, torch.Tensor):
            kind = "sdpa"  # single steps, which flex attention cannot do everywhere
        if kind == "eager" and mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
        dropout = self.config.attention_dropout if self.training else 0.0
        kwargs = {"dropout": dropout, "scaling": self.scaling, "is_causal": mask is None}
        output, _ = call_backend(self, query, key, value, mask, kind, **kwargs)
        if band is not None:
            output = band.unfold(output)
        return self.o_proj(output.flatten(-2))

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, T, H * d)` to `(B, H, T, d)`."""
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class RegularAttention(FormAttention):
    """Queries, keys and values of every head from the hidden state; rotary positions (Su et al. 2021).

    Also looks from symbols to memory rows, whose positions are then numbers of segments."""

    def __init__(self, config):
        super().__init__(config)
        size = config.hidden_size
        self.q_proj = nn.Linear(size, size, bias=False)
        self.kv_proj = nn.Linear(size, 2 * size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)
        self.o_proj.adds_to_residual = True

    @property
    def item_size(self) -> int:
        return 2 * self.config.hidden_size

    def queries(self, hidden_states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        return rotate(self.split_heads(self.q_proj(hidden_states)), rotary)

    def items(self, hidden_states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Turned keys and values of the symbols, side by side: `(B, T, 2 * D)`."""
        key, value = self.kv_proj(hidden_states).chunk(2, -1)
        key = rotate(self.split_heads(key), rotary).transpose(1, 2).flatten(-2)
        return torch.cat((key, value), -1)

    def unfold(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = items.chunk(2, -1)
        return self.split_heads(key), self.split_heads(value)


class LatentAttention(FormAttention):
    """Multi-head latent attention (DeepSeek-V2, 2405.04434, section 2.1): queries, and keys with values, come through
    low-rank latents; positions turn a small part of their own, whose key all heads share. The cache holds the latent
    and that key."""

    def __init__(self, config):
        super().__init__(config)
        size, heads = config.hidden_size, self.num_heads
        self.rope_dim = config.latent_rope_size
        self.scaling = (self.head_dim + self.rope_dim) ** -0.5
        self.q_down = nn.Linear(size, config.query_latent_size, bias=False)
        self.q_norm = nn.RMSNorm(config.query_latent_size, eps=config.rms_norm_eps)
        self.q_up = nn.Linear(config.query_latent_size, heads * (self.head_dim + self.rope_dim), bias=False)
        self.kv_down = nn.Linear(size, config.key_value_latent_size + self.rope_dim, bias=False)
        self.kv_norm = nn.RMSNorm(config.key_value_latent_size, eps=config.rms_norm_eps)
        self.kv_up = nn.Linear(config.key_value_latent_size, 2 * size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)
        self.o_proj.adds_to_residual = True

    @property
    def item_size(self) -> int:
        return self.config.key_value_latent_size + self.rope_dim

    def queries(self, hidden_states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        query = self.split_heads(self.q_up(self.q_norm(self.q_down(hidden_states))))
        plain, turned = query.split((self.head_dim, self.rope_dim), -1)
        return torch.cat((plain, rotate(turned, rotary)), -1)

    def items(self, hidden_states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """The latent of keys and values, and the turned key: `(B, T, latent + rope)`."""
        latent, key = self.kv_down(hidden_states).split((self.config.key_value_latent_size, self.rope_dim), -1)
        return torch.cat((self.kv_norm(latent), rotate(key.unsqueeze(1), rotary).squeeze(1)), -1)

    def unfold(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latent, turned = items.split((self.config.key_value_latent_size, self.rope_dim), -1)
        key, value = (self.split_heads(states) for states in self.kv_up(latent).chunk(2, -1))
        turned = turned.unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        return torch.cat((key, turned), -1), value


FORMS: dict[str, type[FormAttention]] = {"regular": RegularAttention, "latent": LatentAttention}
