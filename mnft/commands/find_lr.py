"""`mnft train --find-lr`: a short trial that suggests a learning rate; no run is made."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mnft import console, files
from mnft.config.load import load_config
from mnft.config.schema import Config
from mnft.device.ranks.distributed import Ranks
from mnft.device.ranks.group import joined
from mnft.device.select import keep_freed_memory
from mnft.errors import ConfigError
from mnft.runs.begin import begin_training, check_early
from mnft.training import stages
from mnft.training.probes.lr_finder import LrCurve, find_lr
from mnft.training.probes.lr_plot import plot_lr_curve
from mnft.training.training import Training


def run(config_path: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    """Try growing learning rates, and write the curve beside the runs.

    Writes `<run.dir>/<config's name>-lr.png` and `.csv`, in the place of those of an earlier
    trial.

    Raises:
        MnftError: whatever keeps a training from its beginning, or a curve that tells nothing.
    """
    keep_freed_memory()
    config, source = load_config(config_path, overrides)
    with joined(console.REPORTER) as group, source.locating():
        ranks = group.ranks
        if ranks.world_size > 1:
            raise ConfigError(
                f"found {ranks.world_size} processes, expected one to find a learning rate",
                hint="start it without torchrun: the updates are those of the whole batch",
            )
        folder = _make_folder(config)
        training = _build(config, ranks)
        _fit_head(training)
        with console.progress("finding a learning rate") as on_step:
            curve = find_lr(training, seed=config.train.seed, on_step=on_step)
    picture, table = (folder / f"{_name(config_path)}-lr.{ending}" for ending in ("png", "csv"))
    _write(curve, picture, table, title=_title(training))
    others = [value for value in overrides if value.partition("=")[0].strip() != "optim.lr"]
    sets = [*others, f"optim.lr={curve.suggestion:g}"]
    words = ["mnft", "train", str(config_path), *(w for value in sets for w in ("--set", value))]
    own = _OwnRate.of(config, training)
    _show(curve, own, picture, table, shlex.join(words), as_json=as_json)


def _make_folder(config: Config) -> Path:
    folder = Path(config.run.dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if folder.is_file() else f"cannot be made: {error.strerror}"
        raise ConfigError(f"{folder} {reason}", key="run.dir") from error
    return folder


def _build(config: Config, ranks: Ranks) -> Training:
    # As for a resumed run: its name may be taken, as none is made.
    machine = check_early(config, ranks, resumed=True)
    return begin_training(config, None, machine, console.REPORTER)[1]


def _fit_head(training: Training) -> None:
    """Come to where fine-tuning begins."""
    if "finetune" not in training.stages:
        raise ConfigError(
            "found the head stage alone, which has no learning rate",
            hint="train.stages: [head, finetune]",
            key="train.stages",
        )
    if "head" in training.stages:
        section = training.config.train.model_copy(update={"stages": ["head"]})
        config = training.config.model_copy(update={"train": section})
        head_only = replace(training, config=config)
        stages.train(head_only, keeper=None, reporter=console.REPORTER)


def _name(path: Path) -> str:
    """The name that a run of this config would get."""
    return path.stem if path.name != "config.yaml" else path.resolve().parent.name


def _title(training: Training) -> str:
    config = training.config
    _, height, width = training.card.preprocessing.input_size
    return (
        f"{config.model.name} at {height} x {width}, {config.optim.name}, "
        f"batches of {config.train.batch_size}"
    )


def _write(curve: LrCurve, picture: Path, table: Path, *, title: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["lr", "loss", "smoothed_loss"])
    writer.writerows(zip(curve.lrs, curve.losses, curve.smoothed, strict=True))
    files.write_text(table, text.getvalue())
    plot_lr_curve(
        curve.lrs,
        curve.losses,
        curve.smoothed,
        picture,
        suggestion=curve.suggestion,
        title=title,
    )


@dataclass(frozen=True, slots=True)
class _OwnRate:
    """The learning rate that a run would take without the suggestion, and where it is from."""

    lr: float
    source: str

    @classmethod
    def of(cls, config: Config, training: Training) -> _OwnRate:
        if "lr" in config.optim.model_fields_set:
            return cls(config.optim.lr, "config")
        by_recipe = any(choice.key == "optim.lr" for choice in training.choices)
        return cls(training.config.optim.lr, "recipe" if by_recipe else "default")

    def compare(self, suggestion: float) -> str:
        """Beside the suggestion, and why the two are not the same."""
        words = f"the {self.source} has optim.lr: {self.lr:g}"
        if self.source != "recipe":
            return f"{words}; the suggestion is {suggestion / self.lr:.2g} times that"
        return (
            f"{words}, chosen by the val accuracy of whole trainings with warmup, decay and "
            "averaging; the suggestion comes from a short trial without these: keep the recipe's "
            "unless its training is unstable"
        )


def _show(
    curve: LrCurve, own: _OwnRate, picture: Path, table: Path, following: str, *, as_json: bool
) -> None:
    if as_json:
        console.show_json(
            {
                "suggestion": curve.suggestion,
                "png": str(picture),
                "csv": str(table),
                "steps": len(curve.lrs),
                "own": {"lr": own.lr, "source": own.source},
            }
        )
        return
    console.done(f"suggested learning rate: {curve.suggestion:g}")
    console.note(f"because {curve.reason}")
    console.note(own.compare(curve.suggestion))
    console.note(f"curve    {picture} and {table.name}, {len(curve.lrs)} updates")
    console.note(f"next: {following}")
    console.show_data(f"{curve.suggestion:g}")
