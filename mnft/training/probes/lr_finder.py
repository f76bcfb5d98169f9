"""The learning rate range test: the rate grows with every update while the loss is recorded.

References: L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section
3.3, for the test. The exponential growth and the "valley" that suggests a rate are fastai's
(J. Howard and S. Gugger, "fastai: A Layered API for Deep Learning", Information 11, 2020;
`fastai.callback.schedule.valley`).

The suggestion is cautious: the test has no warmup, decay or averaging, with which a training
tolerates a higher rate (MobileNetV2 on flowers at 96 pixels: 6.6e-5, where 1e-3 trains better).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mnft.data.batches.batch import Batch
from mnft.device.memory import explaining_memory
from mnft.device.select import seed_everything
from mnft.errors import ConfigError, TrainError
from mnft.model.freeze import set_training_mode
from mnft.reporter import Progress
from mnft.seeding import derive_seed
from mnft.training.epoch.gradients import Gradients
from mnft.training.training import Training

MIN_STEPS = 20
# The test ends once the running mean of the loss is this many times its lowest value so far.
_DIVERGED = 4.0
_MOMENTUM = 0.9  # of that running mean
# A valley must be deeper than this many standard deviations of single losses around the smoothed
# ones. Of 1,000 curves of pure noise with 20, 50 and 100 points, 44, 9 and 1 have a deeper one.
_CHANCE = 2.0
_LAST = 5  # points at the end of a curve that diverges, where no valley is searched


@dataclass(frozen=True, slots=True)
class LrCurve:
    """What the test found.

    Attributes:
        lrs: learning rate of each update, as `optim.lr` would set it; ascending.
        losses: mean loss of each update's batch, before the update.
        smoothed: the losses, smoothed over their neighbours on both sides.
        suggestion: learning rate to train with, rounded to two digits.
        reason: why it is suggested.
        diverged: whether the test ended early because the loss grew too large.
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
    on_step: Progress = lambda _done, _total: None,
) -> LrCurve:
    """Train for some updates at growing learning rates, and suggest one.

    The updates are those of a training: the same batches, accumulation, precision and clipping.
    Parameter groups keep the ratios of their rates (layer-wise decay). If an epoch has fewer
    batches than the test needs, further epochs follow. The test ends early when the loss is not
    finite, or its running mean is more than 4 times the lowest so far.

    Args:
        training: what to train; its weights and optimizer are of no use afterwards.
        seed: seed of dropout and the like.
        smallest: first learning rate, for the group that learns fastest.
        largest: last learning rate.
        steps: number of updates, at least 20.
        on_step: called with the updates done and all updates.

    Raises:
        ConfigError: too few steps, or rates that do not grow.
        TrainError: too little memory, or a curve from which no rate can be read.
    """
    if steps < MIN_STEPS:
        raise ConfigError(
            f"found {steps} steps to find a learning rate, expected at least {MIN_STEPS}",
            hint="100 are usual; a small data set is repeated",
        )
    if not 0 < smallest < largest < math.inf:
        raise ConfigError(
            f"found learning rates from {smallest:g} to {largest:g}, expected a growing range"
        )
    state, options = training.state, training.options.loop
    set_training_mode(state.model, freeze_batchnorm=options.freeze_batchnorm)
    gradients = Gradients(
        state, training.forward, training.criterion, options, training.train.sampler
    )
    groups = state.optimizer.param_groups
    # Without warmup and decay: timm's schedules keep each group's rate as `initial_lr` and
    # multiply it by `lr_scale`, the factor of layer-wise decay.
    rates = [group.get("initial_lr", 1.0) * group.get("lr_scale", 1.0) for group in groups]
    lrs = np.geomspace(smallest, largest, steps).tolist()
    losses: list[float] = []
    running, lowest, diverged = 0.0, math.inf, False
    hint = "lower train.batch_size or data.img_size, or choose a smaller model"
    with explaining_memory(options.machine.device, hint=hint):
        batches = _repeat_epochs(training, seed)
        for lr, (step, batch) in zip(lrs, batches, strict=False):
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = lr * rate / max(rates)
            sums = gradients.compute(step, batch)
            gradients.apply()
            losses.append(float(sums[0]) / len(batch.images))  # the first figure is the loss
            on_step(len(losses), steps)
            running = _MOMENTUM * running + (1 - _MOMENTUM) * losses[-1]
            mean = running / (1 - _MOMENTUM ** len(losses))  # as Adam corrects for starting at 0
            lowest = min(lowest, mean)
            too_large = len(losses) >= MIN_STEPS and mean > _DIVERGED * lowest
            diverged = too_large or not math.isfinite(losses[-1])
            if diverged:
                break
    count = len(losses) if math.isfinite(losses[-1]) else len(losses) - 1
    return build_curve(lrs[:count], losses[:count], diverged=diverged)


