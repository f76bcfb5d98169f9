"""Distillation: the loss against its formula, what a teacher sees, and where teachers come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from mnft.config.schema import DistillConfig, ModelConfig
from mnft.data.transforms import normalize
from mnft.device.machine import Machine
from mnft.errors import ModelError
from mnft.model.bundle import ModelCard, load_bundle, save_bundle
from mnft.model.factory import build_model
from mnft.model.input_adapter import InputAdapter
from mnft.model.teacher import check_teacher
from mnft.preprocessing import Preprocessing
from mnft.tasks.base import Teacher
from mnft.tasks.classify.distill.loss import DistillationLoss
from mnft.tasks.classify.distill.teacher import load_teacher
from mnft.tasks.classify.head import CrossEntropy

CLASSES = ("cat", "cow", "dog")
CPU = torch.device("cpu")


def preprocessing_of(
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
    size: int = 32,
) -> Preprocessing:
    return Preprocessing((len(mean), size, size), mean, std, "bilinear", 1.0)


PLAIN = preprocessing_of()
IMAGENET = preprocessing_of((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = preprocessing_of((0.3,), (0.2,))


class Table(nn.Module):
    """A teacher whose logits are a linear function of the image's channel means."""

    def __init__(self, num_classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.linear = nn.Linear(channels, num_classes)
        self.norm = nn.BatchNorm1d(num_classes)
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        logits: torch.Tensor = self.norm(self.linear(images.mean((2, 3))) * 4)
        return logits


def teacher_of(model: nn.Module, **changes: Any) -> Teacher:
    return replace(Teacher(model, PLAIN, False, CLASSES, None, False, "a table"), **changes)


def loss_of(
    teacher: Teacher, *, weight: float = 0.3, temperature: float = 3.0, dtype: Any = torch.float32
) -> DistillationLoss:
    config = DistillConfig(teacher="table", temperature=temperature, weight=weight)
    return DistillationLoss(CrossEntropy(0.1, None), [teacher], config, student=PLAIN, dtype=dtype)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (6, 3), labels (6,), images (6, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 3, generator=generator, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 2, 1, 0])
    return logits, targets, torch.randn(6, 3, 32, 32, generator=generator)


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


# --- the loss


def test_the_loss_is_that_of_the_formula(batch: Batch) -> None:
    logits, targets, images = batch
    model = Table()
    loss = loss_of(teacher_of(model))(logits, targets, images)

    given = model(images).detach().double().numpy() / 3.0
    asked = logits.detach().double().numpy() / 3.0
    teacher = np.exp(given) / np.exp(given).sum(1, keepdims=True)
    student = np.exp(asked) / np.exp(asked).sum(1, keepdims=True)
    divergence = (teacher * np.log(teacher / student)).sum()
    hard = nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1).item()
    assert divergence > 0.01
    assert loss.item() == pytest.approx(0.7 * hard + 0.3 * 9 * divergence, rel=1e-5)


def test_the_gradient_is_that_of_hintons_equation_2(batch: Batch) -> None:
    """The gradient of the cross-entropy with soft targets is (q - p) / T, here times T^2."""
    logits, targets, images = batch
    model = Table()
    loss_of(teacher_of(model), weight=1.0)(logits, targets, images).backward()
    student = (logits.detach() / 3).softmax(1)
    expected = 3 * (student - (model(images).detach() / 3).softmax(1))
    assert logits.grad is not None
    assert torch.allclose(logits.grad, expected, atol=1e-6)


def test_weight_0_is_the_plain_loss_and_asks_no_teacher(batch: Batch) -> None:
    model = Table()
    loss = loss_of(teacher_of(model), weight=0.0)(*batch)
    assert torch.equal(loss, CrossEntropy(0.1, None)(*batch[:2]))
    assert model.seen == []


def test_weight_1_ignores_the_labels(batch: Batch) -> None:
    logits, targets, images = batch
    loss = loss_of(teacher_of(Table()), weight=1.0)
    mixed = torch.rand(6, 3)
    assert torch.equal(loss(logits, targets, images), loss(logits, mixed, images))
    # A student that says what the teacher says has nothing to learn.
    assert loss(Table().eval()(images), targets, images).item() == pytest.approx(0, abs=1e-5)


