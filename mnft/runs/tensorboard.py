"""TensorBoard event files, where the `log` extra is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from mnft.config.schema import RunConfig
from mnft.errors import ConfigError


def open_writer(folder: Path, config: RunConfig) -> Any:
    """A SummaryWriter for the run folder, or None where it is not wanted or not installed.

    Raises:
        ConfigError: wanted explicitly and not installed.
    """
    installed = importlib.util.find_spec("tensorboard") is not None
    if config.tensorboard is False or (config.tensorboard is None and not installed):
        return None
    if not installed:
        raise ConfigError(
            "TensorBoard is not installed",
            hint="pip install 'mnft[log]'",
            key="run.tensorboard",
        )
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
