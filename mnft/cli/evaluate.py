"""The verbs that let a model answer: on labelled images, and on any others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mnft.cli.exits import handle_errors
from mnft.cli.options import Checkpoint, Device, Json, RunArgument, Workers, flag_of
from mnft.cli.starting import check_split, starting
from mnft.cli.usage import choose_model, find_missing_model

evaluate_app = typer.Typer()


@evaluate_app.command("eval")
@handle_errors
def evaluate(
    model: RunArgument = None,
    checkpoint: Checkpoint = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Other images than those of the run.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, val or test; default test, or else val.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder to write; default RUN/eval, or RUN/eval-... for other images.",
        ),
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per batch.")
    ] = None,
    workers: Workers = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average each image with its mirror image.")
    ] = False,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also judge blurred, dark, noisy... images.")
    ] = False,
    unknown: Annotated[
        Path | None,
        typer.Option("--unknown", help="Images of none of the classes: how many get a name?"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a trained model on images that it was not trained on.

    Prints accuracy (mAP for several labels an image) with its 95% interval, precision, recall and
    F1 of each class, calibration, and how many images the model's threshold names a class for.
    Writes metrics.json, predictions.csv, per_class.csv, the confusion matrix, the risk-coverage
    curve, and plots of the worst mistakes and of how reliable the model's confidence is.

    Examples: `mnft eval runs/flowers`, `mnft eval --ckpt runs/flowers/best --data photos/`,
    `mnft eval runs/flowers --robustness` (how far figures fall on 14 kinds of worse images), `mnft
    eval runs/flowers --unknown street/`
    """
    check_split(split)
    chosen = choose_model(model, checkpoint, "eval")
    with starting(checkpoints=[chosen], images=data):
        from mnft.commands import evaluate as command

    with flag_of("train.device", f"--device {device}"):
        request = command.Request(
            chosen, data, split, output, device, batch_size, workers, flip, robustness, unknown
        )
        command.run(request, as_json=as_json)


@evaluate_app.command()
@handle_errors
def predict(
    inputs: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, or - for a list on stdin.")
    ],
    checkpoint: Checkpoint = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default stdout.")
    ] = None,
    limit: Annotated[
        int,
        typer.Option("--top-k", min=1, help="Number of classes to name for each image."),
    ] = 1,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Write one JSON object per line instead of CSV.")
    ] = False,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per batch.")] = 32,
    workers: Workers = None,
    explain: Annotated[
        Path | None, typer.Option("--explain", help="Folder for a heat map of each answer.")
    ] = None,
) -> None:
    """Predict the class of each image, or its labels; the row of an unreadable file says why.

    Examples: `mnft predict --ckpt runs/flowers photo.jpg`, `mnft predict --ckpt runs/flowers
    photos/ --top-k 3 -o out.csv`, `find . -name '*.jpg' | mnft predict --ckpt runs/flowers -`
    """
    if checkpoint is None:
        raise find_missing_model(inputs)
    with starting(checkpoints=[checkpoint]):
        from mnft.commands import predict as command

    with flag_of("train.device", f"--device {device}"):
        request = command.Request(
            checkpoint, inputs, output, limit, json_lines, device, batch_size, workers, explain
        )
        command.run(request)
