"""What a task is: the data and functions that differ between classification and other tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms import v2

from mnft.config.schema import AugmentConfig, Config, DistillConfig, TrainConfig
from mnft.data.manifest import Sample
from mnft.device.machine import Machine
from mnft.device.ranks.distributed import Ranks
from mnft.model.factory import BuiltModel
from mnft.preprocessing import Preprocessing
from mnft.results import EpochResult
from mnft.tasks.outputs import (
    Answers,
    Compare,
    Evaluation,
    Features,
    FindLabelErrors,
    Remark,
    WriteEvaluation,
)
from mnft.tasks.panels import EvaluationFiles, TaskReport


class Loss(Protocol):
    """What the training loop minimises."""

    def __call__(self, outputs: Tensor, targets: Tensor, images: Tensor, /) -> Tensor:
        """Return the loss summed over the batch, a scalar.

        Args:
            outputs: (B, K) float, of the model that learns.
            targets: targets of the batch, as the task's `encode` and `mix` made them.
            images: (B, C, H, W) float, normalised: the model's input.
        """


class Score(Protocol):
    """Collects a model's outputs for evaluated images, and computes the task's figures."""

    def update(self, positions: Sequence[int], outputs: Tensor, targets: Tensor) -> None:
        """Add one batch; the tensors may stay on the device."""

    def result(self) -> dict[str, float]:
        """Compute the figures over the images of all processes, which call this together.

        Raises:
            ModelError: outputs that are not finite.
        """

    def fit_settings(self) -> dict[str, Any]:
        """Fit what the task keeps with a model to the images of `result`, such as thresholds."""

    def fitted_loss(self) -> float:
        """The loss of `result` with what `fit_settings` fits: models of one training compare by it.

        Without it a model that is right but too modest, as label smoothing makes it, would lose.
        """


class FittedHead(Protocol):
    """A linear head that was fitted to features."""

    @property
    def weight(self) -> Tensor:
        """(K, D) float."""

    @property
    def bias(self) -> Tensor:
        """(K,) float."""

    @property
    def train(self) -> Mapping[str, float]:
        """Figures on the features that it was fitted to."""

    @property
    def val(self) -> Mapping[str, float]:
        """Figures on the features of the val split."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the task keeps with the model, fitted to the val split."""

    @property
    def description(self) -> str:
        """How it was fitted, for the log."""


class FitHead(Protocol):
    """Fits a linear head to features."""

    def __call__(
        self, train: Features, val: Features, *, balanced: bool, seed: int, device: torch.device
    ) -> FittedHead:
        """Fit a head.

        Args:
            train: features to fit to.
            val: features to choose the regularisation on.
            balanced: whether rare labels weigh more, as `train.class_weights: balanced` says.
            seed: seed of the order in which features are used.
            device: where to compute.
        """


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model to learn from.

    Attributes:
        model: the model in evaluation mode, on the device; nothing in it learns except a new head.
        preprocessing: what it expects of its input.
        fixed_input: whether it takes images of only one size.
        labels: names of its outputs; None if they are not known.
        order: for each of the student's outputs, the teacher's; None if they have the same order.
        needs_head: whether its head is new, and must be fitted before it can teach; afterwards
            `dataclasses.replace(teacher, needs_head=False)` says so.
        description: what it is, in words.
    """

    model: nn.Module
    preprocessing: Preprocessing
    fixed_input: bool
    labels: tuple[str, ...] | None
    order: tuple[int, ...] | None
    needs_head: bool
    description: str


@dataclass(frozen=True, slots=True)
class Task:
    """One task with its labels; a record of data and functions that nobody inherits from.

    Attributes:
        name: name of the task's folder, by which `open_task` finds it.
        labels: names of the model's outputs, in order.
        monitors: for each figure that can choose the best epoch, `max` or `min`.
        train_figures: names of the figures that training sums up over an epoch; the first is the
            loss.
        figure: name of the main figure, by which models are compared.
        title: the same for people.
        columns: headings of the figures in a comparison, the main figure first.
        explanation: what the main figure's column says, for the page of a comparison.
        encode: samples to targets, one each: numbers, or lists of numbers of one length.
        weigh: weight of each sample for `train.sampler: balanced`.
        build_loss: the loss of a training, from the config, the training samples and the device.
        no_label: the target of an image whose label nobody knows, as `encode` would give it; the
            loss on labels and the training figures pass over it.
        build_mix: a transform that mixes the images and targets of a batch, or None.
        sum_batch: the vector of `train_figures` summed over a batch, and the number of its images
            that have a label, on the device; the loss is that of all images.
        new_score: an empty score for the processes that share an evaluation.
        build_model: the model of a config, with outputs for the labels.
        fit_head: fits a linear head to features.
        load_teacher: the teacher of this name or path.
        build_distillation: combines the loss with one against teachers, from the loss, the
            teachers, the `distill` section, the student's preprocessing and the teachers' dtype.
        format_figures: figures of the `monitors` as text for people, by names for people.
        plot_training: draws the curve of a training.
        describe_settings: what was fitted to the val split besides the weights, for people.
        evaluate: the full evaluation of a model's outputs; where `judges_unknown`, it takes the
            outputs for images of nothing that the model knows as well.
        judges_unknown: whether an answer may be that the model knows nothing of an image.
        write_evaluation: writes the files of an evaluation.
        evaluation_files: names of these files.
        compare: compares the outputs of two models.
        rate_one: how good the (1, K) outputs for an image are for its target, in [0, 1]; the mean
            over images is the main figure, or follows it.
        find_label_errors: finds likely wrong labels.
        build_answers: what `mnft predict` says of images, with at most so many labels an image.
        build_report: what a report shows of the files that `write_evaluation` wrote.
    """

    name: str
    labels: tuple[str, ...]
    monitors: Mapping[str, Callable[..., Any]]
    train_figures: tuple[str, ...]
    figure: str
    title: str
    columns: tuple[str, ...]
    explanation: str
    encode: Callable[[Sequence[Sample]], list[Any]]
    weigh: Callable[[Sequence[Sample]], list[float]]
    no_label: Any
    build_loss: Callable[[TrainConfig, Sequence[Sample], torch.device], Loss]
    build_mix: Callable[[AugmentConfig], v2.Transform | None]
    sum_batch: Callable[[Tensor, Tensor, Tensor], Tensor]
    new_score: Callable[[Ranks], Score]
    build_model: Callable[[Config], BuiltModel]
    fit_head: FitHead
    load_teacher: Callable[[str, Machine], Teacher]
    build_distillation: Callable[
        [Loss, Sequence[Teacher], DistillConfig, Preprocessing, torch.dtype], Loss
    ]
    format_figures: Callable[[Mapping[str, float]], dict[str, str]]
    plot_training: Callable[[Sequence[EpochResult], Path, str], None]
    describe_settings: Callable[[Mapping[str, Any]], list[Remark]]
    evaluate: Callable[..., Evaluation]
    judges_unknown: bool
    write_evaluation: WriteEvaluation
    evaluation_files: frozenset[str]
    compare: Compare
    rate_one: Callable[[NDArray[Any], Any], float]
    find_label_errors: FindLabelErrors
    build_answers: Callable[[int], Answers]
    build_report: Callable[[EvaluationFiles], TaskReport]
