"""The outputs of a model on selected images, with progress: what eval, export and compare share."""

from __future__ import annotations

from dataclasses import dataclass

from mnft.config.schema import EvalConfig
from mnft.device.machine import open_machine
from mnft.device.select import keep_freed_memory
from mnft.evaluation.images import Selection
from mnft.model.bundle import Bundle
from mnft.reporter import SILENT, Reporter
from mnft.tasks import open_task
from mnft.tasks.base import Outputs
from mnft.training.eval_batches import EvalOptions, open_eval_batches
from mnft.training.inference import compute_outputs


@dataclass(frozen=True, slots=True)
class Means:
    """What to compute with; None takes the run's batch size, and as many workers as suit.

    Attributes:
        device_name: auto, cpu, cuda, cuda:N or mps.
        batch_size: images at once.
        workers: processes that decode.
        store: `data.store` of the config; images that are stored already are not decoded again.
    """

    device_name: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    store: str = "off"


def compute_selected(
    bundle: Bundle,
    images: Selection,
    settings: EvalConfig,
    means: Means,
    reporter: Reporter = SILENT,
    *,
    flip: bool = False,
    what: str = "images",
) -> Outputs:
    """The outputs of a model on selected images, in the precision of `eval.precision`.

    Args:
        bundle: the model.
        images: to judge it on.
        settings: the `eval` section.
        means: what to compute with.
        reporter: told of progress.
        flip: average each image with its mirror image.
        what: is judged, for the progress bar.

    Raises:
        MnftError: a device that is not there, an image that does not decode.
    """
    keep_freed_memory()
    machine = open_machine(means.device_name).with_precision(
        "fp32", settings.precision, img_size=None
    )
    task = open_task(bundle.class_names)
    batches = open_eval_batches(
        images.root,
        images.samples,
        task.encode(images.samples),
        bundle.preprocessing,
        machine,
        config=settings,
        options=EvalOptions(
            means.batch_size, "auto" if means.workers is None else means.workers, means.store
        ),
    )
    with reporter.count(f"judging {what}", len(images.samples)) as advance:
        return compute_outputs(
            machine.place(bundle.model),
            batches,
            machine,
            num_outputs=len(task.labels),
            flip=flip,
            on_images=advance,
        )
