"""`mnft bench`, `mnft distill`, `mnft train --find-lr`, `mnft eval --flip`: as users call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mnft.config.schema import Config
from mnft.data.prepare import prepare_manifest
from mnft.device.machine import Machine
from mnft.tasks.classify.labels import RULES
from mnft.training.build import build_training
from mnft.training.inference import compute_outputs
from mnft.training.probes.bench import BenchResult, Speed, bench


@pytest.fixture
def config(make_folder, tmp_path: Path) -> Path:
    """LeNet-5 on three plain classes."""
    path = tmp_path / "small.yaml"
    values = {
        "data": {"root": str(make_folder(per_class=12)), "workers": 0},
        "model": {"name": "lenet5", "pretrained": False},
        "train": {"epochs": 3, "batch_size": 8, "precision": "fp32"},
    }
    path.write_text(json.dumps(values))
    return path


def build(path: Path):
    values = Config.model_validate(json.loads(path.read_text()))
    manifest = prepare_manifest(values.data, RULES, lambda _done, _total: None)
    return build_training(values, manifest, Machine(torch.device("cpu")))


def test_bench_shows_what_limits(config, run_cli):
    result = run_cli("bench", str(config), "--rounds", "2", "--batches", "2")
    assert result.exit_code == 0, result.stderr
    for part in (
        "loading only",
        "fixed-batch limit",
        "updates only, same batch",
        "training",
        "evaluation",
    ):
        assert part in result.stdout
    assert "limit    " in result.stderr
    assert not (config.parent / "runs").exists()


def test_bench_as_json(config, run_cli):
    result = run_cli("bench", str(config), "--rounds", "1", "--json")
    found = json.loads(result.stdout)
    for part in ("loading", "fixed_batch", "computing", "training", "evaluating"):
        assert found[part]["lowest"] <= found[part]["median"] <= found[part]["highest"]
        assert found[part]["lowest"] > 0
    assert 0 <= found["wait"] <= 1
    assert found["limit"] in {"loading", "computing"}
    assert found["batches"] == 3  # 24 training images


def test_bench_tells_a_slow_loader_from_a_slow_model(config, monkeypatch):
    import time

    from mnft.data.batches.stored import StoredBatches

    training = build(config)
    assert bench(training, batches=2, rounds=1).wait < 0.9
    real = StoredBatches._take

    def slow(self, stored, keys):
        time.sleep(0.2)
        return real(self, stored, keys)

    monkeypatch.setattr(StoredBatches, "_take", slow)
    result = bench(build(config), batches=2, rounds=1)
    assert result.limit == "loading"
    assert result.wait > 0.5
    assert result.loading.median < 8 / 0.2 + 1


def test_the_limit_is_the_model_where_loading_is_much_faster():
    speeds = [Speed(x, x, x) for x in (100.0, 45.0, 40.0, 30.0, 90.0)]
    assert BenchResult(*speeds, wait=0.1, rounds=1, batches=1, threads=1).limit == "computing"


def test_find_lr_is_the_command_that_train_hands_over_to(config, run_cli, monkeypatch):
    from mnft.commands import find_lr

    calls = []
    monkeypatch.setattr(find_lr, "run", lambda *words, **options: calls.append((words, options)))
    result = run_cli("train", str(config), "--find-lr", "--set", "optim.lr=1", "--json")
    assert result.exit_code == 0, result.stderr
    assert calls == [((config, ["optim.lr=1"]), {"as_json": True})]
    assert not (config.parent / "runs").exists()


def test_progressive_resizing_of_a_model_of_one_size_is_refused(config, run_cli):
    words = ["--set", "model.name=test_vit", "--set", "train.start_size=0.5"]
    result = run_cli("train", str(config), *words)
    assert result.exit_code == 2
    assert "train.start_size" in result.stderr
    assert "takes images of one size" in result.stderr


@pytest.mark.parametrize("words", [["--find-lr"], ["x.yaml", "--find-lr", "--resume", "runs/x"]])
def test_find_lr_needs_a_config(run_cli, words):
    result = run_cli("train", *words)
    assert result.exit_code == 2
    assert "--find-lr needs a config" in result.stderr


def test_distilling_from_a_run(config, run_cli):
    assert run_cli("train", str(config), "--set", "run.name=teacher").exit_code == 0
    teacher = config.parent / "runs" / "teacher"
    result = run_cli("distill", str(config), "--teacher", str(teacher), "--set", "run.name=student")
    assert result.exit_code == 0, result.stderr
    assert "teacher  lenet5 of" in result.stderr
    log = (config.parent / "runs" / "student" / "log.jsonl").read_text().splitlines()
    assert "lenet5" in json.loads(log[0])["teacher"]
    # It is in the config: a plain `mnft train` of it distils again.
    saved = config.parent / "runs" / "student" / "config.yaml"
    assert f"teacher: {teacher}" in saved.read_text()
    assert run_cli("train", "--resume", str(saved.parent), "--set", "train.epochs=4").exit_code == 0


def test_distilling_gives_another_model_than_training(config, run_cli):
    from safetensors.torch import load_file

    assert run_cli("train", str(config), "--set", "run.name=teacher").exit_code == 0
    teacher = config.parent / "runs" / "teacher"
    options = ["--set", f"distill.teacher={teacher}", "--set", "distill.weight=0"]
    assert run_cli("train", str(config), *options, "--set", "run.name=none").exit_code == 0
    options[-1] = "distill.weight=1"
    assert run_cli("train", str(config), *options, "--set", "run.name=all").exit_code == 0
    plain, none, taught = (
        load_file(config.parent / "runs" / name / "last" / "model.safetensors")
        for name in ("teacher", "none", "all")
    )
    assert all(torch.equal(plain[name], none[name]) for name in plain)
    assert not all(torch.equal(plain[name], taught[name]) for name in plain)


def test_a_teacher_that_does_not_know_the_classes_gets_a_head(config, run_cli, make_folder):
    other = make_folder("other", per_class=10)
    (other / "red").rename(other / "crimson")
    sets = ["--set", f"data.root={other}", "--set", "run.name=teacher"]
    assert run_cli("train", str(config), *sets).exit_code == 0
    teacher = config.parent / "runs" / "teacher"
    result = run_cli("distill", str(config), "--teacher", str(teacher))
    assert result.exit_code == 0, result.stderr
    assert "its head fitted to the training images: val accuracy" in result.stderr


def test_distilling_without_a_teacher_is_refused(config, run_cli):
    result = run_cli("distill", str(config))
    assert result.exit_code == 2
    assert "found no teacher" in result.stderr
    assert "--teacher runs/large" in result.stderr
    result = run_cli("distill", str(config), "--teacher", "mobilenet_v9")
    assert result.exit_code == 1
    assert "mobilenet_v9" in result.stderr
    assert not (config.parent / "runs").exists()


def test_flipped_evaluation_averages_the_mirror_image(config, run_cli):
    training = build(config)
    model, val = training.state.model.eval(), training.val
    options = {"machine": training.machine, "num_outputs": 3}
    flipped = compute_outputs(model, val, flip=True, **options)
    with torch.no_grad():
        expected = torch.cat([(model(b.images) + model(b.images.flip(-1))) / 2 for b in val])
    assert torch.allclose(torch.from_numpy(flipped.values), expected, atol=1e-6)
    plain = compute_outputs(model, val, **options)
    assert not torch.allclose(torch.from_numpy(plain.values), expected, atol=1e-6)
    assert run_cli("train", str(config)).exit_code == 0
    run = str(config.parent / "runs" / "small")
    assert run_cli("eval", "--ckpt", run, "--flip").exit_code == 0
    again = run_cli("eval", "--ckpt", run)
    assert again.exit_code == 2
    assert "test_time_augmentation" in again.stderr
