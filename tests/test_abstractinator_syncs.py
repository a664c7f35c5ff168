"""How often the Abstractinator makes the host wait for the device, counted as operations that read values."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from test_abstractinator import BYTES, build

READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "bincount", "_unique2", "unique_dim"}
READS |= {"unique_consecutive", "repeat_interleave", "_to_copy.list"}


class CountReads(TorchDispatchMode):
    """Counts operations whose result or shape the host must know, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        is_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in READS or is_mask:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

if __name__ == "__main__":
    from architectures import token_ids
    for variant in ("default", "two_levels"):
        model = build(variant, **BYTES).train()
        ids = token_ids(2, 30)
        for kw in ({}, {"position_ids": torch.arange(30).expand(2, -1)}, {"position_ids": torch.cat([torch.arange(12), torch.arange(18)]).expand(2, -1)}):
            with CountReads() as c:
                out = model(ids, labels=ids, **kw)
            n1 = sum(c.counts.values()); d=dict(c.counts)
            with CountReads() as c:
                out.loss.backward()
            print(variant, n1, d, "backward", dict(c.counts))
        with CountReads() as c:
            model.model.update()
        print("update", dict(c.counts))
        model.eval()
        with torch.no_grad():
            cache = model(ids[:, :10], use_cache=True).past_key_values
            for t in range(10, 30):
                with CountReads() as c:
                    model(ids[:, t:t+1], past_key_values=cache, attention_mask=torch.ones(2, t+1), position_ids=torch.full((2,1), t))
                print(sum(c.counts.values()), end=" ")
        print()
        with CountReads() as c: a = model.generate_bytes([b"text", b"longer"], 5)
        with CountReads() as c2: a = model.generate_bytes([b"text", b"longer"], 6)
        print(sum(c.counts.values()), sum(c2.counts.values()))
