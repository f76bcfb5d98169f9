"""Learning from images without labels: what the loss and the figures see, and whole runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.training import assert_same_run, epochs_of, interrupt_in_epoch, log_of
from torch import nn

from mnft.config.schema import AugmentConfig, DistillConfig
from mnft.device.machine import Machine
from mnft.model.bundle import load_bundle
from mnft.preprocessing import Preprocessing
from mnft.tasks import open_task
from mnft.tasks.base import Teacher
from mnft.tasks.classify.distill.loss import DistillationLoss, average_probabilities
from mnft.tasks.classify.head import CrossEntropy
from mnft.tasks.classify.targets import NO_CLASS
from mnft.tasks.multilabel.head import average_probabilities as average_labels
from mnft.training.epoch.loop import RunningTotals

CLASSES = ("cat", "cow", "dog")
PLAIN = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)


def draw(number: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, 3, generator=torch.Generator().manual_seed(seed))


# --- the loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 2.0])])
def test_images_without_a_class_add_nothing(smoothing: float, weights: torch.Tensor | None) -> None:
    logits = draw(6).requires_grad_()
    loss = CrossEntropy(smoothing, weights)
    targets = torch.tensor([0, NO_CLASS, 2, 1, NO_CLASS, 0])
    known = targets != NO_CLASS
    assert torch.allclose(loss(logits, targets), loss(logits[known], targets[known]))
    soft = torch.softmax(draw(6, seed=1), 1)
    masked = soft.masked_fill(~known[:, None], math.nan)
    found = loss(logits, masked)
    assert torch.allclose(found, loss(logits[known], soft[known]))
    found.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[~known], torch.zeros(2, 3))
    assert logits.grad[known].abs().min() > 0
    assert loss(logits[:2], torch.full((2,), NO_CLASS)).item() == 0  # a part without any


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_labelled_images_is_that_of_torch_to_the_bit(smoothing: float) -> None:
    logits, weights = draw(64), torch.tensor([1.0, 0.5, 2.0])
    reference = nn.CrossEntropyLoss(weights, label_smoothing=smoothing, reduction="sum")
    loss = CrossEntropy(smoothing, weights)
    for targets in (torch.arange(64) % 3, torch.softmax(draw(64, seed=1), 1)):
        assert torch.equal(loss(logits, targets), reference(logits, targets))


@pytest.mark.parametrize("task", ["classify", "multilabel"])
def test_only_the_teacher_teaches_images_without_labels(task: str) -> None:
    opened = open_task(CLASSES, task)
    teacher = Teacher(Fixed(draw(8, seed=2)), PLAIN, False, None, None, False, "fixed")
    config = DistillConfig(teacher="fixed", temperature=2.0, weight=0.4)
    criterion = CrossEntropy(0.1, None) if task == "classify" else opened_loss(task)
    loss = opened.build_distillation(criterion, [teacher], config, PLAIN, torch.float32)
    labelled = [0, 1, 2, 0] if task == "classify" else [[1.0, 0, 0]] * 4
    targets = torch.tensor(labelled + [opened.no_label] * 4)
    logits, images = draw(8), torch.zeros(8, 3, 8, 8)
    own = criterion(logits[:4], targets[:4], images[:4])
    whole = loss(logits, targets, images)
    taught = loss(logits, torch.tensor([opened.no_label] * 8), images)
    assert whole.item() == pytest.approx(0.6 * own.item() + taught.item(), rel=1e-5)
    assert own.item() > 0.1
    assert taught.item() > 0.1


def opened_loss(_task: str):
    from mnft.config.multilabel import MultilabelConfig
    from mnft.tasks.multilabel.head import MultilabelLoss

    return MultilabelLoss(MultilabelConfig(loss="bce"))


class Fixed(nn.Module):
    """A teacher that gives the same logits, whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(images)]


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_are_unknown_if_either_is(kind: str) -> None:
    mix = open_task(CLASSES, "classify").build_mix(AugmentConfig.model_validate({kind: 1.0}))
    assert mix is not None
    images, mixed = mix(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, NO_CLASS, 2]))
    assert images.shape == (4, 3, 8, 8)
    # Each is mixed with the one before it.
    assert mixed.isnan().any(1).tolist() == [False, False, True, True]
    assert mixed.isnan().all(1).tolist() == [False, False, True, True]
    assert torch.allclose(mixed[:2].sum(1), torch.ones(2))


# --- several teachers


def test_the_probabilities_of_teachers_are_averaged() -> None:
    logits = torch.stack([draw(5, seed) for seed in range(3)])
    assert torch.allclose(
        average_probabilities(logits).softmax(1), logits.softmax(2).mean(0), atol=1e-6
    )
    assert torch.allclose(average_labels(logits).sigmoid(), logits.sigmoid().mean(0), atol=1e-6)
    one = average_probabilities(logits[:1])
    assert torch.allclose(one.softmax(1), logits[0].softmax(1), atol=1e-6)


def test_two_teachers_with_their_own_order_teach_their_mean() -> None:
    first, second = draw(4, seed=1), draw(4, seed=2)
    order = (2, 0, 1)
    shuffled = torch.empty_like(second)
    shuffled[:, list(order)] = second  # what it calls class order[i] is the student's class i
    teachers = [
        Teacher(Fixed(first), PLAIN, False, CLASSES, None, False, "first"),
        Teacher(Fixed(shuffled), PLAIN, False, CLASSES, order, False, "second"),
    ]
    config = DistillConfig(teacher=["a", "b"], temperature=1.0, weight=1.0)
    criterion = CrossEntropy(0.0, None)
    loss = DistillationLoss(criterion, teachers, config, PLAIN, torch.float32)
    logits = draw(4)
    mean = (first.softmax(1) + second.softmax(1)) / 2
    expected = (mean * (mean.log() - logits.log_softmax(1))).sum()
    images = torch.zeros(4, 3, 8, 8)
    assert loss(logits, torch.zeros(4, dtype=torch.long), images).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


