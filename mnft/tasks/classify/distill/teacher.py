"""A model to learn the same classes from."""

from __future__ import annotations

import torch

from mnft.config.schema import ModelConfig
from mnft.device.machine import Machine
from mnft.errors import ModelError
from mnft.model.bundle import load_bundle
from mnft.model.factory import build_model
from mnft.model.freeze import freeze
from mnft.model.sources import has_fixed_input, load_source, read_label_names
from mnft.model.teacher import blaming_teacher, check_teacher, find_folder, normal_name
from mnft.tasks.base import Teacher


def load_teacher(
    name: str,
    machine: Machine,
    *,
    class_names: tuple[str, ...],
    task: str = "classify",
) -> Teacher:
    """Load a run's best model, a model folder or a pretrained model, to learn from it.

    A folder that knows exactly the labels `class_names`, in whatever order, teaches as it is.
    Any other model gets a new head (`Teacher.needs_head`). The random state is left as it was.

    Args:
        name: what `distill.teacher` says, or one of its entries.
        machine: where the teacher goes.
        class_names: names of the student's outputs, in their order.
        task: name of the student's task, which a teacher with these labels must have.

    Raises:
        ModelError: no such teacher, one that cannot be loaded, or one of another task; blames
            `distill.teacher`.
    """
    check_teacher(name)
    folder = find_folder(name)
    known = read_label_names(folder) if folder else None
    names = tuple(known) if isinstance(known, list) else None
    with blaming_teacher(), torch.random.fork_rng(devices=[]):
        if folder and names and sorted(map(str, names)) == sorted(class_names):
            bundle = load_bundle(folder)
            if bundle.task != task:
                raise ModelError(f"{folder} has the same labels, but its task is {bundle.task}")
            same = bundle.labels == class_names
            teacher = Teacher(
                model=bundle.model.requires_grad_(False),
                preprocessing=bundle.preprocessing,
                fixed_input=has_fixed_input(bundle.architecture),
                labels=bundle.labels,
                order=None if same else tuple(map(bundle.labels.index, class_names)),
                needs_head=False,
                description=f"{bundle.architecture} of {folder}"
                + ("" if same else ", its classes in another order"),
            )
        else:
            name = f"local-dir:{folder}" if folder else name
            _, source_args = load_source(normal_name(name))
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