def test_the_losses_of_parts_add_up(batch: Batch) -> None:
    loss = loss_of(teacher_of(Table()))
    parts = [loss(*(tensor[a:b] for tensor in batch)) for a, b in ((0, 1), (1, 4), (4, 6))]
    assert sum(part.item() for part in parts) == pytest.approx(loss(*batch).item(), rel=1e-6)


def test_mixed_targets_are_taken(batch: Batch) -> None:
    logits, targets, images = batch
    one_hot = nn.functional.one_hot(targets, 3).float()
    loss = loss_of(teacher_of(Table()))
    assert torch.allclose(loss(logits, targets, images), loss(logits, one_hot, images))


def test_the_teacher_learns_nothing_and_stays_in_evaluation(batch: Batch) -> None:
    model = Table().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss = loss_of(teacher_of(model))
    loss(*batch).backward()
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_teacher_in_bf16_is_compared_in_fp32(batch: Batch) -> None:
    exact = loss_of(teacher_of(Table()))(*batch)
    rounded = loss_of(teacher_of(Table()), dtype=torch.bfloat16)(*batch)
    assert rounded.dtype == torch.float32
    assert rounded.item() != exact.item()
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_outputs_are_put_in_the_order_of_the_students_classes(batch: Batch) -> None:
    logits, targets, images = batch
    model = Table()
    turned = loss_of(teacher_of(model, order=(2, 0, 1)), weight=1.0)(logits, targets, images)
    plain = loss_of(teacher_of(model), weight=1.0)
    back = torch.empty_like(logits)
    back[:, [2, 0, 1]] = logits
    assert turned.item() == pytest.approx(plain(back, targets, images).item(), rel=1e-6)
    assert turned.item() != pytest.approx(plain(logits, targets, images).item(), rel=1e-3)


def test_a_head_that_is_not_fitted_cannot_teach() -> None:
    with pytest.raises(ValueError, match="not fitted"):
        loss_of(teacher_of(Table(), needs_head=True))


# --- what the teacher sees


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)


@pytest.mark.parametrize(("student", "teacher"), [(IMAGENET, PLAIN), (PLAIN, IMAGENET)])
def test_the_teacher_sees_its_own_normalisation(
    pixels: torch.Tensor, student: Preprocessing, teacher: Preprocessing
) -> None:
    model = Table()
    loss = DistillationLoss(
        CrossEntropy(0.0, None),
        [teacher_of(model, preprocessing=teacher)],
        DistillConfig(teacher="table"),
        student=student,
        dtype=torch.float32,
    )
    loss(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), normalize(pixels, student))
    assert torch.allclose(model.seen[0], normalize(pixels, teacher), atol=1e-6)


def test_equal_preprocessing_passes_the_images_on(pixels: torch.Tensor) -> None:
    images = normalize(pixels, IMAGENET)
    assert InputAdapter(IMAGENET, IMAGENET, resize=True, device=CPU)(images) is images


def test_a_grey_teacher_sees_what_pillow_makes_of_the_colours(pixels: torch.Tensor) -> None:
    seen = InputAdapter(IMAGENET, GREY, resize=False, device=CPU)(normalize(pixels, IMAGENET))
    grey = [np.asarray(Image.fromarray(p.permute(1, 2, 0).numpy()).convert("L")) for p in pixels]
    expected = normalize(torch.from_numpy(np.stack(grey))[:, None], GREY)
    assert seen.shape == (4, 1, 32, 32)
    assert torch.allclose(seen, expected, atol=1.01 / 255 / 0.2)  # Pillow rounds to whole greys


def test_a_colour_teacher_sees_grey_in_all_channels(pixels: torch.Tensor) -> None:
    grey = pixels[:, :1]
    seen = InputAdapter(GREY, IMAGENET, resize=False, device=CPU)(normalize(grey, GREY))
    assert torch.allclose(seen, normalize(grey.expand(-1, 3, -1, -1), IMAGENET), atol=1e-6)


def test_other_channels_are_refused() -> None:
    four = preprocessing_of((0.5,) * 4, (0.5,) * 4)
    with pytest.raises(ModelError, match="4 channels"):
        InputAdapter(PLAIN, four, resize=False, device=CPU)


