"""Model names to models with a new head, their weights, and the preprocessing they expect."""

from __future__ import annotations

import difflib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import timm.data
from huggingface_hub import constants as hub
from timm.models import load_model_config_from_hf
from torch import nn

from mnft.config.schema import ModelConfig
from mnft.errors import ModelError
from mnft.model.weights import classifier_names, load_weights
from mnft.preprocessing import Preprocessing

_HUB_TIMEOUT_S = 5


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model and what is needed to build it again.

    Attributes:
        model: with a head of `num_classes` outputs, in training mode, on the CPU.
        preprocessing: what the model expects of its input.
        architecture: timm's name.
        model_args: keyword arguments of timm.create_model beside the number of classes.
        weights: where the weights came from, in words.
        pretrained_cfg: timm's description of the model.
    """

    model: nn.Module
    preprocessing: Preprocessing
    architecture: str
    model_args: dict[str, Any]
    weights: str
    pretrained_cfg: Mapping[str, Any]


def build_model(
    config: ModelConfig,
    *,
    num_classes: int,
    img_size: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> BuiltModel:
    """Create a timm model with a classifier of `num_classes` outputs and load its weights.

    Args:
        config: the `model` section.
        num_classes: outputs of the new head.
        img_size: height and width of the input in pixels; None takes the model's own.
        overrides: preprocessing that differs from the model's own: mean, std, interpolation,
            crop_pct; None values are passed over.

    Raises:
        ModelError: unknown name, no weights to be had, weights that do not fit.
    """
    model_args = _model_args(config, img_size)
    # Weights of a folder or file are loaded by mnft, which refuses to load half of them.
    weights_file = _weights_file(config)
    model = _create(config, num_classes, model_args, pretrained=weights_file is None)
    weights, head_is_new = "random weights", False
    if weights_file is not None:
        try:
            report = load_weights(model, weights_file, classifier=classifier_names(model))
        except ModelError as error:
            error.key = "model.pretrained"
            raise
        model_args |= report.model_args
        weights = f"{report.loaded} tensors from {weights_file}"
        if report.source_format != "timm":
            weights += f" ({report.source_format})"
        weights += ", new head" if report.head_replaced else ", its head too"
        head_is_new = report.head_replaced
    elif config.pretrained:
        head_is_new = True
        weights = f"pretrained weights of {_tagged_name(model)}, new head"
    if head_is_new:
        _quieten_head(model)
    cfg = model.pretrained_cfg
    model_args = _args_of_source(config.name) | model_args
    preprocessing = _resolve_preprocessing(model, config.in_chans, img_size, overrides or {})
    return BuiltModel(model, preprocessing, cfg["architecture"], model_args, weights, cfg)


def check_model(config: ModelConfig) -> None:
    """Refuse an unknown name or a missing weights file, before any work is done.

    Raises:
        ModelError: with a suggestion.
    """
    _check_name(config.name)
    if isinstance(config.pretrained, str) and not Path(config.pretrained).exists():
        raise ModelError(
            f"no such weights file: {config.pretrained}",
            hint="true takes the weights that belong to model.name, false random ones",
            key="model.pretrained",
        )


def _model_args(config: ModelConfig, img_size: int | None) -> dict[str, Any]:
    args: dict[str, Any] = dict(config.kwargs)
    if config.in_chans != 3:
        args["in_chans"] = config.in_chans
    if config.drop_rate is not None:
        args["drop_rate"] = config.drop_rate
    if config.drop_path_rate is not None:
        args["drop_path_rate"] = config.drop_path_rate
    if img_size is not None and _has_fixed_input(config.name):
        args.setdefault("img_size", img_size)  # position embeddings and the like depend on it
    return args


def _args_of_source(name: str) -> dict[str, Any]:
    """The `model_args` of the config.json that timm has built a model from."""
    if name.startswith("local-dir:"):
        return dict(_folder_config(_folder(name)).get("model_args") or {})
    if name.startswith("hf-hub:"):
        _, _, args = load_model_config_from_hf(name.removeprefix("hf-hub:"))
        return dict(args or {})
    return {}


def _has_fixed_input(name: str) -> bool:
    if name.startswith("local-dir:"):
        cfg = _folder_config(_folder(name))
        return _has_fixed_input(str(cfg.get("architecture", "")))
    if name.startswith("hf-hub:"):
        return False
    cfg = timm.get_pretrained_cfg(name.partition(".")[0], allow_unregistered=True)
    return bool(cfg is not None and cfg.fixed_input_size)


def _weights_file(config: ModelConfig) -> Path | None:
    """The file that weights are to be read from; None leaves them to timm (or to chance)."""
    if isinstance(config.pretrained, str):
        return Path(config.pretrained)
    if config.pretrained and config.name.startswith("local-dir:"):
        folder = _folder(config.name)
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (folder / name).is_file():
                return folder / name
        raise ModelError(f"{folder} holds no weights, expected model.safetensors", key="model.name")
    return None


def _create(
    config: ModelConfig, num_classes: int, args: Mapping[str, Any], *, pretrained: bool
) -> Any:
    pretrained = pretrained and config.pretrained is True
    _check_name(config.name)
    if pretrained or config.name.startswith("hf-hub:"):
        _go_offline_if_unreachable()
    try:
        return timm.create_model(
            config.name, pretrained=pretrained, num_classes=num_classes, **args
        )
    except OSError as error:
        raise _no_download(config.name) from error
    except RuntimeError as error:
        if "No pretrained weights exist" in str(error):
            raise _no_weights(config.name) from error
        raise ModelError(f"found {config.name!r}: {error}", key="model.name") from error
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        raise ModelError(
            f"{config.name} cannot be built with {dict(args)}: {error}", key="model.kwargs"
        ) from error


def _check_name(name: str) -> None:
    if name.startswith("hf-hub:"):
        return
    if name.startswith("local-dir:"):
        _folder_config(_folder(name))
        return
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        # Without underscores: torchvision writes mobilenet_v2, timm mobilenetv2_100.
        plain = {n.replace("_", ""): n for n in reversed(known)}
        close = difflib.get_close_matches(architecture.replace("_", "").lower(), plain, 1, 0.5)
        hint = f"did you mean {plain[close[0]]}? " if close else ""
        raise ModelError(
            f"found {name!r}, expected a name that timm knows",
            hint=hint + "`mnft models '*PATTERN*'` lists them",
            key="model.name",
        )
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        close = difflib.get_close_matches(tag, tags, 1, cutoff=0.0)
        raise ModelError(
            f"found {name!r}, but {architecture} has no weights named {tag!r}",
            hint=f"did you mean {architecture}.{close[0]}?" if close else None,
            key="model.name",
        )


def _folder(name: str) -> Path:
    return Path(name.removeprefix("local-dir:"))


def _folder_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged: {error}"
        raise ModelError(
            f"{folder} is not a model folder: config.json {reason}",
            hint="a model folder holds config.json and model.safetensors, as runs/NAME/best does",
            key="model.name",
        ) from error
    if not isinstance(content, dict) or "architecture" not in content:
        raise ModelError(f"{path}: expected an `architecture`", key="model.name")
    return content


def _go_offline_if_unreachable() -> None:
    """Spare the user 45 seconds of retries where there is no internet; the cache is still used."""
    proxies = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    if hub.HF_HUB_OFFLINE or any(os.environ.get(name) for name in proxies):
        return
    address = urlsplit(hub.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname, port), timeout=_HUB_TIMEOUT_S).close()
    except OSError:
        hub.HF_HUB_OFFLINE = True


def _no_download(name: str) -> ModelError:
    cfg = None if ":" in name else timm.get_pretrained_cfg(name, allow_unregistered=True)
    where = cfg.hf_hub_id if cfg is not None and cfg.hf_hub_id else name.removeprefix("hf-hub:")
    return ModelError(
        f"the pretrained weights of {name} are not in the cache and cannot be downloaded",
        hint=f"where there is internet, download config.json and model.safetensors of {where} "
        "from the Hugging Face hub into a folder, bring it here, and set "
        "model.name: local-dir:FOLDER (or model.pretrained: FILE); "
        "model.pretrained: false starts from random weights",
        key="model.pretrained",
    )


def _no_weights(name: str) -> ModelError:
    family = name.partition(".")[0].rstrip("0123456789")
    others = timm.list_pretrained(f"{family}*")[:4]
    hint = "set model.pretrained to false (random weights) or to the path of a weights file"
    if others:
        hint += f", or take one that has weights: {', '.join(others)}"
    return ModelError(f"there are no pretrained weights of {name}", hint=hint, key="model.name")


def _tagged_name(model: Any) -> str:
    cfg = model.pretrained_cfg
    return ".".join(part for part in (cfg["architecture"], cfg.get("tag")) if part)


def _quieten_head(model: nn.Module) -> None:
    """Give a new head on pretrained features small weights.

    timm draws the head of its EfficientNets and MobileNets from +-1/sqrt(num_classes): with 1,280
    features the first losses are several times ln(num_classes), and their gradients damage the
    pretrained layers below before the head has learned anything.
    """
    for name in classifier_names(model):
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _resolve_preprocessing(
    model: Any, in_chans: int, img_size: int | None, overrides: Mapping[str, Any]
) -> Preprocessing:
    args = {name: value for name, value in overrides.items() if value is not None}
    _, height, width = model.pretrained_cfg["input_size"]
    size = (img_size, img_size) if img_size else (height, width)
    args["input_size"] = (in_chans, *size)
    try:
        return Preprocessing.from_timm(timm.data.resolve_data_config(args, model=model))
    except AssertionError as error:
        raise ModelError(f"data.mean and data.std need {in_chans} or 1 values") from error
