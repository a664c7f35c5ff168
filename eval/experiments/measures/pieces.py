"""Bits per byte by how often pieces were seen in training, and with noise: where codes that follow the spelling should
help, if they do.

Predictions are those of the run's own held-out text, twice: by the piece that is predicted, and by the piece that is
read last. Noise is as in `robustness.py`, in more text.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from texts import read_documents

from latentlm.data import token_bytes

from .robustness import bits_per_byte, token_losses, with_noise

BINS = (0, 1, 4, 16, 64, 256)  # the fewest times of each
RATES = (0, 3, 10)  # percent
NOISY_CHARACTERS = 50_000


def by_times_seen(
    nats: np.ndarray, read: np.ndarray, predicted: np.ndarray, times: np.ndarray, sizes: np.ndarray
) -> dict[str, float]:
    """`piece_<n>_bits`: bits per byte of the pieces that were seen n times or more in training, up to the next bin;
    `piece_<n>_share`: their share of all bytes. `after_<n>_...`: the same by the piece that is read last.

    Args:
        nats: `(N,)`, what each prediction costs.
        read, predicted: `(N,)`, the last piece before it, and the piece itself.
        times: `(V,)`, how often each was seen.
        sizes: `(V,)`, their bytes.
    """
    metrics = {}
    for name, pieces in (("piece", predicted), ("after", read)):
        bins = np.searchsorted(BINS, times[pieces], side="right") - 1
        bits = np.bincount(bins, nats / math.log(2), minlength=len(BINS))
        num_bytes = np.bincount(bins, sizes[predicted], minlength=len(BINS))
        for low, of_bits, of_bytes in zip(BINS, bits, num_bytes, strict=True):
            if of_bytes:
                metrics[f"{name}_{low}_bits"] = float(of_bits / of_bytes)
                metrics[f"{name}_{low}_share"] = float(of_bytes / num_bytes.sum())
    return metrics


def measure(model: Any, tokenizer: Any, run: Path) -> dict[str, float]:
    """Those of `by_times_seen`, and `noise_<percent>` of a part of the text."""
    recipe: Any = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    data, length = recipe["data"], recipe["data"]["context_length"]
    times = np.zeros(len(tokenizer), dtype=np.int64)
    for text in read_documents(Path(data["dataset"])):
        times += np.bincount(tokenizer(text, add_special_tokens=False)["input_ids"], minlength=len(times))
    texts = read_documents(Path(data["validation_dataset"]))
    ids = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    read, predicted = (np.concatenate([one[part] for one in ids]) for part in (slice(None, -1), slice(1, None)))
    nats = token_losses(model, [one.tolist() for one in ids], length)
    metrics = by_times_seen(nats, read, predicted, times, token_bytes(tokenizer))
    part = "".join(texts)[:NOISY_CHARACTERS]
    noisy = {f"noise_{rate}": bits_per_byte(model, tokenizer, [with_noise(part, rate)], length) for rate in RATES}
    return metrics | noisy
