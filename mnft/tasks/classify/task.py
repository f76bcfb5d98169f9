"""Classification as a task: one label an image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from mnft.config.schema import Config, TrainConfig
from mnft.data.manifest import Sample
from mnft.model.factory import BuiltModel, build_model
from mnft.results import EpochResult
from mnft.tasks.base import Task
from mnft.tasks.classify.distill.loss import DistillationLoss
from mnft.tasks.classify.distill.teacher import load_teacher
from mnft.tasks.classify.head import CrossEntropy
from mnft.tasks.classify.linear_fit import fit_head
from mnft.tasks.classify.metrics import ClassifyScore
from mnft.tasks.classify.targets import build_mix, compute_balanced_weights, count_correct, encode


def build(labels: tuple[str, ...]) -> Task:
    """Build the task for these class names."""
    num_classes = len(labels)

    def weigh(samples: Sequence[Sample]) -> list[float]:
        targets = encode(samples, labels)
        per_class = compute_balanced_weights(targets, num_classes)
        return [per_class[target] for target in targets]

    def build_loss(
        config: TrainConfig, samples: Sequence[Sample], device: torch.device
    ) -> CrossEntropy:
        weights = None
        if config.class_weights == "balanced":
            targets = encode(samples, labels)
            weights = torch.tensor(compute_balanced_weights(targets, num_classes), device=device)
        return CrossEntropy(config.label_smoothing, weights)

    def build_classifier(config: Config) -> BuiltModel:
        return build_model(
            config.model,
            num_classes=num_classes,
            class_names=labels,
            img_size=config.data.img_size,
            overrides=config.data.model_dump(include={"mean", "std", "interpolation", "crop_pct"}),
        )

    def plot_training(results: Sequence[EpochResult], path: Path, monitor: str) -> None:
        # matplotlib is imported only when a training has ended, not when it begins.
        from mnft.tasks.classify.curve import plot_training as plot

        plot(results, path, monitor=monitor)

    return Task(
        name="classify",
        labels=labels,
        monitors={"accuracy": max, "macro_f1": max, "loss": min},
        train_figures=("loss", "accuracy"),
        encode=partial(encode, class_names=labels),
        weigh=weigh,
        build_loss=build_loss,
        build_mix=partial(build_mix, num_classes=num_classes),
        sum_batch=count_correct,
        new_score=ClassifyScore,
        build_model=build_classifier,
        fit_head=partial(fit_head, num_classes=num_classes),
        load_teacher=partial(load_teacher, class_names=labels),
        build_distillation=DistillationLoss,
        plot_training=plot_training,
    )
