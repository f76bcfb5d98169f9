"""The full evaluation of a multi-label classifier: a record, and how it is shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mnft.tasks.multilabel.average_precision import Interval
from mnft.tasks.outputs import Rate, Table
from mnft.text import count

PER_LABEL = "per_label.csv"
COLUMNS = ("mAP (95%)", "macro-F1", "micro-F1")
EXPLANATION = (
    "mAP: mean average precision over the labels, with its 95% bootstrap interval over the images; "
    "F1 with each model's own thresholds"
)
MACRO_OVER = "labels that have images"
_SHOWN_LABELS = 20


@dataclass(frozen=True, slots=True)
class LabelMetrics:
    """How well one label is recognised; fractions in [0, 1].

    Images of which it is not known whether they have the label do not count.

    Attributes:
        name: name of the label.
        average_precision: area under the precision-recall curve, which needs no threshold; None
            where positives or negatives are missing.
        average_precision_interval: 95% bootstrap interval of that.
        precision: fraction of `decided` that have the label; 0 where none was decided.
        precision_interval: 95% Wilson interval of that; None where none was decided.
        recall: fraction of `support` that was decided; 0 where there is none.
        recall_interval: 95% Wilson interval of that; None where there is no support.
        f1: harmonic mean of precision and recall.
        threshold: probability from which on an image is decided to have the label.
        support: number of images that have the label.
        decided: number of images that are decided to have it.
        known: number of images of which it is known.
    """

    name: str
    average_precision: float | None
    average_precision_interval: Interval | None
    precision: float
    precision_interval: Interval | None
    recall: float
    recall_interval: Interval | None
    f1: float
    threshold: float
    support: int
    decided: int
    known: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found on one set of images; fractions in [0, 1].

    Attributes:
        num_images: number of images.
        loss: mean binary cross-entropy in nats, over all known labels of all images.
        map: mean average precision over `labels_in_map` labels; 0 where no label has any.
        map_interval: 95% bootstrap interval of that, over the images.
        labels_in_map: number of labels that have both positives and negatives.
        macro_f1: mean F1 of the labels that have images.
        micro_f1: F1 of all known labels of all images together.
        exact_match: fraction of the images all of whose known labels are decided right.
        per_label: figures of each label, in the order of the outputs.
    """

    num_images: int
    loss: float
    map: float
    map_interval: Interval
    labels_in_map: int
    macro_f1: float
    micro_f1: float
    exact_match: float
    per_label: list[LabelMetrics]

    @property
    def rate(self) -> Rate:
        """The mean average precision."""
        return Rate(self.map, self.map_interval.low, self.map_interval.high)

    def as_record(self) -> dict[str, Any]:
        """All figures, with those of each label by its name."""
        values = asdict(self)
        values["per_label"] = {m.name: asdict(m) for m in self.per_label}
        return values | {"macro_over": MACRO_OVER}

    def as_columns(self) -> dict[str, float]:
        """Mean average precision with its interval, macro and micro F1."""
        return {
            "map": self.map,
            "map_low": self.map_interval.low,
            "map_high": self.map_interval.high,
            "macro_f1": self.macro_f1,
            "micro_f1": self.micro_f1,
        }

    def as_cells(self) -> dict[str, str]:
        """The same under `COLUMNS`."""
        low, high = self.map_interval.low, self.map_interval.high
        figure = f"{self.map:.2%} ({100 * low:.1f} to {100 * high:.1f})"
        cells = (figure, f"{self.macro_f1:.4f}", f"{self.micro_f1:.4f}")
        return dict(zip(COLUMNS, cells, strict=True))

    def describe(self) -> dict[str, str]:
        """The figures over all images for people."""
        low, high = self.map_interval.low, self.map_interval.high
        of = count(len(self.per_label), "label")
        over = of
        if self.labels_in_map < len(self.per_label):
            over = (
                f"{self.labels_in_map} of {of}; the others lack images with the label, or without"
            )
        if not self.labels_in_map:
            return {"mAP": "not defined: no label has both images with it and images without it"}
        return {
            "mAP": f"{self.map:.2%}  (95% bootstrap interval {low:.2%} to {high:.2%}; over {over})",
            "macro F1": f"{self.macro_f1:.4f}  (over the {MACRO_OVER})",
            "micro F1": f"{self.micro_f1:.4f}",
            "exact": f"{self.exact_match:.2%}  of the images have all their known labels right",
            "loss": f"{self.loss:.4f}  (binary cross-entropy of a label)",
        }

    def build_unknown_table(self) -> Table | None:
        """None: images without labels are among those that are evaluated."""
        return None

    def build_table(self) -> Table:
        """The labels that have images, or the worst of them where there are many."""
        present = [m for m in self.per_label if m.support]
        listed, remark = present, ""
        if len(present) > _SHOWN_LABELS:
            listed = sorted(present, key=lambda m: m.average_precision or 0.0)[:_SHOWN_LABELS]
            remark = f"the {_SHOWN_LABELS} worst of {len(present)} labels, by average precision"
        rows: list[list[object]] = [
            [
                m.name,
                "-" if m.average_precision is None else f"{m.average_precision:.4f}",
                *(f"{value:.4f}" for value in (m.precision, m.recall, m.f1)),
                f"{m.threshold:.3g}",
                m.support,
                m.known,
            ]
            for m in listed
        ]
        headings = ["label", "AP", "precision", "recall", "F1", "threshold", "images", "known"]
        return Table(headings, rows, remark, PER_LABEL)
