"""The figures of a model on corrupted images, how far they fall, and what to do about it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.config.schema import Config
from mnft.data.corruptions import CORRUPTIONS, LEVELS
from mnft.device.machine import open_machine
from mnft.evaluation.images import ImageSet
from mnft.evaluation.robustness.batches import VARIANTS, CorruptedBatches
from mnft.model.bundle import Bundle
from mnft.reporter import Reporter
from mnft.tasks import open_task
from mnft.tasks.base import Task
from mnft.tasks.outputs import Outputs, Rate
from mnft.training.inference import choose_eval_batch_size, compute_outputs

_LEVELS = len(LEVELS)
# From this difference of the mean figures on, `augment.device` is worth a try.
_CLEAR_DROP = 0.03
# Quantile of the normal distribution for a 95% interval.
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Robustness:
    """What corruptions do to a model's figures.

    Attributes:
        figure: name of the task's main figure, as a key.
        title: the same for people.
        clean: the figure on the images as they are.
        rates: the figure for each variant, in the order of `VARIANTS`.
        clean_ratings: (N,) float in [0, 1], how good the outputs for each image are.
        ratings: (V, N), the same for each variant.
        outputs: (V, N, K) float32, the model's outputs.
        trained: value of `augment.device` in the model's training; 0 if it is not known.
    """

    figure: str
    title: str
    clean: Rate
    rates: tuple[Rate, ...]
    clean_ratings: NDArray[Any]
    ratings: NDArray[Any]
    outputs: NDArray[Any]
    trained: float

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.clean_ratings)

    @property
    def means(self) -> list[float]:
        """The figure's mean over the levels of each corruption."""
        values = [rate.value for rate in self.rates]
        return [sum(values[i : i + _LEVELS]) / _LEVELS for i in range(0, len(values), _LEVELS)]

    @property
    def mean(self) -> float:
        """The figure's mean over all corruptions and levels."""
        return sum(self.means) / len(self.means)

    @property
    def worst(self) -> list[int]:
        """Positions of the corruptions in the table, the worst first."""
        return sorted(range(len(CORRUPTIONS)), key=lambda number: self.means[number])

    @property
    def drop(self) -> Rate:
        """How far the mean figure lies below the clean one, with its 95% interval.

        The interval is that of the mean difference of an image's ratings, by the normal
        distribution; the same images are clean and corrupted, so it is narrower than those of
        the two figures. Where the figure is no mean over images, the interval is moved to it.
        """
        differences = self.clean_ratings - self.ratings.mean(axis=0)
        error = differences.std(ddof=1) / math.sqrt(len(differences)) if self.num_images > 1 else 1
        half = float(_Z * error)
        drop = self.clean.value - self.mean
        return Rate(drop, drop - half, drop + half)

    @property
    def advice(self) -> str | None:
        """What to do about it; None if the figure hardly falls."""
        if self.drop.value < _CLEAR_DROP or self.drop.low <= 0:
            return None
        if self.trained:
            return (
                f"augment.device is {self.trained:g} already; images of the device in the training "
                "set help more"
            )
        return (
            "train against it: mnft train CONFIG --set augment.device=0.5, and compare both runs "
            "with --split val"
        )

    def as_record(self) -> dict[str, Any]:
        """All figures as JSON values."""
        drop = self.drop
        corruptions = []
        for number, (corruption, mean) in enumerate(zip(CORRUPTIONS, self.means, strict=True)):
            rates = self.rates[_LEVELS * number :]
            levels = [
                {"level": level, "amount": amount, **asdict(rate)}
                for level, amount, rate in zip(LEVELS, corruption.levels, rates, strict=False)
            ]
            entry = {"name": corruption.name, "unit": corruption.unit}
            corruptions.append({**entry, "mean": mean, "levels": levels})
        return {
            "figure": self.figure,
            "num_images": self.num_images,
            "clean": asdict(self.clean),
            "mean": self.mean,
            "drop": drop.value,
            "drop_interval": {"low": drop.low, "high": drop.high, "level": 0.95},
            "worst": [CORRUPTIONS[number].name for number in self.worst[:3]],
            "advice": self.advice,
            "corruptions": corruptions,
        }

    def describe(self) -> dict[str, str]:
        """The figures over all corruptions for people."""
        drop, points = self.drop, 100 * self.drop.value
        low, high = sorted((100 * drop.low, 100 * drop.high))
        lower = f"{points:.1f} points below" if points >= 0 else f"{-points:.1f} points above"
        worst = (f"{CORRUPTIONS[n].name} {self.means[n]:.1%}" for n in self.worst[:3])
        return {
            "corrupted": f"mean {self.title} {self.mean:.2%}, {lower} clean images  (95% interval "
            f"of the difference {low:.1f} to {high:.1f})",
            "worst": ", ".join(worst),
        }

    def build_rows(self) -> list[list[object]]:
        """A row for each corruption, the worst first: what, amounts, the levels, the mean."""
        rows: list[list[object]] = []
        for number in self.worst:
            corruption = CORRUPTIONS[number]
            amounts = ", ".join(f"{amount:g}" for amount in corruption.levels)
            rates = self.rates[_LEVELS * number : _LEVELS * (number + 1)]
            figures = [*(rate.value for rate in rates), self.means[number]]
            shown = [f"{figure:.1%}" for figure in figures]
            rows.append([corruption.name, f"{corruption.unit}: {amounts}", *shown])
        return rows


def measure_robustness(
    bundle: Bundle,
    images: ImageSet,
    clean: Outputs,
    config: Config,
    *,
    device: str,
    batch_size: int | None,
    flip: bool,
    reporter: Reporter,
) -> Robustness:
    """Compute the figures of a model on corrupted images.

    Args:
        bundle: the model.
        images: the images.
        clean: the model's outputs for the images as they are.
        config: the config of the model's run, or the defaults.
        device: name of the device: auto, cpu, cuda, cuda:N or mps.
        batch_size: images in a batch; None takes that of the config.
        flip: whether to average each corrupted image with its mirror image, as `clean` is.
        reporter: told of progress.

    Raises:
        MnftError: there is no such device, an image does not decode, or the model gives outputs
            that are not finite.
    """
    machine = open_machine(device).with_precision("fp32", config.eval.precision, img_size=None)
    task = open_task(bundle.labels, bundle.task, bundle.settings)
    size = batch_size or choose_eval_batch_size(config.eval, bundle.preprocessing)
    targets = task.encode(images.samples)
    batches = CorruptedBatches(images, targets, bundle.preprocessing, machine, size)
    total = len(VARIANTS) * len(images.samples)
    with reporter.count("judging corrupted images", total) as advance:
        outputs = compute_outputs(
            machine.place(bundle.model),
            batches,
            machine,
            num_outputs=len(task.labels),
            flip=flip,
            on_images=advance,
        )
    values = outputs.values.reshape(len(VARIANTS), len(images.samples), -1)
    return Robustness(
        figure=task.figure,
        title=task.title,
        clean=task.evaluate(clean).rate,
        rates=tuple(
            task.evaluate(Outputs(clean.positions, own, clean.targets, {})).rate for own in values
        ),
        clean_ratings=_rate_each(task, clean.values, clean.targets),
        ratings=np.stack([_rate_each(task, own, clean.targets) for own in values]),
        outputs=values,
        trained=config.augment.device,
    )


def _rate_each(task: Task, values: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    return np.array([task.rate_one(values[i : i + 1], targets[i]) for i in range(len(values))])
