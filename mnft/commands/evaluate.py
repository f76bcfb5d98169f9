"""`mnft eval`: the full evaluation of a trained model on images it was not trained on."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mnft import console
from mnft.config.load import load_config
from mnft.config.schema import EvalConfig
from mnft.data.batches import LoaderOptions
from mnft.data.loaders import choose_workers
from mnft.data.manifest import Manifest, Sample, find_changes, load_manifest
from mnft.data.prepare import select_images
from mnft.engine.device import keep_freed_memory, resolve_device, resolve_precision
from mnft.engine.distributed import Ranks
from mnft.engine.evaluate import Outputs, compute_outputs
from mnft.engine.inputs import build_eval_batches
from mnft.errors import CheckpointError, ConfigError, DataError
from mnft.metrics import compute_evaluation, softmax
from mnft.model.bundle import Bundle, load_bundle
from mnft.results import Evaluation
from mnft.runs.evaluation import (
    EVALUATION_FILES,
    MACRO_OVER,
    METRICS,
    Predictions,
    write_evaluation,
)
from mnft.runs.folder import RunFolder, find_bundle

_SHOWN_CLASSES = 20


@dataclass(frozen=True, slots=True)
class _Images:
    root: Path
    split: str
    samples: list[Sample]
    problems: dict[str, str]
    recorded: Manifest | None


def run(
    checkpoint: Path,
    data: Path | None,
    split: str | None,
    output: Path | None,
    *,
    device_name: str,
    batch_size: int | None,
    workers: int | None,
    flip: bool,
    as_json: bool,
) -> None:
    """Evaluate a model and write metrics, predictions and the confusion matrix.

    Raises:
        MnftError: no model, no images, images that changed since training, or an output folder
            that holds something else.
    """
    folder = find_bundle(checkpoint)
    bundle = load_bundle(folder)
    run_folder = _run_of(folder)
    recorded = load_manifest(run_folder.split) if _is_run(run_folder) else None
    target = output or _default_output(run_folder, folder, data, split, recorded)
    _check_output(target)
    images = _find_images(run_folder, bundle, data, split, recorded)
    header = {"checkpoint": _spell(folder), "data": _spell(images.root), "split": images.split}
    header["test_time_augmentation"] = "flip" if flip else "none"
    _check_same(target, header)
    settings = _settings(run_folder)
    outputs = _compute(bundle, images, settings, device_name, batch_size, workers, flip=flip)
    evaluation = compute_evaluation(outputs.logits, outputs.targets, bundle.class_names)
    paths = [images.samples[position].path for position in outputs.positions]
    write_evaluation(
        target,
        evaluation,
        Predictions(paths, outputs.targets, softmax(outputs.logits)),
        list(bundle.class_names),
        header={**header, "unreadable": images.problems},
        unreadable=images.problems,
    )
    _show(bundle, images, evaluation, target, as_json=as_json)


def _run_of(folder: Path) -> RunFolder:
    """The run that a model folder lies in; `.` and `..` have a parent only once resolved."""
    return RunFolder(folder.parent if folder.name not in {"", ".."} else folder.resolve().parent)


def _is_run(run_folder: RunFolder) -> bool:
    # config.yaml alone is a usual name for other things.
    return run_folder.config.is_file() and run_folder.split.is_file()


def _check_output(target: Path) -> None:
    """Refuse to replace what is not an earlier evaluation."""
    if not (target.exists() or target.is_symlink()):
        return
    if target.is_dir():
        entries = list(target.iterdir())
        # What a file manager leaves (.DS_Store) goes with the evaluation, a .git folder never.
        left = [e for e in entries if not (e.name.startswith(".") and e.is_file())]
        names = {entry.name for entry in left}
        if names <= EVALUATION_FILES and (METRICS in names or len(left) == len(entries)):
            return
    raise ConfigError(
        f"{target} exists and is not an earlier evaluation, which alone may be replaced",
        hint="name a new folder: --output DIR",
    )


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
        if before == now or (key != "split" and _is_same_place(Path(str(before)), Path(now))):
            continue
        raise ConfigError(
            f"{target} holds the evaluation of another {key} ({before}, not {now})",
            hint="name a new folder: -o DIR",
        )


def _is_same_place(before: Path, now: Path) -> bool:
    # A path that is gone has moved, or was relative to another current folder.
    moved = not before.exists() and before.name == now.name
    return moved or before.resolve() == now.resolve()


def _spell(folder: Path) -> str:
    """A path that still says something elsewhere: as given, but for `.` and `..`."""
    return str(folder if folder.name not in {"", ".."} else folder.resolve())


def _default_split(recorded: Manifest) -> str:
    return "test" if "test" in recorded.splits else "val"


def _find_images(
    run_folder: RunFolder,
    bundle: Bundle,
    data: Path | None,
    split: str | None,
    recorded: Manifest | None,
) -> _Images:
    if data is not None:
        with console.progress("checking images") as on_progress:
            samples, problems = select_images(
                data, split, bundle.class_names, recorded, on_progress
            )
        found = _Images(data, samples[0].split, samples, problems, recorded)
        _warn_of_training_images(found, asked=split)
        return found
    if recorded is None:
        raise CheckpointError(
            f"{bundle.folder} does not lie in a run, so its test images are not known",
            hint="name a folder of images: --data DIR",
        )
    split = split or _default_split(recorded)
    samples = recorded.split(split)
    if not samples:
        raise DataError(
            f"{run_folder.split}: no {split} split, it has {', '.join(recorded.splits)}",
            hint="choose one with --split, or other images with --data DIR",
        )
    if changes := find_changes(recorded, samples):
        raise DataError(
            f"{recorded.root}: {len(changes)} of the {len(samples)} {split} images are not what "
            "they were when the run began:\n  " + "\n  ".join(changes[:10]),
            hint="if the folder moved, name it: --data DIR --split " + split,
        )
    return _Images(recorded.root, split, samples, {}, recorded)


def _warn_of_training_images(images: _Images, *, asked: str | None) -> None:
    for path, problem in images.problems.items():
        console.warn(f"left out: {path}: {problem}")
    if images.recorded is None or asked == "train":
        return
    trained = {sample.sha256 for sample in images.recorded.split("train")}
    if seen := sum(sample.sha256 in trained for sample in images.samples):
        console.warn(
            f"{seen} of these {len(images.samples)} images are in the model's training split, "
            "so the figures are too good"
        )


def _settings(run_folder: RunFolder) -> EvalConfig:
    return load_config(run_folder.config)[0].eval if _is_run(run_folder) else EvalConfig()


def _compute(
    bundle: Bundle,
    images: _Images,
    settings: EvalConfig,
    device_name: str,
    batch_size: int | None,
    workers: int | None,
    *,
    flip: bool,
) -> Outputs:
    keep_freed_memory()
    device = resolve_device(device_name)
    batch_size = batch_size or settings.batch_size
    batch_bytes = batch_size * math.prod(bundle.preprocessing.input_size)
    chosen = choose_workers(
        "auto" if workers is None else workers, device=device, batch_bytes=batch_bytes
    )
    batches = build_eval_batches(
        images.root,
        images.samples,
        bundle.class_names,
        bundle.preprocessing,
        batch_size=batch_size,
        options=LoaderOptions(device, chosen, channels_last=True),
        ranks=Ranks(),
    )
    done = 0
    with console.progress("evaluating") as on_progress:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            on_progress(done, len(images.samples))

        return compute_outputs(
            bundle.model.to(device).to(memory_format=torch.channels_last),
            batches,
            num_classes=len(bundle.class_names),
            device=device,
            dtype=resolve_precision(settings.precision, device, key="eval.precision"),
            flip=flip,
            on_images=advance,
        )


def _default_output(
    run_folder: RunFolder,
    folder: Path,
    data: Path | None,
    split: str | None,
    recorded: Manifest | None,
) -> Path:
    """RUN/eval for the best model on the default split, else a name that says what differs."""
    if recorded is None:
        resolved = Path(_spell(folder))
        return resolved.with_name(f"{resolved.name}-eval")
    parts = [run_folder.evaluation.name]
    if folder.resolve() != run_folder.best.resolve():
        parts.append(folder.resolve().name)
    if data is not None:
        parts.append(data.resolve().name)
    if split is not None and (data is not None or split != _default_split(recorded)):
        parts.append(split)
    return run_folder.path / "-".join(parts)


def _show(
    bundle: Bundle, images: _Images, evaluation: Evaluation, target: Path, *, as_json: bool
) -> None:
    if as_json:
        values = asdict(evaluation)
        values["per_class"] = {m.name: asdict(m) for m in evaluation.per_class}
        values["macro_over"] = MACRO_OVER
        head = {"checkpoint": str(bundle.folder), "data": str(images.root), "split": images.split}
        console.show_json({**head, "output": str(target), **values})
        return
    low, high = evaluation.accuracy_interval
    facts = {
        "model": f"{bundle.folder} ({bundle.architecture})",
        "images": f"{evaluation.num_images:,} of {images.root}, split {images.split}",
        "accuracy": f"{evaluation.accuracy:.2%}  (95% Wilson interval {low:.2%} to {high:.2%})",
    }
    if evaluation.top5 is not None:
        facts["top-5"] = f"{evaluation.top5:.2%}"
    macro, weighted = evaluation.macro, evaluation.weighted
    facts |= {
        "loss": f"{evaluation.loss:.4f}",
        "calibration": f"expected calibration error {evaluation.ece:.4f}",
        "macro": f"precision {macro.precision:.4f}, recall {macro.recall:.4f}, "
        f"F1 {macro.f1:.4f}  (over the {MACRO_OVER})",
        "weighted": f"precision {weighted.precision:.4f}, recall {weighted.recall:.4f}, "
        f"F1 {weighted.f1:.4f}",
    }
    console.show_facts(facts)
    present = [m for m in evaluation.per_class if m.support]
    worst = sorted(present, key=lambda m: m.f1)[:_SHOWN_CLASSES]
    listed = present if len(present) <= _SHOWN_CLASSES else worst
    console.show_table(
        ["class", "precision", "recall", "F1", "images"],
        [
            [m.name, f"{m.precision:.4f}", f"{m.recall:.4f}", f"{m.f1:.4f}", m.support]
            for m in listed
        ],
    )
    if len(present) > _SHOWN_CLASSES:
        console.note(f"the {_SHOWN_CLASSES} worst of {len(present)} classes; all: per_class.csv")
    console.note(f"written to {target}")
    console.note(f"next: mnft predict --ckpt {bundle.folder} IMAGES")
