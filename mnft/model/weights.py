"""Start a model from a weights file: read it safely, fit it to the model, then load all or nothing.

Reads safetensors and torch files (tensors only, never pickled objects) with timm's names, with
the names of an original release that timm converts, and with torchvision's MobileNet names.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv, clean_state_dict
from torch import Tensor, nn

from mnft.errors import ModelError, first_line
from mnft.model.torchvision_names import StateDict, recognise_torchvision, rename_torchvision

# Keys under which training scripts keep the weights; averaged weights first, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
# What torch's and safetensors' readers were seen to raise on damaged files.
_DAMAGED = (
    SafetensorError,
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
)
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What `load_weights` did.

    `loaded` counts tensors. `head_replaced` says that the model keeps its own fresh classifier.
    `source_format` is "timm", "original" (converted by timm), "torchvision-mobilenetv2" or
    "torchvision-mobilenetv3". `model_args` must be saved with the model: with them
    `timm.create_model` builds the network that these weights belong to.
    """

    loaded: int
    head_replaced: bool
    source_format: str
    model_args: dict[str, object] = field(default_factory=dict)


def load_weights(
    model: nn.Module,
    path: Path,
    *,
    classifier: str | tuple[str, ...] | None,
    keep_head: bool = True,
) -> WeightsReport:
    """Load a weights file into a timm model, or change nothing.

    The classifier is left as it is where the file has none or one of another shape, and where its
    outputs mean other classes (`keep_head` false, as shapes cannot tell). The first
    convolution is adapted from three to another number of input channels (`adapt_input_conv`).
    Position embeddings and names of original releases are converted by timm's own
    `checkpoint_filter_fn`. Every other difference is an error, found before anything is loaded.
    torchvision's MobileNetV3 was trained with a BatchNorm epsilon of 1e-3: it is set on the model
    and given back in `model_args`.

    Args:
        model: a timm model.
        path: a .safetensors file, or a torch file of tensors; `state_dict`, `model` and the like
            are unwrapped, prefixes of DataParallel and torch.compile are dropped.
        classifier: names of the classifier's modules, as in `classifier_names`; None or "" when
            every key must fit.
        keep_head: take the file's classifier where its shape fits.

    Raises:
        ModelError: the file cannot be read, or does not fit the model.
    """
    state = _read_state_dict(path)
    head = _as_names(classifier)
    layout = recognise_torchvision(model, state)
    source_format, model_args = "timm", {}
    if layout is not None:
        state = rename_torchvision(model, state, layout, path)
        source_format, model_args = layout.name, dict(layout.model_args)
    fit = _compute_fit(model, state, head, keep_head)
    if fit.num_problems:
        converted = _compute_fit(model, _filter_checkpoint(model, state), head, keep_head)
        if converted.num_problems:
            raise _describe_misfit(model, state, fit, path)
        fit, source_format = converted, "original"
    model.load_state_dict(fit.tensors, strict=False)
    if "bn_eps" in model_args:
        _set_bn_eps(model, model_args["bn_eps"])
    return WeightsReport(len(fit.tensors), fit.head_replaced, source_format, dict(model_args))


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Give the names of a timm model's classifier modules; most have one, a few two or none."""
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    return _as_names(cfg.get("classifier"))


