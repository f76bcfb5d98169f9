"""The typed config: every section and key, with its default, its range and what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mnft.config.edge import ExportConfig, PruneConfig, QuantizeConfig
from mnft.config.section import Fraction, NotNegative, Positive, Section, Share
from mnft.preprocessing import MIN_CROP_PCT


def _off_is_a_word(value: Any) -> Any:
    """YAML 1.1 reads a plain `off` as false."""
    return "off" if value is False else value


class DataConfig(Section):
    """Where the images are, how they are split, and how they reach the model."""

    root: str
    """Image folder: either `<class>/` folders, which are split in place, or `train/`, `val/` and
    `test/` folders that hold them. A relative path is taken from the current folder."""
    fetch: str | None = None
    """Known data set to bring to `data.root` when that folder does not exist; the names are those
    of `mnft data fetch --list`."""
    img_size: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Height and width of the model's input in pixels (the resolution multiplier of the MobileNet
    papers); empty: what the model was made for."""
    val_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of each class that becomes the val split where the folder has none."""
    test_fraction: Fraction = 0.15
    """Share of each class that becomes the test split where the folder has no split at all."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the split in place; the same seed and files give the same split on every machine."""
    split_from: str | None = None
    """Run whose split is taken over: images that it knows by content stay in the split that they
    have there, and new ones are split as usual. A run that starts from, or learns from, the model
    of that run then never meets images in test that the model was trained on. Empty: none."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with files that cannot be decoded: `fail` stops before training with their list,
    `skip` leaves them out and lists them in split.json."""
    exclude: str | None = None
    """List of files to leave out, one path relative to `data.root` a line, as `mnft data check
    --fix FILE` writes it; split.json names what it left out. Empty: none."""
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = "auto"
    """Processes that decode and augment images; 0 does it in the main process; `auto` chooses from
    the cores, at most 8 a training process."""
    crop_pct: Annotated[float, Field(ge=MIN_CROP_PCT, le=1.0)] | None = None
    """Share of the resized image's side that the centre crop of evaluation keeps; empty: the
    model's."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = None
    """Resampling of the resize; empty: the model's own."""
    mean: Annotated[list[Share], Field(min_length=1, max_length=3)] | None = None
    """Channel means, of values in 0..1, that normalisation subtracts; empty: the model's own."""
    std: Annotated[list[Positive], Field(min_length=1, max_length=3)] | None = None
    """Channel standard deviations that normalisation divides by; empty: the model's own."""
    store: Annotated[str, BeforeValidator(_off_is_a_word)] = "auto"
    """Decode each image once and keep its pixels in memory-mapped files that all epochs, runs and
    processes share: `auto` in the cache folder ($MNFT_CACHE, or mnft in the user's cache folder),
    `off` decodes in every epoch, or the path of a folder for them. A run without it trains on the
    same batches bit for bit; only a GPU that holds stored images rounds pixels differently."""
    store_limit_gb: Positive = 20.0
    """Largest size of that folder in gigabytes; the files used longest ago make room, and images
    that would not fit are decoded in every epoch, which is slower and changes nothing else."""


class AugmentConfig(Section):
    """How training images are varied; evaluation images never are."""

    scale: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.35, 1.0]
    """Smallest and largest share of the image's area that RandomResizedCrop keeps. ImageNet
    training uses [0.08, 1.0]; fine-tuning on few images wants the milder default."""
    ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [0.75, 1.3333333333333333]
    """Smallest and largest aspect ratio of that crop."""
    hflip: Share = 0.5
    """Probability of a left-right flip; 0 where left and right differ in meaning (digits, text)."""
    vflip: Share = 0.0
    """Probability of an upside-down flip."""
    color_jitter: NotNegative = 0.0
    """Strength of random brightness, contrast and saturation (0.4 is usual)."""
    policy: Literal["none", "rand_augment", "trivial_augment", "aug_mix"] = "none"
    """Automatic augmentation policy of torchvision: RandAugment, TrivialAugmentWide or AugMix."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of RandAugment's operations, 0 to 30 (AugMix: a third of it, at most 10)."""
    random_erasing: Share = 0.0
    """Probability that a random rectangle is replaced by the mean colour."""
    mixup: NotNegative = 0.0
    """Alpha of mixup, which blends pairs of images and targets (0.2 is usual); 0 is off."""
    cutmix: NotNegative = 0.0
    """Alpha of cutmix, which pastes a rectangle of another image (1.0 is usual); 0 is off. With
    mixup as well, each batch takes one of the two at random."""

    @field_validator("scale", "ratio")
    @classmethod
    def _ordered(cls, value: list[float]) -> list[float]:
        if value[0] > value[1]:
            raise ValueError(f"found {value}, expected the smaller value first")
        return value

    @field_validator("scale")
    @classmethod
    def _not_empty(cls, value: list[float]) -> list[float]:
        if value[1] == 0:
            raise ValueError(f"found {value}, the largest share must be above 0")
        return value


