"""Models side by side: what each costs and gives, the Pareto fronts, int8 that does not pay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnft.compare.latency import Latency, compute_ratio
from mnft.compare.variants import Variant
from mnft.errors import CheckpointError
from mnft.exports.artifact import Artifact, compute_size, read_artifact
from mnft.exports.formats import FORMATS
from mnft.model.bundle import RECORD, WEIGHTS, load_bundle
from mnft.model.profile import compute_macs
from mnft.tasks.outputs import Evaluation, Outputs


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model before it runs.

    Attributes:
        runtime: what runs it: "torch", "torch compiled", or the title of a format.
        architecture: timm's name.
        precision: "fp32", "fp16" or "int8".
        labels: class names in the order of the outputs.
        input_size: (C, H, W).
        params: the parameters of the model, or of the model that the file was made from; None
            where that model is gone.
        macs: the multiply-accumulates of one image, under the same condition.
        size_bytes: the size of the model file, or of the folder's weights.
    """

    runtime: str
    architecture: str
    precision: str
    labels: tuple[str, ...]
    task: str
    input_size: tuple[int, int, int]
    params: int | None
    macs: int | None
    size_bytes: int

    @property
    def model_key(self) -> tuple[Any, ...]:
        """Equal for files of one model; a pruned model has other costs."""
        return self.architecture, self.input_size, self.params, self.macs


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a comparison; where something failed, `problem` says what.

    Attributes:
        variant: the model.
        facts: None where not even they could be read.
        evaluation: evaluation on the same images as all other rows.
        latency: measured together with the others.
        problem: why figures are missing.
        outputs: outputs for the images, where they are kept to be compared with others.
    """

    variant: Variant
    facts: Facts | None
    evaluation: Evaluation | None = None
    latency: Latency | None = None
    problem: str | None = None
    outputs: Outputs | None = None

    @property
    def name(self) -> str:
        """Short and unique."""
        return self.variant.label

    @property
    def complete(self) -> bool:
        """Whether it has figures and latency."""
        return self.evaluation is not None and self.latency is not None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows, and what follows from them together.

    Attributes:
        rows: the rows in the order asked for.
        ratios: latency as a multiple of the first complete row's; None where there is none.
        fastest: whether a row is on the Pareto front of the main figure against latency.
        smallest: whether a row is on the Pareto front of the main figure against file size.
    """

    rows: tuple[Row, ...]
    ratios: tuple[float | None, ...]
    fastest: tuple[bool, ...]
    smallest: tuple[bool, ...]

    def fronts(self, index: int) -> str:
        """The fronts that a row is on: "latency, size"."""
        names = [("latency", self.fastest), ("size", self.smallest)]
        return ", ".join(name for name, front in names if front[index])


def compare(rows: Sequence[Row]) -> Comparison:
    """Compute the relative latencies and the Pareto fronts of rows."""
    reference = next((row.latency for row in rows if row.complete), None)

    def front_by(costs: Sequence[float | None]) -> tuple[bool, ...]:
        complete = [
            (index, cost, row.evaluation.rate.value)
            for index, (row, cost) in enumerate(zip(rows, costs, strict=True))
            if row.complete and row.evaluation and cost is not None
        ]
        on_front = compute_front([cost for _, cost, _ in complete], [gain for *_, gain in complete])
        chosen = {index for (index, *_), best in zip(complete, on_front, strict=True) if best}
        return tuple(index in chosen for index in range(len(rows)))

    return Comparison(
        rows=tuple(rows),
        ratios=tuple(
            compute_ratio(row.latency, reference) if row.latency and reference else None
            for row in rows
        ),
        fastest=front_by([row.latency.median_ms if row.latency else None for row in rows]),
        smallest=front_by([row.facts.size_bytes if row.facts else None for row in rows]),
    )


def compute_front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
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


def describe_slow_int8(rows: Sequence[Row]) -> list[str]:
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
    folder = variant.folder
    if not variant.exported:
        bundle = load_bundle(folder)
        return Facts(
            runtime="torch compiled" if variant.compiled else "torch",
            architecture=bundle.architecture,
            precision="fp32",
            labels=bundle.labels,
            task=bundle.task,
            input_size=bundle.preprocessing.input_size,
            params=sum(parameter.numel() for parameter in bundle.model.parameters()),
            macs=compute_macs(bundle.model, bundle.preprocessing.input_size),
            size_bytes=(folder / WEIGHTS).stat().st_size,
        )
    artifact = read_artifact(folder)
    source = _find_source(folder, artifact)
    made_from = None if source is None else read_facts(Variant("", source))
    fmt = FORMATS.get(artifact.format)
    return Facts(
        runtime=artifact.format if fmt is None else fmt.title,
        architecture=artifact.architecture,
        precision=artifact.precision,
        labels=artifact.labels,
        task=artifact.task,
        input_size=artifact.preprocessing.input_size,
        params=None if made_from is None else made_from.params,
        macs=None if made_from is None else made_from.macs,
        size_bytes=compute_size(folder / artifact.file),
    )


def _find_source(folder: Path, artifact: Artifact) -> Path | None:
    """The model folder that an export was made from, by the SHA-256 of its weights.

    It may be where it was, or in the run that the export lies in (which may have moved).
    """
    expected = artifact.source.get("sha256")
    if expected is None:
        return None
    run = folder.resolve().parent.parent
    places = [run / "best", run / "last", run, Path(str(artifact.source.get("folder", "")))]
    for place in places:
        try:
            record = json.loads((place / RECORD).read_text(encoding="utf-8"))
            if str(record["sha256"]) == expected:
                return place
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return None


def check_labels(rows: Sequence[Row]) -> None:
    """Refuse models of different classes; the same classes in another order are matched by name.

    Raises:
        CheckpointError: with the tasks or names that differ.
    """
    tasks = {row.facts.task: row.name for row in rows if row.facts}
    if len(tasks) > 1:
        found = ", ".join(f"{name} ({task})" for task, name in tasks.items())
        raise CheckpointError(f"models of different tasks cannot be compared: {found}")
    known = [(row.name, row.facts.labels) for row in rows if row.facts]
    for name, labels in known[1:]:
        first, expected = known[0]
        if set(labels) == set(expected):
            continue
        missing, further = set(expected) - set(labels), set(labels) - set(expected)
        parts = [
            f"{what} {', '.join(sorted(names)[:5])}" + (", ..." if len(names) > 5 else "")
            for what, names in (("lacks", missing), ("also has", further))
            if names
        ]
        raise CheckpointError(
            f"{name} has other classes than {first}: it {' and '.join(parts)}",
            hint="only models of the same classes can be judged on the same images",
        )
