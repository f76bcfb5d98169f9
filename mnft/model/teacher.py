"""What `distill.teacher` names: a run, a model folder, or a pretrained model by its name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm

from mnft import files
from mnft.config.schema import ModelConfig
from mnft.errors import MnftError, ModelError
from mnft.model.bundle import CONFIG
from mnft.model.sources import check_name, has_pretrained_weights, normalise

_HINT = (
    "a teacher is a run (runs/NAME), a folder with config.json and model.safetensors, or a name "
    "of `mnft models` (or hf-hub:ORG/NAME) whose weights are in the cache or can be downloaded"
)


def check_teacher(teacher: str) -> None:
    """Refuse an unknown teacher, or one without weights, before any work is done.

    Raises:
        ModelError: with a suggestion; blames `distill.teacher`.
    """
    if find_folder(teacher) is not None:
        return
    with blaming_teacher(keep_hint=True):
        check_name(normal_name(teacher))
    if not has_pretrained_weights(teacher):
        raise ModelError(
            f"found {teacher!r}, which has no pretrained weights, so it knows nothing",
            hint=_HINT,
            key="distill.teacher",
        )


def find_folder(teacher: str) -> Path | None:
    """The model folder that is meant; None where it is the name of a model.

    A plain word is a name where timm knows it, as in model.name; `./WORD` is the folder.

    Raises:
        ModelError: it is a path, but no model folder is there.
    """
    named = teacher.startswith("local-dir:")
    if not named:
        known = timm.is_model(normal_name(teacher).partition(".")[0])
        looks_like_path = "/" in teacher or teacher.startswith((".", "~")) or Path(teacher).is_dir()
        if known or ":" in teacher.partition("/")[0] or not looks_like_path:
            return None
    folder = Path(normal_name(teacher if named else f"local-dir:{teacher}")[len("local-dir:") :])
    for place in (folder, folder / "best"):
        files.recover_folder(place)
        if (place / CONFIG).is_file():
            return place
    why, hint = f"no such folder: {folder}", _HINT
    if folder.is_dir():
        run = (folder / "config.yaml").is_file()
        why = f"{folder} is a run that has no best model yet" if run else f"{folder} holds no model"
    elif folder.exists():
        why = f"{folder} is a file"
    elif folder.parent.is_dir():
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        if close := difflib.get_close_matches(folder.name, beside, 1):
            hint = f"did you mean {folder.parent / close[0]}?"
    raise ModelError(why, hint=hint, key="distill.teacher")


def normal_name(name: str) -> str:
    """The name by which timm and `local-dir:` know it, without `~`."""
    return normalise(ModelConfig(name=name)).name


@contextmanager
def blaming_teacher(*, keep_hint: bool = False) -> Iterator[None]:
    """Let errors blame `distill.teacher`; most hints are about model.name and its neighbours."""
    try:
        yield
    except MnftError as error:
        hint = error.hint if keep_hint else _HINT
        raise ModelError(error.message, hint=hint, key="distill.teacher") from error
