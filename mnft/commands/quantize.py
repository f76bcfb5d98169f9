"""`mnft quantize`: convert a model to int8, and keep the file only if it is accurate enough."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnft import console, files
from mnft.compare.latency import Plan, compute_ratio, measure
from mnft.compare.variants import Variant
from mnft.compress.quantize.attempts import PREFERRED, Method, choose_method
from mnft.compress.quantize.calibration import choose_images
from mnft.compress.quantize.search import QuantizeJob, quantize
from mnft.evaluation.checkpoint import default_target, load_settings, open_trained
from mnft.evaluation.parity import describe_agreement
from mnft.exports.artifact import PARITY, QUANTIZATION
from mnft.exports.convert import check_target
from mnft.text import count

_SIZE_WARNING = 0.35


@dataclass(frozen=True, slots=True)
class Request:
    """What to quantize, and where to write it.

    Attributes:
        checkpoint: a run, or a model folder.
        data: a folder with train and val images; None takes the run's images.
        output: the folder to write; None takes one in the run's exports.
    """

    checkpoint: Path
    data: Path | None
    output: Path | None


def run(request: Request, overrides: Sequence[str], *, as_json: bool) -> None:
    """Quantize a model, and keep the file if it does not lose too much accuracy.

    Raises:
        MnftError: there is no model or no image, or a tool-chain is missing or fails.
        GateError: every attempt lost more accuracy than allowed; nothing is written.
    """
    opened = open_trained(request.checkpoint)
    config, source = load_settings(opened, overrides)
    with source.locating():
        method = choose_method(config.quantize)
        images = choose_images(opened, request.data, config.quantize.images, console.REPORTER)
    target = request.output or default_target(opened, f"{method.format.name}-int8{method.suffix}")
    check_target(target)
    job = QuantizeJob(opened, config, method, images)
    with (
        source.locating(),
        files.atomic_folder(target) as folder,
        tempfile.TemporaryDirectory(prefix="mnft-int8-") as work,
    ):
        quantized = quantize(job, folder, Path(work), console.REPORTER)
        record = quantized.record | {"latency": _measure(quantized.float_folder, folder)}
        parity = describe_agreement(quantized.parity, images.val, against="the fp32 file")
        files.write_json(folder / PARITY, parity)
        files.write_json(folder / QUANTIZATION, record)
    file = target / method.format.file
    if as_json:
        console.show_json({"folder": str(target), "file": str(file), **record})
        return
    _show_record(record, method, quantized.parity.figure)
    console.done(f"quantized to {target}")
    console.note(f"next: mnft eval --ckpt {target}")
    console.show_data(str(file))


def _measure(float_folder: Path, int8_folder: Path) -> dict[str, Any]:
    variants = [Variant("fp32", float_folder), Variant("int8", int8_folder)]
    fp32, int8 = measure(variants, Plan(threads=1, batch_size=1))
    return {
        "batch_size": 1,
        "threads": fp32.threads,
        "fp32": {"median_ms": fp32.median_ms, "p95_ms": fp32.p95_ms},
        "int8": {"median_ms": int8.median_ms, "p95_ms": int8.p95_ms},
        "speed_up": 1 / compute_ratio(int8, fp32),
    }


def _show_record(record: dict[str, Any], method: Method, figure: str) -> None:
    layers, size, latency = record["layers"], record["size_bytes"], record["latency"]
    floating = record["float_layers"]
    console.note(
        f"layers   {layers['quantized']} in int8 ({layers['per_channel']} with a scale per "
        f"channel), {layers['floating']} in float"
        + (f" ({', '.join(floating)})" if floating else "")
    )
    for split, values in record[figure].items():
        (low, high), (least, most) = values["fp32"]["interval"], values["int8"]["interval"]
        console.note(
            f"{split:<8} {count(values['images'], 'image')}: {values['fp32'][figure]:.2%} "
            f"({low:.2%} to {high:.2%}) -> {values['int8'][figure]:.2%} ({least:.2%} to "
            f"{most:.2%}), same answer for {values['agreement']:.2%}"
        )
    console.note(
        f"size     {size['fp32'] / 1e6:.2f} -> {size['int8'] / 1e6:.2f} MB ({size['ratio']:.0%})"
    )
    speed_up = latency["speed_up"]
    console.note(
        f"latency  {latency['fp32']['median_ms']:.2f} -> {latency['int8']['median_ms']:.2f} ms at "
        f"batch 1 on {count(latency['threads'], 'thread')}, "
        # A slower file must not be called "0.5 times as fast".
        + (
            f"which takes {1 / speed_up:.2f} times as long"
            if speed_up < 1
            else f"{speed_up:.2f} times as fast"
        )
    )
    if speed_up < 1:
        # OpenVINO is the fastest of the runtimes in int8, see docs/smaller.md.
        console.warn(
            f"int8 is slower than fp32 in {method.format.title} on this processor; "
            + (
                "measure on the device that it is for, or keep the float file"
                if method.name == PREFERRED
                else f"OpenVINO may not be: --set quantize.method={PREFERRED}"
            )
        )
    if size["ratio"] > _SIZE_WARNING:
        console.warn(f"the file has {size['ratio']:.0%} of its size before; usual is 30%")
