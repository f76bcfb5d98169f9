"""The outputs of a model on a set of images: what eval, export, quantize and compare share."""

from __future__ import annotations

from mnft.config.evaluation import EvalConfig
from mnft.device.machine import open_machine
from mnft.device.select import keep_freed_memory
from mnft.evaluation.images import ImageSet
from mnft.model.bundle import Bundle
from mnft.reporter import SILENT, Reporter
from mnft.tasks import open_task
from mnft.tasks.outputs import Outputs
from mnft.training.eval_batches import EvalOptions, open_eval_batches
from mnft.training.inference import compute_outputs


def compute_image_outputs(
    bundle: Bundle,
    images: ImageSet,
    config: EvalConfig,
    *,
    device: str = "auto",
    options: EvalOptions | None = None,
    reporter: Reporter = SILENT,
    flip: bool = False,
    what: str = "images",
    labelled: bool = True,
) -> Outputs:
    """Compute the outputs of a model on a set of images, in the precision of `eval.precision`.

    Args:
        bundle: the model.
        images: the images.
        config: the `eval` section.
        device: name of the device: auto, cpu, cuda, cuda:N or mps.
        options: how the images are loaded.
        reporter: told of progress.
        flip: whether to average each image with its mirror image.
        what: name of the images for the progress bar.
        labelled: whether the images have labels.

    Raises:
        MnftError: there is no such device, or an image does not decode.
    """
    keep_freed_memory()
    machine = open_machine(device).with_precision("fp32", config.precision, img_size=None)
    task = open_task(bundle.labels, bundle.task, bundle.settings)
    batches = open_eval_batches(
        images.root,
        images.samples,
        task.encode(images.samples) if labelled else [-1] * len(images.samples),
        bundle.preprocessing,
        machine,
        config=config,
        options=options,
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
