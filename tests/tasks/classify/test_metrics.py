"""The figures against scikit-learn, naive loops and published values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax as scipy_softmax
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from mnft.errors import DataError, ModelError
from mnft.tasks.classify import metrics
from mnft.tasks.classify.decision import calibration
from mnft.tasks.classify.evaluation import Evaluation


def names(num_classes):
    return [f"class {index}" for index in range(num_classes)]


def random_case(seed, num_images=200, num_classes=8, absent=()):
    """Logits that are right about half the time; classes in `absent` have no images."""
    rng = np.random.default_rng(seed)
    present = np.setdiff1d(np.arange(num_classes), absent)
    targets = rng.choice(present, size=num_images)
    logits = rng.normal(scale=2, size=(num_images, num_classes)).astype(np.float32)
    logits[np.arange(num_images), targets] += 2
    return logits, targets


CASES = {
    "plain": random_case(0),
    "other seed": random_case(1, num_images=333, num_classes=5),
    "binary": random_case(2, num_images=50, num_classes=2),
    "absent classes": random_case(3, absent=(0, 3, 7)),
    "one image": random_case(4, num_images=1),
    "one class present": random_case(5, num_classes=3, absent=(0, 2)),
    "more classes than images": random_case(6, num_images=30, num_classes=102),
}


@pytest.fixture(params=CASES, name="case")
def fixture_case(request):
    return CASES[request.param]


def test_scores_equal_scikit_learn(case):
    logits, targets = case
    classes = np.arange(logits.shape[1])
    predictions = logits.argmax(axis=1)
    result = metrics.compute_evaluation(logits, targets, names(len(classes)))

    assert result.num_images == len(targets)
    assert result.accuracy == accuracy_score(targets, predictions)
    assert result.confusion == confusion_matrix(targets, predictions, labels=classes).tolist()
    expected = precision_recall_fscore_support(
        targets, predictions, labels=classes, average=None, zero_division=0
    )
    per_class = result.per_class
    assert [row.name for row in per_class] == names(len(classes))
    assert [row.precision for row in per_class] == expected[0].tolist()
    assert [row.recall for row in per_class] == expected[1].tolist()
    assert [row.f1 for row in per_class] == pytest.approx(expected[2], rel=1e-15)
    assert [row.support for row in per_class] == expected[3].tolist()
    assert [row.predicted for row in per_class] == np.bincount(
        predictions, minlength=len(classes)
    ).tolist()


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_averages_equal_scikit_learn_over_the_classes_present(case, average):
    logits, targets = case
    predictions = logits.argmax(axis=1)
    expected = precision_recall_fscore_support(
        targets, predictions, labels=np.unique(targets), average=average, zero_division=0
    )
    result = metrics.compute_evaluation(logits, targets, names(logits.shape[1]))
    averages = getattr(result, average)
    got = (averages.precision, averages.recall, averages.f1)
    assert got == pytest.approx(expected[:3], rel=1e-14)


def test_absent_classes_do_not_drag_the_macro_average_down():
    logits, targets = CASES["absent classes"]
    predictions = logits.argmax(axis=1)
    everything = f1_score(targets, predictions, average="macro", zero_division=0)
    assert metrics.compute_epoch_metrics(logits, targets).macro_f1 > everything + 0.1


def test_loss_equals_scikit_learn(case):
    logits, targets = case
    labels = np.arange(logits.shape[1])
    probabilities = scipy_softmax(logits.astype(np.float64), axis=1)
    expected = log_loss(targets, probabilities, labels=labels)
    assert metrics.compute_epoch_metrics(logits, targets).loss == pytest.approx(expected, rel=1e-12)


def test_loss_is_stable_where_the_probability_underflows():
    logits = np.array([[1000, 0], [-1000, 1000]], dtype=np.float32)
    assert metrics.compute_epoch_metrics(logits, np.array([1, 0])).loss == 1500
    assert metrics.compute_epoch_metrics(logits, np.array([0, 1])).loss == 0


def test_epoch_metrics_equal_the_evaluation_to_the_last_digit(case):
    logits, targets = case
    full = metrics.compute_evaluation(logits, targets, names(logits.shape[1]))
    quick = metrics.compute_epoch_metrics(logits, targets)
    assert quick == (full.loss, full.accuracy, full.macro.f1)
    assert quick.macro_f1 == metrics.compute_macro_f1(np.array(full.confusion))


def test_result_does_not_depend_on_the_chunks(monkeypatch):
    logits, targets = CASES["plain"]
    whole = metrics.compute_evaluation(logits, targets, names(8))
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", 3 * 8)
    assert metrics.compute_evaluation(logits, targets, names(8)) == whole


def test_records_hold_plain_python_numbers():
    result = metrics.compute_evaluation(*CASES["plain"], names(8))
    assert isinstance(result, Evaluation)
    values = [result.loss, result.accuracy, result.top5, result.ece, *result.accuracy_interval]
    values += [result.macro.f1, result.weighted.recall, result.per_class[0].precision]
    assert {type(value) for value in values} == {float}
    counts = [result.num_images, result.per_class[0].support, result.confusion[0][0]]
    assert {type(count) for count in counts} == {int}


def test_inputs_are_left_alone():
    logits, targets = random_case(9)
    before = logits.copy(), targets.copy()
    metrics.compute_evaluation(logits, targets, names(8))
    metrics.softmax(logits)
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(targets, before[1])


def test_perfect_and_all_wrong():
    targets = np.arange(12) % 6
    logits = 50 * np.eye(6, dtype=np.float32)[targets]
    perfect = metrics.compute_evaluation(logits, targets, names(6))
    assert (perfect.accuracy, perfect.top5, perfect.macro.f1, perfect.weighted.f1) == (1, 1, 1, 1)
    assert perfect.loss < 1e-18
    assert perfect.ece < 1e-15
    wrong = metrics.compute_evaluation(-logits, targets, names(6))
    assert (wrong.accuracy, wrong.top5, wrong.macro.f1, wrong.weighted.f1) == (0, 0, 0, 0)
    assert wrong.accuracy_interval[0] == 0


@pytest.mark.parametrize("seed", range(3))
def test_top5_equals_scikit_learn(seed):
    logits, targets = random_case(seed, num_classes=20)
    expected = top_k_accuracy_score(targets, logits, k=5, labels=np.arange(20))
    result = metrics.compute_evaluation(logits, targets, names(20))
    assert result.top5 == expected
    assert 0.2 < result.top5 < 1


def test_top5_is_none_where_it_says_nothing():
    assert metrics.compute_evaluation(*CASES["other seed"], names(5)).top5 is None
    assert metrics.compute_evaluation(*random_case(0, num_classes=6), names(6)).top5 is not None


def test_ties_go_to_the_lower_class_as_in_argmax():
    logits = np.zeros((7, 7), dtype=np.float32)
    targets = np.arange(7)
    result = metrics.compute_evaluation(logits, targets, names(7))
    assert result.accuracy == metrics.compute_top_k(logits, targets, k=1) == 1 / 7
    assert result.top5 == 5 / 7
    assert metrics.compute_top_k(logits[:1], np.array([4]), k=5) == 1
    assert metrics.compute_top_k(logits[:1], np.array([5]), k=5) == 0


def naive_ece(confidences, correct, num_bins):
    """Guo et al. 2017, eq. 3, word by word."""
    total = 0.0
    for index in range(num_bins):
        low, high = index / num_bins, (index + 1) / num_bins
        members = [i for i, value in enumerate(confidences) if low < value <= high]
        if members:
            accuracy = sum(bool(correct[i]) for i in members) / len(members)
            confidence = sum(float(confidences[i]) for i in members) / len(members)
            total += len(members) / len(confidences) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("num_bins", [1, 10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_ece_equals_the_naive_loop(seed, num_bins):
    rng = np.random.default_rng(seed)
    confidences = rng.uniform(0.01, 1, size=400)
    correct = rng.random(400) < confidences**2
    expected = naive_ece(confidences, correct, num_bins)
    got = calibration.compute_ece(confidences, correct, num_bins=num_bins)
    assert got == pytest.approx(expected, rel=1e-12)
    assert got > 0.01


def test_ece_by_hand_with_right_closed_bins():
    # Two bins: (0, 0.5] holds 0.3 and 0.5, (0.5, 1] holds 0.7 and 1.
    confidences = np.array([0.3, 0.5, 0.7, 1.0])
    correct = np.array([False, True, False, True])
    # 2/4 * |1/2 - 0.4| + 2/4 * |1/2 - 0.85|; left-closed bins would give 0.125.
    assert calibration.compute_ece(confidences, correct, num_bins=2) == pytest.approx(0.225)


def test_evaluation_takes_15_bins_over_the_top1_confidence():
    logits, targets = CASES["plain"]
    probabilities = scipy_softmax(logits.astype(np.float64), axis=1)
    correct = logits.argmax(axis=1) == targets
    expected = naive_ece(probabilities.max(axis=1), correct, 15)
    result = metrics.compute_evaluation(logits, targets, names(8))
    assert result.ece == pytest.approx(expected, rel=1e-10)


def test_wilson_interval_equals_the_published_values():
    # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3.
    assert metrics.compute_wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert metrics.compute_wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert metrics.compute_wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert metrics.compute_wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@pytest.mark.parametrize("num_images", [1, 7, 400, 10**6])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.93, 1])
def test_wilson_interval_equals_scipy(num_images, share):
    num_correct = round(share * num_images)
    interval = binomtest(num_correct, num_images).proportion_ci(0.95, method="wilson")
    got = metrics.compute_wilson_interval(num_correct, num_images)
    assert got == pytest.approx((interval.low, interval.high), rel=1e-12, abs=1e-15)
    assert 0 <= got[0] <= num_correct / num_images <= got[1] <= 1


def test_evaluation_gives_the_interval_of_its_accuracy():
    result = metrics.compute_evaluation(*CASES["plain"], names(8))
    correct = round(result.accuracy * 200)
    assert result.accuracy_interval == metrics.compute_wilson_interval(correct, 200)
    assert result.accuracy_interval[0] < result.accuracy < result.accuracy_interval[1]


def test_softmax_equals_scipy_and_survives_large_logits():
    logits = np.array([[1, 2, 3], [1e30, 0, -1e30], [-1e4, -1e4, -1e4]], dtype=np.float32)
    probabilities = metrics.softmax(logits)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities, scipy_softmax(logits.astype(np.float64), axis=1))


def test_softmax_keeps_the_argmax_of_close_float32_logits():
    logits = np.array([[0, 20, np.nextafter(np.float32(20), np.float32(21))]], dtype=np.float32)
    assert metrics.softmax(logits).argmax() == logits.argmax() == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_counted(bad):
    logits, targets = random_case(0, num_images=20)
    logits[3, 1] = logits[3, 2] = logits[17, 0] = bad
    with pytest.raises(ModelError, match="2 of 20 images"):
        metrics.compute_evaluation(logits, targets, names(8))
    with pytest.raises(ModelError, match="2 of 20 images"):
        metrics.compute_epoch_metrics(logits, targets)


def test_no_images_is_an_error():
    logits, targets = np.zeros((0, 3), dtype=np.float32), np.zeros(0, dtype=np.int64)
    with pytest.raises(DataError, match="no images"):
        metrics.compute_epoch_metrics(logits, targets)


@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_outside_the_classes_is_an_error(target):
    with pytest.raises(DataError, match="3 classes"):
        metrics.compute_epoch_metrics(np.zeros((1, 3), dtype=np.float32), np.array([target]))


def test_wrong_shapes_are_bugs():
    logits, targets = CASES["plain"]
    with pytest.raises(ValueError, match="class names"):
        metrics.compute_evaluation(logits, targets, names(7))
    with pytest.raises(ValueError, match="do not fit"):
        metrics.compute_epoch_metrics(logits, targets[:-1])
