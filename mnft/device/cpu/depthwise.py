"""Depthwise convolutions with a bf16 forward pass and an fp32 backward pass on the CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def speed_up_depthwise(model: nn.Module) -> int:
    """Change the slow depthwise convolutions of a model in place, for bf16 training on the CPU.

    With strides, dilation, a kernel larger than 3x3 or several outputs a channel, oneDNN takes
    three to forty times as long for the bf16 backward pass of a depthwise convolution as for the
    fp32 one. Without any of these bf16 is faster, and the layer is not changed. Weights, names and
    outputs stay the same, and so does everything except bf16 training on the CPU.

    Args:
        model: any model; subclasses of `nn.Conv2d` other than timm's `Conv2dSame` are not changed.

    Returns:
        The number of layers that were changed.
    """
    changed = 0
    module: Any  # of a class in `_FAST`, once that is known
    for module in model.modules():
        if type(module) not in _FAST or module.padding_mode != "zeros":
            continue
        is_depthwise = module.groups == module.in_channels > 1
        is_slow = (
            max(*module.stride, *module.dilation) > 1
            or max(module.kernel_size) > 3
            or module.out_channels > module.in_channels
        )
        if is_depthwise and is_slow:
            module.__class__ = _FAST[type(module)]
            changed += 1
    return changed


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with one group a channel; see `speed_up_depthwise`."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, H, W) float images."""
        if not _trains_in_bf16(input):
            return super().forward(input)
        if not isinstance(self.padding, str):
            return _apply(self, input, self.padding)
        # Left, right, top, bottom: what "same" and "valid" mean for this kernel.
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if (left, top) == (right, bottom):
            return _apply(self, input, (top, left))
        return _apply(self, F.pad(input, (left, right, top, bottom)), (0, 0))


class DepthwiseConv2dSame(Conv2dSame):  # type: ignore[misc]
    """timm's `Conv2dSame` with one group a channel; see `speed_up_depthwise`."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) float images, padded as TensorFlow does."""
        if not _trains_in_bf16(x):
            result: Tensor = super().forward(x)
            return result
        padded = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return _apply(self, padded, (0, 0))


_FAST: dict[type, type] = {nn.Conv2d: DepthwiseConv2d, Conv2dSame: DepthwiseConv2dSame}


def _trains_in_bf16(images: Tensor) -> bool:
    return (
        images.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def _apply(layer: Any, images: Tensor, padding: tuple[int, ...]) -> Tensor:
    options = (layer.stride, padding, layer.dilation, layer.groups)
    # The weights enter in fp32, so that their gradient is never rounded to bf16.
    result: Tensor = _MixedConvolution.apply(images.bfloat16(), layer.weight, layer.bias, options)
    return result


class _MixedConvolution(torch.autograd.Function):
    """A convolution with its forward pass in bf16, as autocast has it, and its backward in fp32."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]
    ) -> Tensor:
        rounded = weight.bfloat16()
        ctx.save_for_backward(images, rounded)
        ctx.options = options
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return F.conv2d(images, rounded, None if bias is None else bias.bfloat16(), *options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        wanted = list(ctx.needs_input_grad[:3])
        images_grad, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
            gradient.float(),
            images.float(),
            weight.float(),
            [len(weight)] if wanted[2] else None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            wanted,
        )
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            images_grad.bfloat16() if wanted[0] else None,
            weight_grad.to(weight_dtype) if wanted[1] else None,
            bias_grad.to(bias_dtype) if wanted[2] else None,
            None,
        )
