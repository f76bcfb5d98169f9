"""What happens when the GPU's memory is too small, or somebody else has it?

Each case is a process that may take part of the memory only: of what the same training takes when
nothing limits it, so that the script fits any GPU and model.

  whole      the peak of an epoch in batches of --batch-size
  parts      half of that: the batch is computed in parts, and the epoch ends with code 0
  too small  a fiftieth: one `error:` line with a hint, code 1, no traceback
  auto       train.batch_size: auto with half of what that takes: a smaller size, or an `error:`
  full GPU   this script holds all memory but 300 MB: as "too small"

Must hold: every line says ok. Write down: the peak in MB, the number of parts, the sizes that auto
took, and the text of an error that is not recognised.

    python benchmarks/gpu/memory.py CONFIG
    python benchmarks/gpu/memory.py --tiny --device cpu    (only `too small`)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from acceptance import HERE, Ended, Job, begin, build_parser

_LEFT_BYTES = 300_000_000
# The CPU's case: above what the process has when mnft begins.
_LEFT_ON_CPU_MB = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Try each case, and give the exit code."""
    parser = build_parser(__file__, __doc__)
    parser.add_argument("--batch-size", type=int, default=512, help="of `whole` and `parts`")
    with begin(parser, arguments) as job:
        if job.on_gpu:
            try_on_gpu(job)
        else:
            for case in ("whole", "parts", "auto", "full GPU"):
                job.report.skip(case, "no GPU")
            ended = train(job, "small", ["data.workers=0"], _LEFT_ON_CPU_MB)
            judge_error(job, f"too small ({_LEFT_ON_CPU_MB} MB of address space)", ended)
        return job.finish()


def try_on_gpu(job: Job) -> None:
    """All cases, in the order of the docstring."""
    large = [f"train.batch_size={job.args.batch_size}"]
    ended = train(job, "whole", large)
    peak = read_peak(job, "whole")
    if not job.report.check("whole", ended.code == 0 and peak > 0, f"{peak:,.0f} MB"):
        job.report.note(ended.error)
        return
    job.report.figures["peak_mb"] = peak

    ended = train(job, "parts", large, peak / 2)
    parts = re.findall(r"computed in (\d+) parts", ended.err)
    job.report.figures["parts"] = parts
    found = f"code {ended.code}, {parts[-1]} parts" if parts else f"no parts: {ended.error}"
    job.report.check(f"parts ({peak / 2:,.0f} MB)", ended.code == 0 and bool(parts), found)

    ended = train(job, "small", large, peak / 50)
    judge_error(job, f"too small ({peak / 50:,.0f} MB)", ended)

    auto = ["train.batch_size=auto"]
    ended = train(job, "auto", auto)
    size, peak = read_batch_size(ended), read_peak(job, "auto")
    job.report.check("auto, nothing limits it", ended.code == 0, f"{size} images, {peak:,.0f} MB")
    ended = train(job, "auto-limited", auto, peak / 2)
    less = read_batch_size(ended)
    ok = (ended.code == 0 and 0 < less < size) or ended.fails_clearly()
    found = f"{less} images" if ended.code == 0 else ended.error
    job.report.figures["auto"] = [size, less]
    job.report.check(f"auto ({peak / 2:,.0f} MB)", ok, found)

    try_full_gpu(job)


def try_full_gpu(job: Job) -> None:
    """Hold nearly all memory, as another user's process would."""
    import torch

    device = torch.device(job.device)
    torch.zeros(1, device=device)  # the context, which takes memory itself
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.empty(max(0, free - _LEFT_BYTES), dtype=torch.uint8, device=device)
    ended = train(job, "full", [])
    judge_error(job, f"full GPU ({held.nbytes / 1e9:.1f} GB held)", ended)
    del held
    torch.cuda.empty_cache()


def train(job: Job, name: str, sets: Sequence[str], limit_mb: float | None = None) -> Ended:
    """Two epochs without the head stage, with so much memory."""
    limit = "--gpu-memory-mb" if job.on_gpu else "--address-space-mb"
    launcher = [] if limit_mb is None else [HERE / "launch.py", limit, limit_mb, "--"]
    short = ["train.epochs=2", "train.stages=[finetune]"]
    return job.train(name, *short, *sets, launcher=launcher)


def judge_error(job: Job, case: str, ended: Ended) -> None:
    """One message, with a hint, and the documented exit code."""
    ok = ended.fails_clearly() and "hint:" in ended.err and "memory" in ended.error
    job.report.check(case, ok, f"code {ended.code}, {ended.error}")


def read_peak(job: Job, name: str) -> float:
    """Megabytes of the last epoch, in which cuDNN tries nothing any more; 0 where there is none."""
    return next((float(epoch["peak_memory_mb"]) for epoch in job.read_epochs(name)[::-1]), 0.0)


def read_batch_size(ended: Ended) -> int:
    """What `auto` took, as the recipe's lines say; 0 where they do not."""
    found = re.findall(r"train\.batch_size: (\d+)", ended.err)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
