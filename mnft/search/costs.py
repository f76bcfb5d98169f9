"""What a model costs on a device: measured once an architecture and image size."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mnft import files
from mnft.compare.latency import Plan, measure
from mnft.compare.variants import Variant
from mnft.config.search import SearchConfig
from mnft.exports.artifact import compute_size, write_record
from mnft.exports.convert import check_toolchain, convert
from mnft.exports.formats import find_format
from mnft.model.bundle import load_bundle, save_bundle
from mnft.model.profile import compute_macs
from mnft.search.folder import SearchFolder
from mnft.training.training import Training

_FORMAT = "onnx"
_EXPORTED = {"latency_ms", "size_mb"}
_PLAN = Plan(rounds=5, calls=20, batch_size=1)


@dataclass(frozen=True, slots=True)
class Costs:
    """What one image costs, and what the model takes.

    Attributes:
        parameters: number of parameters.
        macs_m: 10^6 multiply-accumulates.
        latency_ms: median time of one image in the exported file; None if nobody asks for it.
        size_mb: 10^6 bytes of the exported file; None if nobody asks for it.
    """

    parameters: int
    macs_m: float
    latency_ms: float | None = None
    size_mb: float | None = None


def needs_export(settings: SearchConfig) -> bool:
    """Whether a search asks for figures of exported files."""
    return bool(_EXPORTED & {*(settings.objectives or ()), *settings.limits})


def check_exports(settings: SearchConfig) -> None:
    """Refuse a search that needs files which cannot be written here.

    Raises:
        ExportError: with the command that installs what is missing.
    """
    if needs_export(settings):
        check_toolchain(find_format(_FORMAT))


def measure_costs(
    folder: SearchFolder, training: Training, objectives: Sequence[str], settings: SearchConfig
) -> Costs:
    """Measure the model of a training, or read what was measured for an equal one.

    Weights do not matter, so this happens before the first epoch.

    Args:
        folder: the folder of the search, which keeps the figures.
        training: a training that was built.
        objectives: what the search optimises.
        settings: the section of the config, with the limits.
    """
    card = training.card
    exported = bool(_EXPORTED & {*objectives, *settings.limits})
    shape = [card.architecture, dict(card.model_args), list(card.preprocessing.input_size)]
    text = json.dumps([*shape, len(card.labels), exported], sort_keys=True, default=str)
    kept = folder.path / "costs" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    # One after the other: two measurements at once would slow each other down.
    with folder.waiting("costs"):
        if kept.is_file():
            return Costs(**json.loads(kept.read_text(encoding="utf-8"))["costs"])
        with tempfile.TemporaryDirectory() as scratch:
            costs = _measure(training, Path(scratch), exported=exported)
        files.write_json(kept, {"model": shape, "costs": asdict(costs)})
    return costs


def _measure(training: Training, scratch: Path, *, exported: bool) -> Costs:
    model = scratch / "model"
    save_bundle(model, training.state.evaluated_model.state_dict(), training.card, {})
    bundle = load_bundle(model)
    parameters = sum(parameter.numel() for parameter in bundle.model.parameters())
    macs = compute_macs(bundle.model, bundle.preprocessing.input_size)
    if not exported:
        return Costs(parameters, macs / 1e6)
    fmt, target = find_format(_FORMAT), scratch / "export"
    target.mkdir()
    artifact = convert(bundle, fmt, target, embed=False)
    write_record(target, artifact)
    latency = measure([Variant(bundle.architecture, target)], _PLAN)[0]
    return Costs(
        parameters, macs / 1e6, latency.median_ms, compute_size(target / artifact.file) / 1e6
    )
