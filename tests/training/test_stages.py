"""The head stage, the hand-over to fine-tuning, and resuming in either, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from mnft.config.schema import Config
from mnft.data.batches.batch import Batch
from mnft.data.prepare import prepare_manifest
from mnft.device.machine import Machine
from mnft.errors import ModelError
from mnft.model.bundle import load_bundle
from mnft.model.linear_head import has_linear_head
from mnft.reporter import SILENT
from mnft.results import EpochResult, FitResult
from mnft.tasks import open_task
from mnft.tasks.classify import task as classify_task
from mnft.tasks.classify.labels import RULES
from mnft.tasks.classify.linear_fit import fit_head
from mnft.tasks.linear_fit import WEIGHT_DECAYS
from mnft.tasks.outputs import Features
from mnft.training import stages
from mnft.training.build import build_training
from mnft.training.head.features import compute_features, set_head

CPU = torch.device("cpu")


def features(num_images: int, *, seed: int, spread: float = 2.0) -> Features:
    """Three clouds in twelve dimensions of very different scale."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num_images)
    centres = np.random.default_rng(0).normal(size=(3, 12))
    values = (centres[labels] + spread * rng.normal(size=(num_images, 12))) * 10.0 ** np.arange(
        -3, 9 / 3, 0.5
    )
    return Features(torch.tensor(values, dtype=torch.float32), torch.tensor(labels))


def fit(train: Features, val: Features, **changes):
    options = {"balanced": False, "seed": 0, "device": CPU}
    return fit_head(train, val, num_classes=3, **(options | changes))


def test_the_head_is_as_good_as_scikit_learn_s_logistic_regression():
    train, val = features(600, seed=1), features(2000, seed=2)
    fitted = fit(train, val)
    scale = train.values.std(0)
    best = max(
        LogisticRegression(C=c, max_iter=500)
        .fit((train.values / scale).numpy(), train.targets.numpy())
        .score((val.values / scale).numpy(), val.targets.numpy())
        for c in (0.001, 0.01, 0.1, 1.0)
    )
    assert fitted.val["accuracy"] >= best - 0.01
    assert fitted.weight_decay in WEIGHT_DECAYS


def test_the_standardisation_is_in_the_weights():
    train, val = features(300, seed=1), features(300, seed=2)
    fitted = fit(train, val)
    logits = val.values @ fitted.weight.T + fitted.bias
    assert (logits.argmax(1) == val.targets).float().mean() == pytest.approx(fitted.val["accuracy"])


def test_a_dead_feature_does_no_harm():
    train, val = features(300, seed=1), features(300, seed=2)
    for part in (train, val):
        part.values[:, 3] = 7.0
    fitted = fit(train, val)
    assert torch.isfinite(fitted.weight).all()
    assert fitted.val["accuracy"] > 0.5


def test_few_images_choose_more_weight_decay_than_many():
    val = features(2000, seed=2)
    few = fit(features(12, seed=1, spread=3.0), val)
    many = fit(features(3000, seed=1, spread=3.0), val)
    assert few.weight_decay > many.weight_decay


def test_class_weights_move_the_border():
    train, val = features(600, seed=1, spread=4.0), features(1000, seed=2, spread=4.0)
    rare = (train.targets != 0) | (torch.arange(600) % 10 == 0)  # few images of class 0
    train = Features(train.values[rare], train.targets[rare])
    plain, weighted = (fit(train, val, balanced=balanced) for balanced in (False, True))

    def share(fitted):
        logits = val.values @ fitted.weight.T + fitted.bias
        return (logits.argmax(1) == 0).float().mean()

    assert share(weighted) > share(plain) + 0.1


def test_the_same_seed_gives_the_same_head():
    train, val = features(300, seed=1), features(300, seed=2)
    assert torch.equal(fit(train, val).weight, fit(train, val).weight)
    assert not torch.equal(fit(train, val).weight, fit(train, val, seed=1).weight)


@pytest.mark.parametrize(
    "name", ["mobilenetv1_100", "mobilenetv2_035", "mobilenetv3_small_050", "test_vit", "lenet5"]
)
def test_features_and_head_are_the_model(name):
    model = timm.create_model(name, num_classes=3)
    _, *size = model.pretrained_cfg["input_size"]
    channels = model.pretrained_cfg["input_size"][0]
    size = [64, 64] if name.startswith("mobile") else size
    assert has_linear_head(model, (channels, *size))
    images = torch.randn(5, channels, *size)
    batches = [
        Batch(images[[3, 1]], torch.tensor([3, 1]), [3, 1], []),
        Batch(images[[0, 2, 4]], torch.tensor([0, 2, 4]), [0, 2, 4], []),
    ]
    model.train()
    got = compute_features(model, batches, Machine(CPU), dtype=torch.float32)
    assert model.training
    assert got.targets.tolist() == [0, 1, 2, 3, 4]
    model.eval()
    with torch.no_grad():
        expected = model(images)
        head = model.get_classifier()
        assert torch.allclose(head(got.values), expected, atol=1e-5)


