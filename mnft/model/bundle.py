"""The model folder, which plain timm opens: weights, timm's config.json and mnft's record."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import timm.data
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import mnft
from mnft import files
from mnft.errors import CheckpointError, ModelError
from mnft.model.pruned import MARK, is_pruned, load_pruned
from mnft.preprocessing import PREPROCESSING_KEYS, Preprocessing

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
RECORD = "mnft.json"
# Exceptions that timm and safetensors have raised on damaged weights and configs.
_DAMAGED = (
    SafetensorError,
    RuntimeError,
    OSError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Everything that belongs to a model except its weights.

    Attributes:
        architecture: timm's name of the architecture.
        model_args: keyword arguments of timm.create_model, except the number of outputs.
        preprocessing: how an image becomes the model's input.
        labels: names of the outputs, in their order.
        pretrained_cfg: timm's description of the model that this one started from.
        pruned: whether the model has fewer channels than its architecture.
        task: name of the task that the outputs mean something to.
        settings: what the task keeps with the model, such as thresholds; JSON values.
    """

    architecture: str
    model_args: Mapping[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    pretrained_cfg: Mapping[str, Any]
    pruned: bool = False
    task: str = "classify"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened model folder; the model is on the CPU, in evaluation mode."""

    folder: Path
    model: nn.Module
    architecture: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    record: Mapping[str, Any]
    task: str = "classify"
    settings: Mapping[str, Any] = field(default_factory=dict)


def save_bundle(
    folder: Path, state: Mapping[str, Tensor], card: ModelCard, record: Mapping[str, Any]
) -> None:
    """Write a model folder, all of it or nothing.

    Args:
        folder: where to write the folder; an older one is replaced.
        state: the model's state dict, on any device.
        card: the rest of the model; it becomes config.json.
        record: mnft's own facts, such as the epoch and its metrics. They become mnft.json, together
            with mnft's version and the SHA-256 of the weights and of the parts of config.json.
    """
    kept = ("fixed_input_size", "pool_size", "first_conv", "classifier", "license")
    inherited = {k: card.pretrained_cfg[k] for k in kept if card.pretrained_cfg.get(k) is not None}
    own: dict[str, Any] = dict(MARK) if card.pruned else {}
    if card.task != "classify":  # which is what timm takes a folder for that says nothing
        own["task"] = card.task
    if card.settings:
        own["settings"] = dict(card.settings)
    config = {
        "architecture": card.architecture,
        "num_classes": len(card.labels),
        "label_names": list(card.labels),
        "model_args": dict(card.model_args),
        "pretrained_cfg": inherited
        | {"num_classes": len(card.labels)}
        | card.preprocessing.as_pretrained_cfg(),
        **({"mnft": own} if own else {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with files.atomic_folder(folder) as temporary:
        try:
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:  # also raised for a full disk, instead of an OSError
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number), str(folder / WEIGHTS)) from error
        files.write_json(temporary / CONFIG, config)
        sha256 = hashlib.sha256((temporary / WEIGHTS).read_bytes()).hexdigest()
        head = {
            "mnft_version": mnft.__version__,
            "sha256": sha256,
            "config_sha256": _sum_config(config),
        }
        files.write_json(temporary / RECORD, head | dict(record))


def replace_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write what the task keeps with a model anew, all of it or nothing; the weights stay.

    Args:
        folder: a model folder that `load_bundle` opens.
        settings: what `ModelCard.settings` says.
    """
    config, record = _read_json(folder / CONFIG), {}
    if (folder / RECORD).is_file():
        record = _read_json(folder / RECORD)
    own = dict(config.pop("mnft", None) or {})
    own |= {"settings": dict(settings)}
    if not settings:
        del own["settings"]
    config |= {"mnft": own} if own else {}
    with files.atomic_folder(folder) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
        files.write_json(temporary / CONFIG, config)
        if "config_sha256" in record:
            sums = {"config_sha256": _sum_config(config)}
            files.write_json(temporary / RECORD, record | sums)


def load_bundle(folder: Path) -> Bundle:
    """Open a model folder.

    Raises:
        CheckpointError: it is not a model folder, or it is damaged.
    """
    files.recover_folder(folder)
    config = _read_json(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: {WEIGHTS} is missing")
    names = config.get("label_names")
    labels = tuple(names) if isinstance(names, list) else ()
    named = names and all(isinstance(name, str) for name in labels)
    if not named or len(labels) != config.get("num_classes"):
        raise CheckpointError(
            f"{folder / CONFIG}: no label_names for its {config.get('num_classes')} outputs",
            hint="folders that mnft trains have them; to start from other weights, give the "
            "folder to `mnft train` as model.name: local-dir:FOLDER",
        )
    record = _read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    if (expected := record.get("sha256")) is not None:
        with (folder / WEIGHTS).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            raise CheckpointError(
                f"{folder / WEIGHTS}: damaged: it is not what was written",
                hint=f"where it was changed on purpose, take sha256 out of {folder / RECORD}",
            )
    _check_config(folder, config, record)
    try:
        model = _create(folder, pruned=is_pruned(config))
        preprocessing = Preprocessing.from_timm(timm.data.resolve_model_data_config(model))
    except (*_DAMAGED, ModelError) as error:
        reason = str(error) or "timm refuses its config.json"
        raise CheckpointError(f"{folder}: cannot be loaded: {reason}") from error
    own = config.get("mnft") or {}
    return Bundle(
        folder=folder,
        model=model.eval(),
        architecture=config["architecture"],
        labels=labels,
        preprocessing=preprocessing,
        record=record,
        task=own.get("task", "classify"),
        settings=own.get("settings", {}),
    )


def _sum_config(config: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of each part of config.json that the meaning of inputs and outputs depends on.

    The values are hashed, not the text: the file may be reformatted, and a licence added.
    """
    cfg = config.get("pretrained_cfg")
    own = cfg if isinstance(cfg, Mapping) else {}
    parts = {
        "label_names": [config.get("num_classes"), config.get("label_names")],
        "architecture": [config.get(key) for key in ("architecture", "model_args", "mnft")],
        "preprocessing": {key: own.get(key) for key in PREPROCESSING_KEYS},
    }
    texts = {name: json.dumps(part, sort_keys=True) for name, part in parts.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _check_config(folder: Path, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Compare config.json with the hashes that were computed when it was written."""
    expected = record.get("config_sha256")
    known = expected if isinstance(expected, Mapping) else {}
    found = _sum_config(config)
    if changed := [name for name in found if known.get(name, found[name]) != found[name]]:
        raise CheckpointError(
            f"{folder / CONFIG}: changed since it was written: {', '.join(changed)}",
            hint="bring back the file; where it was changed on purpose, take config_sha256 out of "
            f"{folder / RECORD}",
        )


def _create(folder: Path, *, pruned: bool) -> nn.Module:
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=not pruned)
    if pruned:
        input_size = timm.data.resolve_model_data_config(model)["input_size"]
        load_pruned(model, folder / WEIGHTS, input_size)
    return model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent}: {path.name} is missing, so it is not a model folder",
            hint="name a run (runs/NAME) or a model folder (runs/NAME/best)",
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content
