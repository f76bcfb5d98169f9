"""`mnft eval`: the figures, which images, what is refused, what is written."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from support.images import write_image
from support.runs import CLASSES, record_split, save_model
from typer.testing import Result

from mnft.data.lineage import pack, shorten
from mnft.tasks.classify.evaluation import UNKNOWN_IMAGES
from mnft.tasks.classify.predictions import EVALUATION_FILES, MISTAKES

Cli = Callable[..., Result]


@pytest.fixture
def root(make_folder: Callable[..., Path]) -> Path:
    folder = make_folder(splits=("train", "val", "test"), per_class=5)
    noise = np.random.default_rng(0)
    for path in folder.rglob("*.png"):  # colours that the model takes for different classes
        colour = tuple(int(value) for value in noise.integers(0, 256, 3))
        write_image(path, colour, seed=int(noise.integers(10_000)))  # type: ignore[arg-type]
    return folder


@pytest.fixture
def run(tmp_path: Path, root: Path) -> Path:
    """A run folder with three splits of 15 images."""
    folder = tmp_path / "runs" / "colours"
    save_model(folder / "best")
    record_split(folder, root)
    return folder


@pytest.fixture
def evaluate(run_cli: Cli) -> Cli:
    def evaluate(checkpoint: Path | str, *options: object) -> Result:
        return run_cli("eval", "--ckpt", checkpoint, "--device", "cpu", "--workers", 0, *options)

    return evaluate


def answer(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.plots
def test_figures_are_those_of_scikit_learn_from_the_predictions(run: Path, evaluate: Cli) -> None:
    found = answer(evaluate(run, "--json"))
    rows = predictions(run / "eval")
    assert len(rows) == found["num_images"] == 15
    targets, predicted = ([row[key] for row in rows] for key in ("target", "prediction"))
    assert 0.1 < found["accuracy"] < 0.9  # the model errs, so the figures can differ
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(targets, predicted))
    for average in ("macro", "weighted"):
        expected = metrics.precision_recall_fscore_support(
            targets, predicted, labels=CLASSES, average=average, zero_division=0
        )[:3]
        own = found[average]
        assert (own["precision"], own["recall"], own["f1"]) == pytest.approx(expected)
    confusion = metrics.confusion_matrix(targets, predicted, labels=CLASSES)
    assert found["confusion"] == confusion.tolist()
    probabilities = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])
    probabilities /= probabilities.sum(1, keepdims=True)
    loss = metrics.log_loss(targets, probabilities, labels=CLASSES)
    assert found["loss"] == pytest.approx(loss, rel=1e-4)
    per_class = metrics.precision_recall_fscore_support(
        targets, predicted, labels=CLASSES, zero_division=0
    )
    for index, name in enumerate(CLASSES):
        own = found["per_class"][name]
        expected = [column[index] for column in per_class]
        assert [own[k] for k in ("precision", "recall", "f1", "support")] == pytest.approx(expected)


def test_probabilities_are_those_of_the_model_on_each_image(
    run: Path, root: Path, evaluate: Cli
) -> None:
    """Each row belongs to its own path: the order of files, targets and outputs is one."""
    import timm
    from PIL import Image

    assert evaluate(run).exit_code == 0
    model = timm.create_model(f"local-dir:{run / 'best'}", pretrained=True).eval()
    for row in predictions(run / "eval"):
        image = Image.open(root / row["path"]).resize((32, 32), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            expected = model((pixels - 0.5) / 0.5).softmax(1)[0]
        assert row["path"].split("/")[1] == row["target"]
        own = [float(row[f"p_{name}"]) for name in CLASSES]
        assert own == pytest.approx(expected.tolist(), abs=1e-4)


def test_output_folder_and_text(run: Path, evaluate: Cli) -> None:
    result = evaluate(run)
    assert result.exit_code == 0
    always = EVALUATION_FILES - {MISTAKES, UNKNOWN_IMAGES}
    assert {entry.name for entry in (run / "eval").iterdir()} >= always
    stored = json.loads((run / "eval" / "metrics.json").read_text(encoding="utf-8"))
    assert (run / "eval" / MISTAKES).is_file() == (stored["accuracy"] < 1)
    assert stored["split"] == "test"
    assert stored["checkpoint"] == str(run / "best")
    assert f"{stored['accuracy']:.2%}" in result.stdout
    assert "95% Wilson interval" in result.stdout
    assert "over the classes that have images" in " ".join(result.stdout.split())
    assert "written to" in result.stderr
    again = evaluate(run, "--output", "elsewhere/new")
    assert again.exit_code == 0
    elsewhere = Path("elsewhere/new/predictions.csv")
    assert elsewhere.read_bytes() == (run / "eval" / "predictions.csv").read_bytes()


def test_json_is_one_object_on_stdout(run: Path, evaluate: Cli) -> None:
    found = answer(evaluate(run, "--json"))
    assert found["checkpoint"] == str(run / "best")
    assert found["output"] == str(run / "eval")
    assert found["split"] == "test"
    assert set(found["per_class"]) == set(CLASSES)


def test_split_is_test_or_else_val(run: Path, root: Path, evaluate: Cli) -> None:
    assert answer(evaluate(run, "--json"))["split"] == "test"
    assert answer(evaluate(run, "--json", "--split", "train"))["split"] == "train"
    shutil.rmtree(root / "test")
    record_split(run, root)
    shutil.rmtree(run / "eval")
    assert answer(evaluate(run, "--json"))["split"] == "val"
    missing = evaluate(run, "--split", "test")
    assert missing.exit_code == 1
    assert "no test split, it has train, val" in missing.stderr


def test_an_unknown_split_is_wrong_usage(run: Path, evaluate: Cli) -> None:
    result = evaluate(run, "--split", "dev")
    assert result.exit_code == 2
    assert "found 'dev'" in result.stderr


def test_run_and_model_folder_are_the_same_checkpoint(
    run: Path, evaluate: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(evaluate(run, "--json"))
    monkeypatch.chdir(run)
    for checkpoint in (run / "best", ".", "best", "./best/"):
        found = answer(evaluate(checkpoint, "--json"))
        assert found["confusion"] == expected["confusion"]
        assert Path(found["output"]).resolve() == (run / "eval").resolve()
    monkeypatch.chdir(run / "best")
    for checkpoint in (".", ".."):
        found = answer(evaluate(checkpoint, "--json"))
        assert found["confusion"] == expected["confusion"]
        assert Path(found["output"]).resolve() == (run / "eval").resolve()


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("missing", "missing does not exist"),
        ("images", "images is not a model or run folder"),
        ("runs/colours/best/model.safetensors", "is not a model or run folder"),
        ("runs/empty", "has no best model"),
    ],
)
def test_checkpoints_that_are_none(run: Path, evaluate: Cli, checkpoint: str, message: str) -> None:
    (run.parent / "empty").mkdir()
    (run.parent / "empty" / "config.yaml").write_text("data:\n  root: images\n")
    result = evaluate(checkpoint)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "hint:" in result.stderr


@pytest.mark.parametrize("options", [("--batch-size", 1), ("--batch-size", 4), ("--workers", 2)])
def test_batches_and_workers_change_nothing(
    run: Path, evaluate: Cli, options: tuple[object, ...]
) -> None:
    first = answer(evaluate(run, "--json"))
    second = answer(evaluate(run, "--json", *options))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert second["confusion"] == first["confusion"]


def test_a_changed_image_is_an_error(run: Path, root: Path, evaluate: Cli) -> None:
    write_image(root / "test" / "red" / "000.png", (1, 2, 3), seed=5)
    (root / "test" / "blue" / "001.png").unlink()
    result = evaluate(run)
    assert result.exit_code == 1
    assert "2 of the 15 test images are not what they were" in result.stderr
    assert "test/red/000.png: its content has changed" in result.stderr
    assert not (run / "eval").exists()
    assert evaluate(run, "--split", "val").exit_code == 0


# Other images


def test_a_copy_of_the_images_elsewhere_gives_the_same(
    run: Path, root: Path, evaluate: Cli, tmp_path: Path
) -> None:
    expected = answer(evaluate(run, "--json"))
    shutil.copytree(root, tmp_path / "moved")
    found = answer(evaluate(run, "--json", "--data", tmp_path / "moved"))
    assert found["confusion"] == expected["confusion"]
    assert found["loss"] == pytest.approx(expected["loss"])
    assert found["output"] == str(run / "eval-moved")
    assert (run / "eval" / "metrics.json").exists()


def flat_copy(root: Path, target: Path, prefix: str = "") -> None:
    for path in root.rglob("*.png"):
        *splits, name, file = path.relative_to(root).parts
        split = prefix or splits[0]
        (target / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / name / f"{split}-{file}")


def test_a_split_is_known_by_content_in_a_flat_folder(
    run: Path, root: Path, evaluate: Cli, tmp_path: Path
) -> None:
    expected = answer(evaluate(run, "--json"))
    flat_copy(root, tmp_path / "flat")
    result = evaluate(run, "--json", "--data", tmp_path / "flat", "--split", "test")
    assert answer(result)["confusion"] == expected["confusion"]
    assert "training split" not in result.stderr
    whole = evaluate(run, "--json", "--data", tmp_path / "flat")
    assert answer(whole)["num_images"] == 45
    assert "15 of the 45 images are in the model's training split" in whole.stderr
    stored = json.loads((run / "eval-flat" / "metrics.json").read_text(encoding="utf-8"))
    assert stored["images_trained_on"] == answer(whole)["images_trained_on"] == 15


@pytest.mark.parametrize("data", [False, True])
def test_the_training_split_is_named_however_it_is_asked_for(
    run: Path, root: Path, evaluate: Cli, data: bool
) -> None:
    where = ("--data", root) if data else ()
    result = evaluate(run, "--split", "train", *where)
    assert "15 of the 15 images are in the model's training split" in result.stderr
    result = evaluate(run, "--split", "val", *where)
    assert "warning" not in result.stderr


def test_a_model_folder_that_was_copied_still_knows_its_training_images(
    run: Path, root: Path, evaluate: Cli, tmp_path: Path
) -> None:
    trained = {shorten(hashlib.sha256(p.read_bytes()).hexdigest()) for p in root.rglob("train/*/*")}
    save_model(tmp_path / "alone", record={"trained_on": pack(trained)})
    for split, seen in (("train", True), ("test", False)):
        result = evaluate(tmp_path / "alone", "--data", root / split, "-o", tmp_path / split)
        assert ("15 of the 15 images were trained on by it" in result.stderr) == seen
        assert "its figures" in result.stderr or not seen
    record = json.loads((tmp_path / "alone/mnft.json").read_text())
    (tmp_path / "alone/mnft.json").write_text(json.dumps(record | {"trained_on": 3}))
    damaged = evaluate(tmp_path / "alone", "--data", root / "test")
    assert damaged.exit_code == 1
    assert "mnft.json: damaged" in damaged.stderr


def test_a_val_split_that_was_cut_from_train_is_known_by_content(
    run: Path, root: Path, evaluate: Cli, tmp_path: Path
) -> None:
    expected = {s: answer(evaluate(run, "--json", "--split", s)) for s in ("train", "val")}
    moved = tmp_path / "moved"
    shutil.copytree(root / "test", moved / "test")
    for split in ("train", "val"):  # as before the training cut val from train
        flat_copy(root / split, moved / "train", prefix=split)
    for split, known in expected.items():
        result = evaluate(run, "--json", "--data", moved, "--split", split)
        found = answer(result)
        assert (found["num_images"], found["split"]) == (15, split)
        assert found["confusion"] == known["confusion"]
        assert ("training split" in result.stderr) == (split == "train")


def test_the_train_folder_of_other_data_is_taken_whole(
    run: Path, evaluate: Cli, make_folder: Callable[..., Path]
) -> None:
    other = make_folder("other", splits=("train",), per_class=4)
    result = evaluate(run, "--data", other)
    assert result.exit_code == 1
    assert "neither a test nor a val split, only train" in result.stderr
    assert "--split train" in result.stderr
    found = answer(evaluate(run, "--json", "--data", other, "--split", "train"))
    assert found["num_images"] == 12
    assert evaluate(run, "--data", other, "--split", "val").exit_code == 1


def test_a_split_of_a_flat_folder_needs_a_record(
    run: Path, root: Path, evaluate: Cli, tmp_path: Path
) -> None:
    shutil.copytree(run / "best", tmp_path / "alone")
    flat_copy(root, tmp_path / "flat")
    result = evaluate(tmp_path / "alone", "--data", tmp_path / "flat", "--split", "test")
    assert result.exit_code == 1
    assert "leave --split out" in result.stderr
    found = answer(evaluate(tmp_path / "alone", "--json", "--data", tmp_path / "flat"))
    assert (found["num_images"], found["split"]) == (45, "all")
    assert found["output"] == str(tmp_path / "alone-eval")
    bare = evaluate(tmp_path / "alone")
    assert bare.exit_code == 1
    assert "--data DIR" in bare.stderr


def test_a_foreign_config_beside_a_model_is_left_alone(
    run: Path, root: Path, evaluate: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run / "best", tmp_path / "app" / "model")
    (tmp_path / "app" / "config.yaml").write_text("port: 8080\n")
    found = answer(evaluate(tmp_path / "app" / "model", "--json", "--data", root))
    assert found["output"] == str(tmp_path / "app" / "model-eval")
    monkeypatch.chdir(tmp_path / "app" / "model")
    assert evaluate(".", "--data", root).exit_code == 0


def test_a_part_of_the_classes_is_matched_by_name(
    run: Path, root: Path, evaluate: Cli, tmp_path: Path
) -> None:
    shutil.copytree(root / "test" / "red", tmp_path / "some" / "red")
    shutil.copytree(root / "test" / "green", tmp_path / "some" / "green")
    expected = answer(evaluate(run, "--json"))["confusion"]
    found = answer(evaluate(run, "--json", "--data", tmp_path / "some"))
    assert found["num_images"] == 10
    assert found["confusion"] == [[0, 0, 0], *expected[1:]]
    assert set(found["per_class"]) == set(CLASSES)


def test_classes_in_another_order(run: Path, root: Path, evaluate: Cli, tmp_path: Path) -> None:
    """A model whose outputs are not in the order of the folder's names."""
    expected = answer(evaluate(run, "--json"))
    shutil.copytree(run / "best", tmp_path / "other")
    config = json.loads((run / "best" / "config.json").read_text())
    config["label_names"] = ["red", "blue", "green"]
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    refused = evaluate(tmp_path / "other", "--data", root, "--split", "test")
    assert refused.exit_code == 1
    assert "config.json: changed since it was written: label_names" in refused.stderr
    record = json.loads((tmp_path / "other" / "mnft.json").read_text())
    del record["config_sha256"]  # as the hint says, where it was meant
    (tmp_path / "other" / "mnft.json").write_text(json.dumps(record))
    found = answer(evaluate(tmp_path / "other", "--json", "--data", root, "--split", "test"))
    outputs = ["blue", "green", "red"]  # what the outputs are called in `expected`
    for name, row in zip(outputs, expected["confusion"], strict=True):
        assert found["confusion"][["red", "blue", "green"].index(name)] == row


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["green", "blue", "red"], "calls class 1 'green', the run 'blue'"),
        (["blue", "green", "scarlet"], "calls class 3 'scarlet', the run 'red'"),
    ],
)
def test_a_run_of_before_the_checksum_is_compared_with_its_split(
    run: Path, root: Path, evaluate: Cli, run_cli: Cli, names: list[str], message: str
) -> None:
    record = json.loads((run / "best" / "mnft.json").read_text())
    del record["config_sha256"]
    (run / "best" / "mnft.json").write_text(json.dumps(record))
    assert evaluate(run).exit_code == 0
    config = json.loads((run / "best" / "config.json").read_text())
    (run / "best" / "config.json").write_text(json.dumps(config | {"label_names": names}))
    image = next((root / "test").rglob("*.png"))
    for result in (evaluate(run), run_cli("predict", "--ckpt", run, image, "--workers", 0)):
        assert result.exit_code == 1
        assert message in result.stderr


