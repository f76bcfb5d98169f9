"""`mnft search` on small images: trials are runs, it continues, chooses, and says what is wrong."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from support.training import assert_same_weights

from mnft.errors import Interrupted
from mnft.search.storage import hide_password, open_journal

SPACE: dict[str, Any] = {"optim.lr": [1e-3, 3e-3, 1e-2], "train.label_smoothing": [0, 0.1]}


@pytest.fixture
def small(train, tmp_path):
    """A function (values of the search section, sections) that writes a config and names it."""

    def write(search: dict[str, Any] | None = None, name: str = "small", **sections: Any) -> Path:
        config = yaml.safe_load(train.config.read_text())
        config["train"] |= {"epochs": 1}
        for section, values in sections.items():
            config[section] = config.get(section, {}) | values
        config["search"] = {"trials": 3, "seeds": 0, "space": SPACE} | (search or {})
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def tried(folder: Path) -> list[tuple[str, str]]:
    return [(row["optim.lr"], row["train.label_smoothing"]) for row in read_table(folder)]


def test_trials_are_runs_that_best_yaml_repeats(small, run_cli, tmp_path):
    result = run_cli("search", small({"seeds": 1}))
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "searches" / "small"
    assert result.stdout.strip() == "searches/small/best.yaml"
    rows = read_table(folder)
    assert [row["state"] for row in rows] == ["done"] * 3
    assert len(set(tried(folder))) == 3
    record = json.loads((folder / "result.json").read_text())
    named = folder / f"trial-{record['trial']:04d}"
    assert run_cli("eval", named).exit_code == 0
    assert run_cli("train", folder / "best.yaml").exit_code == 0
    assert_same_weights(tmp_path / "runs" / "best", named)
    assert len(record["seeds"]) == 1
    assert record["noise"] is not None
    assert record["test"] is None  # these images have no test split
    assert "search" not in yaml.safe_load((named / "config.yaml").read_text())


def test_a_seed_is_trained_with_another_seed_of_the_same_point(small, run_cli, tmp_path):
    assert run_cli("search", small({"seeds": 2, "trials": 1})).exit_code == 0
    folder = tmp_path / "searches" / "small"
    configs = [
        yaml.safe_load((folder / f"trial-0000{end}" / "config.yaml").read_text())
        for end in ("", "-seed-1", "-seed-2")
    ]
    assert [config["train"]["seed"] for config in configs] == [0, 1, 2]
    assert len({config["optim"]["lr"] for config in configs}) == 1


def test_the_test_is_looked_at_once_for_the_named_model(
    small, run_cli, tmp_path, make_folder, monkeypatch
):
    from mnft.search import choose

    root = make_folder("three", splits=("train", "val", "test"))
    asked = []
    load = choose.load_image_set
    monkeypatch.setattr(
        choose, "load_image_set", lambda *args, **more: asked.append(args[2]) or load(*args, **more)
    )
    config = small(data={"root": str(root)})
    for _ in range(2):
        result = run_cli("search", config)
        assert result.exit_code == 0, result.stderr
        assert "test     accuracy" in result.stderr
    assert asked == ["test"]


def test_the_same_command_continues_and_more_trials_are_added(
    small, run_cli, tmp_path, monkeypatch
):
    from mnft.search import worker

    config, folder = small(), tmp_path / "searches" / "small"
    train_run = worker.train_run

    def interrupted(search: Any, path: Path, *args: Any, **more: Any) -> Any:
        outcome = train_run(search, path, *args, **more)
        if path.name == "trial-0001":  # it is trained, and nobody was told
            raise Interrupted(143, "by SIGTERM", by="SIGTERM")
        return outcome

    monkeypatch.setattr(worker, "train_run", interrupted)
    result = run_cli("search", config)
    assert result.exit_code == 143
    assert "after 1 of 3 trials" in result.stderr
    assert "continue with: mnft search" in result.stderr
    assert [row["state"] for row in read_table(folder)] == ["done", "running"]
    monkeypatch.setattr(worker, "train_run", train_run)
    before = (folder / "trial-0000" / "log.jsonl").read_bytes()
    result = run_cli("search", config)
    assert result.exit_code == 0, result.stderr
    assert "1 trial of this search are done" in result.stderr or "done already" in result.stderr
    assert "1 again: the process that began it is gone" in result.stderr
    assert (folder / "trial-0000" / "log.jsonl").read_bytes() == before
    assert run_cli("search", config, "--set", "search.trials=4").exit_code == 0
    whole = small(name="whole")
    assert run_cli("search", whole, "--set", "search.trials=4").exit_code == 0
    assert tried(folder) == tried(tmp_path / "searches" / "whole")
    for number in range(4):
        assert_same_weights(
            *(tmp_path / "searches" / n / f"trial-{number:04d}" for n in ("small", "whole"))
        )


def test_a_grid_ends_when_every_point_was_tried(small, run_cli, tmp_path):
    result = run_cli("search", small({"method": "grid", "trials": None}))
    assert result.exit_code == 0, result.stderr
    rows = tried(tmp_path / "searches" / "small")
    assert len(rows) == len(set(rows)) == 6


@pytest.mark.parametrize("method", ["tpe", "gp", "nsga2"])
def test_the_samplers_of_optuna_search(small, run_cli, tmp_path, method):
    space = {"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "train.batch_size": [8, 12]}
    result = run_cli("search", small({"method": method, "space": space}))
    assert result.exit_code == 0, result.stderr
    assert len(read_table(tmp_path / "searches" / "small")) == 3


def test_no_trial_begins_after_the_minutes(small, run_cli, tmp_path):
    config = small({"minutes": 1e-9, "trials": None})
    assert run_cli("search", config).exit_code == 1
    assert read_table(tmp_path / "searches" / "small") == []


def test_rungs_stop_the_worse_trials(small, run_cli, tmp_path):
    space = {"optim.lr": [1e-9, 1e-8, 3e-3, 1e-3, 1e-7, 1e-10]}
    config = small(
        {"rungs": [1], "trials": 6, "space": space, "objectives": ["loss"]}, train={"epochs": 3}
    )
    result = run_cli("search", config)
    assert result.exit_code == 0, result.stderr
    rows = read_table(tmp_path / "searches" / "small")
    assert {row["state"] for row in rows} == {"done", "stopped"}
    for row in rows:
        assert row["epochs"] == ("3" if row["state"] == "done" else "1")
    told = json.loads((tmp_path / "searches" / "small" / "result.json").read_text())
    assert (told["trials"], told["complete"]) == (6, [row["state"] for row in rows].count("done"))
    stopped = next(row for row in rows if row["state"] == "stopped")
    assert "worse two thirds after epoch 1" in stopped["reason"]
    # An ordinary run, which may be resumed by hand.
    run = tmp_path / "searches" / "small" / stopped["run"]
    assert run_cli("train", "--resume", run).exit_code == 0
    # The first comes through; which ones do follows from the values that were there.
    losses: list[float] = []
    for row in rows:
        log = (tmp_path / "searches" / "small" / row["run"] / "log.jsonl").read_text()
        events = [json.loads(line) for line in log.splitlines()]
        first = next(e["val_loss"] for e in events if e["event"] == "epoch" and e["epoch"] == 1)
        better = sum(loss < first for loss in losses)
        assert (better < max(1, (len(losses) + 1) // 3)) == (row["state"] == "done")
        losses.append(first)


def test_rung_0_is_the_fitted_head(small, run_cli, tmp_path):
    config = small(
        {"rungs": [0], "trials": 3, "space": {"data.img_size": [16, 24, 32]}},
        train={"stages": ["head", "finetune"]},
        model={"name": "mobilenetv2_035"},
    )
    result = run_cli("search", config)
    assert result.exit_code == 0, result.stderr
    assert "says nothing of rates" in result.stderr
    epochs = {row["state"]: row["epochs"] for row in read_table(tmp_path / "searches" / "small")}
    assert epochs["done"] == "1"
    assert epochs.get("stopped", "0") == "0"


def test_a_point_that_fails_does_not_end_the_search(small, run_cli, tmp_path):
    space = {"optim.lr": [1e-3, 1e30, 3e-3]}
    config = small(
        {"space": space},
        optim={"name": "sgd"},
        train={"epochs": 2},
        model={"name": "mobilenetv2_035"},
        data={"img_size": 32},
    )
    result = run_cli("search", config)
    assert result.exit_code == 0, result.stderr
    states = {row["optim.lr"]: row["state"] for row in read_table(tmp_path / "searches" / "small")}
    assert states["1.0e+30"] == "failed"
    assert sorted(states.values()) == ["done", "done", "failed"]


def test_another_search_of_the_same_name_is_refused(small, run_cli, tmp_path):
    assert run_cli("search", small()).exit_code == 0
    before = (tmp_path / "searches" / "small" / "base.yaml").read_bytes()
    other = small({"space": {"optim.lr": [0.5]}}, optim={"name": "sgd"})
    result = run_cli("search", other)
    assert result.exit_code == 2
    assert "optim.name: sgd, was not written" in result.stderr
    assert "search.space: train.label_smoothing: not written, was" in result.stderr
    assert "search.name=NAME" in result.stderr
    assert (tmp_path / "searches" / "small" / "base.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "the storage nonsense cannot be opened"),
        ("sqlite:////no/such/folder/a.db", "cannot be opened"),
        ("marsdb://user:secret@host/db", "the storage marsdb://user@host/db cannot be opened"),
    ],
)
def test_a_wrong_storage_is_one_clear_error(small, run_cli, url, words):
    result = run_cli("search", small({"storage": url}))
    assert result.exit_code == 2
    assert words in result.stderr
    assert "search.storage" in result.stderr
    assert "secret" not in result.stderr
    assert sum(line.startswith("error:") for line in result.stderr.splitlines()) == 1


def test_a_database_is_a_storage_too(small, run_cli, tmp_path):
    result = run_cli("search", small({"storage": f"sqlite:///{tmp_path}/s.db"}))
    assert result.exit_code == 0, result.stderr
    assert len(read_table(tmp_path / "searches" / "small")) == 3
    assert not (tmp_path / "searches" / "small" / "journal.log").exists()


def test_join_needs_a_search(small, run_cli, tmp_path):
    result = run_cli("search", small(), "--join")
    assert result.exit_code == 2
    assert "begin it without --join" in result.stderr
    assert not (tmp_path / "searches").exists()


def test_a_folder_of_something_else_is_left_alone(small, run_cli, tmp_path):
    (tmp_path / "searches" / "small").mkdir(parents=True)
    (tmp_path / "searches" / "small" / "thesis.tex").touch()
    result = run_cli("search", small())
    assert result.exit_code == 2
    assert "is not a search" in result.stderr


@pytest.mark.slow
def test_twenty_trials_decode_and_compute_features_once(small, run_cli, tmp_path, monkeypatch):
    from mnft.data.store.store import Store
    from mnft.training import stages

    decoded, computed = [], []
    decode, compute = Store._decode, stages.compute_features
    monkeypatch.setattr(
        Store,
        "_decode",
        lambda self, root, sample: decoded.append(sample) or decode(self, root, sample),
    )
    monkeypatch.setattr(
        stages,
        "compute_features",
        lambda *args, **more: computed.append(1) or compute(*args, **more),
    )
    monkeypatch.setenv("MNFT_CACHE", str(tmp_path / "cache"))
    config = small(
        {"trials": 20, "rungs": [0], "space": {"optim.lr": {"low": 1e-4, "high": 1e-2}}},
        train={"stages": ["head", "finetune"]},
        data={"img_size": 16},
        model={"name": "lenet5"},
    )
    config.write_text(config.read_text().replace("img_size: 16", "img_size: 32"))
    result = run_cli("search", config)
    assert result.exit_code == 0, result.stderr
    assert len(read_table(tmp_path / "searches" / "small")) == 20
    # 24 images of train, as they are and as evaluation sees them, and 24 of val.
    assert 0 < len(decoded) <= 72
    assert len(computed) == 2  # train and val


def test_costs_are_measured_once_an_architecture(small, run_cli, tmp_path):
    space = {"model.name": ["lenet5", "mobilenetv2_035"], "optim.lr": [1e-3, 3e-3]}
    config = small(
        {"method": "grid", "trials": None, "space": space, "objectives": ["accuracy", "macs_m"]},
        data={"img_size": 32},
    )
    result = run_cli("search", config, "--json")
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "searches" / "small"
    assert len(list((folder / "costs").glob("*.json"))) == 2
    rows = read_table(folder)
    costs = {row["model.name"]: float(row["macs_m"]) for row in rows}
    assert 0 < costs["lenet5"] < costs["mobilenetv2_035"]
    front = json.loads(result.stdout)["front"]
    cheapest = [int(row["trial"]) for row in rows if row["model.name"] == "lenet5"]
    assert set(front) & set(cheapest)
    assert (folder / "pareto.png").is_file()


def test_a_model_above_a_limit_is_not_trained(small, run_cli, tmp_path):
    space = {"model.name": ["lenet5", "mobilenetv2_035"]}
    config = small({"space": space, "limits": {"macs_m": 1.0}}, data={"img_size": 32})
    result = run_cli("search", config)
    assert result.exit_code == 0, result.stderr
    rows = {r["model.name"]: r for r in read_table(tmp_path / "searches" / "small")}
    assert rows["mobilenetv2_035"]["state"] == "stopped"
    assert "macs_m" in rows["mobilenetv2_035"]["reason"]
    assert rows["mobilenetv2_035"]["epochs"] == "0"
    assert rows["lenet5"]["state"] == "done"


def test_a_cut_line_of_the_journal_is_removed(tmp_path):
    """A full disk cuts a line; the next one would join it, and nobody could read on."""
    path = tmp_path / "journal.log"
    study = optuna.create_study(storage=open_journal(path), study_name="s")
    study.tell(study.ask(), 1.0)
    with path.open("ab") as stream:
        stream.write(b'{"op_code": 4, "worker')
    again = optuna.load_study(storage=open_journal(path), study_name="s")
    again.tell(again.ask(), 2.0)
    last = optuna.load_study(storage=open_journal(path), study_name="s")
    assert [trial.value for trial in last.trials] == [1.0, 2.0]


def test_the_password_of_a_url_is_not_shown():
    assert hide_password("postgresql://me:secret@host/db") == "postgresql://me@host/db"
    assert hide_password("runs/journal.log") == "runs/journal.log"


def test_init_writes_a_search_that_its_checks_accept(run_cli, make_folder, tmp_path):
    from mnft.config.load import load_config
    from mnft.search.points.checks import build_space

    make_folder("photos")
    for model in ("mobilenetv2_100", "lenet5"):
        path = tmp_path / f"{model}.yaml"
        result = run_cli("init", "photos", "-o", path, "--model", model, "--search")
        assert result.exit_code == 0, result.stderr
        assert f"then mnft search {path}" in result.stderr
        config, source = load_config(path)
        keys = {dimension.key for dimension in build_space(config, source).dimensions}
        assert ("model.name" in keys) == (model != "lenet5")
        assert "optim.lr" in keys
    assert run_cli("init", "photos", "-o", "plain.yaml").exit_code == 0
    assert load_config(tmp_path / "plain.yaml")[0].search.space == {}


def test_other_verbs_do_not_import_optuna(tmp_path):
    code = "import sys, mnft.commands.train, mnft.commands.init; assert 'optuna' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_optuna_the_command_says_what_to_install(small, run_cli, monkeypatch):
    from mnft.cli import starting

    monkeypatch.setattr(starting, "find_spec", lambda name: None)
    result = run_cli("search", small())
    assert result.exit_code == 2
    assert "pip install 'mnft[search]'" in result.stderr


def test_a_point_that_a_sampler_repeats_is_not_trained_again(small, run_cli, tmp_path):
    config = small({"method": "tpe", "trials": 5, "space": {"optim.lr": [1e-3, 3e-3]}, "seeds": 1})
    result = run_cli("search", config)
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "searches" / "small"
    rows = read_table(folder)
    assert [row["state"] for row in rows] == ["done"] * 5
    assert len({row["run"] for row in rows}) == 2
    assert len([p for p in folder.glob("trial-*") if "seed" not in p.name]) == 2
    assert sum("the point of trial" in row["reason"] for row in rows) == 3
    values = {(row["optim.lr"], row["val_loss"]) for row in rows}
    assert len(values) == 2


def test_importance_finds_the_key_that_matters(small, run_cli, monkeypatch):
    from mnft.search import worker
    from mnft.search.costs import Costs

    def pretend(_search: Any, _path: Path, point: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        loss = 8 + math.log10(point["optim.lr"]) + point["train.clip_grad"] / 1e3
        figures = {"accuracy": 0.5, "macro_f1": 0.5, "loss": loss}
        return worker.Outcome(figures, 1, 1, 0.1, "", Costs(1, 1.0))

    monkeypatch.setattr(worker, "train_run", pretend)
    space = {
        "optim.lr": {"low": 1e-7, "high": 1e-2, "log": True},
        "train.clip_grad": {"low": 50, "high": 60},
    }
    config = small({"trials": 12, "space": space, "objectives": ["loss"]})
    result = run_cli("search", config, "--json")
    assert result.exit_code == 0, result.stderr
    importance = json.loads(result.stdout)["importance"]
    assert importance["optim.lr"] > 0.6 > importance["train.clip_grad"]
    result = run_cli(
        "search", config, "--set", "search.name=few", "--set", "search.trials=3", "--json"
    )
    assert json.loads(result.stdout)["importance"] is None


def test_torchrun_is_refused(small, run_cli, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run_cli("search", small())
    assert result.exit_code == 2
    assert "--workers N" in result.stderr
