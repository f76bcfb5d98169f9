"""The command line: flags to requests; each verb is imported only when it is called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mnft import __version__
from mnft.cli.data import data_app
from mnft.cli.edge import edge_app
from mnft.cli.evaluate import evaluate_app
from mnft.cli.exits import handle_errors
from mnft.cli.options import (
    ConfigArgument,
    Json,
    Overrides,
    flag_of,
)
from mnft.cli.report import report_app
from mnft.cli.search import search_app
from mnft.cli.starting import starting, starting_training
from mnft.cli.usage import SettingsCommand
from mnft.errors import ConfigError

app = typer.Typer(
    name="mnft",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a folder of images to a small, verified model.\n\n"
    "Start with `mnft data fetch digits`, `mnft train configs/digits.yaml` and "
    "`mnft eval --ckpt runs/digits`; for your own images with `mnft init IMAGES`.",
)
app.add_typer(evaluate_app)
app.add_typer(data_app, name="data")
app.add_typer(edge_app)
app.add_typer(report_app)
app.add_typer(search_app)


def _show_version(show: bool) -> None:
    if show:
        typer.echo(f"mnft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the library's log.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    from mnft import console

    console.setup_logging(verbose=verbose)


@app.command()
@handle_errors
def init(
    images: Annotated[Path, typer.Argument(help="A folder of images.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default FOLDER.yaml.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="A timm model.")] = "mobilenetv2_100",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    search: Annotated[
        bool, typer.Option("--search", help="Write a section for `mnft search` as well.")
    ] = False,
) -> None:
    """Write a commented config for a folder of images.

    The folder holds one folder for each class (mnft then splits the images), or train/, val/ and
    test/ folders that do.

    Example: `mnft init photos/ -o photos.yaml`
    """
    with starting(images=images):
        from mnft.commands import init as command

    with flag_of("model.name", f"--model {model}"):
        command.run(images, output, model, force=force, search=search)


@app.command(cls=SettingsCommand)
@handle_errors
def train(
    config: Annotated[Path | None, typer.Argument(help="A YAML config.")] = None,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN|auto",
            help="Resume an interrupted run; `auto` takes the newest run of the config, if any.",
        ),
    ] = None,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Suggest a learning rate instead of training.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model as a config says, and print the folder of the best model.

    Progress goes to stderr, so that `BEST=$(mnft train CONFIG)` works in a script. A resumed run
    ends as if it had never stopped; `--set train.epochs=N` extends it. For a job that is started
    again and again, `mnft train CONFIG --resume auto` resumes the newest run of this config, or
    begins one if there is none.

    Examples: `mnft train configs/digits.yaml`, `mnft train configs/flowers.yaml --set
    optim.lr=3e-4 --set train.epochs=20`, `mnft train --resume runs/flowers`
    """
    if find_lr:
        if config is None or resume is not None:
            raise ConfigError("--find-lr needs a config, and goes with no --resume")
        with starting(config=config, overrides=overrides):
            from mnft.commands import find_lr as trial

        trial.run(config, overrides, as_json=as_json)
        return
    with starting_training(config, overrides, resume):
        from mnft.commands import train as command

    command.run(config, overrides, resume, as_json=as_json)


@app.command(cls=SettingsCommand)
@handle_errors
def distill(
    config: Annotated[Path, typer.Argument(help="A YAML config of the student.")],
    teachers: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            help="A run, a model folder or a timm name; may be repeated: of several, the "
            "probabilities are averaged.",
        ),
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    as_json: Json = False,
) -> None:
    """Train a small model to answer as larger ones do; everything else is as in `mnft train`.

    A teacher is a run or model folder that knows the same labels, or a pretrained timm model,
    whose head is then fitted to the training images first. `--teacher X` is the same as
    `distill.teacher: X` in the config. `distill.images` names a folder of images without labels to
    learn from as well.

    Examples: `mnft distill configs/flowers.yaml --teacher runs/large --set
    model.name=mobilenetv3_small_075`, `mnft distill my.yaml --teacher runs/a --teacher runs/b
    --set distill.images=unlabelled/`
    """
    from mnft.config.source import dump_inline

    if teachers:
        named = teachers if len(teachers) > 1 else teachers[0]
        overrides = [*overrides, f"distill.teacher={dump_inline(named)}"]
    with starting(config=config, overrides=overrides, needs_teacher=True):
        from mnft.commands import train as command

    command.run(config, overrides, None, as_json=as_json)


@app.command(cls=SettingsCommand)
@handle_errors
def bench(
    config: ConfigArgument,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    batches: Annotated[int, typer.Option("--batches", min=1, help="Batches per round.")] = 20,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Number of rounds, whose median is shown.")
    ] = 3,
    as_json: Json = False,
) -> None:
    """Measure the speed of loading, of updates and of both together, and say which one limits.

    Example: `mnft bench configs/flowers.yaml --set train.batch_size=64`
    """
    with starting(config=config, overrides=overrides):
        from mnft.commands import bench as command

    command.run(config, overrides, batches=batches, rounds=rounds, as_json=as_json)


@app.command()
@handle_errors
def models(
    pattern: Annotated[
        str | None, typer.Argument(help="Names, with * and ?; default: MobileNets and LeNet-5.")
    ] = None,
    img_size: Annotated[
        int | None, typer.Option("--img-size", min=8, help="Input size to count MACs at.")
    ] = None,
    outputs: Annotated[
        int | None,
        typer.Option("--num-classes", min=1, help="Number of outputs; default the model's own."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List models with their parameters and multiply-accumulates (MACs).

    Examples: `mnft models`, `mnft models 'mobilenetv3*' --img-size 160`
    """
    with starting():
        from mnft.commands import models as command

    command.run(pattern, img_size=img_size, outputs=outputs, as_json=as_json)


@app.command()
@handle_errors
def doctor(
    install: Annotated[
        str | None,
        typer.Option("--install", help="Set up the environment that a tool-chain needs: tflite."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what this machine can do, which export formats work, and what to fix.

    Examples: `mnft doctor`, `mnft doctor --install tflite`
    """
    from mnft.commands import doctor as command

    if install is not None:
        command.install(install)
        return
    command.run(as_json=as_json)


def main() -> None:
    """Run the command line."""
    from mnft import streams

    streams.use_utf8()
    streams.open_closed_streams()
    streams.escape_what_cannot_be_encoded()
    # Threads of torch that wait for one another must not spin for long: beside another busy
    # process training was seen to come to a halt. Read when torch is loaded; the figures are in
    # benchmarks/LOG.md.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    app(prog_name="mnft")  # also for `python -m mnft`
