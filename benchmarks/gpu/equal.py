"""Does a GPU compute what the CPU does?

What mnft builds for the device is compared with what it builds for the CPU, from the same images
and weights: pixels after crop and resize, colours, a training batch, logits in fp32 with and
without TF32, gradients, the fitted head, and the evaluation of one model on both.

Must hold: every line says ok. Write down: the figures of the lines "gradient", "the fitted head"
and "evaluation".

    python benchmarks/gpu/equal.py CONFIG
    python benchmarks/gpu/equal.py --tiny --device cpu
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any

from acceptance import Job, begin, build_parser
from report import Report

# Against the CPU's path (torch's uint8 kernels, which round and clip between the two passes):
# largest difference of a level, and of the mean. The kernels of "nearest" may take a pixel beside.
_PIXELS = {"bilinear": (2, 0.3), "bicubic": (25, 0.3), "nearest": (255, 1.0)}
_GRADIENT_FP32, _GRADIENT_HALF = 2e-2, 3.5e-1
_LOGITS_FP32, _LOGITS_TF32 = 1e-4, 5e-3
# Of the whole val split, from features in half precision.
_HEAD_ACCURACY = 0.01


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and give the exit code."""
    parser = build_parser(__file__, __doc__)
    with begin(parser, arguments) as job:
        compare(job)
        return job.finish()


def compare(job: Job) -> None:
    """All comparisons, from the pixels on."""
    import parts
    import torch

    cpu, device = torch.device("cpu"), parts.find_device(job.device)
    sets = [*job.args.sets, "train.device=cpu", "train.precision=fp32"]
    manifest, ours = parts.build(job.config, sets, cpu)
    stored = parts.open_inputs(ours.config, manifest, ours.card.preprocessing, ours.machine)
    assert stored.train is not None, "the images must come from the store: data.store: auto"
    placed = parts.DeviceImages(stored.train, device)
    compare_pixels(job.report, ours, stored.train, placed)
    compare_batch(job.report, manifest, ours, stored, placed)

    _, theirs = parts.build(job.config, [*job.args.sets, f"train.device={job.device}"], device)
    theirs.state.model.load_state_dict(ours.state.model.state_dict())
    if job.on_gpu:
        kept = theirs.train.in_device_memory
        job.report.check("the images lie in the GPU's memory", kept, str(theirs.facts["store"]))
    else:
        job.report.skip("the images lie in the GPU's memory", "no GPU")
    compare_logits(job, ours, theirs)
    compare_gradients(job.report, ours, theirs)
    compare_evaluation(job.report, ours, theirs)


def compare_pixels(report: Report, ours: Any, stored: Any, placed: Any) -> None:
    """Crop, flip, resize and colour one batch: as the CPU does it, and by the same code there."""
    import parts
    import torch

    keys = next(iter(ours.train.sampler))
    positions = [key.position for key in keys]
    augment = parts.AugmentConfig(vflip=0.3, color_jitter=0.4, random_erasing=0.5)
    params = parts.sample_params([key.seed for key in keys], stored.sizes[positions], augment)
    height, width = params.boxes[:, 2:].amax(0).tolist()
    size = tuple(ours.card.preprocessing.input_size[1:])
    mean = ours.card.preprocessing.mean
    on_cpu = parts.DeviceImages(stored, torch.device("cpu"))

    def resample(images: Any, mode: str) -> Any:
        there = parts.AugmentParams(*(part.to(images.device) for part in params.parts))
        where = torch.tensor(positions, device=images.device)
        return parts.resample_on_device(images, where, there, size, mode, longest=(height, width))

    for mode, (most, share) in _PIXELS.items():
        found = resample(placed, mode)
        usual = parts.resample_on_cpu([stored[p] for p in positions], params, size, mode).float()
        gap = found.cpu() - usual
        ok = gap.abs().max() <= most and gap.abs().mean() < share and gap.mean().abs() < 0.05
        report.check(
            f"resize {mode}, against the CPU's kernel",
            bool(ok),
            f"largest {gap.abs().max():.0f} levels, mean {gap.abs().mean():.3f}, "
            f"bias {gap.mean():+.4f}",
        )
        gap = (found.cpu() - resample(on_cpu, mode)).abs()
        report.check(
            f"resize {mode}, against the same code in fp32",
            bool(gap.max() <= (0 if mode == "nearest" else 1)),
            f"largest {gap.max():.0f} levels, in {(gap > 0).float().mean():.2%} of the values",
        )
        there = parts.AugmentParams(*(part.to(placed.device) for part in params.parts))
        gap = parts.adjust(found, there, augment, mean).cpu()
        gap = (gap - parts.adjust(found.cpu(), params, augment, mean)).abs()
        report.check(
            f"colours and erasing after {mode}", bool(gap.max() < 0.01), f"largest {gap.max():.5f}"
        )


