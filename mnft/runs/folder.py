"""The run folder: its names, its log, and finding models in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnft import files
from mnft.errors import CheckpointError, ConfigError
from mnft.model.bundle import CONFIG
from mnft.results import EpochResult
from mnft.training.state import has_state


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where the parts of a run are."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def written(self) -> Path:
        """The config as the user wrote it, with `--set` applied."""
        return self.path / "written.yaml"

    @property
    def split(self) -> Path:
        """Which file is in which split."""
        return self.path / "split.json"

    @property
    def log(self) -> Path:
        """One JSON object an event."""
        return self.path / "log.jsonl"

    @property
    def best(self) -> Path:
        """Model folder of the best epoch."""
        return self.path / "best"

    @property
    def last(self) -> Path:
        """Model folder of the last epoch."""
        return self.path / "last"

    @property
    def resume(self) -> Path:
        """The state that a training is resumed from."""
        return self.path / "resume.pt"

    @property
    def curve(self) -> Path:
        """The plot of the training."""
        return self.path / "training_curve.png"

    @property
    def evaluation(self) -> Path:
        """What `mnft eval` writes."""
        return self.path / "eval"


def create_run(
    parent: Path, *, name: str | None, default_name: str, fill: Callable[[RunFolder], None]
) -> RunFolder:
    """Make a new run folder; it is there with what it begins with, or not at all.

    Args:
        parent: `run.dir`.
        name: `run.name`; must not be taken.
        default_name: the name of a run that is given none; -2, -3 and so on make it unique.
        fill: called with the new folder, to write what it begins with.

    Raises:
        ConfigError: the name is taken, or the folder cannot be made.
    """
    make_parent(parent)
    wanted = parent / (name or default_name)
    with ExitStack() as stack:
        try:
            temporary = stack.enter_context(files.temporary_folder(wanted))
        except OSError as error:
            raise ConfigError(
                f"{wanted} cannot be made: {error.strerror}", key="run.name" if name else "run.dir"
            ) from error
        fill(RunFolder(temporary))
        if name is not None:
            if not files.take_name(temporary, wanted):
                raise _taken(wanted)
            return RunFolder(wanted)
        path, number = wanted, 1
        while not files.take_name(temporary, path):
            number += 1
            path = parent / f"{default_name}-{number}"
        return RunFolder(path)


def make_parent(parent: Path) -> None:
    """Make `run.dir`, the folder of all runs.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if parent.is_file() else f"cannot be made: {error.strerror}"
        raise ConfigError(f"{parent} {reason}", key="run.dir") from error


def default_name(config_path: Path) -> str:
    """The name of a run whose config gives none: that of the config file, or of its folder."""
    is_generic = config_path.name == "config.yaml"
    return config_path.resolve().parent.name if is_generic else config_path.stem


def check_name_is_free(parent: Path, name: str | None) -> None:
    """Refuse a `run.name` that is taken, before any work is done.

    Raises:
        ConfigError: it is taken.
    """
    if name is not None and (parent / name).exists():
        raise _taken(parent / name)


def _taken(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} exists already",
        hint=f"choose another name, delete it, or resume it: mnft train --resume {path}",
        key="run.name",
    )


def open_run(path: Path) -> RunFolder:
    """Find the run folder that `path` is, or lies in.

    Raises:
        CheckpointError: there is none.
    """
    for candidate in (path, path.parent):
        run = RunFolder(candidate)
        if run.config.is_file():
            return run
    what = "is not a run folder: config.yaml is missing" if path.exists() else "does not exist"
    raise CheckpointError(f"{path} {what}", hint="runs are the folders that `mnft train` makes")


def list_runs(parent: Path) -> list[RunFolder]:
    """The runs in a folder, the one that was worked on last first."""
    found = {}
    for entry in parent.iterdir() if parent.is_dir() else ():
        run = RunFolder(entry)
        # A temporary folder is none: the process that fills it may be alive.
        if not entry.name.startswith(".") and run.config.is_file():
            found[run] = (run.log if run.log.is_file() else run.config).stat().st_mtime_ns
    return sorted(found, key=lambda run: (-found[run], run.path.name))


def has_progress(run: RunFolder) -> bool:
    """Whether there is something to resume from; a run that was killed early begins again.

    A process saves the first state before it logs the first epoch, so an epoch in the log without
    any state is a loss, and models without both are of a first epoch that was being saved.
    """
    return has_state(run.resume) or any(e.get("event") == "epoch" for e in read_log(run))


def read_log(run: RunFolder) -> list[dict[str, Any]]:
    """The events of log.jsonl, without a line that a crash has cut."""
    return [entry for _, entry in _log_lines(run)]


def remove_leftovers(run: RunFolder) -> None:
    """Remove what a crash left of the files that were being written; only its lock allows that."""
    files.remove_leftovers(
        [run.best, run.last, run.resume, run.log, run.config, run.written, run.split, run.curve],
    )


def find_bundle(path: Path) -> Path:
    """The model folder that `--ckpt` means: a run's best one, or the folder itself.

    Raises:
        CheckpointError: neither.
    """
    for candidate in (path, path / "best"):
        files.recover_folder(candidate)
        if (candidate / CONFIG).is_file():
            return candidate
    if RunFolder(path).config.is_file():
        raise CheckpointError(
            f"{path} has no best model: it has not finished an epoch",
            hint=f"resume it with `mnft train --resume {path}`",
        )
    if path.is_file():
        hint = f"name the folder: {path.parent}"
    else:
        hint = "name a run (runs/NAME) or a model folder (runs/NAME/best)"
    what = "is not a model or run folder" if path.exists() else "does not exist"
    raise CheckpointError(f"{path} {what}", hint=hint)


def log_event(run: RunFolder, event: str, values: Mapping[str, Any]) -> None:
    """Append one line to log.jsonl and flush it to the disk."""
    line = json.dumps({"event": event, **values}, ensure_ascii=False) + "\n"
    with files.naming(run.log), run.log.open("a", encoding="utf-8") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def log_epoch(run: RunFolder, result: EpochResult) -> None:
    """Append the line of a finished epoch, or of interpolation, to log.jsonl."""
    entry = _epoch_line(result)
    log_event(run, entry.pop("event"), entry)


def reconcile_log(run: RunFolder, results: list[EpochResult]) -> None:
    """Make the log's results those of the resume state.

    A crash may come between the writes of an epoch's state and of its log line, or while epochs
    are in the log and not yet saved.
    """
    lines = [_epoch_line(result) for result in results]
    known = {(line["event"], line["epoch"]) for line in lines}
    kept, seen = [], set()
    for line, entry in _log_lines(run):
        if entry.get("event") in {"epoch", "interpolate"}:
            key = entry["event"], entry["epoch"]
            if key not in known:
                continue
            seen.add(key)
        kept.append(line)
    kept += [json.dumps(line) for line in lines if (line["event"], line["epoch"]) not in seen]
    files.write_text(run.log, "".join(line + "\n" for line in kept))


def _log_lines(run: RunFolder) -> Iterator[tuple[str, dict[str, Any]]]:
    # A line that was cut in the middle of a character must not prevent resuming.
    text = run.log.read_text(encoding="utf-8", errors="replace") if run.log.is_file() else ""
    for line in text.split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line that was being written
        if isinstance(entry, dict):
            yield line, entry


def _epoch_line(result: EpochResult) -> dict[str, Any]:
    event = "interpolate" if result.stage == "interpolate" else "epoch"
    return {"event": event, **result.as_record()}
