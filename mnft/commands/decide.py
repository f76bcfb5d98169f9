"""`mnft decide`: fit temperature and threshold of a trained model again, without training it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mnft import console
from mnft.device.ranks.distributed import Ranks
from mnft.errors import CheckpointError
from mnft.evaluation.checkpoint import load_settings, open_trained
from mnft.evaluation.images import load_image_set
from mnft.evaluation.outputs import compute_image_outputs
from mnft.model.bundle import load_bundle, replace_settings
from mnft.tasks import open_task


def run(checkpoint: Path, overrides: Sequence[str], *, device: str, as_json: bool) -> None:
    """Fit what the task keeps with a model to the run's val split, and write it into its folder.

    Args:
        checkpoint: a run, or a model folder in one.
        overrides: `section.key=value` over the run's config.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        as_json: whether to print one JSON object.

    Raises:
        MnftError: no run, or images that have changed.
    """
    opened = open_trained(checkpoint)
    # As the training left it: the outputs are not divided by the temperature of before.
    bundle = load_bundle(opened.bundle.folder)
    if opened.manifest is None:
        raise CheckpointError(
            f"{bundle.folder} does not lie in a run, so its val images are not known",
            hint="a decision is fitted to images that the model was not trained on: name a run",
        )
    config, source = load_settings(opened, overrides)
    with source.locating():
        task = open_task(bundle.labels, bundle.task, config=config)
        images = load_image_set(opened, None, "val", console.REPORTER, judging=False)
        outputs = compute_image_outputs(
            bundle, images, config.eval, device=device, reporter=console.REPORTER
        )
    score = task.new_score(Ranks())
    values, targets = torch.from_numpy(outputs.values), torch.from_numpy(outputs.targets)
    score.update(outputs.positions.tolist(), values, targets)
    score.result()
    settings = score.fit_settings()
    replace_settings(bundle.folder, settings)
    if as_json:
        console.show_json({"model": str(bundle.folder), "settings": settings})
        return
    for remark in task.describe_settings(settings):
        (console.warn if remark.is_warning else console.note)(remark.text)
        if remark.hint is not None:
            console.note(f"hint: {remark.hint}")
    console.done(f"written to {bundle.folder}; files that were exported before must be made again")
    console.note(f"next: mnft eval --ckpt {checkpoint}")
    console.show_data(str(bundle.folder))
