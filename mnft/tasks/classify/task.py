"""Classification as a task: one label an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mnft.config.schema import Config, TrainConfig
from mnft.data.manifest import Sample
from mnft.model.factory import BuiltModel, build_model
from mnft.results import EpochResult
from mnft.tasks.base import Task
from mnft.tasks.classify.answers import ProbableClasses, compare, rate_one
from mnft.tasks.classify.confident_learning import find_label_errors
from mnft.tasks.classify.distill.loss import DistillationLoss
from mnft.tasks.classify.distill.teacher import load_teacher
from mnft.tasks.classify.evaluation import COLUMNS, EXPLANATION, Evaluation
from mnft.tasks.classify.head import CrossEntropy
from mnft.tasks.classify.linear_fit import fit_head
from mnft.tasks.classify.metrics import ClassifyScore, compute_evaluation, softmax
from mnft.tasks.classify.predictions import EVALUATION_FILES, Predictions, write_evaluation
from mnft.tasks.classify.report.build import build_report
from mnft.tasks.classify.targets import (
    build_mix,
    compute_balanced_weights,
    count_correct,
    encode,
    weigh,
)
from mnft.tasks.outputs import Outputs


def build(
    labels: tuple[str, ...],
    _settings: Mapping[str, Any],
    _config: Config | None,
) -> Task:
    """Build the task for these class names; a classifier keeps no settings."""
    num_classes = len(labels)

    def build_classifier(config: Config) -> BuiltModel:
        return build_model(
            config.model,
            num_classes=num_classes,
            labels=labels,
            img_size=config.data.img_size,
            overrides=config.data.override_preprocessing(),
        )

    def evaluate(outputs: Outputs) -> Evaluation:
        return compute_evaluation(outputs.values, outputs.targets, labels)

    def write(
        folder: Path, evaluation: Evaluation, outputs: Outputs, paths: list[str], **more: Any
    ) -> None:
        predictions = Predictions(paths, outputs.targets, softmax(outputs.values))
        write_evaluation(folder, evaluation, predictions, labels, **more)

    return Task(
        name="classify",
        labels=labels,
        monitors={"accuracy": max, "macro_f1": max, "loss": min},
        train_figures=("loss", "accuracy"),
        figure="accuracy",
        title="accuracy",
        columns=COLUMNS,
        explanation=EXPLANATION,
        encode=partial(encode, class_names=labels),
        weigh=partial(weigh, class_names=labels),
        build_loss=partial(_build_loss, class_names=labels),
        build_mix=partial(build_mix, num_classes=num_classes),
        sum_batch=count_correct,
        new_score=ClassifyScore,
        build_model=build_classifier,
        fit_head=partial(fit_head, num_classes=num_classes),
        load_teacher=partial(load_teacher, class_names=labels),
        build_distillation=DistillationLoss,
        format_figures=_format_figures,
        plot_training=_plot_training,
        evaluate=evaluate,
        write_evaluation=write,
        evaluation_files=EVALUATION_FILES,
        compare=compare,
        rate_one=rate_one,
        find_label_errors=partial(find_label_errors, class_names=labels),
        build_answers=partial(ProbableClasses, labels),
        build_report=build_report,
    )


def _format_figures(figures: Mapping[str, float]) -> dict[str, str]:
    """The figures of a validation for people."""
    return {
        "accuracy": f"{figures['accuracy']:.2%}",
        "macro F1": f"{figures['macro_f1']:.4f}",
        "loss": f"{figures['loss']:.4f}",
    }


def _build_loss(
    config: TrainConfig,
    samples: Sequence[Sample],
    device: torch.device,
    *,
    class_names: tuple[str, ...],
) -> CrossEntropy:
    weights = None
    if config.class_weights == "balanced":
        per_class = compute_balanced_weights(encode(samples, class_names), len(class_names))
        weights = torch.tensor(per_class, device=device)
    return CrossEntropy(config.label_smoothing, weights)


def _plot_training(results: Sequence[EpochResult], path: Path, monitor: str) -> None:
    # matplotlib is imported only when a training has ended, not when it begins.
    from mnft.tasks.classify.panels.training import plot_training

    plot_training(results, path, monitor=monitor)
