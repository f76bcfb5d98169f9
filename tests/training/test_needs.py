"""What a run takes, against what a real run leaves on the disk, and what is said if it is full."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.images import build
from typer.testing import Result

from mnft.config.load import load_config
from mnft.data.check.report import check_dataset
from mnft.errors import ConfigError
from mnft.tasks.classify.labels import RULES
from mnft.training.probes import needs as module
from mnft.training.probes.needs import Need, build_plan, estimate

Cli = Callable[..., Result]
CONFIG = """\
data: {root: images, img_size: 64}
model: {name: mobilenetv3_small_050, pretrained: false}
optim: {name: adamw}
train: {epochs: 1, batch_size: 8, precision: fp32, ema_decay: 0.9}
run: {name: one}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    build(tmp_path / "images", {"cat": 8, "dog": 8}, size=(150, 100))
    build(tmp_path / "images", {"cat/strips": 2}, size=(900, 90), first=5)
    (tmp_path / "my.yaml").write_text(CONFIG)
    return tmp_path / "my.yaml"


def needs(path: Path, *overrides: str) -> tuple[dict[str, Need], list[str]]:
    config, _ = load_config(path, overrides)
    root = path.parent / "images"
    data = config.data.model_copy(update={"root": str(root)})
    config = config.model_copy(update={"data": data})
    checked = check_dataset(data, RULES, lambda *_: None)
    assert checked.manifest is not None
    found, findings = estimate(config, build_plan(config, 2), checked.manifest, checked.inspections)
    return {need.what: need for need in found}, [finding.kind for finding in findings]


def test_against_a_real_run(config: Path, run_cli: Cli, tmp_path: Path) -> None:
    own = ("--set", f"data.store={tmp_path / 'store'}")
    result = run_cli("data", "check", "my.yaml", *own, "--json")
    assert result.exit_code == 0, result.stderr
    before = {need["what"]: need for need in json.loads(result.stdout)["needs"]}
    assert all(need["fits"] for need in before.values())
    trained = run_cli("train", "my.yaml", *own)
    assert trained.exit_code == 0, trained.stderr
    pixels = sum(path.stat().st_size for path in (tmp_path / "store").rglob("pixels.bin"))
    assert before["decoded images"]["needed"] == pixels
    run = tmp_path / "runs/one"
    state = (run / "resume.pt").stat().st_size
    weights = (run / "best/model.safetensors").stat().st_size
    assert before["run folder"]["needed"] == pytest.approx(4 * state + 3 * weights, rel=0.05)
    after = run_cli("data", "check", "my.yaml", *own, "--json")
    assert json.loads(after.stdout)["needs"][0]["needed"] == 0  # the store has them


def test_the_run_folder_grows_with_the_state(config: Path) -> None:
    name = "run folder"
    whole = needs(config)[0][name].needed
    sgd = needs(config, "optim.name=sgd")[0][name].needed  # one average of gradients, not two
    without_average = needs(config, "train.ema_decay=null")[0][name].needed
    head = needs(config, "model.freeze=backbone")[0][name].needed
    assert head < sgd < whole
    # The weights, their average and the optimizer's two are the state; there are four states.
    assert whole - sgd == pytest.approx(whole - without_average, rel=0.05)


def test_what_does_not_fit_is_found(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert needs(config)[1] == []
    monkeypatch.setattr(module, "measure_free", lambda _folder: 1_000_000)
    monkeypatch.setattr(module, "measure_room", lambda *_: 1000)
    own = ("data.workers=2", "train.batch_size=64")
    found, kinds = needs(config, *own)
    assert kinds == ["store_space", "disk_space", "shared_memory"]
    # two workers, four batches each of 64 images of 3 x 64 x 64 bytes
    assert found["shared memory of 2 workers"].needed == 2 * 4 * 64 * 3 * 64 * 64


def test_what_fails_the_check(config: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without disk or shared memory a run fails; without a store it is only slow."""
    monkeypatch.setattr(module, "measure_room", lambda *_: 1000)
    result = run_cli("data", "check", config)
    assert result.exit_code == 0
    assert "store_space: decoded images:" in result.stderr
    monkeypatch.setattr(module, "measure_free", lambda _folder: 1000)
    result = run_cli("data", "check", config)
    assert result.exit_code == 3
    assert "warning: disk_space: run folder:" in result.stderr


def test_a_device_of_another_machine_leaves_out_the_shared_memory(config: Path) -> None:
    found, kinds = needs(config, "train.device=cuda:99", "data.workers=2", "data.store=off")
    assert list(found) == ["run folder"]
    assert kinds == []


def test_the_workers_count_only_where_they_work(config: Path) -> None:
    shared = "shared memory of 2 workers"
    assert shared not in needs(config, "data.workers=2")[0]
    assert shared in needs(config, "data.workers=2", "data.store=off")[0]
    assert shared in needs(config, "data.workers=2", "augment.policy=rand_augment")[0]


def test_a_model_that_cannot_be_built_here_is_a_note(config: Path, run_cli: Cli) -> None:
    result = run_cli("data", "check", config, "--set", "model.name=hf-hub:timm/nothing")
    assert result.exit_code == 0
    assert "what a run will need is not estimated" in result.stderr
    lenet = ("--set", "model.name=lenet5", "--set", "data.img_size=8")
    result = run_cli("data", "check", config, *lenet)
    assert result.exit_code == 0, result.stderr
    assert "no_estimate: lenet5 cannot take images of 8x8" in result.stderr
    with pytest.raises(ConfigError):
        build_plan(load_config(config, ["model.name=hf-hub:timm/nothing"])[0], 2)


def test_a_plain_folder_has_no_estimate(config: Path, run_cli: Cli) -> None:
    result = run_cli("data", "check", "images", "--json")
    assert json.loads(result.stdout)["needs"] == []