def test_other_heads_are_told_from_linear_ones():
    model = timm.create_model("mobilenetv2_035", num_classes=0)
    assert not has_linear_head(model, (3, 64, 64))
    twice = timm.create_model("mobilenetv2_035", num_classes=3)
    original = twice.forward_head
    twice.forward_head = lambda x, pre_logits=False: original(x, pre_logits) * (1 + pre_logits)
    assert not has_linear_head(twice, (3, 64, 64))


# --- whole trainings


@pytest.fixture
def pretrained(make_folder, tmp_path: Path, run_cli) -> dict:
    """Values of a config that starts from a model folder whose classes are others."""
    other = make_folder("other", per_class=8)
    for name in ("blue", "green"):
        (other / name).rename(other / f"not_{name}")
    values = ["data.img_size=32", "model.pretrained=false", "train.epochs=1", "data.workers=0"]
    sets = [part for value in values for part in ("--set", value)]
    config = tmp_path / "other.yaml"
    config.write_text(f"data: {{root: {other}}}\nmodel: {{name: test_resnet}}\n")
    assert run_cli("train", str(config), *sets).exit_code == 0
    return {
        "data": {"root": str(make_folder(per_class=8)), "img_size": 32, "workers": 0},
        "model": {"name": f"local-dir:{tmp_path / 'runs' / 'other' / 'best'}"},
        "train": {"epochs": 2, "batch_size": 8},
    }


def build(values: dict, **train):
    config = Config.model_validate(values | {"train": values["train"] | train})
    manifest = prepare_manifest(config.data, RULES, lambda _done, _total: None)
    return build_training(config, manifest, Machine(CPU))


def test_the_head_stage_gives_a_model_that_is_judged_as_it_will_be(pretrained):
    values = pretrained | {"train": {"stages": ["head"], "precision": "fp32"}}
    training = build(values)
    before = {k: v.clone() for k, v in training.state.model.state_dict().items()}
    result = stages.train(training, checkpointer=None, reporter=SILENT)
    assert result.epochs == []
    assert result.best is not None
    assert (result.best.epoch, result.best.stage) == (0, "head")
    changed = {
        name
        for name, value in training.state.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"fc.weight", "fc.bias"}
    right = total = 0
    training.state.model.eval()
    with torch.no_grad():
        for batch in training.val:
            right += int((training.state.model(batch.images).argmax(1) == batch.targets).sum())
            total += len(batch.targets)
    assert right / total == pytest.approx(result.best.figures["val_accuracy"])


def test_fine_tuning_starts_from_the_fitted_head_and_its_average_too(pretrained, monkeypatch):
    assert build(pretrained).stages == ["head", "finetune", "interpolate"]
    training = build(pretrained, stages=["head", "finetune"])
    seen = {}

    def fake_fit(state, *_args, **_options):
        seen["head"] = state.model.get_classifier().weight.clone()
        seen["average"] = state.ema.module.get_classifier().weight.clone()

    monkeypatch.setattr(stages, "fit", fake_fit)
    stages.train(training, checkpointer=None, reporter=SILENT)
    expected = build(pretrained)
    stages.train_head(expected)
    weight = expected.state.model.get_classifier().weight
    assert torch.equal(seen["head"], weight)
    assert torch.equal(seen["average"], weight)
    assert not torch.equal(weight, build(pretrained).state.model.get_classifier().weight)


def write(path: Path, values: dict) -> Path:
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def weights_of(run: Path, which: str = "last") -> dict:
    return load_file(run / which / "model.safetensors")


def log_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    timed = {"seconds", "images_per_s", "data_wait", "peak_memory_mb"}
    return [
        {k: v for k, v in line.items() if k not in timed}
        for line in lines
        if line["event"] == "epoch"
    ]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("point", ["features", "after head", "epoch 1", "epoch 2"])
