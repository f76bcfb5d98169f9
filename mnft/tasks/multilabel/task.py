"""Multi-label classification as a task: any number of labels an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mnft.config.multilabel import MultilabelConfig
from mnft.config.schema import Config
from mnft.model.factory import BuiltModel, build_model
from mnft.results import EpochResult
from mnft.tasks.base import Task
from mnft.tasks.classify.distill.loss import DistillationLoss
from mnft.tasks.classify.distill.teacher import load_teacher
from mnft.tasks.classify.targets import build_mix
from mnft.tasks.multilabel.answers import DecidedLabels, compare, rate_one
from mnft.tasks.multilabel.confident_learning import find_label_errors
from mnft.tasks.multilabel.evaluation import COLUMNS, EXPLANATION, Evaluation
from mnft.tasks.multilabel.head import average_probabilities, build_loss, compute_divergence
from mnft.tasks.multilabel.linear_fit import fit_head
from mnft.tasks.multilabel.metrics import MultilabelScore, compute_evaluation
from mnft.tasks.multilabel.predictions import EVALUATION_FILES, write_evaluation
from mnft.tasks.multilabel.report.build import build_report
from mnft.tasks.multilabel.targets import count_exact, encode, weigh
from mnft.tasks.multilabel.thresholds import read_settings
from mnft.tasks.outputs import Answers, Outputs


def build(
    labels: tuple[str, ...],
    settings: Mapping[str, Any],
    config: Config | None,
) -> Task:
    """Build the task for these labels.

    Args:
        labels: K names, in the order of the outputs.
        settings: the thresholds of a trained model; without them each is a probability of 0.5.
        config: the config of a training; None where a trained model is used.

    Raises:
        ModelError: the settings are damaged.
    """
    own = MultilabelConfig() if config is None else config.multilabel
    thresholds = read_settings(settings, labels)

    def build_classifier(config: Config) -> BuiltModel:
        return build_model(
            config.model,
            num_classes=len(labels),
            labels=labels,
            img_size=config.data.img_size,
            overrides=config.data.override_preprocessing(),
        )

    def evaluate(outputs: Outputs) -> Evaluation:
        return compute_evaluation(outputs.values, outputs.targets, labels, thresholds)

    def build_answers(_limit: int) -> Answers:
        return DecidedLabels(labels, thresholds)

    return Task(
        name="multilabel",
        labels=labels,
        monitors={"map": max, "macro_f1": max, "micro_f1": max, "loss": min},
        train_figures=("loss", "exact"),
        figure="map",
        title="mAP",
        columns=COLUMNS,
        explanation=EXPLANATION,
        encode=partial(encode, labels=labels),
        weigh=partial(weigh, labels=labels),
        no_label=[float("nan")] * len(labels),
        build_loss=partial(build_loss, labels=labels, own=own),
        # torchvision blends targets of this form as they are, and a NaN in either partner stays.
        build_mix=partial(build_mix, num_classes=len(labels)),
        sum_batch=count_exact,
        new_score=partial(MultilabelScore, labels=labels, config=own),
        build_model=build_classifier,
        fit_head=partial(fit_head, labels=labels, config=own),
        load_teacher=partial(load_teacher, class_names=labels, task="multilabel"),
        build_distillation=partial(
            DistillationLoss, divergence=compute_divergence, average=average_probabilities
        ),
        format_figures=_format_figures,
        plot_training=_plot_training,
        describe_settings=lambda _settings: [],
        evaluate=evaluate,
        judges_unknown=False,
        write_evaluation=partial(write_evaluation, thresholds=thresholds),
        evaluation_files=EVALUATION_FILES,
        compare=partial(compare, thresholds=thresholds),
        rate_one=partial(rate_one, thresholds=thresholds),
        find_label_errors=partial(find_label_errors, labels=labels),
        build_answers=build_answers,
        build_report=build_report,
    )


def _format_figures(figures: Mapping[str, float]) -> dict[str, str]:
    """The figures of a validation for people."""
    return {
        "mAP": f"{figures['map']:.2%}",
        "macro F1": f"{figures['macro_f1']:.4f}",
        "micro F1": f"{figures['micro_f1']:.4f}",
        "loss": f"{figures['loss']:.4f}",
    }


def _plot_training(results: Sequence[EpochResult], path: Path, monitor: str) -> None:
    # matplotlib is imported only when a training has ended, not when it begins.
    from mnft.tasks.multilabel.panels.training import plot_training

    plot_training(results, path, monitor=monitor)
