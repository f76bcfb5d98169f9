"""The verbs that bring a trained model to a device: decide, export, quantize, prune, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mnft.cli.exits import handle_errors
from mnft.cli.options import (
    Data,
    Device,
    Json,
    Output,
    Overrides,
    RunArgument,
    Split,
    Trained,
    flag_of,
)
from mnft.cli.starting import check_split, starting
from mnft.cli.usage import SettingsCommand, choose_model
from mnft.exports.formats import FORMATS, find_format

edge_app = typer.Typer()


@edge_app.command(cls=SettingsCommand)
@handle_errors
def export(
    model: RunArgument = None,
    checkpoint: Trained = None,
    format_name: Annotated[
        str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")
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

    The file is run in its own runtime on real val images. If it names other classes or loses
    accuracy, it is not kept, and the exit code is 3. Beside it lie labels.txt, model.json (what
    goes in and comes out) and parity.json. Prints the path of the file.

    Examples: `mnft export --ckpt runs/flowers`, `mnft export --ckpt runs/flowers --format tflite
    --embed-preprocessing`
    """
    find_format(format_name)
    check_split(split)
    chosen = choose_model(model, checkpoint, "export")
    with starting(checkpoints=[chosen], overrides=overrides, images=data):
        from mnft.commands import export as command

    request = command.Request(chosen, format_name, data, split, output, embed)
    command.run(request, overrides, as_json=as_json)


@edge_app.command(cls=SettingsCommand)
@handle_errors
def quantize(
    model: RunArgument = None,
    checkpoint: Trained = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder with train and val images, instead of the run's."),
    ] = None,
    output: Output = None,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    as_json: Json = False,
) -> None:
    """Convert a model to int8, about 30% of its size, and prove that it is about as accurate.

    The ranges of activations come from training images. If the file loses more accuracy on val
    than quantize.max_accuracy_drop, the layers that cost most stay in float; if that is not
    enough, the model is fine-tuned with rounding. A file that still loses more is not kept, and
    the exit code is 3. quantization.json has the figures. Prints the path of the file.

    Examples: `mnft quantize --ckpt runs/flowers`, `mnft quantize --ckpt runs/flowers --set
    quantize.method=nncf`
    """
    chosen = choose_model(model, checkpoint, "quantize")
    with starting(checkpoints=[chosen], overrides=overrides, images=data):
        from mnft.commands import quantize as command

    request = command.Request(chosen, data, output)
    command.run(request, overrides, as_json=as_json)


@edge_app.command(cls=SettingsCommand)
@handle_errors
def decide(
    model: RunArgument = None,
    checkpoint: Trained = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            "--target-accuracy",
            help="Accuracy of the answers; the same as decision.target_accuracy.",
        ),
    ] = None,
    device: Device = "auto",
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    as_json: Json = False,
) -> None:
    """Fit a trained model's temperature and threshold to its val split, without training it.

    Below the threshold the model answers `unknown`. Both are written into the model folder, where
    eval, predict and export find them; they are fitted at the end of each training as well.

    Examples: `mnft decide runs/flowers --target-accuracy 0.98`, `mnft decide runs/flowers --set
    decision.calibrate=false`
    """
    if target_accuracy is not None:
        overrides = [*overrides, f"decision.target_accuracy={target_accuracy}"]
    chosen = choose_model(model, checkpoint, "decide")
    with starting(checkpoints=[chosen], overrides=overrides):
        from mnft.commands import decide as command

    with flag_of("train.device", f"--device {device}"):
        command.run(chosen, overrides, device=device, as_json=as_json)


@edge_app.command(cls=SettingsCommand)
@handle_errors
def prune(
    model: RunArgument = None,
    checkpoint: Trained = None,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Run folder to create; default RUN/pruned-70."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove channels from a trained model until a fraction of its MACs is left, and fine-tune it.

    The result is a run of its own with the same split, for `mnft eval`, `export`, `quantize`,
    `train` or another `prune`. pruning.csv has accuracy against MACs. Prints the folder of the
    best model.

    Examples: `mnft prune --ckpt runs/flowers`, `mnft prune --ckpt runs/flowers --set
    prune.macs=0.5 --set prune.epochs=20`
    """
    chosen = choose_model(model, checkpoint, "prune")
    with starting(checkpoints=[chosen], overrides=overrides):
        from mnft.commands import prune as command

    command.run(chosen, overrides, output, as_json=as_json)


@edge_app.command()
@handle_errors
def compare(
    models: Annotated[
        list[Path],
        typer.Argument(help="Runs (the best model of each), model folders, exports, model files."),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", help="Images to judge on, instead of the first run's.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, val or test; default test, else val.")
    ] = None,
    exports: Annotated[
        bool, typer.Option("--exports", help="Add all exports of each run.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Add each PyTorch model once more, compiled.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads of each model; default all cores."),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Rounds of ten timed calls to each model.")
    ] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; default comparison/.")
    ] = None,
    html: Annotated[
        bool,
        typer.Option("--html", help="Write comparison.html too, with how often models agree."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare models: accuracy, size, memory, latency and throughput, on the same images.

    All are measured in one run, in turns, so that the ratios hold on a busy machine too. Models on
    the Pareto front are marked: no other model beats them in accuracy and latency, or in accuracy
    and size. Prints a table and writes comparison.csv, .json, .md and .png.

    Examples: `mnft compare runs/v2 --exports`, `mnft compare runs/lenet runs/v2 runs/v3 --compile
    -o docs/comparison`
    """
    check_split(split)
    with starting(checkpoints=models, images=data):
        from mnft.commands import compare as command
    from mnft.compare.latency import Plan

    plan = Plan(threads=threads, rounds=rounds)
    request = command.Request(models, data, split, output, exports, compiled, plan, html)
    command.run(request, as_json=as_json)
