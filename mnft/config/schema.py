"""The typed config: every section and key with its default, range and meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from mnft.config.data import DataConfig
from mnft.config.decision import DecisionConfig
from mnft.config.edge import ExportConfig, PruneConfig, QuantizeConfig
from mnft.config.evaluation import MONITORS, EvalConfig, choose_monitor
from mnft.config.multilabel import MultilabelConfig
from mnft.config.run import RunConfig
from mnft.config.search import SearchConfig
from mnft.config.section import NotNegative, Positive, Section, UnitInterval, UnitIntervalOpen


class AugmentConfig(Section):
    """Augmentation of training images; evaluation images are never augmented."""

    scale: Annotated[list[UnitInterval], Field(min_length=2, max_length=2)] = [0.35, 1.0]
    """Smallest and largest fraction of the image's area that RandomResizedCrop keeps. ImageNet
    training uses [0.08, 1.0]; fine-tuning on few images works better with the milder default."""
    ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [0.75, 1.3333333333333333]
    """Smallest and largest aspect ratio of that crop."""
    hflip: UnitInterval = 0.5
    """Probability of a left-right flip; 0 if mirrored images mean something else (digits, text)."""
    vflip: UnitInterval = 0.0
    """Probability of an upside-down flip."""
    color_jitter: NotNegative = 0.0
    """Strength of random changes of brightness, contrast and saturation (0.4 is common)."""
    policy: Literal["none", "rand_augment", "trivial_augment", "aug_mix"] = "none"
    """Automatic augmentation policy of torchvision: RandAugment, TrivialAugmentWide or AugMix."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of RandAugment's operations, 0 to 30. AugMix uses a third of it, at most 10."""
    random_erasing: UnitInterval = 0.0
    """Probability that a random rectangle is replaced by the mean colour."""
    device: UnitInterval = 0.0
    """Probability that an image gets one or two random corruptions of `mnft eval --robustness`
    (blur, noise, JPEG, darkness, warm light, distance...), from nothing up to strong. It pays
    where a device's images are worse than those to train on; 0 is off."""
    mixup: NotNegative = 0.0
    """Alpha of mixup, which blends pairs of images and targets (0.2 is common); 0 is off."""
    cutmix: NotNegative = 0.0
    """Alpha of cutmix, which pastes a rectangle of another image (1.0 is common); 0 is off. If
    mixup is on too, each batch uses one of the two at random."""

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
            raise ValueError(f"found {value}, the largest fraction must be above 0")
        return value


class ModelConfig(Section):
    """The network, its initial weights, and which part of it is trained."""

    name: str = "mobilenetv2_100"
    """A name that timm.create_model takes (`mnft models` lists them), `hf-hub:ORG/NAME`, or
    `local-dir:PATH` for a model folder."""
    pretrained: bool | str = True
    """`true` for the weights that belong to the name (downloaded, or from its folder), `false` for
    random weights, or the path of a weights file (safetensors, or a torch state dict)."""
    freeze: Literal["none", "backbone"] | Annotated[int, Field(ge=1)] = "none"
    """What is not trained: `none`, `backbone` (everything except the classifier), or the number of
    leading groups (1 is the stem, 2 the stem and the first stage, and so on). Frozen BatchNorm
    layers keep their statistics."""
    freeze_batchnorm: bool = False
    """Keep the statistics of all BatchNorm layers, also in training. Scales and shifts still
    learn."""
    in_chans: Literal[1, 3] = 3
    """Input channels: 3 is RGB, 1 converts the images to grey."""
    drop_rate: UnitIntervalOpen | None = None
    """Dropout before the classifier. Empty: the model's own."""
    drop_path_rate: UnitIntervalOpen | None = None
    """Rate of stochastic depth. Empty: the model's own."""
    kwargs: dict[str, Any] = {}
    """More keyword arguments for timm.create_model; they are saved with the model."""


class OptimConfig(Section):
    """The optimizer, built by timm's create_optimizer_v2."""

    name: str = "adam"
    """Any optimizer of timm (timm.optim.list_optimizers()): adam, adamw, sgd, rmsprop, lamb..."""
    lr: Positive = 1e-3
    """Learning rate at the end of warmup, from which the schedule starts. Warmup epochs count as
    part of the schedule, so `cosine` and `poly` have already fallen a little when it ends."""
    weight_decay: NotNegative = 0.0
    """Weight decay; biases and normalisation layers have none."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Momentum, for optimizers that have one."""
    betas: Annotated[list[UnitIntervalOpen], Field(min_length=2, max_length=2)] | None = None
    """Adam's two decay rates. Empty: the optimizer's own."""
    eps: Positive | None = None
    """Adam's epsilon. Empty: the optimizer's own."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Layer-wise learning rate decay: the rate of each group of layers is that of the group above
    it times this factor (0.75 is common for fine-tuning). Empty: one rate for all layers."""


