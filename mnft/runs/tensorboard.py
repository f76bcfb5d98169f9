"""TensorBoard event files, where the `log` extra is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from mnft.config.run import RunConfig
from mnft.errors import ConfigError


def wants_writer(config: RunConfig) -> bool:
    """Whether event files are to be written.

    Raises:
        ConfigError: wanted explicitly and not installed.
    """
    installed = importlib.util.find_spec("tensorboard") is not None
    if config.tensorboard and not installed:
        raise ConfigError(
            "TensorBoard is not installed",
            hint="pip install 'mnft[log]'",
            key="run.tensorboard",
        )
    return installed and config.tensorboard is not False


def open_writer(folder: Path, config: RunConfig) -> Any:
    """A SummaryWriter for the run folder, or None where it is not wanted or not installed."""
    if not wants_writer(config):
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