def test_an_unknown_class_is_refused(run: Path, root: Path, evaluate: Cli) -> None:
    (root / "test" / "red").rename(root / "test" / "scarlet")
    result = evaluate(run, "--data", root)
    assert result.exit_code == 1
    assert "classes that the model does not know: scarlet" in result.stderr
    assert "the model knows blue, green, red" in result.stderr


def test_unreadable_images_are_left_out_and_named(
    run: Path, root: Path, evaluate: Cli, tmp_path: Path
) -> None:
    shutil.copytree(root / "test", tmp_path / "some")
    (tmp_path / "some" / "red" / "000.png").write_bytes(b"no image")
    (tmp_path / "some" / "blue" / "001.png").write_bytes(b"")
    result = evaluate(run, "--json", "--data", tmp_path / "some")
    assert answer(result)["num_images"] == 13
    assert "left out: red/000.png" in result.stderr
    assert "left out: blue/001.png" in result.stderr
    stored = json.loads((run / "eval-some" / "metrics.json").read_text())
    assert set(stored["unreadable"]) == {"red/000.png", "blue/001.png"}
    rows = predictions(run / "eval-some")
    assert len(rows) == 15
    errors = {row["path"]: row["error"] for row in rows if not row["prediction"]}
    assert errors == stored["unreadable"]


