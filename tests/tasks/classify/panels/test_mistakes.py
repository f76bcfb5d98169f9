"""The worst mistakes as a contact sheet, and the reliability plot."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from support.images import write_image

from mnft.tasks.classify import metrics
from mnft.tasks.classify.decision import calibration
from mnft.tasks.classify.panels.mistakes import find_worst, plot_mistakes, plot_reliability
from mnft.tasks.classify.predictions import MISTAKES, Predictions, write_evaluation

pytestmark = pytest.mark.plots

NAMES = ["rose", "tulip", "\U0010f999"]
TARGETS = np.array([0, 0, 1, 2])
# Right, wrong, wrong and surer of it, wrong with the least of the true class.
PROBABILITIES = np.array([[0.9, 0.1, 0], [0.4, 0.5, 0.1], [0.8, 0.2, 0], [0.3, 0.65, 0.05]])


@pytest.fixture(name="figures")
def fixture_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        drawn.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return drawn


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_the_worst_mistakes_give_the_true_class_the_least():
    assert find_worst(TARGETS, PROBABILITIES) == [3, 2, 1]
    assert find_worst(TARGETS, PROBABILITIES, 2) == [3, 2]
    assert find_worst(TARGETS[:1], PROBABILITIES[:1]) == []


def test_mistakes_are_shown_with_what_was_said_and_what_is_true(tmp_path, figures):
    paths = [f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        write_image(tmp_path / path, (200, 30, 30), seed=number)
    path = tmp_path / "sheet.png"
    assert plot_mistakes(tmp_path, paths, TARGETS, PROBABILITIES, NAMES, path)
    with Image.open(path) as image:
        assert image.width > image.height > 200
    heading = figures[0].texts[0].get_text()
    captions = [text.get_text() for axes in figures[0].axes for text in axes.texts]
    assert heading.replace("\n", " ").startswith("all mistakes: what the model says")
    assert "[n]: rows of per_class.csv" in heading
    assert captions == [
        "tulip 65%\ntrue: [3] 5.0%\n3.png",
        "rose 80%\ntrue: tulip 20.0%\n2.png",
        "tulip 50%\ntrue: rose 40.0%\n1.png",
    ]


def test_images_that_are_gone_or_damaged_are_said_to_be(tmp_path, figures):
    (tmp_path / "b.png").write_bytes(b"no image")
    paths = ["a.png", "gone/caf\udce9.png", "b.png", "\U0010f998.png"]
    assert plot_mistakes(tmp_path, paths, TARGETS, PROBABILITIES, NAMES, tmp_path / "x.png")
    shown = texts(figures[0])
    assert shown.count("cannot be read") == 3
    assert any(text.endswith("caf?.png") for text in shown)
    assert any(text.endswith("\n?.png") for text in shown)


def test_at_most_24_are_shown_and_the_rest_is_counted(tmp_path, figures):
    targets, probabilities = np.zeros(30, dtype=int), np.tile([0.2, 0.8], (30, 1))
    plot_mistakes(tmp_path, ["x"] * 30, targets, probabilities, ["a", "b"], tmp_path / "x.png")
    assert figures[0].texts[0].get_text().startswith("the 24 worst of 30 mistakes: ")
    assert len(figures[0].axes) == 24


def test_an_evaluation_has_both_pictures_and_no_sheet_without_mistakes(tmp_path):
    logits = np.log(np.maximum(PROBABILITIES, 1e-9)).astype(np.float32)
    paths = [f"{number}.png" for number in range(4)]
    result = metrics.compute_evaluation(logits, TARGETS, NAMES)
    predictions = Predictions(paths, TARGETS, PROBABILITIES)
    write_evaluation(tmp_path / "a", result, predictions, NAMES, header={}, root=tmp_path)
    assert {"reliability.png", MISTAKES} < {path.name for path in (tmp_path / "a").iterdir()}

    result = metrics.compute_evaluation(logits, PROBABILITIES.argmax(1), NAMES)
    predictions = replace(predictions, targets=PROBABILITIES.argmax(1))
    write_evaluation(tmp_path / "b", result, predictions, NAMES, header={}, root=tmp_path)
    assert not (tmp_path / "b" / MISTAKES).exists()


def test_reliability_has_a_point_a_bin_and_its_interval(tmp_path, figures):
    rng = np.random.default_rng(0)
    likely = rng.uniform(0.5, 1, 500)
    targets = (rng.uniform(size=500) > likely).astype(int)
    probabilities = np.stack([likely, 1 - likely], axis=1)
    plot_reliability(targets, probabilities, tmp_path / "x.png", ece=0.0123)
    bins = calibration.compute_reliability(likely, targets == 0)
    filled = [b for b in bins if b.num_images]
    upper, lower = figures[0].axes
    (points,) = [line for line in upper.lines if line.get_marker() == "o"]
    assert list(points.get_xdata()) == [100 * b.confidence for b in filled]
    assert list(points.get_ydata()) == [100 * b.num_correct / b.num_images for b in filled]
    assert len(upper.collections) == len(filled)
    assert [patch.get_height() for patch in lower.patches] == [b.num_images for b in bins]
    assert "expected calibration error 0.012, 500 images" in texts(figures[0])
    assert upper.get_ylabel() == "accuracy in %"


def test_reliability_of_one_image(tmp_path):
    plot_reliability(np.array([0]), np.array([[1.0]]), tmp_path / "x.png", ece=0.0)
    assert (tmp_path / "x.png").is_file()


def test_the_bins_are_those_of_the_calibration_error():
    confidences = np.array([0.05, 0.5, 0.5, 0.51, 1.0])
    correct = np.array([False, True, False, True, True])
    bins = calibration.compute_reliability(confidences, correct, num_bins=4)
    assert [(b.num_images, b.num_correct) for b in bins] == [(1, 0), (2, 1), (1, 1), (1, 1)]
    assert [b.confidence for b in bins] == pytest.approx([0.05, 0.5, 0.51, 1.0])
    ece = sum(abs(b.num_correct - b.num_images * b.confidence) for b in bins) / 5
    assert calibration.compute_ece(confidences, correct, num_bins=4) == pytest.approx(ece)


def test_pictures_are_not_imported_for_predictions():
    code = "import sys, mnft.commands.predict; print('matplotlib' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
