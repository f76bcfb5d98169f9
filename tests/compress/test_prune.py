"""`mnft prune` from the command line: the table, the run folder, what can be done with it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.images import MakeFolder
from typer.testing import Result

from mnft.compress.prune import steps as prune_steps
from mnft.compress.prune.settings import configure
from mnft.config.load import load_config
from mnft.data.lineage import pack
from mnft.data.manifest import load_manifest
from mnft.errors import Interrupted, TrainError
from mnft.model.bundle import load_bundle

pytest.importorskip("torch_pruning")

Cli = Callable[..., Result]
SMALL = ("prune.epochs=1", "prune.images=16")


class Pruner:
    """A run of a tiny MobileNetV2, and `mnft prune` on it."""

    def __init__(self, cli: Cli, folder: Path, root: Path) -> None:
        self.cli, self.folder, self.root = cli, folder, root
        self.run = folder / "runs" / "net"

    def train(self, *sets: str, model: str = "mobilenetv2_035", name: str = "net") -> Result:
        config = self.folder / "net.yaml"
        sections: dict[str, Any] = {
            "data": {"root": str(self.root), "workers": 0, "img_size": 32},
            "model": {"name": model, "pretrained": False},
            "train": {"epochs": 1, "batch_size": 8, "precision": "fp32", "device": "cpu"},
            "run": {"tensorboard": False, "name": name},
        }
        config.write_text(yaml.safe_dump(sections))
        return self.cli("train", config, *options(sets))

    def __call__(self, *sets: str, ckpt: Path | None = None, more: tuple[Any, ...] = ()) -> Result:
        return self.cli("prune", "--ckpt", ckpt or self.run, *options((*SMALL, *sets)), *more)


def options(sets: tuple[str, ...]) -> list[str]:
    return [part for value in sets for part in ("--set", value)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one trained run of this module is kept."""
    return tmp_path_factory.mktemp("trained") / "net"


@pytest.fixture
def prune(run_cli: Cli, make_folder: MakeFolder, tmp_path: Path, trained: Path) -> Pruner:
    """On 24 training and 24 val images of three plain colours."""
    pruner = Pruner(run_cli, tmp_path, make_folder(splits=("train", "val")))
    if not trained.exists():
        assert pruner.train().exit_code == 0
        shutil.copytree(pruner.run, trained)
    shutil.copytree(trained, pruner.run, dirs_exist_ok=True)
    # The images of each test lie in a folder of its own.
    for name in ("config.yaml", "split.json"):
        text = (pruner.run / name).read_text()
        old = json.loads((trained / "split.json").read_text())["root"]
        (pruner.run / name).write_text(text.replace(old, str(pruner.root)))
    return pruner


def table_of(run: Path) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = json.loads((run / "pruning.json").read_text())["stages"]
    return stages


def test_a_pruned_run_is_a_run_like_any_other(prune, tmp_path):
    result = prune("prune.macs=0.6", "train.early_stopping=3")
    assert result.exit_code == 0, result.output
    run = prune.run / "pruned-60"
    assert result.stdout.strip() == str(run / "best")
    assert (run / "split.json").read_bytes() == (prune.run / "split.json").read_bytes()
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("config.yaml", "split.json", "log.jsonl", "best", "last", "start", "resume.pt"),
        *("pruning.json", "pruning.csv"),
    }
    trained, pruned, tuned = table_of(run)
    assert [s["name"] for s in (trained, pruned, tuned)] == ["trained", "pruned", "fine-tuned"]
    assert 0.4 < pruned["macs_share"] <= 0.6
    assert pruned["macs"] == tuned["macs"]
    assert pruned["size_mb"] < trained["size_mb"]
    assert pruned["folder"] == "start"
    assert tuned["folder"] == "best"
    rows = list(csv.DictReader((run / "pruning.csv").read_text().splitlines()))
    assert [int(row["macs"]) for row in rows] == [s["macs"] for s in (trained, pruned, tuned)]
    for part in ("best", "last", "start"):
        assert json.loads((run / part / "config.json").read_text())["mnft"]["pruned"] is True
        seen = json.loads((run / part / "mnft.json").read_text())["trained_on"]
        assert seen == pack(load_manifest(prune.run / "split.json").trained_on)
    # The figures are those of `mnft eval` on the val split.
    judged = prune.cli("eval", "--ckpt", run, "--split", "val", "--json", "--workers", 0)
    assert json.loads(judged.stdout)["accuracy"] == pytest.approx(tuned["val_accuracy"])
    image = next((prune.root / "val").rglob("*.png"))
    assert prune.cli("predict", "--ckpt", run, image, "--workers", 0).exit_code == 0
    # Nothing names the folder that the work was done in.
    assert ".tmp" not in (run / "config.yaml").read_text() + (run / "log.jsonl").read_text()
    assert not [path for path in prune.run.iterdir() if path.name.endswith(".tmp")]


