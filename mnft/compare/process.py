"""A process that runs one model for measurements: requests, answers, timeouts, its end."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mnft
from mnft.errors import ExportError

_MODULE = "mnft.compare.worker"
_TAIL_LINES = 8
_CLOSING_S = 10


class WorkerProcess:
    """A running `mnft.compare.worker`; the answer to its first request is still to be read.

    Args:
        label: the model's name in messages.
        request: the model to open, as the worker expects it.
        threads: the threads that its libraries may compute with.
    """

    def __init__(self, label: str, request: Mapping[str, Any], threads: int) -> None:
        self._label = label
        # This mnft before any other that is installed.
        paths = [str(Path(mnft.__file__).resolve().parent.parent)]
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {
            **os.environ,
            **dict.fromkeys(libraries, str(threads)),
            "PYTHONPATH": os.pathsep.join(paths),
            # Modules of the current folder must not stand in for others.
            "PYTHONSAFEPATH": "1",
            # The compiler's own processes would outlive a worker that is killed.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
        # Appended to, so that reading it does not move the place where the process writes.
        self._errors = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - stop closes it
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            encoding="utf-8",
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._send(request)

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            ExportError: the process reports an error, has ended, or does not answer in time.
        """
        self._send(request)
        return self.read_answer(timeout_s)

    def read_answer(self, timeout_s: float) -> dict[str, Any]:
        """Wait for an answer; raises as `ask` does."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty as error:
            raise ExportError(
                f"{self._label}: no answer within {timeout_s:g} s{self._tail()}"
            ) from error
        if line is None:
            raise ExportError(
                f"{self._label}: the process that ran it ended {self._wait()}{self._tail()}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ExportError(f"{self._label}: {answer['error']}", hint=answer["hint"])
        return answer

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=_CLOSING_S)
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(OSError):  # what was to be sent to a process that has ended
                    stream.close()

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: the missing answer says so, with the reason
            self._process.stdin.write(json.dumps(dict(request)) + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _wait(self) -> str:
        try:
            code = self._process.wait(_CLOSING_S)
        except subprocess.TimeoutExpired:
            return "its output, but still runs"
        if code >= 0:
            return f"with exit code {code}"
        name = signal.Signals(-code).name
        return f"by {name}" + (": too little memory?" if name == "SIGKILL" else "")

    def _tail(self) -> str:
        self._errors.seek(0)
        text = self._errors.read().decode("utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()][-_TAIL_LINES:]
        return "".join(f"\n  {line}" for line in lines)
