"""One model in a process of its own, which computes when told to; `compare.latency` starts it.

Run as `python -m mnft.compare.worker`. A line of JSON on stdin asks, a line on stdout
answers: first {"folder", "exported", "compiled", "threads"}, answered with {"dynamic_batch"}; then
any number of {"batch_size", "untimed", "calls"}, answered with {"seconds"}, a list; and
{"memory": true}, answered with {"peak_bytes"}. What the user can mend is answered with {"error",
"hint"}.

Only models that are torch's own import torch, so that the memory of the others is their runtime's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from mnft.errors import MnftError
from mnft.exports.artifact import Artifact, read_artifact
from mnft.exports.session import open_session


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run.

    Attributes:
        prepare: from a number of images to a call of the model on them, which lie in memory as it
            takes them.
        dynamic_batch: it takes any number of images at once; otherwise one.
    """

    prepare: Callable[[int], Callable[[], object]]
    dynamic_batch: bool


def load(request: Mapping[str, Any]) -> Loaded:
    """Open what the first line names.

    Raises:
        MnftError: it cannot be opened.
    """
    folder, threads = Path(request["folder"]), int(request["threads"])
    if request["exported"]:
        return _load_exported(folder, threads)
    return _load_torch(folder, threads, compiled=bool(request["compiled"]))


def _load_exported(folder: Path, threads: int) -> Loaded:
    artifact = read_artifact(folder)
    session = open_session(folder, artifact, threads=threads)

    def prepare(batch_size: int) -> Callable[[], object]:
        images = _make_images(artifact, batch_size)
        return lambda: session.run(images)

    return Loaded(prepare, artifact.dynamic_batch)


def _load_torch(folder: Path, threads: int, *, compiled: bool) -> Loaded:
    import torch

    from mnft.device.select import keep_freed_memory
    from mnft.model.bundle import load_bundle

    # As `mnft eval` does; without it torch is several times slower on large batches.
    keep_freed_memory()
    torch.set_num_threads(threads)
    bundle = load_bundle(folder)
    model = bundle.model.to(memory_format=torch.channels_last)
    # One graph for each number of images, as the other runtimes have.
    run = torch.compile(model, dynamic=False) if compiled else model

    def prepare(batch_size: int) -> Callable[[], object]:
        array = _draw((batch_size, *bundle.preprocessing.input_size))
        images = torch.from_numpy(array).to(memory_format=torch.channels_last)

        def call() -> object:
            with torch.inference_mode():
                return run(images)

        return call

    return Loaded(prepare, dynamic_batch=True)


def _make_images(artifact: Artifact, batch_size: int) -> NDArray[Any]:
    shape = (batch_size, *(int(side) for side in artifact.input_shape[1:]))
    if artifact.embedded:
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return _draw(shape)


def _draw(shape: tuple[int, ...]) -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def run_turn(call: Callable[[], object], *, untimed: int, calls: int) -> list[float]:
    """The seconds of each of `calls` calls, after `untimed` ones."""
    for _ in range(untimed):
        call()
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def read_peak_memory() -> int | None:
    """Bytes of RAM that this process held at most (VmHWM); None where Linux does not tell."""
    # Not ru_maxrss, which begins with what the process that started this one had.
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer until there is no further line."""
    model = load(json.loads(requests.readline()))
    _answer(answers, {"dynamic_batch": model.dynamic_batch})
    calls: dict[int, Callable[[], object]] = {}
    for line in iter(requests.readline, ""):
        request = json.loads(line)
        if "memory" in request:
            _answer(answers, {"peak_bytes": read_peak_memory()})
            continue
        batch_size = request["batch_size"]
        if batch_size not in calls:
            calls[batch_size] = model.prepare(batch_size)
        seconds = run_turn(calls[batch_size], untimed=request["untimed"], calls=request["calls"])
        _answer(answers, {"seconds": seconds})


def main() -> None:
    """Serve stdin."""
    # Runtimes write to stdout as they like: the answers take another way, and it goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        serve(sys.stdin, answers)
    except MnftError as error:
        _answer(answers, {"error": error.message, "hint": error.hint})


def _answer(answers: TextIO, values: Mapping[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
