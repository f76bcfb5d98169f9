"""One epoch of training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mnft.data.batches.batch import Batch, TrainBatches
from mnft.device.memory import explaining_memory
from mnft.device.ranks.distributed import gather, sum_over_ranks
from mnft.device.select import seed_stream
from mnft.errors import DataError, TrainError
from mnft.model.freeze import set_training_mode
from mnft.seeding import derive_seed
from mnft.tasks.base import Loss
from mnft.training.epoch.gradients import Gradients, LoopOptions
from mnft.training.epoch.snapshots import Pauses
from mnft.training.epoch.tally import Tally
from mnft.training.state import TrainState

DIVERGED_HINT = "try a lower optim.lr, warmup, train.clip_grad: 1.0 or train.precision: fp32"
_REPORT_INTERVAL_S = 0.25
_log = logging.getLogger(__name__)


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
    batches: TrainBatches,
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
    set_training_mode(state.model, freeze_batchnorm=options.freeze_batchnorm)
    if state.ema is not None:
        state.ema.begin_epoch(state.model)
    gradients = Gradients(state, forward, criterion, options, sampler)
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
    batches: TrainBatches, pauses: Pauses | None, device: torch.device
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


def _check_finite(result: LoopResult) -> None:
    if not math.isfinite(result.loss):
        raise TrainError(
            f"the training loss became {result.loss}, so the weights are lost", hint=DIVERGED_HINT
        )


def _result(sums: Tensor, images: int, seconds: float) -> LoopResult:
    loss, correct = sums.tolist()
    return LoopResult(loss / max(images, 1), correct / max(images, 1), images, seconds)