def compare_batch(report: Report, manifest: Any, ours: Any, stored: Any, placed: Any) -> None:
    """The first batch of an epoch, from the store and from the device's memory."""
    from dataclasses import replace

    import parts
    import torch

    own = (ours.config, manifest, ours.card.preprocessing)
    beside = parts.Loaders(
        *own, replace(stored, train=placed), replace(ours.machine, device=placed.device), ours.task
    ).train()
    expected, found = next(iter(ours.train)), next(iter(beside))
    gap = (found.images.cpu() - expected.images).abs()
    layout = torch.channels_last if ours.config.train.channels_last else torch.contiguous_format
    report.check(
        "a training batch",
        bool(gap.mean() < 0.02)
        and torch.equal(found.targets.cpu(), expected.targets)
        and found.positions == expected.positions
        and found.images.device == placed.device
        and found.images.is_contiguous(memory_format=layout),
        f"mean {gap.mean():.4f}, largest {gap.max():.3f} standard deviations; "
        f"on {found.images.device}",
    )


def compare_logits(job: Job, ours: Any, theirs: Any) -> None:
    """The first val batch in fp32; cuDNN's convolutions use TF32 unless told otherwise."""
    import torch

    batch = next(iter(ours.val))
    model, twin = ours.state.model.eval(), theirs.state.model.eval()
    before = torch.backends.cudnn.allow_tf32
    with torch.inference_mode():
        expected = model(batch.images)
        for tf32, most in ((False, _LOGITS_FP32), (True, _LOGITS_TF32)):
            what = f"logits in fp32, TF32 {'on' if tf32 else 'off'}"
            if tf32 and not job.on_gpu:
                job.report.skip(what, "no GPU")
                continue
            torch.backends.cudnn.allow_tf32 = tf32
            try:
                found = twin(batch.images.to(job.device)).cpu()
            finally:
                torch.backends.cudnn.allow_tf32 = before
            gap = float((found - expected).abs().max() / expected.abs().max())
            same = (found.argmax(1) == expected.argmax(1)).float().mean()
            job.report.check(
                what, gap < most, f"{gap:.1e} of the largest logit, {same:.1%} the same class"
            )


def compare_gradients(report: Report, ours: Any, theirs: Any) -> None:
    """Of one training batch, with BatchNorm in evaluation mode; in fp32 and as mnft trains."""
    import parts
    import torch

    batch = next(iter(ours.train))

    def compute(training: Any, dtype: torch.dtype) -> tuple[float, torch.Tensor]:
        # A copy: the gradients must not stay with the training.
        model = copy.deepcopy(training.state.model)
        parts.set_training_mode(model, freeze_batchnorm=True)
        device = training.machine.device
        images, targets = batch.images.to(device), batch.targets.to(device)
        with parts.autocast(device, dtype):
            logits = model(images)
        loss = training.criterion(logits, targets, images) / len(images)
        (1024 * loss).backward()  # fp16 would lose the smallest
        gradients = [p.grad.float().cpu().flatten() for p in model.parameters() if p.requires_grad]
        return loss.item(), torch.cat(gradients) / 1024

    loss, expected = compute(ours, torch.float32)
    trained = theirs.machine.train_dtype
    for dtype in dict.fromkeys([torch.float32, trained]):
        most = _GRADIENT_FP32 if dtype == torch.float32 else _GRADIENT_HALF
        own, gradient = compute(theirs, dtype)
        gap = float((gradient - expected).norm() / expected.norm())
        name = str(dtype).removeprefix("torch.")
        report.figures[f"gradient_{name}"] = gap
        found = f"{gap:.1e} of its norm; loss {own:.5f} and {loss:.5f}"
        report.check(f"gradient in {name}", gap < most, found)


def compare_evaluation(report: Report, ours: Any, theirs: Any) -> None:
    """The head that is fitted on each, then one model on both."""
    import numpy as np
    import parts

    count = sum(len(keys) for keys in ours.val.sampler)
    if "head" in ours.stages:
        heads = [parts.train_head(training).figures["val_accuracy"] for training in (ours, theirs)]
        report.figures["head_accuracy"] = heads
        report.check(
            "the fitted head",
            abs(heads[0] - heads[1]) <= _HEAD_ACCURACY + 1 / count,
            f"val accuracy {heads[0]:.2%} on the CPU, {heads[1]:.2%} on the device",
        )
    else:
        report.skip("the fitted head", "this config has no head stage")
    ours.state.model.load_state_dict(theirs.state.model.state_dict())
    outputs = [
        parts.compute_outputs(
            training.state.model,
            training.val,
            training.machine,
            num_outputs=len(training.task.labels),
        )
        for training in (ours, theirs)
    ]
    logits = [o.values for o in outputs]
    classes = [o.argmax(1) for o in logits]
    right = [int((c == o.targets).sum()) for c, o in zip(classes, outputs, strict=True)]
    gap = float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[0]).max())
    other = int((classes[0] != classes[1]).sum())
    report.figures["evaluation"] = {"images": count, "right": right, "gap": gap}
    found = f"{right[0]} and {right[1]} of {count} images right, {other} classified otherwise, "
    found += f"logits differ by {gap:.1e} of the largest"
    same_order = bool((outputs[0].positions == outputs[1].positions).all())
    report.check("evaluation of one model", same_order and abs(right[0] - right[1]) <= 1, found)


if __name__ == "__main__":
    sys.exit(main())
