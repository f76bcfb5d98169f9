"""The start of a command: refuse at once what is wrong, before the seconds of importing torch."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from mnft.errors import CheckpointError, ConfigError, MnftError

AUTO = Path("auto")
SPLITS = ("train", "val", "test")


@contextmanager
def starting(
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    checkpoints: Sequence[Path] = (),
    images: Path | None = None,
    needs_teacher: bool = False,
) -> Iterator[None]:
    """Refuse what is wrong at first sight; inside the block a command is imported, with a spinner.

    The commands check the same themselves, and more: this only saves the user's time.

    Args:
        config: a YAML config of a training.
        overrides: values of `--set`, for that config or the one of the first checkpoint's run.
        checkpoints: runs, model folders or exported files, which must be there.
        images: a folder of images, which must be there.
        needs_teacher: whether the config must name a teacher.

    Raises:
        MnftError: something is wrong.
    """
    from mnft import console, files
    from mnft.data.folder import check_root

    with main_rank_reports():
        if images is not None:
            check_root(images)
        if config is not None:
            _check_config(config, overrides, needs_teacher=needs_teacher)
        for checkpoint in checkpoints:
            files.recover_folder(checkpoint)
            if not checkpoint.exists():
                raise CheckpointError(
                    f"{checkpoint} does not exist",
                    hint="name a run (runs/NAME) or a model folder (runs/NAME/best)",
                )
        if checkpoints and config is None:
            _check_overrides(checkpoints[0], overrides)
    with console.loading():
        yield


@contextmanager
def starting_training(
    config: Path | None, overrides: Sequence[str], resume: Path | None
) -> Iterator[None]:
    """As `starting`, for a training that begins with a config or resumes a run.

    Args:
        config: a YAML config.
        overrides: values of `--set`.
        resume: a run, or AUTO for the newest one of the config.

    Raises:
        MnftError: something is wrong.
    """
    with main_rank_reports():
        if resume == AUTO and config is None:
            raise ConfigError(
                "--resume auto needs a config, whose newest run it looks for",
                hint="mnft train configs/digits.yaml --resume auto",
            )
        if resume != AUTO and (config is None) == (resume is None):
            found = "both a config and" if config else "neither a config nor"
            raise ConfigError(
                f"found {found} --resume, expected one of them",
                hint="mnft train configs/digits.yaml, or mnft train --resume runs/digits",
            )
        if config is None and resume is not None:
            if not resume.exists():
                raise CheckpointError(
                    f"{resume} does not exist", hint="runs are the folders that `mnft train` makes"
                )
            _check_overrides(resume, overrides)
    with starting(config=config, overrides=overrides):
        yield


@contextmanager
def starting_search(config: Path, overrides: Sequence[str]) -> Iterator[None]:
    """As `starting`, for a search, which needs a package of its own.

    Args:
        config: a YAML config.
        overrides: values of `--set`.

    Raises:
        MnftError: something is wrong.
    """
    if find_spec("optuna") is None:
        raise ConfigError(
            "mnft search needs optuna, which is not installed", hint="pip install 'mnft[search]'"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        with main_rank_reports():
            raise ConfigError(
                "mnft search trains each model in one process, and starts its workers itself",
                hint="run it without torchrun: mnft search CONFIG --workers N",
            )
    with starting(config=config, overrides=overrides):
        yield


def check_split(name: str | None) -> None:
    """Refuse a `--split` that no data set has.

    Raises:
        ConfigError: it is none of train, val and test.
    """
    if name is not None and name not in SPLITS:
        close = difflib.get_close_matches(name, SPLITS, 1)
        raise ConfigError(
            f"--split: found {name!r}, expected one of {', '.join(SPLITS)}",
            hint=f"did you mean {close[0]}?" if close else None,
        )


@contextmanager
def main_rank_reports() -> Iterator[None]:
    """Of several processes that torchrun has started, let only the main one show an error."""
    try:
        yield
    except MnftError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0":
            raise SystemExit(error.exit_code) from None
        raise


def _check_config(path: Path, overrides: Sequence[str], *, needs_teacher: bool) -> None:
    from mnft.config.load import load_config
    from mnft.data.folder import check_root

    if path.is_fifo() and not needs_teacher:
        return  # it can be read only once: `mnft train <(...)`
    config, source = load_config(path, overrides)
    with source.locating():
        if needs_teacher and config.distill.teacher is None:
            raise ConfigError(
                "found no teacher",
                hint="mnft distill CONFIG --teacher runs/large",
                key="distill.teacher",
            )
        root = Path(config.data.root).expanduser()
        if root.exists() or not config.data.fetch:  # else it will be fetched
            check_root(root, key="data.root")


def _check_overrides(path: Path, overrides: Sequence[str]) -> None:
    """Refuse overrides that the config of a run does not take; `path` is the run, or in it."""
    from mnft.config.load import load_config

    for run in (path, path.parent):
        if overrides and (run / "config.yaml").is_file() and (run / "split.json").is_file():
            load_config(run / "config.yaml", overrides)
            return
