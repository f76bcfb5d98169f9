"""The gradient of one batch, computed in as many parts as memory asks for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnft.data.batches.batch import Batch
from mnft.data.batches.samplers import EpochSampler
from mnft.device.memory import free_memory
from mnft.device.ranks.distributed import Ranks, without_exchange
from mnft.device.select import autocast
from mnft.errors import TrainError
from mnft.failures import is_out_of_memory
from mnft.tasks.base import Loss
from mnft.tasks.classify.targets import count_correct
from mnft.training.state import TrainState

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How updates are computed.

    Attributes:
        device: where the model is.
        dtype: arithmetic of the forward pass.
        accumulation_steps: parts that each batch is cut into.
        clip_grad: largest norm of the gradient, or None.
        ranks: the processes that share each batch.
        freeze_batchnorm: BatchNorm layers keep their statistics.
    """

    device: torch.device
    dtype: torch.dtype
    accumulation_steps: int
    clip_grad: float | None
    ranks: Ranks
    freeze_batchnorm: bool = False


class Gradients:
    """Computes the gradients of one batch after the other, in as many parts as memory asks for.

    Attributes:
        accumulation_steps: parts that a batch is cut into.
    """

    def __init__(
        self,
        state: TrainState,
        forward: nn.Module,
        criterion: Loss,
        options: LoopOptions,
        sampler: EpochSampler,
    ) -> None:
        self.accumulation_steps = options.accumulation_steps
        self._state = state
        self._forward = forward
        self._criterion = criterion
        self._options = options
        self._sampler = sampler
        # A failed attempt has changed the statistics of the BatchNorm layers that learn; those in
        # evaluation mode keep theirs, and copying all of them would be 156 launches a step for
        # MobileNetV2. One list a dtype, as torch copies mixed lists one tensor after the other.
        self._buffers: list[tuple[list[Tensor], list[Tensor]]] = []
        if options.ranks.world_size == 1:
            training = (module for module in state.model.modules() if module.training)
            buffers = [b for module in training for b in module.buffers(recurse=False)]
            for dtype in {buffer.dtype for buffer in buffers}:
                same = [buffer for buffer in buffers if buffer.dtype == dtype]
                self._buffers.append((same, [buffer.clone() for buffer in same]))

    def compute(self, step: int, batch: Batch) -> Tensor:
        """Add the gradient of a whole batch to the parameters.

        Returns:
            (2,) float: summed loss and correct answers.
        """
        for buffers, saved in self._buffers:
            torch._foreach_copy_(saved, buffers)
        while True:
            count = _number_of_parts(self._sampler, step, self.accumulation_steps, self._options)
            try:
                return self._attempt(step, batch, count)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._cut_finer():
                    raise
            # Not within `except`: the error holds the tensors of the attempt.
            self._state.optimizer.zero_grad()
            for buffers, saved in self._buffers:
                torch._foreach_copy_(buffers, saved)
            free_memory()

    def _attempt(self, step: int, batch: Batch, count: int) -> Tensor:
        scale = self._options.ranks.world_size / self._sampler.batch_size_of(step)
        counts = []
        parts = _parts(batch.images, batch.targets, count)
        for number, (images, targets) in enumerate(parts, start=1):
            with without_exchange(self._forward, unless=number == count):
                with autocast(self._options.device, self._options.dtype):
                    logits = _forward(self._forward, images)
                loss = self._criterion(logits, targets, images)
                # DistributedDataParallel averages over processes; `scale` makes it the mean
                # over the images of the whole batch.
                scaled = self._state.scaler.scale(loss * scale)
                scaled.backward()  # type: ignore[no-untyped-call]
            counts.append(count_correct(loss, logits, targets))
        return torch.stack(counts).sum(0)

    def _cut_finer(self) -> bool:
        """Twice as many parts from now on; False where they would be too small."""
        if self._options.ranks.world_size > 1:
            return False
        usual = self._sampler.batch_size_of(0)
        normalized = any(
            isinstance(module, _BatchNorm) and module.training
            for module in self._state.model.modules()
        )
        wanted = min(2 * self.accumulation_steps, usual // 2 if normalized else usual)
        if wanted <= self.accumulation_steps:
            return False
        self.accumulation_steps = wanted
        _log.warning(
            "out of memory: batches of %d are now computed in %d parts, the update stays the same",
            usual,
            wanted,
        )
        return True


def _number_of_parts(sampler: EpochSampler, step: int, wanted: int, options: LoopOptions) -> int:
    """Parts that each process cuts its share of a batch into.

    The same in every process, as each waits for the others in its BatchNorm layers. In the
    smaller last batch no part is a single image, which BatchNorm cannot use, unless the parts of
    all batches are.
    """
    smallest = sampler.batch_size_of(step) // options.ranks.world_size
    usual = sampler.batch_size_of(0) // options.ranks.world_size
    return min(wanted, max(1, smallest // 2 if usual >= 2 * wanted else smallest))


def _parts(images: Tensor, targets: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(images.tensor_split(count), targets.tensor_split(count), strict=True)


def _forward(forward: nn.Module, images: Tensor) -> Tensor:
    try:
        logits: Tensor = forward(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainError(
            "BatchNorm cannot learn from a single image at a time",
            hint="raise train.batch_size, or lower train.accumulation_steps, so that each part "
            "has two images or more",
        ) from error
    return logits
