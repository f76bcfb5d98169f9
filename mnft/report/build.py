"""From a run to its page: the panels in their order, and the pictures that they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mnft.config.load import load_config
from mnft.data.manifest import list_changes
from mnft.device.machine import open_machine
from mnft.device.select import keep_freed_memory
from mnft.report.album import Album, Heat, build_heat, build_thumbnails
from mnft.report.explain import HeatMaps, compute_heat_maps, find_neighbours
from mnft.report.page.render import Page
from mnft.report.panels.data import build_data
from mnft.report.panels.exports import build_exports
from mnft.report.panels.measured import build_robustness, build_unknowns
from mnft.report.panels.provenance import build_provenance
from mnft.report.panels.training import build_curves
from mnft.report.panels.verdict import complete_verdict, describe_missing
from mnft.report.sources import Sources
from mnft.reporter import Reporter
from mnft.tasks import load_label_rules
from mnft.tasks.panels import Gallery, Panel, Picture, TaskReport, Text
from mnft.text import count, guard_cell, printable


@dataclass(frozen=True, slots=True)
class Report:
    """A page, and what the task said of the evaluation; None where there is none."""

    page: Page
    task: TaskReport | None


def build_report(sources: Sources, device: str, reporter: Reporter) -> Report:
    """Build the page of a run.

    Args:
        sources: what the run has to report.
        device: name of the device that computes heat maps and features.
        reporter: told of progress.

    Raises:
        MnftError: a file of the evaluation is damaged, or there is no such device.
    """
    evaluation = sources.evaluation
    found = None if evaluation is None else sources.task.build_report(evaluation)
    panels = list(found.panels) if found else []
    pictures = [
        picture
        for panel in panels
        for block in panel.blocks
        if isinstance(block, Gallery)
        for picture in block.pictures
    ]
    album, heats = _build_album(sources, pictures, device, reporter)
    if pictures:
        panels = [_explain_pictures(panel, album, heats) for panel in panels]
    panels += [
        *([build_unknowns(sources), build_robustness(sources)] if found else []),
        build_curves(sources),
        build_data(sources),
        build_exports(sources),
        build_provenance(sources),
    ]
    verdict = None
    if found and evaluation:
        verdict = complete_verdict(found.verdict, sources, evaluation.metrics)
    bundle = sources.opened.bundle
    size = " x ".join(map(str, bundle.preprocessing.input_size[1:]))
    page = Page(
        title=sources.folder.resolve().name,
        subtitle=f"{bundle.architecture}, {size} pixels, "
        f"{count(len(bundle.labels), 'output')}, evaluated on {sources.split}",
        verdict=verdict,
        missing=None if verdict else describe_missing(sources),
        panels=panels,
        album=album,
        written=datetime.now(UTC),
    )
    return Report(page, found)


def _build_album(
    sources: Sources, pictures: Sequence[Picture], device: str, reporter: Reporter
) -> tuple[Album, HeatMaps]:
    """Pictures with their heat maps and neighbours; files that changed are left out."""
    opened = sources.opened
    manifest, bundle = opened.manifest, opened.bundle
    assert manifest is not None
    if not pictures:
        return Album(), HeatMaps()
    keep_freed_memory()
    # As the files of an evaluation write paths.
    by_path = {printable(guard_cell(s.path)): s for s in manifest.split(sources.split)}
    samples = {p.path: by_path[p.path] for p in pictures if p.path in by_path}
    changed = {change.rpartition(": ")[0] for change in list_changes(manifest, [*samples.values()])}
    samples = {path: s for path, s in samples.items() if s.path not in changed}
    config, _ = load_config(opened.run.config)
    machine = open_machine(device).with_precision(
        config.train.precision, "fp32", img_size=config.data.img_size
    )
    machine.place(bundle.model)
    wanted = [(samples[p.path], p.output) for p in pictures if p.path in samples]
    heats = compute_heat_maps(
        bundle,
        manifest.root,
        [(sample, output) for sample, output in wanted if output is not None],
        machine,
        reporter,
    )
    near = find_neighbours(
        bundle,
        config,
        manifest.root,
        [*samples.values()],
        manifest.split("train"),
        machine,
        reporter,
    )
    rules = load_label_rules(bundle.task)
    neighbours = {
        path: [
            n._replace(label=", ".join(rules.parse(n.label)) or f"no {rules.noun}")
            for n in near.get(sample.path, [])
        ]
        for path, sample in samples.items()
    }
    small = {n.path: manifest.root / n.path for found in neighbours.values() for n in found}
    with reporter.count("drawing pictures", len(samples) + len(small)) as advance:
        files = {path: manifest.root / sample.path for path, sample in samples.items()}
        thumbnails, halves = build_thumbnails(files, small)
        advance(len(samples) + len(small))
    drawn: dict[tuple[str, int | None], Heat] = {}
    for picture in pictures:
        shown, sample = thumbnails.get(picture.path), samples.get(picture.path)
        if shown and sample and picture.output is not None:
            values = heats.maps.get((sample.path, picture.output))
            if values is not None:
                size = shown.width, shown.height
                heat = build_heat(values, size, bundle.preprocessing)
                if heat:
                    drawn[picture.path, picture.output] = heat
    return Album(thumbnails, halves, drawn, neighbours), heats


def _explain_pictures(panel: Panel, album: Album, heats: HeatMaps) -> Panel:
    """Say above a gallery what its heat maps and neighbours are, and what they are not."""
    if not any(isinstance(block, Gallery) for block in panel.blocks):
        return panel
    texts = []
    if heats.problem:
        texts.append(f"There are no heat maps: {heats.problem}.")
    elif heats.tested:
        texts.append(
            "Heat maps (Grad-CAM) show where the features lie that raised the answer, not what "
            "caused it; they cover what the model saw of the picture. "
            f"Tested on {count(heats.tested, 'picture')} here: blurring the quarter that a map "
            f"marks changes the probability of the answer by {-100 * heats.marked:+.1f} points on "
            f"average, blurring another quarter by {-100 * heats.elsewhere:+.1f}."
        )
    if any(album.neighbours.values()):
        texts.append(
            "The small pictures are the two training images that the model finds most alike."
        )
    more = [Text(" ".join(texts))] if texts else []
    return replace(panel, blocks=[*more, *panel.blocks])