def test_no_image_that_can_be_used(run: Path, evaluate: Cli, tmp_path: Path) -> None:
    (tmp_path / "some" / "red").mkdir(parents=True)
    (tmp_path / "some" / "red" / "a.png").write_bytes(b"")
    result = evaluate(run, "--data", tmp_path / "some")
    assert result.exit_code == 1
    assert "no images" in result.stderr
    assert evaluate(run, "--data", tmp_path / "missing").exit_code == 1


# The output folder


def test_an_earlier_evaluation_is_replaced_and_nothing_else(
    run: Path, evaluate: Cli, tmp_path: Path
) -> None:
    assert evaluate(run).exit_code == 0
    assert evaluate(run).exit_code == 0
    thesis = tmp_path / "work" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    for target in (thesis.parent, thesis, "."):
        result = evaluate(run, "--output", target)
        assert result.exit_code == 2
        assert "is not an earlier evaluation" in result.stderr
    assert thesis.read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert evaluate(run, "--output", tmp_path / "empty").exit_code == 0


def test_each_model_split_and_folder_has_its_own_default(
    run: Path, root: Path, evaluate: Cli, tmp_path: Path
) -> None:
    shutil.copytree(run / "best", run / "last")
    shutil.copytree(root, tmp_path / "moved")
    moved = ("--data", tmp_path / "moved")
    cases: list[tuple[Path, tuple[object, ...], str]] = [
        (run, (), "eval"),
        (run, ("--split", "test"), "eval"),
        (run, ("--split", "train"), "eval-train"),
        (run / "last", (), "eval-last"),
        (run / "last", ("--split", "train"), "eval-last-train"),
        (run, moved, "eval-moved"),
        (run, (*moved, "--split", "val"), "eval-moved-val"),
        (run / "last", moved, "eval-last-moved"),
    ]
    for checkpoint, options, name in cases:
        found = answer(evaluate(checkpoint, "--json", *options))
        assert found["output"] == str(run / name)


