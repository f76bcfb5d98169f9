"""Several processes that train one model, as torchrun starts them; one is the simple case."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnft.device.gpu_driver import has_cuda
from mnft.errors import ConfigError, MnftError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is, in all and on this machine (`local`)."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the group that torchrun's environment variables describe; leave it after success.

    gloo for tensors on the CPU, NCCL for those on GPUs. Without torchrun there is one process and
    no group. No GPU is touched: which one is this process's own, the config says.

    After an error the group stays as it is. The other processes do not come to the collectives
    that this one has begun, and NCCL would wait for them before it lets go: who handles the error
    ends the process without that (`mnft.cli.exits.leave`).

    Raises:
        ConfigError: the launcher says which process this is, but not where the others are.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(
            f"found RANK and WORLD_SIZE in the environment, but no {' and no '.join(missing)}",
            hint="torchrun sets them all; without them all, mnft trains in one process",
        )
    # Weights of 1 x 1 and depthwise convolutions have two layouts in channels_last, which are the
    # same in memory: each process would print this once, for nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    backend = "cpu:gloo,cuda:nccl" if has_cuda() else "gloo"
    # The others wait while the main process fetches and checks the images.
    dist.init_process_group(backend, timeout=timedelta(hours=2))
    yield _find_ranks(int(os.environ["RANK"]), world_size)
    dist.destroy_process_group()


def _find_ranks(rank: int, world_size: int) -> Ranks:
    """Not every launcher tells a process its place on its machine; the machines' names do."""
    hosts = gather(Ranks(rank, world_size), socket.gethostname())
    beside = [other for other, host in enumerate(hosts) if host == hosts[rank]]
    local_rank = int(os.environ.get("LOCAL_RANK", beside.index(rank)))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", len(beside)))
    return Ranks(rank, world_size, local_rank, local_world_size)


def broadcast(ranks: Ranks, compute: Callable[[], T]) -> T:
    """Compute a value in the main process and give it to every process.

    Raises:
        Whatever `compute` raises, in every process.
    """
    if ranks.world_size == 1:
        return compute()
    box: list[Any] = [None, None]
    if ranks.is_main:
        try:
            box[0] = compute()
        except MnftError as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    value: T = box[0]
    return value


def gather(ranks: Ranks, value: T) -> list[T]:
    """Every process's value, in the order of ranks, on every process."""
    if ranks.world_size == 1:
        return [value]
    values: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(values, value)
    return values


def agree(ranks: Ranks, compute: Callable[[], T]) -> list[T]:
    """Compute a value in each process, with no collective; all get all, in the order of ranks.

    Raises:
        MnftError: of the first process that has one, in every process; it names the process.
    """
    if ranks.world_size == 1:
        return [compute()]
    box: tuple[T | None, MnftError | None]
    try:
        box = compute(), None
    except MnftError as error:
        box = None, error
    boxes = gather(ranks, box)
    for rank, (_, found) in enumerate(boxes):
        if found is not None:
            raise name_rank(found, rank)
    return [cast(T, value) for value, _ in boxes]


def name_rank(error: MnftError, rank: int) -> MnftError:
    """The error, with the process that it comes from; the main process needs no name."""
    if rank == 0:
        return error
    return type(error)(f"rank {rank}: {error.message}", hint=error.hint, key=error.key)


def sum_over_ranks(ranks: Ranks, values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on every process."""
    if ranks.world_size > 1:
        dist.all_reduce(values)
    return values


def without_exchange(forward: nn.Module, *, unless: bool) -> AbstractContextManager[None]:
    """Keep a backward pass from exchanging gradients, as for all parts of a batch but the last.

    Args:
        forward: a model, or its DistributedDataParallel wrapper, compiled or not.
        unless: exchange them after all.
    """
    wrapper: Any = forward
    while hasattr(wrapper, "_orig_mod"):  # torch.compile wraps the wrapper
        wrapper = wrapper._orig_mod
    if unless or not isinstance(wrapper, DistributedDataParallel):
        return nullcontext()
    silent: AbstractContextManager[None] = wrapper.no_sync()
    return silent


def synchronize_batchnorm(model: nn.Module) -> nn.Module:
    """Let BatchNorm layers take their statistics over the batches of all processes.

    torch's SyncBatchNorm is none for the CPU, and on a GPU it waits three times a layer.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            kind: Any = type(module)
            module.__class__ = _synchronized(kind)
    return model


@cache
def _synchronized(kind: Any) -> Any:
    """A subclass of a BatchNorm class whose training statistics span all processes."""

    def forward(self: Any, images: Tensor) -> Tensor:
        if not self.training:
            evaluated: Tensor = kind.forward(self, images)
            return evaluated
        running, momentum = (None, None), 0.0
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            running, momentum = (self.running_mean, self.running_var), self.momentum
            if momentum is None:  # the mean over all batches; a GPU is waited for
                momentum = 1 / float(self.num_batches_tracked)
        normalize = _NormalizeOnGpu.apply if images.is_cuda else _normalize
        out = normalize(images, self.weight, self.bias, *running, momentum, self.eps)
        # timm's BatchNormAct2d goes on with dropout and the activation.
        result: Tensor = self.act(self.drop(out)) if hasattr(self, "drop") else out
        return result

    return type(f"Synchronized{kind.__name__}", (kind,), {"forward": forward})


class _NormalizeOnGpu(torch.autograd.Function):
    """BatchNorm over all processes by the kernels of torch's SyncBatchNorm, without its waits.

    SyncBatchNorm waits for the GPU to learn which processes have no images; `EpochSampler` gives
    each of them some. For the backward pass only the input is kept, in its own precision.
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
        # Not torch.tensor, whose copy to a GPU waits for it.
        count = torch.full_like(mean[:1], images.numel() // images.shape[1])
        everyone = _gather_rows(torch.cat([mean, invstd, count]))
        means, invstds, counts = torch.split(everyone, [len(mean), len(mean), 1], dim=1)
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
        sum_dy, sum_dy_xmu, of_weight, of_bias = torch.batch_norm_backward_reduce(
            gradient, images, mean, invstd, weight, *needed
        )
        of_images: Tensor | None = None
        if needed[0]:
            sums = torch.stack([sum_dy, sum_dy_xmu])
            dist.all_reduce(sums)
            of_images = torch.batch_norm_backward_elemt(
                gradient, images, mean, invstd, weight, sums[0], sums[1], counts
            )
        of_parameters = (of_weight if needed[1] else None, of_bias if needed[2] else None)
        return of_images, *of_parameters, None, None, None, None


def _dense(values: Tensor) -> Tensor:
    """In one of the two layouts that the kernels know."""
    if values.is_contiguous(memory_format=torch.channels_last):
        return values
    return values.contiguous()


def _gather_rows(row: Tensor) -> Tensor:
    """(N,) of each process to (processes, N) on each, without a wait."""
    rows = row.new_zeros(dist.get_world_size(), len(row))
    rows[dist.get_rank()] = row
    dist.all_reduce(rows)
    return rows


def _normalize(
    images: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """The same in operations that every device has."""
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
    """Sum over all processes; so is the gradient, as every process uses the sum."""

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
    """Mean and biased variance of each channel over all processes, and the count of values.

    In two passes: the difference of the mean square and the squared mean would lose the variance
    of channels whose mean is large.
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
