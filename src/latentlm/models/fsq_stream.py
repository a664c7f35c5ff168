"""Segmentation of a text that comes in chunks. The ids are those of the whole text, and only undecided bytes are
buffered."""

import codecs
from collections.abc import Iterable, Iterator
from itertools import chain

from .block_byte_pieces import MAX_PIECE_BYTES
from .fsq_vocabulary import Segmenter

BLOCK = 1 << 16  # number of bytes that are segmented together
LONG_STRETCH = 256  # an open stretch of more bytes is segmented before its end is seen
SEEN_AGAIN = 3
"""The number of bytes at the end of an open stretch that the pattern reads again together with the bytes that follow.
The end of a stretch depends on the two bytes after it, and the end of an open stretch on its last two bytes."""


def encode_stream(segmenter: Segmenter, chunks: Iterable[str | bytes]) -> Iterator[int]:
    """Yield the ids of all chunks together, without special tokens. They are those of `segmenter(data)` for the whole
    text.

    Raises:
        ValueError: if bytes are not UTF-8, or the last chunk ends inside a character.
        TypeError: if a chunk is neither text nor bytes.
    """
    stream = Stream(segmenter)
    check = codecs.getincrementaldecoder("utf-8")("surrogatepass")
    position = 0
    for chunk in chunks:
        if not isinstance(chunk, (str, bytes, bytearray, memoryview)):
            raise TypeError(f"a chunk of the stream is {type(chunk).__name__}, but must be str or bytes")
        data = chunk.encode("utf-8", "surrogatepass") if isinstance(chunk, str) else bytes(chunk)
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            before = len(check.getstate()[0])  # incomplete character, which `error.start` counts too
            try:
                check.decode(block)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"byte {position - before + error.start} of the stream is not UTF-8 ({error.reason}); "
                    "`encode_bytes` takes any bytes"
                ) from error
            position += len(block)
            yield from stream.feed(block)
    cut = check.getstate()[0]
    if cut:
        raise ValueError(f"the stream ends inside a character, after its bytes {cut!r}; `encode_bytes` takes any bytes")
    yield from stream.finish()


class Stream:
    """Segmentation of bytes that come in blocks.

    Args:
        segmenter: the segmentation whose ids the whole text would have.
    """

    def __init__(self, segmenter: Segmenter):
        self.segmenter = segmenter
        self.open = OpenStretch(segmenter)
        self.held = b""  # the last bytes, whose cuts depend on the bytes that follow

    def feed(self, data: bytes) -> list[int]:
        """Return the ids that further bytes decide."""
        stretches = self.segmenter.pattern.findall(self.held + data)
        held = b""
        while stretches and len(held) < 2:
            held = stretches.pop() + held
        ids = self.close(stretches)
        decided = 0
        if self.open.lowest or len(held) > LONG_STRETCH:
            decided = max(len(held) - SEEN_AGAIN, 0)
            ids += self.open.extend(held[:decided])
        self.held = held[decided:]
        return ids

    def finish(self) -> list[int]:
        """Return the remaining ids at the end of the text."""
        ids = self.close(self.segmenter.pattern.findall(self.held))
        self.held = b""
        return ids + self.open.finish()

    def close(self, stretches: list[bytes]) -> list[int]:
        """Return the ids of complete stretches, of which the first one completes the open stretch if there is one."""
        ids: list[int] = []
        if stretches and self.open.lowest:
            ids = self.open.extend(stretches[0]) + self.open.finish()
            stretches = stretches[1:]
        self.segmenter.prepare(stretches)
        return ids + list(chain.from_iterable(map(self.segmenter.cached, stretches)))


class OpenStretch:
    """The dynamic program over a stretch that comes in parts.

    A future piece begins at one of the last 16 positions. Hence the part that the best segmentations up to all of these
    positions share is decided. In written text they share a part after a few bytes. In a run of one character they need
    not, because the length of the whole run determines how it begins. Two bytes are stored for each undecided byte.
    """

    def __init__(self, segmenter: Segmenter):
        self.segmenter = segmenter
        self.reset()

    def reset(self) -> None:
        self.data = bytearray()  # undecided bytes
        self.sizes = bytearray()  # size of the last piece up to the end of each of them
        self.lowest: list[int] = []  # cost up to each of the last positions; empty if no stretch is open
        self.look_at = LONG_STRETCH  # number of undecided bytes at which a decision is tried

    def extend(self, part: bytes) -> list[int]:
        """Return the ids that a further part of the stretch decides."""
        lowest = self.lowest or [0]
        window = bytes(self.data[1 - len(lowest) :] if len(lowest) > 1 else b"") + part
        self.segmenter.prepare([window])
        self.sizes += bytes(self.segmenter.extend(window, lowest))
        self.lowest = lowest[-MAX_PIECE_BYTES - 1 :]
        self.data += part
        if len(self.data) < self.look_at:
            return []
        ids = self.take(self.decided())
        self.look_at = 2 * len(self.data) + LONG_STRETCH
        return ids

    def decided(self) -> int:
        """Return the last position that the best segmentations up to each of the last 16 positions share. At least 16
        bytes follow it."""
        size = len(self.data)
        positions = set(range(size - MAX_PIECE_BYTES, size + 1))
        while len(positions) > 1:
            last = max(positions)
            positions.remove(last)
            positions.add(last - self.sizes[last - 1])
        return positions.pop()

    def take(self, end: int) -> list[int]:
        """Return the ids of the first `end` bytes, and remove these bytes."""
        ids = self.segmenter.read_back(bytes(self.data[:end]), self.sizes)
        del self.data[:end], self.sizes[:end]
        return list(ids)

    def finish(self) -> list[int]:
        """Return the remaining ids, and close the stretch."""
        ids = self.take(len(self.data))
        self.reset()
        return ids
