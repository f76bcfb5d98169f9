"""Where do the seconds of a whole `mnft train` go?

Trains several times, each in a process of its own: cold (nothing is stored yet), then warm. A
table gives the seconds of each phase; where a phase comes more than once, the first and the mean
of the later ones, which tells what cuDNN's autotuning costs (--tune off, --tune 3).

Must hold on a GPU: every run ends with code 0, says that the images lie in the memory of the GPU,
and takes under 30 s, cold and warm (1,600 images, MobileNetV2). Write down: the seconds in all,
the three biggest phases, images/s of the later epochs, val accuracy, and all of it once more for
--tune off and --tune 3.

    python benchmarks/gpu/phases.py CONFIG
    python benchmarks/gpu/phases.py --tiny --device cpu --rounds 2
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import functools  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import runpy  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from acceptance import Ended, Job, begin, build_parser  # noqa: E402

_INSIDE = "--inside"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a few times, print the table, and give the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == [_INSIDE]:
        train_inside(Path(given[1]), given[2], given[3:])
        return 0
    parser = build_parser(__file__, __doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs; the first is cold")
    parser.add_argument("--limit-s", type=float, default=30, help="seconds that a run may take")
    parser.add_argument(
        "--tune",
        default="on",
        metavar="on|off|N",
        help="cuDNN tries its algorithms for each shape (on, as mnft has it), not, or N of them",
    )
    with begin(parser, given) as job:
        runs = [train(job, number) for number in range(job.args.rounds)]
        show(job, runs)
        return job.finish()


def train(job: Job, number: int) -> dict[str, Any]:
    """One run in a process of its own; gives the seconds by phase."""
    name = "cold" if number == 0 else f"warm{number}"
    file = job.folder / f"{name}.json"
    launcher = [__file__, _INSIDE, file, job.args.tune]
    ended = job.train(name, launcher=launcher)
    job.report.check(f"{name} ends with code 0", ended.code == 0, ended.error)
    judge(job, name, ended)
    if not file.exists():
        return {"phases": {}, "whole": ended.seconds}
    spent: dict[str, list[float]] = json.loads(file.read_text())
    spent["the rest"] = [ended.seconds - sum(map(sum, spent.values()))]
    epochs = [e for e in job.read_epochs(name) if e.get("stage") != "head"]
    rates = [e["images_per_s"] for e in epochs[1:]] or [e["images_per_s"] for e in epochs]
    figures = {
        "seconds": round(ended.seconds, 2),
        "best val accuracy": max((e["val_accuracy"] for e in job.read_epochs(name)), default=0),
        "images/s of epochs from the second on": round(statistics.median(rates)) if rates else 0,
        "peak MB": max((e["peak_memory_mb"] for e in job.read_epochs(name)), default=0),
    }
    job.report.figures[name] = {**figures, "phases": spent}
    job.report.note(f"{name}: " + ", ".join(f"{k} {v:,.4g}" for k, v in figures.items()))
    return {"phases": spent, "whole": ended.seconds}


def judge(job: Job, name: str, ended: Ended) -> None:
    """What a GPU must show."""
    what = f"{name} takes under {job.args.limit_s:g} s"
    placed = f"{name} has its images in the GPU's memory"
    if not job.on_gpu:
        job.report.skip(f"{what}; {placed}", f"{ended.seconds:.1f} s here, but no GPU")
        return
    job.report.check(what, ended.seconds < job.args.limit_s, f"{ended.seconds:.1f} s")
    job.report.check(placed, "in the memory of cuda" in ended.err)


def show(job: Job, runs: list[dict[str, Any]]) -> None:
    """The table: seconds of each phase in each run."""
    names = list(dict.fromkeys(name for run in runs for name in run["phases"]))
    job.report.note("seconds: cold, then warm")
    for name in names:
        row = [run["phases"].get(name, []) for run in runs]
        cells = "".join(f"{sum(seconds):9.2f}" for seconds in row)
        last = row[-1]
        each = ""
        if len(last) > 1:
            later = statistics.mean(last[1:])
            each = f"  (last run: {len(last)} times, first {last[0]:.3f}, then {later:.3f} each)"
        job.report.note(f"{cells}  {name}{each}")
    job.report.note("".join(f"{run['whole']:9.2f}" for run in runs) + "  in all")


def train_inside(file: Path, tune: str, command: list[str]) -> None:
    """Run mnft in this process with its phases timed, and write the seconds of each."""
    import torch

    spent = {"start Python and import torch": [time.perf_counter() - BEGAN]}
    began = time.perf_counter()
    import parts

    places = [(find_owner(module, name), words) for module, name, words in parts.PHASES]
    for (owner, attribute), words in places:
        setattr(owner, attribute, timed(getattr(owner, attribute), spent, words))
    # mnft would decide by the length of the training.
    owner, attribute = find_owner(*parts.TUNE)
    setattr(owner, attribute, lambda _device, **_updates: None)
    torch.backends.cudnn.benchmark = tune != "off"
    if tune not in {"on", "off"}:
        torch.backends.cudnn.benchmark_limit = int(tune)
    spent["import mnft and the rest"] = [time.perf_counter() - began]
    sys.argv = ["mnft", *command]
    try:
        runpy.run_module("mnft", run_name="__main__", alter_sys=True)
    finally:
        file.write_text(json.dumps(spent))


def find_owner(module: str, name: str) -> tuple[Any, str]:
    """Where a function is looked up: the module or class, and its name there."""
    *path, attribute = name.split(".")
    return functools.reduce(getattr, path, importlib.import_module(module)), attribute


def timed(inner: Any, spent: dict[str, list[float]], words: str) -> Any:
    """The same function; it notes its seconds, those that the GPU still works included."""
    import torch

    def outer(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            spent.setdefault(words, []).append(time.perf_counter() - started)

    return outer


if __name__ == "__main__":
    sys.exit(main())
