"""Numbers in sentences."""

from __future__ import annotations

import pytest

from mnft.text import count


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [
        (0, ("file",), "0 files"),
        (1, ("file",), "1 file"),
        (2000, ("file",), "2,000 files"),
        (1, ("class", "classes"), "1 class"),
        (3, ("class", "classes"), "3 classes"),
    ],
)
def test_a_number_with_its_noun(number: int, words: tuple[str, ...], expected: str) -> None:
    assert count(number, *words) == expected
