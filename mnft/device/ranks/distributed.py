"""Processes that train one model, as torchrun starts them, and what they exchange."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnft.device.gpu_driver import has_cuda
from mnft.errors import ConfigError, MnftError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's number and the number of processes, in all and on this machine (`local`)."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports to the user."""
        return self.rank == 0


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the group that torchrun's environment variables describe, and leave it after success.

    The group uses gloo for tensors on the CPU and NCCL for tensors on GPUs. Without torchrun there
    is one process and no group. No GPU is touched, as the config says which one this process uses.

    After an error the group is not left: the other processes do not reach the collectives that this
    one has begun, and NCCL would wait for them. The code that handles the error ends the process
    without leaving (`mnft.signals.leave`).

    Raises:
        ConfigError: the launcher sets the number of this process, but no address of the others.
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
    # In channels_last, weights of 1 x 1 and depthwise convolutions can have two strides for the
    # same memory. Each process would print this warning once, although nothing is slow.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    backend = "cpu:gloo,cuda:nccl" if has_cuda() else "gloo"
    # The others wait while the main process fetches and checks the images.
    dist.init_process_group(backend, timeout=timedelta(hours=2))
    yield _find_ranks(int(os.environ["RANK"]), world_size)
    dist.destroy_process_group()


def _find_ranks(rank: int, world_size: int) -> Ranks:
    """Find the local rank; from the names of the hosts if the launcher does not set it."""
    hosts = gather(Ranks(rank, world_size), socket.gethostname())
    beside = [other for other, host in enumerate(hosts) if host == hosts[rank]]
    local_rank = int(os.environ.get("LOCAL_RANK", beside.index(rank)))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", len(beside)))
    return Ranks(rank, world_size, local_rank, local_world_size)


def broadcast(ranks: Ranks, compute: Callable[[], T]) -> T:
    """Compute a value in the main process and give it to every process.

    Raises:
        MnftError: what `compute` raises, in every process.
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
    """Give every process the values of all processes, in the order of ranks."""
    if ranks.world_size == 1:
        return [value]
    values: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(values, value)
    return values


def agree(ranks: Ranks, compute: Callable[[], T]) -> list[T]:
    """Compute a value in each process and give every process all values, in the order of ranks.

    `compute` must not use collectives: the other processes may fail before theirs.

    Raises:
        MnftError: the error of the first process that has one, in every process, with its rank.
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
    """Name the process that an error comes from, unless it is the main process."""
    if rank == 0:
        return error
    return type(error)(f"rank {rank}: {error.message}", hint=error.hint, key=error.key)


def sum_over_ranks(ranks: Ranks, values: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place, on every process."""
    if ranks.world_size > 1:
        dist.all_reduce(values)
    return values


def without_exchange(forward: nn.Module, *, unless: bool) -> AbstractContextManager[None]:
    """Keep a backward pass from exchanging gradients, for all parts of a batch except the last.

    Args:
        forward: model or its DistributedDataParallel wrapper, compiled or not.
        unless: whether to exchange them after all.
    """
    wrapper: Any = forward
    while hasattr(wrapper, "_orig_mod"):  # torch.compile wraps the wrapper
        wrapper = wrapper._orig_mod
    if unless or not isinstance(wrapper, DistributedDataParallel):
        return nullcontext()
    silent: AbstractContextManager[None] = wrapper.no_sync()
    return silent
