"""Does every setting run that reaches the GPU by a way of its own?

One short training for each row, several at once, on a few images of each class of the config; then
what needs a trained model: a student of it, --find-lr and predictions. A row that fails shows its
exit code and its last line; all that was printed is in --out.

Must hold: ok in every row. Look first at fp16, deterministic, compiled, policy and auto_batch, and
read the warnings: none that a user cannot act on. Write down: rows that failed; the seconds of
`compiled` against `plain`; the warnings.

    python benchmarks/gpu/matrix.py CONFIG --out FOLDER
    python benchmarks/gpu/matrix.py --tiny --device cpu --only plain fp32 student
"""

from __future__ import annotations

import collections
import json
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from acceptance import Ended, Job, begin, build_parser

_BASE = ["train.epochs=2", "train.batch_size=16"]
_ROWS = {
    "plain": "recipe=plain",
    "recipe": "recipe=auto",
    "bn_learns": "model.freeze_batchnorm=false",
    "fp32": "train.precision=fp32",
    "fp16": "train.precision=fp16 train.clip_grad=1.0",
    "bf16_eval": "eval.precision=bf16",
    "parts": "train.accumulation_steps=4 train.clip_grad=1.0",
    "last_batch": "train.batch_size=17",
    "mixup": "augment.mixup=0.2",
    "cutmix_mixup": "augment.cutmix=1.0 augment.mixup=0.2 train.class_weights=balanced",
    "colours": "augment.color_jitter=0.4 augment.random_erasing=0.5 augment.vflip=0.3",
    "policy": "augment.policy=rand_augment data.workers=4",
    "no_store": "data.store=off data.workers=4",
    "no_workers": "data.store=off data.workers=0",
    "growing": "train.start_size=0.5 train.epochs=4",
    "frozen": "model.freeze=backbone train.stages=[finetune]",
    "groups": "model.freeze=3",
    "balanced": "train.sampler=balanced train.class_weights=balanced",
    "auto_batch": "train.batch_size=auto",
    "no_average": "train.ema_decay=null",
    "deterministic": "train.deterministic=true augment.mixup=0.2",
    "compiled": "train.compile=true train.batch_size=17",
    "compiled_parts": "train.compile=true train.accumulation_steps=2 model.freeze_batchnorm=false",
    "sgd_plateau": "optim.name=sgd optim.lr=0.001 schedule.name=plateau schedule.warmup_epochs=1",
    "lamb": "optim.name=lamb optim.lr=0.002",
    "contiguous": "train.channels_last=false",
    "nearest": "data.interpolation=nearest",
    "bicubic": "data.interpolation=bicubic",
    "large": "data.img_size=320 data.crop_pct=1.0",
    "grey": "model.in_chans=1 data.mean=[0.5] data.std=[0.25]",
    "v3": "model.name=mobilenetv3_small_050 model.pretrained=false recipe=plain",
    "lenet": "model.name=lenet5 model.pretrained=false data.img_size=32",
    "vit": "model.name=test_vit model.pretrained=false recipe=plain",
    "dropout": "model.drop_rate=0.2 model.drop_path_rate=0.1",
}
# What needs the run of `plain`.
_AFTER = ("student", "find_lr", "predict", "eval_cpu")
_NOT_ON_CPU = {
    "fp16": "mnft refuses fp16 on the CPU",
    "compiled": "compiling for the CPU takes minutes",
    "compiled_parts": "compiling for the CPU takes minutes",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, print the table and the warnings, and give the exit code."""
    parser = build_parser(__file__, __doc__)
    parser.add_argument("--jobs", type=int, default=4, help="trainings at once")
    parser.add_argument("--per-class", type=int, default=24, help="images, of train and of val")
    parser.add_argument("--limit-s", type=float, default=240, help="seconds for a row")
    rows = [*_ROWS, *_AFTER]
    parser.add_argument("--only", nargs="+", choices=rows, default=rows, metavar="ROW")
    with begin(parser, arguments) as job:
        root = f"data.root={copy_some(job)}"
        wanted = dict.fromkeys(job.args.only)
        if set(wanted) & set(_AFTER):
            wanted = {"plain": None, **wanted}
        if not job.on_gpu:
            for name in wanted.keys() & _NOT_ON_CPU:
                job.report.skip(name, _NOT_ON_CPU[name])
                del wanted[name]
        with ThreadPoolExecutor(job.args.jobs) as pool:
            trainings = [name for name in wanted if name in _ROWS]
            ended = list(pool.map(lambda name: train(job, name, root), trainings))
            later = [name for name in wanted if name in _AFTER]
            ended += pool.map(lambda name: follow(job, name, root), later)
        show_warnings(job, ended)
        return job.finish()


def copy_some(job: Job) -> str:
    """A folder with some images of each class of the config's, in its splits."""
    import parts
    from shrink import shrink

    config, _ = parts.load_config(job.config, job.sets)
    small = job.folder / "small"
    root = Path(config.data.root).expanduser()
    count, _ = shrink(root, small, per_folder=job.args.per_class, leave_out=["test"])
    job.report.note(f"{count} images")
    return str(small)


def train(job: Job, name: str, root: str) -> Ended:
    """One row."""
    ended = job.train(
        name, root, *_BASE, *_ROWS[name].split(), flags=["--json"], timeout=job.args.limit_s
    )
    try:
        values = json.loads(ended.out)
        found = f"val accuracy {values['val_accuracy']:.3f}, loss {values['val_loss']:.3f}"
    except (ValueError, KeyError):
        found = ended.error[:200]
    judge(job, name, ended, found)
    return ended


def follow(job: Job, name: str, root: str) -> Ended:
    """One row that needs the model of `plain`."""
    model = job.run_path("plain")
    values = [part for value in (*job.sets, root, *_BASE) for part in ("--set", value)]
    images = job.folder / "small"
    commands: dict[str, list[object]] = {
        "student": [
            "train",
            job.config,
            *values,
            "--set",
            "run.name=student",
            "--set",
            f"distill.teacher={model}",
        ],
        "find_lr": ["train", "--find-lr", job.config, *values],
        "predict": ["predict", "--ckpt", model, images, "--device", job.device],
        "eval_cpu": ["eval", "--ckpt", model, "--split", "val", "--device", "cpu"],
    }
    ended = job.start(*commands[name], name=name).wait(job.args.limit_s)
    lines = ended.out.splitlines()
    judge(job, name, ended, f"{len(lines)} lines of output" if ended.code == 0 else ended.error)
    return ended


def judge(job: Job, name: str, ended: Ended, found: str) -> None:
    """One line of the table."""
    job.report.figures[name] = {"code": ended.code, "seconds": round(ended.seconds, 1)}
    found = f"code {ended.code}, {ended.seconds:.1f} s, {found}"
    job.report.check(name, ended.code == 0, found)


def show_warnings(job: Job, ended: Sequence[Ended]) -> None:
    """Each kind of warning once, with the number of its lines; people judge them."""
    lines = [line for end in ended for line in end.err.splitlines() if "warn" in line.lower()]
    lines = [re.sub(r"0x[0-9a-f]+|\d+", "N", line.strip())[:200] for line in lines]
    kinds = collections.Counter(lines)
    job.report.figures["warnings"] = dict(kinds)
    job.report.note(f"{len(kinds)} kinds of warnings" + (", to be read:" if kinds else ""))
    for line, count in kinds.most_common(30):
        job.report.note(f"{count:4} times  {line}")


if __name__ == "__main__":
    sys.exit(main())
