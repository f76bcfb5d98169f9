"""Optuna's own example of a search, around the textbook's loop: what people write by hand.

TPE with median pruning over the model, Adam's rate, weight decay and freezing the backbone;
torchvision's ImageFolder, RandomResizedCrop and flip. `search` tries points until the time is over
and prints the best; `train` trains a point with another seed. One JSON object on stdout.

    python benchmarks/search_textbook.py search IMAGES WEIGHTS ... --cpu-seconds 900
    python benchmarks/search_textbook.py train IMAGES WEIGHTS ... --point '{...}' --seed 1
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder


def fit(
    args: argparse.Namespace,
    point: dict[str, Any],
    seed: int,
    on_epoch: Callable[[int, float], None],
) -> float:
    """Train a point; its best val accuracy."""
    torch.manual_seed(seed)
    model = timm.create_model(
        f"local-dir:{point['weights']}", pretrained=True, num_classes=args.classes
    )
    if point["freeze"]:
        for parameter in model.parameters():
            parameter.requires_grad = False
        for parameter in model.get_classifier().parameters():
            parameter.requires_grad = True
    cfg = model.pretrained_cfg
    ends = [transforms.ToTensor(), transforms.Normalize(cfg["mean"], cfg["std"])]
    varied = [transforms.RandomResizedCrop(args.size), transforms.RandomHorizontalFlip()]
    centre = [transforms.Resize(int(args.size / 0.875)), transforms.CenterCrop(args.size)]
    options = {"batch_size": 32, "num_workers": 2}
    train = ImageFolder(args.images / "train", transforms.Compose([*varied, *ends]))
    val = ImageFolder(args.images / "val", transforms.Compose([*centre, *ends]))
    batches = DataLoader(train, shuffle=True, **options)
    val_batches = DataLoader(val, **options)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=point["lr"], weight_decay=point["weight_decay"])
    criterion, best = nn.CrossEntropyLoss(), 0.0
    for epoch in range(args.epochs):
        model.train()
        for images, labels in batches:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in val_batches)
        best = max(best, right / len(val))
        on_epoch(epoch, right / len(val))
    return best


def search(args: argparse.Namespace) -> dict[str, Any]:
    """Optuna's best point within the processor's time; an epoch that has begun is finished."""

    def objective(trial: optuna.Trial) -> float:
        point = {
            "weights": trial.suggest_categorical("weights", list(map(str, args.weights))),
            "lr": trial.suggest_float("lr", 1e-5, 1e-2, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-3, log=True),
            "freeze": trial.suggest_categorical("freeze", [False, True]),
        }

        def on_epoch(epoch: int, value: float) -> None:
            trial.report(value, epoch)
            if trial.should_prune() or cpu_seconds() > args.cpu_seconds:
                raise optuna.TrialPruned

        return fit(args, point, 0, on_epoch)

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(),
    )
    study.optimize(
        objective,
        callbacks=[lambda study, _: study.stop() if cpu_seconds() > args.cpu_seconds else None],
    )
    return {"point": study.best_params, "value": study.best_value, "trials": len(study.trials)}


def cpu_seconds() -> float:
    """Processor time of this process and of the loading processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    """Search, or train one point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=["search", "train"])
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--cpu-seconds", type=float, help="processor time of a search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--point", type=json.loads)
    args = parser.parse_args()
    args.classes = len(ImageFolder(args.images / "train").classes)
    if args.job == "search":
        print(json.dumps(search(args)))
    else:
        print(json.dumps({"val_accuracy": fit(args, args.point, args.seed, lambda *_: None)}))


if __name__ == "__main__":
    main()
