"""Models side by side: what each costs and gives, the Pareto front, int8 that does not pay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnft.compare.latency import Latency, Variant, compute_ratio
from mnft.errors import CheckpointError
from mnft.exports.artifact import Artifact, compute_size, read_artifact
from mnft.exports.formats import FORMATS
from mnft.model.bundle import RECORD, WEIGHTS, load_bundle
from mnft.model.profile import compute_macs
from mnft.tasks.classify.evaluation import Evaluation


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model before it runs.

    Attributes:
        runtime: that runs it: "torch", "torch compiled", or the title of a format.
        architecture: timm's name.
        precision: "fp32", "fp16" or "int8".
        class_names: in the order of its outputs.
        input_size: (C, H, W).
        params: of the model, or of the one that the file was made from; None where that is gone.
        macs: multiply-accumulates of one image, likewise.
        size_bytes: of the model file, or of the folder's weights.
    """

    runtime: str
    architecture: str
    precision: str
    class_names: tuple[str, ...]
    input_size: tuple[int, int, int]
    params: int | None
    macs: int | None
    size_bytes: int

    @property
    def model_key(self) -> tuple[Any, ...]:
        """The same for files of one model; a pruned one has other costs."""
        return self.architecture, self.input_size, self.params, self.macs


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a comparison; where something failed, `problem` says what.

    Attributes:
        name: short and unique.
        folder: of the export or the model.
        facts: None where not even they could be read.
        evaluation: on the images that all are judged on.
        latency: measured together with the others'.
        problem: why figures are missing.
    """

    name: str
    folder: Path
    facts: Facts | None
    evaluation: Evaluation | None = None
    latency: Latency | None = None
    problem: str | None = None

    @property
    def complete(self) -> bool:
        """Whether it has accuracy and latency."""
        return self.evaluation is not None and self.latency is not None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows with what follows from them together.

    Attributes:
        rows: in the order asked for.
        ratios: latency as a multiple of the first complete row's; None where there is none.
        fastest: whether a row is on the Pareto front of accuracy against latency.
        smallest: likewise of accuracy against file size.
    """

    rows: tuple[Row, ...]
    ratios: tuple[float | None, ...]
    fastest: tuple[bool, ...]
    smallest: tuple[bool, ...]

    def mark(self, index: int) -> str:
        """The fronts that a row is on, in words."""
        marks = [("latency", self.fastest), ("size", self.smallest)]
        return ", ".join(name for name, front in marks if front[index])


def compare(rows: Sequence[Row]) -> Comparison:
    """Put rows side by side."""
    reference = next((row.latency for row in rows if row.complete), None)
    return Comparison(
        rows=tuple(rows),
        ratios=tuple(
            compute_ratio(row.latency, reference) if row.latency and reference else None
            for row in rows
        ),
        fastest=_find_front_of(rows, [r.latency.median_ms if r.latency else None for r in rows]),
        smallest=_find_front_of(rows, [r.facts.size_bytes if r.facts else None for r in rows]),
    )


def find_front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Which points no other point beats: none costs at most as much and gains at least as much,
    with one of the two strictly better. Of equal points all are on the front, or none.

    Args:
        costs: (N,) less is better.
        gains: (N,) more is better.
    """
    points = list(zip(costs, gains, strict=True))
    return [
        not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        for cost, gain in points
    ]


def _find_front_of(rows: Sequence[Row], costs: Sequence[float | None]) -> tuple[bool, ...]:
    there = [
        (index, cost, row.evaluation.accuracy)
        for index, (row, cost) in enumerate(zip(rows, costs, strict=True))
        if row.complete and row.evaluation and cost is not None
    ]
    front = find_front([cost for _, cost, _ in there], [gain for _, _, gain in there])
    chosen = {index for (index, _, _), best in zip(there, front, strict=True) if best}
    return tuple(index in chosen for index in range(len(rows)))


def find_slow_int8(rows: Sequence[Row]) -> list[str]:
    """A warning for each int8 file that is slower than the fp32 file of its model and format."""
    warnings = []
    for row in rows:
        if not (row.facts and row.latency) or row.facts.precision != "int8":
            continue
        same_model = [
            (other, other.facts, other.latency)
            for other in rows
            if other.facts and other.latency and other.facts.model_key == row.facts.model_key
        ]
        floats = [
            (other, compute_ratio(row.latency, latency))
            for other, facts, latency in same_model
            if facts.runtime == row.facts.runtime and facts.precision == "fp32"
        ]
        slower = [(other, ratio) for other, ratio in floats if ratio > 1]
        if slower:
            other, ratio = slower[0]
            best, facts, latency = min(same_model, key=lambda entry: entry[2].median_ms)
            warnings.append(
                f"{row.name} is slower than {other.name} ({ratio:.2f} times its latency at batch "
                f"1): int8 does not pay in {row.facts.runtime} here; the fastest of this model is "
                f"{best.name} ({facts.runtime} {facts.precision}, {latency.median_ms:.2f} ms)"
            )
    return warnings


def read_facts(variant: Variant) -> Facts:
    """What is known of a model before it runs.

    Raises:
        CheckpointError: a damaged folder.
    """
    if variant.exported:
        return _read_exported(variant.folder)
    bundle = load_bundle(variant.folder)
    return Facts(
        runtime="torch compiled" if variant.compiled else "torch",
        architecture=bundle.architecture,
        precision="fp32",
        class_names=bundle.class_names,
        input_size=bundle.preprocessing.input_size,
        params=sum(parameter.numel() for parameter in bundle.model.parameters()),
        macs=compute_macs(bundle.model, bundle.preprocessing.input_size),
        size_bytes=(variant.folder / WEIGHTS).stat().st_size,
    )


def _read_exported(folder: Path) -> Facts:
    artifact = read_artifact(folder)
    source = find_source(folder, artifact)
    made_from = None if source is None else read_facts(Variant("", source))
    form = FORMATS.get(artifact.format)
    return Facts(
        runtime=artifact.format if form is None else form.title,
        architecture=artifact.architecture,
        precision=artifact.precision,
        class_names=artifact.class_names,
        input_size=artifact.preprocessing.input_size,
        params=None if made_from is None else made_from.params,
        macs=None if made_from is None else made_from.macs,
        size_bytes=compute_size(folder / artifact.file),
    )


def find_source(folder: Path, artifact: Artifact) -> Path | None:
    """The model folder that an export was made from, by the SHA-256 of its weights.

    It is looked for where it was, and in the run that the export lies in (which may have moved).
    """
    expected = artifact.source.get("sha256")
    run = folder.resolve().parent.parent
    places = [run / "best", run / "last", run, Path(str(artifact.source.get("folder", "")))]
    for place in places:
        if expected is not None and _read_sha256(place) == expected:
            return place
    return None


def _read_sha256(folder: Path) -> str | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return str(record["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def check_class_names(rows: Sequence[Row]) -> None:
    """Refuse models of different classes; another order is matched by name.

    Raises:
        CheckpointError: with the names that differ.
    """
    known = [(row.name, row.facts.class_names) for row in rows if row.facts]
    for name, class_names in known[1:]:
        first, expected = known[0]
        if set(class_names) == set(expected):
            continue
        missing, further = set(expected) - set(class_names), set(class_names) - set(expected)
        parts = [
            f"{what} {', '.join(sorted(names)[:5])}" + (", ..." if len(names) > 5 else "")
            for what, names in (("lacks", missing), ("also has", further))
            if names
        ]
        raise CheckpointError(
            f"{name} has other classes than {first}: it {' and '.join(parts)}",
            hint="only models of the same classes can be judged on the same images",
        )
