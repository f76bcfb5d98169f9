"""`mnft quantize`: a trained model to int8, kept only if it is as accurate as before."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mnft import console, files
from mnft.compare.latency import Latency, Variant, compute_ratio, measure
from mnft.compress.quantize.attempts import Attempt, Method, Workshop, choose_method, find_versions
from mnft.compress.quantize.calibration import find_calibration_images, read_images
from mnft.compress.quantize.finetune import build_tuner, hint_at_tuning
from mnft.compress.quantize.int8 import Calibration, Control, check_census
from mnft.config.schema import Config
from mnft.errors import GateError
from mnft.evaluation.checkpoint import Opened, default_target, load_settings, open_trained
from mnft.evaluation.images import Selection, find_images
from mnft.evaluation.outputs import Means, compute_selected
from mnft.evaluation.parity import Parity, compute_parity
from mnft.exports.artifact import PARITY, compute_size, set_facts, write_record
from mnft.exports.convert import check_target
from mnft.exports.model import load_exported
from mnft.tasks.base import Outputs
from mnft.tasks.classify.metrics import compute_wilson_interval
from mnft.text import count

RECORD = "quantization.json"
_SIZE_WARNING = 0.35
# 600 MB at 224 pixels.
_CONTROL_IMAGES = 1024


@dataclass(frozen=True, slots=True)
class Request:
    """What to quantize, and where to."""

    checkpoint: Path
    data: Path | None
    output: Path | None


@dataclass(frozen=True, slots=True)
class Images:
    """What is calibrated on, what the gate looks at, and what is reported once at the end."""

    calibration: Selection
    val: Selection
    test: Selection | None


@dataclass(slots=True)
class Trials:
    """The attempts so far, with what became of them."""

    records: list[dict[str, Any]] = field(default_factory=list)

    def add(self, attempt: Attempt, keep_float: Sequence[str], parity: Parity, census: Any) -> None:
        """Note an attempt, and the layers that it left in float."""
        self.records.append(
            {
                "attempt": attempt.title,
                "keep_float": list(keep_float),
                "accuracy": parity.accuracy_after,
                "agreement": parity.agreement,
                "layers": asdict(census),
            }
        )


def run(request: Request, overrides: Sequence[str], *, as_json: bool) -> None:
    """Quantize a model, try harder where it loses too much, and keep it if it does not.

    Raises:
        MnftError: no model, no images, a tool-chain that is not there or fails.
        GateError: every attempt lost more accuracy than allowed; nothing is written.
    """
    opened = open_trained(request.checkpoint)
    config, source = load_settings(opened, overrides)
    with source.locating():
        method = choose_method(config.quantize)
        images = _find_images(opened, request.data, config)
    target = request.output or default_target(opened, f"{method.format.name}-int8{method.suffix}")
    check_target(target)
    with ExitStack() as stack:
        stack.enter_context(source.locating())
        folder = stack.enter_context(files.atomic_folder(target))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mnft-int8-")))
        record, parity = _quantize(opened, method, images, config, folder, work)
        files.write_json(folder / PARITY, _describe_parity(parity, images.val))
        files.write_json(folder / RECORD, record)
    _show(target, record, method, as_json=as_json)


def _find_images(opened: Opened, data: Path | None, config: Config) -> Images:
    calibration = find_calibration_images(opened, data, config.quantize.images, console.REPORTER)
    val = find_images(opened, data, "val", console.REPORTER)
    test = None
    if data is None and opened.manifest is not None and opened.manifest.split("test"):
        test = find_images(opened, None, "test", console.REPORTER)
    return Images(calibration, val, test)


def _quantize(
    opened: Opened, method: Method, images: Images, config: Config, folder: Path, work: Path
) -> tuple[dict[str, Any], Parity]:
    """Write the best file that passes into `folder`; gives the record and the parity on val."""
    settings = config.quantize
    arrays = read_images(opened.bundle, images.calibration, config)
    calibration = Calibration(arrays, settings.calibration, settings.reduce_range)
    shop = Workshop(opened.bundle, method, calibration, work)
    write_record(shop.float_folder, shop.float_artifact)
    before = _judge(shop.float_folder, images.val, config, "float file")
    tuner = build_tuner(opened, config, arrays, shop.onnx_artifact, console.REPORTER)
    trials = Trials()
    path = folder / shop.artifact.file
    control = partial(_read_control, opened, images.val, config)
    for attempt in shop.plan(settings, fine_tune=tuner, control=control, reporter=console.REPORTER):
        console.note(f"writing  {method.title}: {attempt.title}{_name(attempt.keep_float)}")
        found = attempt.write(path)
        census = shop.take_census(path)
        check_census(census, what=method.title, per_channel=method.name != "per_tensor")
        facts = {"packages": find_versions(method), "quantization": attempt.title}
        write_record(folder, set_facts(shop.artifact, **facts))
        parity = compute_parity(
            before, _judge(folder, images.val, config, "int8 file"), probabilities=False
        )
        keep_float = attempt.keep_float if found is None else found
        trials.add(attempt, keep_float, parity, census)
        if parity.accuracy_drop <= settings.max_accuracy_drop + 1e-9:
            break
        console.note(
            f"         accuracy {parity.accuracy_before:.2%} -> {parity.accuracy_after:.2%}, "
            f"more than {settings.max_accuracy_drop:.2%} lost"
        )
    else:
        raise _refusal(trials, before, config)
    return _describe(shop, folder, trials, images, config, parity), parity


def _read_control(opened: Opened, val: Selection, config: Config) -> Control:
    """The val images, or where they are too many to hold, some of them; the gate takes all."""
    some = val.take_evenly(_CONTROL_IMAGES)
    label_of = {name: label for label, name in enumerate(opened.bundle.class_names)}
    return Control(
        read_images(opened.bundle, some, config),
        np.array([label_of[sample.class_name] for sample in some.samples]),
        config.quantize.max_accuracy_drop,
        config.quantize.float_layers,
    )


def _judge(folder: Path, images: Selection, config: Config, what: str) -> Outputs:
    settings = config.eval.model_copy(update={"precision": "fp32"})
    return compute_selected(
        load_exported(folder), images, settings, Means("cpu"), console.REPORTER, what=what
    )


def _describe(
    shop: Workshop,
    folder: Path,
    trials: Trials,
    images: Images,
    config: Config,
    parity: Parity,
) -> dict[str, Any]:
    """What quantization.json says."""
    settings = config.quantize
    accuracy = {"val": _describe_accuracy(parity)}
    if images.test is not None:
        ours = _judge(shop.float_folder, images.test, config, "float file, test")
        theirs = _judge(folder, images.test, config, "int8 file, test")
        accuracy["test"] = _describe_accuracy(compute_parity(ours, theirs, probabilities=False))
    sizes = [compute_size(where / shop.artifact.file) for where in (shop.float_folder, folder)]
    last = trials.records[-1]
    return {
        "method": shop.method.name,
        "attempt": last["attempt"],
        "calibration": {
            "images": len(images.calibration.samples),
            "of": str(images.calibration.root),
            "split": images.calibration.split,
            "ranges": settings.calibration,
        },
        "settings": settings.model_dump(),
        "layers": last["layers"],
        "float_layers": last["keep_float"],
        "attempts": trials.records,
        "accuracy": accuracy,
        "size_bytes": {"fp32": sizes[0], "int8": sizes[1], "ratio": sizes[1] / sizes[0]},
        "latency": _measure(shop.float_folder, folder),
    }


def _describe_accuracy(parity: Parity) -> dict[str, Any]:
    """Of the float file and of the int8 file on the same images, with 95% Wilson intervals."""
    count = parity.num_images
    values: dict[str, Any] = {"images": count, "agreement": parity.agreement}
    for name, share in (("fp32", parity.accuracy_before), ("int8", parity.accuracy_after)):
        low, high = compute_wilson_interval(round(share * count), count)
        values[name] = {"accuracy": share, "interval": [low, high]}
    return values | {"drop": parity.accuracy_drop}


def _measure(before: Path, after: Path) -> dict[str, Any]:
    variants = [Variant("fp32", before), Variant("int8", after)]
    fp32, int8 = measure(variants, threads=1)
    # How many times the float file's latency; below 1 is faster.
    return {
        "batch_size": 1,
        "threads": fp32.threads,
        "fp32": _milliseconds(fp32),
        "int8": _milliseconds(int8),
        "speed_up": 1 / compute_ratio(int8, fp32),
    }


def _milliseconds(latency: Latency) -> dict[str, float]:
    return {"median_ms": latency.median_ms, "p95_ms": latency.p95_ms}


def _describe_parity(parity: Parity, images: Selection) -> dict[str, Any]:
    names = [images.samples[position].path for position in parity.disagreements]
    where = {"data": str(images.root), "split": images.split, "against": "the fp32 file"}
    return {"checked": True, "passed": True, **where, **parity.as_json(), "disagreements": names}


def _refusal(trials: Trials, before: Outputs, config: Config) -> GateError:
    allowed = config.quantize.max_accuracy_drop
    accuracy = float((before.logits.argmax(1) == before.targets).mean())
    lines = [f"  {record['attempt']}: {record['accuracy']:.2%}" for record in trials.records]
    return GateError(
        f"int8 loses more than {allowed:.2%} of accuracy on {len(before.targets)} val images, so "
        f"nothing was kept; in float {accuracy:.2%}, in int8:\n" + "\n".join(lines),
        hint=hint_at_tuning(config) + "longer fine-tuning: --set quantize.qat_epochs=...; "
        "more layers in float: --set quantize.float_layers=...; a looser gate: --set "
        "quantize.max_accuracy_drop=...",
    )


def _compare_speed(speed_up: float) -> str:
    """How fast int8 is beside fp32, in words that do not call it fast where it is slow."""
    if speed_up < 1:
        return f"which takes {1 / speed_up:.2f} times as long"
    return f"{speed_up:.2f} times as fast"


def _advise_on_speed(method: Method) -> str:
    """What to do where int8 is slower; OpenVINO is the fastest of the runtimes here, see
    docs/smaller.md."""
    slow = f"int8 is slower than fp32 in {method.format.title} on this processor"
    if method.name == "nncf":
        return f"{slow}; measure on the device that it is for, or stay with the float file"
    return f"{slow}; OpenVINO may not be: --set quantize.method=nncf"


def _name(layers: Sequence[str]) -> str:
    return f" ({', '.join(layers)})" if layers else ""


def _show(target: Path, record: dict[str, Any], method: Method, *, as_json: bool) -> None:
    file = target / method.format.file
    if as_json:
        console.show_json({"folder": str(target), "file": str(file), **record})
        return
    layers = record["layers"]
    console.note(
        f"layers   {layers['quantized']} in int8 ({layers['per_channel']} with a scale a channel), "
        f"{layers['floating']} in float{_name(record['float_layers'])}"
    )
    for split, values in record["accuracy"].items():
        (low, high), (least, most) = values["fp32"]["interval"], values["int8"]["interval"]
        console.note(
            f"{split:<8} {count(values['images'], 'image')}: {values['fp32']['accuracy']:.2%} "
            f"({low:.2%} to {high:.2%}) -> {values['int8']['accuracy']:.2%} ({least:.2%} to "
            f"{most:.2%}), same class on {values['agreement']:.2%}"
        )
    size, latency = record["size_bytes"], record["latency"]
    console.note(
        f"size     {size['fp32'] / 1e6:.2f} -> {size['int8'] / 1e6:.2f} MB ({size['ratio']:.0%})"
    )
    console.note(
        f"latency  {latency['fp32']['median_ms']:.2f} -> {latency['int8']['median_ms']:.2f} ms at "
        f"batch 1 on {count(latency['threads'], 'thread')}, {_compare_speed(latency['speed_up'])}"
    )
    if latency["speed_up"] < 1:
        console.warn(_advise_on_speed(method))
    if size["ratio"] > _SIZE_WARNING:
        console.warn(f"the file has {size['ratio']:.0%} of its size before, usual is 30%")
    console.done(f"quantized to {target}")
    console.note(f"next: mnft eval --ckpt {target}")
    console.show_data(str(file))
