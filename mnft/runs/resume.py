"""Which run `--resume` means, what may change in it, and what an interrupted one has saved."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnft.config import describe
from mnft.config.edge import AFTER_TRAINING
from mnft.config.load import load_config
from mnft.config.schema import Config
from mnft.config.source import dump_inline
from mnft.errors import ConfigError, Interrupted, MnftError, ModelError
from mnft.runs.folder import RunFolder, list_runs, open_run, read_log
from mnft.text import count
from mnft.training.state import read_saved_progress

# A resumed run may differ from the one that was interrupted in these keys only.
RESUMABLE = (
    "data.workers",
    "eval.batch_size",
    "run.snapshot_minutes",
    "run.tensorboard",
    "train.device",
    "train.early_stopping",
    "train.epochs",
    "train.threads",
)
_log = logging.getLogger(__name__)


def find_run(
    config_path: Path | None, overrides: Sequence[str], resume: Path | None
) -> tuple[RunFolder | None, Sequence[str]]:
    """The run to resume, and the values to change in its config; None where a new one begins.

    Args:
        config_path: the config of the command line; None with the path of a run.
        overrides: values of `--set`.
        resume: a run, or AUTO for the newest one of the config.

    Raises:
        MnftError: there is no such run, or the config cannot be read.
    """
    if resume is None:
        return None, overrides
    if config_path is None:
        return open_run(resume), overrides
    config, source = load_config(config_path, overrides)
    for run in list_runs(Path(config.run.dir).expanduser()):
        before = _read_written(run)
        if before is not None and not find_differences(before, config) - set(RESUMABLE):
            written = [key for key in RESUMABLE if tuple(key.split(".")) in source.places]
            return run, [f"{key}={dump_inline(_value(config, key))}" for key in written]
    return None, overrides


def check_resumable(config: Config, run: RunFolder) -> None:
    """Refuse changes that would make another run of it.

    Raises:
        ConfigError: naming the keys.
    """
    before, _ = load_config(run.config)
    _check_not_edited(before, run)
    done, _ = read_saved_progress(run.resume)
    if config.train.epochs < done:
        raise ConfigError(
            f"found {config.train.epochs}, expected at least the {count(done, 'epoch')} done",
            key="train.epochs",
        )
    if refused := sorted(find_differences(before, config) - set(RESUMABLE)):
        raise ConfigError(
            f"{', '.join(refused)} cannot change when a run is resumed",
            hint=f"only {', '.join(RESUMABLE)} can; start a new run for other values",
        )


def check_same_teachers(run: RunFolder, facts: Mapping[str, Any]) -> None:
    """Refuse teachers whose weights are not those that the run began with.

    Args:
        run: the run that is resumed.
        facts: what was found of the training now.

    Raises:
        ModelError: naming those that changed.
    """
    begun = next((entry for entry in read_log(run) if "teachers_sha256" in entry), facts)
    if begun["teachers_sha256"] != facts["teachers_sha256"]:
        raise ModelError(
            f"the weights of a teacher have changed since the run began: found {facts['teacher']}",
            hint="put the teacher's model back as it was, or start a new run",
            key="distill.teacher",
        )


def _check_not_edited(config: Config, run: RunFolder) -> None:
    """Refuse a config.yaml that says something else than what the run was last trained with."""
    logged = [entry["config"] for entry in read_log(run) if isinstance(entry.get("config"), dict)]
    if not logged:  # of an older version
        return
    edited = []
    for key_path in describe.key_paths():
        section, _, key = key_path.partition(".")
        values = logged[-1].get(section, {}) if key else logged[-1]
        free = section in AFTER_TRAINING or key_path in RESUMABLE
        if not free and (key or section) in values:
            now, then = _value(config, key_path), values[key or section]
            if now != then:
                edited.append(f"  {key_path}: {dump_inline(now)}, was {dump_inline(then)}")
    if edited:
        raise ConfigError(
            f"{run.config} was changed since the run was trained:\n" + "\n".join(edited),
            hint=f"put the values back; only {', '.join(RESUMABLE)} can change when a run is "
            "resumed, and a new run takes any values",
        )


def describe_stop(error: BaseException, run: RunFolder) -> Interrupted:
    """Say of a Ctrl-C or a signal what is saved, and how to resume the run."""
    by, code = (error.by, error.exit_code) if isinstance(error, Interrupted) else ("Ctrl-C", 130)
    # The state on the disk counts: the signal may have come while an epoch was saved.
    done, partial = read_saved_progress(run.resume)
    within = f" and {count(partial, 'update')} of the next" if partial else ""
    message = f"by {by} after {count(done, 'epoch')}{within}"
    command = f"resume with: mnft train --resume {run.path}"
    return Interrupted(code, f"{message}; {command}", by=by)


def find_differences(a: Config, b: Config) -> set[str]:
    """Keys of the training whose values differ."""
    keys = {key for key in describe.key_paths() if key.partition(".")[0] not in AFTER_TRAINING}
    return {key for key in keys if _value(a, key) != _value(b, key)}


def _value(config: Config, key_path: str) -> Any:
    value: Any = config
    for key in key_path.split("."):
        value = getattr(value, key)
    return value


def _read_written(run: RunFolder) -> Config | None:
    """What the user wrote for a run; None for runs of older versions."""
    try:
        return load_config(run.written)[0] if run.written.is_file() else None
    except MnftError as error:
        _log.info("%s: passed over: %s", run.path, error.message)
        return None
