"""What makes probabilities of a label's logit; light, as LiteRT's environment imports it."""

from __future__ import annotations

import torch
from torch import Tensor

from mnft.tasks.activation import Activation

_ROUNDING = 1e-3  # what may be beyond 0 and 1


def _logit(probabilities: Tensor) -> Tensor:
    # Probabilities that were rounded to 0 or 1 need finite logits too. The largest float below 1
    # and the smallest normal one above 0 stay what they are. What is far outside is no probability,
    # such as the output of a file that lost its sigmoid, and must not look like a sure one.
    info = torch.finfo(probabilities.dtype)
    logits = torch.logit(probabilities.clamp(info.tiny, 1 - info.eps / 2))
    return logits.masked_fill((probabilities - 0.5).abs() > 0.5 + _ROUNDING, torch.nan)


ACTIVATION = Activation("logits", "probabilities", torch.sigmoid, _logit)
