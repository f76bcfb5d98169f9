"""The figures of each model in a comparison: those of the same images, then latency together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mnft.compare.latency import Plan, measure_each
from mnft.compare.rows import Row, read_facts
from mnft.compare.variants import Variant
from mnft.errors import CheckpointError, ExportError, ModelError
from mnft.evaluation.checkpoint import Checkpoint, load_settings, open_checkpoint
from mnft.evaluation.images import ImageSet, describe_seen, load_image_set
from mnft.evaluation.outputs import compute_image_outputs
from mnft.reporter import Reporter
from mnft.tasks import open_task
from mnft.tasks.base import Task
from mnft.training.eval_batches import EvalOptions

# What concerns only one model; images that cannot be used stop the whole comparison.
_FAULTS_OF_ONE = (CheckpointError, ExportError, ModelError)


def read_row(variant: Variant) -> Row:
    """A row with what is known of the model before it runs."""
    try:
        return Row(variant, read_facts(variant))
    except CheckpointError as error:
        return Row(variant, None, problem=error.message)


def choose_images(
    rows: Sequence[Row], data: Path | None, split: str | None, reporter: Reporter
) -> ImageSet:
    """The images to judge all models on.

    Args:
        rows: the models.
        data: a folder of images; None takes the images of the first model that lies in a run.
        split: the split; None takes test, or else val.
        reporter: receives progress and warnings.

    Raises:
        ExportError: no model can be opened.
        MnftError: no images, or images that changed since the training.
    """
    first: Checkpoint | None = None
    for row in rows:
        try:
            opened = open_checkpoint(row.variant.folder)
        except _FAULTS_OF_ONE:
            continue
        if data is not None or opened.manifest is not None:
            return load_image_set(opened, data, split, reporter, judging=False)
        first = first or opened
    if first is None:
        reasons = "".join(f"\n  {row.name}: {row.problem or 'cannot be opened'}" for row in rows)
        raise ExportError(f"none of the {len(rows)} models can be opened:{reasons}")
    return load_image_set(first, None, split, reporter, judging=False)


def add_evaluation(
    rows: Sequence[Row],
    images: ImageSet,
    threads: int | None,
    reporter: Reporter,
    *,
    keep_outputs: bool = False,
) -> tuple[list[Row], list[str]]:
    """Evaluate each model on the CPU.

    Args:
        rows: the models.
        images: the images to judge them on.
        threads: the threads that exported files compute with; None takes all cores.
        reporter: receives progress, and why a model cannot be evaluated.
        keep_outputs: whether the rows keep the outputs, for `compute_agreement`.

    Returns:
        The rows, and a warning for each model that was trained on some of the images.
    """
    done: dict[Path, Row] = {}
    judged, warnings = [], []
    for row in rows:
        folder = row.variant.folder
        if (earlier := done.get(folder)) is not None:
            # A compiled model has the figures of its model, which is computed only once.
            row = replace(
                row,
                evaluation=earlier.evaluation,
                problem=earlier.problem,
                outputs=earlier.outputs,
            )
        elif row.problem is None:
            try:
                opened = open_checkpoint(folder, threads=threads)
                if seen := describe_seen(opened, images):
                    warnings.append(f"{row.name}: {seen}")
                config, _ = load_settings(opened, [])
                settings = config.eval.model_copy(update={"precision": "fp32"})
                bundle = opened.bundle
                outputs = compute_image_outputs(
                    bundle,
                    images,
                    settings,
                    device="cpu",
                    options=EvalOptions(store=config.data.store),
                    reporter=reporter,
                    what=row.name,
                )
                row = replace(
                    row,
                    evaluation=open_task(bundle.labels, bundle.task, bundle.settings).evaluate(
                        outputs
                    ),
                    outputs=outputs if keep_outputs else None,
                )
            except _FAULTS_OF_ONE as error:
                row = replace(row, problem=error.message)
        done[folder] = row
        if row.problem is not None and earlier is None:
            reporter.warn(f"{row.name}: {row.problem}")
        judged.append(row)
    return judged, warnings


def compute_agreement(rows: Sequence[Row], task: Task) -> list[list[float]]:
    """The fraction of the images for which each two models give the same answer.

    Args:
        rows: rows that keep their outputs.
        task: the task of the models.
    """
    outputs = [row.outputs for row in rows if row.outputs is not None]
    same = [[1.0] * len(outputs) for _ in outputs]
    for i, j in itertools.combinations(range(len(outputs)), 2):
        same[i][j] = same[j][i] = task.compare(outputs[i], outputs[j]).agreement
    return same


def add_latency(rows: Sequence[Row], plan: Plan, reporter: Reporter) -> list[Row]:
    """Measure the models that were evaluated, all together."""
    working = [index for index, row in enumerate(rows) if row.evaluation is not None]
    measured = list(rows)
    results = measure_each([rows[index].variant for index in working], plan, reporter)
    for index, result in zip(working, results, strict=True):
        if isinstance(result, ExportError):
            reporter.warn(result.message)
            measured[index] = replace(rows[index], problem=result.message)
        else:
            measured[index] = replace(rows[index], latency=result)
    return measured
