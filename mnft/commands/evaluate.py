"""`mnft eval`: the full evaluation of a trained model on images it was not trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnft import console, files
from mnft.data.corruptions import LEVELS
from mnft.errors import ConfigError
from mnft.evaluation.checkpoint import Checkpoint, load_settings, open_checkpoint, portable_path
from mnft.evaluation.images import (
    ImageSet,
    choose_split,
    count_seen,
    describe_seen,
    load_image_set,
    load_unknown_images,
)
from mnft.evaluation.outputs import compute_image_outputs
from mnft.evaluation.robustness.files import ROBUSTNESS_FILES, write_robustness
from mnft.evaluation.robustness.measure import Robustness, measure_robustness
from mnft.model.bundle import Bundle
from mnft.tasks import open_task
from mnft.tasks.outputs import METRICS, Evaluation, Outputs, UnknownImages
from mnft.training.eval_batches import EvalOptions


@dataclass(frozen=True, slots=True)
class Request:
    """What to evaluate, on which images and how.

    Attributes:
        checkpoint: a run, a model folder or an exported file.
        data: a folder of images; None for those of the run.
        split: "train", "val" or "test"; None chooses test, or val if there is no test split.
        output: the folder to write; None chooses one in the run.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: images in a batch; None for that of the run's config.
        workers: loading processes; None chooses their number.
        flip: whether to average each image with its mirror image.
        robustness: whether to evaluate on corrupted images as well.
        unknown: a folder of images of nothing that the model knows, or None.
    """

    checkpoint: Path
    data: Path | None
    split: str | None
    output: Path | None
    device: str
    batch_size: int | None
    workers: int | None
    flip: bool
    robustness: bool = False
    unknown: Path | None = None


def run(request: Request, *, as_json: bool) -> None:
    """Evaluate a model and write metrics, predictions and the confusion matrix.

    Raises:
        MnftError: there is no model or no image, images have changed since training, or the
            output folder holds something else.
    """
    opened = open_checkpoint(request.checkpoint)
    bundle = opened.bundle
    task = open_task(bundle.labels, bundle.task, bundle.settings)
    if request.unknown is not None and not task.judges_unknown:
        raise ConfigError(
            f"--unknown: a model of task: {task.name} gives an image no label where it finds none",
            hint="put such images into the data set, without labels: then the figures count them",
        )
    target = request.output or _default_output(opened, request)
    files.check_replaceable(
        target,
        "evaluation",
        lambda folder: files.holds_only(folder, task.evaluation_files | ROBUSTNESS_FILES, METRICS),
    )
    images = load_image_set(opened, request.data, request.split, console.REPORTER)
    header = {
        "checkpoint": portable_path(bundle.folder),
        "data": portable_path(images.source),
        "split": images.split,
        "test_time_augmentation": "flip" if request.flip else "none",
    }
    if request.unknown is not None:
        header["unknown_images"] = portable_path(request.unknown)
    _check_same(target, header)
    config = load_settings(opened, [])[0]
    how: Any = {"device": request.device, "flip": request.flip, "reporter": console.REPORTER}
    options = EvalOptions(request.batch_size, request.workers)

    def compute(images: ImageSet, **more: Any) -> Outputs:
        return compute_image_outputs(bundle, images, config.eval, options=options, **how, **more)

    outputs = compute(images)
    unknown = [_answer_unknown(request.unknown, opened, compute)] if request.unknown else []
    evaluation, robustness = task.evaluate(outputs, *unknown), None
    if request.robustness:
        robustness = measure_robustness(
            bundle, images, outputs, config, batch_size=request.batch_size, **how
        )
    paths = [images.samples[position].path for position in outputs.positions]
    seen = count_seen(opened, images)
    try:
        task.write_evaluation(
            target,
            evaluation,
            outputs,
            paths,
            header={**header, "images_trained_on": seen, "unreadable": images.problems},
            unreadable=images.problems,
            root=images.root,
        )
        if robustness is not None:
            write_robustness(target, robustness, images, task)
    except OSError:
        # The figures are shown even if the folder cannot be written.
        _show_evaluation(bundle, images, evaluation, robustness, None, seen=seen, as_json=as_json)
        raise
    _show_evaluation(bundle, images, evaluation, robustness, target, seen=seen, as_json=as_json)


def _answer_unknown(
    folder: Path, opened: Checkpoint, compute: Callable[..., Outputs]
) -> UnknownImages:
    """The model's outputs for a folder of images of nothing that it knows."""
    images = load_unknown_images(folder, console.REPORTER)
    if warning := describe_seen(opened, images):
        console.warn(f"{folder}: {warning}")
    outputs = compute(images, what="unknown images", labelled=False)
    return UnknownImages(outputs, [images.samples[i].path for i in outputs.positions])


