"""What is fitted to a val split, kept with a model, folded into weights and said to people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from scipy.special import softmax

from mnft.config.decision import DecisionConfig
from mnft.errors import ModelError
from mnft.model.bundle import Bundle
from mnft.model.linear_head import DividedOutputs
from mnft.preprocessing import Preprocessing
from mnft.tasks import open_task
from mnft.tasks.classify.answers import ProbableClasses, compare
from mnft.tasks.classify.decision.fit import describe_decision, fit_decision
from mnft.tasks.classify.decision.record import Decision, as_settings, read_settings
from mnft.tasks.classify.metrics import compute_epoch_metrics, compute_evaluation
from mnft.tasks.folding import FOLDED, fold_temperature
from mnft.tasks.outputs import Outputs

NAMES = ("a", "b", "c")


def draw(seed=0, num_images=300, scale=2.5):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_images, 3))
    cumulated = softmax(2 * logits, axis=1).cumsum(1)
    targets = (rng.uniform(size=(num_images, 1)) > cumulated).sum(1)
    return (2 * scale * logits).astype(np.float32), targets


def outputs_of(logits, targets):
    return Outputs(np.arange(len(targets)), logits, targets, {})


def test_a_decision_survives_being_kept():
    decision = fit_decision(*draw(), DecisionConfig(target_accuracy=0.9), None)
    assert decision.temperature > 1.5
    assert 0 < decision.threshold < 1
    assert decision.val["accuracy"] >= 0.9
    assert decision.val["loss"] < decision.val["loss_before"]
    assert read_settings(as_settings(decision)) == decision
    assert as_settings(Decision()) == {}
    assert read_settings({}) == Decision()


def test_what_is_not_wanted_is_not_fitted():
    nothing = fit_decision(*draw(), DecisionConfig(calibrate=False), None)
    assert (nothing, as_settings(nothing)) == (Decision(), {})


@pytest.mark.parametrize(
    "broken",
    [
        {"temperature": 0},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"threshold": 1.5},
        {"threshold": [1]},
    ],
)
def test_damaged_settings_are_refused(broken):
    with pytest.raises(ModelError, match="temperature above 0"):
        open_task(NAMES, "classify", {"decision": broken})
    with pytest.raises(ModelError, match="temperature above 0"):
        open_task(NAMES, "classify", {"decision": "none"})


def test_a_target_out_of_reach_is_said_with_the_best_and_a_hint():
    logits, targets = draw()
    targets = np.where(np.arange(300) % 4 == 0, (logits.argmax(1) + 1) % 3, targets)
    decision = fit_decision(logits, targets, DecisionConfig(target_accuracy=1.0), None)
    assert decision.threshold is None
    (*_, remark) = describe_decision(as_settings(decision))
    assert remark.is_warning
    assert "no threshold gives an accuracy of 1 on val" in remark.text
    assert f"{decision.val['best']['accuracy']:.4f}" in remark.text
    assert "mnft decide" in remark.hint


def test_too_few_val_images_are_said():
    decision = fit_decision(*draw(num_images=12), DecisionConfig(target_accuracy=0.5), None)
    (remark,) = describe_decision(as_settings(decision))
    assert "too few" in remark.text


def test_a_reached_target_is_said_with_its_interval():
    settings = as_settings(fit_decision(*draw(), DecisionConfig(target_accuracy=0.9), None))
    texts = [remark.text for remark in describe_decision(settings)]
    assert [text.split(":")[0] for text in texts] == ["calibrated", "decision"]
    assert "95% interval" in texts[1]


def make_bundle(name, settings, size=(3, 32, 32), **more):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **more).eval()
    mean, std = (0.5,) * size[0], (0.5,) * size[0]
    preprocessing = Preprocessing(size, mean, std, "bilinear", 1.0, "center")
    return Bundle(Path("m"), model, name, NAMES, preprocessing, {}, settings=settings)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_vit"])
def test_a_folded_temperature_gives_the_calibrated_probabilities_and_the_same_argmax(name):
    settings = as_settings(Decision(temperature=0.37, threshold=0.8, val={"images": 1}))
    size = (3, 160, 160) if name == "test_vit" else (3, 32, 32)
    plain, bundle = make_bundle(name, {}, size), make_bundle(name, settings, size)
    images = torch.randn(8, *size)
    with torch.inference_mode():
        before = plain.model(images)
        folded = fold_temperature(bundle)
        after = folded.model(images)
    assert not isinstance(folded.model, DividedOutputs)
    assert torch.equal(before.argmax(1), after.argmax(1))
    torch.testing.assert_close(after.softmax(1), (before / 0.37).softmax(1), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(before, after)
    assert folded.settings[FOLDED]
    with torch.inference_mode():
        assert torch.equal(fold_temperature(folded).model(images), after)  # not once more
    assert fold_temperature(plain) is plain


def test_a_model_whose_outputs_are_no_linear_layer_is_divided_behind_it():
    class Odd(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    bundle = make_bundle("mobilenetv3_small_050", {"decision": {"temperature": 2.0}})
    folded = fold_temperature(Bundle(**{**vars_of(bundle), "model": Odd()}))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(folded.model(images), images.mean((2, 3)) / 2)


def vars_of(bundle):
    return {name: getattr(bundle, name) for name in bundle.__slots__}


def test_the_evaluation_says_what_was_before_and_what_the_threshold_keeps():
    logits, targets = draw()
    decision = fit_decision(logits, targets, DecisionConfig(target_accuracy=0.9), None)
    calibrated = (logits / decision.temperature).astype(np.float32)
    result = compute_evaluation(calibrated, targets, NAMES, decision=decision)
    assert result.uncalibrated.nll == pytest.approx(decision.val["loss_before"], rel=1e-5)
    assert result.calibration.nll == pytest.approx(decision.val["loss"], rel=1e-5)
    assert result.calibration.nll < result.uncalibrated.nll
    assert result.decision.num_kept / 300 == decision.val["kept"]
    assert result.decision.accuracy == decision.val["accuracy"]
    assert "unknown" in result.describe()["decision"]
    assert set(result.as_cells()) == {"accuracy (95%)", "macro-F1", "kept", "accuracy of kept"}
    assert result.as_columns()["kept"] == decision.val["kept"]


def test_images_of_none_of_the_classes_count_in_no_accuracy():
    logits, targets = draw()
    more = np.concatenate([logits, np.full((300, 1), -50, np.float32)], axis=1)
    strange = np.random.default_rng(5).normal(size=(40, 4)).astype(np.float32)
    everything = np.concatenate([more, strange])
    labels = np.concatenate([targets, np.full(40, 3)])
    names = (*NAMES, "_other")
    plain = compute_evaluation(logits, targets, NAMES)
    result = compute_evaluation(everything, labels, names, other=3)
    for figure in ("accuracy", "accuracy_interval", "macro", "weighted"):
        assert getattr(result, figure) == getattr(plain, figure), figure
    assert [m.name for m in result.per_class] == list(NAMES)
    assert (result.num_images, result.num_known, result.other.num_images) == (340, 300, 40)
    assert result.other.accepted == (strange.argmax(1) != 3).mean()
    epoch = compute_epoch_metrics(everything, labels, other=3)
    assert (epoch.accuracy, epoch.macro_f1) == (plain.accuracy, plain.macro.f1)
    assert epoch.loss == result.loss


def test_predict_says_unknown_below_the_threshold_and_keeps_the_guess():
    answers = ProbableClasses(NAMES, 2, threshold=0.6)
    sure, unsure = np.log([0.7, 0.2, 0.1]), np.log([0.5, 0.3, 0.2])
    assert answers.headings == ["class_1", "probability_1", "class_2", "probability_2", "guess"]
    assert answers.as_cells(sure) == ["a", "0.700000", "b", "0.200000", "a"]
    assert answers.as_cells(unsure) == ["unknown", "0.500000", "b", "0.300000", "a"]
    record = answers.as_record(unsure)
    assert record["guess"] == "a"
    assert record["predictions"][0] == {"class": "unknown", "probability": 0.5}
    assert answers.as_record(None) == {"predictions": [], "guess": None}


def test_predict_never_names_the_other_output():
    answers = ProbableClasses((*NAMES, "_other"), 9, other=3)
    other, known = np.log([0.2, 0.1, 0.1, 0.6]), np.log([0.4, 0.1, 0.2, 0.3])
    assert answers.as_cells(other)[:3] == ["unknown", "0.200000", "b"]
    assert answers.as_cells(other)[-1] == "a"
    assert [*answers.as_cells(known)[::2]] == ["a", "c", "b", "a"]
    assert len(answers.headings) == 7


def test_models_agree_if_they_name_the_same_class_or_none():
    first = np.log([[0.7, 0.2, 0.1], [0.58, 0.32, 0.1], [0.3, 0.4, 0.3]])
    second = np.log([[0.65, 0.25, 0.1], [0.62, 0.28, 0.1], [0.4, 0.3, 0.3]])
    pair = (outputs_of(first, np.array([0, 0, 1])), outputs_of(second, np.array([0, 0, 1])))
    assert compare(*pair).agreement == pytest.approx(2 / 3)
    found = compare(*pair, threshold=0.6)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.disagreements == (1,)  # named by the second only; the last by neither
    assert (found.before.value, found.after.value) == (1.0, pytest.approx(2 / 3))
