"""The full evaluation of a classifier: a record, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mnft.tasks.classify.decision.calibration import ECE_BINS, Calibration
from mnft.tasks.classify.decision.record import UNKNOWN
from mnft.tasks.classify.decision.threshold import Kept
from mnft.tasks.classify.decision.unknown import UnknownFigures, UnknownRow
from mnft.tasks.outputs import Rate, Table

PER_CLASS = "per_class.csv"
MACRO_OVER = "classes that have images"
COLUMNS = ("accuracy (95%)", "macro-F1")
KEPT_COLUMNS = ("kept", "accuracy of kept")
EXPLANATION = (
    "accuracy: with its 95% Wilson interval; where a model has a threshold, the fraction of the "
    "images that it names a class for, and the accuracy among these"
)
UNKNOWN_IMAGES = "unknown.csv"
_SHOWN_CLASSES = 20
_SHOWN_UNKNOWN = 10


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

    Images of none of the classes count in the confusion, the loss and the calibration, as one more
    class, and nowhere else.

    Attributes:
        num_images: number of images.
        num_known: number of those that belong to a class.
        loss: mean cross-entropy in nats.
        accuracy: fraction of the known images whose most probable class is right.
        accuracy_interval: 95% Wilson interval of that.
        top5: fraction of the known images whose class is among the five most probable; None with
            five classes or fewer.
        macro: averages over the classes that have images.
        weighted: averages over the known images.
        ece: expected calibration error in [0, 1].
        temperature: what the logits of the trained weights were divided by.
        calibration: how far the probabilities are off.
        uncalibrated: the same with a temperature of 1; None where that is the temperature.
        decision: what the model's threshold keeps of the known images; None without a threshold.
        on_val: what was said of the val split when the threshold was chosen.
        other: how images of none of the classes among these are answered; None where there are
            none.
        unknown: the same for a folder of such images.
        unknown_rows: the images of that folder, the most confident answer first.
        per_class: figures of each class, in the order of the outputs.
        confusion: `confusion[i][j]` counts the images of class i that were predicted as class j.
    """

    num_images: int
    num_known: int
    loss: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    top5: float | None
    macro: Averages
    weighted: Averages
    ece: float
    temperature: float
    calibration: Calibration
    uncalibrated: Calibration | None
    decision: Kept | None
    on_val: Mapping[str, Any]
    other: UnknownFigures | None
    unknown: UnknownFigures | None
    unknown_rows: tuple[UnknownRow, ...]
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
        values["decision"] = self.decision and self.decision.as_record()
        values["unknown_rows"] = [row._asdict() for row in self.unknown_rows]
        return values | {"macro_over": MACRO_OVER}

    def as_columns(self) -> dict[str, float | None]:
        """Accuracy with its interval, macro F1, and what a threshold keeps."""
        low, high = self.accuracy_interval
        kept = {}
        if self.decision is not None:
            kept = {"kept": self.decision.share, "kept_accuracy": self.decision.accuracy}
        return {
            "accuracy": self.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "macro_f1": self.macro.f1,
            **kept,
        }

    def as_cells(self) -> dict[str, str]:
        """The same under `COLUMNS`, and under `KEPT_COLUMNS` where there is a threshold."""
        low, high = self.accuracy_interval
        accuracy = f"{self.accuracy:.2%} ({100 * low:.1f} to {100 * high:.1f})"
        cells = dict(zip(COLUMNS, (accuracy, f"{self.macro.f1:.4f}"), strict=True))
        if self.decision is not None:
            of_kept = self.decision.accuracy
            shown = (f"{self.decision.share:.1%}", "-" if of_kept is None else f"{of_kept:.2%}")
            cells |= dict(zip(KEPT_COLUMNS, shown, strict=True))
        return cells

    def describe(self) -> dict[str, str]:
        """The figures over all images for people."""
        low, high = self.accuracy_interval
        facts = {"accuracy": f"{self.accuracy:.2%}  (95% Wilson interval {low:.2%} to {high:.2%})"}
        if self.top5 is not None:
            facts["top-5"] = f"{self.top5:.2%}"
        macro, weighted = self.macro, self.weighted
        return facts | {
            "loss": f"{self.loss:.4f}",
            **self._describe_calibration(),
            "macro": f"precision {macro.precision:.4f}, recall {macro.recall:.4f}, "
            f"F1 {macro.f1:.4f}  (over the {MACRO_OVER})",
            "weighted": f"precision {weighted.precision:.4f}, recall {weighted.recall:.4f}, "
            f"F1 {weighted.f1:.4f}",
            **self._describe_decision(),
        }

    def _describe_calibration(self) -> dict[str, str]:
        """How far the probabilities are off, and how far without the temperature."""

        def describe(of: Calibration) -> str:
            low, high = of.ece_interval
            return (
                f"expected calibration error {of.ece:.4f}  ({ECE_BINS} bins; 95% bootstrap "
                f"interval {low:.4f} to {high:.4f}), NLL {of.nll:.4f}, Brier {of.brier:.4f}"
            )

        facts = {"calibration": describe(self.calibration)}
        if self.uncalibrated is not None:
            before = describe(self.uncalibrated)
            facts["uncalibrated"] = f"{before}; the temperature is {self.temperature:.3g}"
        return facts

    def _describe_decision(self) -> dict[str, str]:
        """What the threshold keeps, and what images of none of the classes are taken for."""
        facts = {}
        if (kept := self.decision) is not None:
            right = "none of them"
            if kept.accuracy is not None and kept.interval is not None:
                low, high = kept.interval
                right = f"{kept.accuracy:.2%} of them  (95% Wilson interval {low:.2%} to {high:.2%}"
                if "accuracy" in self.on_val:
                    right += f"; on val {self.on_val['accuracy']:.2%} of {self.on_val['kept']:.1%}"
                right += ")"
            facts["decision"] = (
                f"a class is named for {kept.share:.1%} of the images, from a probability of "
                f"{kept.threshold:g} on, and right for {right}; the others are {UNKNOWN!r}"
            )
        if self.other is not None:
            facts["other"] = self.other.describe()
        if self.unknown is not None:
            facts["unknown"] = self.unknown.describe()
        return facts

    def build_unknown_table(self) -> Table | None:
        """The images of none of the classes with the most confident answers."""
        if self.unknown is None:
            return None
        shown = self.unknown_rows[:_SHOWN_UNKNOWN]
        remark = ""
        if len(shown) < len(self.unknown_rows):
            remark = f"the {len(shown)} most confident of {len(self.unknown_rows):,} unknown images"
        return Table(
            ["unknown image", "looks like", "probability", "answer"],
            [
                [r.path, r.name, f"{r.probability:.4f}", r.name if r.passes else UNKNOWN]
                for r in shown
            ],
            remark,
            UNKNOWN_IMAGES,
        )

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
