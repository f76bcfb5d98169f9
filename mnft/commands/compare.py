"""`mnft compare`: accuracy, cost and speed of several models on the same images, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mnft import console
from mnft.compare.files import (
    COLUMNS,
    COMPARISON_FILES,
    EXPLANATION,
    RECORD,
    Setting,
    build_table,
    write_comparison,
)
from mnft.compare.latency import Plan, Variant, measure_each
from mnft.compare.rows import (
    Comparison,
    Row,
    check_class_names,
    compare,
    find_slow_int8,
    read_facts,
)
from mnft.errors import CheckpointError, ConfigError, ExportError, ModelError
from mnft.evaluation.checkpoint import Opened, load_settings, open_checkpoint, spell
from mnft.evaluation.images import Selection, describe_seen, find_images
from mnft.evaluation.outputs import Means, compute_selected
from mnft.exports.artifact import RECORD as EXPORT_RECORD
from mnft.exports.artifact import find_artifact
from mnft.host import count_cores
from mnft.runs.folder import find_bundle
from mnft.tasks.classify.evaluation import Evaluation
from mnft.tasks.classify.metrics import compute_evaluation
from mnft.text import printable

DEFAULT_OUTPUT = Path("comparison")
# What keeps one model from being judged; images that cannot be used stop the whole comparison.
_OWN_FAULT = (CheckpointError, ExportError, ModelError)


@dataclass(frozen=True, slots=True)
class Request:
    """What to compare, and on what."""

    paths: Sequence[Path]
    data: Path | None
    split: str | None
    output: Path | None
    exports: bool
    compiled: bool
    plan: Plan


def run(request: Request, *, as_json: bool) -> None:
    """Judge and measure each model, and write the comparison.

    Raises:
        MnftError: a path that is no model, models of different classes, no images, an output
            folder that holds something else, or no model that works.
    """
    target = request.output or DEFAULT_OUTPUT
    check_target(target)
    variants = find_variants(request.paths, exports=request.exports, compiled=request.compiled)
    rows = [_read_row(variant) for variant in variants]
    check_class_names(rows)
    images = _choose_images(rows, request)
    rows, seen = _judge(rows, variants, images, request)
    rows = _measure(rows, variants, request.plan)
    if not any(row.complete for row in rows):
        reasons = "".join(f"\n  {row.name}: {row.problem}" for row in rows)
        raise ExportError(f"none of the {len(rows)} models can be compared:{reasons}")
    warnings = (*seen, *find_slow_int8(rows))
    setting = Setting(
        data=printable(spell(images.root)),
        split=images.split,
        num_images=len(images.samples),
        threads=request.plan.threads or count_cores(),
        plan=request.plan,
        warnings=warnings,
    )
    comparison = compare(rows)
    record = write_comparison(target, comparison, setting)
    if as_json:
        console.show_json({"output": str(target), **record})
    else:
        _show(comparison, setting)
    for warning in warnings:
        console.warn(warning)
    console.note(f"written to {target}")


def check_target(target: Path) -> None:
    """Refuse to replace what is not an earlier comparison.

    Raises:
        ConfigError: something else is there.
    """
    if not (target.exists() or target.is_symlink()):
        return
    if target.is_dir():
        names = {entry.name for entry in target.iterdir()}
        if not names or (RECORD in names and names <= COMPARISON_FILES):
            return
    raise ConfigError(
        f"{target} exists and is not an earlier comparison, which alone may be replaced",
        hint="name a new folder: --output DIR",
    )


def find_variants(paths: Sequence[Path], *, exports: bool, compiled: bool) -> list[Variant]:
    """The models that paths name, each once, with names that differ.

    Args:
        paths: runs, model folders, exports, or model files in exports.
        exports: take the exports of each run as well.
        compiled: take each torch model a second time, compiled.

    Raises:
        CheckpointError: a path that is none of these.
    """
    found: list[Variant] = []
    for path in paths:
        if (folder := find_artifact(path)) is not None:
            found.append(_name_export(folder))
            continue
        folder = find_bundle(path)
        name = _name_model(folder)
        found.append(Variant(f"{name} torch", folder))
        if compiled:
            found.append(Variant(f"{name} torch compiled", folder, compiled=True))
        if exports:
            found += [_name_export(place) for place in _find_exports(path)]
    unique = {(variant.folder.resolve(), variant.compiled): variant for variant in reversed(found)}
    return _tell_apart(list(reversed(unique.values())))


def _find_exports(run: Path) -> list[Path]:
    return sorted(record.parent for record in (run / "exports").glob(f"[!.]*/{EXPORT_RECORD}"))


def _name_export(folder: Path) -> Variant:
    """Of RUN/exports/onnx "RUN onnx"; elsewhere the folder's name."""
    place = folder.resolve()
    run = place.parent.parent
    name = f"{run.name} {place.name}" if place.parent.name == "exports" else place.name
    return Variant(name, folder)


