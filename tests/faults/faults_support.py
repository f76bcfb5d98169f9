"""What the fault tests share: a place to train in, and processes that can be made to fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from support.images import COLOURS, write_image
from support.training import assert_equal, epochs_of

HERE = Path(__file__).parent
# A shell that may mount, seen by nobody else; needs no rights where the system allows it to users.
NAMESPACE = ("unshare", "--map-root-user", "--mount", "sh", "-c")


def may_mount() -> bool:
    """Whether this system lets a user mount in a namespace of their own."""
    command = [*NAMESPACE, "mount -t tmpfs -o size=1m none /mnt"]
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(command, capture_output=True).returncode
    )


class Warm:
    """The warm process of warm.py."""

    def __init__(self, *mounts: str) -> None:
        command: list[str | Path] = [sys.executable, HERE / "warm.py"]
        if mounts:
            command = [*NAMESPACE, " && ".join([*mounts, 'exec "$@"']), "sh", *command]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        with self._process:  # closes the pipes
            pass


@dataclass
class Ended:
    """A process that has ended: its return code, negative for a signal, and what it wrote."""

    code: int
    out: str
    err: str
    seconds: float

    def fails_clearly(self, code: int, *words: str) -> None:
        """One message, no traceback, the documented exit code."""
        assert self.code == code, (self.code, self.err)
        assert "Traceback" not in self.err, self.err
        label = "stopped: " if code in (130, 143) else "error: "
        assert sum(line.startswith(label) for line in self.err.splitlines()) == 1, self.err
        for word in words:
            assert word in self.err, self.err


@dataclass
class Started:
    """A process under way."""

    pid: int
    out: Path
    err: Path
    warm: Warm
    began: float = field(default_factory=time.monotonic)

    def wait(self) -> Ended:
        code = self.warm.ask({"wait": self.pid})
        seconds = time.monotonic() - self.began
        return Ended(code, self.out.read_text(), self.err.read_text(errors="replace"), seconds)

    def until(self, words: str, seconds: float = 60) -> None:
        """Wait for words on stderr."""
        deadline = time.monotonic() + seconds
        while words not in self.err.read_text(errors="replace"):
            assert time.monotonic() < deadline, self.err.read_text(errors="replace")
            time.sleep(0.01)

    def until_there(self, path: Path, seconds: float = 60) -> None:
        """Wait for a file."""
        deadline = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < deadline, self.err.read_text(errors="replace")
            time.sleep(0.005)

    def kill(self, number: signal.Signals, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.pid, number)


class Place:
    """A folder with images, a config and a cache of its own; starts `mnft` there."""

    def __init__(self, folder: Path, warm: Warm, images: Path, **sections: dict[str, Any]) -> None:
        self.folder = folder
        self.images = images
        self.warm = warm
        self.config = folder / "small.yaml"
        self._processes = 0
        folder.mkdir(parents=True, exist_ok=True)
        usual: dict[str, dict[str, Any]] = {
            "data": {"root": str(images), "workers": 0},
            "model": {"name": "lenet5", "pretrained": False},
            "train": {"epochs": 3, "batch_size": 8, "precision": "fp32", "device": "cpu"},
            "run": {"tensorboard": False, "name": "run"},
        }
        for name, values in sections.items():
            usual[name] = {**usual.get(name, {}), **values}
        self.config.write_text(yaml.safe_dump(usual))

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "run"

    def start(self, *args: object, **spec: Any) -> Started:
        """Start `mnft ARGS` in a fork of the warm process.

        Each epoch is saved, however short it is, unless `save_interval` is given: None is mnft's.
        """
        self._processes += 1
        out, err = (self.folder / f"{self._processes}.{kind}" for kind in ("out", "err"))
        out.touch()
        err.touch()
        env = {"MNFT_CACHE": str(self.folder / "cache"), **spec.pop("env", {})}
        request = {"args": [str(a) for a in args], "folder": str(self.folder), "env": env}
        request |= {"out": str(out), "err": str(err), "save_interval": 0.0, **spec}
        return Started(self.warm.ask({"start": request}), out, err, self.warm)

    def call(self, *args: object, **spec: Any) -> Ended:
        return self.start(*args, **spec).wait()

    def train(self, *sets: str, **spec: Any) -> Ended:
        return self.call("train", self.config, *_options(sets), **spec)

    def start_training(self, *sets: str, **spec: Any) -> Started:
        return self.start("train", self.config, *_options(sets), **spec)

    def resume(self, *sets: str, **spec: Any) -> Ended:
        return self.call("train", "--resume", self.run, *_options(sets), **spec)

    def go_on(self, **spec: Any) -> Ended:
        """What a person, or a restart loop, does after a crash: go on, or start where no run is."""
        return self.resume(**spec) if self.run.exists() else self.train(**spec)


def _options(sets: tuple[str, ...]) -> list[str]:
    return [part for value in sets for part in ("--set", value)]


def write_images(root: Path, *, train: int = 8, val: int = 4) -> Path:
    """24 training and 12 val images of three plain colours."""
    for part, (split, count) in enumerate({"train": train, "val": val}.items()):
        for number, (label, colour) in enumerate(COLOURS.items()):
            for index in range(count):
                seed = 10_000 * part + 1_000 * number + index
                write_image(root / split / label / f"{index:03d}.png", colour, seed=seed)
    return root


def assert_same_run(a: Path, b: Path) -> None:
    """The same bits in both models and the state, the same epochs in the log."""
    for part in ("best", "last"):
        one, two = (run / part / "model.safetensors" for run in (a, b))
        assert one.read_bytes() == two.read_bytes(), part
    states = [torch.load(run / "resume.pt", weights_only=True) for run in (a, b)]
    assert_equal(*states)
    assert epochs_of(a) == epochs_of(b)
    kinds = {"config.yaml", "written.yaml", "split.json", "log.jsonl", "best", "last"}
    kinds.add("training_curve.png")
    names = {path.name for path in b.iterdir() if not path.name.startswith("resume")}
    assert names == kinds  # nothing half-written is left
