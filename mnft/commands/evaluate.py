"""`mnft eval`: the full evaluation of a trained model on images it was not trained on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from mnft import console
from mnft.config.load import load_config
from mnft.config.schema import EvalConfig
from mnft.data.loaders import LoaderOptions, choose_workers
from mnft.data.manifest import Manifest, Sample, find_changes, load_manifest
from mnft.data.prepare import select_images
from mnft.engine.device import resolve_device, resolve_precision
from mnft.engine.distributed import Ranks
from mnft.engine.evaluate import Outputs, compute_outputs
from mnft.engine.setup import build_eval_batches
from mnft.errors import CheckpointError, ConfigError, DataError
from mnft.metrics import compute_evaluation, softmax
from mnft.model.bundle import Bundle, load_bundle
from mnft.results import Evaluation
from mnft.runs.evaluation import Predictions, write_evaluation
from mnft.runs.folder import RunFolder, find_bundle

EVALUATION_FILES = {
    "metrics.json",
    "predictions.csv",
    "per_class.csv",
    "confusion_matrix.csv",
    "confusion_matrix.png",
}
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
    as_json: bool,
) -> None:
    """Evaluate a model and write metrics, predictions and the confusion matrix.

    Raises:
        MnftError: no model, no images, or images that changed since training.
    """
    folder = find_bundle(checkpoint)
    bundle = load_bundle(folder)
    run_folder = _run_of(folder)
    target = output or _default_output(run_folder, folder, data)
    _check_output(target)
    images = _find_images(run_folder, bundle, data, split)
    settings = _settings(run_folder)
    outputs = _compute(bundle, images, settings, device_name, batch_size, workers)
    evaluation = compute_evaluation(outputs.logits, outputs.targets, bundle.class_names)
    paths = [images.samples[position].path for position in outputs.positions]
    write_evaluation(
        target,
        evaluation,
        Predictions(paths, outputs.targets, softmax(outputs.logits)),
        list(bundle.class_names),
        header={
            "checkpoint": str(folder),
            "data": str(images.root),
            "split": images.split,
            "unreadable": images.problems,
        },
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
    if target.is_dir() and {entry.name for entry in target.iterdir()} <= EVALUATION_FILES:
        return
    raise ConfigError(
        f"{target} exists and is not an earlier evaluation, which alone may be replaced",
        hint="name a new folder: --output DIR",
    )


def _find_images(
    run_folder: RunFolder, bundle: Bundle, data: Path | None, split: str | None
) -> _Images:
    recorded = load_manifest(run_folder.split) if _is_run(run_folder) else None
    if data is not None:
        with console.progress("checking images") as on_progress:
            samples, problems = select_images(
                data, split, bundle.class_names, recorded, on_progress
            )
        found = _Images(data, samples[0].split, samples, problems, recorded)
        _warn_of_training_images(found)
        return found
    if recorded is None:
        raise CheckpointError(
            f"{bundle.folder} does not lie in a run, so its test images are not known",
            hint="name a folder of images: --data DIR",
        )
    split = split or ("test" if "test" in recorded.splits else "val")
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


def _warn_of_training_images(images: _Images) -> None:
    for path, problem in images.problems.items():
        console.warn(f"left out: {path}: {problem}")
    if images.recorded is None or images.split == "train":
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
) -> Outputs:
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
            bundle.model.to(device),
            batches,
            num_classes=len(bundle.class_names),
            device=device,
            dtype=resolve_precision(settings.precision, device, key="eval.precision"),
            on_images=advance,
        )


def _default_output(run_folder: RunFolder, folder: Path, data: Path | None) -> Path:
    """RUN/eval for the run's own images; for others a folder that says which."""
    if not _is_run(run_folder):
        resolved = folder if folder.name not in {"", ".."} else folder.resolve()
        return resolved.with_name(f"{resolved.name}-eval")
    return (
        run_folder.evaluation if data is None else run_folder.path / f"eval-{data.resolve().name}"
    )


def _show(
    bundle: Bundle, images: _Images, evaluation: Evaluation, target: Path, *, as_json: bool
) -> None:
    if as_json:
        values = asdict(evaluation)
        values["per_class"] = {m.name: asdict(m) for m in evaluation.per_class}
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
        "macro": f"precision {macro.precision:.4f}, recall {macro.recall:.4f}, F1 {macro.f1:.4f}",
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
