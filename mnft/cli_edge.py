"""The verbs that make something of a trained model: export, quantize, prune, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mnft.cli_data import Json, Overrides
from mnft.guard import guarded

edge_app = typer.Typer()

Trained = Annotated[
    Path, typer.Option("--ckpt", help="A run (its best model is taken) or a model folder.")
]
Data = Annotated[
    Path | None, typer.Option("--data", help="Images to compare on, instead of the run's.")
]
Split = Annotated[str | None, typer.Option("--split", help="train, val or test; default val.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder to write; default below the run.")
]


@edge_app.command()
@guarded
def export(
    checkpoint: Trained,
    form: Annotated[
        str,
        typer.Option("--format", help="onnx, openvino, executorch, tflite, torchscript or coreml."),
    ] = "onnx",
    embed: Annotated[
        bool,
        typer.Option(
            "--embed-preprocessing",
            help="Put normalisation and softmax into the file: uint8 pixels in, probabilities out.",
        ),
    ] = False,
    data: Data = None,
    split: Split = None,
    output: Output = None,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    as_json: Json = False,
) -> None:
    """Write a model file for an edge device, and prove that it answers as the trained model does.

    The file runs in its own runtime on real val images; one that names other classes or loses
    accuracy is not kept, and the exit code is 3. Beside it lie labels.txt, model.json (what goes
    in and comes out) and parity.json. Prints the path of the file.

    Examples: `mnft export --ckpt runs/flowers`, `mnft export --ckpt runs/flowers --format tflite
    --embed-preprocessing`
    """
    from mnft.commands import export as command

    request = command.Request(checkpoint, form, data, split, output, embed)
    command.run(request, overrides, as_json=as_json)
