"""Which settings of a run may change when it is pruned, and the config of the fine-tunings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnft.config import describe
from mnft.config.schema import Config
from mnft.errors import ConfigError

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


def check_overrides(overrides: Sequence[str]) -> set[str]:
    """The keys of `section.key=value` overrides, all of which may change.

    Raises:
        ConfigError: pruning cannot change one of them. A key that does not exist is left to the
            config's own check.
    """
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


def configure(config: Config, written: set[str], source: Path, home: Path) -> Config:
    """The config of the fine-tunings: the run's, with what a pruned model needs.

    Args:
        config: the run's config, with the user's overrides.
        written: the keys of these overrides, which stay as the user wrote them.
        source: the folder of the model to prune.
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
        # The statistics of the full width are wrong, and new ones must follow the weights.
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
