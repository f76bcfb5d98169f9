"""Crop, flip and resize stored images: on the CPU one by one, on a device whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnft.data.draws import Draws
from mnft.data.geometry import Pixels
from mnft.data.store import StoredImages

# Parts of a batch that are handed to threads.
_PARTS = 4


def resample_on_cpu(
    images: Sequence[Pixels],
    draws: Draws,
    size: tuple[int, int],
    interpolation: str,
    pool: ThreadPoolExecutor | None = None,
) -> Tensor:
    """Crops of a batch, resized and flipped.

    Args:
        images: B arrays (H, W, C) uint8, each of its own size.
        draws: crops and flips.
        size: height and width of the result.
        interpolation: "bilinear", "bicubic" (both with antialiasing, as Pillow's) or "nearest".
        pool: threads to share the images between.

    Returns:
        (B, C, *size) uint8.
    """
    # An array, as a tensor that is made in inference mode cannot be filled by other threads.
    out = np.empty((len(images), *size, images[0].shape[2]), dtype=np.uint8)
    smooth = interpolation != "nearest"
    mode = interpolation if smooth else "nearest-exact"

    def resample(number: int) -> None:
        top, left, height, width = draws.boxes[number].tolist()
        crop = torch.from_numpy(images[number][top : top + height, left : left + width])
        # In this order torch sees channels-last strides, for which it has its fastest kernels.
        image = crop.unsqueeze(0).permute(0, 3, 1, 2)
        resized = F.interpolate(image, size=size, mode=mode, antialias=smooth)
        if axes := [axis for axis, on in ((3, draws.hflip), (2, draws.vflip)) if on[number]]:
            resized = resized.flip(axes)
        out[number] = resized[0].permute(1, 2, 0).numpy()

    def resample_some(numbers: range) -> None:
        for number in numbers:
            resample(number)

    if pool is None:
        resample_some(range(len(images)))
    else:
        # Parts of several images: handing over each one would cost as much as resizing it.
        parts = [range(start, len(images), _PARTS) for start in range(_PARTS)]
        list(pool.map(resample_some, parts))
    return torch.from_numpy(out).permute(0, 3, 1, 2)


class DeviceImages:
    """Stored images in the memory of a device.

    Args:
        stored: the images; their part of the file is copied.
        device: where to.
    """

    def __init__(self, stored: StoredImages, device: torch.device) -> None:
        self.sizes = stored.sizes
        self.channels = stored.channels
        nbytes = stored.sizes.prod(axis=1) * stored.channels
        self._flat = torch.empty(int(nbytes.sum()), dtype=torch.uint8, device=device)
        starts, end = [], 0
        for position in range(len(stored)):
            image = torch.from_numpy(stored[position].reshape(-1))
            self._flat[end : end + len(image)] = image.to(device)
            starts.append(end // stored.channels)
            end += len(image)
        self._starts = torch.tensor(starts, device=device)
        self._widths = torch.tensor(stored.sizes[:, 1], device=device)

    def take(self, positions: Sequence[int], boxes: Tensor, height: int, width: int) -> Tensor:
        """Boxes of images, in the corner of (B, height, width, C) uint8; the rest is arbitrary.

        Args:
            positions: of B images.
            boxes: (B, 4) int64 on the device: top, left, height, width.
            height: at least that of all boxes.
            width: likewise.
        """
        where = torch.as_tensor(positions, device=self._flat.device)
        rows = torch.arange(height, device=self._flat.device)
        columns = torch.arange(width, device=self._flat.device)
        rows = boxes[:, :1] + torch.minimum(rows, boxes[:, 2:3] - 1)
        columns = boxes[:, 1:2] + torch.minimum(columns, boxes[:, 3:4] - 1)
        first = self._starts[where][:, None] + rows * self._widths[where][:, None]
        return self._flat.view(-1, self.channels)[first[:, :, None] + columns[:, None, :]]


def resample_on_device(
    images: DeviceImages,
    positions: Sequence[int],
    draws: Draws,
    size: tuple[int, int],
    interpolation: str,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The same as `resample_on_cpu` on a device, as two matrix products for the whole batch.

    A separable filter is a matrix from the pixels of a crop's column (or row) to those of the
    result, here with Pillow's antialiased filters; a flip turns its rows round.

    Args:
        images: stored, on the device.
        positions: of the B images.
        draws: crops and flips.
        size: height and width of the result.
        interpolation: "bilinear", "bicubic" or "nearest".
        device: where the images are.
        dtype: of the products; None is half precision on a GPU, which holds 0..255 exactly and is
            many times faster there.

    Returns:
        (B, C, *size) float, rounded to whole numbers in [0, 255].
    """
    boxes = torch.from_numpy(draws.boxes).to(device, non_blocking=True)
    height, width = (int(side) for side in draws.boxes[:, 2:].max(axis=0))
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    crops = images.take(positions, boxes, height, width).permute(0, 3, 1, 2).to(dtype)
    down = _filter_matrix(boxes[:, 2], height, size[0], interpolation, _on(draws.vflip, device))
    across = _filter_matrix(boxes[:, 3], width, size[1], interpolation, _on(draws.hflip, device))
    rows = torch.matmul(crops, across.to(dtype).transpose(1, 2)[:, None])
    out = torch.matmul(down.to(dtype)[:, None], rows)
    return out.float().round_().clamp_(0, 255)


def _filter_matrix(
    lengths: Tensor, longest: int, size: int, interpolation: str, flipped: Tensor
) -> Tensor:
    """(B, size, longest) weights of the first `lengths` pixels in each pixel of the result."""
    scale = (lengths.to(torch.float32) / size)[:, None, None]
    targets = torch.arange(size, device=lengths.device, dtype=torch.float32)[None, :, None]
    targets = torch.where(flipped[:, None, None], size - 1 - targets, targets)
    pixels = torch.arange(longest, device=lengths.device, dtype=torch.float32)[None, None, :]
    centres = (targets + 0.5) * scale
    if interpolation == "nearest":
        weights = (pixels == centres.floor()).to(torch.float32)
    else:
        kernel: Callable[[Tensor], Tensor] = _cubic if interpolation == "bicubic" else _linear
        weights = kernel((pixels + 0.5 - centres) / scale.clamp(min=1))
    weights = weights * (pixels < lengths[:, None, None])
    return weights / weights.sum(dim=2, keepdim=True)


def _linear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel (1981) with a = -0.5, as Pillow's."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def adjust(images: Tensor, draws: Draws, mean: Sequence[float], *, jitter: bool) -> Tensor:
    """Colour jitter and random erasing on a whole batch.

    Brightness, then contrast, then saturation, blended as torchvision's `adjust_*` do.

    Args:
        images: (B, C, H, W), values 0 to 255.
        draws: factors and rectangles.
        mean: channel means in [0, 1], which erased rectangles take.
        jitter: whether colours change at all.

    Returns:
        (B, C, H, W) of the type of `images`, values 0 to 255.
    """
    out = images
    if jitter:
        factors = torch.from_numpy(draws.jitter).to(images.device, torch.float32)
        brightness, contrast, saturation = factors.T[:, :, None, None, None]
        out = (out.float() * brightness).clamp_(0, 255)
        level = _grey(out).mean(dim=(1, 2, 3), keepdim=True)
        out = out.sub_(level).mul_(contrast).add_(level).clamp_(0, 255)
        grey = _grey(out)
        out = (out - grey).mul_(saturation).add_(grey).clamp_(0, 255)
    if draws.erase.any():
        fill = torch.tensor(mean, device=images.device)[None, :, None, None] * 255
        out = torch.where(_erased(draws, out), fill.round().to(out.dtype), out)
    return out if out.dtype == images.dtype else out.round_().to(images.dtype)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    weights = torch.tensor([0.2989, 0.587, 0.114], device=images.device)
    return (images * weights[None, :, None, None]).sum(dim=1, keepdim=True)


def _erased(draws: Draws, images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rectangles = np.round(draws.erase * (height, width, height, width))
    box = torch.from_numpy(rectangles).to(images.device, torch.float32)[:, :, None, None]
    rows = torch.arange(height, device=images.device)[None, :, None]
    columns = torch.arange(width, device=images.device)[None, None, :]
    top, left, tall, wide = box.unbind(dim=1)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    return inside[:, None]


def _on(flags: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(flags)).to(device)
