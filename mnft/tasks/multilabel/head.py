"""The losses of a multi-label classifier, and how far it is from a teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mnft.config.multilabel import MultilabelConfig
from mnft.config.schema import TrainConfig
from mnft.data.manifest import Sample
from mnft.tasks.multilabel.targets import encode

# Largest weight of a present label, and the inverse of the smallest. A label that one image in a
# thousand has would otherwise let this image decide every batch that it is in; and thresholds,
# which are chosen afterwards, make up for what the limit takes away.
MAX_POS_WEIGHT = 10.0
_SMALLEST = 1e-8  # keeps the derivative of a power finite at 0


class MultilabelLoss:
    """Binary cross-entropy or asymmetric loss, summed over the labels and over the batch.

    A sum over labels, not a mean: each logit then has the gradient that it would have if its label
    were the only one, sigmoid(logit) - target, however many labels there are. The whole gradient is
    then near that of cross-entropy, so learning rates and `train.clip_grad` mean about what they
    mean for one class an image: on random features with 40 labels, each of a tenth of the images,
    and biases that are learned already, it is 1.9 times as long, and that of a mean 21 times
    shorter. (Adam, which the recipe takes, divides by the size of the gradient and is right with
    both.)

    Unknown labels (NaN) add nothing, and the others of the same image weigh no more for it: what
    is known of an image is the same evidence, whatever else is not known.

    The asymmetric loss is that of Ridnik et al., 2021, "Asymmetric Loss For Multi-Label
    Classification", ICCV, equations 4 to 7. With p = sigmoid(logit) and p_m = max(p - clip, 0) it
    is -(1 - p)^gamma_pos log(p) for present and -p_m^gamma_neg log(1 - p_m) for absent labels;
    targets between 0 and 1 weigh the two.

    Args:
        config: the kind of loss, with its exponents.
        label_smoothing: fraction by which each target moves from 0 or 1 towards 0.5.
        pos_weight: (K,) weight of the loss of present labels, or None.
    """

    def __init__(
        self,
        config: MultilabelConfig,
        label_smoothing: float = 0.0,
        pos_weight: Tensor | None = None,
    ) -> None:
        self._config = config
        self._smoothing = label_smoothing
        self._pos_weight = pos_weight

    def __call__(self, logits: Tensor, targets: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The summed loss.

        Args:
            logits: (B, K) float.
            targets: (B, K) float in [0, 1], NaN where a label is unknown.
            images: not used; other losses look at them.
        """
        return self.compute_cells(logits, targets).sum()

    def compute_cells(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each label of each image, 0 where it is unknown.

        Args:
            logits: (..., K) float.
            targets: (..., K) float in [0, 1], NaN where a label is unknown.
        """
        logits = logits.float()
        known = ~targets.isnan()
        # A NaN would reach the gradient even where it is multiplied by 0, so it is replaced first.
        present = torch.where(known, targets, 0.5) * (1 - self._smoothing) + self._smoothing / 2
        absent = 1 - present
        if self._pos_weight is not None:
            present = present * self._pos_weight
        if self._config.loss == "bce":
            losses = -present * F.logsigmoid(logits) - absent * F.logsigmoid(-logits)
        else:
            losses = self._asymmetric(logits, present, absent)
        return torch.where(known, losses, 0.0)

    def _asymmetric(self, logits: Tensor, present: Tensor, absent: Tensor) -> Tensor:
        config = self._config
        shifted = (torch.sigmoid(logits) - config.clip).clamp(min=_SMALLEST)
        # Without a shift the logarithm of 1 - p is exact also where p is rounded to 1.
        log_not = torch.log1p(-shifted) if config.clip else F.logsigmoid(-logits)
        missed = torch.sigmoid(-logits).clamp(min=_SMALLEST) ** config.gamma_pos
        recognised = absent * shifted**config.gamma_neg
        return -present * missed * F.logsigmoid(logits) - recognised * log_not


def compute_pos_weight(targets: Tensor) -> Tensor:
    """How much a present label weighs so that it counts as much as its absence in all images.

    Args:
        targets: (N, K) float: 1, 0 or NaN.

    Returns:
        (K,) float: absences divided by presences, from 1 / MAX_POS_WEIGHT to MAX_POS_WEIGHT.
    """
    present, absent = (targets == 1).sum(0), (targets == 0).sum(0)
    weights = absent / present.clamp(min=1)
    return weights.clamp(1 / MAX_POS_WEIGHT, MAX_POS_WEIGHT)


def build_loss(
    config: TrainConfig,
    samples: Sequence[Sample],
    device: torch.device,
    *,
    labels: tuple[str, ...],
    own: MultilabelConfig,
) -> MultilabelLoss:
    """The loss of a training.

    Args:
        config: the `train` section.
        samples: the training images.
        device: where the loss is computed.
        labels: K names, in the order of the outputs.
        own: the `multilabel` section.
    """
    weights = None
    if config.class_weights == "balanced":
        weights = compute_pos_weight(torch.tensor(encode(samples, labels))).to(device)
    return MultilabelLoss(own, config.label_smoothing, weights)


def compute_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(sigmoid(teacher) || sigmoid(student)) of each label, summed; a scalar.

    A distribution of two outcomes for each label in place of one over all is as in Yang et al.,
    2023, "Multi-Label Knowledge Distillation", ICCV. Labels that are unknown for an image are
    compared too, because the teacher says something of all.

    Args:
        teacher: (B, K) float logits.
        student: (B, K) float logits.
    """
    probabilities = torch.sigmoid(teacher)
    divergences = probabilities * (F.logsigmoid(teacher) - F.logsigmoid(student))
    divergences += (1 - probabilities) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return divergences.sum()


def average_probabilities(teachers: Tensor) -> Tensor:
    """Logits whose sigmoid is the mean of the teachers' probabilities of each label.

    Args:
        teachers: (T, B, K) float logits.

    Returns:
        (B, K) float logits.
    """
    present, absent = (torch.logsumexp(F.logsigmoid(z), dim=0) for z in (teachers, -teachers))
    return present - absent
