"""Decoded image to uint8 tensor, for training and evaluation, and uint8 batch to model input."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import v2

from mnft.config.schema import AugmentConfig
from mnft.data.corruptions import vary_as_device
from mnft.preprocessing import Preprocessing

Transform = Callable[[Image.Image | Tensor], Tensor]

# Resizing the shorter side of a 1 x 100,000 strip to 256 pixels would take gigabytes. Where the
# resized image would have more pixels than the decoder allows, the middle is taken first, or the
# strip is shortened if all of it is to be seen.
_MAX_RESIZED_PIXELS = 89_478_485


def build_eval_transform(preprocessing: Preprocessing) -> Transform:
    """The standard evaluation pipeline, timm's, as uint8.

    With `crop_mode` "center" it is Resize(floor(size / crop_pct)) and CenterCrop(size). "squash"
    resizes to that size without keeping the aspect; "border" resizes to what fits in that size,
    and fills the rest with the mean.

    Returns:
        A function from an RGB image to a (C, H, W) uint8 tensor, whose pixels equal those of timm's
        `create_transform` on the same image. Strips are an exception if the resized image would
        take over 89 million pixels, or would be less than a pixel wide, which timm refuses.
    """
    geometry = create_transform(
        input_size=preprocessing.input_size,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,  # the colour of a border
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        is_training=False,
        normalize=False,
    )
    channels, *sides = preprocessing.input_size
    height, width = (math.floor(side / preprocessing.crop_pct) for side in sides)
    max_aspect = max(2, _MAX_RESIZED_PIXELS // max(height, width) ** 2)
    limit = {
        "center": partial(limit_aspect, max_aspect=max_aspect),
        "squash": partial(_shorten_to_squash, width=width),
        "border": partial(_shorten_to_border, height=height, width=width),
    }[preprocessing.crop_mode]
    return _Pipeline(_to_grey if channels == 1 else None, geometry, limit)


def build_train_transform(augment: AugmentConfig, preprocessing: Preprocessing) -> Transform:
    """RandomResizedCrop, flips and what `augment` asks for, as uint8.

    Every random choice is drawn from torch's global generator, which the loader seeds for each
    image.

    Returns:
        A function from an RGB image, or a stored image as (C, H, W) uint8, to a (C, H, W) uint8
        tensor.
    """
    channels, height, width = preprocessing.input_size
    mode = v2.InterpolationMode(preprocessing.interpolation)
    steps: list[v2.Transform] = [
        v2.RandomResizedCrop(
            (height, width),
            scale=(max(augment.scale[0], 1e-4), augment.scale[1]),
            ratio=(augment.ratio[0], augment.ratio[1]),
            interpolation=mode,
        )
    ]
    if augment.hflip:
        steps.append(v2.RandomHorizontalFlip(augment.hflip))
    if augment.vflip:
        steps.append(v2.RandomVerticalFlip(augment.vflip))
    # torchvision cannot rotate tensors, as which images come from the store, bicubically.
    rotation = mode if mode is v2.InterpolationMode.NEAREST else v2.InterpolationMode.BILINEAR
    if augment.policy == "rand_augment":
        steps.append(v2.RandAugment(magnitude=augment.magnitude, interpolation=rotation))
    elif augment.policy == "trivial_augment":
        steps.append(v2.TrivialAugmentWide(interpolation=rotation))
    elif augment.policy == "aug_mix":
        severity = min(10, max(1, augment.magnitude // 3))
        steps.append(v2.AugMix(severity=severity, interpolation=rotation))
    if strength := augment.color_jitter:
        steps.append(v2.ColorJitter(strength, strength, strength))
    steps.append(v2.PILToTensor())
    if augment.random_erasing:
        # The mean colour, which normalisation turns into about 0.
        fill = list(preprocessing.fill)
        steps.append(v2.RandomErasing(augment.random_erasing, value=fill))
    if augment.device:
        steps.append(v2.Lambda(partial(_vary_as_device, probability=augment.device)))
    return _Pipeline(_to_grey if channels == 1 else None, v2.Compose(steps))


def normalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """ToTensor and Normalize on a whole batch.

    Args:
        images: (B, C, H, W) uint8.
        preprocessing: the mean and std.

    Returns:
        (B, C, H, W) float32: (images / 255 - mean) / std.
    """
    mean = _constants(preprocessing.mean, images.device)
    std = _constants(preprocessing.std, images.device)
    out = images.to(torch.float32)
    rows = out.permute(0, 2, 3, 1)
    if rows.is_contiguous():
        # Rows of pixels, so that the innermost loop is long: several times faster on the CPU.
        width = images.shape[3]
        rows = rows.view(-1, width * len(mean))
        rows.div_(255).sub_(mean.repeat(width)).div_(std.repeat(width))
        return out
    shape = (1, -1, 1, 1)
    return out.div_(255).sub_(mean.view(shape)).div_(std.view(shape))


@functools.cache
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on a device; they are cached, as each copy to a GPU waits until the GPU is idle."""
    return torch.tensor(values, device=device)


class _Pipeline:
    """Two steps in a row; a class, so that worker processes can receive it."""

    def __init__(
        self,
        first: Callable[[Image.Image], Image.Image] | None,
        second: Callable[[Any], Tensor],
        limit: Callable[[Image.Image], Image.Image] | None = None,
    ) -> None:
        self._first = first
        self._second = second
        self._limit = limit

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        if isinstance(image, Tensor):
            return self._second(image)  # from the store, which has done the first step
        if self._limit:
            image = self._limit(image)
        return self._second(self._first(image) if self._first else image)


def _vary_as_device(image: Tensor, *, probability: float) -> Tensor:
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    varied = vary_as_device(pixels, probability, int(torch.randint(2**62, ())))
    return torch.from_numpy(varied).permute(2, 0, 1)


def _to_grey(image: Image.Image) -> Image.Image:
    return image.convert("L")


def limit_aspect(image: Image.Image, max_aspect: int) -> Image.Image:
    """Cut both ends of the longer side to `max_aspect` times the shorter side."""
    width, height = image.size
    longest = max_aspect * min(width, height)
    # As much is cut from one end as from the other, so that the centre stays the centre.
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, width - left, height - top)) if left or top else image


def _shorten_to_squash(image: Image.Image, *, width: int) -> Image.Image:
    # Pillow first resizes each row, and a strip may have millions of them.
    return _shorten(image, (image.width, _MAX_RESIZED_PIXELS // width))


def _shorten_to_border(image: Image.Image, *, height: int, width: int) -> Image.Image:
    # timm rounds the shorter side, so that less than half a pixel would become none.
    return _shorten(image, (2 * image.height * width - 1, 2 * image.width * height - 1))


def _shorten(image: Image.Image, longest: tuple[int, int]) -> Image.Image:
    """Reduce a width and a height that are over `longest` by whole factors; no end is lost."""
    factors = [math.ceil(side / most) for side, most in zip(image.size, longest, strict=True)]
    return image.reduce((factors[0], factors[1])) if max(factors) > 1 else image
