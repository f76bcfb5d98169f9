"""What `recipe: auto` chooses for the keys that the user did not write, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mnft.config.schema import Config

# With fewer images BatchNorm keeps its statistics. This was compared with 1,600 and 1,200 images
# only; that it also helps with fewer, and no longer with many more, is an assumption.
_FEW_IMAGES = 20_000
# With fewer images the rate falls with the cube root of their number, weights are interpolated, and
# an epoch passes over at least so many images. Measured with 100 images: benchmarks/few-images.md.
_VERY_FEW_IMAGES = 1_000
_LEAST_PER_EPOCH = 300


@dataclass(frozen=True, slots=True)
class Choice:
    """A key that the recipe sets, with its value and the reason."""

    key: str
    value: Any
    reason: str


def apply_recipe(
    config: Config, *, num_images: int, linear_head: bool
) -> tuple[Config, list[Choice]]:
    """Fill in the keys that the user left out; written values are never changed.

    The measurements behind the choices are in benchmarks/.

    Args:
        config: the config as it was loaded.
        num_images: number of images in the train split.
        linear_head: whether the head is one linear layer, which can be fitted without the rest.

    Returns:
        The config with every key resolved, and the choices that were made (none for `plain`).
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
    """Choose a power of two from 16 to 256, with about 50 updates per epoch between these."""
    return int(2 ** min(8, max(4, round(math.log2(max(num_images, 1) / 50)))))


def _propose(config: Config, num_images: int, linear_head: bool) -> list[Choice]:
    """List what the recipe would choose if nothing were written, except what makes no sense."""
    if config.recipe == "plain" or config.model.pretrained is False:
        return []
    choices = []
    freezes_backbone = config.model.freeze == "backbone"
    if config.train.stages is None:
        # Whoever sets epochs or an optimizer wants gradient steps, also on a frozen backbone.
        sets_training = bool(_is_written(config, "train.epochs") or config.optim.model_fields_set)
        if not linear_head:
            stages, why = ["finetune"], "the head of this model cannot be fitted on its own"
        elif freezes_backbone and not sets_training:
            stages, why = ["head"], "the backbone is frozen: its features are computed only once"
        elif freezes_backbone:
            stages, why = ["finetune"], "only the head learns, as optim and train.epochs say"
        else:
            stages = ["head", "finetune"]
            why = "a head fitted to the frozen features first keeps the pretrained layers from harm"
            if num_images < _VERY_FEW_IMAGES:
                stages.append("interpolate")
                why += "; with few images, weights between those before and after are safer"
        choices.append(Choice("train.stages", stages, why))
        if stages == ["head"]:
            return choices
    if config.train.stages == ["head"]:
        return choices
    if not _is_written(config, "optim.name") or config.optim.name in {"adam", "adamw"}:
        # The rates are Adam's: with another optimizer they would be wrong.
        choices += [
            Choice("optim.name", "adamw", "Adam with decoupled weight decay"),
            Choice("optim.lr", *_choose_rate(num_images)),
            Choice("optim.weight_decay", 0.01, "AdamW's usual value"),
            Choice("optim.layer_decay", 0.75, "lower layers are more general and learn slower"),
        ]
    images = f"{num_images:,} images"
    epochs = min(20, max(5, round(400 / math.sqrt(num_images))))
    if not _is_written(config, "train.epochs") and num_images < _LEAST_PER_EPOCH:
        passes = math.ceil(_LEAST_PER_EPOCH / num_images)
        epochs = max(5, round(epochs / passes))
        why = f"{images}: evaluations would take longer than so short epochs"
        choices.append(Choice("train.passes", passes, why))
    chosen = config.train.epochs if _is_written(config, "train.epochs") else epochs
    warmup = min(1.0, round(0.2 * chosen, 2))
    choices += [
        Choice("train.epochs", epochs, f"{images}: the fewer images, the more epochs"),
        Choice("schedule.name", "cosine", "ends with small steps"),
        Choice("schedule.warmup_epochs", warmup, "Adam's averages need time to settle"),
    ]
    if num_images < _FEW_IMAGES:
        why = "ImageNet's statistics are better than those of few images in small batches"
        choices.append(Choice("model.freeze_batchnorm", True, why))
    # Not for several labels: each would be at least 5% probable in every image, the rare ones too.
    if config.task == "classify":
        why = "some labels are wrong; confidence evens out"
        choices.append(Choice("train.label_smoothing", 0.1, why))
    return [
        *choices,
        Choice("train.ema_decay", 0.99, "an average of about 100 updates is steadier"),
        Choice("augment.scale", [0.35, 1.0], "milder crops than ImageNet's 0.08"),
        Choice("train.batch_size", choose_batch_size(num_images), images),
    ]


def _choose_rate(num_images: int) -> tuple[float, str]:
    rate = 1e-3 * min(1.0, math.cbrt(num_images / _VERY_FEW_IMAGES))
    why = "for the top layer; a higher one would undo the fitted head"
    return float(f"{rate:.1g}"), why


def _is_written(config: Config, key_path: str) -> bool:
    section, _, key = key_path.partition(".")
    return key in getattr(config, section).model_fields_set
