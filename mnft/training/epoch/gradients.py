"""The gradient of one batch, computed in as many parts as memory asks for."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnft.data.batches.batch import Batch
from mnft.data.batches.samplers import EpochSampler
from mnft.device.machine import Machine
from mnft.device.memory import free_memory
from mnft.device.ranks.distributed import without_exchange
from mnft.device.select import autocast
from mnft.errors import TrainError
from mnft.failures import is_out_of_memory
from mnft.tasks.base import Loss, Task
from mnft.training.state import TrainState

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How updates are computed.

    Attributes:
        machine: where the model is.
        task: what is trained; it says which figures are summed up over an epoch.
        accumulation_steps: number of parts that each batch is cut into.
        clip_grad: largest norm of the gradient, or None.
        freeze_batchnorm: whether BatchNorm layers keep their statistics.
    """

    machine: Machine
    task: Task
    accumulation_steps: int = 1
    clip_grad: float | None = None
    freeze_batchnorm: bool = False


class Gradients:
    """Computes the gradients of one batch after the other, in as many parts as memory asks for.

    Attributes:
        accumulation_steps: number of parts that a batch is cut into.
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
        # An attempt that runs out of memory may have changed the statistics of BatchNorm, so they
        # are saved before each batch. Only those of layers in training mode: the others keep
        # theirs, and copying all would be 156 launches a step for MobileNetV2. One list a dtype,
        # because torch copies mixed lists one tensor after the other. Several processes do not try
        # again, so they save nothing.
        self._buffers: list[tuple[list[Tensor], list[Tensor]]] = []
        if options.machine.ranks.world_size == 1:
            training = (module for module in state.model.modules() if module.training)
            buffers = [b for module in training for b in module.buffers(recurse=False)]
            for dtype in {buffer.dtype for buffer in buffers}:
                same = [buffer for buffer in buffers if buffer.dtype == dtype]
                self._buffers.append((same, [buffer.clone() for buffer in same]))

    def compute(self, step: int, batch: Batch) -> Tensor:
        """Add the gradient of a whole batch to the parameters.

        Returns:
            What the task's `sum_batch` gives for the batch, on the device.

        Raises:
            RuntimeError: parts cannot be small enough for the memory.
        """
        for buffers, saved in self._buffers:
            torch._foreach_copy_(saved, buffers)
        while True:
            try:
                return self._attempt(step, batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._cut_finer():
                    raise
            # Outside `except`, because the error keeps the tensors of the attempt alive.
            self._state.optimizer.zero_grad()
            for buffers, saved in self._buffers:
                torch._foreach_copy_(buffers, saved)
            free_memory()

    def apply(self) -> None:
        """Clip the gradients, update the weights, and reset the gradients.

        Nothing here waits for the device: the scaler decides there whether to skip the update.
        """
        state, clip_grad = self._state, self._options.clip_grad
        if clip_grad is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()

    def _attempt(self, step: int, batch: Batch) -> Tensor:
        machine, ranks = self._options.machine, self._options.machine.ranks
        # Every process cuts its images into the same number of parts, because BatchNorm layers wait
        # for those of the other processes. The smaller last batch is cut into fewer parts where one
        # would be a single image, which BatchNorm cannot use; but not if all batches are cut so.
        smallest = self._sampler.batch_size_of(step) // ranks.world_size
        usual = self._sampler.batch_size_of(0) // ranks.world_size
        wanted = self.accumulation_steps
        count = min(wanted, max(1, smallest // 2 if usual >= 2 * wanted else smallest))
        # DistributedDataParallel averages over processes; `scale` makes that the mean over the
        # images of the whole batch.
        scale = ranks.world_size / self._sampler.batch_size_of(step)
        sums = []
        parts = zip(
            batch.images.tensor_split(count), batch.targets.tensor_split(count), strict=True
        )
        for number, (images, targets) in enumerate(parts, start=1):
            # The gradients add up in each process; with the last part they are exchanged, once.
            with without_exchange(self._forward, unless=number == count):
                with autocast(machine.device, machine.train_dtype):
                    outputs = self._run(images)
                loss = self._criterion(outputs, targets, images)
                scaled = self._state.scaler.scale(loss * scale)
                scaled.backward()  # type: ignore[no-untyped-call]
            sums.append(self._options.task.sum_batch(loss, outputs, targets))
        return torch.stack(sums).sum(0)

    def _run(self, images: Tensor) -> Tensor:
        try:
            outputs: Tensor = self._forward(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainError(
                "BatchNorm cannot learn from a single image at a time",
                hint="raise train.batch_size, or lower train.accumulation_steps, so that each part "
                "has two images or more",
            ) from error
        return outputs

    def _cut_finer(self) -> bool:
        """Use twice as many parts from now on; False if they would be too small."""
        if self._options.machine.ranks.world_size > 1:
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
