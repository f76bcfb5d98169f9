"""One epoch of training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnft.data.loaders import Batches, EpochSampler
from mnft.engine.device import autocast
from mnft.engine.distributed import Ranks, sum_over_ranks
from mnft.engine.optim import Criterion
from mnft.engine.state import TrainState
from mnft.errors import TrainError
from mnft.model.freeze import set_training_mode

DIVERGED_HINT = "try a lower optim.lr, warmup, train.clip_grad: 1.0 or train.precision: fp32"
_REPORT_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How updates are computed.

    Attributes:
        device: where the model is.
        dtype: arithmetic of the forward pass.
        accumulation_steps: parts that each batch is cut into.
        clip_grad: largest norm of the gradient, or None.
        ranks: the processes that share each batch.
    """

    device: torch.device
    dtype: torch.dtype
    accumulation_steps: int
    clip_grad: float | None
    ranks: Ranks


@dataclass(frozen=True, slots=True)
class LoopResult:
    """Mean loss and accuracy over the epoch's images (of all processes), and their number."""

    loss: float
    accuracy: float
    num_images: int
    seconds: float


def train_one_epoch(
    state: TrainState,
    forward: nn.Module,
    batches: Batches,
    criterion: Criterion,
    options: LoopOptions,
    *,
    on_step: Callable[[int, int, LoopResult], None],
) -> LoopResult:
    """Train one epoch.

    Args:
        state: model, optimizer and the rest; changed in place.
        forward: the model, or its DistributedDataParallel wrapper.
        batches: of this process, for this epoch.
        criterion: summed loss.
        options: how updates are computed.
        on_step: called a few times a second with the steps done, all steps and the result so far.

    Raises:
        TrainError: the loss is not finite.
    """
    sampler = batches.sampler
    assert isinstance(sampler, EpochSampler)
    set_training_mode(state.model)
    # Loss, correct answers, images; on the device: reading them waits for it. MPS has no float64.
    exact = torch.float32 if options.device.type == "mps" else torch.float64
    totals = torch.zeros(3, device=options.device, dtype=exact)
    started = reported = time.perf_counter()
    for step, batch in enumerate(batches):
        scale = options.ranks.world_size / sampler.batch_size_of(step)
        count = _number_of_parts(sampler, step, options)
        parts = _parts(batch.images, batch.targets, count)
        for number, (images, targets) in enumerate(parts, start=1):
            with _communication(forward, last=number == count):
                with autocast(options.device, options.dtype):
                    logits = _forward(forward, images)
                loss = criterion(logits, targets)
                # DistributedDataParallel averages over processes; `scale` makes it the mean
                # over the images of the whole batch.
                state.scaler.scale(loss * scale).backward()  # type: ignore[no-untyped-call]
            totals += _count(loss, logits, targets).to(exact)
        _update(state, options)
        now = time.perf_counter()
        if now - reported > _REPORT_INTERVAL_S:
            reported = now
            so_far = _result(totals, now - started)
            if options.ranks.world_size == 1:  # several stop together, at the epoch's end
                _check_finite(so_far)
            on_step(step + 1, len(batches), so_far)
    result = _result(sum_over_ranks(options.ranks, totals), time.perf_counter() - started)
    _check_finite(result)
    return result


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
        state.ema.update(state.model, step=state.num_updates)


def _number_of_parts(sampler: EpochSampler, step: int, options: LoopOptions) -> int:
    """Parts that each process cuts its share of a batch into.

    The same in every process, as each waits for the others in its BatchNorm layers. In the
    smaller last batch no part is a single image, which BatchNorm cannot use, unless the parts of
    all batches are.
    """
    smallest = sampler.batch_size_of(step) // options.ranks.world_size
    usual = sampler.batch_size_of(0) // options.ranks.world_size
    wanted = options.accumulation_steps
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


def _communication(forward: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Exchange gradients between processes only after the last part of a batch."""
    if isinstance(forward, DistributedDataParallel) and not last:
        silent: AbstractContextManager[None] = forward.no_sync()
        return silent
    return nullcontext()


def _count(loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    labels = targets.argmax(1) if targets.ndim == 2 else targets
    correct = (logits.argmax(1) == labels).sum()
    images = torch.tensor(len(labels), device=loss.device)
    return torch.stack([loss.detach(), correct.float(), images.float()])


def _check_finite(result: LoopResult) -> None:
    if not math.isfinite(result.loss):
        raise TrainError(
            f"the training loss became {result.loss}, so the weights are lost", hint=DIVERGED_HINT
        )


def _result(totals: Tensor, seconds: float) -> LoopResult:
    loss, correct, images = totals.tolist()
    images = max(images, 1)
    return LoopResult(loss / images, correct / images, int(images), seconds)