def test_another_evaluation_is_not_replaced(
    run: Path, root: Path, evaluate: Cli, tmp_path: Path
) -> None:
    shutil.copytree(run / "best", run / "last")
    shutil.copytree(root, tmp_path / "moved")
    target = tmp_path / "out"
    assert evaluate(run, "-o", target).exit_code == 0
    before = (target / "metrics.json").read_bytes()
    others: dict[str, tuple[object, ...]] = {
        "checkpoint": (run / "last",),
        "data": (run, "--data", tmp_path / "moved"),
        "split": (run, "--split", "train"),
    }
    for what, (checkpoint, *options) in others.items():
        result = evaluate(checkpoint, "-o", target, *options)  # type: ignore[arg-type]
        assert result.exit_code == 2
        assert f"holds the evaluation of another {what}" in result.stderr
        assert "-o DIR" in result.stderr
    assert (target / "metrics.json").read_bytes() == before


def test_a_run_that_moved_replaces_its_evaluation(run: Path, evaluate: Cli) -> None:
    assert evaluate(run).exit_code == 0
    moved = run.rename(run.with_name("renamed"))
    assert evaluate(moved).exit_code == 0
    stored = json.loads((moved / "eval" / "metrics.json").read_text())
    assert stored["checkpoint"] == str(moved / "best")


