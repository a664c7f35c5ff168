"""The vocabulary of an FSQ tokenizer: the strings that have tokens, the code of each token, and the segmentation of
text."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .block_byte_pieces import (
    BOUNDARIES,
    MAX_PIECE_BYTES,
    NUM_SPECIAL_TOKENS,
    bytes_pattern,
    from_characters,
    to_characters,
)

FORMAT = 1
NUM_BYTES = 256
VOCABULARY_FILE = "fsq_vocabulary.json"
AUTOENCODER_FILE = "fsq_autoencoder.safetensors"
REBUILD = "build the tokenizer again (latentlm tokenizer build), or download it anew"


@dataclass(frozen=True)
class FSQVocabulary:
    """The vocabulary table of an FSQ tokenizer. Ids 0 to 255 are the bytes, then come the pieces, and the last 4 ids
    are special tokens without text and code.

    Attributes:
        boundary: the rule that cuts a text into stretches, `"words"` or `"lines"`; no piece crosses a cut.
        levels: the number of values of each digit of a code.
        pieces: distinct strings of 2 to 16 bytes.
        codes: code index of every byte and piece, `(256 + len(pieces),)`, int64, distinct.
        moved: ids whose code is not the encoder's, because another id has that code.
        inexact: ids whose bytes the decoder does not reconstruct from their code.
        version: 1 for a new table; each rebuild after joint training and each pruning adds 1.
        autoencoder: configuration of the network that computed the codes; None if the network is not stored with the
            table.
        weights: content of a safetensors file with the weights of that network, which is saved with the table.
        costs: cost of every byte and piece, at least 1; a text is segmented at the lowest total cost. None stands for
            the fewest tokens.
    """

    boundary: str
    levels: list[int]
    pieces: list[bytes]
    codes: np.ndarray
    moved: list[int]
    inexact: list[int]
    version: int = 1
    autoencoder: dict[str, Any] | None = None
    weights: bytes | None = None
    costs: list[int] | None = None  # integers, so that sums are exact everywhere

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: if a field is invalid, or does not match the others.
        """
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"boundary is {self.boundary!r}, but must be one of {', '.join(BOUNDARIES)}")
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels are {self.levels}, but each must be at least 2")
        if len(set(self.pieces)) != len(self.pieces):
            raise ValueError("pieces are not distinct")
        wrong = [piece for piece in self.pieces if not 2 <= len(piece) <= MAX_PIECE_BYTES]
        if wrong:
            raise ValueError(f"piece {wrong[0]!r} has {len(wrong[0])} bytes, but must have 2 to {MAX_PIECE_BYTES}")
        if len(self.codes) != NUM_BYTES + len(self.pieces):
            raise ValueError(f"there are {len(self.codes)} codes for {NUM_BYTES + len(self.pieces)} bytes and pieces")
        if len(np.unique(self.codes)) != len(self.codes):
            raise ValueError("codes are not distinct")
        if self.costs is not None and (len(self.costs) != len(self.codes) or min(self.costs) < 1):
            raise ValueError(f"there must be a cost of at least 1 for each of {len(self.codes)} bytes and pieces")
        if self.codes.min() < 0 or self.codes.max() >= math.prod(self.levels):
            raise ValueError(f"codes must lie between 0 and {math.prod(self.levels) - 1}, as levels {self.levels} say")

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields alone, because values computed at first use must change neither copies nor fingerprints."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def size(self) -> int:
        """The number of ids, special tokens included."""
        return NUM_BYTES + len(self.pieces) + NUM_SPECIAL_TOKENS

    @cached_property
    def spellings(self) -> list[bytes]:
        """The bytes of every id, without the special tokens."""
        return [bytes([byte]) for byte in range(NUM_BYTES)] + self.pieces

    @cached_property
    def names(self) -> list[str]:
        """The names of tokens, which are their spellings in the byte-level alphabet."""
        return list(map(to_characters, self.spellings))

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of bytes of each spelling, int64."""
        return np.array([len(spelling) for spelling in self.spellings], dtype=np.int64)

    @cached_property
    def segmenter(self) -> "Segmenter":
        """The segmentation into the pieces of this table, with a cache of 65,536 stretches."""
        return Segmenter(self, cache_size=1 << 16)

    @cached_property
    def network(self) -> Any:
        """The [`FSQAutoencoderModel`] that computed the codes, in evaluation mode.

        Raises:
            ValueError: if the weights of the network are not stored with the table.
        """
        if self.weights is None:
            raise ValueError(f"this tokenizer has no {AUTOENCODER_FILE}: only mode='table' works")
        from safetensors.torch import load

        from .configuration_fsq_autoencoder import FSQAutoencoderConfig
        from .modeling_fsq_autoencoder import FSQAutoencoderModel

        model = FSQAutoencoderModel(FSQAutoencoderConfig(**(self.autoencoder or {})))
        model.load_state_dict(load(self.weights))
        return model.eval()

    def subset(self, ids: list[int]) -> "FSQVocabulary":
        """Return the next version of the table, which has only some of the ids, in the order of `ids`.

        Args:
            ids: the 256 ids of bytes first, then ids of pieces.
        """
        place = {index: new for new, index in enumerate(ids)}
        return replace(
            self,
            pieces=[self.spellings[index] for index in ids[NUM_BYTES:]],
            codes=self.codes[ids],
            moved=[place[index] for index in self.moved if index in place],
            inexact=[place[index] for index in self.inexact if index in place],
            version=self.version + 1,
            costs=None if self.costs is None else [self.costs[index] for index in ids],
        )

    def to_json(self) -> str:
        """Return the content of the vocabulary file, which includes its own SHA-256 and that of the network's
        weights."""
        content = {
            "format": FORMAT,
            "version": self.version,
            "boundary": self.boundary,
            "levels": list(self.levels),
            "pieces": list(map(to_characters, self.pieces)),
            "codes": self.codes.tolist(),
            "moved": list(self.moved),
            "inexact": list(self.inexact),
            "autoencoder": self.autoencoder,
            "autoencoder_sha256": None if self.weights is None else bytes_hash(self.weights),
        }
        if self.costs is not None:
            content["costs"] = self.costs
        return json.dumps({**content, "sha256": content_hash(content)}, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: str | Path, autoencoder_path: str | Path | None = None) -> "FSQVocabulary":
        """Read a vocabulary file, and check that the weights of the network are those with which the table was made.

        Raises:
            ValueError: if the file is incomplete, modified or invalid, or if the weights are not those of the table.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            written_hash = content.pop("sha256")
            if written_hash != content_hash(content):
                raise ValueError("its content does not match its sha256")
            if content.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            weights_hash = content.pop("autoencoder_sha256")
            weights = None if autoencoder_path is None else Path(autoencoder_path).read_bytes()
            vocabulary = cls(
                **content
                | {
                    "pieces": list(map(from_characters, content["pieces"])),
                    "codes": np.array(content["codes"], dtype=np.int64),
                    "weights": weights,
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a whole FSQ vocabulary: {error}; {REBUILD}") from error
        if weights is not None and bytes_hash(weights) != weights_hash:
            raise ValueError(f"{autoencoder_path} holds another encoder than the one of the table {path}; {REBUILD}")
        return vocabulary


def content_hash(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a JSON object, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def bytes_hash(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class Segmenter:
    """Segmentation of bytes into ids. Each stretch gets the fewest tokens, or the lowest cost if the vocabulary has
    costs; among equals, the longest last piece is taken.

    Args:
        vocabulary: the table.
        cache_size: number of stretches whose ids are cached; 0 for none.
        neural: whether only those pieces are used that the network encodes to their code and reconstructs from it.
        autoencoder: the network, for `neural`.
    """

    def __init__(self, vocabulary: FSQVocabulary, cache_size: int, neural: bool = False, autoencoder: Any = None):
        self.vocabulary = vocabulary
        self.cache_size = cache_size
        self.neural = neural
        self.autoencoder = autoencoder if neural else None
        self.pattern = bytes_pattern(vocabulary.boundary)
        self.ids = {spelling: index for index, spelling in enumerate(vocabulary.spellings)}
        self.costs = vocabulary.costs
        # The size of the longest piece with these last two bytes, which limits the search for pieces.
        self.longest: dict[bytes, int] = {}
        for spelling in vocabulary.spellings:
            self.longest[spelling[-2:]] = max(len(spelling), self.longest.get(spelling[-2:], 1))
        # The pieces that may be used. In neural mode, `try_pieces` adds those that the network reconstructs.
        self.usable = dict(list(self.ids.items())[:NUM_BYTES]) if neural else self.ids
        self.tried: set[bytes] = set()
        self.cached = lru_cache(cache_size)(self.segment) if cache_size else self.segment

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the arguments alone, without cached ids and tried pieces, which affect only the speed."""
        return Segmenter, (self.vocabulary, self.cache_size, self.neural, self.autoencoder)

    def __call__(self, data: bytes) -> list[int]:
        """Return the ids of any byte string."""
        stretches = self.pattern.findall(data)
        self.prepare(stretches)
        return list(chain.from_iterable(map(self.cached, stretches)))

    def prepare(self, stretches: list[bytes]) -> None:
        """Determine, in neural mode, which pieces inside the stretches may be used."""
        if self.autoencoder is not None:
            self.try_pieces(stretches, self.autoencoder)

    def segment(self, stretch: bytes) -> tuple[int, ...]:
        """Return the ids of a complete stretch."""
        if self.costs is None and stretch in self.usable:
            return (self.usable[stretch],)
        return self.read_back(stretch, self.extend(stretch, [0]))

    def extend(self, stretch: bytes, lowest: list[int]) -> list[int]:
        """Extend the dynamic program over the ends of pieces, from the last entry of `lowest` on.

        Args:
            stretch: all bytes from position 0 on.
            lowest: lowest number of tokens (or cost) up to each position, from 0 on; those of further positions are
                appended.

        Returns:
            The size of the last piece up to each further position.
        """
        if self.costs is not None:
            return self.extend_by_cost(stretch, lowest, self.costs)
        usable, longest = self.usable, self.longest
        sizes = []
        for end in range(len(lowest), len(stretch) + 1):
            best, origin = lowest[end - 1] + 1, end - 1  # a single byte is always possible
            for start in range(max(0, end - longest.get(stretch[end - 2 : end], 1)), end - 1):
                # Among equals, the earliest start is taken, and a single byte last.
                tokens = lowest[start] + 1
                is_better = tokens < best or (tokens == best and origin == end - 1)
                if is_better and stretch[start:end] in usable:
                    best, origin = tokens, start
            lowest.append(best)
            sizes.append(end - origin)
        return sizes

    def extend_by_cost(self, stretch: bytes, lowest: list[int], costs: list[int]) -> list[int]:
        """Extend as [`extend`] does, with a cost for each piece, which is slower than counting tokens."""
        sizes = []
        for end in range(len(lowest), len(stretch) + 1):
            starts = range(max(0, end - self.longest.get(stretch[end - 2 : end], 1)), end)
            ways = ((lowest[start], start, self.usable.get(stretch[start:end])) for start in starts)
            best, origin = min((cost + costs[piece], start) for cost, start, piece in ways if piece is not None)
            lowest.append(best)
            sizes.append(end - origin)
        return sizes

    def read_back(self, stretch: bytes, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return the ids of a stretch from the size of the last piece up to the end of each byte."""
        ids = []
        end = len(stretch)
        while end:
            start = end - sizes[end - 1]
            ids.append(self.usable[stretch[start:end]])
            end = start
        return tuple(reversed(ids))

    def try_pieces(self, stretches: list[bytes], autoencoder: Any) -> None:
        """Run the network, in one batch, on all pieces inside the stretches that have not been tried yet."""
        new = sorted(
            {
                piece
                for stretch in set(stretches)
                for start in range(len(stretch))
                for end in range(start + 2, min(start + MAX_PIECE_BYTES, len(stretch)) + 1)
                if (piece := stretch[start:end]) in self.ids and piece not in self.tried
            }
        )
        if not new:
            return
        import torch

        chunks, lengths = (torch.from_numpy(part) for part in spelling_table(new))
        codes = autoencoder.encode(chunks, lengths)
        decoded, decoded_lengths = autoencoder.decode(codes)
        for piece, code, spelled, length in zip(
            new, codes.tolist(), decoded.numpy(), decoded_lengths.tolist(), strict=True
        ):
            if code == self.vocabulary.codes[self.ids[piece]] and bytes(spelled[:length]) == piece:
                self.usable[piece] = self.ids[piece]
        self.tried.update(new)  # last, because another thread treats tried pieces as decided


def spelling_table(spellings: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return spellings as a table `(N, 16)`, uint8, with zeros after their end, and their lengths `(N,)`, int64."""
    joined = bytearray(b"".join(spelling.ljust(MAX_PIECE_BYTES, b"\0") for spelling in spellings))
    table = np.frombuffer(joined, np.uint8).reshape(-1, MAX_PIECE_BYTES)
    return table, np.array([len(spelling) for spelling in spellings], dtype=np.int64)
