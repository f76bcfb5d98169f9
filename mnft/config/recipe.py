"""What `recipe: auto` chooses for the keys that the user did not write, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mnft.config.schema import Config

# Below, BatchNorm keeps its statistics. Compared with 1,600 and 1,200 images only; that it holds
# for fewer, and no longer for many more, is an assumption.
_FEW_IMAGES = 20_000


@dataclass(frozen=True, slots=True)
class Choice:
    """One key that the recipe set: its path, its value, and why."""

    key: str
    value: Any
    reason: str


def apply_recipe(
    config: Config, *, num_images: int, linear_head: bool
) -> tuple[Config, list[Choice]]:
    """Fill in what the user left open; what was written stays as it is.

    The figures behind the choices are in benchmarks/.

    Args:
        config: as loaded.
        num_images: in the train split.
        linear_head: whether the head is one linear layer on features, which can be fitted alone.

    Returns:
        The config with every key resolved, and what was chosen (nothing for `plain`).
    """
    proposed = _propose(config, num_images, linear_head)
    choices = [choice for choice in proposed if not _is_written(config, choice.key)]
    values = config.model_dump()
    for choice in choices:
        section, _, key = choice.key.partition(".")
        values[section][key] = choice.value
    if values["train"]["stages"] is None:
        values["train"]["stages"] = ["finetune"]
    if values["train"]["batch_size"] == "auto":
        values["train"]["batch_size"] = choose_batch_size(num_images)
    return Config.model_validate(values), choices


def choose_batch_size(num_images: int) -> int:
    """Images in a batch: a power of two that leaves a hundred updates an epoch or so, 16 to 256."""
    return int(2 ** min(8, max(4, round(math.log2(max(num_images, 1) / 50)))))


def _propose(config: Config, num_images: int, linear_head: bool) -> list[Choice]:
    if config.recipe == "plain" or config.model.pretrained is False:
        return []
    if linear_head and _only_the_head(config):
        why = "the backbone is frozen, so its features need computing only once"
        return [Choice("train.stages", ["head"], why)]
    head = [] if config.train.stages else [_stages(config, linear_head)]
    if config.train.stages == ["head"]:
        return head
    return [
        *head,
        *_optimization(config),
        *_schedule(config, num_images),
        *_regularization(num_images),
        Choice("train.batch_size", choose_batch_size(num_images), f"{num_images:,} images"),
    ]


def _is_written(config: Config, key_path: str) -> bool:
    section, _, key = key_path.partition(".")
    return key in getattr(config, section).model_fields_set


def _only_the_head(config: Config) -> bool:
    """A frozen backbone, and no word on how to train the head by gradient steps."""
    gradient = _is_written(config, "train.epochs") or config.optim.model_fields_set
    frozen = config.model.freeze == "backbone"
    return frozen and not gradient and not config.train.stages


def _stages(config: Config, linear_head: bool) -> Choice:
    if not linear_head:
        why = "the head of this model cannot be fitted apart from its backbone"
        return Choice("train.stages", ["finetune"], why)
    if config.model.freeze == "backbone":
        why = "only the head learns, as optim and train.epochs say"
        return Choice("train.stages", ["finetune"], why)
    why = "a head fitted to the frozen features first keeps the pretrained layers from damage"
    return Choice("train.stages", ["head", "finetune"], why)


def _optimization(config: Config) -> list[Choice]:
    if _is_written(config, "optim.name") and config.optim.name not in {"adam", "adamw"}:
        return []  # the rates below are Adam's
    return [
        Choice("optim.name", "adamw", "Adam with weight decay that is not scaled by its rates"),
        Choice("optim.lr", 1e-3, "of the top layer; twice that was seen to undo the fitted head"),
        Choice("optim.weight_decay", 0.01, "AdamW's usual value"),
        Choice("optim.layer_decay", 0.75, "lower layers are general already: they learn slower"),
    ]


def _schedule(config: Config, num_images: int) -> list[Choice]:
    epochs = min(30, max(5, round(400 / math.sqrt(num_images))))
    chosen = config.train.epochs if _is_written(config, "train.epochs") else epochs
    return [
        Choice("train.epochs", epochs, f"{num_images:,} images: fewer images, more passes"),
        Choice("schedule.name", "cosine", "ends with small steps"),
        Choice(
            "schedule.warmup_epochs",
            min(1.0, round(0.2 * chosen, 2)),
            "Adam's averages need a start",
        ),
    ]


def _regularization(num_images: int) -> list[Choice]:
    few = num_images < _FEW_IMAGES
    why = "ImageNet's statistics are better than those of few images in small batches"
    return [
        *([Choice("model.freeze_batchnorm", True, why)] if few else []),
        Choice("train.label_smoothing", 0.1, "some labels are wrong, and it evens out confidence"),
        Choice(
            "train.ema_decay",
            0.99,
            "an average over recent updates, at most a hundred or so, is steadier",
        ),
        Choice("augment.scale", [0.35, 1.0], "milder crops than ImageNet's 0.08"),
    ]
