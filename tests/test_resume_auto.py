"""`mnft train CONFIG --resume auto`: which run it takes, and one process at a time in a run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from test_train import Trainer, assert_same_weights, epochs_of, interrupt_in_epoch, log_of
from test_train import train as train  # the fixture
from typer.testing import Result

from mnft.errors import CheckpointError, ConfigError
from mnft.runs.claims import claimed
from mnft.runs.folder import RunFolder, create_run

ROOT = Path(__file__).resolve().parent.parent
Auto = Callable[..., Result]


@pytest.fixture
def auto(train: Trainer, run_cli: Callable[..., Result]) -> Auto:
    def run(*sets: str) -> Result:
        options = [part for value in sets for part in ("--set", value)]
        return run_cli("train", train.config, "--resume", "auto", *options)

    return run


def names(train: Trainer) -> list[str]:
    return sorted(entry.name for entry in (train.folder / "runs").iterdir())


def test_begins_a_run_where_there_is_none(train: Trainer, auto: Auto) -> None:
    result = auto()
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{Path('runs/small/best')}\n"
    assert "resumed" not in result.stderr


def test_a_loop_ends_as_one_uninterrupted_run(
    train: Trainer, auto: Auto, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("train.epochs=3", name="whole").exit_code == 0
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 2)
        assert auto("train.epochs=3").exit_code == 130
    result = auto("train.epochs=3")
    assert result.exit_code == 0, result.stderr
    assert "resumed  after epoch 1" in result.stderr
    assert_same_weights(train.run("whole"), train.run("small"))
    assert names(train) == ["small", "whole"]


def test_a_finished_run_is_not_trained_again(train: Trainer, auto: Auto) -> None:
    assert auto().exit_code == 0
    weights = (train.run("small") / "last/model.safetensors").read_bytes()
    again = auto()
    assert again.exit_code == 0
    assert again.stdout == f"{Path('runs/small/best')}\n"
    assert (train.run("small") / "last/model.safetensors").read_bytes() == weights
    assert names(train) == ["small"]


def test_other_values_begin_another_run(train: Trainer, auto: Auto) -> None:
    assert auto().exit_code == 0
    assert auto("optim.lr=0.002").exit_code == 0
    assert names(train) == ["small", "small-2"]
    assert auto("optim.lr=0.002").exit_code == 0  # finds the second one
    assert names(train) == ["small", "small-2"]
    assert [entry["event"] for entry in log_of(train.run("small-2"))].count("resume") == 1


def test_more_epochs_go_on_with_the_run(train: Trainer, auto: Auto) -> None:
    assert auto().exit_code == 0
    result = auto("train.epochs=3")
    assert result.exit_code == 0, result.stderr
    assert len(epochs_of(train.run("small"))) == 3
    config = yaml.safe_load((train.run("small") / "config.yaml").read_text())
    assert config["train"]["epochs"] == 3
    fewer = auto("train.epochs=1")
    assert fewer.exit_code == 2
    assert "at least the 3 epochs done" in fewer.stderr


def test_the_newest_of_several_runs(train: Trainer, auto: Auto) -> None:
    assert train().exit_code == 0
    assert train().exit_code == 0
    assert names(train) == ["small", "small-2"]
    assert auto("train.epochs=3").exit_code == 0
    assert len(epochs_of(train.run("small-2"))) == 3
    assert len(epochs_of(train.run("small"))) == 2


def test_a_name_of_ones_own(train: Trainer, auto: Auto) -> None:
    assert auto("run.name=mine").exit_code == 0
    assert auto("run.name=mine").exit_code == 0
    assert names(train) == ["mine"]
    taken = auto("run.name=mine", "optim.lr=0.002")
    assert taken.exit_code == 2
    assert "runs/mine exists already" in taken.stderr


def test_folders_that_are_no_runs_of_it(train: Trainer, auto: Auto) -> None:
    """Neither temporary folders, nor runs of older versions, nor damaged ones are taken."""
    assert train(name="small").exit_code == 0
    runs = train.folder / "runs"
    (train.run("small") / "written.yaml").write_text("{")
    (runs / ".small.x.tmp").mkdir()
    (runs / ".small.x.tmp/config.yaml").write_text("data: {root: x}")
    (runs / "notes").mkdir()
    assert auto().exit_code == 0
    assert "small-2" in names(train)


def test_auto_needs_a_config(run_cli: Callable[..., Result]) -> None:
    result = run_cli("train", "--resume", "auto")
    assert result.exit_code == 2
    assert "--resume auto needs a config" in result.stderr


# One process at a time


def test_a_run_that_another_process_trains(train: Trainer, auto: Auto) -> None:
    """A real process holds the lock; its end, whatever it is, frees it."""
    assert auto().exit_code == 0
    hold = (
        "import sys, time; from pathlib import Path; from mnft.runs.claims import claimed\n"
        "with claimed(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    before = (train.run("small") / "log.jsonl").read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(train.run("small"))], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for result in (auto("train.epochs=3"), train.resume("small", "train.epochs=3")):
            assert result.exit_code == 1
            assert "another process is training this run" in result.stderr
        assert (train.run("small") / "log.jsonl").read_bytes() == before
        holder.kill()
    assert auto("train.epochs=3").exit_code == 0


def test_training_holds_the_lock(train: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnft.engine import fit as fit_module

    held = []

    def watch(*args: object, **kwargs: object) -> object:
        try:
            with claimed(train.run("small")):
                held.append(False)
        except CheckpointError:
            held.append(True)
        return original(*args, **kwargs)

    original = fit_module.train_one_epoch
    monkeypatch.setattr(fit_module, "train_one_epoch", watch)
    assert train().exit_code == 0
    assert held == [True, True]


@pytest.mark.parametrize("name", [None, "same"])
def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path: Path, name: str | None) -> None:
    """Each finds what it wrote itself; a name that is asked for goes to one of them."""
    barrier = threading.Barrier(8)
    made: list[tuple[int, Path]] = []
    refused: list[str] = []

    def begin(number: int) -> None:
        barrier.wait()
        try:
            run = create_run(
                tmp_path,
                name=name,
                default_name="run",
                fill=lambda run: run.config.write_text(str(number)) and None,
            )
            made.append((number, run.path))
        except ConfigError as error:
            refused.append(error.message)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(RunFolder(path).config.read_text() == str(number) for number, path in made)
    assert len({path for _, path in made}) == len(made)
    assert (len(made), len(refused)) == ((8, 0) if name is None else (1, 7))
    assert len(list(tmp_path.iterdir())) == len(made)  # no leftovers


def test_a_run_folder_appears_whole(tmp_path: Path) -> None:
    def fill(run: RunFolder) -> None:
        assert not (tmp_path / "run").exists()
        run.config.write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        create_run(tmp_path, name=None, default_name="run", fill=fill)
    assert list(tmp_path.iterdir()) == []


# The loop of the documentation


@pytest.mark.slow
def test_the_loop_of_the_page_ends_as_one_uninterrupted_run(train: Trainer) -> None:
    """The script of docs/unattended.md itself, whose trainings are killed twice."""
    page = (ROOT / "docs/unattended.md").read_text(encoding="utf-8")
    script = next(b for b in re.findall(r"```bash\n(.*?)```", page, re.S) if "seq 20" in b)
    (train.folder / "train.sh").write_text(script)
    (train.folder / "bin").mkdir()
    command = train.folder / "bin/mnft"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mnft "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PAUSE": "0"}
    environment["PATH"] = f"{command.parent}{os.pathsep}{environment['PATH']}"
    text = train.config.read_text().replace("epochs: 2", "epochs: 400")
    train.config.write_text(text)
    with subprocess.Popen(
        ["bash", "train.sh", str(train.config)],
        cwd=train.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as loop:
        for number, epochs in ((signal.SIGKILL, 5), (signal.SIGTERM, 60)):
            wait_for_epochs(train.run("small"), epochs)
            os.kill(find_training(loop.pid), number)
        out, err = loop.communicate(timeout=180)
    assert loop.returncode == 0, err.decode()
    assert out == f"{Path('runs/small/best')}\n".encode()
    assert err.count(b"starting again") == 2
    assert b"stopped with 137" in err
    assert b"stopped with 143" in err
    assert train(name="whole").exit_code == 0
    assert_same_weights(train.run("whole"), train.run("small"))


def wait_for_epochs(run: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not (run / "log.jsonl").is_file() or len(epochs_of(run)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def find_training(pid: int) -> int:
    """The process of `mnft` below a shell; `$(...)` may be a shell of its own."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    below = {str(pid)}
    for _ in range(3):
        below |= {child for child, parent, _ in rows if parent in below}
    return next(int(c) for c, _, args in rows if c in below and "-m mnft train" in args)


