"""Distillation: the loss that compares a student with a frozen teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mnft.config.schema import DistillConfig
from mnft.device.select import autocast
from mnft.errors import ModelError
from mnft.preprocessing import Preprocessing
from mnft.tasks.base import Loss
from mnft.training.distill.teacher import Teacher

# Of red, green and blue in grey (ITU-R BT.601), as Pillow turns images grey.
_LUMA = (0.299, 0.587, 0.114)


class DistillationLoss:
    """The student's loss and its distance from the teacher, summed over the batch.

    (1 - weight) * criterion + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)),
    where T^2 keeps the gradient's size the same for all temperatures (Hinton, Vinyals, Dean,
    2015, "Distilling the Knowledge in a Neural Network", section 2). The teacher sees the
    student's images, with the same crops and mixing ("consistent teaching", Beyer et al., 2022,
    "Knowledge distillation: A good teacher is patient and consistent", section 2).

    Args:
        criterion: the summed loss on the labels.
        teacher: is put in evaluation mode, and none of it learns.
        config: temperature and weight.
        student: preprocessing of the images that the loss is given.
        dtype: arithmetic of the teacher.
    """

    def __init__(
        self,
        criterion: Loss,
        teacher: Teacher,
        config: DistillConfig,
        *,
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
        self._temperature = config.temperature
        self._weight = config.weight
        self._dtype = dtype

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
            log_student = F.log_softmax(logits.float() / self._temperature, dim=1)
            log_teacher = F.log_softmax(teacher.float() / self._temperature, dim=1)
            divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
            loss = loss + self._weight * self._temperature**2 * divergence
        return loss


class InputAdapter:
    """Images as one model expects them to images as another does.

    Normalisation and channels are converted; grey is Pillow's weighted sum of the colours.

    Args:
        source: preprocessing of the images that are given.
        target: preprocessing that is wanted.
        resize: give images the size of `target`; else they keep theirs.
        device: of the images.

    Raises:
        ModelError: the numbers of channels differ, and are not 1 and 3.
    """

    def __init__(
        self, source: Preprocessing, target: Preprocessing, *, resize: bool, device: torch.device
    ) -> None:
        given, wanted = source.input_size[0], target.input_size[0]
        if given != wanted and {given, wanted} != {1, 3}:
            raise ModelError(
                f"the teacher takes images of {wanted} channels, the student of {given}",
                hint="images can be turned from 3 channels to 1 and back",
                key="distill.teacher",
            )
        self._size = target.input_size[1:] if resize else None
        self._to_grey = given > wanted
        self._same = (source.mean, source.std) == (target.mean, target.std)
        luma = _column(_LUMA if self._to_grey else (1.0,))
        mean = luma * _column(source.mean)
        if self._to_grey:
            mean = mean.sum(1, keepdim=True)
        # (pixel - target's mean) / target's std, where pixel = image * std + mean.
        new_std = _column(target.std)
        self._scale = (luma * _column(source.std) / new_std).float().to(device)
        self._shift = ((mean - _column(target.mean)) / new_std).float().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Convert (B, C, H, W) float images."""
        if self._to_grey:
            images = (images * self._scale).sum(1, keepdim=True) + self._shift
        elif not self._same:
            images = images * self._scale + self._shift
        if self._size is not None and tuple(images.shape[2:]) != self._size:
            images = F.interpolate(images, self._size, mode="bilinear", antialias=True)
        return images


def _column(values: Sequence[float]) -> Tensor:
    """(1, C, 1, 1) float64."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