def test_a_pruned_run_is_resumed_tuned_again_and_pruned_again(prune, make_folder):
    assert prune("prune.macs=0.6", "prune.epochs=2").exit_code == 0
    run = prune.run / "pruned-60"
    resumed = prune.cli("train", "--resume", run, "--set", "train.epochs=3")
    assert resumed.exit_code == 0, resumed.output
    assert "resumed  after epoch 2," in resumed.stderr
    assert json.loads((run / "last" / "config.json").read_text())["mnft"]["pruned"] is True
    other = make_folder("others", splits=("train", "val"))
    for split in ("train", "val"):
        shutil.rmtree(other / split / "red")
    config = prune.folder / "net.yaml"
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["model"]["name"] = f"local-dir:{run / 'best'}"
    values["data"]["root"] = str(other)
    config.write_text(yaml.safe_dump(values))
    again = prune.cli("train", config, *options(("run.name=again", "train.ema_decay=0.9")))
    assert again.exit_code == 0, again.output
    assert "new head" in again.stderr
    bundle = load_bundle(Path(again.stdout.strip()))
    assert bundle.labels == ("blue", "green")
    own = load_file(run / "best" / "model.safetensors")
    assert bundle.model.state_dict()["conv_head.weight"].shape == own["conv_head.weight"].shape
    twice = prune("prune.macs=0.7", ckpt=run)
    assert twice.exit_code == 0, twice.output
    assert table_of(run / "pruned-70")[0]["macs"] == table_of(run)[-1]["macs"]


def test_steps_leave_their_models_and_json_is_one_object(prune):
    sets = ("prune.macs=0.45", "prune.steps=2", "prune.importance=magnitude", "prune.distill=false")
    result = prune(*sets, more=("--json", "-o", prune.folder / "small"))
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    stages = printed["stages"]
    assert [s["step"] for s in stages] == [0, 1, 1, 2, 2]
    assert 0.5 < stages[1]["macs_share"] <= 0.45**0.5
    assert stages[-1]["macs_share"] <= 0.45
    assert [s["folder"] for s in stages] == ["", "", "step-1", "start", "best"]
    run = prune.folder / "small"
    assert printed["best"] == str(run / "best")
    assert stages == table_of(run)
    assert load_bundle(run / "step-1").architecture == "mobilenetv2_035"
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    judged = prune.cli("eval", "--ckpt", run / "step-1", "--split", "val", "--json", "--workers", 0)
    assert json.loads(judged.stdout)["accuracy"] == pytest.approx(stages[2]["val_accuracy"])


def test_lenet_is_pruned_with_a_small_multiple(prune):
    assert prune.train(model="lenet5", name="lenet").exit_code == 0
    result = prune("prune.round_to=1", ckpt=prune.folder / "runs" / "lenet")
    assert result.exit_code == 0, result.output
    stages = table_of(prune.folder / "runs" / "lenet" / "pruned-70")
    assert 0.55 < stages[-1]["macs_share"] <= 0.7


