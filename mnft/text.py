"""Numbers in sentences."""

from __future__ import annotations


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 file", "2 files", "1,000 classes" (`plural` where not -s)."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
