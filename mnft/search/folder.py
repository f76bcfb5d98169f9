"""The folder of a search: its names, and claims that end with the process that holds them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mnft import files
from mnft.errors import CheckpointError, ConfigError
from mnft.runs.lock import RunLock, waiting

RECORD = "search.json"


@dataclass(frozen=True, slots=True)
class SearchFolder:
    """Where the parts of a search are."""

    path: Path

    @property
    def base(self) -> Path:
        """The config that all trials start from."""
        return self.path / "base.yaml"

    @property
    def journal(self) -> Path:
        """Optuna's journal, where no other storage is named."""
        return self.path / "journal.log"

    @property
    def table(self) -> Path:
        """All trials, one row each."""
        return self.path / "trials.csv"

    @property
    def best(self) -> Path:
        """The config of the named model."""
        return self.path / "best.yaml"

    @property
    def result(self) -> Path:
        """What the search found."""
        return self.path / "result.json"

    @property
    def front(self) -> Path:
        """The plot of the Pareto front."""
        return self.path / "pareto.png"

    def trial(self, number: int, seed: int = 0) -> Path:
        """The run folder of a trial, or of one of its further seeds (from 1)."""
        return self.path / (f"trial-{number:04d}" + (f"-seed-{seed}" if seed else ""))

    def read_id(self) -> str:
        """The name of this folder in the storage, which several folders may share."""
        return str(json.loads((self.path / RECORD).read_text(encoding="utf-8"))["id"])

    def claim(self, name: str) -> RunLock | None:
        """Claim a piece of work for this process, or None if another one has it."""
        lock = RunLock(self._open_claim(name))
        try:
            lock.acquire()
        except CheckpointError:
            return None
        return lock

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Hold a claim inside the block, after whoever holds it now."""
        with waiting(self._open_claim(name)):
            yield

    def _open_claim(self, name: str) -> Path:
        path = self.path / ".claims" / name
        with files.naming(path):
            path.parent.mkdir(exist_ok=True)
            path.touch()
        return path


def make_folder(path: Path, *, must_exist: bool) -> SearchFolder:
    """Open the folder of a search, or make it.

    Args:
        path: the folder.
        must_exist: whether to refuse to make one.

    Raises:
        ConfigError: it is not there although it must be, is something else, or cannot be made.
    """
    folder = SearchFolder(path)
    if must_exist and not (path / RECORD).is_file():
        raise ConfigError(
            f"{path}: no such search", hint="begin it without --join", key="search.name"
        )
    if (path / RECORD).is_file():
        return folder
    if path.is_dir() and any(entry.name != ".claims" for entry in path.iterdir()):
        raise ConfigError(
            f"{path} exists and is not a search",
            hint="choose another name: --set search.name=NAME",
            key="search.name",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        with folder.waiting("begin"):
            if not (path / RECORD).is_file():
                files.write_json(path / RECORD, {"id": uuid.uuid4().hex})
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"{path} cannot be made: {error.strerror}", key="search.dir") from error
    return folder
