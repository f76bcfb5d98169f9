"""A learning rate from a short trial: the rate grows with every update while the loss is watched.

Reference: L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section
3.3 (the "LR range test"); here the rate grows exponentially, and the steepest fall of the loss is
suggested, as S. Gugger described it and fastai does ("steep"). That is a cautious choice: warmup
and decay let a training bear several times as much.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnft.device.memory import explaining_memory
from mnft.device.select import seed_everything
from mnft.errors import ConfigError, TrainError
from mnft.seeding import derive_seed
from mnft.tasks.base import Loss
from mnft.training.epoch.loop import train_one_epoch
from mnft.training.optim import Schedule
from mnft.training.training import Training

MIN_STEPS = 20
_DIVERGED = 4.0  # times the smallest smoothed loss
_KEPT = 0.9  # of the running mean that tells divergence, for each update
_EDGE = 5  # points at either end that are never suggested
_PLATEAU = 0.1  # share of the whole fall within which the loss is still high, or still low
_CHANCE = 5.0  # standard errors of the smoothed loss that a fall must exceed
_SMALLEST_FALL = 0.01  # of the first loss


@dataclass(frozen=True, slots=True)
class LrCurve:
    """What the trial found.

    Attributes:
        lrs: of each update, as `optim.lr` would be written; ascending.
        losses: mean over each update's batch, before the update.
        smoothed: the same, smoothed over the neighbours on both sides.
        suggestion: the learning rate to train with, of two digits.
        reason: why, in words.
        diverged: the trial ended because the loss grew too large, not because `lrs` was done.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float
    reason: str
    diverged: bool


def find_lr(
    training: Training,
    *,
    seed: int,
    smallest: float = 1e-6,
    largest: float = 1.0,
    steps: int = 100,
    on_step: Callable[[int, int], None] | None = None,
) -> LrCurve:
    """Train for some updates at growing rates, and suggest a learning rate.

    Updates are those of a training: the same batches, accumulation, precision, clipping. The
    ratios of the parameter groups (layer-wise decay) are kept. An epoch that is shorter than the
    trial is followed by the next. The trial ends when the loss is no longer finite, or its running
    mean over 4 times the smallest one so far. Weights, optimizer and its rates are not put back.

    Args:
        training: changed in place; to be thrown away.
        seed: of dropout and the like.
        smallest: first learning rate, of the group that learns fastest.
        largest: last learning rate.
        steps: updates, at least 20.
        on_step: called with the updates done and all updates.

    Raises:
        ConfigError: too few steps, or not a range.
        TrainError: too little memory, or a curve that tells nothing.
    """
    if steps < MIN_STEPS:
        raise ConfigError(
            f"found {steps} steps to find a learning rate, expected at least {MIN_STEPS}",
            hint="100 are usual; where the training images are few, they are gone through again",
        )
    if not 0 < smallest < largest < math.inf:
        raise ConfigError(
            f"found learning rates from {smallest:g} to {largest:g}, expected a growing range"
        )
    recorder = _Recorder(training.criterion)
    ramp = _Ramp(
        training.state.optimizer,
        [float(lr) for lr in np.geomspace(smallest, largest, steps)],
        recorder,
        on_step or (lambda _done, _total: None),
    )
    _train(training, ramp, recorder, seed)
    # Where the next-to-last loss was already lost, the last is not a number.
    count = sum(math.isfinite(loss) for loss in ramp.losses)
    return build_curve(ramp.rates[:count], ramp.losses[:count], diverged=ramp.diverged)