def _repeat_epochs(training: Training, seed: int) -> Iterator[tuple[int, Batch]]:
    for epoch in itertools.count(1):
        training.train.sampler.set_epoch(epoch)
        seed_everything(derive_seed(seed, epoch, training.options.loop.machine.ranks.rank))
        yield from enumerate(training.train)


def build_curve(lrs: Sequence[float], losses: Sequence[float], *, diverged: bool) -> LrCurve:
    """Smooth the losses and suggest the rate two thirds down their longest valley.

    Args:
        lrs: (N,) learning rates, ascending.
        losses: (N,) finite losses at these rates.
        diverged: whether the losses end because they grew too large.

    Raises:
        TrainError: fewer than 20 points, or no valley that stands out from the noise.
    """
    if len(lrs) < MIN_STEPS:
        raise TrainError(
            f"the loss was lost after {len(lrs)} updates, at a learning rate of {lrs[-1]:.1e}"
            if lrs
            else "the loss is not finite before anything was learned",
            hint="look at the images and labels (`mnft data check`), data.mean and data.std; "
            "or try train.precision: fp32",
        )
    # Losses after divergence have no limit, and would spread over their neighbours.
    raw = np.minimum(losses, 2 * max(losses[:5]))
    # Gaussian weights on both sides do not lag behind the curve, as fastai's running mean does.
    points = np.arange(len(raw))
    width = max(2.0, len(raw) / 33)
    weights = np.exp(-0.5 * ((points[:, None] - points) / width) ** 2)
    smoothed = weights @ raw / weights.sum(axis=1)
    # After divergence the loss may fall again; as in fastai, the last points do not count.
    start, end = find_valley(smoothed[: -_LAST if diverged else None].tolist())
    fall, noise = smoothed[start] - smoothed[end], (raw - smoothed)[: end + 1].std()
    if fall <= max(_CHANCE * noise, 0.01 * abs(smoothed[start])):
        raise TrainError(
            f"the loss of {smoothed[0]:.3g} does not clearly fall at any learning rate from "
            f"{lrs[0]:.0e} to {lrs[-1]:.1e}, so none can be suggested",
            hint="a larger train.batch_size makes the loss less noisy; after the head stage little "
            "may be left to learn, which --set 'train.stages=[finetune]' leaves out",
        )
    # fastai's text says two thirds, its code takes the middle.
    suggestion = lrs[start + round(2 / 3 * (end - start))]
    reason = (
        f"it lies two thirds down the longest valley of the loss, from {smoothed[start]:.3g} at "
        f"{lrs[start]:.1e} to {smoothed[end]:.3g} at {lrs[end]:.1e}"
    )
    if diverged:
        reason += f"; the loss diverges at {lrs[-1]:.1e}"
    return LrCurve(
        lrs=tuple(lrs),
        losses=tuple(losses),
        smoothed=tuple(smoothed.tolist()),
        suggestion=float(f"{suggestion:.2g}"),
        reason=reason,
        diverged=diverged,
    )


def find_valley(losses: Sequence[float]) -> tuple[int, int]:
    """Find the longest decreasing subsequence, which noise interrupts but does not end.

    Returns:
        The point where it would start if it had no gaps, and the point where it ends.
    """
    lengths = [0] * len(losses)
    for end, loss in enumerate(losses):
        before = [lengths[i] + 1 for i in range(end) if losses[i] > loss]
        lengths[end] = max(before, default=0)
    end = max(range(len(losses)), key=lambda i: lengths[i])
    return end - lengths[end], end
