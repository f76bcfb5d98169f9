"""Features on the disk: used when nothing changed, computed again when anything did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from mnft.device.ranks.distributed import Ranks
from mnft.preprocessing import Preprocessing
from mnft.tasks.outputs import Features
from mnft.training import stages
from mnft.training.head.cache import cached, compute_key

SPEC = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.9)


def key(model=None, spec=SPEC, dtype=torch.float32, contents=("a", "b")) -> str:
    if model is None:
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=3)
    return compute_key(model, spec, dtype, contents)


def test_the_key_depends_on_all_but_the_head():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    same = key(model)
    assert key() == same
    with torch.no_grad():
        model.fc.weight.add_(1)
    assert key(model) == same
    assert key(spec=Preprocessing((3, 48, 48), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.9)) != same
    assert key(dtype=torch.bfloat16) != same
    assert key(contents=("b", "a")) != same
    with torch.no_grad():
        model.bn1.running_mean.add_(1)
    assert key(model) != same


def test_features_come_back_and_damage_is_mended(tmp_path, caplog):
    features = Features(torch.randn(4, 3), torch.tensor([0, 1, 2, 1]))
    computed = []

    def compute() -> Features:
        computed.append(1)
        return features

    for expected in (1, 1):
        got = cached(tmp_path, lambda: "k", compute, Ranks())
        assert torch.equal(got.values, features.values)
        assert torch.equal(got.targets, features.targets)
        assert len(computed) == expected
    path = tmp_path / "features-k.npz"
    for damaged in (path.read_bytes()[:-30], b"", b"no archive"):
        path.write_bytes(damaged)
        assert torch.equal(cached(tmp_path, lambda: "k", compute, Ranks()).values, features.values)
        assert "computed again" in caplog.text
        caplog.clear()
    assert len(computed) == 4
    cached(None, lambda: pytest.fail("no key is needed"), compute, Ranks())
    assert len(computed) == 5


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    features = Features(torch.randn(4, 3), torch.tensor([0, 1, 2, 1]))
    got = cached(tmp_path / "file", lambda: "k", lambda: features, Ranks())
    assert got is features


def test_a_second_run_takes_the_features_and_gives_the_same_model(
    make_folder, run_cli, tmp_path: Path, monkeypatch
):
    values = {
        "data": {"root": str(make_folder(per_class=10)), "workers": 0, "img_size": 32},
        "model": {"name": "test_resnet", "pretrained": False},
        "train": {"stages": ["head"], "precision": "fp32"},
    }
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(values))
    assert run_cli("train", str(config)).exit_code == 0
    monkeypatch.setattr(stages, "compute_features", lambda *_, **__: pytest.fail("computed again"))
    assert run_cli("train", str(config)).exit_code == 0
    first, second = (
        load_file(tmp_path / "runs" / name / "best" / "model.safetensors")
        for name in ("run", "run-2")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    monkeypatch.undo()
    # An image in another class: the features are the same, their labels are not.
    root = Path(values["data"]["root"])
    (root / "red" / "000.png").rename(root / "blue" / "red.png")
    monkeypatch.chdir(tmp_path)
    assert run_cli("train", str(config)).exit_code == 0
