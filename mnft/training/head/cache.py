"""A cache on disk for the features of a frozen backbone, beside the stored images."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mnft import files
from mnft.device.ranks.distributed import Ranks, broadcast
from mnft.model.linear_head import find_linear_head
from mnft.preprocessing import Preprocessing
from mnft.tasks.outputs import Features

_log = logging.getLogger(__name__)
_FORMAT = 2  # 1 saw the middle of images, whatever the crop mode
# Larger features are computed again rather than kept.
_MAX_BYTES = 1 << 30


def compute_key(
    model: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype, contents: Sequence[str]
) -> str:
    """Hash all that the features depend on: weights, architecture, input, precision and images.

    Args:
        model: the model, whose classifier does not count.
        preprocessing: preprocessing of its input.
        dtype: precision of the backbone.
        contents: the device, then content and label of each image, in order.
    """
    digest = hashlib.sha256(f"{_FORMAT} {torch.__version__} {dtype} {preprocessing}".encode())
    head = find_linear_head(model)
    own = {id(parameter) for parameter in head.parameters()} if head else set()
    digest.update(str(model).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in own:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update("\n".join(contents).encode())
    return digest.hexdigest()[:32]


def cached(
    folder: Path | None, key: Callable[[], str], compute: Callable[[], Features], ranks: Ranks
) -> Features:
    """Load features from the cache, or compute them and put them there.

    Args:
        folder: folder of the cache; None computes without a cache.
        key: computes the features' key.
        compute: computes the features, in all processes together.
        ranks: processes; the main one reads and writes the cache.
    """
    if folder is None:
        return compute()
    path = folder / f"features-{key()}.npz"
    found = broadcast(ranks, lambda: _load(path))
    if found is not None:
        return found
    features = compute()
    if ranks.is_main and features.values.nbytes < _MAX_BYTES:
        _save(features, path)
    return features


def _load(path: Path) -> Features | None:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            values = torch.from_numpy(content["values"])
            return Features(values, torch.from_numpy(content["targets"]))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        _log.warning("%s: damaged, computed again: %s", path, error)
        return None


def _save(features: Features, path: Path) -> None:
    try:
        with files.atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, values=features.values.numpy(), targets=features.targets.numpy())
    except OSError as error:  # work without the cache if it cannot be written
        _log.info("%s: not kept: %s", path, error)
