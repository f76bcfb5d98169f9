"""How far a student's labels are from those of its teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def compute_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(sigmoid(teacher) || sigmoid(student)) of each label, summed; a scalar.

    A distribution of two outcomes for each label in place of one over all is as in Yang et al.,
    2023, "Multi-Label Knowledge Distillation", ICCV. Labels that are unknown for an image are
    compared too, because the teacher says something of all.

    Args:
        teacher: (B, K) float logits.
        student: (B, K) float logits.
    """
    probabilities = torch.sigmoid(teacher)
    divergences = probabilities * (F.logsigmoid(teacher) - F.logsigmoid(student))
    divergences += (1 - probabilities) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return divergences.sum()
