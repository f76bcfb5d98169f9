"""Distillation: a frozen teacher, and the loss that compares a student with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnft import files
from mnft.config.schema import DistillConfig, ModelConfig
from mnft.engine.device import autocast
from mnft.engine.optim import Loss
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
from mnft.preprocessing import Preprocessing

_HINT = (
    "a teacher is a run (runs/NAME), a folder with config.json and model.safetensors, or a name "
    "of `mnft models` (or hf-hub:ORG/NAME) whose weights are in the cache or can be downloaded"
)
# Of red, green and blue in grey (ITU-R BT.601), as Pillow turns images grey.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model to learn from.

    Attributes:
        model: in evaluation mode, on the device; nothing in it learns but a new head.
        preprocessing: what it expects of its input.
        fixed_input: whether it takes images of one size only.
        class_names: of its outputs; None where they are not known. After a head is fitted, those
            of the student.
        order: the output of each of the student's classes, in their order; None where outputs
            and classes are in the same order.
        needs_head: its head is new, and must be fitted before it can teach; afterwards
            `dataclasses.replace(teacher, needs_head=False)` says so.
        description: what it is, in words.
    """

    model: nn.Module
    preprocessing: Preprocessing
    fixed_input: bool
    class_names: tuple[str, ...] | None
    order: tuple[int, ...] | None
    needs_head: bool
    description: str