# --- figures


def test_training_figures_are_those_of_labelled_images() -> None:
    task = open_task(CLASSES, "classify")
    options = SimpleNamespace(machine=Machine(torch.device("cpu")), task=task)
    totals = RunningTotals(None, options, 0.1)  # type: ignore[arg-type]
    logits = torch.eye(3)[[0, 1, 2, 0]]
    targets = torch.tensor([0, 0, NO_CLASS, NO_CLASS])
    totals.add(task.sum_batch(torch.tensor(6.0), logits, targets), 4)
    assert totals.means() == {"loss": 1.5, "accuracy": 0.5}
    partial = totals.describe(1, 1)
    assert RunningTotals(partial, options, 0.1).means() == totals.means()  # type: ignore[arg-type]
    # Of a version that had no images without labels.
    object.__setattr__(partial, "totals", (6.0, 1.0, 4.0))
    older = RunningTotals(partial, options, 0.1)  # type: ignore[arg-type]
    assert older.means() == {"loss": 1.5, "accuracy": 0.25}


def test_mixed_images_without_a_class_are_never_right() -> None:
    task = open_task(CLASSES, "classify")
    targets = torch.tensor([[0.9, 0.1, 0.0], [math.nan] * 3])
    sums = task.sum_batch(torch.tensor(1.0), torch.tensor([[5.0, 0, 0]] * 2), targets)
    assert sums.tolist() == [1.0, 1.0, 1.0]


# --- whole runs


@pytest.fixture
def taught(train, make_folder):
    """Two teachers, and a folder of images without labels; gives the options of a student."""
    for name in ("first", "second"):
        seed = f"train.seed={len(name)}"
        assert train(seed, name=name).exit_code == 0
    # The third split is made with other seeds than the images to train and to judge on.
    more = make_folder("more", splits=("train", "val", "more"), per_class=5) / "more"
    teachers = json.dumps([str(train.run(name)) for name in ("first", "second")])
    return (f"distill.teacher={teachers}", f"distill.images={more}")


def test_a_student_of_two_teachers_resumes_bit_for_bit(train, taught, monkeypatch) -> None:
    result = train(*taught, name="whole")
    assert result.exit_code == 0, result.stderr
    assert "24 train, 24 val, 15 without labels" in result.stderr
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 2)
        assert train(*taught, name="resumed").exit_code == 130
    assert train.resume("resumed").exit_code == 0
    assert_same_run(train.run("whole"), train.run("resumed"))

    # 39 images in batches of 8; the accuracy counts 24.
    start, *_ = log_of(train.run("whole"))
    assert start["updates_per_epoch"] == 5
    for epoch in epochs_of(train.run("whole")):
        right = epoch["train_accuracy"] * 24
        assert right == pytest.approx(round(right), abs=1e-6)
    assert len(set(start["teachers_sha256"])) == 2
    record = json.loads((train.run("whole") / "best" / "mnft.json").read_text())
    assert record["teachers_sha256"] == start["teachers_sha256"]
    assert load_bundle(train.run("whole") / "best").labels == ("blue", "green", "red")


def test_parts_of_a_batch_change_nothing(train, taught) -> None:
    from safetensors.torch import load_file

    found = []
    for parts in (1, 4):
        steps = f"train.accumulation_steps={parts}"
        assert train(*taught, steps, "train.epochs=1", name=f"parts{parts}").exit_code == 0
        found.append(load_file(train.run(f"parts{parts}") / "last" / "model.safetensors"))
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], atol=2e-5), name


def test_a_teacher_that_has_changed_ends_a_resumption(train, taught, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 2)
        assert train(*taught, name="student").exit_code == 130
    assert train.resume("second", "train.epochs=4").exit_code == 0
    weights = [train.run("second") / part / "model.safetensors" for part in ("best", "last")]
    weights[0].write_bytes(weights[1].read_bytes())
    result = train.resume("student")
    assert result.exit_code == 1
    assert "weights of a teacher have changed since the run began" in result.stderr


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["distill.images=more"], "no distill.teacher"),
        (["distill.teacher=[a, a]"], "found a twice"),
        (["distill.teacher=[]"], "distill.teacher"),
    ],
)
def test_wrong_teachers_and_folders_are_refused(train, sets: list[str], message: str) -> None:
    result = train(*sets, name="wrong")
    assert result.exit_code != 0
    assert message in result.stderr
    assert not train.run("wrong").exists()


def test_a_folder_that_is_not_there_is_refused_at_once(train, taught) -> None:
    result = train(taught[0], "distill.images=nowhere", name="wrong")
    assert result.exit_code == 1
    assert "--set distill.images=nowhere: nowhere: no such folder" in result.stderr
    assert "data  " not in result.stderr
    assert not train.run("wrong").exists()


def test_the_command_takes_teachers_by_name(train, taught, run_cli) -> None:
    teachers = [w for n in ("first", "second") for w in ("--teacher", str(train.run(n)))]
    sets = ["--set", "train.epochs=1", "--set", "run.name=student"]
    result = run_cli("distill", train.config, *teachers, *sets)
    assert result.exit_code == 0, result.stderr
    written = (train.run("student") / "config.yaml").read_text()
    assert all(f"- {train.run(name)}" in written for name in ("first", "second"))
    assert Path(train.run("student") / "best").is_dir()
