"""Crop, flip and resize stored images: on the CPU one by one, on a device whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnft.config.schema import AugmentConfig
from mnft.data.batches.augment import Augment, AugmentParams
from mnft.data.store.geometry import Pixels
from mnft.data.store.store import StoredImages

# Parts of a batch that are handed to threads.
_PARTS = 4
# Images whose pixels are gathered at once on a device.
_IMAGES_A_GATHER = 64
# Size of the copies that bring the images to a device.
_STAGING_BYTES = 64_000_000


def resample_on_cpu(
    images: Sequence[Pixels],
    params: AugmentParams,
    size: tuple[int, int],
    interpolation: str,
    pool: ThreadPoolExecutor | None = None,
) -> Tensor:
    """Crops of a batch, resized and flipped.

    Args:
        images: B arrays (H, W, C) uint8, each of its own size.
        params: crops and flips.
        size: height and width of the result.
        interpolation: "bilinear", "bicubic" (both with antialiasing, as Pillow's) or "nearest".
        pool: threads that share the images; None uses the current thread.

    Returns:
        (B, C, *size) uint8.
    """
    # An array, as a tensor that is made in inference mode cannot be filled by other threads.
    out = np.empty((len(images), *size, images[0].shape[2]), dtype=np.uint8)
    smooth = interpolation != "nearest"
    mode = interpolation if smooth else "nearest-exact"
    boxes, hflip, vflip = params.boxes.tolist(), params.hflip.tolist(), params.vflip.tolist()

    def resample(number: int) -> None:
        top, left, height, width = boxes[number]
        crop = torch.from_numpy(images[number][top : top + height, left : left + width])
        # In this order torch sees channels-last strides, for which it has its fastest kernels.
        image = crop.unsqueeze(0).permute(0, 3, 1, 2)
        resized = F.interpolate(image, size=size, mode=mode, antialias=smooth)
        if axes := [axis for axis, on in ((3, hflip), (2, vflip)) if on[number]]:
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
        stored: the images; only their part of the file is copied.
        device: the device that holds the copy.
    """

    def __init__(self, stored: StoredImages, device: torch.device) -> None:
        self.stored = stored
        self.sizes = stored.sizes
        self.channels = stored.channels
        self.device = device
        nbytes = stored.sizes.prod(axis=1) * stored.channels
        ends = np.cumsum(nbytes)
        self._flat = torch.empty(int(nbytes.sum()), dtype=torch.uint8, device=device)
        # Through a buffer that holds many images: each copy to a GPU waits for the one before.
        staging = np.empty(max(_STAGING_BYTES, int(nbytes.max(initial=0))), dtype=np.uint8)
        filled = done = 0
        for position, size in enumerate(nbytes.tolist()):
            if filled + size > len(staging):
                self._flat[done : done + filled] = torch.from_numpy(staging[:filled]).to(device)
                done, filled = done + filled, 0
            staging[filled : filled + size] = stored[position].reshape(-1)
            filled += size
        self._flat[done : done + filled] = torch.from_numpy(staging[:filled]).to(device)
        self._starts = torch.from_numpy((ends - nbytes) // stored.channels).to(device)
        self._widths = torch.from_numpy(np.ascontiguousarray(stored.sizes[:, 1])).to(device)

    def take(self, positions: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
        """Boxes of images, in the corner of (B, height, width, C) uint8; the rest is arbitrary.

        Args:
            positions: (B,) int64 on the device, positions of the images.
            boxes: (B, 4) int64 on the device: top, left, height, width.
            height: height that holds all boxes.
            width: width that holds all boxes.
        """
        pixels = self._flat.view(-1, self.channels)
        out = pixels.new_empty(len(positions), height, width, self.channels)
        rows = torch.arange(height, device=self.device)
        columns = torch.arange(width, device=self.device)
        # The index takes 8 bytes a pixel, more than the pixels: a large batch would need
        # gigabytes for it at once.
        for start in range(0, len(positions), _IMAGES_A_GATHER):
            part = slice(start, start + _IMAGES_A_GATHER)
            where, box = positions[part], boxes[part]
            row = box[:, :1] + torch.minimum(rows, box[:, 2:3] - 1)
            column = box[:, 1:2] + torch.minimum(columns, box[:, 3:4] - 1)
            first = self._starts[where][:, None] + row * self._widths[where][:, None]
            index = first[:, :, None] + column[:, None, :]
            torch.index_select(pixels, 0, index.view(-1), out=out[part].view(-1, self.channels))
        return out


def resample_on_device(
    images: DeviceImages,
    positions: Tensor,
    params: AugmentParams,
    size: tuple[int, int],
    interpolation: str,
    *,
    longest: tuple[int, int],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The same as `resample_on_cpu` on a device, as two matrix products for the whole batch.

    A separable filter is a matrix from the pixels of a crop's column (or row) to those of the
    result, here with Pillow's antialiased filters; a flip reverses its rows. Nothing is copied
    between host and device.

    Args:
        images: stored images, on the device.
        positions: (B,) int64 on the device, positions of the images.
        params: crops and flips, on the device.
        size: height and width of the result.
        interpolation: "bilinear", "bicubic" or "nearest".
        longest: height and width that no crop exceeds.
        dtype: dtype of the products; None takes half precision on a GPU, which holds 0..255
            exactly and is many times faster there.

    Returns:
        (B, C, *size) float, rounded to whole numbers in [0, 255].
    """
    height, width = longest
    dtype = dtype or (torch.float16 if images.device.type == "cuda" else torch.float32)
    crops = images.take(positions, params.boxes, height, width).permute(0, 3, 1, 2).to(dtype)
    down = _filter_matrix(params.boxes[:, 2], height, size[0], interpolation, params.vflip)
    across = _filter_matrix(params.boxes[:, 3], width, size[1], interpolation, params.hflip)
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
        x = ((pixels + 0.5 - centres) / scale.clamp(min=1)).abs()
        weights = (1 - x).clamp(min=0)
        if interpolation == "bicubic":
            # Keys' cubic convolution kernel (1981) with a = -0.5, as Pillow's.
            near = (1.5 * x - 2.5) * x * x + 1
            far = ((-0.5 * x + 2.5) * x - 4) * x + 2
            weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    weights = weights * (pixels < lengths[:, None, None])
    return weights / weights.sum(dim=2, keepdim=True)


def adjust(
    images: Tensor, params: AugmentParams, augment: Augment, mean: Sequence[float]
) -> Tensor:
    """Colour jitter and random erasing on a whole batch.

    Brightness, then contrast, then saturation, blended as torchvision's `adjust_*` do. Nothing is
    copied between host and device.

    Args:
        images: (B, C, H, W), values 0 to 255.
        params: colour factors and rectangles, on the device of the images.
        augment: whether colours change and rectangles are erased at all.
        mean: channel means in [0, 1], the colour of erased rectangles.

    Returns:
        (B, C, H, W) of the type of `images`, values 0 to 255.
    """
    if not isinstance(augment, AugmentConfig):
        return images
    jitter = augment.color_jitter > 0
    out = images
    if jitter:
        brightness, contrast, saturation = params.jitter.float().T[:, :, None, None, None]
        out = (out.float() * brightness).clamp_(0, 255)
        level = _grey(out).mean(dim=(1, 2, 3), keepdim=True)
        out = out.sub_(level).mul_(contrast).add_(level).clamp_(0, 255)
        grey = _grey(out)
        out = (out - grey).mul_(saturation).add_(grey).clamp_(0, 255)
    if augment.random_erasing > 0:
        height, width = images.shape[2:]
        top, left, tall, wide = params.erase[:, :, None, None].unbind(1)
        top, tall = (top * height).round(), (tall * height).round()
        left, wide = (left * width).round(), (wide * width).round()
        rows = torch.arange(height, device=images.device)[None, :, None]
        columns = torch.arange(width, device=images.device)[None, None, :]
        inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        out = out if jitter else out.clone()
        # Channel by channel: a tensor of the means would have to be copied to the device.
        for channel, value in zip(out.unbind(1), mean, strict=True):
            channel.masked_fill_(inside, round(255 * value))
    return out if out.dtype == images.dtype else out.round_().to(images.dtype)


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W), the luma that torchvision computes."""
    if images.shape[1] == 1:
        return images
    red, green, blue = torch.split(images, 1, dim=1)
    return torch.add(0.2989 * red, green, alpha=0.587).add_(blue, alpha=0.114)
