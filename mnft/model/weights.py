"""Load a weights file into a model: read it safely, check that it fits, then load all or nothing.

It reads safetensors and torch files (tensors only, never pickled objects). The tensors may have
timm's names, the names of an original release that timm converts, or torchvision's MobileNet names.
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
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv, clean_state_dict
from torch import Tensor, nn

from mnft.errors import ModelError, first_line
from mnft.model.torchvision_names import StateDict, recognise_torchvision, rename_torchvision

# Keys under which training scripts keep the weights. Averaged weights come first, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
# Exceptions that the readers of torch and safetensors have raised on damaged files.
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
_SHOWN = 4  # keys named in a message


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What `load_weights` did.

    Attributes:
        loaded: number of tensors that were loaded.
        head_replaced: whether the model keeps its own, newly initialised classifier.
        source_format: "timm", "original" (converted by timm), "torchvision-mobilenetv2" or
            "torchvision-mobilenetv3".
        model_args: keyword arguments that `timm.create_model` needs to build the network that
            these weights belong to; they must be saved with the model.
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
    """Load a weights file into a timm model; where the file does not fit, change nothing.

    Two parts may differ. The model keeps its own classifier if the file has none, has one of
    another shape, or has one for other classes (`keep_head` is false, since shapes cannot tell).
    The first convolution is adapted if the file has three input channels and the model another
    number (timm's `adapt_input_conv`). Position embeddings and the names of original releases are
    converted by timm's `checkpoint_filter_fn`. Every other difference is an error.

    torchvision trained MobileNetV3 with a BatchNorm epsilon of 1e-3. For such weights it is set on
    the model and returned in `model_args`.

    Args:
        model: a timm model; changed in place.
        path: a .safetensors file, or a torch file of tensors. Tensors under `state_dict`, `model`
            and similar keys are found, and the prefixes of DataParallel and torch.compile dropped.
        classifier: names of the classifier's modules, as `layer_names(model, "classifier")` gives
            them; None or "" if every key must fit.
        keep_head: whether to use the file's classifier if its shape fits.

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
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = model_args["bn_eps"]
    return WeightsReport(len(fit.tensors), fit.head_replaced, source_format, dict(model_args))


def layer_names(model: nn.Module, role: Literal["classifier", "first_conv"]) -> tuple[str, ...]:
    """The names of the modules that have a role in a timm model; most have one, a few two or none.

    Args:
        model: a timm model; its `pretrained_cfg` names the modules.
        role: "classifier", or "first_conv" for the layers that take the image.
    """
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    return _as_names(cfg.get(role))


def _as_names(names: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    if isinstance(names, str):
        names = (names,)
    return tuple(name for name in names or () if name)


def _read_state_dict(path: Path) -> StateDict:
    """Read the tensors of a weights file, without running any code that it may hold."""
    if path.is_dir():
        raise ModelError(
            f"{path} is a folder, not a weights file",
            hint=f"name the file inside it, or use the folder as the model: local-dir:{path}",
        )
    if not path.exists():
        raise ModelError(f"weights file {path} does not exist", hint="check the path")
    try:
        # The content decides, not the extension: safetensors is a length of 8 bytes, then JSON.
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{" or path.suffix == ".safetensors"
        if is_safetensors:
            checkpoint: Any = load_file(path)
        else:
            # timm's training script saves its Namespace. torch warns about damaged files before
            # it raises.
            with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
                warnings.simplefilter("ignore")
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        if objects := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ModelError(
                f"{path} holds Python objects ({objects[1]}); only files of tensors are loaded, "
                "as objects could run code",
                hint="where the model was saved, save its tensors: "
                'torch.save(model.state_dict(), "weights.pth")',
            ) from error
        reason = first_line(error, limit=200)
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged or of another format"  # torch's text advises an unsafe load
        raise ModelError(
            f"{path} cannot be read as weights: {reason}",
            hint="a safetensors file or a torch state dict is expected; is the download complete?",
        ) from error
    return _unwrap(checkpoint, path)


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
    """Which tensors of a state dict a model can load, and which keys do not fit."""

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
    for name in layer_names(model, "first_conv"):
        key = f"{name}.weight"
        if key not in state or key not in own or state[key].ndim != 4 or own[key].ndim != 4:
            continue
        in_chans = own[key].shape[1]
        if state[key].shape[1] == 3 != in_chans:  # timm adapts from three channels
            adapted[key] = adapt_input_conv(in_chans, state[key])
    return adapted


def _filter_checkpoint(model: nn.Module, state: StateDict) -> StateDict:
    """Let the timm module that defines the model convert a state dict, if it can."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        converted: StateDict = convert(dict(state), model)
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError):
        # It is written for known releases and fails in many ways on anything else.
        return state
    return converted


def _describe_misfit(model: nn.Module, state: StateDict, fit: _Fit, path: Path) -> ModelError:
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    name = cfg.get("architecture") or type(model).__name__
    own: StateDict = model.state_dict()
    kinds = {
        "missing": fit.missing,
        "unexpected": fit.unexpected,
        "of another shape": fit.misshaped,
    }
    found = "; ".join(
        f"{len(keys)} {kind} ({_shorten(keys)})" for kind, keys in kinds.items() if keys
    )
    first_convs = [f"{name}.weight" for name in layer_names(model, "first_conv")]
    is_grey = any(
        key in state and key in own and state[key].shape[1:2] == (1,) != own[key].shape[1:2]
        for key in first_convs
    )
    hint = "nothing was loaded; "
    if is_grey:
        hint += "its first convolution takes grey images: set model.in_chans: 1"
    elif len(fit.misshaped) == len(fit.tensors):
        hint += "the file belongs to another architecture"
    else:
        hint += "check the architecture, its width and img_size, or start from other weights"
    return ModelError(f"{path} does not fit {name}: {found}", hint=hint)


def _shorten(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
