"""The verbs below `mnft data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mnft.cli.exits import handle_errors
from mnft.cli.options import ConfigArgument, Json, Overrides
from mnft.cli.starting import starting
from mnft.cli.usage import SettingsCommand

data_app = typer.Typer(
    no_args_is_help=True,
    help="Fetch data sets, check image folders, and see whether more images would help.",
)


@data_app.command("fetch")
@handle_errors
def data_fetch(
    name: Annotated[str | None, typer.Argument(help="Name of a data set; see --list.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Local archive or folder to take it from, instead of the network."
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder to create; default data/NAME.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the known data sets.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a known data set as an image folder.

    The digits come with scikit-learn and need no network; the others are downloaded, checked
    against their checksums and unpacked, or taken from a local archive.

    Examples: `mnft data fetch digits`, `mnft data fetch flowers102 --from 102flowers.tgz`
    """
    from mnft.commands import fetch as command

    command.run(name, source, to, show=show, as_json=as_json)


@data_app.command("check", cls=SettingsCommand)
@handle_errors
def data_check(
    target: Annotated[Path, typer.Argument(help="A config, or a folder of images.")],
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    checkpoint: Annotated[
        Path | None,
        typer.Option("--ckpt", help="Run or model folder with which to find likely wrong labels."),
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            "--fix", help="Write, or extend, a list of files to leave out (for data.exclude)."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write all of it to, as JSON."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find what would spoil a training; the exit code is 3 if there is something.

    Finds files that cannot be decoded, classes that differ between splits, the same or nearly the
    same image in two splits or two classes, classes that are empty or too small to split, and
    unusual sizes, colours and extensions; for a config also what a run will need. `--fix` deletes
    nothing. `-o RUN/check.json` keeps the findings for `mnft report`.

    Examples: `mnft data check photos/`, `mnft data check configs/flowers.yaml --fix leave_out.txt`
    """
    is_config = target.suffix in {".yaml", ".yml"} and not target.is_dir()
    with starting(
        config=target if is_config else None,
        overrides=overrides if is_config else [],
        checkpoints=[checkpoint] if checkpoint else [],
        images=None if is_config else target,
    ):
        from mnft.commands import check as command

    command.run(target, overrides, as_json=as_json, checkpoint=checkpoint, fix=fix, output=output)


@data_app.command("curve", cls=SettingsCommand)
@handle_errors
def data_curve(
    config: ConfigArgument,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    as_json: Json = False,
) -> None:
    """Say whether more images would help, by the learning curve of the head.

    Fits the head to parts of the training images, scores it on val, and extrapolates to twice the
    images, with a 95% band. Features of the frozen backbone are computed once and shared with
    trainings. Fine-tuning may gain more.

    Example: `mnft data curve configs/flowers.yaml`
    """
    with starting(config=config, overrides=overrides):
        from mnft.commands import curve as command

    command.run(config, overrides, as_json=as_json)
