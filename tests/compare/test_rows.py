"""`mnft compare`: the Pareto front, warnings, files, names, which images, what is refused."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.images import COLOURS, write_image
from typer.testing import Result

from mnft.compare import judging
from mnft.compare.files import COMPARISON_FILES, Setting, write_comparison
from mnft.compare.latency import Latency, Plan
from mnft.compare.rows import (
    Facts,
    Row,
    check_labels,
    compare,
    compute_front,
    describe_slow_int8,
)
from mnft.compare.variants import Variant
from mnft.data.manifest import Manifest, Sample, save_manifest
from mnft.errors import CheckpointError, ExportError
from mnft.exports.artifact import Artifact, write_record
from mnft.exports.convert import convert
from mnft.exports.formats import FORMATS
from mnft.model.bundle import ModelCard, load_bundle, save_bundle
from mnft.model.profile import profile_model
from mnft.preprocessing import Preprocessing
from mnft.tasks import open_task
from mnft.tasks.classify.evaluation import Evaluation
from mnft.tasks.classify.intervals import compute_wilson_interval
from mnft.tasks.classify.metrics import compute_evaluation

Cli = Callable[..., Result]
CLASSES = tuple(COLOURS)  # blue, green, red
HALF = (0.5, 0.5, 0.5)
FACTS = Facts("ONNX", "lenet5", "fp32", CLASSES, "classify", (3, 32, 32), 60_000, 420_000, 250_000)


def evaluation(correct: int, images: int = 100) -> Evaluation:
    """An evaluation of two classes with so many hits."""
    logits = np.tile([1.0, 0.0], (images, 1))
    targets = (np.arange(images) >= correct).astype(np.int64)
    return compute_evaluation(logits, targets, ["a", "b"])


def latency(ms: float, label: str = "x") -> Latency:
    return Latency(label, 2, ms, 1.5 * ms, (ms, ms), 1000 / ms, 32, 80.0)


def row(name: str, correct: int, ms: float, **facts: object) -> Row:
    own = replace(FACTS, **facts)
    return Row(Variant(name, Path(name)), own, evaluation(correct), latency(ms))


# --- the front


def test_front_by_hand():
    #        best cost, dominated, on it, as dear and worse, most accurate
    costs = [1.0, 2.0, 3.0, 3.0, 9.0]
    gains = [0.5, 0.4, 0.7, 0.6, 0.9]
    assert compute_front(costs, gains) == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("costs", "gains", "front"),
    [
        ([], [], []),
        ([1], [0], [True]),
        ([1, 1], [2, 2], [True, True]),  # equal: neither is better
        ([1, 2], [2, 2], [True, False]),
        ([1, 1], [2, 3], [False, True]),
        ([1, 1, 0], [2, 2, 2], [False, False, True]),
    ],
)
def test_front_with_ties(costs, gains, front):
    assert compute_front(costs, gains) == front


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(points)
def test_front_properties(pairs):
    costs, gains = zip(*pairs, strict=True)
    front = compute_front(costs, gains)
    chosen = sorted({pair for pair, on in zip(pairs, front, strict=True) if on})
    # Along the front both grow strictly, and each other point is beaten by one of the front.
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(chosen))
    for pair, on in zip(pairs, front, strict=True):
        beaten = any(c <= pair[0] and g >= pair[1] and (c, g) != pair for c, g in chosen)
        assert on != beaten


def test_rows_without_figures_are_on_no_front_and_the_first_complete_one_is_the_reference():
    failed = Row(Variant("failed", Path("f")), FACTS, evaluation(100), None, "no runtime")
    rows = [failed, row("a", 90, 4.0), row("b", 80, 2.0), row("c", 80, 3.0, size_bytes=9)]
    result = compare(rows)
    assert result.ratios == (None, 1.0, 0.5, 0.75)
    assert [result.fronts(i) for i in range(4)] == ["", "latency, size", "latency", "size"]


# --- int8 that does not pay


def test_slow_int8_is_warned_of_with_the_fastest_of_the_model():
    rows = [
        row("onnx", 90, 2.0),
        row("onnx-int8", 90, 3.0, precision="int8"),
        row("openvino", 90, 2.5, runtime="OpenVINO"),
        row("openvino-int8", 90, 1.0, runtime="OpenVINO", precision="int8"),
        row("another model", 90, 0.1, params=9),
    ]
    (warning,) = describe_slow_int8(rows)
    assert warning.startswith("onnx-int8 is slower than onnx (1.50 times its latency at batch 1)")
    assert warning.endswith("the fastest of this model is openvino-int8 (OpenVINO int8, 1.00 ms)")


def test_int8_is_compared_with_its_own_model_and_format():
    int8 = {"precision": "int8"}
    assert describe_slow_int8([row("a", 9, 1.0, macs=7), row("b", 9, 3.0, **int8)]) == []
    assert describe_slow_int8([row("a", 9, 1.0, runtime="torch"), row("b", 9, 3.0, **int8)]) == []
    assert describe_slow_int8([row("a", 9, 3.0), row("b", 9, 3.0, **int8)]) == []
    assert len(describe_slow_int8([row("a", 9, 2.9), row("b", 9, 3.0, **int8)])) == 1


def test_other_classes_are_refused_and_another_order_is_not():
    check_labels([row("a", 9, 1.0), row("b", 9, 1.0, labels=CLASSES[::-1])])
    with pytest.raises(
        CheckpointError, match="b has other classes than a: it lacks blue and also has pink"
    ):
        check_labels([row("a", 9, 1.0), row("b", 9, 1.0, labels=("green", "pink", "red"))])


# --- files


@pytest.fixture
def written(tmp_path):
    rows = [
        row("=cmd()", 90, 4.0),
        row("a|b", 80, 0.05, params=None, macs=None),
        Row(Variant("none", Path("n")), None, problem="no such\nruntime"),
    ]
    setting = Setting("data", "test", 100, 2, Plan(rounds=2), open_task(CLASSES), ("int8 is slow",))
    write_comparison(tmp_path / "c", compare(rows), setting)
    return tmp_path / "c"


def test_the_files_hold_the_figures(written):
    on_request = {"comparison.html"}
    assert {path.name for path in written.iterdir()} == COMPARISON_FILES - on_request
    record = json.loads((written / "comparison.json").read_text())
    assert record["images"] == {"data": "data", "split": "test", "count": 100}
    assert (record["threads"], record["rounds"], record["calls_per_round"]) == (2, 2, 10)
    first, second, third = record["models"]
    assert (first["accuracy"], first["latency_ratio"]) == (0.9, 1.0)
    assert (first["accuracy_low"], first["accuracy_high"]) == compute_wilson_interval(90, 100)
    assert (second["latency_median_ms"], second["pareto_latency"]) == (0.05, True)
    assert (third["accuracy"], third["problem"]) == (None, "no such\nruntime")
    with (written / "comparison.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["model"] for line in table] == ["'=cmd()", "a|b", "none"]
    assert list(table[0]) == list(first)
    assert (table[0]["latency_p95_ms"], table[1]["params"]) == ("6", "")
    assert table[1]["latency_ratio"] == "0.0125"


def test_the_page_is_a_table_that_names_cannot_break(written):
    page = (written / "comparison.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + 3
    assert {line.replace("\\|", "").count("|") for line in lines} == {12 + 1}
    assert "- none: no such runtime" in page
    assert "- int8 is slow" in page


@pytest.mark.plots
def test_the_picture_is_there(written):
    with Image.open(written / "comparison.png") as image:
        assert image.width > image.height > 500
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20


@pytest.mark.parametrize("count", [1, 3, 10])
def test_names_in_the_picture_do_not_overlap(tmp_path, monkeypatch, count):
    from mnft.compare import plot as comparison_plot

    figures = []
    monkeypatch.setattr(comparison_plot, "save_figure", lambda figure, _: figures.append(figure))
    rng = np.random.default_rng(count)
    rows = [
        row(f"model-{i} onnx-int8", int(rng.integers(88, 94)), float(rng.uniform(1, 9)))
        for i in range(count)
    ]
    comparison_plot.plot_comparison(compare(rows), tmp_path / "x.png", title="t", metric="accuracy")
    (axes,) = figures[0].axes
    figures[0].canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == count
    inside = axes.get_window_extent().padded(1)
    for number, box in enumerate(boxes):
        assert box.count_overlaps(boxes[number + 1 :]) == 0
        assert inside.count_contains([(box.x0, box.y0), (box.x1, box.y1)]) == 2


def test_a_name_that_no_font_has_is_a_number_in_the_picture(tmp_path, monkeypatch):
    from mnft.compare import plot as comparison_plot

    figures = []
    monkeypatch.setattr(comparison_plot, "save_figure", lambda figure, _: figures.append(figure))
    rows = [row("a", 90, 1.0), row("\U0010f999", 91, 2.0)]
    comparison_plot.plot_comparison(compare(rows), tmp_path / "x.png", title="t", metric="accuracy")
    (axes,) = figures[0].axes
    assert [text.get_text().partition(",")[0] for text in axes.texts] == ["a", "[2]"]
    assert "[n]: rows of comparison.csv" in axes.get_xlabel()


# --- the command


def save_model(folder: Path, classes: tuple[str, ...] = CLASSES) -> None:
    """LeNet-5 that is right now and then; with its rows of the head in the order of `classes`."""
    torch.manual_seed(3)
    model = timm.create_model("lenet5", num_classes=3)
    order = [CLASSES.index(name) if name in CLASSES else 0 for name in classes]
    with torch.no_grad():
        model.classifier.weight.copy_(20 * model.classifier.weight[order])
        model.classifier.bias.copy_(model.classifier.bias[order])
    preprocessing = Preprocessing((3, 32, 32), HALF, HALF, "bilinear", 1.0)
    card = ModelCard("lenet5", {}, preprocessing, classes, model.pretrained_cfg)
    save_bundle(folder, model.state_dict(), card, {})


def save_run(folder: Path, root: Path, classes: tuple[str, ...] = CLASSES) -> None:
    save_model(folder / "best", classes)
    samples = []
    for path in sorted(root.rglob("*.png")):
        split, name = path.relative_to(root).parts[:2]
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        samples.append(Sample(path.relative_to(root).as_posix(), name, split, sha256))
    save_manifest(Manifest(root, CLASSES, tuple(samples)), folder / "split.json")
    (folder / "config.yaml").write_text(f"data:\n  root: {root}\n")


def add_export(run: Path, name: str) -> Path:
    folder = run / "exports" / name
    folder.mkdir(parents=True)
    artifact = convert(load_bundle(run / "best"), FORMATS[name], folder, embed=False)
    write_record(folder, artifact)
    return folder


def add_coreml(run: Path) -> Path:
    """A folder as an export writes it; Core ML cannot be run on this system."""
    folder = run / "exports/coreml"
    folder.mkdir(parents=True)
    (folder / "model.mlpackage").write_text("x")
    preprocessing = Preprocessing((3, 32, 32), HALF, HALF, "bilinear", 1.0)
    write_record(
        folder, Artifact("coreml", "model.mlpackage", "lenet5", CLASSES, preprocessing, "logits")
    )
    return folder


@pytest.fixture
def root(make_folder: Callable[..., Path]) -> Path:
    folder = make_folder(splits=("train", "val", "test"), per_class=4)
    noise = np.random.default_rng(0)
    for path in folder.rglob("*.png"):
        red, green, blue = noise.integers(0, 256, 3).tolist()
        write_image(path, (red, green, blue), seed=int(noise.integers(10_000)))
    return folder


@pytest.fixture
def run(tmp_path: Path, root: Path) -> Path:
    folder = tmp_path / "runs/lenet"
    save_run(folder, root)
    return folder


@pytest.fixture
def fake(monkeypatch):
    """Latencies of 1, 2, 3, ... ms, so that no process is started; gives the variants asked for."""
    asked = []

    def measure(variants, plan, reporter):
        asked.extend(variants)
        return [latency(float(i), v.label) for i, v in enumerate(variants, 1)]

    monkeypatch.setattr(judging, "measure_each", measure)
    return asked


def test_a_run_with_its_exports_is_measured_for_real(run_cli: Cli, run: Path, root: Path) -> None:
    add_export(run, "onnx")
    options = ("--exports", "--threads", 1, "--rounds", 1, "--json")
    result = run_cli("compare", run, *options)
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    ours, onnx = record["models"]
    assert [ours["model"], onnx["model"]] == ["lenet torch", "lenet onnx"]
    evaluated = run_cli("eval", "--ckpt", run, "--device", "cpu", "--workers", 0, "--json")
    figures = json.loads(evaluated.stdout)
    costs = profile_model("lenet5", num_classes=3)
    for model in (ours, onnx):
        assert model["accuracy"] == figures["accuracy"]
        assert model["macro_f1"] == figures["macro"]["f1"]
        assert (model["params"], model["macs"]) == (costs.params, costs.macs)
        assert 0 < model["latency_median_ms"] <= model["latency_p95_ms"]
        assert (model["threads"], model["batch_size"]) == (1, 32)
        assert model["problem"] is None
    assert ours["latency_ratio"] == 1.0
    assert onnx["size_bytes"] == (run / "exports/onnx/model.onnx").stat().st_size
    assert record["images"] == {"data": str(root), "split": "test", "count": 12}
    assert record == {
        "output": "comparison",
        **json.loads(Path("comparison/comparison.json").read_text()),
    }


def test_the_table_and_its_names(run_cli: Cli, run: Path, fake: list, tmp_path: Path) -> None:
    add_export(run, "torchscript")
    shutil.copytree(run / "best", run / "last")
    shutil.copytree(run / "best", tmp_path / "alone")
    file = run / "exports/torchscript/model.pt"
    result = run_cli("compare", run, run / "best", run / "last", "alone", file, "--compile")
    assert result.exit_code == 0, result.stderr
    names = ["lenet torch", "lenet torch compiled", "lenet/last torch"]
    names += ["lenet/last torch compiled", "alone torch", "alone torch compiled"]
    assert [v.label for v in fake] == [*names, "lenet torchscript"]
    header, first, second, *_ = result.stdout.splitlines()
    assert header.split()[:2] == ["model", "accuracy"]
    assert "1.00x" in first
    assert "2.00x" in second
    assert "12 images of" in result.stderr
    # The compiled model has the accuracy of the eager one.
    rows = json.loads(Path("comparison/comparison.json").read_text())["models"]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]


def test_models_of_one_name_are_told_apart(run_cli, run, fake, root, tmp_path):
    shutil.copytree(run, tmp_path / "other/lenet")
    run_cli("compare", run, tmp_path / "other/lenet")
    assert [v.label for v in fake] == ["lenet torch", "lenet torch (2)"]


def test_what_cannot_run_is_listed_and_does_not_stop_the_others(run_cli, run, fake):
    coreml = add_coreml(run)
    result = run_cli("compare", coreml, run)
    assert result.exit_code == 0, result.stderr
    assert "warning: lenet coreml: Core ML files cannot be run here" in result.stderr
    assert [v.label for v in fake] == ["lenet torch"]
    failed, fine = json.loads(Path("comparison/comparison.json").read_text())["models"]
    assert failed["problem"] == "Core ML files cannot be run here"
    assert (failed["size_bytes"], failed["latency_ratio"]) == (1, None)
    assert (fine["latency_ratio"], fine["pareto_latency"]) == (1.0, True)
    assert "failed" in result.stdout


def test_a_damaged_export_is_listed(run_cli, run, fake):
    (add_export(run, "torchscript") / "model.pt").write_bytes(b"x")
    result = run_cli("compare", run, "--exports")
    assert result.exit_code == 0, result.stderr
    assert "not the file that model.json was written for" in result.stderr


def test_only_failures_are_an_error_and_leave_no_files(run_cli, run, fake, monkeypatch):
    result = run_cli("compare", add_coreml(run))
    assert result.exit_code == 1
    assert "none of the 1 models can be opened" in result.stderr

    def fail(variants, plan, reporter):
        return [ExportError(f"{v.label}: died") for v in variants]

    monkeypatch.setattr(judging, "measure_each", fail)
    result = run_cli("compare", run)
    assert result.exit_code == 1
    assert "none of the 1 models can be compared:\n  lenet torch: lenet torch: died" in (
        result.stderr
    )
    assert not Path("comparison").exists()


def test_classes_in_another_order_are_matched_by_name(run_cli, run, root, fake, tmp_path):
    save_model(tmp_path / "turned", ("red", "blue", "green"))
    result = run_cli("compare", run, tmp_path / "turned", "--json")
    ours, turned = json.loads(result.stdout)["models"]
    assert 0 < ours["accuracy"] < 1
    assert turned["accuracy"] == ours["accuracy"]
    assert turned["macro_f1"] == pytest.approx(ours["macro_f1"])


def test_other_classes_stop_the_comparison(run_cli, run, fake, tmp_path):
    save_model(tmp_path / "pink", ("blue", "green", "pink"))
    result = run_cli("compare", run, "pink")
    assert result.exit_code == 1
    assert "pink torch has other classes than lenet torch: it lacks red and also has pink" in (
        result.stderr
    )


def test_a_model_that_was_trained_on_the_images_is_named(run_cli, run, root, fake, tmp_path):
    turned = tmp_path / "turned"
    shutil.copytree(root, turned)
    (turned / "train").rename(turned / "x")
    (turned / "test").rename(turned / "train")
    (turned / "x").rename(turned / "test")
    save_run(tmp_path / "runs/b", turned)
    result = run_cli("compare", run, tmp_path / "runs/b")
    warning = "b torch: 12 of the 12 images are in the model's training split"
    assert warning in result.stderr
    assert "lenet torch: 12" not in result.stderr
    record = json.loads(Path("comparison/comparison.json").read_text(encoding="utf-8"))
    assert [entry for entry in record["warnings"] if entry.startswith(warning)]


def test_the_images_are_those_of_the_first_run_or_named(run_cli, run, root, fake, tmp_path):
    shutil.copytree(run / "best", tmp_path / "alone")

    def images(*options: object) -> dict[str, object]:
        result = run_cli("compare", "alone", *options, "--json", "-o", "out")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)["images"]

    assert images(run) == {"data": str(root), "split": "test", "count": 12}
    assert images(run, "--split", "val") == {"data": str(root), "split": "val", "count": 12}
    plain = root / "train"
    assert images("--data", plain) == {"data": str(plain), "split": "all", "count": 12}
    result = run_cli("compare", "alone", "-o", "out")
    assert result.exit_code == 1
    assert "does not lie in a run" in result.stderr


def test_only_an_earlier_comparison_is_replaced(run_cli, run, fake, tmp_path):
    for _ in range(2):
        assert run_cli("compare", run).exit_code == 0
    (tmp_path / "comparison/notes.txt").write_text("mine")
    for target in ("comparison", "runs", run / "config.yaml"):
        result = run_cli("compare", run, "-o", target)
        assert result.exit_code == 2
        assert "is not an earlier comparison" in result.stderr
    assert (tmp_path / "comparison/notes.txt").read_text() == "mine"


def test_a_path_that_is_no_model_is_refused(run_cli, run, fake):
    result = run_cli("compare", run, "runs/lenett")
    assert result.exit_code == 1
    assert "runs/lenett does not exist" in result.stderr
    assert run_cli("compare").exit_code == 2
    assert run_cli("compare", run, "--threads", 0).exit_code == 2


def test_the_legend_says_which_of_the_fronts_is_drawn() -> None:
    """The table marks two fronts, latency and size; the picture shows the first."""
    from matplotlib.figure import Figure

    from mnft.compare.plot import draw_legend

    axes = Figure().subplots()
    draw_legend(axes, {"ONNX": ("black", "o")})
    legend = axes.get_legend()
    assert legend is not None
    assert "Pareto front of latency" in [text.get_text() for text in legend.get_texts()]
    assert legend.get_title().get_text().endswith("on that front")
