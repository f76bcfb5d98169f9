"""The teacher of a distillation: find and open what `distill.teacher` names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
import torch

from mnft import files
from mnft.config.schema import DistillConfig, ModelConfig
from mnft.device.machine import Machine
from mnft.errors import MnftError, ModelError
from mnft.model.bundle import CONFIG, load_bundle
from mnft.model.factory import build_model
from mnft.model.freeze import freeze
from mnft.model.sources import (
    check_name,
    has_fixed_input,
    has_pretrained_weights,
    load_source,
    normalise,
    read_label_names,
)
from mnft.tasks.base import Teacher

_HINT = (
    "a teacher is a run (runs/NAME), a folder with config.json and model.safetensors, or a name "
    "of `mnft models` (or hf-hub:ORG/NAME) whose weights are in the cache or can be downloaded"
)


def check_teacher(config: DistillConfig) -> None:
    """Refuse an unknown teacher, or one without weights, before any work is done.

    Raises:
        ModelError: with a suggestion; blames `distill.teacher`.
    """
    assert config.teacher is not None
    if find_folder(config.teacher) is not None:
        return
    with _blaming(keep_hint=True):
        check_name(_normal_name(config.teacher))
    if not has_pretrained_weights(config.teacher):
        raise ModelError(
            f"found {config.teacher!r}, which has no pretrained weights, so it knows nothing",
            hint=_HINT,
            key="distill.teacher",
        )


def load_teacher(
    config: DistillConfig, machine: Machine, *, class_names: tuple[str, ...]
) -> Teacher:
    """Load a run's best model, a model folder or a pretrained model, to learn from it.

    A folder that knows exactly the classes `class_names`, in whatever order, teaches as it is.
    Any other model gets a new head (`Teacher.needs_head`). The random state is left as it was.

    Args:
        config: the `distill` section, with a teacher.
        machine: where the teacher goes.
        class_names: class names of the student, in the order of its outputs.

    Raises:
        ModelError: no such teacher, or one that cannot be loaded; blames `distill.teacher`.
    """
    check_teacher(config)
    assert config.teacher is not None
    folder = find_folder(config.teacher)
    known = read_label_names(folder) if folder else None
    names = tuple(known) if isinstance(known, list) else None
    with _blaming(), torch.random.fork_rng(devices=[]):
        if folder and names and sorted(map(str, names)) == sorted(class_names):
            bundle = load_bundle(folder)
            same = bundle.class_names == class_names
            teacher = Teacher(
                model=bundle.model.requires_grad_(False),
                preprocessing=bundle.preprocessing,
                fixed_input=has_fixed_input(bundle.architecture),
                labels=bundle.class_names,
                order=None if same else tuple(map(bundle.class_names.index, class_names)),
                needs_head=False,
                description=f"{bundle.architecture} of {folder}"
                + ("" if same else ", its classes in another order"),
            )
        else:
            name = f"local-dir:{folder}" if folder else config.teacher
            _, source_args = load_source(_normal_name(name))
            in_chans = source_args.get("in_chans", 3)
            if in_chans not in {1, 3}:
                raise ModelError(f"{name} takes images of {in_chans} channels, expected 1 or 3")
            # Without class names, so that a head whose classes may be other ones is not kept.
            source = ModelConfig(name=name, pretrained=True, in_chans=in_chans)
            built = build_model(source, num_classes=len(class_names))
            freeze(built.model, "backbone")
            teacher = Teacher(
                model=built.model.eval(),
                preprocessing=built.preprocessing,
                fixed_input=has_fixed_input(built.architecture),
                labels=names,
                order=None,
                needs_head=True,
                description=f"{built.architecture}, {built.weights}",
            )
    machine.place(teacher.model)  # in place, as modules move
    return teacher


def find_folder(teacher: str) -> Path | None:
    """The model folder that is meant; None where it is the name of a model.

    A plain word is a name where timm knows it, as in model.name; `./WORD` is the folder.

    Raises:
        ModelError: it is a path, but no model folder is there.
    """
    named = teacher.startswith("local-dir:")
    if not named:
        known = timm.is_model(_normal_name(teacher).partition(".")[0])
        looks_like_path = "/" in teacher or teacher.startswith((".", "~")) or Path(teacher).is_dir()
        if known or ":" in teacher.partition("/")[0] or not looks_like_path:
            return None
    folder = Path(_normal_name(teacher if named else f"local-dir:{teacher}")[len("local-dir:") :])
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


def _normal_name(name: str) -> str:
    return normalise(ModelConfig(name=name)).name


@contextmanager
def _blaming(*, keep_hint: bool = False) -> Iterator[None]:
    """Let errors blame `distill.teacher`; most hints are about model.name and its neighbours."""
    try:
        yield
    except MnftError as error:
        hint = error.hint if keep_hint else _HINT
        raise ModelError(error.message, hint=hint, key="distill.teacher") from error
