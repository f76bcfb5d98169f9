"""The options and arguments that several verbs share, each with its one help text."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Set a config value, such as optim.lr=3e-4."),
]
ConfigArgument = Annotated[Path, typer.Argument(help="A YAML config.")]
RunArgument = Annotated[
    Path | None, typer.Argument(metavar="RUN", help="The same as --ckpt RUN.", show_default=False)
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--ckpt", help="A run (its best model is taken), a model folder or an exported file."
    ),
]
Trained = Annotated[
    Path | None, typer.Option("--ckpt", help="A run (its best model is taken) or a model folder.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Number of loading processes; 0 loads in the main one."),
]
# For the verbs that export or change a trained model:
Data = Annotated[
    Path | None, typer.Option("--data", help="Images to compare on, instead of the run's.")
]
Split = Annotated[str | None, typer.Option("--split", help="train, val or test; default val.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder to write; default below the run.")
]


def flag_of(key: str, flag: str) -> AbstractContextManager[None]:
    """Put the flag that stands for a config key in front of errors that name the key."""
    from mnft.config.source import Source

    return Source(places={tuple(key.split(".")): flag}).locating()