def test_nothing_is_overwritten(prune):
    target = prune.run / "pruned-70"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    result = prune()
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert "--output" in result.stderr
    assert [path.name for path in target.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted(143, "by SIGTERM")])
def test_an_interrupted_run_leaves_nothing(prune, monkeypatch, error):
    def stop(*_args: Any, **_kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(prune_steps.stages, "train", stop)
    before = sorted(prune.run.iterdir())
    result = prune()
    assert result.exit_code in {130, 143}
    assert sorted(prune.run.iterdir()) == before


def test_a_training_that_fails_leaves_nothing(prune, monkeypatch):
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise TrainError("the loss is not finite")

    monkeypatch.setattr(prune_steps.stages, "train", fail)
    assert prune().exit_code == 1
    assert not (prune.run / "pruned-70").exists()


def test_a_run_without_a_best_model_and_a_bare_model_folder_are_refused(prune, tmp_path):
    shutil.copytree(prune.run / "best", tmp_path / "bare" / "model")
    bare = prune(ckpt=tmp_path / "bare" / "model")
    assert bare.exit_code == 1
    assert "does not lie in a run" in bare.stderr
    assert "local-dir:" in bare.stderr
    shutil.rmtree(prune.run / "best")
    empty = prune()
    assert empty.exit_code == 1
    assert "no best model" in empty.stderr
    assert prune(ckpt=tmp_path / "nowhere").exit_code == 1


@pytest.mark.parametrize(
    ("override", "code", "says"),
    [
        ("prune.macs=1.0", 2, "prune.macs"),
        ("prune.macs=0", 2, "prune.macs"),
        ("prune.macs=0.05", 1, "% are left"),
        ("prune.importance=random", 2, "taylor"),
        ("model.name=resnet18", 2, "cannot change"),
        ("data.root=elsewhere", 2, "cannot change"),
        ("prune.mac=0.5", 2, "did you mean prune.macs"),
    ],
)
def test_what_cannot_be_is_refused(prune, override, code, says):
    before = sorted(prune.run.iterdir())
    result = prune(override)
    assert result.exit_code == code
    assert says in result.stderr
    assert sorted(prune.run.iterdir()) == before


def test_images_that_changed_are_refused(prune):
    next((prune.root / "train").rglob("*.png")).unlink()
    result = prune()
    assert result.exit_code == 1
    assert "changed since the run began" in result.stderr


def test_the_fine_tuning_differs_from_the_run_in_what_pruning_needs(prune, tmp_path):
    config, _ = load_config(
        prune.run / "config.yaml", ["optim.lr=0.002", "model.freeze_batchnorm=true"]
    )
    tuned = configure(config, set(), prune.run / "best", tmp_path / "new")
    assert (tuned.train.epochs, tuned.optim.lr) == (10, 0.001)
    assert tuned.model.freeze_batchnorm is False
    assert tuned.schedule.name == "cosine"
    assert tuned.distill.teacher == str(prune.run / "best")
    alone = config.model_copy(update={"prune": config.prune.model_copy(update={"distill": False})})
    assert configure(alone, set(), prune.run / "best", tmp_path / "new").distill.teacher is None
    written = {"optim.lr", "model.freeze_batchnorm", "train.epochs"}
    kept = configure(config, written, prune.run / "best", tmp_path / "new")
    assert (kept.train.epochs, kept.optim.lr, kept.model.freeze_batchnorm) == (1, 0.002, True)


def test_statistics_are_those_of_the_narrower_model(prune):
    """Before any fine-tuning, BatchNorm knows what the pruned layers give."""
    assert prune("prune.images=24").exit_code == 0
    model = load_bundle(prune.run / "pruned-70" / "start").model
    full = load_bundle(prune.run / "best").model
    stem, old = model.bn1.running_mean, full.bn1.running_mean
    assert not any(torch.equal(stem[0], value) for value in old)
