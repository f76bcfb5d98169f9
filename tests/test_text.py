"""Numbers in sentences."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from mnft.commands import quantize
from mnft.compress.quantize.attempts import choose_method
from mnft.config.edge import QuantizeConfig
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


def test_what_is_slower_is_not_called_fast() -> None:
    assert quantize._compare_speed(1.5) == "1.50 times as fast"
    assert quantize._compare_speed(0.8) == "which takes 1.25 times as long"


@pytest.mark.parametrize(("method", "names"), [("nncf", False), ("onnxruntime", True)])
def test_advice_on_slow_int8_agrees_with_the_documentation(method: str, names: bool) -> None:
    """OpenVINO is the runtime to turn to, not away from (docs/smaller.md)."""
    for package in ("nncf", "onnxruntime"):  # which take seconds to import
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    chosen = choose_method(QuantizeConfig.model_validate({"method": method}))
    advice = quantize._advise_on_speed(chosen)
    assert ("--set quantize.method=nncf" in advice) == names
    assert "quantize.method=onnxruntime" not in advice
