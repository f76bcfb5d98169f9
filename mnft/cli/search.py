"""The verb that trains one config many times."""

from __future__ import annotations

from typing import Annotated

import typer

from mnft.cli.exits import handle_errors
from mnft.cli.options import ConfigArgument, Json, Overrides
from mnft.cli.starting import starting_search
from mnft.cli.usage import SettingsCommand

search_app = typer.Typer()


@search_app.command(cls=SettingsCommand)
@handle_errors
def search(
    config: ConfigArgument,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Number of trainings at once; default one for each GPU, or one.",
        ),
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Help a search that was begun elsewhere.")
    ] = False,
    is_worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
    as_json: Json = False,
) -> None:
    """Train a config with different values of some keys, and name the best one honestly.

    The section `search` of the config says which keys, which values and how many trials. Each trial
    is a run folder. The best three are trained with further seeds, one is named by its mean, and
    only that one sees the test images. Run the same command again to continue a search.

    Examples: `mnft search configs/search_flowers.yaml`, `mnft search my.yaml --workers 4`, `mnft
    search my.yaml --set search.trials=50`
    """
    with starting_search(config, overrides):
        from mnft.commands import search as command

    request = command.Request(config, workers, join, is_worker)
    command.run(request, overrides, as_json=as_json)
