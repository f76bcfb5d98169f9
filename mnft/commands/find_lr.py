"""`mnft train --find-lr`: a short trial that suggests a learning rate; no run is made."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mnft import console, files
from mnft.config.load import load_config
from mnft.config.schema import Config
from mnft.device.ranks.group import joined
from mnft.device.select import keep_freed_memory
from mnft.errors import ConfigError
from mnft.runs.begin import begin_training, check_early
from mnft.runs.folder import default_name, make_parent
from mnft.training.probes.lr_finder import LrCurve, find_lr
from mnft.training.probes.lr_plot import plot_lr_curve
from mnft.training.training import Training


def run(config_path: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    """Try growing learning rates, and write the curve beside the runs.

    Writes `<run.dir>/<config's name>-lr.png` and `.csv`, and replaces those of an earlier trial.

    Raises:
        MnftError: a training with this config cannot begin, or the curve suggests no rate.
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
        folder = Path(config.run.dir).expanduser()
        make_parent(folder)
        machine = check_early(config, ranks, new_run=False)
        _, training = begin_training(config, None, machine, console.REPORTER)
        if "finetune" not in training.stages:
            raise ConfigError(
                "found only the head stage, which has no learning rate",
                hint="train.stages: [head, finetune]",
                key="train.stages",
            )
        # The trial starts from a new head, without the head stage: after that the loss hardly falls
        # any more, and its curve says nothing about rates.
        with console.progress("finding a learning rate") as on_step:
            curve = find_lr(training, seed=config.train.seed, on_step=on_step)
    plot, table = (
        folder / f"{default_name(config_path)}-lr.{extension}" for extension in ("png", "csv")
    )
    _write(curve, training, plot, table)
    others = [value for value in overrides if value.partition("=")[0].strip() != "optim.lr"]
    sets = [*others, f"optim.lr={curve.suggestion:g}"]
    words = ["mnft", "train", str(config_path), *(w for value in sets for w in ("--set", value))]
    own = _OwnRate.of(config, training)
    if as_json:
        console.show_json(
            {
                "suggestion": curve.suggestion,
                "png": str(plot),
                "csv": str(table),
                "steps": len(curve.lrs),
                "own": {"lr": own.lr, "source": own.source},
            }
        )
        return
    console.done(f"suggested learning rate: {curve.suggestion:g}")
    console.note(f"because {curve.reason}")
    console.note(own.compare(curve.suggestion))
    console.note(f"curve    {plot} and {table.name}, {len(curve.lrs)} updates")
    console.note(f"next: {shlex.join(words)}")
    console.show_data(f"{curve.suggestion:g}")


def _write(curve: LrCurve, training: Training, plot: Path, table: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["lr", "loss", "smoothed_loss"])
    writer.writerows(zip(curve.lrs, curve.losses, curve.smoothed, strict=True))
    files.write_text(table, text.getvalue())
    config = training.config
    _, height, width = training.card.preprocessing.input_size
    plot_lr_curve(
        curve.lrs,
        curve.losses,
        curve.smoothed,
        plot,
        suggestion=curve.suggestion,
        title=f"{config.model.name} at {height} x {width}, {config.optim.name}, "
        f"batches of {config.train.batch_size}",
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
        """Compare it with the suggestion, and say why the two differ."""
        words = f"the {self.source} has optim.lr: {self.lr:g}"
        if self.source != "recipe":
            return f"{words}; the suggestion is {suggestion / self.lr:.2g} times that"
        return (
            f"{words}, chosen by the results of whole trainings with warmup, decay and "
            "averaging, which allow a higher rate; the suggestion comes from a short trial without "
            "these: keep the recipe's unless its training is unstable"
        )