def test_hidden_files_block_only_what_is_no_evaluation(
    run: Path, evaluate: Cli, tmp_path: Path
) -> None:
    assert evaluate(run).exit_code == 0
    (run / "eval" / ".DS_Store").write_bytes(b"x")
    assert evaluate(run).exit_code == 0
    (run / "eval" / ".git").mkdir()
    assert evaluate(run).exit_code == 2
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".profile").write_text("x")
    assert evaluate(run, "-o", tmp_path / "home").exit_code == 2


def test_a_model_that_gives_no_numbers(run: Path, evaluate: Cli) -> None:
    from safetensors.torch import load_file, save_file

    path = run / "best" / "model.safetensors"
    weights = load_file(path)
    weights["conv1.bias"] = torch.full((6,), float("nan"))
    save_file(weights, path)
    record = json.loads((path.parent / "mnft.json").read_text())
    record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "mnft.json").write_text(json.dumps(record))
    result = evaluate(run)
    assert result.exit_code == 1
    assert "finite" in result.stderr
    assert not (run / "eval").exists()


# A run that cannot be written


def forbid_writing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let a folder be read-only, under root too."""
    import errno
    import os
    import tempfile

    def refuse(dir: Path, prefix: str, suffix: str) -> str:
        assert Path(dir) == folder
        path = str(folder / f"{prefix}abc{suffix}")
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)


def test_figures_of_a_read_only_run_are_shown(
    run: Path, evaluate: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_writing(monkeypatch, run)
    result = evaluate(run)
    assert result.exit_code == 1
    assert "accuracy " in result.stdout
    assert "written to" not in result.stderr
    error = f"error: {run / 'eval'}: Permission denied\nhint: name another place to write to: "
    assert result.stderr.endswith(error + "--output PATH\n")
    result = evaluate(run, "--json")
    assert json.loads(result.stdout)["output"] is None
    monkeypatch.undo()
    assert evaluate(run, "-o", run.parent / "elsewhere").exit_code == 0


def test_the_run_may_stand_without_a_flag(run: Path, run_cli: Cli) -> None:
    result = run_cli("eval", run, "--device", "cpu", "--workers", 0, "--json")
    assert answer(result)["checkpoint"] == str(run / "best")


def test_the_bins_of_the_calibration_error_are_told(run: Path, evaluate: Cli) -> None:
    assert "  (15 bins; 95% bootstrap interval" in evaluate(run).stdout
    values = json.loads((run / "eval" / "metrics.json").read_text(encoding="utf-8"))
    assert values["calibration_bins"] == 15
