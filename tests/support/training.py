"""Small trainings through the command line, and comparisons of what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import Result

from mnft.training import fit as fit_module
from mnft.training.epoch.loop import train_one_epoch

Cli = Callable[..., Result]
TIMES = {"seconds", "images_per_s", "data_wait", "peak_memory_mb"}


class Trainer:
    """Runs `mnft train` on one folder of images with small settings."""

    def __init__(self, run_cli: Cli, folder: Path, root: Path) -> None:
        self._run_cli = run_cli
        self.folder = folder
        self.config = folder / "small.yaml"
        sections: dict[str, Any] = {
            "data": {"root": str(root), "workers": 0},
            "model": {"name": "lenet5", "pretrained": False},
            "train": {"epochs": 2, "batch_size": 8, "precision": "fp32", "device": "cpu"},
            "run": {"tensorboard": False},
        }
        self.config.write_text(yaml.safe_dump(sections))

    def __call__(self, *sets: str, name: str | None = None, json: bool = False) -> Result:
        named = [f"run.name={name}"] if name else []
        options = [part for value in (*named, *sets) for part in ("--set", value)]
        return self._run_cli("train", self.config, *options, *(["--json"] if json else []))

    def resume(self, name: str, *sets: str) -> Result:
        options = [part for value in sets for part in ("--set", value)]
        return self._run_cli("train", "--resume", self.run(name), *options)

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def epochs_of(run: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in entry.items() if k not in TIMES}
        for entry in log_of(run)
        if entry["event"] == "epoch"
    ]


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Equal bit for bit, through dicts and lists, apart from times."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - TIMES:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_weights(a: Path, b: Path) -> None:
    for part in ("best", "last"):
        files = [load_file(run / part / "model.safetensors") for run in (a, b)]
        assert len(files[0]) > 0
        assert_equal(*files, part)


def assert_same_run(a: Path, b: Path) -> None:
    assert_same_weights(a, b)
    assert_equal(*(torch.load(run / "resume.pt", weights_only=True) for run in (a, b)), "resume.pt")
    assert epochs_of(a) == epochs_of(b)


def interrupt_in_epoch(
    monkeypatch: pytest.MonkeyPatch, epoch: int, error: BaseException | None = None
) -> None:
    """Raise Ctrl-C in a later epoch when its updates are done and nothing of it is saved."""
    calls = 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = train_one_epoch(*args, **kwargs)
        if calls == epoch:
            raise error or KeyboardInterrupt
        return result

    monkeypatch.setattr(fit_module, "train_one_epoch", interrupted)
