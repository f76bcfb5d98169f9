"""Distillation: the loss that compares a student's labels with those of a frozen teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mnft.config.schema import DistillConfig
from mnft.device.select import autocast
from mnft.model.input_adapter import InputAdapter
from mnft.preprocessing import Preprocessing
from mnft.tasks.base import Loss, Teacher


class DistillationLoss:
    """The student's loss and its distance from the teacher, summed over labels and the batch.

    (1 - weight) * criterion + weight * T^2 * sum of KL(sigmoid(teacher / T) || sigmoid(student /
    T)) over the labels, each a distribution of two outcomes. T^2 keeps the gradient's size the same
    for all temperatures (Hinton, Vinyals, Dean, 2015, "Distilling the Knowledge in a Neural
    Network", section 2); a distribution for each label in place of one over all is as in Yang et
    al., 2023, "Multi-Label Knowledge Distillation", ICCV. Labels that are unknown for an image are
    compared too, because the teacher says something of all. The teacher sees the student's images,
    with the same crops and mixing.

    Args:
        criterion: the summed loss on the labels.
        teacher: the teacher, which is put in evaluation mode and does not learn.
        config: temperature and weight.
        student: preprocessing of the images that the loss is given.
        dtype: dtype in which the teacher computes.
    """

    def __init__(
        self,
        criterion: Loss,
        teacher: Teacher,
        config: DistillConfig,
        student: Preprocessing,
        dtype: torch.dtype,
    ) -> None:
        if teacher.needs_head:
            raise ValueError(f"the head of the teacher is not fitted: {teacher.description}")
        self._criterion = criterion
        self._model = teacher.model.requires_grad_(False).eval()
        self._order = None if teacher.order is None else list(teacher.order)
        self._adapt = InputAdapter(
            student,
            teacher.preprocessing,
            resize=teacher.fixed_input,
            device=next(teacher.model.parameters()).device,
        )
        self._config = config
        self._dtype = dtype

    def __call__(self, logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        """The summed loss.

        Args:
            logits: (B, K) float, of the student.
            targets: (B, K) float in [0, 1], NaN where a label is unknown.
            images: (B, C, H, W) float, as the student sees them.
        """
        weight, temperature = self._config.weight, self._config.temperature
        loss = torch.zeros((), device=logits.device)
        if weight < 1:
            loss = (1 - weight) * self._criterion(logits, targets, images)
        if weight > 0:
            # Not inference_mode: its tensors cannot be saved for a backward pass.
            with torch.no_grad(), autocast(images.device, self._dtype):
                teacher: Tensor = self._model(self._adapt(images))
            if self._order is not None:
                teacher = teacher[:, self._order]
            divergence = compute_divergence(
                teacher.float() / temperature, logits.float() / temperature
            )
            loss = loss + weight * temperature**2 * divergence
        return loss


def compute_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(sigmoid(teacher) || sigmoid(student)) of each label, summed; a scalar.

    Args:
        teacher: (B, K) float logits.
        student: (B, K) float logits.
    """
    probabilities = torch.sigmoid(teacher)
    divergences = probabilities * (F.logsigmoid(teacher) - F.logsigmoid(student))
    divergences += (1 - probabilities) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return divergences.sum()