class ModelConfig(Section):
    """Which network, from which weights, and which part of it learns."""

    name: str = "mobilenetv2_100"
    """Any name that timm.create_model takes (`mnft models` lists them), `hf-hub:ORG/NAME`, or
    `local-dir:PATH` for a model folder."""
    pretrained: bool | str = True
    """`true` for the weights that belong to the name (downloaded or from its folder), `false` for
    random weights, or the path of a weights file (.safetensors, or a state dict of torch)."""
    freeze: Literal["none", "backbone"] | Annotated[int, Field(ge=1)] = "none"
    """What stays as it is: `none`, `backbone` (all but the classifier), or the number of leading
    groups (1 is the stem, 2 the stem and the first stage, and so on). Frozen BatchNorm keeps its
    statistics."""
    freeze_batchnorm: bool = False
    """BatchNorm layers keep the statistics that they were loaded with, and use them in training
    too; their scales and shifts still learn."""
    in_chans: Literal[1, 3] = 3
    """Channels of the input: 3 is RGB, 1 turns the images grey."""
    drop_rate: Fraction | None = None
    """Dropout before the classifier; empty: the model's own."""
    drop_path_rate: Fraction | None = None
    """Stochastic depth; empty: the model's own."""
    kwargs: dict[str, Any] = {}
    """Further keyword arguments for timm.create_model, saved with the model."""


class OptimConfig(Section):
    """The optimizer, built by timm's create_optimizer_v2."""

    name: str = "adam"
    """Any optimizer of timm (timm.optim.list_optimizers()): adam, adamw, sgd, rmsprop, lamb..."""
    lr: Positive = 1e-3
    """Learning rate that warmup leads up to and the schedule starts from. The epochs of warmup are
    part of the schedule: `cosine` and `poly` have already begun to fall when it ends."""
    weight_decay: NotNegative = 0.0
    """Weight decay; never on biases and normalisation layers."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Momentum, for the optimizers that have one."""
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] | None = None
    """Adam's two decay rates; empty: the optimizer's own."""
    eps: Positive | None = None
    """Adam's epsilon; empty: the optimizer's own."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Layer-wise learning rate decay: each group of layers learns this factor slower than the one
    above it (0.75 is usual for fine-tuning); empty: one rate for all."""


class ScheduleConfig(Section):
    """The learning rate over the epochs, built by timm's create_scheduler_v2."""

    name: Literal["none", "cosine", "step", "multistep", "poly", "plateau"] = "none"
    """Shape of the schedule after warmup; `none` keeps the rate."""
    warmup_epochs: NotNegative = 0.0
    """Epochs of linear warmup, the first of train.epochs; schedules and milestones count them."""
    warmup_lr: NotNegative = 1e-6
    """Learning rate that warmup starts from."""
    min_lr: NotNegative = 0.0
    """Learning rate that cosine, poly and plateau do not go below."""
    decay_epochs: Positive = 10.0
    """Epochs between the decays of `step`."""
    decay_milestones: list[Annotated[int, Field(ge=1)]] = [30, 60, 90]
    """Epochs after which `multistep` decays."""
    decay_rate: Positive = 0.1
    """Factor of `step`, `multistep` and `plateau`; the power of `poly`."""
    patience_epochs: Annotated[int, Field(ge=0)] = 5
    """Epochs without improvement of eval.monitor before `plateau` decays."""


