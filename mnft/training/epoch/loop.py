"""One epoch of training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnft.data.batches.batch import Batch, Batches
from mnft.data.batches.samplers import EpochSampler
from mnft.device.memory import explaining_memory, free_memory, is_out_of_memory
from mnft.device.ranks.distributed import Ranks, gather, sum_over_ranks, without_exchange
from mnft.device.select import autocast, seed_stream
from mnft.errors import DataError, TrainError
from mnft.model.freeze import set_training_mode
from mnft.seeding import derive_seed
from mnft.training.epoch.snapshots import Pauses
from mnft.training.epoch.tally import Tally
from mnft.training.optim import Loss
from mnft.training.state import TrainState

DIVERGED_HINT = "try a lower optim.lr, warmup, train.clip_grad: 1.0 or train.precision: fp32"
_REPORT_INTERVAL_S = 0.25
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


@dataclass(frozen=True, slots=True)
class LoopResult:
    """Mean loss and accuracy over the epoch's images (of all processes), and their number.

    `waited` is the part of `seconds` that went by until batches were there, None where they come
    from the device's memory. `accumulation_steps`
    are the parts that batches are cut into now: more than before where memory ran out.
    """

    loss: float
    accuracy: float
    num_images: int
    seconds: float
    waited: float | None = 0.0
    accumulation_steps: int = 1


def train_one_epoch(
    state: TrainState,
    forward: nn.Module,
    batches: Batches,
    criterion: Loss,
    options: LoopOptions,
    *,
    on_step: Callable[[int, int, LoopResult], None],
    seed: int | None = None,
    pauses: Pauses | None = None,
) -> LoopResult:
    """Train one epoch, or the rest of the one that `state.partial` has begun.

    Where memory runs out, the batch is computed again in twice as many parts, and so are all that
    follow; several processes, which would have to agree on it, fail.

    Args:
        state: model, optimizer and the rest; changed in place.
        forward: the model, or its DistributedDataParallel wrapper.
        batches: of this process, for this epoch.
        criterion: summed loss.
        options: how updates are computed.
        on_step: called a few times a second with the steps done, all steps and the result so far.
        seed: of dropout and the like, in this process; each update has its own stream. None goes
            on with torch's.
        pauses: says between two updates whether to save what is done, and whether to stop.

    Raises:
        TrainError: the loss is not finite.
        Interrupted: a pause was the end.
        RuntimeError: parts cannot be small enough for the memory.
    """
    sampler = batches.sampler
    assert isinstance(sampler, EpochSampler)
    set_training_mode(state.model, freeze_batchnorm=options.freeze_batchnorm)
    if state.ema is not None:
        state.ema.begin_epoch(state.model)
    gradients = _Gradients(state, forward, criterion, options, sampler)
    tally = Tally(state.partial, options.device, state.schedule.lr)
    if state.partial is not None:
        parts = max(state.partial.accumulation_steps, options.accumulation_steps)
        gradients.accumulation_steps = parts
        state.partial = None
    reported = asked = time.perf_counter()
    for batch in _until_stopped(batches, pauses, options.device):
        tally.waited += time.perf_counter() - asked
        if seed is not None:
            seed_stream(derive_seed(seed, tally.updates), options.device)
        tally.add(gradients.compute(tally.updates, batch), len(batch.images))
        _update(state, options)
        now = asked = time.perf_counter()
        if pauses is not None and pauses.is_due():
            pauses.take(tally.describe(sampler.epoch, gradients.accumulation_steps))
            asked = time.perf_counter()
        if now - reported > _REPORT_INTERVAL_S:
            reported = now
            so_far = _result(tally.sums, tally.images, tally.seconds)
            if options.ranks.world_size == 1:  # several stop together, at the epoch's end
                _check_finite(so_far)
            on_step(tally.updates, len(batches), so_far)
            asked = time.perf_counter()
    if state.ema is not None:
        state.ema.end_epoch()
    images = sum(gather(options.ranks, tally.images))
    result = _result(sum_over_ranks(options.ranks, tally.sums), images, 0.0)
    _check_finite(result)
    if pauses is not None:
        state.partial = tally.describe(sampler.epoch, gradients.accumulation_steps)
        if tally.updates < len(batches):
            pauses.take(state.partial)
    return replace(
        result,
        seconds=tally.seconds,  # `_result` has waited for the device
        # On a device the time of the next batch includes that of updates that it still works on.
        waited=None if batches.in_device_memory else tally.waited,
        accumulation_steps=gradients.accumulation_steps,
    )


def _until_stopped(
    batches: Batches, pauses: Pauses | None, device: torch.device
) -> Iterator[Batch]:
    """The batches; where a signal has ended the processes that load them, those until then.

    Raises:
        TrainError: a batch itself does not fit into memory, which no cutting into parts mends.
    """
    with explaining_memory(device, hint="lower train.batch_size, data.img_size or data.workers"):
        try:
            yield from batches
        except (RuntimeError, DataError):
            if pauses is None or not pauses.is_stopping:
                raise


class _Gradients:
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
            counts.append(_count(loss, logits, targets))
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


def _update(state: TrainState, options: LoopOptions) -> None:
    if options.clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), options.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    state.num_updates += 1
    state.schedule.after_update(state.num_updates)
    if state.ema is not None:
        state.ema.update(state.num_updates)


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


def _count(loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    labels = targets.argmax(1) if targets.ndim == 2 else targets
    correct = (logits.argmax(1) == labels).sum()
    return torch.stack([loss.detach(), correct.float()])


def _check_finite(result: LoopResult) -> None:
    if not math.isfinite(result.loss):
        raise TrainError(
            f"the training loss became {result.loss}, so the weights are lost", hint=DIVERGED_HINT
        )


def _result(sums: Tensor, images: int, seconds: float) -> LoopResult:
    loss, correct = sums.tolist()
    return LoopResult(loss / max(images, 1), correct / max(images, 1), images, seconds)
