"""Does a run that SIGTERM stops twice end as one that never stopped, bit for bit?

Under train.deterministic: one run (whole), the same once more (again), and one that gets SIGTERM
in two of its epochs and is resumed each time (cut).

Must hold: `again` and `cut` have the very weights of `whole`; each stop ends with exit code 143
and says how to go on; on a GPU within 3 s. Write down: the seconds from SIGTERM to the end, and
the difference where weights are not equal.

    python benchmarks/gpu/stops.py CONFIG
    python benchmarks/gpu/stops.py --tiny --device cpu
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from acceptance import Job, begin, build_parser

_SECONDS_TO_END = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, stop and resume, compare, and give the exit code."""
    parser = build_parser(__file__, __doc__)
    parser.add_argument("--epochs", type=int, default=8, help="enough for two stops on the way")
    with begin(parser, arguments) as job:
        sets = ["train.deterministic=true", f"train.epochs={job.args.epochs}"]
        for name in ("whole", "again"):
            ended = job.train(name, *sets)
            if not job.report.check(f"{name} is trained", ended.code == 0, ended.error):
                return job.finish()
        if stop_twice(job, sets):
            for name in ("again", "cut"):
                compare_weights(job, name)
        return job.finish()


def stop_twice(job: Job, sets: list[str]) -> bool:
    """Train `cut` with two stops; False where that does not work."""
    process = job.start_training("cut", *sets)
    resume = ("train", "--resume", job.run_path("cut"))
    for stop in (1, 2):
        done = len(job.read_epochs("cut"))
        what = f"stop {stop} ends with exit code 143"
        if not job.await_epoch(process, "cut", max(done + 1, 2)):
            ended = process.wait(60)
            job.report.check(what, False, f"it ended before (code {ended.code}): {ended.error}")
            return False
        process.terminate()
        started = time.monotonic()
        ended = process.wait(120)
        seconds = time.monotonic() - started
        job.report.figures[f"stop_{stop}_s"] = seconds
        job.report.check(what, ended.code == 143, f"code {ended.code}; {ended.last_line}")
        job.report.check(
            f"stop {stop} says how to go on, without a traceback",
            "--resume" in ended.last_line and "Traceback" not in ended.err,
        )
        within = f"stop {stop} takes under {_SECONDS_TO_END:g} s"
        if job.on_gpu:
            job.report.check(within, seconds < _SECONDS_TO_END, f"{seconds:.2f} s")
        else:
            job.report.skip(within, f"{seconds:.2f} s here, but no GPU")
        process = job.start(*resume, name=f"cut{stop}")
    ended = process.wait(900)
    return job.report.check("cut is trained to its end", ended.code == 0, ended.error)


def compare_weights(job: Job, name: str) -> None:
    """The last epoch's weights of a run and of the one that never stopped, and their losses."""
    import torch
    from safetensors.torch import load_file

    first, other = (load_file(job.run_path(n) / "last/model.safetensors") for n in ("whole", name))
    equal = first.keys() == other.keys() and all(torch.equal(first[k], other[k]) for k in first)
    found = "bit for bit"
    if not equal:
        gaps = [(first[k].double() - other[k].double()).abs().max() for k in first if k in other]
        losses = [round(e["val_loss"], 6) for e in job.read_epochs(name)]
        found = f"they differ by {max(gaps):.2e}; val losses {losses}"
    job.report.check(f"{name} has the weights of whole", equal, found)


if __name__ == "__main__":
    sys.exit(main())
