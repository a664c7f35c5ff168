"""Flash attention written out: the arguments of transformers' flash backend, read as its kernels read them."""

from typing import Any

import torch
from transformers.models.llama.modeling_llama import repeat_kv


def flash_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    is_causal: bool,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """In place of the backend `flash_attention_2`: the last query stands at the last key of its sequence, and nothing
    else than these arguments says who sees whom."""
    assert attention_mask is None or attention_mask.ndim == 2
    batch, heads, length, _ = query.shape
    key, value = (repeat_kv(states, module.num_key_value_groups) for states in (key, value))
    q, k, v = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))  # (B * T, H, d)
    if cu_seq_lens_q is None:
        cu_seq_lens_q = torch.arange(batch + 1) * length
        cu_seq_lens_k = torch.arange(batch + 1) * key.shape[2]
    else:
        assert attention_mask is None
        assert cu_seq_lens_q.dtype == cu_seq_lens_k.dtype == torch.int32
        assert cu_seq_lens_q.diff().max() <= max_length_q and cu_seq_lens_k.diff().max() <= max_length_k
        assert cu_seq_lens_q[-1] == len(q) and cu_seq_lens_k[-1] == len(k)
    output = torch.zeros(len(q), heads, value.shape[-1], dtype=q.dtype)
    bounds = zip(*(ends.tolist() for ends in (cu_seq_lens_q, cu_seq_lens_k)), strict=True)
    starts = next(bounds)
    for row, ends in enumerate(bounds):
        queries, keys = (slice(start, end) for start, end in zip(starts, ends, strict=True))
        starts = ends
        places = torch.arange(keys.stop - keys.start)
        own = torch.arange(queries.stop - queries.start).unsqueeze(1) + len(places) - (queries.stop - queries.start)
        seen = torch.ones(len(own), len(places), dtype=torch.bool)
        if is_causal:
            seen &= places <= own
        if sliding_window is not None:
            seen &= (own - places).abs() < sliding_window
        if attention_mask is not None:
            seen &= attention_mask[row].bool()
        scores = torch.einsum("qhd,khd->hqk", q[queries], k[keys]) * scaling
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
        output[queries] = torch.einsum("hqk,khd->qhd", weights, v[keys])
    return output.unflatten(0, (batch, length)), None
