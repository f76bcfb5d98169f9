"""Try one way after another until an int8 file keeps the accuracy, and describe that file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnft.compress.quantize.attempts import Int8Builder, Method
from mnft.compress.quantize.calibration import QuantizationImages, read_images
from mnft.compress.quantize.int8 import Calibration, HeldOutImages
from mnft.compress.quantize.layers import check_counts
from mnft.compress.quantize.qat import build_finetuner, suggest_installing
from mnft.config.schema import Config
from mnft.errors import GateError
from mnft.evaluation.checkpoint import Checkpoint
from mnft.evaluation.images import ImageSet
from mnft.evaluation.outputs import compute_image_outputs
from mnft.exports.artifact import compute_size, set_facts, write_record
from mnft.exports.model import load_exported
from mnft.host import read_versions
from mnft.reporter import Reporter
from mnft.tasks import open_task
from mnft.tasks.base import Task
from mnft.tasks.outputs import Agreement, Outputs, Rate

# Images that NNCF's search holds in memory: 600 MB at 224 pixels.
_HELD_OUT_IMAGES = 1024


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """What to quantize, and how.

    Attributes:
        opened: the trained model.
        config: the config of its run, with the user's overrides.
        method: the method of quantization.
        images: the images to calibrate on and to judge by.
    """

    opened: Checkpoint
    config: Config
    method: Method
    images: QuantizationImages

    @property
    def task(self) -> Task:
        """The task of the model."""
        bundle = self.opened.bundle
        return open_task(bundle.labels, bundle.task, bundle.settings)

    def compute_outputs(
        self, folder: Path, images: ImageSet, what: str, reporter: Reporter
    ) -> Outputs:
        """Run an exported file on the CPU, in the precision of the file."""
        settings = self.config.eval.model_copy(update={"precision": "fp32"})
        exported = load_exported(folder)
        return compute_image_outputs(
            exported, images, settings, device="cpu", reporter=reporter, what=what
        )

    def read_held_out(self) -> HeldOutImages:
        """Read val images for NNCF's search; only some if there are many. The gate takes all."""
        bundle, settings = self.opened.bundle, self.config.quantize
        some = self.images.val.take_evenly(_HELD_OUT_IMAGES)
        return HeldOutImages(
            read_images(bundle, some, self.config),
            np.array(self.task.encode(some.samples)),
            self.task.rate_one,
            settings.max_accuracy_drop,
            settings.float_layers,
        )


@dataclass(frozen=True, slots=True)
class Quantized:
    """An int8 file that keeps the accuracy.

    Attributes:
        float_folder: the float file in the same format, in the folder of intermediate files.
        parity: the int8 file against the float file, on the val images.
        record: what quantization.json says, except the latency.
    """

    float_folder: Path
    parity: Agreement
    record: dict[str, Any]


