"""Build a model from the `model` section: architecture, weights, head, expected preprocessing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
from timm.models import get_deprecated_models
from torch import nn

from mnft.config.schema import ModelConfig
from mnft.errors import ModelError, first_line
from mnft.failures import is_out_of_memory
from mnft.model.freeze import evaluating
from mnft.model.pruned import read_shapes, shrink
from mnft.model.sources import (
    check_name,
    find_pruned,
    find_weights_file,
    go_offline_if_unreachable,
    has_fixed_input,
    load_source,
    no_download,
    no_weights,
    normalise,
    read_label_names,
)
from mnft.model.weights import layer_names, load_weights
from mnft.preprocessing import Preprocessing

_log = logging.getLogger(__name__)
# Arguments of timm.create_model that mnft sets itself, and what the user sets instead.
_NOT_IN_KWARGS = {
    "in_chans": "set model.in_chans instead",
    "num_classes": "the classes of the data decide it",
    "features_only": "mnft trains classifiers",
    "pretrained": "set model.pretrained instead",
    "drop_rate": "set model.drop_rate instead",
    "drop_path_rate": "set model.drop_path_rate instead",
    "img_size": "set data.img_size instead",
    # With these timm would load weights that mnft has not checked.
    **dict.fromkeys(
        (
            "checkpoint_path",
            "pretrained_cfg",
            "pretrained_cfg_overlay",
            "pretrained_strict",
            "pretrained_filter_fn",
            "pretrained_model_args",
        ),
        "model.pretrained: FILE loads a weights file",
    ),
    "cache_dir": "the environment variable HF_HOME names the cache of downloads",
}


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model, and what is needed to build it again.

    Attributes:
        model: a model with `num_classes` outputs, in training mode, on the CPU.
        preprocessing: the preprocessing that the model expects.
        architecture: timm's name of the architecture.
        model_args: keyword arguments of timm.create_model, except the number of classes.
        weights: a description of where the weights came from, for people.
        pretrained_cfg: timm's description of the model.
        pruned: whether the model has fewer channels than its architecture.
    """

    model: nn.Module
    preprocessing: Preprocessing
    architecture: str
    model_args: dict[str, Any]
    weights: str
    pretrained_cfg: Mapping[str, Any]
    pruned: bool = False


