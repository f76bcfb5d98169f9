"""What makes probabilities of a classifier's logits; light, as LiteRT's environment imports it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mnft.tasks.activation import Activation
from mnft.tasks.classify.decision.record import read_settings


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=1)


def _log(probabilities: Tensor) -> Tensor:
    # A probability that was rounded to 0 needs a finite logarithm too.
    return probabilities.clamp_min(torch.finfo().tiny).log()


def _read_temperature(settings: Mapping[str, Any]) -> float:
    return read_settings(settings).temperature


ACTIVATION = Activation("logits", "probabilities", _softmax, _log, _read_temperature)
