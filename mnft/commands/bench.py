"""`mnft bench`: measure where the time of a training goes, on this machine and these images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mnft import console
from mnft.config.load import load_config
from mnft.device.ranks.distributed import Ranks
from mnft.device.select import keep_freed_memory
from mnft.runs.begin import begin_training, check_early
from mnft.text import count
from mnft.training.probes.bench import bench

_ADVICE = {
    "loading": "images come too slowly: data.store: auto if it is off, more data.workers, or "
    "milder augmentation",
    "computing": "the model sets the pace: a smaller model, data.img_size or train.start_size",
}


def run(
    config_path: Path, overrides: Sequence[str], *, batches: int, rounds: int, as_json: bool
) -> None:
    """Measure the parts of a training and show which one is the limit.

    Raises:
        MnftError: a training with this config cannot begin.
    """
    keep_freed_memory()
    config, source = load_config(config_path, overrides)
    with source.locating():
        machine = check_early(config, Ranks(), new_run=False)
        _, training = begin_training(config, None, machine, console.REPORTER)
        with console.progress("measuring") as on_progress:
            result = bench(training, batches=batches, rounds=rounds, on_progress=on_progress)
    facts = training.facts
    if as_json:
        names = ("device", "processor", "precision", "input_size", "store")
        shown = {name: facts[name] for name in names}
        console.show_json({**asdict(result), "limit": result.limit, **shown})
        return
    threads = count(result.threads, "thread")
    console.note(f"machine  {facts['device']}; {facts['processor']}, {threads}")
    console.note(f"store    {facts['store']}")
    speeds = {
        "loading only": result.loading,
        "fixed-batch limit": result.fixed_batch,
        "updates only, same batch": result.computing,
        "training": result.training,
        "evaluation": result.evaluating,
    }
    console.show_table(
        ["part", "images/s", "lowest", "highest"],
        [
            [part, f"{speed.median:,.0f}", f"{speed.lowest:,.0f}", f"{speed.highest:,.0f}"]
            for part, speed in speeds.items()
        ],
    )
    console.note(
        f"{count(result.rounds, 'round')} of {count(result.batches, 'batch', 'batches')} of "
        f"{training.config.train.batch_size}; waiting for data: {result.wait:.1%} of the training"
    )
    console.note(f"limit    {result.limit}: {_ADVICE[result.limit]}")
