"""eval/experiments/second_level.py: a level on codes of another one reads what it reads above the bytes."""

import sys

import numpy as np
import torch
from architectures import token_ids
from conftest import REPOSITORY
from test_abstractinator import BYTES, build

sys.path.insert(0, str(REPOSITORY / "eval" / "experiments"))
from second_level import Codes, Upper, encode


def test_a_level_on_codes_reads_what_it_reads_above_the_bytes():
    model = build("two_levels", **BYTES).eval()
    ids = token_ids(2, 40)
    lengths = (40, 31)
    mask = torch.arange(40) < torch.tensor(lengths)[:, None]
    whole = model.model.read(ids, mask.long(), known=True)[1]
    own = model.reconstruction_nats(ids, mask.long())["own"].sum().item()
    arrays = encode(model, [row[:length].numpy() for row, length in zip(ids, lengths, strict=True)], known=True)
    assert abs(arrays["given_nats"] - own) < 1e-3
    codes = Codes(**{**arrays, "num_bytes": 69, "given_nats": own})
    assert codes.after_space.shape == codes.codes.shape
    batch = codes.batch(np.arange(2))
    pyramid = Upper(model).read(batch)
    assert pyramid.known_states is not None and whole.known_states is not None
    alone, above = pyramid.levels[0], whole.levels[1]
    size = min(alone.vectors.shape[1], above.vectors.shape[1])
    assert torch.equal(alone.exists[:, :size], above.exists[:, :size])
    assert torch.equal(alone.quantized.codes[:, :size], above.quantized.codes[:, :size])
    real = alone.segments.real
    for one, other in (
        (pyramid.states[0], whole.states[1]),
        (pyramid.known_states[0], whole.known_states[1]),
        (alone.segments.entropies[:, 1:], above.segments.entropies[:, 1:]),
    ):
        width = min(one.shape[1], other.shape[1], real.shape[1])
        here = real[:, :width]
        torch.testing.assert_close(one[:, :width][here], other[:, :width][here], rtol=1e-2, atol=1e-2)
