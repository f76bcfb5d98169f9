"""The config section about the run folder."""

from __future__ import annotations

from pydantic import field_validator

from mnft.config.section import Positive, Section


class RunConfig(Section):
    """Where a run writes its files, and which."""

    dir: str = "runs"
    """Folder that contains the run folders."""
    name: str | None = None
    """Name of the run folder. Empty: the config file's name, with a number if that exists. It is an
    error if a name given here exists already: nothing is overwritten."""
    snapshot_minutes: Positive | None = 10.0
    """Minutes between saved states within an epoch, so that a long epoch is not lost. Empty: none.
    The state at the end of an epoch is always saved, but epochs shorter than five seconds are saved
    several at a time. Runs with several processes save only whole epochs."""
    tensorboard: bool | None = None
    """Write TensorBoard event files. Empty: if the `log` extra is installed."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and (not value or value in {".", ".."} or "/" in value):
            raise ValueError(f"found {value!r}, expected a folder name without slashes")
        return value