def test_images_are_resized_for_a_teacher_of_one_size_only(batch: Batch) -> None:
    large = preprocessing_of(size=48)
    for fixed, side in ((True, 48), (False, 32)):
        model = Table()
        loss_of(teacher_of(model, preprocessing=large, fixed_input=fixed))(*batch)
        assert model.seen[0].shape == (6, 3, side, side)


def test_channels_last_stays(pixels: torch.Tensor) -> None:
    images = normalize(pixels, PLAIN).contiguous(memory_format=torch.channels_last)
    seen = InputAdapter(PLAIN, IMAGENET, resize=False, device=CPU)(images)
    assert seen.is_contiguous(memory_format=torch.channels_last)


# --- where teachers come from


SaveModel = Callable[..., Path]


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """A function that writes a model folder."""

    def save(
        folder: str = "runs/big/best",
        *,
        name: str = "lenet5",
        classes: tuple[str, ...] = CLASSES,
        img_size: int | None = None,
        in_chans: int = 3,
    ) -> Path:
        torch.manual_seed(3)
        config = ModelConfig(name=name, pretrained=False, in_chans=in_chans)  # type: ignore[arg-type]
        built = build_model(config, num_classes=len(classes), img_size=img_size)
        with torch.no_grad():
            for tensor in built.model.get_classifier().parameters():  # type: ignore[operator]
                tensor.mul_(10)
        card = ModelCard(
            built.architecture,
            built.model_args,
            built.preprocessing,
            classes,
            built.pretrained_cfg,
        )
        save_bundle(tmp_path / folder, built.model.state_dict(), card, {})
        return tmp_path / folder

    return save


def load(teacher: str | Path, classes: tuple[str, ...] = CLASSES) -> Teacher:
    return load_teacher(str(teacher), Machine(CPU), class_names=classes)


def test_a_run_a_model_folder_and_a_local_dir_are_the_same(save_model: SaveModel) -> None:
    best = save_model()
    images = torch.randn(2, 3, 32, 32)
    expected = load_bundle(best).model(images)
    for name in (best, best.parent, f"local-dir:{best}", f"local-dir:{best.parent}"):
        teacher = load(name)
        assert torch.equal(teacher.model(images), expected)
        assert (teacher.needs_head, teacher.order, teacher.labels) == (False, None, CLASSES)
        assert not teacher.model.training
        assert not any(p.requires_grad for p in teacher.model.parameters())
    assert "lenet5" in teacher.description
    assert str(best) in teacher.description


