"""How cost grows with the data set: 1, 2, 4 and 8 times the images, each in a process of its own.

    python benchmarks/growth.py IMAGES [--per-class 50]

Makes copies with different bytes (a comment in the JPEG), so that none is a duplicate. Gives the
seconds of the first pass, images per second of a later epoch, and the largest memory of the
process: anonymous (its own) and mapped from files (the page cache, which the kernel takes back).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from mnft.host import name_processor


def copy_images(root: Path, target: Path, per_class: int, times: int) -> None:
    """`times * per_class` images a class in one folder without splits."""
    for folder in sorted((root / "train").iterdir()):
        (target / folder.name).mkdir(parents=True)
        for image in sorted(folder.glob("*.jpg"))[:per_class]:
            content = image.read_bytes()
            for number in range(times):
                note = f"copy {number}".encode()
                comment = b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note
                path = target / folder.name / f"{image.stem}_{number}.jpg"
                path.write_bytes(content[:2] + comment + content[2:])


def measure(root: str, cache: str) -> dict[str, float]:
    """The first pass, then one epoch that is timed; memory is watched meanwhile."""
    import torch

    from mnft.config.schema import Config
    from mnft.data.prepare import prepare_manifest
    from mnft.device.machine import Machine
    from mnft.device.select import keep_freed_memory
    from mnft.preprocessing import Preprocessing
    from mnft.tasks import open_task
    from mnft.tasks.classify.labels import RULES
    from mnft.training.inputs import Loaders, open_inputs

    keep_freed_memory()
    peaks = {"RssAnon": 0, "RssFile": 0}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                name = line.partition(":")[0]
                if name in peaks:
                    peaks[name] = max(peaks[name], int(line.split()[1]))

    base = dict(peaks)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.partition(":")[0] in base:
            base[line.partition(":")[0]] = int(line.split()[1])
    watcher = threading.Thread(target=watch)
    watcher.start()
    machine = Machine(torch.device("cpu"))
    config = Config.model_validate({"data": {"root": root, "store": cache}})
    started = time.perf_counter()
    manifest = prepare_manifest(config.data, RULES, lambda _done, _total: None, check_later=True)
    spec = Preprocessing((3, 224, 224), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.875)
    inputs = open_inputs(config, manifest, spec, machine)
    first = time.perf_counter() - started
    task = open_task(manifest.labels)
    batches = Loaders(config, manifest, spec, inputs, machine, task).train()
    for epoch in (1, 2):
        batches.sampler.set_epoch(epoch)
        started = time.perf_counter()
        images = sum(len(batch.images) for batch in batches)
        rate = images / (time.perf_counter() - started)
    over.set()
    watcher.join()
    return {
        "images": len(manifest.samples),
        "first_pass_s": first,
        "later_images_per_s": rate,
        "own_memory_mb": (peaks["RssAnon"] - base["RssAnon"]) / 1024,
        "mapped_mb": (peaks["RssFile"] - base["RssFile"]) / 1024,
    }


def main() -> None:
    """One process a size, and the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--per-class", type=int, default=64)
    parser.add_argument("--measure", nargs=2, help="used by itself")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    print(f"{name_processor()}\n")
    print(
        "| images | first pass, s | images/s of it | later epochs, images/s | own MB | mapped MB |"
    )
    print("|---|---|---|---|---|---|")
    for times in (1, 2, 4, 8):
        with tempfile.TemporaryDirectory() as folder:
            copy_images(Path(args.root), Path(folder) / "images", args.per_class, times)
            command = [sys.executable, __file__, args.root, "--measure"]
            command += [f"{folder}/images", f"{folder}/cache"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
        print(
            f"| {found['images']:,} | {found['first_pass_s']:.2f} "
            f"| {found['images'] / found['first_pass_s']:,.0f} "
            f"| {found['later_images_per_s']:,.0f} | {found['own_memory_mb']:,.0f} "
            f"| {found['mapped_mb']:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