def build_curve(lrs: list[float], losses: list[float], *, diverged: bool) -> LrCurve:
    """Smooth the losses and suggest a rate.

    The rate is that of the steepest fall. Only the last descent to the smallest loss counts: a dip
    of noise on the plateau before it, or a fall after divergence, is never suggested, nor is one
    of the five outermost points. Where the loss does not fall clearly but rises in the end, as
    with a model that knows much already, it is a tenth of the rate from which on it rises.

    Args:
        lrs: ascending.
        losses: finite, one a rate.
        diverged: the losses end because they grew too large.

    Raises:
        TrainError: fewer than 20 points, or a loss that neither falls nor rises clearly.
    """
    if len(lrs) < MIN_STEPS:
        raise TrainError(
            f"the loss was lost after {len(lrs)} updates, at a learning rate of {lrs[-1]:.1e}"
            if lrs
            else "the loss is not finite before anything was learned",
            hint="look at the images and labels (`mnft data check`), data.mean and data.std; "
            "or try train.precision: fp32",
        )
    raw = np.asarray(losses, dtype=np.float64)
    # Losses far above the first would spread over their neighbours.
    raw = np.minimum(raw, 2 * raw[:_EDGE].max())
    width = max(1.5, len(raw) / 33)
    smoothed = _smooth(raw, width)
    # The standard error of a mean with Gaussian weights, from the scatter before the lowest point.
    before = max(int(smoothed.argmin()) + 1, 2 * _EDGE)
    error = float((raw - smoothed)[:before].std()) / math.sqrt(2 * math.sqrt(math.pi) * width)
    rates = np.asarray(lrs, dtype=np.float64)
    lr, reason = _suggest(rates, smoothed, _CHANCE * error)
    return LrCurve(
        lrs=tuple(lrs),
        losses=tuple(losses),
        smoothed=tuple(smoothed.tolist()),
        suggestion=float(f"{lr:.2g}"),
        reason=reason + (f"; it diverges at {lrs[-1]:.1e}" if diverged else ""),
        diverged=diverged,
    )


def _suggest(
    lrs: NDArray[np.float64], smoothed: NDArray[np.float64], chance: float
) -> tuple[float, str]:
    """A rate and the reason for it; `chance` is a change of the loss that may have no cause."""
    lowest = int(smoothed.argmin())
    start, end = float(smoothed[: _EDGE + 1].mean()), float(smoothed[lowest])
    descent = _find_descent(smoothed, lowest, start)
    if descent and start - end > max(chance, _SMALLEST_FALL * abs(start)):
        slopes = np.gradient(smoothed, np.log10(lrs))
        steepest = min(descent, key=lambda index: float(slopes[index]))
        return float(lrs[steepest]), (
            f"the loss falls most steeply there, on its way from {start:.3g} to {end:.3g}; "
            f"it stays low up to {lrs[_find_end(smoothed, lowest, start)]:.1e}, which bounds "
            "what is worth a try"
        )
    usual = max(start, float(np.median(smoothed)))
    low = np.flatnonzero(smoothed <= usual + max(chance, _PLATEAU * abs(usual)))
    rise = int(low[-1]) + 1 if len(low) else 0
    if 0 < rise < len(lrs) and lrs[rise] >= 10 * lrs[0]:
        return float(lrs[rise]) / 10, (
            f"the loss of {start:.3g} does not fall clearly, but rises from {lrs[rise]:.1e} on; "
            "this is a tenth of that"
        )
    raise TrainError(
        f"the loss of {start:.3g} neither falls nor rises clearly at any learning rate from "
        f"{lrs[0]:.0e} to {lrs[-1]:.1e}, so none can be suggested",
        hint="a larger train.batch_size makes the loss less noisy",
    )


class _Done(Exception):
    """The trial is over."""