class ScheduleConfig(Section):
    """The learning rate over the epochs, built by timm's create_scheduler_v2."""

    name: Literal["none", "cosine", "step", "multistep", "poly", "plateau"] = "none"
    """Shape of the schedule after warmup; `none` keeps the learning rate."""
    warmup_epochs: NotNegative = 0.0
    """Epochs of linear warmup, the first of train.epochs; schedules and milestones count them."""
    warmup_lr: NotNegative = 1e-6
    """Learning rate that warmup starts from."""
    min_lr: NotNegative = 0.0
    """Smallest learning rate of cosine, poly and plateau."""
    decay_epochs: Positive = 10.0
    """Epochs between two decays of `step`."""
    decay_milestones: list[Annotated[int, Field(ge=1)]] = [30, 60, 90]
    """Epochs after which `multistep` decays."""
    decay_rate: Positive = 0.1
    """Decay factor of `step`, `multistep` and `plateau`; exponent of `poly`."""
    patience_epochs: Annotated[int, Field(ge=0)] = 5
    """Epochs without improvement of eval.monitor before `plateau` decays."""


class TrainConfig(Section):
    """The training loop."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Number of epochs. Each ends with an evaluation."""
    passes: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Passes over the training images in an epoch. With few images, more than one saves the time of
    evaluations: an epoch of a hundred images is over before four hundred others are evaluated."""
    stages: (
        Annotated[list[Literal["head", "finetune", "interpolate"]], Field(min_length=1)] | None
    ) = None
    """Stages of training, in order. `head` fits the classifier to features of the frozen backbone,
    which are computed once; `finetune` trains everything that model.freeze leaves free, for
    train.epochs; `interpolate` tries weights between those after `head` and those after `finetune`,
    and keeps those with the smallest val loss, after calibration. Empty: the recipe chooses."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 32
    """Images per update: the total over all processes and accumulated parts. `auto` chooses by the
    number of images, within the memory of the device."""
    accumulation_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of parts that each process splits its batch into to save memory; the gradient is still
    that of the whole batch. `auto` splits only on the CPU, if BatchNorm is fixed and a batch would
    keep over 3 GB."""
    label_smoothing: UnitIntervalOpen = 0.0
    """Fraction of each target that is spread over all classes; with task: multilabel, by which each
    target moves from 0 or 1 towards 0.5."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weights the loss of each class by the inverse of its number of images. With task:
    multilabel a present label weighs as often as its absence is more frequent, at most 10 times."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """`balanced` draws every class equally often, or with task: multilabel each image as often as
    its rarest label asks; `shuffle` uses every image once per epoch."""
    clip_grad: Positive | None = None
    """Largest norm of the gradient; longer gradients are scaled down to it. Empty: no limit."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of training. `auto` uses bf16 if the processor supports it natively, fp16 with a
    loss scaler on older GPUs, and otherwise fp32. Weights are always kept in fp32."""
    channels_last: bool = True
    """Use the channels-last memory layout, in which convolutions run faster."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the model with torch.compile. `auto` does it on a GPU if the run is long enough to
    make up for the minute that it takes. If compiling fails, the run continues without it, with a
    warning."""
    start_size: Annotated[float, Field(gt=0.25, le=1.0)] = 1.0
    """Progressive resizing, which saves time: side of the images in the first epoch as a fraction
    of data.img_size. It grows steadily and reaches full size for the last third of the epochs."""
    deterministic: bool = False
    """Use only deterministic algorithms, so that a GPU repeats a run bit for bit, more slowly. A
    CPU does so anyway with the same number of threads, which this key fixes."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of an exponential moving average of the weights, reached gradually. The average is what
    is evaluated and saved. Empty: no average."""
    early_stopping: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many epochs without improvement of eval.monitor. Empty: never."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initial weights, image order and augmentation."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Number of CPU threads. `auto` uses all cores, but fewer in epochs that start while other
    processes slow them down; OMP_NUM_THREADS or train.deterministic fixes the number. Results are
    bit-identical only for the same number of threads."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`; `auto` uses a GPU if there is one."""

    @field_validator("stages")
    @classmethod
    def _stages_in_order(cls, value: list[str] | None) -> list[str] | None:
        every = ["head", "finetune", "interpolate"]
        if value is not None and value not in (every[:1], every[1:2], every[:2], every):
            raise ValueError(
                f"found [{', '.join(value)}], expected [head], [finetune], [head, finetune] or "
                "[head, finetune, interpolate]"
            )
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        steps = self.accumulation_steps
        if "auto" not in (self.batch_size, steps) and int(steps) > int(self.batch_size):
            limit = f"at most train.batch_size ({self.batch_size})"
            raise ValueError(f"train.accumulation_steps: found {steps}, expected {limit}")
        return self


