"""Classification as a task: one label an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mnft.config.schema import Config, TrainConfig
from mnft.data.labels import OTHER
from mnft.data.manifest import Sample
from mnft.errors import ConfigError
from mnft.model.factory import BuiltModel, build_model
from mnft.results import EpochResult
from mnft.tasks.base import Task
from mnft.tasks.classify.answers import ProbableClasses, compare, rate_one
from mnft.tasks.classify.confident_learning import find_label_errors
from mnft.tasks.classify.decision.fit import describe_decision
from mnft.tasks.classify.decision.record import UNKNOWN, Decision, read_settings
from mnft.tasks.classify.distill.loss import DistillationLoss
from mnft.tasks.classify.distill.teacher import load_teacher
from mnft.tasks.classify.evaluation import COLUMNS, EXPLANATION, Evaluation
from mnft.tasks.classify.head import CrossEntropy
from mnft.tasks.classify.linear_fit import fit_head
from mnft.tasks.classify.metrics import compute_evaluation, softmax
from mnft.tasks.classify.predictions import EVALUATION_FILES, Predictions, write_evaluation
from mnft.tasks.classify.report.build import build_report
from mnft.tasks.classify.score import ClassifyScore
from mnft.tasks.classify.targets import (
    NO_CLASS,
    build_mix,
    compute_balanced_weights,
    count_correct,
    encode,
    weigh,
)
from mnft.tasks.outputs import Outputs, UnknownImages


def build(
    labels: tuple[str, ...],
    settings: Mapping[str, Any],
    config: Config | None,
) -> Task:
    """Build the task for these class names.

    Args:
        labels: names of the outputs; OTHER, for images of none of the classes, may be among them.
        settings: the temperature and the threshold of a trained model.
        config: the config of a training; None where a trained model is used.

    Raises:
        ConfigError: a class has the name of the answer where none is named.
        ModelError: the settings are damaged.
    """
    num_classes = len(labels)
    decision = read_settings(settings)
    other = labels.index(OTHER) if OTHER in labels else None
    wanted = None if config is None else config.decision
    if config is not None:
        _check_names(labels, config)

    def build_classifier(config: Config) -> BuiltModel:
        return build_model(
            config.model,
            num_classes=num_classes,
            labels=labels,
            img_size=config.data.img_size,
            overrides=config.data.override_preprocessing(),
        )

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
        no_label=NO_CLASS,
        build_loss=partial(_build_loss, class_names=labels),
        build_mix=partial(build_mix, num_classes=num_classes),
        sum_batch=partial(count_correct, other=other),
        new_score=partial(ClassifyScore, config=wanted, other=other),
        build_model=build_classifier,
        fit_head=partial(fit_head, num_classes=num_classes, decision=wanted, other=other),
        load_teacher=partial(load_teacher, class_names=labels),
        build_distillation=DistillationLoss,
        format_figures=_format_figures,
        plot_training=_plot_training,
        describe_settings=describe_decision,
        evaluate=partial(_evaluate, labels=labels, decision=decision, other=other),
        judges_unknown=True,
        write_evaluation=partial(_write, labels=labels, other=other),
        evaluation_files=EVALUATION_FILES,
        compare=partial(compare, threshold=decision.threshold, none_of_these=other),
        rate_one=rate_one,
        find_label_errors=partial(find_label_errors, class_names=labels),
        build_answers=partial(ProbableClasses, labels, threshold=decision.threshold, other=other),
        build_report=build_report,
    )


def _evaluate(
    outputs: Outputs,
    unknown: UnknownImages | None = None,
    *,
    labels: tuple[str, ...],
    decision: Decision,
    other: int | None,
) -> Evaluation:
    values, targets = outputs.values, outputs.targets
    return compute_evaluation(
        values, targets, labels, decision=decision, other=other, unknown=unknown
    )


def _write(
    folder: Path,
    evaluation: Evaluation,
    outputs: Outputs,
    paths: list[str],
    *,
    labels: tuple[str, ...],
    **more: Any,
) -> None:
    predictions = Predictions(paths, outputs.targets, softmax(outputs.values))
    write_evaluation(folder, evaluation, predictions, labels, **more)


def _check_names(labels: tuple[str, ...], config: Config) -> None:
    silent = config.decision.target_accuracy is not None or config.data.other is not None
    if silent and UNKNOWN in labels:
        raise ConfigError(
            f"a class is called {UNKNOWN!r}, which is also the answer where no class is named",
            hint="rename the folder; or name it in data.other if it holds images of none of the "
            "classes",
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