class TrainConfig(Section):
    """The training loop."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Passes over the training images."""
    stages: Annotated[list[Literal["head", "finetune"]], Field(min_length=1)] | None = None
    """What is trained one after the other: `head` fits the classifier to features of the frozen
    backbone, which are computed once; `finetune` trains all that model.freeze leaves, for
    train.epochs. Empty: what the recipe chooses."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 32
    """Images that make one update: the total over all processes and accumulated parts. `auto`
    takes a size by the number of images, as large as the device's memory allows."""
    accumulation_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Parts that a process cuts its batch into to save memory; the gradient stays that of the whole
    batch. `auto` does so only on the CPU if BatchNorm is fixed and a batch would keep over 3 GB."""
    label_smoothing: Fraction = 0.0
    """Share of each target that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs the loss of each class by the inverse of its number of images."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """`balanced` draws every class equally often; `shuffle` takes every image once an epoch."""
    clip_grad: Positive | None = None
    """Largest norm of the gradient; a longer one is scaled down to it."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of training: `auto` takes bf16 where the processor has it natively, fp16 with a
    loss scaler on older GPUs, and else fp32. Weights are always kept in fp32."""
    channels_last: bool = True
    """Keep images and weights in the channels-last layout, which convolutions run faster in."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the model with torch.compile; `auto` does it on a GPU where the run is long enough to
    repay the minute that it takes. Where compiling fails, a warning says why and the run goes on
    without it."""
    start_size: Annotated[float, Field(gt=0.25, le=1.0)] = 1.0
    """Progressive resizing: side of the images in the first epoch as a share of data.img_size; it
    grows evenly and is whole in the last third of the epochs. Smaller images train faster."""
    deterministic: bool = False
    """Use deterministic algorithms alone, so that a GPU repeats a run bit for bit; slower there.
    The CPU does so anyway, with the same number of threads, which this fixes too."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Keep an exponential moving average of the weights with this decay (reached gradually), and
    evaluate and save the average; empty: off."""
    early_stopping: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many epochs without improvement of eval.monitor; empty: never."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initial weights, order and augmentation."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Threads that compute on the CPU. `auto` takes all cores, and fewer in epochs that begin while
    other processes disturb them; OMP_NUM_THREADS or train.deterministic fixes the number. Results
    are the same to the last bit for the same number only."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes a GPU when there is one."""

    @field_validator("stages")
    @classmethod
    def _stages_in_order(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and value not in (["head"], ["finetune"], ["head", "finetune"]):
            shown = f"[{', '.join(value)}]"
            raise ValueError(f"found {shown}, expected [head], [finetune] or [head, finetune]")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        steps = self.accumulation_steps
        if "auto" not in (self.batch_size, steps) and int(steps) > int(self.batch_size):
            limit = f"at most train.batch_size ({self.batch_size})"
            raise ValueError(f"train.accumulation_steps: found {steps}, expected {limit}")
        return self


class DistillConfig(Section):
    """Learning from a larger model as well as from the labels (Hinton, Vinyals, Dean 2015)."""

    teacher: str | None = None
    """A run or model folder that knows the same classes, or a name as in model.name, whose head is
    then fitted to the training images first; empty: no distillation."""
    temperature: Positive = 2.0
    """Divides the logits of both before they are compared; above 1 shows more of what the teacher
    holds for possible."""
    weight: Share = 0.5
    """Share of the loss that compares with the teacher; the rest is the cross-entropy."""


class EvalConfig(Section):
    """How models are judged, in training and by `mnft eval`."""

    monitor: Literal["accuracy", "macro_f1", "loss"] = "accuracy"
    """Figure on the val split that chooses the best epoch, early stopping and plateau. Of epochs
    with the same figure the one with the lowest loss is the best, of equal losses the later one."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Images in one evaluation batch of a process; does not change the result. `auto` takes 64, and
    up to 256 where a GPU evaluates stored images. On the CPU they go through the model in parts
    with the pixels of 32 images of 224 x 224."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of evaluation; fp32 is what the saved model gives elsewhere (to the precision of
    TF32 on GPUs, whose convolutions use it unless torch is told otherwise)."""


class RunConfig(Section):
    """What a run writes, and where."""

    dir: str = "runs"
    """Folder that run folders go to."""
    name: str | None = None
    """Name of the run folder; empty: the config file's name, numbered if it is taken. A name that
    is written here and is taken is an error: nothing is overwritten."""
    snapshot_minutes: Positive | None = 10.0
    """Minutes between two saved states within an epoch, so that a long epoch is not lost; the end
    of each epoch is saved anyway, together with the next one's where an epoch takes less than five
    seconds. Empty: none. Several processes save whole epochs only."""
    tensorboard: bool | None = None
    """Write TensorBoard event files; empty: when the `log` extra is installed."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and (not value or value in {".", ".."} or "/" in value):
            raise ValueError(f"found {value!r}, expected a folder name without slashes")
        return value


class Config(Section):
    """A whole run."""

    recipe: Literal["auto", "plain"] = "auto"
    """`auto` chooses what you do not write, by the model and the number of images, and says why:
    for pretrained models the stages, learning rates by layer, schedule, averaging, augmentation.
    `plain` is Adam and cross-entropy with the defaults below, as in textbooks; so is `auto` for
    random weights."""
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    eval: EvalConfig = EvalConfig()
    export: ExportConfig = ExportConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    prune: PruneConfig = PruneConfig()
    run: RunConfig = RunConfig()

    # The message of a rule over several keys opens with the key that is to blame: `load` takes
    # the line from it.

    @model_validator(mode="after")
    def _warmup_fits(self) -> Config:
        if self.schedule.warmup_epochs >= self.train.epochs and self.schedule.warmup_epochs > 0:
            raise ValueError(
                f"schedule.warmup_epochs: found {self.schedule.warmup_epochs:g}, expected less "
                f"than train.epochs ({self.train.epochs})"
            )
        return self

    @model_validator(mode="after")
    def _statistics_fit(self) -> Config:
        for key, value in (("mean", self.data.mean), ("std", self.data.std)):
            if value is not None and len(value) not in {1, self.model.in_chans}:
                raise ValueError(
                    f"data.{key}: found {len(value)} values, expected one for each of the "
                    f"{self.model.in_chans} channels, or one for all"
                )
        return self
