"""`mnft compare`: accuracy, cost and speed of several models on the same images, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mnft import console, files
from mnft.compare.files import (
    COMPARISON_FILES,
    HTML,
    RECORD,
    Setting,
    build_table,
    write_comparison,
)
from mnft.compare.judging import (
    add_evaluation,
    add_latency,
    choose_images,
    compute_agreement,
    read_row,
)
from mnft.compare.latency import Plan
from mnft.compare.rows import check_labels, compare, describe_slow_int8
from mnft.compare.variants import list_variants
from mnft.errors import ExportError
from mnft.evaluation.checkpoint import portable_path
from mnft.host import count_cores
from mnft.report.comparison import build_agreement, build_page
from mnft.report.page.render import render
from mnft.tasks import open_task
from mnft.text import printable

DEFAULT_OUTPUT = Path("comparison")


@dataclass(frozen=True, slots=True)
class Request:
    """What to compare, and on which images.

    Attributes:
        paths: runs, model folders, exports, or model files in exports.
        data: a folder of images; None takes the images of the first run.
        split: the split; None takes test, or else val.
        output: the folder to write; None takes comparison/.
        exports: take the exports of each run as well.
        compiled: take each torch model a second time, compiled.
        plan: how to measure latency.
        html: whether to write a page as well.
    """

    paths: Sequence[Path]
    data: Path | None
    split: str | None
    output: Path | None
    exports: bool
    compiled: bool
    plan: Plan
    html: bool = False


def run(request: Request, *, as_json: bool) -> None:
    """Judge and measure each model, and write the comparison.

    Raises:
        MnftError: a path that is no model, models of different classes, no images, an output
            folder that holds something else, or no model that works.
    """
    target, plan, reporter = request.output or DEFAULT_OUTPUT, request.plan, console.REPORTER
    files.check_replaceable(
        target, "comparison", lambda folder: files.holds_only(folder, COMPARISON_FILES, RECORD)
    )
    variants = list_variants(request.paths, exports=request.exports, compiled=request.compiled)
    rows = [read_row(variant) for variant in variants]
    check_labels(rows)
    images = choose_images(rows, request.data, request.split, reporter)
    rows, warnings = add_evaluation(rows, images, plan.threads, reporter, keep_outputs=request.html)
    rows = add_latency(rows, plan, reporter)
    if not any(row.complete for row in rows):
        reasons = "".join(f"\n  {row.name}: {row.problem}" for row in rows)
        raise ExportError(f"none of the {len(rows)} models can be compared:{reasons}")
    warnings += describe_slow_int8(rows)
    setting = Setting(
        data=printable(portable_path(images.source)),
        split=images.split,
        num_images=len(images.samples),
        threads=plan.threads or count_cores(),
        plan=plan,
        task=open_task(*next((row.facts.labels, row.facts.task) for row in rows if row.facts)),
        warnings=tuple(warnings),
    )
    # A model with settings of its own may have figures that others lack.
    found = dict.fromkeys(h for row in rows if row.evaluation for h in row.evaluation.as_cells())
    more = tuple(heading for heading in found if heading not in setting.task.columns)
    setting = replace(setting, more_columns=more)
    comparison = compare(rows)
    record = write_comparison(target, comparison, setting)
    if request.html:
        names = [row.name for row in rows if row.outputs is not None]
        agreement = build_agreement(names, compute_agreement(rows, setting.task))
        page = build_page(record, setting.task, setting.explanation, agreement)
        files.write_text(target / HTML, render(page))
    if as_json:
        console.show_json({"output": str(target), **record})
    else:
        console.note(setting.describe())
        console.show_table(setting.columns, build_table(comparison, setting))
        for line in setting.explanation:
            console.note(line)
    for warning in warnings:
        console.warn(warning)
    console.note(f"written to {target}")