REPORT = """
error: what mnft says
Failures:
[1]:
  exitcode  : -15 (pid: 28958)  (SIGTERM)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 28956)
  traceback : exitcode of something
"""


@pytest.mark.parametrize("codes", [[143, 1, 2], [1, 0], ["", 0]])
def test_the_loop_around_torchrun_starts_no_wrong_config_again(
    tmp_path: Path, codes: list[int | str]
) -> None:
    """The script of docs/unattended.md with a torchrun that ends with 1 and reports codes."""
    page = (ROOT / "docs/unattended.md").read_text(encoding="utf-8")
    scripts = re.findall(r"```bash\n(.*?)```", page, re.S)
    (tmp_path / "train.sh").write_text(next(s for s in scripts if "torchrun --standalone" in s))
    for number, code in enumerate(codes):
        report = REPORT.format(code=code) if code else ""
        (tmp_path / f"report-{number}").write_text(report)
    (tmp_path / "torchrun").write_text(
        "#!/bin/bash\n"
        "echo x >> starts; n=$(($(wc -l < starts) - 1)); cat report-$n >&2\n"
        f"codes=({' '.join(str(code or 0) if code == 0 else '1' for code in codes)})\n"
        'echo "$@"; exit "${codes[$n]}"\n'
    )
    (tmp_path / "torchrun").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "train.sh", "c.yaml", "4"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PAUSE": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == codes[-1]
    assert (tmp_path / "starts").read_text().count("x") == len(codes)
    assert done.stderr.count("starting again") == len(codes) - 1
    command = "--standalone --nproc-per-node 4 -m mnft train c.yaml --resume auto\n"
    assert done.stdout == (command if codes[-1] == 0 else "")


def test_the_scripts_of_the_page_are_valid_bash() -> None:
    page = (ROOT / "docs/unattended.md").read_text(encoding="utf-8")
    scripts = re.findall(r"```bash\n(.*?)```", page, re.S)
    assert len(scripts) == 3
    for script in scripts:
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
