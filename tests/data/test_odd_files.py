"""Real odd files through check, train, eval and predict: decoded as noted, or named as bad."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from support.images import COLOURS, write_image
from typer.testing import Result

Cli = Callable[..., Result]

pytestmark = pytest.mark.real


class Odd(NamedTuple):
    root: Path
    decodes: set[str]
    bad: set[str]
    ignored: set[str]


@pytest.fixture
def odd(assets: Path, tmp_path: Path) -> Odd:
    """An image folder whose class `odd` holds links to the odd files, beside two plain classes."""
    source = assets / "data" / "odd"
    with (source / "NOTES.tsv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    expected = {line["file"]: line["expected"].split()[0].strip(",(") for line in lines}
    root = tmp_path / "images"
    (root / "odd").mkdir(parents=True)
    for name in expected:
        (root / "odd" / name).symlink_to(source / name)
    for number, (name, colour) in enumerate(list(COLOURS.items())[:2]):
        for index in range(8):
            write_image(root / name / f"{index}.png", colour, seed=100 * number + index)
    named = {
        kind: {name for name, value in expected.items() if value == kind}
        for kind in ("decodes", "bad", "either", "ignored")
    }
    assert sum(map(len, named.values())) == len(expected)
    # 99 million pixels are over the decoder's limit.
    return Odd(root, named["decodes"], named["bad"] | named["either"], named["ignored"])


def config(root: Path, policy: str) -> Path:
    path = root.parent / f"{policy}.yaml"
    path.write_text(
        f"data: {{root: {root.name}, img_size: 32, workers: 0, on_bad_image: {policy}}}\n"
        "model: {name: lenet5, pretrained: false}\n"
        "train: {epochs: 1, batch_size: 8, device: cpu}\n"
        "run: {tensorboard: false}\n"
    )
    return path


def test_check(odd: Odd, run_cli: Cli) -> None:
    result = run_cli("data", "check", odd.root)
    assert result.exit_code == 3
    named = [line for line in result.stderr.splitlines() if "unreadable: " in line]
    assert len(named) == len(odd.bad)
    for name in odd.bad:
        assert any(f"unreadable: odd/{name}: " in line for line in named), name
    for name in odd.ignored:
        assert name not in result.stderr + result.stdout
    assert any("99 million pixels" in line for line in named)


def test_train_fails_with_the_list(odd: Odd, run_cli: Cli) -> None:
    result = run_cli("train", config(odd.root, "fail"))
    assert (result.exit_code, result.stdout) == (1, "")
    for name in odd.bad:
        assert f"  odd/{name}: " in result.stderr
    for name in odd.decodes | odd.ignored:
        assert f"  odd/{name}: " not in result.stderr
    assert "data.on_bad_image: skip" in result.stderr
    assert not (odd.root.parent / "runs").exists()


def test_train_eval_and_predict(odd: Odd, run_cli: Cli, caplog: pytest.LogCaptureFixture) -> None:
    result = run_cli("train", config(odd.root, "skip"))
    assert result.exit_code == 0, result.stderr
    run = odd.root.parent / "runs" / "skip"
    split = json.loads((run / "split.json").read_text(encoding="utf-8"))
    assert {Path(entry["path"]).name for entry in split["left_out"]} == odd.bad
    used = {Path(s["path"]).name for s in split["samples"] if s["class_name"] == "odd"}
    assert used == odd.decodes
    assert caplog.text.count("left out: odd/") == len(odd.bad)

    result = run_cli("eval", "--ckpt", run, "--data", odd.root, "--workers", 0)
    assert result.exit_code == 0, result.stderr
    for name in odd.bad:
        assert f"left out: odd/{name}: " in result.stderr
    metrics = json.loads((run / "eval-images" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["num_images"] == len(odd.decodes) + 16
    assert {Path(path).name for path in metrics["unreadable"]} == odd.bad
    result = run_cli("eval", "--ckpt", run, "--workers", 0)
    assert result.exit_code == 0, result.stderr

    names = sorted(odd.decodes | odd.bad | odd.ignored)
    files = [odd.root / "odd" / name for name in names]
    result = run_cli("predict", "--ckpt", run, "--workers", 0, *files)
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout, newline="")))
    assert [row["path"] for row in rows] == [str(file) for file in files]
    for name, row in zip(names, rows, strict=True):
        assert bool(row["error"]) == (name not in odd.decodes), (name, row["error"])
        assert bool(row["class_1"]) == (name in odd.decodes)
    result = run_cli("predict", "--ckpt", run, "--workers", 0, odd.root / "odd")
    rows = list(csv.DictReader(io.StringIO(result.stdout, newline="")))
    assert {Path(row["path"]).name for row in rows} == odd.decodes | odd.bad