def test_a_run_killed_in_any_stage_resumes_to_the_same_bits(
    pretrained, run_cli, tmp_path, monkeypatch, point
):
    config = write(tmp_path / "run.yaml", pretrained)
    assert run_cli("train", str(config)).exit_code == 0
    whole = tmp_path / "runs" / "run"

    from mnft.training import fit as fit_module

    if point == "features":
        target, name, calls = classify_task, "fit_head", 1
    elif point == "after head":
        target, name, calls = stages, "fit", 1
    else:
        target, name, calls = fit_module, "train_one_epoch", int(point[-1])
    real = getattr(target, name)
    count = 0

    def killing(*args, **options):
        nonlocal count
        count += 1
        if count == calls:
            raise Killed
        return real(*args, **options)

    monkeypatch.setattr(target, name, killing)
    with pytest.raises(Killed):
        run_cli("train", str(config))
    monkeypatch.setattr(target, name, real)
    killed = tmp_path / "runs" / "run-2"
    result = run_cli("train", "--resume", str(killed))
    assert result.exit_code == 0, result.stderr
    for which in ("last", "best"):
        expected, got = weights_of(whole, which), weights_of(killed, which)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert log_of(killed) == log_of(whole)
    assert [entry["stage"] for entry in log_of(whole)] == ["head", "finetune", "finetune"]


def test_the_saved_config_trains_the_same_run_again(pretrained, run_cli, tmp_path):
    config = write(tmp_path / "run.yaml", pretrained)
    assert run_cli("train", str(config)).exit_code == 0
    first = tmp_path / "runs" / "run"
    again = run_cli("train", str(first / "config.yaml"), "--set", "run.name=again")
    assert again.exit_code == 0, again.stderr
    assert "recipe " not in again.stderr
    expected, got = weights_of(first), weights_of(tmp_path / "runs" / "again")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_log_and_the_terminal_say_what_the_recipe_chose(pretrained, run_cli, tmp_path):
    result = run_cli("train", str(write(tmp_path / "run.yaml", pretrained)))
    assert "recipe   train.stages" in result.stderr
    assert "recipe   optim.lr" in result.stderr
    assert "train.epochs:" not in result.stderr  # it was written
    start = json.loads((tmp_path / "runs" / "run" / "log.jsonl").read_text().splitlines()[0])
    assert start["recipe"]["optim.layer_decay"]
    assert start["recipe_reasons"].keys() == start["recipe"].keys()


def test_an_epoch_as_accurate_as_the_head_takes_its_place_where_its_loss_is_lower(
    pretrained, monkeypatch
):
    """A newcomer's few val images give both the same accuracy."""
    from mnft.training import fit as fit_module

    training = build(pretrained, stages=["head", "finetune"])
    head = []
    real = stages.train_head

    def train_head(*args):
        head.append(real(*args))
        return head[0]

    def judge(*_args):
        figures = head[0].figures
        loss = {"loss": figures["val_loss"] - 0.1}
        return loss | {name: figures[f"val_{name}"] for name in ("accuracy", "macro_f1")}, {}

    monkeypatch.setattr(stages, "train_head", train_head)
    monkeypatch.setattr(fit_module, "evaluate", judge)
    best = stages.train(training, checkpointer=None, reporter=SILENT).best
    assert (best.stage, best.epoch) == ("finetune", 2)


