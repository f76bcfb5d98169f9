"""`mnft data curve`: would more images help? The learning curve of the head on stored features."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnft import console, files
from mnft.config.load import load_config
from mnft.config.schema import Config, DistillConfig
from mnft.data.labels import LabelRules
from mnft.device.ranks.group import joined
from mnft.device.select import keep_freed_memory
from mnft.errors import ConfigError, ModelError
from mnft.model.linear_head import has_linear_head
from mnft.runs.begin import begin_training, check_early
from mnft.runs.folder import default_name, make_parent
from mnft.tasks import load_label_rules
from mnft.training.head.curve import CurvePoint, HeadImages, compute_curve
from mnft.training.head.curve_plot import plot_curve
from mnft.training.head.law import Forecast, forecast
from mnft.training.stages import load_features

_NOT_FINE_TUNING = (
    "this is the curve of a head on frozen features, not of fine-tuning, which changes the "
    "features as well and may gain more from more images"
)
_LITTLE = 0.01  # a gain that is hardly worth collecting as many images again


def run(config_path: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    """Compute and show the learning curve, and what it expects of twice the images.

    Writes `<run.dir>/<config's name>-curve.json`, `.csv` and `.png`, and replaces those of an
    earlier call.

    Raises:
        MnftError: a training with this config cannot begin, or there is no curve to be had.
    """
    keep_freed_memory()
    config, source = load_config(config_path, overrides)
    with joined(console.REPORTER) as group, source.locating():
        _check(config, processes=group.ranks.world_size)
        folder = Path(config.run.dir).expanduser()
        make_parent(folder)
        # Only labelled images count here, and a teacher has no part in fitting a head.
        config = config.model_copy(update={"distill": DistillConfig()})
        machine = check_early(config, group.ranks, new_run=False)
        manifest, training = begin_training(config, None, machine, console.REPORTER)
        card, task = training.card, training.task
        if not has_linear_head(training.state.model, card.preprocessing.input_size):
            raise ModelError(
                f"the outputs of {card.architecture} are not one linear layer on its features, so "
                "there is no head to fit",
                key="model.name",
            )
        rules = load_label_rules(task.name)
        train, val = (
            HeadImages(features, manifest.split(split))
            for split, features in zip(
                ("train", "val"), load_features(training, console.REPORTER), strict=True
            )
        )
        with console.progress("fitting heads") as on_progress:
            points = compute_curve(
                task,
                rules,
                train,
                val,
                balanced=config.train.class_weights == "balanced",
                seed=config.train.seed,
                device=machine.device,
                on_progress=on_progress,
            )
    expected = forecast(points, val_images=len(val.samples), seed=config.train.seed)
    verdict = describe(expected, task.title)
    stem = folder / f"{default_name(config_path)}-curve"
    record = {
        "figure": task.figure,
        "model": card.architecture,
        "labels": len(task.labels),
        "val_images": len(val.samples),
        "points": [point.as_record() for point in points],
        "expected": expected.as_record(),
        "in_words": verdict,
        "about": _NOT_FINE_TUNING,
    }
    names = _write(stem, record, points, expected, task.title)
    if as_json:
        console.show_json(record | {"files": [str(path) for path in names]})
        return
    _show(points, expected, rules, labels=len(task.labels), title=task.title)
    console.done(verdict)
    console.note(_NOT_FINE_TUNING)
    console.note(f"curve    {names[0]}, {names[1].name} and {names[2].name}")


def _check(config: Config, *, processes: int) -> None:
    if processes > 1:
        raise ConfigError(
            f"found {processes} processes, expected one for a learning curve",
            hint="start it without torchrun",
        )
    if config.model.pretrained is False:
        raise ConfigError(
            "found false, but the features of random weights say nothing of more images",
            hint="name a pretrained model, or a folder with weights (local-dir:PATH)",
            key="model.pretrained",
        )


def describe(expected: Forecast, title: str) -> str:
    """Say in a sentence or two what twice the images are expected to bring.

    Args:
        expected: the forecast.
        title: name of the figure for people.
    """
    figure, gain = expected.figure, expected.gain
    sentence = (
        f"Twice as many images: {title} {figure.value:.1%} expected ({100 * figure.low:.1f} to "
        f"{100 * figure.high:.1f}), {100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to "
        f"{100 * gain.high:+.1f})"
    )
    if gain.high <= _LITTLE:
        return f"{sentence}: more of the same images help little"
    if gain.low > 0:
        return f"{sentence}: more images help"
    likely = "may help a little" if gain.value <= _LITTLE else "probably help"
    return f"{sentence}: more images {likely}, but nothing is within the band, too"


def _write(
    stem: Path,
    record: Mapping[str, Any],
    points: Sequence[CurvePoint],
    expected: Forecast,
    title: str,
) -> list[Path]:
    """Write the plot, the table and the record; gives their paths."""
    names = [stem.with_name(f"{stem.name}.{end}") for end in ("png", "csv", "json")]
    files.write_json(names[2], record)
    files.write_text(names[1], _tabulate(points, record["figure"]))
    heading = f"{record['model']}: a head on frozen features, not fine-tuned"
    plot_curve(points, expected, names[0], figure=title, title=heading)
    return names


def _show(
    points: Sequence[CurvePoint],
    expected: Forecast,
    rules: LabelRules,
    *,
    labels: int,
    title: str,
) -> None:
    def cells(images: float, *rest: object) -> list[object]:
        each = [f"{images / labels:,.0f}"] if rules.exclusive else []
        return [f"{images:,.0f}", *each, *rest]

    rows = []
    for point in points:
        several = len(point.figures) > 1
        spread = f"{100 * point.figures.std(ddof=1):.1f}" if several else "-"
        rows.append(cells(point.images, f"{point.figures.mean():.1%}", spread, len(point.figures)))
    rows.append(cells(expected.images, f"{expected.figure.value:.1%}", "-", "expected"))
    each = [f"a {rules.noun}"] if rules.exclusive else []
    console.show_table(["images", *each, title, "sd", "draws"], rows)


def _tabulate(points: Sequence[CurvePoint], figure: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["images", "draw", figure])
    for point in points:
        for draw, value in enumerate(point.figures.tolist()):
            writer.writerow([f"{point.images:g}", draw, value])
    return text.getvalue()