class DistillationLoss:
    """The student's loss and its distance from the teacher, summed over the batch.

    (1 - weight) * criterion + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)),
    where T^2 keeps the gradient's size the same for all temperatures (Hinton, Vinyals, Dean,
    2015, "Distilling the Knowledge in a Neural Network", section 2). The teacher sees the
    student's images, with the same crops and mixing ("consistent teaching", Beyer et al., 2022,
    "Knowledge distillation: A good teacher is patient and consistent", section 2).

    Args:
        criterion: the summed loss on the labels.
        teacher: is put in evaluation mode, and none of it learns.
        config: temperature and weight.
        student: preprocessing of the images that the loss is given.
        dtype: arithmetic of the teacher.
    """

    def __init__(
        self,
        criterion: Loss,
        teacher: Teacher,
        config: DistillConfig,
        *,
        student: Preprocessing,
        dtype: torch.dtype,
    ) -> None:
        if teacher.needs_head:
            raise ValueError(f"the head of the teacher is not fitted: {teacher.description}")
        self._criterion = criterion
        self._model = teacher.model.requires_grad_(False).eval()
        self._order = None if teacher.order is None else list(teacher.order)
        self._adapt = InputAdapter(
            student, teacher.preprocessing, resize=teacher.fixed_input, device=_device_of(teacher)
        )
        self._temperature = config.temperature
        self._weight = config.weight
        self._dtype = dtype

    def __call__(self, logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        """The summed loss.

        Args:
            logits: (B, K) float, of the student.
            targets: (B,) int64 labels or (B, K) float probabilities.
            images: (B, C, H, W) float, as the student sees them.
        """
        loss = torch.zeros((), device=logits.device)
        if self._weight < 1:
            loss = (1 - self._weight) * self._criterion(logits, targets, images)
        if self._weight > 0:
            loss = loss + self._weight * self._distance(logits, self._teach(images))
        return loss

    def _teach(self, images: Tensor) -> Tensor:
        # Not inference_mode: what it gives cannot be saved for a backward pass.
        with torch.no_grad(), autocast(images.device, self._dtype):
            logits: Tensor = self._model(self._adapt(images))
        return logits if self._order is None else logits[:, self._order]

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_student = F.log_softmax(student.float() / self._temperature, dim=1)
        log_teacher = F.log_softmax(teacher.float() / self._temperature, dim=1)
        divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
        return self._temperature**2 * divergence


class InputAdapter:
    """Images as one model expects them to images as another does.

    Normalisation and channels are converted; grey is Pillow's weighted sum of the colours.

    Args:
        source: preprocessing of the images that are given.
        target: preprocessing that is wanted.
        resize: give images the size of `target`; else they keep theirs.
        device: of the images.

    Raises:
        ModelError: the numbers of channels differ, and are not 1 and 3.
    """

    def __init__(
        self, source: Preprocessing, target: Preprocessing, *, resize: bool, device: torch.device
    ) -> None:
        given, wanted = source.input_size[0], target.input_size[0]
        if given != wanted and {given, wanted} != {1, 3}:
            raise ModelError(
                f"the teacher takes images of {wanted} channels, the student of {given}",
                hint="images can be turned from 3 channels to 1 and back",
                key="distill.teacher",
            )
        self._size = target.input_size[1:] if resize else None
        self._to_grey = given > wanted
        self._same = (source.mean, source.std) == (target.mean, target.std)
        luma = _column(_LUMA if self._to_grey else (1.0,))
        mean = luma * _column(source.mean)
        if self._to_grey:
            mean = mean.sum(1, keepdim=True)
        # (pixel - target's mean) / target's std, where pixel = image * std + mean.
        new_std = _column(target.std)
        self._scale = (luma * _column(source.std) / new_std).float().to(device)
        self._shift = ((mean - _column(target.mean)) / new_std).float().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Convert (B, C, H, W) float images."""
        if self._to_grey:
            images = (images * self._scale).sum(1, keepdim=True) + self._shift
        elif not self._same:
            images = images * self._scale + self._shift
        if self._size is not None and tuple(images.shape[2:]) != self._size:
            images = F.interpolate(images, self._size, mode="bilinear", antialias=True)
        return images


def check_teacher(config: DistillConfig) -> None:
    """Refuse an unknown teacher, or one without weights, before any work is done.

    Raises:
        ModelError: with a suggestion; blames `distill.teacher`.
    """
    assert config.teacher is not None
    if _find_folder(config.teacher) is not None:
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
    config: DistillConfig,
    *,
    class_names: tuple[str, ...],
    device: torch.device,
    channels_last: bool,
) -> Teacher:
    """Load a run's best model, a model folder or a pretrained model, to learn from it.

    A folder that knows exactly the classes `class_names`, in whatever order, teaches as it is.
    Any other model gets a new head (`Teacher.needs_head`). The random state is left as it was.

    Args:
        config: the `distill` section, with a teacher.
        class_names: of the student, in the order of its outputs.
        device: where the teacher goes.
        channels_last: memory format of its weights.

    Raises:
        ModelError: no such teacher, or one that cannot be loaded; blames `distill.teacher`.
    """
    check_teacher(config)
    assert config.teacher is not None
    folder = _find_folder(config.teacher)
    known = read_label_names(folder) if folder else None
    names = tuple(known) if isinstance(known, list) else None
    with _blaming(), torch.random.fork_rng(devices=[]):
        if folder and names and sorted(map(str, names)) == sorted(class_names):
            teacher = _open_folder(folder, class_names)
        else:
            name = f"local-dir:{folder}" if folder else config.teacher
            teacher = _build_with_new_head(name, names, class_names)
    teacher.model.to(device)
    if channels_last:
        teacher.model.to(memory_format=torch.channels_last)
    return teacher


def _open_folder(folder: Path, class_names: tuple[str, ...]) -> Teacher:
    bundle = load_bundle(folder)
    same = bundle.class_names == class_names
    return Teacher(
        model=bundle.model.requires_grad_(False),
        preprocessing=bundle.preprocessing,
        fixed_input=has_fixed_input(bundle.architecture),
        class_names=bundle.class_names,
        order=None if same else tuple(bundle.class_names.index(name) for name in class_names),
        needs_head=False,
        description=f"{bundle.architecture} of {folder}"
        + ("" if same else ", its classes in another order"),
    )


def _build_with_new_head(
    name: str, own_names: tuple[str, ...] | None, class_names: tuple[str, ...]
) -> Teacher:
    _, source_args = load_source(_normal_name(name))
    in_chans = source_args.get("in_chans", 3)
    if in_chans not in {1, 3}:
        raise ModelError(f"{name} takes images of {in_chans} channels, expected 1 or 3")
    config = ModelConfig(name=name, pretrained=True, in_chans=in_chans)
    # Without class names: a head whose classes are not known to be the same is not kept.
    built = build_model(config, num_classes=len(class_names))
    freeze(built.model, "backbone")
    return Teacher(
        model=built.model.eval(),
        preprocessing=built.preprocessing,
        fixed_input=has_fixed_input(built.architecture),
        class_names=own_names,
        order=None,
        needs_head=True,
        description=f"{built.architecture}, {built.weights}",
    )


def _find_folder(teacher: str) -> Path | None:
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
    raise _no_folder(folder)


def _no_folder(folder: Path) -> ModelError:
    if folder.is_dir():
        run = (folder / "config.yaml").is_file()
        why = f"{folder} is a run that has no best model yet" if run else f"{folder} holds no model"
        return ModelError(why, hint=_HINT, key="distill.teacher")
    if folder.exists():
        return ModelError(f"{folder} is a file", hint=_HINT, key="distill.teacher")
    hint = _HINT
    if folder.parent.is_dir():
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        if close := difflib.get_close_matches(folder.name, beside, 1):
            hint = f"did you mean {folder.parent / close[0]}?"
    return ModelError(f"no such folder: {folder}", hint=hint, key="distill.teacher")


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


def _column(values: Sequence[float]) -> Tensor:
    """(1, C, 1, 1) float64."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def _device_of(teacher: Teacher) -> torch.device:
    return next(teacher.model.parameters()).device
