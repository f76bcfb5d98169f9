"""Input: images per second of loading alone, textbook pipeline, timm's loader and mnft in turn.

    python benchmarks/input.py IMAGES [--rounds 5] [--workers 2] [--epochs 2]

IMAGES holds train/<class>/. Batches of 32 at 224 pixels with RandomResizedCrop, flip and
normalisation, in CPU memory. Each round runs every pipeline once, in turn. mnft's first pass is
what the first run of `mnft train` does before its first batch: hash and check each file, decode it
and write the store. Its later epochs come from the store. The others decode in every epoch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line of mnft does

import torch
from timm.data import ImageDataset, create_loader
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from mnft.config.schema import Config
from mnft.data.prepare import prepare_manifest
from mnft.device.machine import Machine
from mnft.device.select import keep_freed_memory
from mnft.host import name_processor
from mnft.preprocessing import Preprocessing
from mnft.tasks import open_task
from mnft.tasks.classify.labels import RULES
from mnft.training.inputs import Loaders, open_inputs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MACHINE = Machine(torch.device("cpu"))


def textbook(root: str, workers: int) -> DataLoader:
    """torchvision's ImageFolder and DataLoader."""
    varied = [
        transforms.RandomResizedCrop(224, scale=(0.35, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    images = ImageFolder(f"{root}/train", transforms.Compose(varied))
    return DataLoader(images, 32, shuffle=True, num_workers=workers, persistent_workers=True)


def timm_loader(root: str, workers: int):
    """timm's create_loader."""
    return create_loader(
        ImageDataset(f"{root}/train"),
        (3, 224, 224),
        32,
        is_training=True,
        scale=(0.35, 1.0),
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        use_prefetcher=False,
        persistent_workers=True,
    )


def count(batches) -> int:
    """Go through all batches; gives the number of images."""
    images = 0
    for batch in batches:
        images += len(batch[0])
    return images


def mnft_parts(root: str, cache: str):
    """Config, manifest, preprocessing and inputs: the first pass."""
    config = Config.model_validate(
        {"data": {"root": root, "store": cache}, "augment": {"scale": [0.35, 1.0]}}
    )
    manifest = prepare_manifest(config.data, RULES, lambda _done, _total: None, check_later=True)
    preprocessing = Preprocessing((3, 224, 224), MEAN, STD, "bilinear", 0.875)
    inputs = open_inputs(config, manifest, preprocessing, MACHINE)
    return config, manifest, preprocessing, inputs


def main() -> None:
    """Measure in turn and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    keep_freed_memory()
    rates = defaultdict(list)
    loaders = {
        "textbook": textbook(args.root, args.workers),
        "timm create_loader": timm_loader(args.root, args.workers),
    }
    for loader in loaders.values():
        next(iter(loader))  # starts the processes, brings the files into the page cache
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for name, loader in loaders.items():
                started = time.perf_counter()
                rates[name].append(count(loader) / (time.perf_counter() - started))
            shutil.rmtree(Path(folder) / "cache", ignore_errors=True)
            started = time.perf_counter()
            parts = mnft_parts(args.root, f"{folder}/cache")
            images = len(parts[1].samples)
            rates["mnft first pass"].append(images / (time.perf_counter() - started))
            task = open_task(parts[1].labels)
            batches = Loaders(*parts, MACHINE, task).train()
            for epoch in (1, 2):
                batches.sampler.set_epoch(epoch)
                started = time.perf_counter()
                done = count(batches)
                if epoch == 2:  # the first reads the new file into memory
                    rates["mnft later epochs"].append(done / (time.perf_counter() - started))
    base = statistics.median(rates["textbook"])
    print(f"{name_processor()}, {torch.get_num_threads()} threads\n")
    print("| pipeline | images/s (median) | lowest | highest | times textbook |")
    print("|---|---|---|---|---|")
    for name, found in rates.items():
        middle = statistics.median(found)
        print(
            f"| {name} | {middle:,.0f} | {min(found):,.0f} | {max(found):,.0f} "
            f"| {middle / base:.2f} |"
        )


if __name__ == "__main__":
    main()
