"""What the scripts of this folder share: arguments, a place to train in, and mnft processes.

The scripts judge the checkout that they lie in, whether it is installed or not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import Report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit code (124: it ran too long) and what it wrote."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line of stderr, where mnft says what was the matter."""
        return next((line for line in reversed(self.err.splitlines()) if line.strip()), "")

    def fails_clearly(self, code: int = 1) -> bool:
        """One `error:` line, no traceback, and the exit code that is documented."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return self.code == code and len(errors) == 1 and "Traceback" not in self.err

    @property
    def error(self) -> str:
        """The `error:` line and what follows it, or the last line; "" after success."""
        if self.code == 0:
            return ""
        _, found, rest = self.err.rpartition("error: ")
        return f"error: {rest.strip()}".replace("\n", " | ") if found else self.last_line


class Process:
    """A process under way in a session of its own, with its output in two files.

    Args:
        command: program and arguments.
        files: where its output goes, without the suffix.
    """

    def __init__(self, command: Sequence[object], files: Path) -> None:
        files.parent.mkdir(parents=True, exist_ok=True)
        self._out, self._err = files.with_suffix(".out"), files.with_suffix(".err")
        self._started = time.monotonic()
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def terminate(self) -> None:
        """Send SIGTERM to the process, not to those that it has started."""
        self._process.terminate()

    def kill(self) -> None:
        """End it and all that it has started."""
        if self.is_alive:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wait(self, timeout: float) -> Ended:
        """Wait until it has ended; what takes longer than `timeout` seconds is killed."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            code = 124
        seconds = time.monotonic() - self._started
        texts = [file.read_text(errors="replace") for file in (self._out, self._err)]
        return Ended(code, texts[0], texts[1], seconds)


@dataclass
class Job:
    """One run of a script: on which config, where, and what it found.

    Attributes:
        args: the arguments, those of the script among them.
        config: an mnft config.
        folder: for runs and other files.
        report: the lines and the verdict.
        processes: all that were started.
    """

    args: argparse.Namespace
    config: Path
    folder: Path
    report: Report
    processes: list[Process] = field(default_factory=list)

    @property
    def device(self) -> str:
        """As `train.device` takes it: cuda, cuda:N or cpu."""
        return str(self.args.device)

    @property
    def on_gpu(self) -> bool:
        """Whether mnft runs on a GPU."""
        return self.device.startswith("cuda")

    @property
    def sets(self) -> list[str]:
        """What every run overrides in the config."""
        given = [f"run.dir={self.folder / 'runs'}", "run.tensorboard=false"]
        return [*given, *self.args.sets, f"train.device={self.device}"]

    def run_path(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / name

    def start(self, *command: object, name: str, launcher: Sequence[object] = ()) -> Process:
        """Start `mnft COMMAND`, or a launcher (the part after `python`) with that as arguments."""
        program = [sys.executable, *(launcher or ["-m", "mnft"])]
        process = Process([*program, *command], self.folder / "output" / name)
        self.processes.append(process)
        return process

    def start_training(
        self, name: str, *sets: str, flags: Sequence[str] = (), launcher: Sequence[object] = ()
    ) -> Process:
        """Start `mnft train` on the config, as a run of that name."""
        command: list[object] = ["train", self.config, *flags]
        for value in (*self.sets, f"run.name={name}", *sets):
            command += ["--set", value]
        return self.start(*command, name=name, launcher=launcher)

    def train(self, name: str, *sets: str, timeout: float = 900, **options: Any) -> Ended:
        """The same, until it has ended; `options` as for `start_training`."""
        return self.start_training(name, *sets, **options).wait(timeout)

    def read_epochs(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of the epochs that a run has finished, that of the head stage too."""
        log = self.run_path(name) / "log.jsonl"
        found = []
        for line in log.read_text().splitlines() if log.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # is being written
        return [entry for entry in found if entry.get("event") == "epoch"]

    def await_epoch(self, process: Process, name: str, number: int, timeout: float = 600) -> bool:
        """Wait until a run has finished so many epochs; False where it ended before."""
        deadline = time.monotonic() + timeout
        while len(self.read_epochs(name)) < number:
            if not process.is_alive or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return process.is_alive

    def finish(self) -> int:
        """Print the verdict; gives the exit code."""
        return self.report.finish(self.args.json)


def build_parser(script: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that all scripts take.

    Args:
        script: its `__file__`.
        description: its docstring.
    """
    parser = argparse.ArgumentParser(
        prog=Path(script).name,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config",
        type=Path,
        nargs="?",
        help="an mnft config; without one, 2,000 images and random weights are made",
    )
    parser.add_argument(
        "--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="as in mnft"
    )
    parser.add_argument(
        "--device",
        default="cuda",
        help="cuda (default), cuda:N, or cpu, which tries the script and says nothing about GPUs",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="without a config: few small images, a tiny network"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="keep runs and output here; default: not kept"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write lines and figures here")
    return parser


@contextmanager
def begin(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> Iterator[Job]:
    """Parse the arguments and bring the inputs; at the end no process is left.

    Args:
        parser: of the script.
        arguments: those to parse; None takes the process's own.

    Raises:
        SystemExit: with code 2, the arguments are wrong or the device is not there.
    """
    args = parser.parse_args(arguments)
    if args.tiny and args.config:
        parser.error("--tiny makes its own images: leave the config out")
    import torch

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu tries the script itself")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.out or Path(temporary)).resolve()
        with _environment(folder):
            report = Report(parser.prog, args.device)
            config = args.config
            if config is None:
                from inputs import make_inputs

                config = make_inputs(folder, tiny=args.tiny)
            job = Job(args, config.resolve(), folder, report)
            try:
                yield job
            finally:
                for process in job.processes:
                    process.kill()


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """This checkout and a store of their own for all that runs, here and in processes."""
    before = dict(os.environ)
    path = [str(ROOT), *filter(None, [before.get("PYTHONPATH")])]
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "MNFT_CACHE": str(folder / "store"),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
