"""Codes of a table: distinct, the encoder's own wherever that is possible, else the nearest free one."""

import runpy

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from test_fsq import small

from latentlm.models.fsq_vocabulary import FSQVocabulary, spelling_table
from latentlm.training.codes import assign_codes, encode_positions, nearest_free, spelled_exactly

PIECES = [bytes([a, b]) for a in range(97, 109) for b in range(97, 104)]  # 84 pieces for 120 codes


@pytest.fixture
def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chunks, lengths = spelling_table(PIECES)
    uses = np.random.default_rng(0).permutation(len(PIECES))
    return chunks[:, :8].copy(), lengths, uses


def test_the_most_used_keeps_the_encoders_code_and_nobody_else_moves(table):
    model = small()
    chunks, lengths, uses = table
    found = assign_codes(model, chunks, lengths, uses)
    wanted = model.encode(torch.from_numpy(chunks), torch.from_numpy(lengths)).numpy()
    assert len(set(found.codes.tolist())) == len(PIECES)
    assert (found.codes >= 0).all() and (found.codes < model.fsq.num_codes).all()
    assert len(set(wanted.tolist())) < len(PIECES)  # there are collisions
    for code in set(wanted.tolist()):
        rivals = np.flatnonzero(wanted == code)
        keeper = rivals[uses[rivals].argmax()]
        assert found.codes[keeper] == code
        assert found.moved[rivals].sum() == len(rivals) - 1 and not found.moved[keeper]


def test_a_moved_piece_gets_the_nearest_code_of_the_smallest_box_that_has_a_free_one():
    fsq = small().fsq
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        position = torch.rand(3, generator=generator) * (torch.tensor(fsq.levels) - 1)
        taken = set(torch.randint(0, fsq.num_codes, (90,), generator=generator).tolist())
        found = nearest_free(fsq, position, taken)
        assert found not in taken
        digits = fsq.digits(torch.arange(fsq.num_codes))
        free = torch.tensor([code not in taken for code in range(fsq.num_codes)])
        box = (digits - position.round()).abs().amax(-1)
        radius = max(1, int(box[free].min()))
        candidates = free & (box <= radius)
        distances = (digits - position).square().sum(-1).masked_fill(~candidates, torch.inf)
        assert distances[found] == distances.min()


def test_a_moved_piece_keeps_its_coarse_code_while_one_after_it_is_free():
    fsq = small(num_quantizers=2).fsq
    position = torch.tensor([2.2, 3.0, 1.0, 6.9, 0.1, 1.4])
    wanted = int(fsq.index(position.round().long()))
    family = {wanted % 120 + 120 * fine for fine in range(120)}
    assert nearest_free(fsq, position, {wanted}) in family - {wanted}
    last = min(family - {wanted})
    assert nearest_free(fsq, position, family - {last}) == last
    other = nearest_free(fsq, position, family)
    steps = fsq.digits(torch.tensor(other % 120))[:3] - position[:3].round().long()
    assert other not in family and steps.abs().max() == 1


def test_all_codes_can_be_given_away():
    fsq = small().fsq
    taken = set(range(fsq.num_codes)) - {77}
    assert nearest_free(fsq, torch.zeros(3), taken) == 77


def test_exactness_is_what_the_decoder_spells(table):
    model = small()
    chunks, lengths, _ = table
    codes = np.arange(len(PIECES))
    decoded, decoded_lengths = model.decode(torch.from_numpy(codes))
    chunks[3], lengths[3] = decoded[3].numpy(), decoded_lengths[3]  # this one is spelled exactly
    exact = spelled_exactly(model, codes, chunks, lengths)
    spelled = [bytes(row[:n]) for row, n in zip(decoded.numpy(), decoded_lengths.tolist(), strict=True)]
    wanted = [bytes(row[:n]) for row, n in zip(chunks, lengths.tolist(), strict=True)]
    assert exact[3]
    assert exact.tolist() == [a == b for a, b in zip(spelled, wanted, strict=True)]


def test_batches_change_no_position(table, monkeypatch):
    model = small()
    chunks, lengths, _ = table
    whole = encode_positions(model, chunks, lengths)
    monkeypatch.setattr("latentlm.training.codes.BATCH", 10)
    torch.testing.assert_close(encode_positions(model, chunks, lengths), whole)


def test_more_chunks_than_codes_are_an_error(table):
    chunks, lengths, uses = (np.concatenate((part, part)) for part in table)
    with pytest.raises(ValueError, match=r"levels: \[8, 5, 3\] give 120 codes, fewer than the 168"):
        assign_codes(small(), chunks, lengths, uses)


def test_random_codes_are_the_same_codes_of_other_pieces():
    shuffle = runpy.run_path(str(REPOSITORY / "eval" / "experiments" / "fsq-codes" / "shuffle.py"))["shuffle"]
    codes = np.random.default_rng(1).permutation(500)[: 256 + len(PIECES)]
    before = FSQVocabulary("words", [10, 10, 5], PIECES, codes, moved=[3], inexact=[5], weights=b"of a network")
    after = shuffle(before)
    assert sorted(after.codes.tolist()) == sorted(codes.tolist()) and (after.codes == codes).mean() < 0.05
    assert after.pieces == PIECES and after.weights is None and shuffle(before).codes.tolist() == after.codes.tolist()
