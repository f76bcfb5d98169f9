"""The verb that tells what came of a training: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mnft.cli.exits import handle_errors
from mnft.cli.options import Device, Json, RunArgument, Trained, flag_of
from mnft.cli.starting import check_split, starting
from mnft.cli.usage import choose_model

report_app = typer.Typer()


@report_app.command()
@handle_errors
def report(
    model: RunArgument = None,
    checkpoint: Trained = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Evaluation to show: test, val or train; default test."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; default RUN/report.html."),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", min=1, help="Largest number of mistakes to show.")
    ] = 200,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write one page about a run: how good it is, what it gets wrong, and what to know of it.

    The page is one HTML file that opens anywhere and loads nothing. It shows what `mnft eval`,
    `data check`, `export` and `compare` left in the run, and names the command for what is missing.
    A model card, README.md, is written beside the best model. Prints the path of the page.

    Examples: `mnft report runs/flowers`, `mnft report runs/flowers --split val -o val.html`
    """
    check_split(split)
    chosen = choose_model(model, checkpoint, "report")
    with starting(checkpoints=[chosen]):
        from mnft.commands import report as command

    with flag_of("train.device", f"--device {device}"):
        request = command.Request(chosen, split, output, images, device)
        command.run(request, as_json=as_json)
