"""Features of a frozen backbone on the disk, beside the stored images that they come from."""

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
from mnft.tasks.base import Features

_LOGGER = logging.getLogger(__name__)
_FORMAT = 1
# Features of more images than this are computed again rather than kept.
_MAX_BYTES = 1 << 30


def compute_key(
    model: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype, contents: Sequence[str]
) -> str:
    """A hash of all that features depend on: weights, architecture, input, arithmetic, images.

    Args:
        model: whose classifier does not count.
        preprocessing: of its input.
        dtype: arithmetic of the backbone.
        contents: device, then content and class of each image, in order.
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
    """Features from the cache, or computed and put there.

    Args:
        folder: where; None computes without a cache.
        key: gives the features' key.
        compute: by all processes together.
        ranks: of which the main one reads and writes.
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
        _LOGGER.warning("%s: damaged, computed again: %s", path, error)
        return None


def _save(features: Features, path: Path) -> None:
    try:
        with files.atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, values=features.values.numpy(), targets=features.targets.numpy())
    except OSError as error:  # a cache that cannot be written is none
        _LOGGER.info("%s: not kept: %s", path, error)
