"""ReLU6 whose backward pass on the CPU keeps its output alone: a quarter less memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def save_memory_of_relu6(model: nn.Module) -> int:
    """Let the ReLU6 layers of a model, in place, keep their output for the backward pass.

    torch keeps the input, and of an in-place ReLU6 a copy of it. The layer that comes next keeps
    the output anyway, so keeping this instead costs nothing; where it is 0 or 6 the gradient is 0,
    as it is by the input. Results are the same bit for bit.

    Args:
        model: any; subclasses of `nn.ReLU6` are left alone.

    Returns:
        The number of layers that were changed.
    """
    layers = [module for module in model.modules() if type(module) is nn.ReLU6]
    for layer in layers:
        layer.__class__ = ReLU6
    return len(layers)


class ReLU6(nn.ReLU6):
    """`nn.ReLU6`; see `save_memory_of_relu6`."""

    def forward(self, input: Tensor) -> Tensor:
        """Values below 0 become 0, values above 6 become 6."""
        keeps = torch.is_grad_enabled() and input.requires_grad and input.device.type == "cpu"
        if not keeps or torch.compiler.is_compiling():
            return super().forward(input)
        result: Tensor = _ReLU6.apply(input, self.inplace)
        return result


class _ReLU6(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(input)
        output = F.hardtanh(input, 0.0, 6.0, inplace=inplace)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, output, 0.0, 6.0), None
