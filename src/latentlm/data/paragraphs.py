"""Removal of repeated paragraphs from a text, so that no held-out paragraph is trained on, and none is trained on
twice."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from .sources import Repeats, Source
from .splitting import document_key

BLANK_LINES = re.compile(r"((?:\A|\n)(?:[^\S\n]*\n)+)")


def without_repeats(source: Source, held_out: Source | None = None) -> Source:
    """Return a source without repeated paragraphs, of which only the first occurrence remains. Its `repeats` counts the
    dropped paragraphs.

    A paragraph is text between blank lines. White space at its end is ignored in comparisons. A document without
    remaining paragraphs is dropped. Reading needs about 100 bytes of memory for each paragraph.

    Args:
        source: the documents.
        held_out: documents whose paragraphs are all dropped as well.
    """
    repeats = Repeats()

    def fingerprint() -> str:
        return f"each paragraph once: {source.fingerprint()}"

    return replace(source, documents=_reader(source, held_out, repeats), fingerprint=fingerprint, repeats=repeats)


def _reader(source: Source, held_out: Source | None, repeats: Repeats) -> Callable[[], Iterator[str]]:
    def documents() -> Iterator[str]:
        seen = {
            document_key(paragraph.rstrip())
            for text in (held_out.documents() if held_out else ())
            for paragraph in BLANK_LINES.split(text)[::2]
        }
        left_out = Repeats()
        for text in source.documents():
            parts = BLANK_LINES.split(text)  # paragraphs, and the blank lines between them
            parts.append("")
            unique: list[str] = []
            for paragraph, blank in zip(parts[::2], parts[1::2], strict=True):
                content = paragraph.rstrip()
                key = document_key(content)
                if content and key in seen:
                    left_out.paragraphs += 1
                    left_out.bytes += len((paragraph + blank).encode("utf-8", "surrogatepass"))
                else:
                    seen.add(key)
                    unique += paragraph, blank
            remaining = "".join(unique)
            if remaining.strip() or len(unique) == len(parts):
                yield remaining
        repeats.paragraphs, repeats.bytes = left_out.paragraphs, left_out.bytes

    return documents
