"""Keys that a search must not try: they change nothing, or change what trials are judged by."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from mnft.config.edge import AFTER_TRAINING
from mnft.config.recipe import apply_recipe
from mnft.config.schema import Config

# What a key does that makes it nothing to search over.
_NOT_SEARCHED = {
    "task": "what is learnt is not a choice",
    "run.*": "it says where runs are written",
    "eval.monitor": "trials must be judged by one figure",
    "eval.batch_size": "it does not change the result",
    "eval.precision": "trials must be judged alike",
    "data.root": "trials must be judged on the same images",
    "data.other": "trials must be judged on the same images",
    "data.fetch": "trials must be judged on the same images",
    "data.columns": "trials must be judged on the same images",
    "data.separator": "trials must be judged on the same images",
    "data.group": "trials must be judged on the same images",
    "data.val_fraction": "trials must be judged on the same images",
    "data.test_fraction": "trials must be judged on the same images",
    "data.split_*": "trials must be judged on the same images",
    "data.on_bad_image": "trials must be judged on the same images",
    "data.exclude": "trials must be judged on the same images",
    "data.workers": "it does not change the result",
    "data.store*": "it does not change the result",
    "decision.*": "it does not change what is learnt",
    "train.seed": "the best of several seeds is luck; search.seeds trains the best with more",
    "train.device": "it does not change what is learnt",
    "train.threads": "it does not change what is learnt",
    "train.deterministic": "it does not change what is learnt",
    "train.compile": "it does not change what is learnt",
    "train.channels_last": "it does not change what is learnt",
    **{f"{section}.*": "it has no effect on a training" for section in AFTER_TRAINING},
}

# What steps of gradient descent need, and a head fitted to features does not.
_OF_EPOCHS = (
    "augment.*",
    "distill.*",
    "optim.*",
    "schedule.*",
    "model.drop_*",
    "model.freeze",
    "model.freeze_batchnorm",
    "train.accumulation_steps",
    "train.batch_size",
    "train.clip_grad",
    "train.early_stopping",
    "train.ema_decay",
    "train.epochs",
    "train.label_smoothing",
    "train.passes",
    "train.sampler",
    "train.start_size",
)
_ADAMS = {"adam", "adamw", "nadam", "nadamw", "radam", "adamax", "lamb", "adan", "adamp"}
_BY_SHAPE = {
    "schedule.decay_epochs": {"step"},
    "schedule.decay_milestones": {"multistep"},
    "schedule.decay_rate": {"step", "multistep", "plateau", "poly"},
    "schedule.min_lr": {"cosine", "poly", "plateau"},
    "schedule.patience_epochs": {"plateau"},
}


def find_refusal(key: str) -> str | None:
    """Why a key is nothing to search over; None if it may be tried."""
    return next((why for name, why in _NOT_SEARCHED.items() if fnmatchcase(key, name)), None)


def find_override(key: str, config: Config) -> str | None:
    """What makes a key ineffective in a config, as "train.stages is [head]"; None if it acts.

    Args:
        key: a key of the config.
        config: the config, before the recipe.
    """
    rules: tuple[tuple[tuple[str, ...], Callable[[Config], bool], str], ...] = (
        (_OF_EPOCHS, lambda c: c.train.stages == ["head"], "train.stages is [head]"),
        (
            ("distill.images", "distill.temperature", "distill.weight"),
            lambda c: c.distill.teacher is None,
            "distill.teacher is empty",
        ),
        (
            ("augment.magnitude",),
            lambda c: c.augment.policy not in {"rand_augment", "aug_mix"},
            "augment.policy is neither rand_augment nor aug_mix",
        ),
        (
            ("schedule.warmup_lr",),
            lambda c: c.schedule.warmup_epochs == 0,
            "schedule.warmup_epochs is 0",
        ),
        (
            ("optim.momentum",),
            lambda c: c.optim.name.lower() in _ADAMS,
            "the optimizer has betas in place of momentum",
        ),
        (("optim.betas",), lambda c: c.optim.name.lower() == "sgd", "optim.name is sgd"),
        (
            ("model.freeze_batchnorm",),
            lambda c: c.model.freeze == "backbone",
            "model.freeze is backbone, which fixes the statistics",
        ),
    )
    # What the recipe fills in; the number of images only sets how much.
    resolved = apply_recipe(config, num_images=1_000, linear_head=True)[0]
    for names, is_off, why in rules:
        if any(fnmatchcase(key, name) for name in names) and is_off(resolved):
            return why
    shapes = _BY_SHAPE.get(key)
    if shapes and resolved.schedule.name not in shapes:
        return f"schedule.name is {resolved.schedule.name}"
    return None
