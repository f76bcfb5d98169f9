"""What each task's folder offers, and how a model says which task it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from typer.testing import Result

import mnft.tasks
from mnft.config.schema import Config
from mnft.errors import CheckpointError, ModelError
from mnft.exports.artifact import Artifact, read_artifact, write_record
from mnft.model.bundle import CONFIG, ModelCard, load_bundle, save_bundle
from mnft.preprocessing import Preprocessing
from mnft.tasks import TASKS, load_activation, load_label_rules, open_task

Cli = Callable[..., Result]
PREPROCESSING = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)


def test_the_config_names_the_tasks_that_have_a_folder() -> None:
    folders = {p.name for p in Path(mnft.tasks.__file__).parent.iterdir() if p.is_dir()}
    assert set(get_args(Config.model_fields["task"].annotation)) == set(TASKS)
    assert folders - {"__pycache__"} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_keeps_its_word(name: str) -> None:
    task = open_task(("a", "b", "c"), name)
    assert task.name == name
    assert task.figure in task.monitors
    assert task.train_figures[0] == "loss"
    assert load_label_rules(name).task == name
    outputs = torch.tensor([[3.0, 1.0, -2.0], [0.0, 0.5, 0.25]])
    activation = load_activation(name)
    activated = activation.apply(outputs)
    # Back and forth the activation stays what it was, also where it is rounded to 0.
    torch.testing.assert_close(activation.apply(activation.invert(activated)), activated)
    assert activation.invert(torch.zeros(1, 3)).isfinite().all()


def test_a_task_that_is_not_known_is_refused() -> None:
    for function in (load_activation, load_label_rules, lambda name: open_task(("a",), name)):
        with pytest.raises(ModelError, match=r"task '\.\./x'"):
            function("../x")


def save(folder: Path, task: str) -> Path:
    import timm

    import mnft.model  # noqa: F401 - registers LeNet-5

    model = timm.create_model("lenet5", num_classes=2)
    card = ModelCard("lenet5", {}, PREPROCESSING, ("a", "b"), {}, task=task)
    save_bundle(folder, model.state_dict(), card, {})
    return folder


def test_a_model_folder_keeps_its_task_and_a_classifier_needs_no_mark(tmp_path: Path) -> None:
    assert load_bundle(save(tmp_path / "a", "classify")).task == "classify"
    assert "mnft" not in json.loads((tmp_path / "a" / CONFIG).read_text())
    assert load_bundle(save(tmp_path / "b", "paint")).task == "paint"


def test_a_task_that_was_changed_by_hand_is_seen(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", "classify")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"mnft": {"task": "paint"}}))
    with pytest.raises(CheckpointError, match="changed since it was written"):
        load_bundle(folder)


def test_a_model_of_a_newer_version_is_refused_in_words(run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    result = run_cli("predict", "--ckpt", save(tmp_path / "a", "paint"), "x.png")
    assert result.exit_code == 1
    assert "task 'paint', which this mnft does not know" in " ".join(result.stderr.split())


def test_an_export_keeps_its_task_and_those_without_one_are_classifiers(tmp_path: Path) -> None:
    names = ("onnx", "model.onnx", "lenet5")
    (tmp_path / "model.onnx").write_bytes(b"weights")
    write_record(tmp_path, Artifact(*names, ("a", "b"), PREPROCESSING, "outputs", task="paint"))
    artifact = read_artifact(tmp_path)
    assert (artifact.task, artifact.output_name) == ("paint", "outputs")
    record = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(record | {"task": "classify"}))
    with pytest.raises(CheckpointError, match="changed since it was written"):
        read_artifact(tmp_path)
    # As versions before the key wrote it, with their sum.
    del record["task"], record["record_sha256"]
    (tmp_path / "model.json").write_text(json.dumps(record))
    assert read_artifact(tmp_path).task == "classify"
