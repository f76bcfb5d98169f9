"""What is put into an exported file, so that apps need not compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


def _leave(_settings: Mapping[str, Any]) -> float:
    return 1.0


@dataclass(frozen=True, slots=True)
class Activation:
    """The function from a model's outputs to what apps want.

    Attributes:
        outputs: what the model's outputs are called, such as "logits".
        name: what the function makes of them, such as "probabilities".
        apply: the function, on (B, K).
        invert: back to outputs, up to what does not change `apply` and the answers.
        read_temperature: what the outputs of the trained weights are divided by, from what the task
            keeps with the model.
    """

    outputs: str
    name: str
    apply: Callable[[Tensor], Tensor]
    invert: Callable[[Tensor], Tensor]
    read_temperature: Callable[[Mapping[str, Any]], float] = _leave