def build_model(
    config: ModelConfig,
    *,
    num_classes: int,
    labels: tuple[str, ...] | None = None,
    img_size: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> BuiltModel:
    """Create a timm model with a classifier of `num_classes` outputs, and load its weights.

    Args:
        config: the `model` section of the config.
        num_classes: number of outputs of the head.
        labels: class names in the order of the outputs. Weights whose `label_names` are the
            same keep their head; all others get a new one.
        img_size: height and width of the input in pixels; None for the model's own size.
        overrides: preprocessing that differs from the model's own (mean, std, interpolation,
            crop_pct, crop_mode); None values are ignored.

    Raises:
        ModelError: the name is unknown, or the weights are missing or do not fit.
    """
    asked, config = config.name, normalise(config)
    if get_deprecated_models().get(asked.partition(".")[0]):
        _log.warning("timm now calls %s %s", asked, config.name)
    check_name(config.name)
    architecture, source_args = load_source(config.name)
    _check_kwargs(config)
    # in_chans is always given: otherwise the one that a model folder was saved with would decide.
    args: dict[str, Any] = {**config.kwargs, "in_chans": config.in_chans}
    if config.drop_rate is not None:
        args["drop_rate"] = config.drop_rate
    if config.drop_path_rate is not None:
        args["drop_path_rate"] = config.drop_path_rate
    if img_size is not None and has_fixed_input(architecture):
        args["img_size"] = img_size  # position embeddings and the like depend on it
    # Weights of a folder or file are loaded by mnft, which refuses to load half of them.
    weights_file = find_weights_file(config)
    model = _create(config, num_classes, args, pretrained=weights_file is None)
    preprocessing = _resolve_preprocessing(model, config.in_chans, img_size, overrides or {})
    pruned = _shrink(model, config, weights_file, preprocessing)
    if img_size is not None:
        _check_size(model, preprocessing)
    model_args = source_args | args
    weights = "random weights"
    if weights_file is not None:
        weights, new_args = _load_file(model, config, weights_file, labels)
        model_args |= new_args
    elif config.pretrained:
        _init_small_head(model)
        tag = model.pretrained_cfg.get("tag")
        name = model.pretrained_cfg["architecture"] + (f".{tag}" if tag else "")
        weights = f"pretrained weights of {name}, new head"
    cfg = model.pretrained_cfg
    architecture = cfg["architecture"]
    return BuiltModel(model, preprocessing, architecture, model_args, weights, cfg, pruned)


def _load_file(
    model: Any, config: ModelConfig, path: Path, labels: tuple[str, ...] | None
) -> tuple[str, Mapping[str, Any]]:
    """Load a weights file; give a description of it, and arguments to save with the model."""
    keep_head = labels is not None and read_label_names(path.parent) == list(labels)
    classifier = layer_names(model, "classifier")
    try:
        report = load_weights(model, path, classifier=classifier, keep_head=keep_head)
    except ModelError as error:
        error.key = "model.pretrained"
        raise
    if report.head_replaced:
        _init_small_head(model)
    from_hub = config.pretrained is True and config.name.startswith("hf-hub:")
    description = f"{report.loaded} tensors from {config.name if from_hub else path}"
    if report.source_format != "timm":
        description += f" ({report.source_format})"
    head = "new head" if report.head_replaced else "its head too"
    return f"{description}, {head}", report.model_args


def _check_size(model: Any, preprocessing: Preprocessing) -> None:
    """Refuse an image size that the layers cannot take, such as one smaller than a kernel."""
    channels, height, width = preprocessing.input_size
    if (height, width) == tuple(model.pretrained_cfg["input_size"][1:]):
        return
    try:
        with torch.no_grad(), evaluating(model):
            model(torch.zeros(1, channels, height, width))
    except (RuntimeError, ValueError, ArithmeticError, AssertionError) as error:
        if is_out_of_memory(error):  # which is not the size's fault
            raise
        raise ModelError(
            f"the model cannot take images of {width} x {height} pixels: "
            f"{first_line(error, default='')}",
            hint="leave data.img_size out for the size that it was made for",
            key="data.img_size",
        ) from error


def check_model(config: ModelConfig) -> None:
    """Check the model's name, arguments and weights file, before any work is done.

    Raises:
        ModelError: one of them is unknown or missing; the hint suggests another.
    """
    config = normalise(config)
    check_name(config.name)
    _check_kwargs(config)
    if isinstance(config.pretrained, str) and not Path(config.pretrained).exists():
        raise ModelError(
            f"no such weights file: {config.pretrained}",
            hint="true takes the weights that belong to model.name, false random ones",
            key="model.pretrained",
        )


def _check_kwargs(config: ModelConfig) -> None:
    for key, hint in _NOT_IN_KWARGS.items():
        if key in config.kwargs:
            raise ModelError(f"{key} cannot be set here", hint=hint, key="model.kwargs")


def _shrink(
    model: nn.Module, config: ModelConfig, weights_file: Path | None, preprocessing: Preprocessing
) -> bool:
    """Cut the model to the widths of a pruned one, if the config names one."""
    shapes_file = find_pruned(weights_file.parent) if weights_file else None
    if config.name.startswith("local-dir:"):
        # The folder decides the widths, even if the weights are others or random.
        shapes_file = find_pruned(Path(config.name.removeprefix("local-dir:"))) or shapes_file
    if shapes_file is None:
        return False
    try:
        shrink(model, read_shapes(shapes_file), preprocessing.input_size)
    except ModelError as error:
        error.key = "model.name"
        raise
    return True


def _create(
    config: ModelConfig, num_classes: int, args: Mapping[str, Any], *, pretrained: bool
) -> Any:
    pretrained = pretrained and config.pretrained is True
    if pretrained:
        go_offline_if_unreachable()
    try:
        return timm.create_model(
            config.name, pretrained=pretrained, num_classes=num_classes, **args
        )
    except OSError as error:
        raise no_download(config.name) from error
    except RuntimeError as error:
        if "No pretrained weights exist" in str(error):
            raise no_weights(config.name) from error
        raise ModelError(f"found {config.name!r}: {error}", key="model.name") from error
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        own = "data.img_size" if "img_size" in args else "model.name"
        raise ModelError(
            f"{config.name} cannot be built with {dict(args)}: {str(error) or 'timm refuses them'}",
            key="model.kwargs" if config.kwargs else own,
        ) from error


def _init_small_head(model: nn.Module) -> None:
    """Initialise a new head on pretrained features with small weights.

    timm draws the head of its EfficientNets and MobileNets from +-1/sqrt(num_classes). With 1,280
    features the first losses are then several times ln(num_classes), and their gradients damage
    the pretrained layers below before the head has learned anything.
    """
    for name in layer_names(model, "classifier"):
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _resolve_preprocessing(
    model: Any, in_chans: int, img_size: int | None, overrides: Mapping[str, Any]
) -> Preprocessing:
    args = {name: value for name, value in overrides.items() if value is not None}
    try:
        _, height, width = model.pretrained_cfg["input_size"]
        size = (img_size, img_size) if img_size else (height, width)
        args["input_size"] = (in_chans, *size)
        return Preprocessing.from_timm(timm.data.resolve_data_config(args, model=model))
    except AssertionError as error:
        if not {"mean", "std"} & set(args):
            raise
        raise ModelError(f"data.mean and data.std need {in_chans} or 1 values") from error
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"the model's preprocessing (pretrained_cfg in its config.json) is damaged: {error}",
            key="model.name",
        ) from error
