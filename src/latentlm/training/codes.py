"""Assignment of distinct codes to bytes and pieces, with a trained autoencoder."""

from dataclasses import dataclass

import numpy as np
import torch

from latentlm.models.block_fsq import FSQ
from latentlm.models.modeling_fsq_autoencoder import FSQAutoencoderModel

BATCH = 4096


@dataclass(frozen=True)
class Codes:
    """The codes of N chunks.

    Attributes:
        codes: `(N,)`, int64, distinct code indices.
        moved: `(N,)`, bool, whether the code differs from that of the encoder, which another chunk has.
        exact: `(N,)`, bool, whether the decoder reconstructs exactly the chunk from its code.
    """

    codes: np.ndarray
    moved: np.ndarray
    exact: np.ndarray


def assign_codes(autoencoder: FSQAutoencoderModel, chunks: np.ndarray, lengths: np.ndarray, uses: np.ndarray) -> Codes:
    """Assign distinct codes to chunks.

    A chunk gets the code that the encoder computes. If several chunks have the same one, the most used chunk gets it,
    and each other chunk gets the free code nearest to its unrounded digits.

    Args:
        autoencoder: the trained autoencoder.
        chunks: `(N, C)`, uint8.
        lengths: `(N,)`, int64, number of bytes of each chunk.
        uses: `(N,)`, number of uses of each chunk.

    Raises:
        ValueError: if there are more chunks than codes.
    """
    if len(chunks) > autoencoder.fsq.num_codes:
        raise ValueError(
            f"levels: {list(autoencoder.fsq.levels)} give {autoencoder.fsq.num_codes} codes, fewer than the "
            f"{len(chunks)} bytes and pieces"
        )
    positions = encode_positions(autoencoder, chunks, lengths)
    wanted = autoencoder.fsq.index(positions.round().long()).numpy()
    codes = wanted.copy()
    taken: set[int] = set()
    homeless = []
    for chunk in np.lexsort((np.arange(len(uses)), -uses)).tolist():
        if wanted[chunk] in taken:
            homeless.append(chunk)
        taken.add(int(wanted[chunk]))
    for chunk in homeless:  # after all others, so that no assigned code changes again
        codes[chunk] = nearest_free(autoencoder.fsq, positions[chunk], taken)
        taken.add(int(codes[chunk]))
    return Codes(codes, codes != wanted, spelled_exactly(autoencoder, codes, chunks, lengths))


@torch.no_grad()
def encode_positions(autoencoder: FSQAutoencoderModel, chunks: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Return the unrounded digits `(N, n)`, float32, that the encoder computes for chunks."""
    parts = zip(torch.from_numpy(chunks.copy()).split(BATCH), torch.from_numpy(lengths).split(BATCH), strict=True)
    encoder, fsq = autoencoder.encoder, autoencoder.fsq
    return torch.cat([fsq.positions(encoder(part.long(), part_lengths)) for part, part_lengths in parts])


def nearest_free(fsq: FSQ, position: torch.Tensor, taken: set[int]) -> int:
    """Return the index of the free code whose digits are nearest to `position` `(N,)`, the lowest index among equals.
    In a residual code only the digits of the last quantizer differ, as long as such a code is free."""
    levels = torch.tensor(fsq.levels)
    last, radius = len(levels) - fsq.num_dimensions, 0
    while True:
        radius += 1
        # The digits of each dimension within the radius, and all combinations of them.
        reach = [max(radius - max(fsq.levels), 0)] * last + [radius] * fsq.num_dimensions
        around = [
            range(max(0, int(p.round()) - r), min(int(n) - 1, int(p.round()) + r) + 1)
            for p, n, r in zip(position, levels, reach, strict=True)
        ]
        digits = torch.cartesian_prod(*(torch.tensor(list(values)) for values in around)).view(-1, len(levels))
        index = fsq.index(digits)
        free = torch.tensor([code not in taken for code in index.tolist()])
        if free.any():
            distances = (digits - position).square().sum(-1)[free]
            return int(index[free][distances == distances.min()].min())


@torch.no_grad()
def spelled_exactly(
    autoencoder: FSQAutoencoderModel, codes: np.ndarray, chunks: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Return whether the decoder reconstructs each chunk exactly from its code, `(N,)`, bool."""
    exact = []
    for start in range(0, len(codes), BATCH):
        part = slice(start, start + BATCH)
        decoded, decoded_lengths = autoencoder.decode(torch.from_numpy(codes[part]))
        real = np.arange(chunks.shape[1]) < lengths[part, None]
        same = ((decoded.numpy() == chunks[part]) | ~real).all(-1)
        exact.append(same & (decoded_lengths.numpy() == lengths[part]))
    return np.concatenate(exact)
