"""Distillation: the loss that compares a student with frozen teachers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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


def average_probabilities(teachers: Tensor) -> Tensor:
    """Logits whose softmax is the mean of the teachers' probabilities.

    Args:
        teachers: (T, B, K) float logits.

    Returns:
        (B, K) float logits.
    """
    return torch.logsumexp(F.log_softmax(teachers, dim=2), dim=0) - math.log(len(teachers))


class DistillationLoss:
    """The student's loss and its distance from the teachers, summed over the batch.

    (1 - weight) * criterion + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)),
    where T^2 keeps the gradient's size the same for all temperatures (Hinton, Vinyals, Dean,
    2015, "Distilling the Knowledge in a Neural Network", section 2). A teacher sees the
    student's images, with the same crops and mixing ("consistent teaching", Beyer et al., 2022,
    "Knowledge distillation: A good teacher is patient and consistent", section 2). Of several
    teachers the probabilities at the temperature T are averaged.

    Args:
        criterion: the summed loss on the labels.
        teachers: the teachers, which are put in evaluation mode and do not learn.
        config: temperature and weight.
        student: preprocessing of the images that the loss is given.
        dtype: dtype in which the teachers compute.
        divergence: distance of two (B, K) float logits, the teacher's first, summed over the batch.
        average: (T, B, K) float logits of teachers to (B, K) float logits that stand for all.
    """

    def __init__(
        self,
        criterion: Loss,
        teachers: Sequence[Teacher],
        config: DistillConfig,
        student: Preprocessing,
        dtype: torch.dtype,
        divergence: Callable[[Tensor, Tensor], Tensor] = compute_divergence,
        average: Callable[[Tensor], Tensor] = average_probabilities,
    ) -> None:
        self._criterion = criterion
        self._teachers = [_Frozen(teacher, student) for teacher in teachers]
        self._temperature = config.temperature
        self._weight = config.weight
        self._dtype = dtype
        self._divergence = divergence
        self._average = average

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
                given = [teacher(images).float() / self._temperature for teacher in self._teachers]
                teacher = given[0] if len(given) == 1 else self._average(torch.stack(given))
            divergence = self._divergence(teacher, logits.float() / self._temperature)
            loss = loss + self._weight * self._temperature**2 * divergence
        return loss


class _Frozen:
    """A teacher that takes the student's images and gives logits in the student's order."""

    def __init__(self, teacher: Teacher, student: Preprocessing) -> None:
        if teacher.needs_head:
            raise ValueError(f"the head of the teacher is not fitted: {teacher.description}")
        self._model = teacher.model.requires_grad_(False).eval()
        self._order = None if teacher.order is None else list(teacher.order)
        self._adapt = InputAdapter(
            student,
            teacher.preprocessing,
            resize=teacher.fixed_input,
            device=next(teacher.model.parameters()).device,
        )

    def __call__(self, images: Tensor) -> Tensor:
        logits: Tensor = self._model(self._adapt(images))
        return logits if self._order is None else logits[:, self._order]
