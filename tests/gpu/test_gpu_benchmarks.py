"""The scripts of benchmarks/gpu: they run, they can fail, and the pages name them all.

They run on the CPU here, on a few small images; tests/gpu/test_gpu.py runs equal.py.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.images import MakeFolder

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "gpu"
# Those that are run, in the order of the README; the others are parts of them.
SCRIPTS = ["equal", "phases", "limit", "matrix", "stops", "memory", "processes", "shrink"]
TINY = ["--tiny", "--device", "cpu"]

Script = Callable[[str], Any]
Capture = pytest.CaptureFixture[str]


def test_the_list_is_complete() -> None:
    with_help = {p.stem for p in FOLDER.glob("*.py") if "def main(arguments" in p.read_text()}
    assert with_help == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_must_hold_and_the_pages_name_the_script(
    name: str, gpu_script: Script, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_script(name).main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"python benchmarks/gpu/{name}.py" in text
    assert name == "shrink" or ("Must hold" in text and "Write down" in text)
    for page in (FOLDER / "README.md", ROOT / "Makefile"):
        assert f"benchmarks/gpu/{name}.py" in page.read_text(encoding="utf-8"), page


@pytest.mark.parametrize("name", SCRIPTS[:-1])
def test_without_a_gpu_they_say_so(
    name: str, gpu_script: Script, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu_script(name).main(["--tiny"])
    assert ended.value.code == 2
    assert "there is no CUDA device here; --device cpu" in capsys.readouterr().err


def test_a_difference_is_a_failure(
    gpu_script: Script, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """equal.py, where a device makes pixels 3 levels brighter."""
    parts = gpu_script("parts")
    resample = parts.resample_on_device
    monkeypatch.setattr(parts, "resample_on_device", lambda *a, **o: resample(*a, **o) + 3)
    assert gpu_script("equal").main([*TINY, "--json", str(tmp_path / "found.json")]) == 1
    out = capsys.readouterr().out
    assert "FAIL resize bilinear, against the CPU's kernel: largest" in out
    assert re.search(r"FAIL: equal.py: \d+ ok, [1-9]\d* failed, \d+ skipped; this ran on", out)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["verdict"] == "FAIL"
    assert found["versions"]["torch"] == torch.__version__
    assert {check["result"] for check in found["checks"]} == {"ok", "FAIL", "skip"}


def test_nothing_checked_is_no_success(gpu_script: Script, capsys: Capture) -> None:
    report = gpu_script("report").Report("x.py", "cpu")
    report.skip("all", "no GPU")
    assert report.finish(None) == 1
    assert "FAIL: x.py: 0 ok, 0 failed, 1 skipped" in capsys.readouterr().out


def test_limit(gpu_script: Script, capsys: Capture) -> None:
    assert gpu_script("limit").main([*TINY, "--steps", "2", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    for row in ("eager", "update", "loading", "training"):
        assert re.search(rf"\n +{row} +[\d,]+ images/s", out), out
    assert "skip at most 0.2 waits a step: no GPU" in out


def test_waits_are_counted_by_the_line_of_mnft(gpu_script: Script) -> None:
    """Warned of by torch below that line; other warnings are none."""
    limit = gpu_script("limit")
    source = "import warnings\n\ndef wait(text):\n    warnings.warn(text)\n"
    scope: dict[str, Any] = {}
    exec(compile(source, ROOT / "mnft" / "training" / "epoch" / "loop.py", "exec"), scope)
    with limit.waits_by_line() as found:
        for _ in range(3):
            scope["wait"]("called a synchronizing CUDA operation (Triggered internally at x.cpp)")
        scope["wait"]("Synchronization debug mode is a prototype feature")
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert found["loop.py:4"] == 3
    assert found.total() == 4


def test_the_phases_are_functions_of_mnft(gpu_script: Script) -> None:
    parts, phases = gpu_script("parts"), gpu_script("phases")
    for module, name in [*((m, n) for m, n, _ in parts.PHASES), parts.TUNE]:
        owner, attribute = phases.find_owner(module, name)
        assert callable(getattr(owner, attribute)), (module, name)


def test_a_phase_is_timed(gpu_script: Script) -> None:
    spent: dict[str, list[float]] = {}
    double = gpu_script("phases").timed(lambda x: 2 * x, spent, "doubling")
    assert double(2) == 4
    assert double(x=3) == 6
    assert len(spent["doubling"]) == 2


def test_each_row_of_the_matrix_is_a_config(gpu_script: Script, tmp_path: Path) -> None:
    parts, matrix = gpu_script("parts"), gpu_script("matrix")
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"data": {"root": "images"}}))
    plain, _ = parts.load_config(config, [*matrix._BASE, "recipe=plain"])
    assert len(matrix._ROWS) >= 33
    for name, sets in matrix._ROWS.items():
        found, _ = parts.load_config(config, [*matrix._BASE, *sets.split()])
        assert name == "plain" or found != plain, name
    assert matrix._NOT_ON_CPU.keys() < matrix._ROWS.keys()


def test_a_group_of_one_process(gpu_script: Script, capsys: Capture) -> None:
    assert gpu_script("processes").main([*TINY, "--only", "group"]) == 0
    out = capsys.readouterr().out
    assert out.count("\nok   group of one: ") == 3
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("code", "err", "clear"),
    [
        (1, "data     x\nerror: too little memory: 2 GiB\n  hint: lower it\n", True),
        (0, "error: too little memory\n", False),
        (1, "Traceback (most recent call last):\nerror: too little memory\n", False),
        (1, "error: one\nerror: two\n", False),
        (1, "RuntimeError: CUDA\n", False),
    ],
)
def test_what_counts_as_a_clear_failure(
    gpu_script: Script, code: int, err: str, clear: bool
) -> None:
    ended = gpu_script("acceptance").Ended(code, "", err, 1.0)
    assert ended.fails_clearly() == clear
    assert bool(ended.error) == (code != 0)
    if clear:
        assert ended.error == "error: too little memory: 2 GiB |   hint: lower it"


def test_a_process_that_takes_too_long_is_killed(gpu_script: Script, tmp_path: Path) -> None:
    process = gpu_script("acceptance").Process(["sleep", "60"], tmp_path / "slow")
    ended = process.wait(0.1)
    assert ended.code == 124
    assert ended.seconds < 30
    assert not process.is_alive


def test_weights_that_differ_in_a_bit_are_a_failure(
    gpu_script: Script, tmp_path: Path, capsys: Capture
) -> None:
    acceptance, stops = gpu_script("acceptance"), gpu_script("stops")
    weights = torch.linspace(0, 1, 8)
    runs = {"whole": weights, "again": weights, "cut": weights.nextafter(-weights)}
    for name, tensor in runs.items():
        folder = tmp_path / "runs" / name / "last"
        folder.mkdir(parents=True)
        save_file({"w": tensor}, folder / "model.safetensors")
    report = gpu_script("report").Report("stops.py", "cpu")
    job = acceptance.Job(argparse.Namespace(json=None), tmp_path, tmp_path, report)
    for name in ("again", "cut"):
        stops.compare_weights(job, name)
    assert job.finish() == 1
    out = capsys.readouterr().out
    assert "ok   again has the weights of whole: bit for bit" in out
    assert "FAIL cut has the weights of whole: they differ by " in out


def test_shrink(
    gpu_script: Script, make_folder: MakeFolder, tmp_path: Path, capsys: Capture
) -> None:
    source = make_folder(splits=("train", "test"), per_class=3)
    target = tmp_path / "small"
    options = ["--side", "16", "--per-folder", "2", "--leave-out", "test"]
    assert gpu_script("shrink").main([str(source), str(target), *options]) == 0
    files = sorted(str(p.relative_to(target)) for p in target.rglob("*.jpg"))
    assert files == [f"train/{c}/00{n}.jpg" for c in ("blue", "green", "red") for n in (0, 1)]
    with Image.open(target / files[0]) as image:
        assert image.size == (16, 16)
    assert "ok: 6 images" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        gpu_script("shrink").main([str(source), str(target)])
    assert ended.value.code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("phases", ["--rounds", "1"]),
        ("stops", ["--epochs", "6"]),
        ("memory", []),
        ("matrix", ["--only", "fp32", "predict"]),
        ("processes", ["--only", "losses", "signal"]),
    ],
)
def test_scripts_that_start_processes(
    name: str,
    options: list[str],
    gpu_script: Script,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, value in (("OMP_NUM_THREADS", "1"), ("GLOO_SOCKET_IFNAME", "lo")):
        monkeypatch.setenv(variable, value)
    assert gpu_script(name).main([*TINY, *options]) == 0, capsys.readouterr().out