def quantize(job: QuantizeJob, folder: Path, work: Path, reporter: Reporter) -> Quantized:
    """Write an int8 file, by more and more expensive ways until it keeps the accuracy.

    Args:
        job: what to quantize, and how.
        folder: where the file goes, with labels.txt and model.json.
        work: an empty folder for intermediate files.
        reporter: receives notes and progress.

    Raises:
        GateError: every attempt lost more accuracy than `quantize.max_accuracy_drop`.
        ExportError: a tool-chain fails, or quantizes nothing.
    """
    opened, config, method, val = job.opened, job.config, job.method, job.images.val
    settings = config.quantize
    arrays = read_images(opened.bundle, job.images.calibration, config)
    calibration = Calibration(arrays, settings.calibration, settings.reduce_range)
    builder = Int8Builder(opened.bundle, method, calibration, work)
    # Only a folder with its record opens as an export, and both files are judged as the user's are.
    write_record(builder.float_folder, builder.float_artifact)
    before = job.compute_outputs(builder.float_folder, val, "float file", reporter)
    path = folder / builder.artifact.file
    attempts: list[dict[str, Any]] = []
    fine_tune = build_finetuner(opened, config, arrays, builder.onnx_artifact, reporter)
    for attempt in builder.plan(
        settings, fine_tune=fine_tune, held_out=job.read_held_out, reporter=reporter
    ):
        layers = f" ({', '.join(attempt.keep_float)})" if attempt.keep_float else ""
        reporter.note(f"writing  {method.title}: {attempt.title}{layers}")
        chosen = attempt.write(path)  # over the file of the attempt before, which lost too much
        counts = builder.count_layers(path)
        check_counts(counts, what=method.title, per_channel=method.per_channel)
        versions = read_versions(("torch", "torchao", *method.packages))
        facts = {"packages": versions, "quantization": attempt.title}
        write_record(folder, set_facts(builder.artifact, **facts))
        after = job.compute_outputs(folder, val, "int8 file", reporter)
        parity = job.task.compare(before, after)
        attempts.append(
            {
                "attempt": attempt.title,
                "keep_float": list(attempt.keep_float if chosen is None else chosen),
                parity.figure: parity.after.value,
                "agreement": parity.agreement,
                "layers": asdict(counts),
            }
        )
        # The figures are fractions of whole images, so the rounding of their difference must not
        # decide: 0.95 - 0.945 is more than 0.005.
        if parity.drop <= settings.max_accuracy_drop + 1e-9:
            break
        reporter.note(
            f"         {parity.title} {parity.before.value:.2%} -> {parity.after.value:.2%}, "
            f"more than {settings.max_accuracy_drop:.2%} lost"
        )
    else:
        raise _nothing_kept(attempts, parity, config)

    record = _describe_result(job, builder.float_folder, path, attempts, parity, reporter)
    return Quantized(builder.float_folder, parity, record)


def _describe_result(
    job: QuantizeJob,
    float_folder: Path,
    path: Path,
    attempts: Sequence[dict[str, Any]],
    parity: Agreement,
    reporter: Reporter,
) -> dict[str, Any]:
    """What quantization.json says of the file that is kept, the last one attempted."""
    figures = {"val": _describe_rates(parity)}
    if (test := job.images.test) is not None:
        before = job.compute_outputs(float_folder, test, "float file, test", reporter)
        after = job.compute_outputs(path.parent, test, "int8 file, test", reporter)
        figures["test"] = _describe_rates(job.task.compare(before, after))
    fp32_bytes, int8_bytes = compute_size(float_folder / path.name), compute_size(path)
    calibration = job.images.calibration
    return {
        "method": job.method.name,
        "attempt": attempts[-1]["attempt"],
        "calibration": {
            "images": len(calibration.samples),
            "of": str(calibration.root),
            "split": calibration.split,
            "ranges": job.config.quantize.calibration,
        },
        "settings": job.config.quantize.model_dump(),
        "layers": attempts[-1]["layers"],
        "float_layers": attempts[-1]["keep_float"],
        "attempts": attempts,
        parity.figure: figures,
        "size_bytes": {"fp32": fp32_bytes, "int8": int8_bytes, "ratio": int8_bytes / fp32_bytes},
    }


def _describe_rates(parity: Agreement) -> dict[str, Any]:
    """The main figure of both files on the same images, with 95% intervals."""

    def describe(rate: Rate) -> dict[str, Any]:
        return {parity.figure: rate.value, "interval": [rate.low, rate.high]}

    return {
        "images": parity.num_images,
        "agreement": parity.agreement,
        "fp32": describe(parity.before),
        "int8": describe(parity.after),
        "drop": parity.drop,
    }


def _nothing_kept(
    attempts: Sequence[dict[str, Any]], parity: Agreement, config: Config
) -> GateError:
    allowed, figure = config.quantize.max_accuracy_drop, parity.figure
    lines = [f"  {attempt['attempt']}: {attempt[figure]:.2%}" for attempt in attempts]
    return GateError(
        f"int8 loses more than {allowed:.2%} of {parity.title} on {parity.num_images} val images, "
        f"so nothing was kept; in float {parity.before.value:.2%}, in int8:\n" + "\n".join(lines),
        hint=suggest_installing(config) + "longer fine-tuning: --set quantize.qat_epochs=...; "
        "more layers in float: --set quantize.float_layers=...; a looser gate: --set "
        "quantize.max_accuracy_drop=...",
    )
