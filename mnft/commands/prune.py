"""`mnft prune`: a trained model with fewer channels, fine-tuned, as a run of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mnft import console, files
from mnft.compress.prune.channels import check_available
from mnft.compress.prune.steps import Job, Stage, prune_in_steps
from mnft.config import describe
from mnft.config.schema import Config
from mnft.device.ranks.distributed import Ranks
from mnft.device.select import keep_freed_memory
from mnft.errors import CheckpointError, ConfigError, Interrupted
from mnft.evaluation.checkpoint import Opened, load_settings, open_trained
from mnft.runs.begin import begin_training, check_early
from mnft.text import count

# The pruned model keeps the images, the split and the preprocessing of the run.
_FREE_SECTIONS = {"prune", "train", "optim", "schedule", "augment", "distill", "eval"}
_FREE_KEYS = {
    "data.workers",
    "data.store",
    "data.store_limit_gb",
    "model.freeze_batchnorm",
    "model.drop_rate",
    "model.drop_path_rate",
    "run.tensorboard",
}


def run(checkpoint: Path, overrides: Sequence[str], output: Path | None, *, as_json: bool) -> None:
    """Prune a run's best model to a share of its MACs, with fine-tuning, and show what it cost.

    Args:
        checkpoint: a run, or a model folder in one.
        overrides: `section.key=value` over the run's config.
        output: the new run folder; None takes RUN/pruned-PERCENT.
        as_json: print one JSON object instead of a table.

    Raises:
        MnftError: no run, images that have changed, a target that cannot be reached, a model that
            cannot be pruned, an output folder that is there already.
        Interrupted: by Ctrl-C or SIGTERM; nothing is written.
    """
    keep_freed_memory()
    opened = open_trained(checkpoint)
    if opened.manifest is None:
        raise CheckpointError(
            f"{opened.bundle.folder} does not lie in a run, so its training images are not known",
            hint="pruning needs them: train it on your images first (mnft train, with "
            f"model.name: local-dir:{opened.bundle.folder}), then prune that run",
        )
    written = _check_overrides(overrides)
    config, source = load_settings(opened, overrides)
    home = output or opened.run.path / f"pruned-{100 * config.prune.macs:g}"
    if home.exists() or home.is_symlink():
        raise ConfigError(
            f"{home} exists already, and nothing is overwritten",
            hint="name a new folder: --output DIR, or delete it",
        )
    check_available()
    with source.locating():
        table = _prune(opened, configure(config, written, opened.bundle.folder, home), home)
    _show(home, table, as_json=as_json)


def configure(config: Config, written: set[str], source: Path, home: Path) -> Config:
    """The config of the fine-tunings: the run's, with what a pruned model needs.

    Args:
        config: of the run, with the user's overrides.
        written: the keys of these overrides, which stay as they are.
        source: the folder of the model that is pruned.
        home: the folder of the new run.
    """
    epochs = config.train.epochs if "train.epochs" in written else config.prune.epochs
    wanted: dict[str, Any] = {
        "train.epochs": epochs,
        "train.stages": ["finetune"],
        "optim.lr": config.prune.lr or config.optim.lr / 2,
        "optim.layer_decay": None,
        "schedule.name": "cosine",
        "schedule.warmup_epochs": min(1.0, 0.2 * epochs),
        "model.freeze": "none",
        # Statistics that fitted the full width are wrong; new ones go on changing with the weights.
        "model.freeze_batchnorm": False,
    }
    if config.prune.distill:
        wanted["distill.teacher"] = str(source)
    values = config.model_dump()
    for key_path, value in wanted.items():
        section, _, key = key_path.partition(".")
        if key_path not in written:
            values[section][key] = value
    # The weights are the pruned model's own.
    values["model"]["pretrained"] = True
    values["run"] |= {"dir": str(home.parent), "name": None}
    return Config.model_validate(values)


def _check_overrides(overrides: Sequence[str]) -> set[str]:
    keys = {override.partition("=")[0].strip() for override in overrides}
    known = set(describe.key_paths())
    refused = sorted(
        key for key in keys & known - _FREE_KEYS if key.partition(".")[0] not in _FREE_SECTIONS
    )
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} cannot change when a model is pruned",
            hint="it keeps the run's images, split and preprocessing; -o names the new folder",
        )
    return keys


def _prune(opened: Opened, config: Config, home: Path) -> list[Stage]:
    source = opened.bundle.folder
    model = config.model.model_copy(update={"name": f"local-dir:{source}"})
    # Only for its batches; a teacher helps in the fine-tunings alone.
    distill = config.distill.model_copy(update={"teacher": None})
    base_config = config.model_copy(update={"model": model, "distill": distill})
    machine = check_early(config.model_copy(update={"model": model}), Ranks(), resumed=True)
    manifest, base = begin_training(base_config, opened.run, machine, console.REPORTER)
    console.note(
        f"pruning  {source} to {config.prune.macs:.0%} of its MACs; "
        f"{count(config.train.epochs, 'epoch')} of fine-tuning"
    )
    try:
        with files.atomic_folder(home) as folder:
            job = Job(source, base, config, manifest, folder, home)
            with console.TrainingDisplay() as display:
                return prune_in_steps(job, display)
    except Interrupted as error:
        raise Interrupted(error.exit_code, f"by {error.by}; nothing was written") from error


def _show(home: Path, table: Sequence[Stage], *, as_json: bool) -> None:
    if as_json:
        result = {"run": str(home), "best": str(home / "best")}
        console.show_json({**result, "stages": [asdict(stage) for stage in table]})
        return
    console.show_table(
        ["model", "MACs", "share", "parameters", "size", "val accuracy", "val loss", "folder"],
        [
            [
                f"{stage.name} {stage.step}" if stage.step else stage.name,
                f"{stage.macs / 1e6:.1f} M",
                f"{stage.macs_share:.1%}",
                f"{stage.parameters / 1e6:.2f} M",
                f"{stage.size_mb:.1f} MB",
                f"{stage.val_accuracy:.2%}",
                f"{stage.val_loss:.4f}",
                stage.folder,
            ]
            for stage in table
        ],
        to_stderr=True,
    )
    console.done(f"the pruned model is {home / 'best'}")
    console.note(f"next: mnft eval --ckpt {home}")
    console.show_data(str(home / "best"))
