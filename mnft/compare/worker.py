"""One model in its own process, which runs it when told to; `compare.process` starts it.

Run as `python -m mnft.compare.worker`. A line of JSON on stdin asks, a line on stdout
answers: first {"folder", "exported", "compiled", "threads"}, answered with {"dynamic_batch"}; then
any number of {"batch_size", "untimed", "calls"}, answered with {"seconds"}, a list; and
{"memory": true}, answered with {"peak_bytes"}. What the user can fix is answered with {"error",
"hint"}.

Only for torch's own models is torch imported, so that the memory of the others is their runtime's.
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
from mnft.exports.artifact import read_artifact
from mnft.exports.session import open_session
from mnft.host import read_peak_memory


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run.

    Attributes:
        prepare: takes a number of images, and returns a call of the model on as many random ones.
        dynamic_batch: whether it takes any number of images at once; otherwise one.
    """

    prepare: Callable[[int], Callable[[], object]]
    dynamic_batch: bool


def load(request: Mapping[str, Any]) -> Loaded:
    """Open the model that the first line names.

    Raises:
        MnftError: it cannot be opened.
    """
    folder, threads = Path(request["folder"]), int(request["threads"])
    if request["exported"]:
        artifact = read_artifact(folder)
        session = open_session(folder, artifact, threads=threads)

        def prepare_session(batch_size: int) -> Callable[[], object]:
            shape = (batch_size, *(int(side) for side in artifact.input_shape[1:]))
            if artifact.embedded:
                images: NDArray[Any] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            else:
                images = _draw(shape)
            return lambda: session.run(images)

        return Loaded(prepare_session, artifact.dynamic_batch)

    import torch

    from mnft.device.select import keep_freed_memory
    from mnft.model.bundle import load_bundle

    # As `mnft eval` does; without it torch is several times slower on large batches.
    keep_freed_memory()
    torch.set_num_threads(threads)
    bundle = load_bundle(folder)
    model = bundle.model.to(memory_format=torch.channels_last)
    # One graph for each number of images, as the other runtimes have.
    run = torch.compile(model, dynamic=False) if request["compiled"] else model

    def prepare_model(batch_size: int) -> Callable[[], object]:
        array = _draw((batch_size, *bundle.preprocessing.input_size))
        images = torch.from_numpy(array).to(memory_format=torch.channels_last)

        def call() -> object:
            with torch.inference_mode():
                return run(images)

        return call

    return Loaded(prepare_model, dynamic_batch=True)


def _draw(shape: tuple[int, ...]) -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def run_turn(call: Callable[[], object], *, untimed: int, calls: int) -> list[float]:
    """The seconds that each of `calls` calls takes, after `untimed` calls."""
    for _ in range(untimed):
        call()
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there is no further line."""
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
    """Answer on stdout what comes on stdin."""
    # Runtimes print as they like: the answers keep the real stdout, and prints go to stderr.
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
