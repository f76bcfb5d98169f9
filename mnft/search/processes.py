"""Workers as processes of their own: started, watched, restarted, and stopped with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

import mnft
from mnft.config.schema import Config
from mnft.errors import TrainError
from mnft.host import count_cores
from mnft.search.folder import SearchFolder

_POLL_S = 0.5
_RESTARTS = 5  # of all workers together; their trials are resumed
_TO_SAVE_S = 120.0
_TAIL_LINES = 6


@dataclass
class _Worker:
    """One process; `log` takes its stderr."""

    number: int
    command: Sequence[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                # It ends when its stdin does, which happens even if this process is killed.
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self.environment,
                # A Ctrl-C of the terminal reaches this process only, which passes it on once: a
                # second signal would cut short what the first one saves.
                start_new_session=True,
            )

    def tail(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return "".join(f"\n  {line}" for line in lines[-_TAIL_LINES:])


def count_workers(wanted: int | None, config: Config) -> int:
    """The number of worker processes: as asked for, or one for each GPU."""
    if wanted is not None:
        return wanted
    return len(_list_gpus(config)) or 1


def _list_gpus(config: Config) -> list[str]:
    """The names of GPUs to give to workers; empty where training names one, or uses none."""
    if config.train.device not in {"auto", "cuda"} or not torch.cuda.is_available():
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",") if chosen else [str(i) for i in range(torch.cuda.device_count())]


def run_workers(
    number: int,
    arguments: Sequence[str],
    config: Config,
    folder: SearchFolder,
    watch: Callable[[], None],
    warn: Callable[[str], None],
) -> None:
    """Run workers until each has ended.

    Args:
        number: number of workers.
        arguments: arguments of `mnft` that make a worker.
        config: the config, which says whether they use GPUs.
        folder: the folder of the search, which gets their logs.
        watch: called twice a second.
        warn: told of workers that end early.

    Raises:
        TrainError: every worker failed; the message ends with the words of one.
        Interrupted: by Ctrl-C or SIGTERM; the workers have saved and ended.
    """
    gpus = _list_gpus(config)
    workers = [_build_worker(i, number, arguments, gpus, folder) for i in range(number)]
    restarts, failed = 0, 0
    try:
        for worker in workers:
            worker.start()
        running = list(workers)
        while running:
            time.sleep(_POLL_S)
            watch()
            for worker in list(running):
                code = worker.process.poll()
                if code is None:
                    continue
                if code < 0 and restarts < _RESTARTS:
                    name = signal.Signals(-code).name
                    warn(f"worker {worker.number} was ended by {name}; another takes its place")
                    restarts += 1
                    worker.start()
                    continue
                running.remove(worker)
                if code:
                    failed += 1
                    warn(f"worker {worker.number} failed:{worker.tail()}")
    finally:
        _stop(workers)
    if failed == number:
        raise TrainError(
            "every worker failed; their words are above",
            hint=f"{folder.path}/worker-*.log has all of them; --workers 1 trains in this process",
        )


def _build_worker(
    index: int, number: int, arguments: Sequence[str], gpus: Sequence[str], folder: SearchFolder
) -> _Worker:
    # This mnft before any other that is installed.
    paths = [str(Path(mnft.__file__).resolve().parent.parent)]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    # Each has its share of the cores, and keeps it: bits follow from the number of threads.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // number)))
    command = [sys.executable, "-m", "mnft", *arguments]
    return _Worker(index + 1, command, environment, folder.path / f"worker-{index + 1}.log")


def _stop(workers: Sequence[_Worker]) -> None:
    """Ask the workers that still run to save and end; a second signal to this process kills."""
    started = [worker for worker in workers if hasattr(worker, "process")]
    for worker in started:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _TO_SAVE_S
    try:
        for worker in started:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.1, deadline - time.monotonic()))
    finally:
        for worker in started:
            worker.process.kill()
            worker.process.wait()
            if worker.process.stdin is not None:
                worker.process.stdin.close()


def end_with_parent() -> None:
    """In a worker: save and end when the process that started it is gone."""

    def wait() -> None:
        # The descriptor, not sys.stdin: Python cannot end while a thread reads a stream.
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