def _as_names(names: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    if isinstance(names, str):
        names = (names,)
    return tuple(name for name in names or () if name)


def _read_state_dict(path: Path) -> StateDict:
    if path.is_dir():
        raise ModelError(
            f"{path} is a folder, not a weights file",
            hint=f"name the file inside it, or use the folder as the model: local-dir:{path}",
        )
    if not path.exists():
        raise ModelError(f"weights file {path} does not exist", hint="check the path")
    try:
        checkpoint = _read_checkpoint(path)
    except _DAMAGED as error:
        raise _describe_unreadable(path, error) from error
    return _unwrap(checkpoint, path)


def _read_checkpoint(path: Path) -> Any:
    # The content decides, not the suffix: safetensors is a length of 8 bytes, then JSON.
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{" or path.suffix == ".safetensors"
    if is_safetensors:
        return load_file(path)
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        # timm's training script saves its Namespace; torch warns about damaged files, then raises.
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _describe_unreadable(path: Path, error: Exception) -> ModelError:
    objects = re.search(r"GLOBAL ([\w.]+)", str(error))
    if objects:
        return ModelError(
            f"{path} holds Python objects ({objects[1]}); only files of tensors are loaded, "
            "as objects could run code",
            hint="where the model was saved, save its tensors: "
            'torch.save(model.state_dict(), "weights.pth")',
        )
    reason = first_line(error, limit=200)
    if isinstance(error, pickle.UnpicklingError):
        reason = "it is damaged or of another format"  # torch's text advises to load it unsafely
    return ModelError(
        f"{path} cannot be read as weights: {reason}",
        hint="a safetensors file or a torch state dict is expected; is the download complete?",
    )


def _unwrap(checkpoint: Any, path: Path) -> StateDict:
    found = type(checkpoint).__name__
    if isinstance(checkpoint, Mapping):
        for key in _WRAPPERS:
            if isinstance(checkpoint.get(key), Mapping):
                checkpoint = checkpoint[key]
                break
        named = ((str(key), value) for key, value in checkpoint.items())
        tensors = {key: value for key, value in named if isinstance(value, Tensor)}
        if tensors:
            cleaned: StateDict = clean_state_dict(tensors)
            return cleaned
        found = f"entries {_shorten([str(key) for key in checkpoint])}" if checkpoint else "nothing"
    raise ModelError(
        f"{path} holds no weights; found: {found}",
        hint=f"a state dict is expected, bare or under one of {', '.join(_WRAPPERS)}",
    )


@dataclass(frozen=True, slots=True)
class _Fit:
    """What of a state dict goes into a model, and what does not fit."""

    tensors: StateDict
    head_replaced: bool
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

    @property
    def num_problems(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)


def _compute_fit(
    model: nn.Module, state: StateDict, head: tuple[str, ...], keep_head: bool
) -> _Fit:
    own: StateDict = model.state_dict()
    given = _adapt_first_conv(model, state, own)
    prefixes = tuple(f"{name}." for name in head)
    head_keys = {key for key in own if prefixes and key.startswith(prefixes)}
    head_fits = all(
        keep_head and key in given and given[key].shape == own[key].shape for key in head_keys
    )
    wanted = [key for key in own if head_fits or key not in head_keys]
    shared = [key for key in wanted if key in given]
    return _Fit(
        tensors={key: given[key] for key in shared},
        head_replaced=not head_fits,
        # Files from before PyTorch 0.4.1 have no num_batches_tracked; timm's models do not use it.
        missing=[k for k in wanted if k not in given and not k.endswith(".num_batches_tracked")],
        unexpected=[
            key for key in given if key not in own and not (prefixes and key.startswith(prefixes))
        ],
        misshaped=[
            f"{key} {tuple(given[key].shape)}, not {tuple(own[key].shape)}"
            for key in shared
            if given[key].shape != own[key].shape
        ],
    )


def _adapt_first_conv(model: nn.Module, state: StateDict, own: StateDict) -> StateDict:
    adapted = dict(state)
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    for name in _as_names(cfg.get("first_conv")):
        key = f"{name}.weight"
        if key not in state or key not in own or state[key].ndim != 4 or own[key].ndim != 4:
            continue
        in_chans = own[key].shape[1]
        if state[key].shape[1] == 3 != in_chans:  # timm adapts from three channels
            adapted[key] = adapt_input_conv(in_chans, state[key])
    return adapted


def _filter_checkpoint(model: nn.Module, state: StateDict) -> StateDict:
    """Let the module that defines a timm model convert a state dict, where it can."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        converted: StateDict = convert(dict(state), model)
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError):
        # Made for known releases, it fails in its own ways on anything else: then nothing changes.
        return state
    return converted


def _describe_misfit(model: nn.Module, state: StateDict, fit: _Fit, path: Path) -> ModelError:
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    name = cfg.get("architecture") or type(model).__name__
    kinds = {
        "missing": fit.missing,
        "unexpected": fit.unexpected,
        "of another shape": fit.misshaped,
    }
    found = "; ".join(
        f"{len(keys)} {kind} ({_shorten(keys)})" for kind, keys in kinds.items() if keys
    )
    hint = "nothing was loaded; "
    if _is_grey_for_colour(model, state):
        hint += "its first convolution takes grey images: set model.in_chans: 1"
    elif len(fit.misshaped) == len(fit.tensors):
        hint += "the file belongs to another architecture"
    else:
        hint += "check the architecture, its width and img_size, or start from other weights"
    return ModelError(f"{path} does not fit {name}: {found}", hint=hint)


def _is_grey_for_colour(model: nn.Module, state: StateDict) -> bool:
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    own: StateDict = model.state_dict()
    keys = [f"{name}.weight" for name in _as_names(cfg.get("first_conv"))]
    return any(
        key in state and key in own and state[key].shape[1:2] == (1,) != own[key].shape[1:2]
        for key in keys
    )


def _shorten(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")


def _set_bn_eps(model: nn.Module, eps: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
