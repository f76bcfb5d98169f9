"""The textbook fine-tuning loop that mnft is measured against.

As tutorials have it: timm model, torchvision ImageFolder and DataLoader with two processes, resize,
crop and normalise, Adam 1e-3, cross-entropy, fp32, eager. One JSON object an epoch on stdout, with
the seconds since the process began.

    python benchmarks/textbook.py IMAGES --model local-dir:WEIGHTS --epochs 4 [--freeze]
"""

from __future__ import annotations

import argparse
import json
import time

STARTED = time.perf_counter()

import timm  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402


def build_loaders(root: str, mean, std, batch_size: int, workers: int, *, augment: bool):
    """Training batches (shuffled) and validation batches."""
    ends = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    centre = [transforms.Resize(256), transforms.CenterCrop(224)]
    varied = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    train = ImageFolder(
        f"{root}/train", transforms.Compose([*(varied if augment else centre), *ends])
    )
    val = ImageFolder(f"{root}/val", transforms.Compose([*centre, *ends]))
    options = {"batch_size": batch_size, "num_workers": workers}
    return DataLoader(train, shuffle=True, **options), DataLoader(val, **options)


@torch.no_grad()
def accuracy(model: nn.Module, loader, device) -> float:
    """Share of right answers."""
    model.eval()
    right = total = 0
    for images, labels in loader:
        right += (model(images.to(device)).argmax(1) == labels.to(device)).sum().item()
        total += len(labels)
    return right / total


def main() -> None:
    """Train, and say how far it is after each epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--freeze", action="store_true", help="train the classifier alone")
    parser.add_argument("--augment", action="store_true", help="RandomResizedCrop and flip")
    parser.add_argument("--stop-at", type=float, default=2.0, help="stop at this val accuracy")
    parser.add_argument("--test", action="store_true", help="judge on the test split at the end")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(args.model, pretrained=True, num_classes=len_classes(args.root))
    cfg = model.pretrained_cfg
    if args.freeze:
        for parameter in model.parameters():
            parameter.requires_grad = False
        for parameter in model.get_classifier().parameters():
            parameter.requires_grad = True
    model.to(device)
    train, val = build_loaders(
        args.root, cfg["mean"], cfg["std"], args.batch_size, args.workers, augment=args.augment
    )
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(1, args.epochs + 1):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss = criterion(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
        reached = accuracy(model, val, device)
        seconds = time.perf_counter() - STARTED
        print(json.dumps({"epoch": epoch, "val_accuracy": reached, "seconds": seconds}), flush=True)
        if reached >= args.stop_at:
            break
    if args.test:
        val.dataset.__init__(f"{args.root}/test", val.dataset.transform)
        loader = DataLoader(val.dataset, batch_size=args.batch_size, num_workers=args.workers)
        print(json.dumps({"test_accuracy": accuracy(model, loader, device)}), flush=True)


def len_classes(root: str) -> int:
    """Classes of the training folder."""
    return len(ImageFolder(f"{root}/train").classes)


if __name__ == "__main__":
    main()