def test_a_folder_of_the_working_directory(
    save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model("mine")
    save_model("lenet5")
    monkeypatch.chdir(tmp_path)
    assert not load("mine").needs_head
    assert not load("./lenet5").needs_head
    with pytest.raises(ModelError, match="no pretrained weights"):
        load("lenet5")  # timm's name, as in model.name


def test_classes_in_another_order_are_matched_by_name(save_model: SaveModel) -> None:
    images = torch.randn(2, 3, 32, 32)
    folder = save_model()
    logits = load(folder).model(images)
    order = ("dog", "cat", "cow")
    teacher = load(folder, order)
    assert teacher.order == (2, 0, 1)
    assert not teacher.needs_head
    loss = loss_of(teacher, weight=1.0)
    student = logits[:, [CLASSES.index(name) for name in order]]
    assert loss(student, torch.zeros(2), images).item() == pytest.approx(0, abs=1e-5)
    assert loss(logits, torch.zeros(2), images).item() > 0.01


@pytest.mark.parametrize("classes", [("cat", "cow"), ("cat", "cow", "pig"), (*CLASSES, "pig")])
def test_a_folder_of_other_classes_needs_a_head(
    save_model: SaveModel, classes: tuple[str, ...]
) -> None:
    folder = save_model(name="test_resnet", classes=classes)
    teacher = load(folder)
    assert teacher.needs_head
    assert teacher.labels == classes
    assert teacher.order is None
    saved = load_bundle(folder).model
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(
        teacher.model.forward_features(images),  # type: ignore[operator]
        saved.forward_features(images),  # type: ignore[operator]
        atol=1e-5,
    )
    assert teacher.model(images).shape == (2, 3)
    # A small new head, which alone can learn.
    assert teacher.model(images).abs().max() < 0.5
    learning = {name for name, p in teacher.model.named_parameters() if p.requires_grad}
    assert learning == {"fc.weight", "fc.bias"}


def test_a_grey_folder_keeps_its_channels(save_model: SaveModel) -> None:
    folder = save_model(in_chans=1, classes=("a", "b"))
    teacher = load(folder)
    assert teacher.preprocessing.input_size == (1, 32, 32)
    loss = loss_of(replace(teacher, needs_head=False))
    assert loss(torch.zeros(2, 3), torch.tensor([0, 1]), torch.randn(2, 3, 32, 32)).isfinite()


@pytest.mark.parametrize("classes", [CLASSES, ("a", "b")])
def test_a_vit_of_its_own_size_is_given_that_size(
    save_model: SaveModel, classes: tuple[str, ...]
) -> None:
    folder = save_model(name="test_vit", img_size=48, classes=classes)
    teacher = load(folder)
    assert teacher.fixed_input
    assert teacher.preprocessing.input_size == (3, 48, 48)
    loss = loss_of(replace(teacher, needs_head=False))
    assert loss(torch.zeros(2, 3), torch.tensor([0, 1]), torch.randn(2, 3, 32, 32)).isfinite()


def test_a_pretrained_name_needs_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    created = timm.create_model

    def create(name: str, *, pretrained: bool, **kwargs: Any) -> Any:
        assert pretrained  # what it would download is left out here
        return created(name, pretrained=False, **kwargs)

    monkeypatch.setattr("mnft.model.factory.timm.create_model", create)
    monkeypatch.setattr("mnft.model.factory.go_offline_if_unreachable", lambda: None)
    teacher = load("test_resnet")
    assert teacher.needs_head
    assert teacher.labels is None
    assert teacher.model(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    assert "test_resnet.r160_in1k" in teacher.description


def test_a_teacher_leaves_the_random_state(save_model: SaveModel) -> None:
    folder = save_model(classes=("a", "b"))
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first = load(folder)
    assert torch.equal(torch.rand(1), expected)
    torch.manual_seed(11)
    assert torch.equal(
        load(folder).model(torch.ones(1, 3, 32, 32)), first.model(torch.ones(1, 3, 32, 32))
    )


@pytest.mark.parametrize(
    ("teacher", "message", "hint"),
    [
        ("resnet81", "expected a name that timm knows", "did you mean resnet18?"),
        ("resnet18.a1_in2k", "has no weights named", "did you mean resnet18.a1_in1k?"),
        ("lenet5", "no pretrained weights", "a teacher is a run"),
        ("runs/small", "no such folder: runs/small", "a teacher is a run"),
        ("runs/bog", "no such folder: runs/bog", "did you mean runs/big?"),
        ("local-dir:runs/bog", "no such folder: runs/bog", "did you mean runs/big?"),
        ("runs", "runs holds no model", "a teacher is a run"),
        ("runs/new", "runs/new is a run that has no best model yet", "a teacher is a run"),
        ("./notes.txt", "notes.txt is a file", "a teacher is a run"),
    ],
)
def test_teachers_that_cannot_be_had(
    save_model: SaveModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teacher: str,
    message: str,
    hint: str,
) -> None:
    save_model()
    (tmp_path / "runs" / "new").mkdir()
    (tmp_path / "runs" / "new" / "config.yaml").touch()
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    for ask in (lambda: check_teacher(teacher), lambda: load(teacher)):
        with pytest.raises(ModelError) as caught:
            ask()
        assert message in caught.value.message
        assert hint in str(caught.value.hint)
        assert caught.value.key == "distill.teacher"


@pytest.mark.parametrize("classes", [CLASSES, ("a", "b")])
def test_damaged_weights_blame_the_teacher(save_model: SaveModel, classes: tuple[str, ...]) -> None:
    folder = save_model(classes=classes)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert caught.value.key == "distill.teacher"
    assert "model.pretrained" not in str(caught.value.hint)
