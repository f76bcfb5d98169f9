"""BatchNorm with statistics over the batches of all processes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def synchronize_batchnorm(model: nn.Module) -> nn.Module:
    """Change BatchNorm layers in place to take statistics over the batches of all processes.

    torch's SyncBatchNorm does not run on the CPU, and on a GPU it waits three times a layer.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            kind: Any = type(module)
            module.__class__ = _synchronized(kind)
    return model


@cache
def _synchronized(kind: Any) -> Any:
    """Make a subclass of a BatchNorm class whose training statistics span all processes."""

    def forward(self: Any, images: Tensor) -> Tensor:
        if not self.training:
            evaluated: Tensor = kind.forward(self, images)
            return evaluated
        running, momentum = (None, None), 0.0
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            running, momentum = (self.running_mean, self.running_var), self.momentum
            if momentum is None:  # the mean over all batches; this waits for a GPU
                momentum = 1 / float(self.num_batches_tracked)
        normalize = _NormalizeOnGpu.apply if images.is_cuda else _normalize
        out = normalize(images, self.weight, self.bias, *running, momentum, self.eps)
        # timm's BatchNormAct2d then applies dropout and the activation.
        result: Tensor = self.act(self.drop(out)) if hasattr(self, "drop") else out
        return result

    return type(f"Synchronized{kind.__name__}", (kind,), {"forward": forward})


class _NormalizeOnGpu(torch.autograd.Function):
    """BatchNorm over all processes by the kernels of torch's SyncBatchNorm, without its waits.

    SyncBatchNorm waits for the GPU to learn which processes have no images; with `EpochSampler`
    every process has some. Only the input is kept for the backward pass, in its own precision.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        images = _dense(images)
        mean, invstd = torch.batch_norm_stats(images, eps)
        # Not torch.tensor: its copy to a GPU waits for the GPU.
        count = torch.full_like(mean[:1], images.numel() // images.shape[1])
        own = torch.cat([mean, invstd, count])
        # A sum of rows that are zero elsewhere gathers them without waiting for the GPU.
        rows = own.new_zeros(dist.get_world_size(), len(own))
        rows[dist.get_rank()] = own
        dist.all_reduce(rows)
        means, invstds, counts = torch.split(rows, [len(mean), len(mean), 1], dim=1)
        mean, invstd = torch.batch_norm_gather_stats_with_counts(
            images, means, invstds, running_mean, running_var, momentum, eps, counts.view(-1)
        )
        ctx.save_for_backward(images, weight, mean, invstd, counts.to(torch.int32))
        return torch.batch_norm_elemt(images, weight, bias, mean, invstd, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = _dense(gradient)
        images, weight, mean, invstd, counts = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        # The gradients of weight and bias are summed by DistributedDataParallel.
        sum_dy, sum_dy_xmu, weight_grad, bias_grad = torch.batch_norm_backward_reduce(
            gradient, images, mean, invstd, weight, *needed
        )
        images_grad: Tensor | None = None
        if needed[0]:
            sums = torch.stack([sum_dy, sum_dy_xmu])
            dist.all_reduce(sums)
            images_grad = torch.batch_norm_backward_elemt(
                gradient, images, mean, invstd, weight, sums[0], sums[1], counts
            )
        parameter_grads = (weight_grad if needed[1] else None, bias_grad if needed[2] else None)
        return images_grad, *parameter_grads, None, None, None, None


def _dense(values: Tensor) -> Tensor:
    """Make the values dense in one of the two memory formats that the kernels support."""
    if values.is_contiguous(memory_format=torch.channels_last):
        return values
    return values.contiguous()


def _normalize(
    images: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """BatchNorm over all processes, in operations that every device has."""
    shape = (1, -1, *[1] * (images.ndim - 2))
    mean, var, count = _global_moments(images, shape)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = var * count / (count - 1).clamp(min=1)
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    out = (images - mean.view(shape)) * torch.rsqrt(var + eps).view(shape)
    if weight is not None and bias is not None:
        out = out * weight.view(shape) + bias.view(shape)
    return out.to(images.dtype)


class _DifferentiableSum(torch.autograd.Function):
    """Sum over all processes; the gradient is summed too, as every process uses the sum."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _global_moments(images: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute each channel's mean and biased variance over all processes, and the number of values.

    It takes two passes: the mean square less the squared mean would lose the variance of channels
    whose mean is large.
    """
    values = images.to(torch.promote_types(images.dtype, torch.float32))
    axes = [axis for axis in range(values.ndim) if axis != 1]
    sums = values.sum(axes)
    count = torch.full_like(sums[:1], values.numel() // values.shape[1])
    total = _DifferentiableSum.apply(torch.cat([sums, count]))
    count = total[-1].detach()
    mean = total[:-1] / count
    squares = _DifferentiableSum.apply((values - mean.view(shape)).square().sum(axes))
    return mean, squares / count, count