def test_an_older_run_without_stages_goes_on_as_it_was(pretrained, run_cli, tmp_path):
    """A run of version 0.1 has no recipe in its config, and no head stage in its state."""
    values = pretrained | {"recipe": "plain"}
    assert run_cli("train", str(write(tmp_path / "run.yaml", values))).exit_code == 0
    run = tmp_path / "runs" / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["recipe"], config["train"]["stages"], config["train"]["start_size"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for event in events:
        event.pop("config", None)
    (run / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    state = torch.load(run / "resume.pt", weights_only=True)
    del state["head"]
    torch.save(state, run / "resume.pt")
    result = run_cli("train", "--resume", str(run), "--set", "train.epochs=3")
    assert result.exit_code == 0, result.stderr
    assert [entry["stage"] for entry in log_of(run)] == ["finetune"] * 3


def test_a_head_stage_that_cannot_be_is_refused(pretrained, monkeypatch):
    from mnft.training import build as setup

    monkeypatch.setattr(setup, "has_linear_head", lambda *_: False)
    with pytest.raises(ModelError, match="not one linear layer"):
        build(pretrained | {"train": {"stages": ["head"]}})
    assert build(pretrained).stages == ["finetune"]


def test_only_the_head_leaves_a_model_that_can_be_used(pretrained, run_cli, tmp_path):
    values = pretrained | {"model": {**pretrained["model"], "freeze": "backbone"}, "train": {}}
    result = run_cli("train", str(write(tmp_path / "run.yaml", values)))
    assert result.exit_code == 0, result.stderr
    run = tmp_path / "runs" / "run"
    assert load_bundle(run / "best").labels == ("blue", "green", "red")
    again = run_cli("train", "--resume", str(run))
    assert again.exit_code == 0, again.stderr
    assert run_cli("eval", "--ckpt", str(run)).exit_code == 0


def test_setting_a_head_keeps_the_layer(pretrained):
    training = build(pretrained)
    layer = training.state.model.get_classifier()
    train, val = features(60, seed=1), features(60, seed=2)
    fitted = fit(train, val)
    layer.weight = torch.nn.Parameter(torch.zeros(3, 12))
    set_head(training.state.model, fitted)
    assert torch.equal(training.state.model.get_classifier().weight, fitted.weight)


def test_frozen_batchnorm_keeps_its_statistics_and_learns_its_scales(pretrained):
    def change(freeze: bool) -> dict[str, bool]:
        model = {**pretrained["model"], "freeze_batchnorm": freeze}
        training = build(pretrained | {"model": model})
        before = {k: v.clone() for k, v in training.state.model.state_dict().items()}
        stages.train(training, checkpointer=None, reporter=SILENT)
        after = training.state.model.state_dict()
        return {name: not torch.equal(before[name], after[name]) for name in before}

    frozen, usual = change(True), change(False)
    statistics = [name for name in frozen if "running_" in name]
    assert statistics
    assert not any(frozen[name] for name in statistics)
    assert all(usual[name] for name in statistics)
    assert frozen["bn1.weight"]
    assert frozen["bn1.bias"]
    assert frozen["conv1.0.weight" if "conv1.0.weight" in frozen else "conv1.weight"]


@pytest.mark.parametrize(
    ("name", "clones"), [("mobilenetv2_035", 35), ("mobilenetv3_small_050", 19)]
)
def test_activations_keep_their_input_and_give_the_same_bits(make_folder, name, clones):
    """In place, ReLU6 and Hardswish make autograd clone their input: a copy for nothing."""
    values = {
        "data": {"root": str(make_folder(per_class=4)), "img_size": 32, "workers": 0},
        "model": {"name": name, "pretrained": False},
        "train": {"precision": "fp32", "batch_size": 4, "ema_decay": 0.9},
    }
    model = build(values).state.model
    reference = timm.create_model(name, num_classes=3).to(memory_format=torch.channels_last)
    reference.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    found = []
    for net in (model, reference):
        with torch.profiler.profile() as profile:
            loss = net.train()(images).square().sum()
        loss.backward()
        counts = {event.key: event.count for event in profile.key_averages()}
        found.append((counts.get("aten::clone", 0), loss, [p.grad for p in net.parameters()]))
    (ours, loss, gradients), (theirs, expected, expected_gradients) = found
    assert theirs - ours == clones
    assert torch.equal(loss, expected)
    assert all(map(torch.equal, gradients, expected_gradients))


# --- the end of a training


@pytest.mark.parametrize(
    ("monitor", "says"),
    [
        ("accuracy", "val_accuracy 90.00% in epoch 2, the head 95.00%"),
        ("macro_f1", "val_macro_f1 0.9000 in epoch 2, the head 0.9500"),
        ("loss", "val_loss 0.2000 in epoch 1, the head 0.1000"),
    ],
)
def test_fine_tuning_that_does_not_beat_the_head_is_told(monitor, says):
    def epoch(number, accuracy, loss, stage="finetune"):
        figures = {
            "train_loss": 1.0,
            "train_accuracy": 0.5,
            "val_accuracy": accuracy,
            "val_macro_f1": accuracy,
            "val_loss": loss,
        }
        return EpochResult(
            epoch=number,
            epochs=2,
            lr=0.1,
            images_per_s=1.0,
            seconds=1.0,
            is_best=stage == "head",
            stage=stage,
            figures=figures,
        )

    epochs = [epoch(1, 0.8, 0.2), epoch(2, 0.9, 0.3)]
    head = epoch(0, 0.95, 0.1, stage="head")
    config = Config.model_validate({"data": {"root": "x"}, "optim": {"lr": 0.003}})
    options = SimpleNamespace(monitor=monitor)
    training = SimpleNamespace(options=options, config=config, task=open_task(("a", "b")))
    remark = stages.compare_with_head(FitResult(epochs, head, stopped_early=False), training)
    assert remark is not None
    assert says in remark
    assert "--set optim.lr=0.001" in remark
    assert "--set train.epochs=4" in remark
    assert "\n" not in remark
    assert (
        stages.compare_with_head(FitResult(epochs, epochs[1], stopped_early=False), training)
        is None
    )
    assert stages.compare_with_head(FitResult([], head, stopped_early=False), training) is None
