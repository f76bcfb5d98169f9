"""Distillation: the loss that compares a student with a frozen teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mnft.config.schema import DistillConfig
from mnft.device.select import autocast
from mnft.model.input_adapter import InputAdapter
from mnft.preprocessing import Preprocessing
from mnft.tasks.base import Loss, Teacher


def compute_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)), summed over the batch; a scalar.

    Args:
        teacher: (B, K) float logits.
        student: (B, K) float logits.
    """
    log_student, log_teacher = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)


class DistillationLoss:
    """The student's loss and its distance from the teacher, summed over the batch.

    (1 - weight) * criterion + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)),
    where T^2 keeps the gradient's size the same for all temperatures (Hinton, Vinyals, Dean,
    2015, "Distilling the Knowledge in a Neural Network", section 2). The teacher sees the
    student's images, with the same crops and mixing ("consistent teaching", Beyer et al., 2022,
    "Knowledge distillation: A good teacher is patient and consistent", section 2).

    Args:
        criterion: the summed loss on the labels.
        teacher: the teacher, which is put in evaluation mode and does not learn.
        config: temperature and weight.
        student: preprocessing of the images that the loss is given.
        dtype: dtype in which the teacher computes.
        divergence: distance of two (B, K) float logits, the teacher's first, summed over the batch.
    """

    def __init__(
        self,
        criterion: Loss,
        teacher: Teacher,
        config: DistillConfig,
        student: Preprocessing,
        dtype: torch.dtype,
        divergence: Callable[[Tensor, Tensor], Tensor] = compute_divergence,
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
        self._temperature = config.temperature
        self._weight = config.weight
        self._dtype = dtype
        self._divergence = divergence

    def __call__(self, logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        """The summed loss.

        Args:
            logits: (B, K) float, of the student.
            targets: (B,) int64 labels or (B, K) float probabilities.
            images: (B, C, H, W) float, as the student sees them.
        """
        loss = torch.zeros((), device=logits.device)
        if self._weight < 1:
            loss = (1 - self._weight) * self._criterion(logits, targets, images)
        if self._weight > 0:
            # Not inference_mode: its tensors cannot be saved for a backward pass.
            with torch.no_grad(), autocast(images.device, self._dtype):
                teacher: Tensor = self._model(self._adapt(images))
            if self._order is not None:
                teacher = teacher[:, self._order]
            divergence = self._divergence(
                teacher.float() / self._temperature, logits.float() / self._temperature
            )
            loss = loss + self._weight * self._temperature**2 * divergence
        return loss
