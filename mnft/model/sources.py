"""Where a model comes from: timm's names, model folders, the Hugging Face hub, weights files."""

from __future__ import annotations

import difflib
import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
from huggingface_hub import constants as hub
from huggingface_hub import hf_hub_download
from timm.models import get_deprecated_models, load_model_config_from_hf

from mnft.config.schema import ModelConfig
from mnft.errors import ModelError
from mnft.model.pruned import is_pruned

_HUB_TIMEOUT_S = 5
_WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")


def check_name(name: str) -> None:
    """Check that timm knows a model name, or that a `local-dir:` name leads to a model folder.

    Raises:
        ModelError: it does not; the hint suggests a name.
    """
    if name.startswith("hf-hub:"):
        return
    if name.startswith("local-dir:"):
        _folder_config(_folder(name))
        return
    architecture, _, tag = name.partition(".")
    if "/" in name and ":" not in name:
        raise ModelError(
            f"found {name!r}, expected a name that timm knows",
            hint=f"did you mean hf-hub:{name}, or local-dir:{name} for a model folder?",
            key="model.name",
        )
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


def normalise(config: ModelConfig) -> ModelConfig:
    """Expand `~`, and replace names that timm has deprecated by its current ones."""
    name, pretrained = config.name, config.pretrained
    if name.startswith("hf_hub:"):
        name = name.replace("hf_hub:", "hf-hub:", 1)
    elif name.startswith("local-dir:"):
        name = "local-dir:" + _expand(name.removeprefix("local-dir:"))
    else:
        architecture, _, tag = name.partition(".")
        current = get_deprecated_models().get(architecture)
        if current:
            name = f"{current.partition('.')[0]}.{tag}" if tag else current
    if isinstance(pretrained, str):
        pretrained = _expand(pretrained)
    return config.model_copy(update={"name": name, "pretrained": pretrained})


def has_pretrained_weights(name: str) -> bool:
    """Whether there are pretrained weights for a name that `check_model` accepts."""
    name = normalise(ModelConfig(name=name)).name
    if name.startswith("hf-hub:"):
        return True
    if name.startswith("local-dir:"):
        return any((_folder(name) / file).is_file() for file in _WEIGHTS_NAMES)
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(cfg is not None and cfg.has_weights)


def load_source(name: str) -> tuple[str, dict[str, Any]]:
    """Give the architecture that a name means, and the `model_args` of its config.json."""
    architecture, args = name, None
    if name.startswith("local-dir:"):
        config = _folder_config(_folder(name))
        architecture, args = str(config["architecture"]), config.get("model_args")
    elif name.startswith("hf-hub:"):
        go_offline_if_unreachable()
        try:
            _, architecture, args = load_model_config_from_hf(name.removeprefix("hf-hub:"))
        except OSError as error:
            raise no_download(name) from error
        except (ValueError, LookupError, AssertionError) as error:
            raise ModelError(f"found {name!r}: {error}", key="model.name") from error
    return architecture, {k: v for k, v in (args or {}).items() if k != "num_classes"}


def has_fixed_input(architecture: str) -> bool:
    """Whether a model of this architecture is built for one input size, as most ViTs are."""
    cfg = timm.get_pretrained_cfg(architecture.partition(".")[0], allow_unregistered=True)
    return bool(cfg is not None and cfg.fixed_input_size)


def find_weights_file(config: ModelConfig) -> Path | None:
    """The file that mnft loads the weights from; None for timm's own and for random weights.

    For an `hf-hub:` name the file is downloaded first.

    Raises:
        ModelError: the folder has no weights, or the download failed.
    """
    if isinstance(config.pretrained, str):
        return Path(config.pretrained)
    if config.pretrained and config.name.startswith("local-dir:"):
        folder = _folder(config.name)
        for name in _WEIGHTS_NAMES:
            if (folder / name).is_file():
                return folder / name
        raise ModelError(f"{folder} holds no weights, expected model.safetensors", key="model.name")
    if config.pretrained and config.name.startswith("hf-hub:"):
        repo_id, _, revision = config.name.removeprefix("hf-hub:").partition("@")
        failure: OSError | None = None
        for name in _WEIGHTS_NAMES:
            try:
                return Path(hf_hub_download(repo_id, name, revision=revision or None))
            except OSError as error:
                failure = failure or error
        raise no_download(config.name) from failure
    return None


def find_start_folder(config: ModelConfig) -> Path | None:
    """The local folder that weights come from; None for published and for random weights."""
    config = normalise(config)
    if isinstance(config.pretrained, str):
        return Path(config.pretrained).parent
    if config.pretrained and config.name.startswith("local-dir:"):
        return _folder(config.name)
    return None


def read_label_names(folder: Path) -> Any:
    """The class names in a folder's config.json; None if there are none."""
    return _read_config(folder).get("label_names")


def find_pruned(folder: Path) -> Path | None:
    """The weights file of a pruned model folder; None if the folder holds anything else."""
    return folder / "model.safetensors" if is_pruned(_read_config(folder)) else None


def _read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json; a missing or damaged one is taken as empty."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def go_offline_if_unreachable() -> None:
    """Use only the cache if the hub cannot be reached: its retries would take 45 seconds."""
    proxies = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    if hub.HF_HUB_OFFLINE or any(os.environ.get(name) for name in proxies):
        return
    address = urlsplit(hub.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname, port), timeout=_HUB_TIMEOUT_S).close()
    except OSError:
        hub.HF_HUB_OFFLINE = True


def no_download(name: str) -> ModelError:
    """Build the error for weights that are not cached and cannot be downloaded."""
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


def no_weights(name: str) -> ModelError:
    """Build the error for an architecture without pretrained weights in timm."""
    family = name.partition(".")[0].rstrip("0123456789")
    others = timm.list_pretrained(f"{family}*")[:4]
    hint = "set model.pretrained to false (random weights) or to the path of a weights file"
    if others:
        hint += f", or take one that has weights: {', '.join(others)}"
    return ModelError(f"there are no pretrained weights of {name}", hint=hint, key="model.name")


def _expand(path: str) -> str:
    return os.path.expanduser(path)  # noqa: PTH111  (Path.expanduser fails on unknown users)


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
