"""Counter-based random numbers, which depend on keys instead of the order in which they are drawn."""

import hashlib
from collections.abc import Iterable

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(values: np.ndarray) -> np.ndarray:
    """Map uint64 values by a bijection with pseudo-random outputs (SplitMix64; Steele, Lea and Flood 2014, "Fast
    splittable pseudorandom number generators")."""
    values = values + GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def row_keys(rows: Iterable[np.ndarray], seed: int, step: int) -> np.ndarray:
    """Return a key for each row, `(B,)`, uint64, that depends only on the content of the row, the seed and the step."""
    digests = [hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=8).digest() for row in rows]
    content = np.frombuffer(b"".join(digests), np.uint64)
    place = splitmix64(np.array([seed, step], np.uint64))
    return splitmix64(splitmix64(content ^ place[0]) ^ place[1])


def uniforms(keys: np.ndarray, count: int, stream: int) -> np.ndarray:
    """Return uniform numbers in [0, 1), `(B, count)`, float64, for keys `(B,)`, uint64. Streams are independent."""
    start = splitmix64(keys ^ splitmix64(np.array([stream], np.uint64)))
    counter = np.arange(count, dtype=np.uint64) * GOLDEN
    return (splitmix64(start[:, None] + counter) >> np.uint64(11)) * 2.0**-53
