"""Training on the CPU beside other work: all threads, one thread, and `train.threads: auto`.

    python benchmarks/threads.py [--beside quiet conv ...] [--rounds 5] [--out OUT.jsonl]
    python benchmarks/threads.py --table OUT.jsonl

Trains a model of random weights on made-up stored images, through the parts that `mnft train` uses,
beside each kind of other work. In a round every setting trains one short epoch, so that all see
the same state of the machine; `auto` looks at the load before each of its epochs, as `fit` does.

The table says whether the aim holds: beside k busy processes on n cores at least 80% of the rate
that n - k threads give on the quiet machine, and where k is n or more, 80% of half the rate of one
thread. So the quiet machine must be among the kinds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line of mnft does

# What runs beside the training: how many processes, and what each does.
BESIDE = {
    "quiet": (0, ""),
    "loop-nice19": (1, "loop 1 19"),
    "conv-nice19": (1, "conv 1 19"),
    "conv": (1, "conv 1 0"),
    "conv-x2": (2, "conv 1 0"),
    "conv-all-nice19": (1, "conv all 19"),
    "conv-all": (1, "conv all 0"),
    "conv-all-x2": (2, "conv all 0"),
}


def be_busy(kind: str, threads: str, niceness: int) -> None:
    """Loop in Python, or train three convolutions, until the process is ended."""
    starter = os.getppid()
    if os.fork():  # an orphan, as other people's processes are no children of ours either
        os._exit(0)
    os.nice(niceness)
    print(os.getpid(), flush=True)
    while kind == "loop":
        for _ in range(10_000_000):
            pass
        os.kill(starter, 0)  # fails, and ends this, when the starter is gone
    import torch
    from torch import nn

    if threads != "all":
        torch.set_num_threads(int(threads))
    layers: list[nn.Module] = []
    for channels in (3, 64, 64):
        layers += [nn.Conv2d(channels, 64, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    images, targets = torch.randn(16, 3, 112, 112), torch.randint(0, 5, (16,))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    while True:
        os.kill(starter, 0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()


@contextmanager
def beside(name: str) -> Iterator[None]:
    """Let the processes of one kind of other work run meanwhile."""
    count, words = BESIDE[name]
    pids: list[int] = []
    try:
        for _ in range(count):
            command = [sys.executable, __file__, "--busy", *words.split()]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout
                pids.append(int(process.stdout.readline()))
        time.sleep(4 if count else 0.5)  # until they have imported torch
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def build(args: argparse.Namespace, folder: Path):
    """A training of made-up images, in the form of the recipe for few images."""
    import numpy as np
    import torch
    from PIL import Image

    from mnft.config.schema import Config
    from mnft.data.prepare import prepare_manifest
    from mnft.device.machine import Machine
    from mnft.device.select import keep_freed_memory
    from mnft.tasks.classify.labels import RULES
    from mnft.training.build import build_training

    keep_freed_memory()
    rng = np.random.default_rng(0)
    for number in range(args.batches * args.batch_size + 8):
        split = "val" if number < 8 else "train"
        path = folder / "images" / split / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(path)
    config = Config.model_validate(
        {
            "recipe": "plain",
            "data": {
                "root": str(folder / "images"),
                "store": str(folder / "store"),
                "img_size": args.img_size,
            },
            "model": {"name": args.model, "pretrained": False, "freeze_batchnorm": True},
            "optim": {"name": "adamw", "lr": 1e-5},
            "train": {
                "batch_size": args.batch_size,
                "ema_decay": 0.99,
                "device": "cpu",
                "precision": args.precision,
            },
        }
    )
    manifest = prepare_manifest(config.data, RULES, lambda _done, _total: None, check_later=True)
    return build_training(config, manifest, Machine(torch.device("cpu")))


def measure(args: argparse.Namespace, training, kind: str) -> dict[str, object]:
    """Images per second of each setting beside one kind of other work, round by round."""
    import torch

    from mnft.device.cpu.load import OtherWork
    from mnft.training.epoch.loop import train_one_epoch

    threads = training.options.threads
    settings = dict.fromkeys(["all", "one", "auto"])
    rates, chosen = defaultdict(list), []
    spent = []
    work = OtherWork()
    for number in range(args.rounds + 1):
        for setting in settings:
            started = time.perf_counter()
            if setting == "auto":
                torch.set_num_threads(chosen[-1] if chosen else threads.most)
                chosen.append(threads.choose())
                spent.append(time.perf_counter() - started)
            else:
                torch.set_num_threads(threads.most if setting == "all" else 1)
            training.train.sampler.set_epoch(number + 1)
            result = train_one_epoch(
                training.state,
                training.forward,
                training.train,
                training.criterion,
                training.options.loop,
                on_step=lambda *_: None,
            )
            if number:  # the first round warms up, and `auto` has nothing to look back at
                rates[setting].append(result.num_images / result.seconds)
    return {
        "beside": kind,
        "busy": BESIDE[kind][0],
        "cores": threads.most,
        "rates": rates,
        "chosen": chosen[1:],
        "choosing_s": spent[1:],
        "others": work.measure(),
        "model": args.model,
        "img_size": args.img_size,
        "batch_size": args.batch_size,
        "precision": str(training.machine.train_dtype).removeprefix("torch."),
        "processor": training.facts["processor"],
    }


def show(results: list[dict]) -> None:
    """The table, and whether the aim holds."""
    quiet = next(r for r in results if r["beside"] == "quiet")
    first = results[0]
    print(f"{first['processor']}; {first['model']} at {first['img_size']} pixels, ", end="")
    print(f"batches of {first['batch_size']}, {first['precision']}\n")
    cores = quiet["cores"]
    print("| beside | all threads | one thread | auto | its threads | choosing, s | others | aim |")
    print("|---|---|---|---|---|---|---|---|")
    for r in results:
        free = cores - r["busy"]
        if free in {cores, 1}:
            alone = statistics.median(quiet["rates"]["all" if free == cores else "one"])
        else:
            alone = statistics.median(quiet["rates"]["one"]) * (free if free > 0 else 0.5)
        cells = [_spread(r["rates"][setting]) for setting in ("all", "one", "auto")]
        share = statistics.median(r["rates"]["auto"]) / (0.8 * alone)
        aim = f"{'met' if share >= 1 else 'missed'}: {0.8 * share:.0%} of {alone:.0f}"
        # One thread a process takes one core; "all" takes what it can, so that nothing is known.
        if "all" not in r["beside"] and r["others"] > min(cores, r["busy"]) + 0.2:
            aim = "not valid: something else ran"
        choosing = statistics.median(r["choosing_s"])
        print(
            f"| {r['beside']} | {' | '.join(cells)} | {', '.join(map(str, r['chosen']))} "
            f"| {choosing:.2f} | {r['others']:.1f} | {aim} |"
        )


def _spread(rates: list[float]) -> str:
    return f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"


def main() -> None:
    """Measure and print, or print what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--beside", nargs="+", choices=BESIDE, default=list(BESIDE)[:5])
    parser.add_argument("--model", default="mobilenetv2_100")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--busy", nargs=3, help="used by itself")
    args = parser.parse_args()
    if args.busy:
        be_busy(args.busy[0], args.busy[1], int(args.busy[2]))
    if args.table:
        show([json.loads(line) for line in args.table.read_text().splitlines()])
        return
    with tempfile.TemporaryDirectory() as folder:
        training = build(args, Path(folder))
        results = []
        for kind in args.beside:
            with beside(kind):
                results.append(measure(args, training, kind))
            if args.out:
                with args.out.open("a") as stream:
                    stream.write(json.dumps(results[-1]) + "\n")
        if any(result["beside"] == "quiet" for result in results):
            show(results)


if __name__ == "__main__":
    main()
