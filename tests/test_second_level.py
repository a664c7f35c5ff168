"""eval/experiments/second_level.py: a level on codes of another one reads what it reads above the bytes."""

import sys

import numpy as np
import torch
from architectures import LEVEL, token_ids
from conftest import REPOSITORY
from test_abstractinator import BYTES, build

sys.path.insert(0, str(REPOSITORY / "eval" / "experiments"))
from second_level import BATCH, Codes, Upper, digest_of, encode, ordered_rows


def test_another_first_level_has_another_name(tmp_path):
    """By its weights, and by what cuts at the same weights."""
    names = []
    for i, changes in enumerate(({}, {}, {"levels": [LEVEL | {"delta": 0.3}]})):
        model = build("default", **BYTES, **changes)
        if i == 1:
            model.model.levels[0].memory_norm.weight.data += 1
        model.save_pretrained(tmp_path / str(i))
        names.append(digest_of(tmp_path / str(i)))
    assert len(set(names)) == 3
    build("default", **BYTES).save_pretrained(tmp_path / "again")
    assert digest_of(tmp_path / "again") == names[0]


def test_steps_are_whole_and_read_no_row_twice():
    count = 3 * BATCH + 5
    codes = Codes(np.full(count, 2), *[np.zeros(2 * count)] * 3, num_bytes=0, given_nats=0.0)
    steps = list(ordered_rows(codes, 0))
    assert [len(rows) for rows in steps] == [BATCH] * 3 and len(set(np.concatenate(steps))) == 3 * BATCH


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
