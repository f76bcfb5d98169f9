"""The full evaluation of a classifier: a record, and how it is shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mnft.tasks.outputs import Rate, Table

ECE_BINS = 15
INTERVAL_LEVEL = 0.95
PER_CLASS = "per_class.csv"
MACRO_OVER = "classes that have images"
COLUMNS = ("accuracy (95%)", "macro-F1")
EXPLANATION = "accuracy: with its 95% Wilson interval"
_SHOWN_CLASSES = 20


@dataclass(frozen=True, slots=True)
class Averages:
    """Precision, recall and F1 in [0, 1], averaged over classes in one way."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """How well one class is told from the others; precision, recall and F1 in [0, 1].

    `support` counts the images of the class, `predicted` the images that were predicted as it.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found on one set of images.

    `accuracy`, `top5` and `ece` are fractions in [0, 1]; `top5` is None with five classes or fewer.
    `accuracy_interval` is the 95% Wilson score interval. `confusion[i][j]` counts the images of
    class i that were predicted as class j. `loss` is the mean cross-entropy in nats.
    """

    num_images: int
    loss: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    top5: float | None
    macro: Averages
    weighted: Averages
    ece: float
    per_class: list[ClassMetrics]
    confusion: list[list[int]]

    @property
    def rate(self) -> Rate:
        """The accuracy."""
        return Rate(self.accuracy, *self.accuracy_interval)

    def as_record(self) -> dict[str, Any]:
        """All figures, with those of each class by its name."""
        values = asdict(self)
        values["per_class"] = {m.name: asdict(m) for m in self.per_class}
        return values | {"macro_over": MACRO_OVER}

    def as_columns(self) -> dict[str, float]:
        """Accuracy with its interval, and macro F1."""
        low, high = self.accuracy_interval
        return {
            "accuracy": self.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "macro_f1": self.macro.f1,
        }

    def as_cells(self) -> list[str]:
        """The same under `COLUMNS`."""
        low, high = self.accuracy_interval
        accuracy = f"{self.accuracy:.2%} ({100 * low:.1f} to {100 * high:.1f})"
        return [accuracy, f"{self.macro.f1:.4f}"]

    def describe(self) -> dict[str, str]:
        """The figures over all images for people."""
        low, high = self.accuracy_interval
        facts = {"accuracy": f"{self.accuracy:.2%}  (95% Wilson interval {low:.2%} to {high:.2%})"}
        if self.top5 is not None:
            facts["top-5"] = f"{self.top5:.2%}"
        macro, weighted = self.macro, self.weighted
        return facts | {
            "loss": f"{self.loss:.4f}",
            "calibration": f"expected calibration error {self.ece:.4f}  ({ECE_BINS} bins)",
            "macro": f"precision {macro.precision:.4f}, recall {macro.recall:.4f}, "
            f"F1 {macro.f1:.4f}  (over the {MACRO_OVER})",
            "weighted": f"precision {weighted.precision:.4f}, recall {weighted.recall:.4f}, "
            f"F1 {weighted.f1:.4f}",
        }

    def build_table(self) -> Table:
        """The classes that have images, or the worst of them where there are many."""
        present = [m for m in self.per_class if m.support]
        listed, remark = present, ""
        if len(present) > _SHOWN_CLASSES:
            listed = sorted(present, key=lambda m: m.f1)[:_SHOWN_CLASSES]
            remark = f"the {_SHOWN_CLASSES} worst of {len(present)} classes"
        return Table(
            ["class", "precision", "recall", "F1", "images"],
            [
                [m.name, f"{m.precision:.4f}", f"{m.recall:.4f}", f"{m.f1:.4f}", m.support]
                for m in listed
            ],
            remark,
            PER_CLASS,
        )
