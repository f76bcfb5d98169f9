"""What a task makes of a model's outputs: figures, answers, agreement of two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray
from torch import Tensor

from mnft.data.decode import BadImage

METRICS = "metrics.json"  # the figures of an evaluation, in its folder


@dataclass(frozen=True, slots=True)
class Features:
    """The features that a frozen backbone computes for images.

    Attributes:
        values: (N, D) float32, the input of the head.
        targets: (N,) int64 or (N, K) float32, as the task encodes them.
    """

    values: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a model for a set of images.

    Attributes:
        positions: (N,) int64, ascending: positions of the images in the list of paths.
        values: (N, K) float32.
        targets: (N,) int64 or (N, K) float32, as the task encodes them.
        bad: images that could not be decoded, by position.
    """

    positions: NDArray[Any]
    values: NDArray[Any]
    targets: NDArray[Any]
    bad: dict[int, BadImage]


@dataclass(frozen=True, slots=True)
class UnknownImages:
    """Images of nothing that a model knows, and its outputs for them.

    Attributes:
        outputs: the outputs; the targets mean nothing.
        paths: path of each image that was read, in the order of the outputs.
    """

    outputs: Outputs
    paths: list[str]


class Remark(NamedTuple):
    """Something to tell a person of a trained model, with a hint where something can be done."""

    text: str
    hint: str | None = None
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Rate:
    """A figure, or a difference of two, with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the outputs of two models for the same images agree.

    Attributes:
        figure: name of the task's main figure, as a key.
        title: the same for people.
        num_images: number of images that were compared.
        agreement: fraction of the images on which both give the same answer.
        before: the main figure of the first model.
        after: the main figure of the second model.
        largest_difference: largest difference of an output value; NaN where one is not finite.
        mean_difference: mean difference over all images and values.
        disagreements: positions of the first images on which the two differ.
        of: what the values are that the differences are of, such as "logits".
    """

    figure: str
    title: str
    num_images: int
    agreement: float
    before: Rate
    after: Rate
    largest_difference: float
    mean_difference: float
    disagreements: tuple[int, ...]
    of: str

    @property
    def drop(self) -> float:
        """What the second model loses of the main figure; negative where it is better."""
        return self.before.value - self.after.value


class Table(NamedTuple):
    """Figures for people.

    Attributes:
        headings: headings of the columns.
        rows: cells, row by row.
        remark: what to say below where rows were left out, else "".
        file: the file of the evaluation that has all rows.
    """

    headings: list[str]
    rows: list[list[object]]
    remark: str
    file: str


class Evaluation(Protocol):
    """The full evaluation of a model on a set of images."""

    @property
    def num_images(self) -> int:
        """Number of images."""

    @property
    def rate(self) -> Rate:
        """The task's main figure, by which models are compared."""

    def as_record(self) -> dict[str, Any]:
        """All figures as JSON values."""

    def as_columns(self) -> Mapping[str, float | None]:
        """The figures that a comparison of models has as columns."""

    def as_cells(self) -> dict[str, str]:
        """The same figures for people, by headings: the task's `columns`, and maybe others."""

    def describe(self) -> dict[str, str]:
        """The figures over all images for people, by their names."""

    def build_table(self) -> Table:
        """The figures of each label for people."""

    def build_unknown_table(self) -> Table | None:
        """Images of nothing that the model knows, and its answers; None where none were given."""


class Answers(Protocol):
    """What `mnft predict` says of an image, from its outputs."""

    @property
    def headings(self) -> list[str]:
        """Headings of the cells."""

    def as_cells(self, values: NDArray[Any]) -> list[str]:
        """The answer as cells of a CSV file.

        Args:
            values: (K,) outputs for one image.
        """

    def as_record(self, values: NDArray[Any] | None) -> dict[str, Any]:
        """The answer as JSON values.

        Args:
            values: (K,) outputs for one image; None for an image that could not be read.
        """

    def choose_explained(self, values: NDArray[Any]) -> list[int]:
        """The outputs whose heat maps explain the answer, the most important first.

        Args:
            values: (K,) outputs for one image.
        """


class WriteEvaluation(Protocol):
    """Writes the files of an evaluation."""

    def __call__(
        self,
        folder: Path,
        evaluation: Any,
        outputs: Outputs,
        paths: list[str],
        *,
        header: dict[str, Any],
        unreadable: Mapping[str, str],
        root: Path,
    ) -> None:
        """Write a folder that appears whole or not at all, with the figures in metrics.json.

        Args:
            folder: where the files go; it takes the place of an older evaluation.
            evaluation: what the task's `evaluate` made of the outputs.
            outputs: the outputs of the model.
            paths: the path of each image, as the files name it.
            header: what was evaluated, JSON values; the first keys of metrics.json.
            unreadable: path and reason of files that could not be decoded.
            root: folder of the images, which `paths` are below.
        """


class Compare(Protocol):
    """Compares the outputs of two models."""

    def __call__(self, reference: Outputs, other: Outputs, *, activated: bool = False) -> Agreement:
        """Compare outputs for the same images.

        Args:
            reference: outputs of the model to compare with.
            other: outputs of the other model.
            activated: whether the other model is a file that ends in the task's activation;
                differences are then those of what it gives.

        Raises:
            ValueError: the outputs are of different images, or of none.
        """


@dataclass(frozen=True, slots=True)
class LabelError:
    """An image whose label is likely wrong.

    Attributes:
        position: position of the image.
        what: the label, and what the image looks like.
    """

    position: int
    what: str


class FindLabelErrors(Protocol):
    """Finds images whose label a model confidently contradicts."""

    def __call__(
        self,
        features: Features,
        values: NDArray[Any],
        trained: NDArray[Any],
        groups: Sequence[str],
    ) -> list[LabelError]:
        """Find likely wrong labels.

        Args:
            features: features of N images, with the labels that they have.
            values: (N, K) outputs of the model.
            trained: (N,) bool, whether the model learned from the image or may have; such images
                are judged by cross-validation on the features, others by the model itself.
            groups: the content of each image: equal ones stay together in cross-validation.
        """
