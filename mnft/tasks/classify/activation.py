"""What makes probabilities of a classifier's logits; light, as LiteRT's environment imports it."""

from __future__ import annotations

import torch
from torch import Tensor

from mnft.tasks.activation import Activation


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=1)


def _log(probabilities: Tensor) -> Tensor:
    # A probability that was rounded to 0 needs a finite logarithm too.
    return probabilities.clamp_min(torch.finfo().tiny).log()


ACTIVATION = Activation("logits", "probabilities", _softmax, _log)
