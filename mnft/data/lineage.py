"""Sets of images that models were trained on, small enough to go with every model folder."""

from __future__ import annotations

from collections.abc import Iterable

# Hexadecimal digits of a SHA-256: 64 bits. Of a million images against ten thousand the chance
# that one is taken for another is one in two billion.
_DIGITS = 16


def shorten(sha256: str) -> str:
    """What stands for an image by its content, where the file itself is not needed again."""
    return sha256[:_DIGITS]


def pack(contents: Iterable[str]) -> str:
    """Shortened SHA-256 as one text for JSON, which is the same for the same images."""
    return " ".join(sorted(set(contents)))


def unpack(text: object) -> frozenset[str]:
    """What `pack` was given.

    Raises:
        ValueError: another text, or none.
    """
    found = frozenset(text.split()) if isinstance(text, str) else frozenset({""})
    for content in found:
        if len(content) != _DIGITS or content.strip("0123456789abcdef"):
            raise ValueError(f"found {content!r} among the images that a model was trained on")
    return found
