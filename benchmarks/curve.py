"""Does the band of `mnft data curve` cover what twice the images then gave?

    python benchmarks/curve.py flowers|clothing|synthetic [ridge|logistic] [REPETITIONS]

Flowers and clothing need MNFT_ASSETS (see benchmarks/2026-11-21.md). N of the training images are
taken for all that there are; half of the val images make the curve. The forecast of 2N is compared
with heads fitted to these N and N other images: the figure on the other half of the val images, the
gain on the same ones. Ridge classifiers, fitted in milliseconds, allow many repetitions; logistic
ones are those that `mnft data curve` fits. Synthetic data has 20,000 images in place of the other
half, so its figure is the true one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mnft.data.manifest import Sample
from mnft.errors import DataError
from mnft.tasks import open_task
from mnft.tasks.classify.labels import RULES
from mnft.tasks.linear_fit import LinearFit
from mnft.tasks.outputs import Features
from mnft.training.head import curve as curve_module
from mnft.training.head.curve import HeadImages, compute_curve
from mnft.training.head.law import forecast

SIZES = (100, 200, 400, 800)


def load(name: str) -> tuple[HeadImages, HeadImages, tuple[str, ...]]:
    """Features of the training and val images by a MobileNetV3-Small at 128 pixels."""
    from mnft.config.load import load_config
    from mnft.device.ranks.distributed import Ranks
    from mnft.reporter import SILENT
    from mnft.runs.begin import begin_training, check_early
    from mnft.training.stages import load_features

    assets = Path(os.environ["MNFT_ASSETS"])
    data = {
        "flowers": f"root: {assets}/data/flowers, img_size: 128",
        "clothing": f"root: {assets}/data/clothing/images.csv, img_size: 128, test_fraction: 0, "
        "val_fraction: 0.3, columns: {label: label, group: sender_id}",
    }[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        model = f"local-dir:{assets}/weights/tf_mobilenetv3_small_075"
        path.write_text(f"data: {{{data}}}\nmodel: {{name: {model}}}\n")
        config, _ = load_config(path, [])
        machine = check_early(config, Ranks(), new_run=False)
        manifest, training = begin_training(config, None, machine, SILENT)
        train, val = (
            HeadImages(features, manifest.split(split))
            for split, features in zip(
                ("train", "val"), load_features(training, SILENT), strict=True
            )
        )
    return train, val, manifest.labels


def draw_synthetic(rng: np.random.Generator) -> tuple[HeadImages, HeadImages, tuple[str, ...]]:
    """Five Gaussian clouds in 60 dimensions, most of which say little."""
    classes, width = 5, 60
    centres = (
        rng.normal(size=(classes, width)) * np.linspace(0.6, 0.02, width) * rng.uniform(0.6, 1.2)
    )

    def draw(number: int, name: str) -> HeadImages:
        targets = np.arange(number) % classes
        values = centres[targets] + rng.normal(size=(number, width))
        samples = [Sample(f"{name}{i}", str(t), name, f"{name}{i}") for i, t in enumerate(targets)]
        features = Features(torch.tensor(values, dtype=torch.float32), torch.tensor(targets))
        return HeadImages(features, samples)

    return draw(2 * max(SIZES), "train"), draw(20_400, "val"), tuple(map(str, range(classes)))


def fit_ridge(train: Features, _val: Features, *, num_labels: int, **_options: object) -> LinearFit:
    """Least squares to targets of 0 and 1, with a penalty that suits standardised features."""
    mean, std = train.values.mean(0), train.values.std(0, correction=0).clamp(min=1e-3)
    x = ((train.values - mean) / std).double()
    y = torch.nn.functional.one_hot(train.targets, num_labels).double()
    middle = y.mean(0)
    dual = torch.linalg.solve(x @ x.T + x.shape[1] * torch.eye(len(x)).double(), y - middle)
    weight = (x.T @ dual / std[:, None]).float()
    return LinearFit(weight.T, middle.float() - mean @ weight, 0.0, {}, {})


def take(images: HeadImages, rows: np.ndarray) -> HeadImages:
    features = Features(images.features.values[rows], images.features.targets[rows])
    return HeadImages(features, [images.samples[row] for row in rows])


def main() -> None:
    name = sys.argv[1]
    kind = sys.argv[2] if len(sys.argv) > 2 else "ridge"
    repetitions = int(sys.argv[3]) if len(sys.argv) > 3 else 30
    real = None if name == "synthetic" else load(name)
    options = {"balanced": False, "seed": 0, "device": torch.device("cpu")}
    print(
        "N, expected - came, covered figure, covered gain, half width of figure and gain (points)"
    )
    everything = []
    for size in SIZES:
        rows = []
        for repetition in range(repetitions):
            rng = np.random.default_rng(1000 * size + repetition)
            train, val, labels = real or draw_synthetic(rng)
            task = open_task(labels, "classify")
            if kind == "ridge":
                task = replace(task, fit_head=partial(fit_ridge, num_labels=len(labels)))
            if len(train.samples) < 2 * size or size < 20 * len(labels):
                continue
            twice = curve_module.draw_part(train.samples, RULES, 2 * size, repetition)
            later = take(train, np.array(twice))
            half = curve_module.draw_part(later.samples, RULES, size, repetition + 1)
            now = take(later, np.array(half))
            first = curve_module.draw_part(
                val.samples,
                RULES,
                400 if name == "synthetic" else len(val.samples) // 2,
                repetition,
            )
            mine = take(val, np.array(first))
            other = take(val, np.setdiff1d(np.arange(len(val.samples)), first))
            try:
                points = compute_curve(
                    task, RULES, now, mine, on_progress=lambda _done, _all: None, **options
                )
            except DataError as error:  # a class of one image, where so few are drawn
                print(f"skipped: {error}")
                continue
            expected = forecast(
                points,
                val_images=len(mine.samples),
                factor=len(twice) / len(half),
                seed=repetition,
            )
            head = task.fit_head(later.features, mine.features, **options)

            def score(images: HeadImages, head: LinearFit = head, task=task) -> float:
                outputs = images.features.values @ head.weight.T + head.bias
                whole = torch.arange(len(outputs))
                return curve_module._score(task, outputs, images.features.targets, whole)

            truth, gain = score(other), score(mine) - points[-1].figures[0]
            rows.append(
                (
                    100 * (expected.figure.value - truth),
                    expected.figure.low <= truth <= expected.figure.high,
                    expected.gain.low <= gain <= expected.gain.high,
                    50 * (expected.figure.high - expected.figure.low),
                    50 * (expected.gain.high - expected.gain.low),
                    100 * (expected.gain.value - gain),
                    100 * gain,
                )
            )
        if rows:
            show(f"{size:5}", rows)
            everything += rows
    show("  all", everything)


def show(label: str, rows: list[tuple[float, ...]]) -> None:
    table = np.array(rows, dtype=float)
    off, figure, gain, width, gain_width, gain_off, gained = table.mean(0)
    print(
        f"{label} n {len(rows):3}  bias {off:+.2f} sd {table[:, 0].std():.2f}  figure "
        f"{figure:.0%} (±{width:.1f})  gain {gain:.0%} (±{gain_width:.1f})  gain's bias "
        f"{gain_off:+.2f} sd {table[:, 5].std():.2f}, it was {gained:+.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