def _check_same(target: Path, header: dict[str, str]) -> None:
    """Refuse to replace the evaluation of another model or of other images."""
    try:
        earlier: Any = json.loads((target / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not isinstance(earlier, dict):
        return
    for key, now in header.items():
        before = earlier.get(key, now)
        if before == now:
            continue
        if key != "split":
            old, new = Path(str(before)), Path(now)
            # A path that is gone has moved, or was relative to another current folder.
            has_moved = not old.exists() and old.name == new.name
            if has_moved or old.resolve() == new.resolve():
                continue
        raise ConfigError(
            f"{target} holds the evaluation of another {key} ({before}, not {now})",
            hint="name a new folder: -o DIR",
        )


def _default_output(opened: Checkpoint, request: Request) -> Path:
    """RUN/eval for the best model on the default split, else a name that says what differs."""
    folder, recorded, data = opened.bundle.folder, opened.manifest, request.data
    split, unknown = request.split, request.unknown
    if recorded is None:
        resolved = Path(portable_path(folder))
        return resolved.with_name(f"{resolved.name}-eval")
    parts = [opened.run.evaluation.name]
    if folder.resolve() != opened.run.best.resolve():
        parts.append(folder.resolve().name)
    if data is not None:
        parts.append(data.resolve().stem if data.is_file() else data.resolve().name)
    if split is not None and (data is not None or split != choose_split(recorded)):
        parts.append(split)
    if unknown is not None:
        parts.append(unknown.resolve().name)
    return opened.run.path / "-".join(parts)


def _show_evaluation(
    bundle: Bundle,
    images: ImageSet,
    evaluation: Evaluation,
    robustness: Robustness | None,
    target: Path | None,
    *,
    seen: int,
    as_json: bool,
) -> None:
    """Print the figures; `target` is where they were written, or None."""
    if as_json:
        head = {"checkpoint": str(bundle.folder), "data": str(images.source), "split": images.split}
        output = {"output": None if target is None else str(target), "images_trained_on": seen}
        more = {} if robustness is None else {"robustness": robustness.as_record()}
        console.show_json({**head, **output, **evaluation.as_record(), **more})
        return
    facts = {
        "model": f"{bundle.folder} ({bundle.architecture})",
        "images": f"{evaluation.num_images:,} of {images.source}, split {images.split}",
    }
    console.show_facts(facts | evaluation.describe())
    table = evaluation.build_table()
    console.show_table(table.headings, table.rows)
    if table.remark:
        console.note(table.remark + (f"; all: {table.file}" if target else ""))
    if robustness is not None:
        headings = ["corruption", "amounts", *LEVELS, "mean"]
        console.show_table(headings, robustness.build_rows())
        console.show_facts(robustness.describe())
        if robustness.advice:
            console.note(robustness.advice)
    if (unknown := evaluation.build_unknown_table()) is not None:
        console.show_table(unknown.headings, unknown.rows)
        if unknown.remark:
            console.note(unknown.remark + (f"; all: {unknown.file}" if target else ""))
    if target is None:
        return
    console.note(f"written to {target}")
    console.note(f"next: mnft predict --ckpt {bundle.folder} IMAGES")
