"""The files of an evaluation, read back, and the confusion picture."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mnft.tasks.classify import metrics
from mnft.tasks.classify.panels.confusion import plot_confusion
from mnft.tasks.classify.predictions import Predictions, write_evaluation

NAMES = ["=cmd()", "<script>alert(1)</script>", 'a,b"c', "-dash", "ヒマワリ", "$x_{$ $"]
PATHS = ["=cmd()/1.jpg", "-dash/2.jpg", 'a,b"c/3.jpg', "ヒマワリ/4 5.jpg", "new\nline.jpg"]
PATHS += ["@at.jpg", "+plus.jpg", "\ttab.jpg", "\rreturn.jpg", "plain.jpg"]
FILES = {
    "metrics.json",
    "predictions.csv",
    "per_class.csv",
    "confusion_matrix.csv",
    "confusion_matrix.png",
    "reliability.png",
    "risk_coverage.csv",
    "risk_coverage.png",
}
HEADER = {"checkpoint": "runs/flowers/best", "split": "test"}


def build_case(seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, len(NAMES), size=len(PATHS))
    logits = rng.normal(size=(len(PATHS), len(NAMES))).astype(np.float32)
    result = metrics.compute_evaluation(logits, targets, NAMES)
    return result, Predictions(PATHS, targets, metrics.softmax(logits))


@pytest.fixture(scope="module", name="written")
def fixture_written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "eval"
    result, predictions = build_case()
    write_evaluation(folder, result, predictions, NAMES, header=HEADER)
    return folder, result, predictions


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def strip_guard(cell):
    return cell[1:] if cell.startswith("'") else cell


def test_folder_holds_the_files_and_nothing_else(written):
    folder, _, _ = written
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["eval"]


def test_metrics_json_holds_the_header_and_every_figure(written):
    folder, result, _ = written
    got = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert list(got)[:2] == ["checkpoint", "split"]
    low, high = result.accuracy_interval
    assert got == {
        **HEADER,
        "num_images": 10,
        "num_known_images": 10,
        "num_classes": 6,
        "loss": result.loss,
        "accuracy": result.accuracy,
        "accuracy_interval": {"low": low, "high": high, "level": 0.95, "method": "wilson"},
        "top5_accuracy": result.top5,
        "macro": {
            "precision": result.macro.precision,
            "recall": result.macro.recall,
            "f1": result.macro.f1,
        },
        "macro_over": "classes that have images",
        "weighted": {
            "precision": result.weighted.precision,
            "recall": result.weighted.recall,
            "f1": result.weighted.f1,
        },
        "expected_calibration_error": result.ece,
        "calibration_bins": 15,
        "temperature": 1.0,
        "calibration": {
            "nll": result.loss,
            "brier": result.calibration.brier,
            "ece": result.ece,
            "ece_interval": {
                "level": 0.95,
                "method": "bootstrap",
                "low": result.calibration.ece_interval.low,
                "high": result.calibration.ece_interval.high,
            },
        },
        **dict.fromkeys(("uncalibrated", "decision", "other", "unknown")),
        "per_class": [
            {
                "name": row.name,
                "precision": row.precision,
                "recall": row.recall,
                "f1": row.f1,
                "support": row.support,
                "predicted": row.predicted,
            }
            for row in result.per_class
        ],
    }


def test_predictions_csv_reads_back(written):
    folder, _, predictions = written
    header, *rows = read_csv(folder / "predictions.csv")
    assert header[:6] == ["path", "target", "prediction", "confidence", "correct", "error"]
    assert header[6] == "p_'=cmd()"
    assert [column.removeprefix("p_").removeprefix("'") for column in header[6:]] == NAMES
    expected_paths = [path.replace("\r", "\\r") for path in PATHS]
    assert [strip_guard(row[0]) for row in rows] == expected_paths
    for row, target, probabilities in zip(
        rows, predictions.targets, predictions.probabilities, strict=True
    ):
        best = probabilities.argmax()
        assert strip_guard(row[1]) == NAMES[target]
        assert strip_guard(row[2]) == NAMES[best]
        assert float(row[3]) == pytest.approx(probabilities[best], rel=1e-5)
        assert row[4] == str(int(best == target))
        assert row[5] == ""
        assert [float(cell) for cell in row[6:]] == pytest.approx(probabilities, rel=1e-5)


def test_unreadable_files_follow_with_their_reason(tmp_path):
    bad = {"=bad.jpg": "the file is empty", "b.png": "-not an image"}
    write_evaluation(tmp_path / "eval", *build_case(), NAMES, header={}, unreadable=bad)
    rows = read_csv(tmp_path / "eval/predictions.csv")
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == 1 + len(PATHS) + 2
    blank = [""] * len(NAMES)
    assert rows[-2] == ["'=bad.jpg", "", "", "", "", "the file is empty", *blank]
    assert rows[-1] == ["b.png", "", "", "", "", "'-not an image", *blank]


def test_predictions_agree_with_the_figures(written):
    folder, result, _ = written
    _, *rows = read_csv(folder / "predictions.csv")
    assert sum(int(row[4]) for row in rows) / len(rows) == result.accuracy
    confusion = np.zeros((6, 6), dtype=int)
    for row in rows:
        confusion[NAMES.index(strip_guard(row[1])), NAMES.index(strip_guard(row[2]))] += 1
    assert confusion.tolist() == result.confusion


def test_probabilities_have_six_significant_digits(tmp_path):
    names = ["a", "b", "c"]
    probabilities = np.array([[0.123456789, 1.23456789e-9, 0.876543210]])
    logits, targets = np.log(probabilities), np.array([2])
    result = metrics.compute_evaluation(logits, targets, names)
    predictions = Predictions(["x.jpg"], targets, probabilities)
    write_evaluation(tmp_path / "eval", result, predictions, names, header={})
    text = (tmp_path / "eval/predictions.csv").read_text(encoding="utf-8")
    assert text.splitlines()[1] == "x.jpg,c,c,0.876543,1,,0.123457,1.23457e-09,0.876543"


@pytest.mark.parametrize("name", ["predictions.csv", "per_class.csv", "confusion_matrix.csv"])
def test_no_text_cell_starts_a_formula(written, name):
    cells = [cell for row in read_csv(written[0] / name) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert any(cell.startswith("'=cmd()") for cell in cells)


def test_per_class_csv_reads_back(written):
    folder, result, _ = written
    header, *rows = read_csv(folder / "per_class.csv")
    assert header == ["class", "precision", "recall", "f1", "support", "predicted"]
    assert [strip_guard(row[0]) for row in rows] == NAMES
    for row, expected in zip(rows, result.per_class, strict=True):
        shares = [expected.precision, expected.recall, expected.f1]
        assert [float(cell) for cell in row[1:4]] == pytest.approx(shares, rel=1e-5)
        assert [int(cell) for cell in row[4:]] == [expected.support, expected.predicted]


def test_confusion_csv_reads_back(written):
    folder, result, _ = written
    header, *rows = read_csv(folder / "confusion_matrix.csv")
    assert [strip_guard(cell) for cell in header[1:]] == NAMES
    assert [strip_guard(row[0]) for row in rows] == NAMES
    assert [[int(cell) for cell in row[1:]] for row in rows] == result.confusion


def test_file_name_that_is_not_utf8_is_written(tmp_path):
    result, predictions = build_case()
    paths = ["caf\udce9.jpg", *PATHS[1:]]
    header = {"checkpoint": "caf\udce9"}
    predictions = replace(predictions, paths=paths)
    write_evaluation(tmp_path / "eval", result, predictions, NAMES, header=header)
    assert read_csv(tmp_path / "eval/predictions.csv")[1][0] == "caf\\udce9.jpg"
    got = json.loads((tmp_path / "eval/metrics.json").read_text(encoding="utf-8"))
    assert got["checkpoint"] == "caf\udce9"


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fail(*args, **kwargs):
    raise OSError("disk full")


@pytest.mark.parametrize(
    "step",
    ["predictions.write_csv", "predictions._prediction_rows", "panels.confusion.plot_confusion"],
)
def test_a_failure_in_the_middle_leaves_the_old_folder_whole(tmp_path, monkeypatch, step):
    folder = tmp_path / "eval"
    write_evaluation(folder, *build_case(0), NAMES, header=HEADER)
    before = read_bytes(folder)
    monkeypatch.setattr(f"mnft.tasks.classify.{step}", fail)
    with pytest.raises(OSError, match="disk full"):
        write_evaluation(folder, *build_case(1), NAMES, header=HEADER)
    assert read_bytes(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["eval"]


@pytest.mark.plots
def test_a_second_evaluation_takes_the_place_of_the_first(tmp_path):
    folder = tmp_path / "eval"
    write_evaluation(folder, *build_case(0), NAMES, header=HEADER)
    before = read_bytes(folder)
    (folder / "stale.txt").write_text("old")
    write_evaluation(folder, *build_case(1), NAMES, header=HEADER)
    after = read_bytes(folder)
    assert set(after) == FILES
    assert all(after[name] != before[name] for name in FILES)


def test_a_figure_that_is_not_finite_is_never_written(tmp_path):
    result, predictions = build_case()
    broken = replace(result, loss=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        write_evaluation(tmp_path / "eval", broken, predictions, NAMES, header={})
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_hides_a_figure_is_refused(tmp_path):
    with pytest.raises(ValueError, match="accuracy"):
        write_evaluation(tmp_path / "eval", *build_case(), NAMES, header={"accuracy": 1})


def test_lengths_that_differ_are_bugs(tmp_path):
    result, predictions = build_case()
    short = replace(predictions, paths=PATHS[:-1])
    with pytest.raises(ValueError, match="paths"):
        write_evaluation(tmp_path / "eval", result, short, NAMES, header={})
    with pytest.raises(ValueError, match="classes"):
        write_evaluation(tmp_path / "eval", result, predictions, NAMES[:-1], header={})


def random_confusion(num_classes):
    rng = np.random.default_rng(num_classes)
    confusion = np.diag(rng.integers(20, 60, size=num_classes))
    confusion[rng.integers(num_classes, size=50), rng.integers(num_classes, size=50)] += 3
    return confusion.tolist()


def plot(folder, confusion, names, title="title"):
    path = folder / "confusion.png"
    plot_confusion(confusion, names, path, title=title)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.copy()


@pytest.mark.plots
def test_picture_grows_with_the_classes(tmp_path):
    sizes = []
    for num_classes in (1, 2, 10, 30):
        names = [f"class {index}" for index in range(num_classes)]
        sizes.append(plot(tmp_path, random_confusion(num_classes), names).height)
    assert sizes == sorted(sizes)
    assert sizes[-1] > 3 * sizes[0]


@pytest.mark.plots
def test_picture_of_a_thousand_classes_stays_of_a_usable_size(tmp_path):
    names = [f"n{index:08d} some long class name" for index in range(1000)]
    size = plot(tmp_path, random_confusion(1000), names).size
    assert min(size) > 2000
    assert max(size) < 4000


@pytest.mark.plots
def test_picture_of_an_absent_class_and_of_no_errors(tmp_path):
    plot(tmp_path, [[0, 0], [0, 5]], ["absent", "present"])
    plot(tmp_path, np.diag([3] * 40).tolist(), [str(index) for index in range(40)])


@pytest.fixture(name="texts")
def fixture_texts(monkeypatch):
    """Collect every text that is drawn."""
    drawn = []
    save = Figure.savefig

    def collect(figure, *args, **kwargs):
        drawn.extend(text.get_text() for text in figure.findobj(Text))
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", collect)
    return drawn


@pytest.mark.plots
def test_picture_names_axes_classes_and_counts(tmp_path, texts):
    plot(tmp_path, [[11, 7], [0, 13]], ["cat", "dog"], title="accuracy")
    assert {"true", "predicted", "cat", "dog", "11", "7", "13", "accuracy"} <= set(texts)


@pytest.mark.plots
def test_picture_shows_any_name_as_it_is(tmp_path, texts):
    long = "a class name that is far too long for the margin, variety B"
    names = ["$x_{$ $", "ヒマワリ 🌻", "two\nlines", long, "", "ورد"]
    plot(tmp_path, random_confusion(6), names, title=r"$\frac{$ ヒ")
    assert {"$x_{$ $", "two lines"} <= set(texts)
    # As it is where a font has it, else as a number: test_fonts.py.
    assert {"ヒマワリ 🌻", "[2] ヒマワリ", "[2]"} & set(texts)
    assert any("…" in text and text.endswith("variety B") for text in texts)
    assert long not in texts


def test_most_frequent_confusions_are_listed_largest_first(tmp_path, texts):
    confusion = np.diag([50] * 40)
    confusion[3, 17], confusion[20, 4] = 9, 12
    plot(tmp_path, confusion.tolist(), [f"c{index}" for index in range(40)])
    (listed,) = [text for text in texts if text.startswith("most frequent")]
    assert listed.index("c20 → c4") < listed.index("c3 → c17")
    assert "c0 →" not in listed
    assert {"9", "12"} <= set(texts)


@pytest.mark.plots
def test_plots_need_no_pyplot(tmp_path):
    code = (
        "import sys, pathlib, mnft.tasks.classify.panels.confusion as plots\n"
        "plots.plot_confusion([[1]], ['a'], pathlib.Path(sys.argv[1]), title='')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = os.environ | {"MPLBACKEND": "tkagg"}
    command = [sys.executable, "-c", code, str(tmp_path / "x.png")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").exists()


@pytest.mark.plots
def test_picture_of_the_wrong_shape_is_a_bug(tmp_path):
    with pytest.raises(ValueError, match="3 class names"):
        plot_confusion([[1, 0], [0, 1]], ["a", "b", "c"], tmp_path / "x.png", title="")
