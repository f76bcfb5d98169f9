"""Several processes that train one model, as torchrun starts them; one is the simple case."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mnft.errors import MnftError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is; `local_rank` counts on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the group that torchrun's environment variables describe, and leave it at the end.

    gloo on CPUs, NCCL on GPUs. Without torchrun there is one process and no group.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks()
        return
    ranks = Ranks(int(os.environ["RANK"]), world_size, int(os.environ.get("LOCAL_RANK", "0")))
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


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


def sum_over_ranks(ranks: Ranks, values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on every process."""
    if ranks.world_size > 1:
        dist.all_reduce(values)
    return values


def synchronize_batchnorm(model: nn.Module) -> nn.Module:
    """Let BatchNorm layers take their statistics over the batches of all processes.

    On a GPU this is torch's SyncBatchNorm, through timm, which knows its fused layers. torch has
    none for the CPU; there the statistics of each layer are averaged with a differentiable
    all-reduce.
    """
    if next(model.parameters()).device.type != "cpu":
        from timm.layers import convert_sync_batchnorm

        synchronized: nn.Module = convert_sync_batchnorm(model)
        return synchronized
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _synchronized(type(module))
    return model


def _synchronized(kind: type[nn.BatchNorm2d]) -> type[nn.BatchNorm2d]:
    """A subclass of a BatchNorm2d class whose training statistics span all processes."""

    def forward(self: Any, images: Tensor) -> Tensor:
        if not self.training:
            return kind.forward(self, images)
        mean, var, count = _global_moments(images)
        with torch.no_grad():
            unbiased = var.detach() * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked += 1
        shape = (1, -1, 1, 1)
        scale = self.weight * torch.rsqrt(var + self.eps)
        out = (images - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)
        out = out.to(images.dtype)
        # timm's BatchNormAct2d goes on with dropout and the activation.
        result: Tensor = self.act(self.drop(out)) if hasattr(self, "drop") else out
        return result

    return type(f"Synchronized{kind.__name__}", (kind,), {"forward": forward})


def _global_moments(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel over all processes, and the count of values."""
    from torch.distributed.nn.functional import all_reduce

    values = images.to(torch.float32)
    count = torch.tensor([float(values.numel() // values.shape[1])])
    local = torch.cat([values.sum((0, 2, 3)), (values * values).sum((0, 2, 3)), count])
    total = all_reduce(local)  # type: ignore[no-untyped-call]
    channels = values.shape[1]
    count = total[-1].detach()
    mean = total[:channels] / count
    var = (total[channels : 2 * channels] / count - mean * mean).clamp(min=0)
    return mean, var, count
