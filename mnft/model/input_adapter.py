"""Convert images from what one model expects to what another one expects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mnft.errors import ModelError
from mnft.preprocessing import Preprocessing

# Of red, green and blue in grey (ITU-R BT.601), as Pillow turns images grey.
_LUMA = (0.299, 0.587, 0.114)


class InputAdapter:
    """Images as one model expects them to images as another does.

    Normalisation and channels are converted; grey is Pillow's weighted sum of the colours.

    Args:
        source: preprocessing of the images that are given.
        target: preprocessing that is wanted.
        resize: give images the size of `target`; else they keep theirs.
        device: device of the images.

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