class _Recorder:
    """A loss that remembers what it was since it was last asked for."""

    def __init__(self, criterion: Loss) -> None:
        self._criterion = criterion
        self._sums: list[Tensor] = []
        self._images = 0

    def __call__(self, outputs: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        loss = self._criterion(outputs, targets, images)
        self._sums.append(loss.detach())
        self._images += len(images)
        return loss

    def pop_mean(self) -> float:
        """The mean over all images since the last call; waits for the device."""
        mean = float(torch.stack(self._sums).sum()) / self._images
        self._sums, self._images = [], 0
        return mean


class _Ramp(Schedule):
    """A schedule that takes the next rate after each update, and ends the trial.

    Attributes:
        rates: of the updates.
        losses: of the updates so far.
        diverged: the last loss was too large.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rates: list[float],
        recorder: _Recorder,
        on_step: Callable[[int, int], None],
    ) -> None:
        self._optimizer = optimizer
        self._factors = _group_factors(optimizer)
        self._recorder = recorder
        self._on_step = on_step
        self._running = 0.0
        self._smallest = math.inf
        self.rates = rates
        self.losses: list[float] = []
        self.diverged = False
        self._set(rates[0])

    def after_update(self, num_updates: int) -> None:  # noqa: ARG002 - it counts its own
        """Take down the loss and set the next rate.

        Raises:
            _Done: all rates were tried, or the loss diverged.
        """
        loss = self._recorder.pop_mean()
        self.losses.append(loss)
        done = len(self.losses)
        self._running = _KEPT * self._running + (1 - _KEPT) * loss
        mean = self._running / (1 - _KEPT**done)
        self._smallest = min(self._smallest, mean)
        self._on_step(done, len(self.rates))
        too_large = done >= MIN_STEPS and mean > _DIVERGED * self._smallest
        self.diverged = too_large or not math.isfinite(loss)
        if self.diverged or done == len(self.rates):
            raise _Done
        self._set(self.rates[done])

    def _set(self, rate: float) -> None:
        for group, factor in zip(self._optimizer.param_groups, self._factors, strict=True):
            group["lr"] = rate * factor


def _group_factors(optimizer: torch.optim.Optimizer) -> list[float]:
    """Each group's rate as a share of the highest one, before warmup or decay.

    `initial_lr` is set by timm's schedules, `lr_scale` by layer-wise decay, which they multiply
    with it.
    """
    groups = optimizer.param_groups
    rates = [group.get("initial_lr", 1.0) * group.get("lr_scale", 1.0) for group in groups]
    return [rate / max(rates) for rate in rates]


def _train(training: Training, ramp: _Ramp, recorder: _Recorder, seed: int) -> None:
    sampler, loop = training.train.sampler, training.options.loop
    state = replace(training.state, schedule=ramp, ema=None)
    hint = "lower train.batch_size or data.img_size, or choose a smaller model"
    try:
        with explaining_memory(loop.machine.device, hint=hint):
            for epoch in itertools.count(1):
                sampler.set_epoch(epoch)
                seed_everything(derive_seed(seed, epoch, loop.machine.ranks.rank))
                result = train_one_epoch(
                    state, training.forward, training.train, recorder, loop, on_step=lambda *_: None
                )
                loop = replace(loop, accumulation_steps=result.accumulation_steps)
    except _Done:
        return


def _smooth(values: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Mean over the neighbours with Gaussian weights of `width` points; fewer at the ends."""
    points = np.arange(len(values))
    weights = np.exp(-0.5 * ((points[:, None] - points) / width) ** 2)
    smoothed: NDArray[np.float64] = weights @ values / weights.sum(axis=1)
    return smoothed


def _find_descent(smoothed: NDArray[np.float64], lowest: int, start: float) -> range:
    """The points of the last descent to the lowest one, without the edges of the curve."""
    ceiling = start - _PLATEAU * (start - smoothed[lowest])
    plateau = np.flatnonzero(smoothed[: lowest + 1] >= ceiling)
    first = int(plateau[-1]) if len(plateau) else 0
    return range(max(first, _EDGE), min(lowest + 1, len(smoothed) - _EDGE))


def _find_end(smoothed: NDArray[np.float64], lowest: int, start: float) -> int:
    """The last point before the loss leaves its lowest level."""
    floor = smoothed[lowest] + _PLATEAU * (start - smoothed[lowest])
    above = np.flatnonzero(smoothed[lowest:] > floor)
    return lowest + int(above[0]) - 1 if len(above) else len(smoothed) - 1