def _name_model(folder: Path) -> str:
    """Of a run's best model the run's name; of others with their own."""
    place = folder.resolve()
    if not (place.parent / "split.json").is_file():
        return place.name
    return place.parent.name if place.name == "best" else f"{place.parent.name}/{place.name}"


def _tell_apart(variants: Sequence[Variant]) -> list[Variant]:
    taken: dict[str, int] = {}
    named = []
    for variant in variants:
        label = printable(variant.label)
        number = taken[label] = taken.get(label, 0) + 1
        label = label if number == 1 else f"{label} ({number})"
        named.append(replace(variant, label=label))
    return named


def _read_row(variant: Variant) -> Row:
    try:
        return Row(variant.label, variant.folder, read_facts(variant))
    except CheckpointError as error:
        return Row(variant.label, variant.folder, None, problem=error.message)


def _choose_images(rows: Sequence[Row], request: Request) -> Selection:
    """Those of --data, or the split of the first model that lies in a run."""
    first: Opened | None = None
    for row in rows:
        try:
            opened = open_checkpoint(row.folder)
        except _OWN_FAULT:
            continue
        first = first or opened
        if request.data is not None or opened.manifest is not None:
            return find_images(opened, request.data, request.split, console.REPORTER, judging=False)
    if first is None:
        reasons = "".join(f"\n  {row.name}: {row.problem or 'cannot be opened'}" for row in rows)
        raise ExportError(f"none of the {len(rows)} models can be opened:{reasons}")
    return find_images(first, request.data, request.split, console.REPORTER, judging=False)


def _judge(
    rows: Sequence[Row], variants: Sequence[Variant], images: Selection, request: Request
) -> tuple[list[Row], list[str]]:
    """Each model's accuracy, and warnings of models that were trained on the images.

    A compiled model has the accuracy of its model, which is computed once.
    """
    judged: dict[Path, Row] = {}
    done, warnings = [], []
    for row, variant in zip(rows, variants, strict=True):
        earlier = judged.get(row.folder)
        if earlier is not None:
            row = replace(row, evaluation=earlier.evaluation, problem=earlier.problem)
        elif row.problem is None:
            try:
                opened = open_checkpoint(variant.folder, threads=request.plan.threads)
                if seen := describe_seen(opened, images):
                    warnings.append(f"{variant.label}: {seen}")
                row = replace(row, evaluation=_evaluate(variant, opened, images))
            except _OWN_FAULT as error:
                row = replace(row, problem=error.message)
        judged[row.folder] = row
        if row.problem is not None and earlier is None:
            console.warn(f"{row.name}: {row.problem}")
        done.append(row)
    return done, warnings


def _evaluate(variant: Variant, opened: Opened, images: Selection) -> Evaluation:
    config = load_settings(opened, [])[0]
    settings = config.eval.model_copy(update={"precision": "fp32"})
    means = Means("cpu", store=config.data.store)
    outputs = compute_selected(
        opened.bundle, images, settings, means, console.REPORTER, what=variant.label
    )
    return compute_evaluation(outputs.logits, outputs.targets, opened.bundle.class_names)


def _measure(rows: Sequence[Row], variants: Sequence[Variant], plan: Plan) -> list[Row]:
    there = [index for index, row in enumerate(rows) if row.evaluation is not None]
    measured = list(rows)
    with console.progress("measuring latency") as on_progress:
        results = measure_each([variants[i] for i in there], plan, on_progress=on_progress)
    for index, result in zip(there, results, strict=True):
        if isinstance(result, ExportError):
            console.warn(result.message)
            measured[index] = replace(rows[index], problem=result.message)
        else:
            measured[index] = replace(rows[index], latency=result)
    return measured


def _show(comparison: Comparison, setting: Setting) -> None:
    console.note(setting.describe())
    console.show_table(COLUMNS, build_table(comparison))
    for line in EXPLANATION:
        console.note(line)
