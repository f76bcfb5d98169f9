"""The losses of several labels against torch and the formulas of their papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnft.config.multilabel import MultilabelConfig
from mnft.config.schema import DistillConfig, TrainConfig
from mnft.data.manifest import Sample
from mnft.preprocessing import Preprocessing
from mnft.tasks.base import Teacher
from mnft.tasks.classify.distill.loss import DistillationLoss
from mnft.tasks.multilabel.head import (
    MultilabelLoss,
    build_loss,
    compute_divergence,
    compute_pos_weight,
)

BCE = MultilabelConfig()
ASYMMETRIC = MultilabelConfig(loss="asymmetric", gamma_pos=1.0)
NAN = math.nan


def draw() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 4, generator=generator)
    return logits, (torch.rand(6, 4, generator=generator) < 0.4).float()


def test_it_is_that_of_torch_summed() -> None:
    logits, targets = draw()
    weights = torch.tensor([0.5, 1.0, 3.0, 10.0])
    expected = nn.BCEWithLogitsLoss(pos_weight=weights, reduction="sum")(logits, targets)
    torch.testing.assert_close(MultilabelLoss(BCE, 0.0, weights)(logits, targets), expected)
    mixed = targets * 0.7 + targets.roll(1, 0) * 0.3
    expected = nn.BCEWithLogitsLoss(reduction="sum")(logits, mixed)
    torch.testing.assert_close(MultilabelLoss(BCE)(logits, mixed), expected)


def test_label_smoothing_moves_targets_towards_one_half() -> None:
    logits, targets = draw()
    expected = nn.BCEWithLogitsLoss(reduction="sum")(logits, 0.9 * targets + 0.05)
    torch.testing.assert_close(MultilabelLoss(BCE, 0.1)(logits, targets), expected)


@pytest.mark.parametrize("config", [BCE, ASYMMETRIC], ids=["bce", "asymmetric"])
def test_unknown_labels_add_nothing_and_the_others_weigh_no_more(config: MultilabelConfig) -> None:
    logits, targets = draw()
    logits.requires_grad_()
    loss = MultilabelLoss(config, 0.1, torch.full((4,), 2.0))
    (whole,) = torch.autograd.grad(loss(logits, targets), logits)
    hidden = targets.clone()
    hidden[1, 2] = hidden[3] = NAN
    total = loss(logits, hidden)
    (found,) = torch.autograd.grad(total, logits)
    assert total.isfinite()
    expected = torch.where(hidden.isnan(), 0.0, whole)
    torch.testing.assert_close(found, expected)
    assert loss(logits, torch.full_like(targets, NAN)) == 0


def test_the_gradient_of_a_label_does_not_depend_on_how_many_there_are() -> None:
    logits, targets = draw()
    gradients = []
    for count in (1, 4):
        own = logits[:, :count].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(MultilabelLoss(BCE)(own, targets[:, :count]), own)
        gradients.append(gradient[:, 0])
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(gradients[0], torch.sigmoid(logits[:, 0]) - targets[:, 0])


@pytest.mark.parametrize("gamma_pos", [0.0, 1.0])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_asymmetric_loss_is_equations_4_to_7(gamma_pos: float, clip: float) -> None:
    logits, targets = draw()
    config = MultilabelConfig(loss="asymmetric", gamma_pos=gamma_pos, clip=clip)
    expected = 0.0
    for row, wanted in zip(logits.tolist(), targets.tolist(), strict=True):
        for z, y in zip(row, wanted, strict=True):
            p = 1 / (1 + math.exp(-z))
            if y:
                expected -= (1 - p) ** gamma_pos * math.log(p)
            else:
                p_m = max(p - clip, 0)
                expected -= p_m**4 * math.log(1 - p_m)
    found = MultilabelLoss(config)(logits, targets)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_without_focus_and_shift_it_is_binary_cross_entropy() -> None:
    logits, targets = draw()
    plain = MultilabelConfig(loss="asymmetric", gamma_neg=0.0, gamma_pos=0.0, clip=0.0)
    torch.testing.assert_close(
        MultilabelLoss(plain)(logits, targets), MultilabelLoss(BCE)(logits, targets)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_extreme_logits_have_a_finite_loss_and_gradient(gamma: float, clip: float) -> None:
    config = MultilabelConfig(loss="asymmetric", gamma_neg=gamma, gamma_pos=gamma, clip=clip)
    logits = torch.tensor([[-200.0, -20, 0, 20, 200]]).repeat(2, 1).requires_grad_()
    targets = torch.tensor([[1.0] * 5, [0.0] * 5])
    loss = MultilabelLoss(config)(logits, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_absent_labels_that_are_recognised_cost_nothing() -> None:
    logits = torch.logit(torch.tensor([[0.04, 0.049, 0.3]])).requires_grad_()
    MultilabelLoss(ASYMMETRIC)(logits, torch.zeros(1, 3)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0, :2].tolist() == [0, 0]
    assert logits.grad[0, 2] > 0


def test_positive_weights_even_out_up_to_a_limit() -> None:
    targets = torch.zeros(100, 5)
    targets[:20, 0] = targets[:80, 1] = targets[:2, 2] = targets[:, 3] = 1
    targets[:10, 0] = NAN  # then 10 of 90 have it
    assert compute_pos_weight(targets).tolist() == pytest.approx([8, 0.25, 10, 0.1, 10])


def test_the_loss_of_a_config() -> None:
    samples = [Sample(str(i), "a" if i else "", "train", "") for i in range(5)]
    logits, targets = torch.zeros(1, 1), torch.ones(1, 1)
    for kind, weight in (("none", 1), ("balanced", 0.25)):
        config = TrainConfig.model_validate({"class_weights": kind, "label_smoothing": 0.0})
        loss = build_loss(config, samples, torch.device("cpu"), labels=("a",), own=BCE)
        assert float(loss(logits, targets)) == pytest.approx(weight * math.log(2))


# --- distillation


def distill(teacher_logits: Tensor, order: tuple[int, ...] | None, weight: float) -> Tensor:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(teacher_logits)

        def forward(self, _images: Tensor) -> Tensor:
            return self.values

    preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)
    teacher = Teacher(Fixed(), preprocessing, False, None, order, False, "fixed")
    config = DistillConfig(teacher="fixed", temperature=2.0, weight=weight)
    loss = DistillationLoss(
        MultilabelLoss(BCE), [teacher], config, preprocessing, torch.float32, compute_divergence
    )
    logits, targets = draw()
    return loss(logits, targets, torch.zeros(6, 3, 8, 8))


def test_distillation_by_hand() -> None:
    logits, targets = draw()
    teacher = logits.flip(0) + 0.5
    divergence = 0.0
    for s, t in zip(logits.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        p, q = (1 / (1 + math.exp(-z / 2.0)) for z in (t, s))
        divergence += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    own = float(MultilabelLoss(BCE)(logits, targets))
    for weight in (0.0, 0.3, 1.0):
        expected = (1 - weight) * own + weight * 4.0 * divergence
        assert float(distill(teacher, None, weight)) == pytest.approx(expected, rel=1e-5)


def test_a_teacher_with_its_labels_in_another_order() -> None:
    logits, _ = draw()
    assert float(distill(logits, None, 1.0)) == pytest.approx(0, abs=1e-5)
    shuffled = logits[:, [2, 0, 3, 1]]
    assert float(distill(shuffled, (1, 3, 0, 2), 1.0)) == pytest.approx(0, abs=1e-5)
    assert float(distill(shuffled, None, 1.0)) > 1


def test_the_divergence_differs_from_binary_cross_entropy_by_what_the_student_cannot_change() -> (
    None
):
    teacher, _ = draw()
    student = teacher.flip(0).clone().requires_grad_()
    (found,) = torch.autograd.grad(compute_divergence(teacher, student), student)
    entropy = F.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher), reduction="sum")
    (expected,) = torch.autograd.grad(entropy, student)
    torch.testing.assert_close(found, expected)
