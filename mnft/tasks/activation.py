"""What an exported file may end in, so that apps need not compute it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Activation:
    """The function from a model's outputs to what apps want.

    Attributes:
        outputs: what the model's outputs are called, such as "logits".
        name: what the function makes of them, such as "probabilities".
        apply: the function, on (B, K).
        invert: back to outputs, up to what does not change `apply` and the answers.
    """

    outputs: str
    name: str
    apply: Callable[[Tensor], Tensor]
    invert: Callable[[Tensor], Tensor]
