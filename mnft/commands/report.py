"""`mnft report`: one page about a run, for engineers and for those who decide."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mnft import console, files
from mnft.errors import ConfigError
from mnft.evaluation.images import choose_split
from mnft.report.build import build_report
from mnft.report.card import write_card
from mnft.report.page.render import render
from mnft.report.sources import read_sources
from mnft.text import count

# A page of mnft has this near its beginning; another file is not replaced.
_MARK = '<meta name="generator" content="mnft '


@dataclass(frozen=True, slots=True)
class Request:
    """What to report on.

    Attributes:
        run: a run.
        split: the split whose evaluation is shown; None takes test, or else val.
        output: the file to write; None takes report.html in the run.
        images: largest number of pictures in a gallery.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
    """

    run: Path
    split: str | None
    output: Path | None
    images: int
    device: str


def run(request: Request, *, as_json: bool) -> None:
    """Write the page of a run, and the model card beside its best model.

    Raises:
        MnftError: there is no such run, a file of it is damaged, or the page cannot be written.
    """
    sources = read_sources(request.run, request.split, request.images)
    assert sources.opened.manifest is not None
    usual = sources.split == choose_split(sources.opened.manifest)
    name = "report.html" if usual else f"report-{sources.split}.html"
    target = request.output or sources.folder / name
    check_page(target)
    report = build_report(sources, request.device, console.REPORTER)
    html = render(report.page)
    files.write_text(target, html)
    card = write_card(sources, report) if usual else None
    size = target.stat().st_size
    if as_json:
        console.show_json(
            {"report": str(target), "bytes": size, "card": None if card is None else str(card)}
        )
        return
    if report.page.missing is not None:
        console.warn(f"{report.page.missing.text} {report.page.missing.command}")
    console.note(
        f"report   {target}, {size / 1e6:.2f} MB, {count(len(report.page.panels), 'panel')}"
    )
    if card is not None:
        console.note(f"card     {card}")
    elif usual:
        console.note("card     best/README.md is your own and was not changed")
    console.show_data(str(target))


def check_page(target: Path) -> None:
    """Refuse to replace a file that is not an earlier page of mnft.

    Raises:
        ConfigError: it is something else.
    """
    if target.is_dir():
        raise ConfigError(f"{target} is a folder, expected the name of a file to write")
    if target.exists():
        with target.open(encoding="utf-8", errors="replace") as stream:
            if _MARK not in stream.read(4096):
                raise ConfigError(
                    f"{target} exists and is not an earlier report, so it is not replaced",
                    hint="name a new file: --output FILE.html",
                )
