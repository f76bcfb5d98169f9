"""Do several processes train what one trains, say what is missing, and end together?

  group    this process alone in a group (NCCL on a GPU, gloo on the CPU): DistributedDataParallel
           plain, compiled, frozen with accumulated parts, with learning BatchNorm; two epochs each
  missing  one process more than there are GPUs: must say how many GPUs there are, soon
  losses   one process and two, in fp32 with learning BatchNorm: the same losses to 2%
  signal   SIGTERM to torchrun in the middle of a training: one line says how to go on; then one
           process resumes the run

Where there is one GPU only, `losses` and `signal` put both processes on it, over gloo, as NCCL
refuses that; with two GPUs or more they run over NCCL. Only that shows whether NCCL lets go after
a signal or an error.

Must hold: every line says ok. Write down: images/s of plain against compiled; the seconds from
SIGTERM to the end.

    python benchmarks/gpu/processes.py CONFIG
    python benchmarks/gpu/processes.py --tiny --device cpu
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from acceptance import HERE, Ended, Job, begin, build_parser

_GROUP = {
    "plain": [],
    "compiled": ["train.compile=true"],
    "frozen, in parts": ["model.freeze=2", "train.accumulation_steps=2"],
    "learning BatchNorm": ["model.freeze_batchnorm=false"],
}
_SAME_LOSS = 0.02
_SECONDS_TO_SAY = 90
_SECONDS_TO_END = 45


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, and give the exit code."""
    cases: dict[str, Callable[[Job], None]] = {
        "group": try_group,
        "missing": try_missing_gpu,
        "losses": try_losses,
        "signal": try_signal,
    }
    parser = build_parser(__file__, __doc__)
    parser.add_argument("--only", choices=cases, nargs="+", default=list(cases), help="cases")
    with begin(parser, arguments) as job:
        for name in job.args.only:
            cases[name](job)
        return job.finish()


def try_group(job: Job) -> None:
    """Each way to wrap the model, in a group of one process."""
    import parts
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    device = parts.find_device(job.device)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_port())}
    backend = "cpu:gloo,cuda:nccl" if job.on_gpu else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=5), rank=0, world_size=1)
    for name, sets in _GROUP.items():
        what = f"group of one: {name}"
        if name == "compiled" and not job.on_gpu:
            job.report.skip(what, "no GPU; compiling for the CPU takes minutes")
            continue
        sets = [*job.args.sets, f"train.device={job.device}", *sets]
        _, training = parts.build(job.config, sets, device)
        model = parts.synchronize_batchnorm(training.state.model)
        training.state.model = model
        forward = DistributedDataParallel(model, device_ids=[device] if job.on_gpu else None)
        if name == "compiled":
            forward = torch.compile(forward)
        losses, rates = [], []
        for epoch in (1, 2):
            training.train.sampler.set_epoch(epoch)
            result = parts.train_one_epoch(
                training.state,
                forward,
                training.train,
                training.criterion,
                training.options.loop,
                on_step=lambda *_: None,
                seed=epoch,
            )
            losses.append(result.figures["loss"])
            rates.append(result.num_images / result.seconds)
        job.report.figures[what] = {"losses": losses, "images_per_s": rates}
        found = f"losses {losses[0]:.4f}, {losses[1]:.4f}; {rates[1]:,.0f} images/s"
        job.report.check(what, losses[1] < losses[0], found)
    dist.destroy_process_group()


def try_missing_gpu(job: Job) -> None:
    """One process too many: a message in time, not a hang."""
    import torch

    what = "missing GPU: the message"
    if not job.on_gpu:
        job.report.skip(what, "no GPU; processes can share a CPU")
        return
    count = torch.cuda.device_count()
    ended = job.train("missing", launcher=torchrun(count + 1), timeout=_SECONDS_TO_SAY)
    said = re.search(rf"error: .*finds? {count} GPU.*", ended.err)
    job.report.check(
        what, ended.code not in (0, 124) and bool(said), said[0] if said else ended.last_line
    )
    job.report.note(f"code {ended.code} after {ended.seconds:.1f} s")


def try_losses(job: Job) -> None:
    """The same training by one process and by two."""
    sets = ["train.epochs=2", "model.freeze_batchnorm=false", "train.precision=fp32"]
    launcher = torchrun(2, one_gpu=shares_gpu(job))
    for name, through in (("one", []), ("two", launcher)):
        ended = job.train(name, *sets, launcher=through)
        if not job.report.check(f"losses: {name} is trained", ended.code == 0, explain(ended)):
            return
    one, two = (
        [epoch[key] for epoch in job.read_epochs(name) for key in ("train_loss", "val_loss")]
        for name in ("one", "two")
    )
    gap = max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(one, two, strict=True))
    job.report.figures["losses"] = {"one": one, "two": two}
    found = f"{gap:.2%} at most; one {one[-1]:.4f}, two {two[-1]:.4f} at the end"
    job.report.check(f"losses: equal to {_SAME_LOSS:.0%}", gap < _SAME_LOSS, found)


def try_signal(job: Job) -> None:
    """SIGTERM to torchrun, which passes it on; then the run is resumed by one process."""
    launcher = torchrun(2, one_gpu=shares_gpu(job))
    process = job.start_training("signalled", "train.epochs=500", launcher=launcher)
    if not job.await_epoch(process, "signalled", 2):
        ended = process.wait(10)
        job.report.check("signal: the training begins", False, explain(ended))
        return
    process.terminate()
    started = time.monotonic()
    ended = process.wait(_SECONDS_TO_END)
    seconds = time.monotonic() - started
    job.report.figures["signal_s"] = seconds
    lines = [line for line in ended.err.splitlines() if line.startswith("stopped: ")]
    job.report.check(
        "signal: one line says how to go on",
        ended.code not in (0, 124) and len(lines) == 1 and "--resume" in lines[0],
        f"after {seconds:.1f} s: " + (" | ".join(lines) or explain(ended)),
    )
    done = len(job.read_epochs("signalled"))
    process = job.start("train", "--resume", job.run_path("signalled"), name="resumed")
    resumed = job.await_epoch(process, "signalled", done + 1)
    if resumed:
        process.terminate()
    ended = process.wait(_SECONDS_TO_END)
    found = "" if resumed else ended.error
    job.report.check("signal: one process resumes it", resumed, found)


def torchrun(count: int, *, one_gpu: bool = False) -> list[object]:
    """The launcher of so many processes on this machine."""
    launcher: list[object] = ["-m", "torch.distributed.run", "--standalone"]
    launcher += ["--local-addr", "127.0.0.1", f"--nproc-per-node={count}"]
    return [*launcher, *([HERE / "launch.py", "--one-gpu", "--"] if one_gpu else ["-m", "mnft"])]


def shares_gpu(job: Job) -> bool:
    """Whether two processes have to share a GPU; says so."""
    import torch

    shared = job.on_gpu and torch.cuda.device_count() < 2
    if job.on_gpu:
        where = "both on one GPU over gloo: nothing is said about NCCL"
        job.report.note("two processes: " + (where if shared else "a GPU each, over NCCL"))
    return shared


def explain(ended: Ended) -> str:
    """The lines of an output that say what was the matter, without those of torchrun."""
    if ended.code == 0:
        return ""
    lines = [line for line in ended.err.splitlines() if re.search(r"[Ee]rror|stopped", line)]
    return f"code {ended.code}: " + " | ".join(line.strip()[:160] for line in lines[:5])


def find_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