class DistillConfig(Section):
    """Distillation: learning from larger models and the labels (Hinton, Vinyals, Dean 2015)."""

    teacher: str | Annotated[list[str], Field(min_length=1)] | None = None
    """A run or model folder with the same classes, or a name as in model.name, whose model first
    gets a head fitted to the training images. The probabilities of several are averaged. Empty: no
    distillation."""
    images: str | None = None
    """A folder of images without labels, with or without folders in it, from which the student
    learns what the teacher says of them. They are used for nothing else."""
    temperature: Positive = 2.0
    """Both models' logits are divided by this before they are compared. Values above 1 show more of
    how the teacher ranks the other classes."""
    weight: UnitInterval = 0.5
    """Weight of the comparison with the teacher in the loss; the rest is the loss on the labels."""

    @property
    def teachers(self) -> list[str]:
        """The teachers; none where there is no distillation."""
        return [self.teacher] if isinstance(self.teacher, str) else self.teacher or []

    @field_validator("teacher")
    @classmethod
    def _teachers_differ(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(set(value)) < len(value):
            twice = next(name for name in value if value.count(name) > 1)
            raise ValueError(f"found {twice} twice, expected different teachers")
        return value


class Config(Section):
    """The whole config of a run."""

    task: Literal["classify", "multilabel"] = "classify"
    """What the model gives each image: `classify` one class, `multilabel` any number of labels."""
    recipe: Literal["auto", "plain"] = "auto"
    """`auto` chooses the keys that you leave out, by the model and the number of images, and says
    why. For pretrained models these are the stages, learning rates per layer, schedule, weight
    averaging and augmentation. `plain` is Adam and cross-entropy with the defaults below, as in
    textbooks; for random weights, so is `auto`."""
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    multilabel: MultilabelConfig = MultilabelConfig()
    decision: DecisionConfig = DecisionConfig()
    distill: DistillConfig = DistillConfig()
    eval: EvalConfig = EvalConfig()
    export: ExportConfig = ExportConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    prune: PruneConfig = PruneConfig()
    search: SearchConfig = SearchConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="before")
    @classmethod
    def _choose_monitor(cls, values: Any) -> Any:
        return choose_monitor(values)

    @model_serializer(mode="wrap")
    def _without_other_tasks(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        values.pop("multilabel" if self.task != "multilabel" else "decision", None)
        return values

    # The message of a rule over several keys starts with the key to blame; `load` finds the line
    # by it.

    @model_validator(mode="after")
    def _task_fits(self) -> Config:
        if self.eval.monitor not in (known := MONITORS[self.task]):
            raise ValueError(
                f"eval.monitor: found {self.eval.monitor}, expected one of {', '.join(known)} with "
                f"task: {self.task}"
            )
        if self.task != "multilabel" and self.multilabel != MultilabelConfig():
            raise ValueError(f"multilabel: found with task: {self.task}, expected task: multilabel")
        if self.task == "multilabel" and self.decision != DecisionConfig():
            raise ValueError(
                "decision: found with task: multilabel, whose labels have thresholds of their own "
                "(multilabel.threshold); expected task: classify"
            )
        if self.task == "multilabel" and self.data.other is not None:
            raise ValueError(
                "data.other: found with task: multilabel, where an image of nothing is one without "
                "labels: a row of the table with an empty cell; expected task: classify"
            )
        return self

    @model_validator(mode="after")
    def _unlabelled_images_have_a_teacher(self) -> Config:
        if self.distill.images is not None and self.distill.teacher is None:
            raise ValueError(
                f"distill.images: found {self.distill.images}, but no distill.teacher that could "
                "say what they show"
            )
        return self

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
