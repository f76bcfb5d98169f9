"""Optimizer and learning rate schedule, through timm and torch."""

from __future__ import annotations

import difflib
from contextlib import suppress
from typing import Any

import timm.optim
import torch
from timm.scheduler import create_scheduler_v2
from torch import nn

from mnft.config.schema import OptimConfig, ScheduleConfig
from mnft.errors import ConfigError

# timm's names for those optimizers of torch that have a fused implementation.
_FUSED = {"adam", "adamw", "sgd", "nesterov", "momentum", "adagrad"}


def check_optimizer_name(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        ConfigError: the name is unknown; the hint suggests a similar one.
    """
    known = timm.optim.list_optimizers()
    if name.lower() not in known:
        close = difflib.get_close_matches(name.lower(), known, 1)
        raise ConfigError(
            f"found {name!r}, expected an optimizer of timm such as adam, adamw or sgd",
            hint=f"did you mean {close[0]}?" if close else None,
            key="optim.name",
        )


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Create the optimizer of the parameters that learn; biases and norms get no weight decay.

    Where torch has a fused implementation, one kernel updates all parameters.

    Raises:
        ConfigError: unknown name, or options that this optimizer does not have.
    """
    check_optimizer_name(config.name)
    options: dict[str, Any] = {
        "opt": config.name,
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "momentum": config.momentum,
        "layer_decay": config.layer_decay,
    }
    if config.betas is not None:
        options["betas"] = tuple(config.betas)
    if config.eps is not None:
        options["eps"] = config.eps
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    may_fuse = config.name.lower() in _FUSED and all(
        p.is_floating_point() and p.device.type in {"cpu", "cuda"} for p in learning
    )
    optimizer: torch.optim.Optimizer | None = None
    try:
        if may_fuse:
            # It may still be missing for this device or these options.
            with suppress(TypeError, ValueError, RuntimeError):
                optimizer = timm.optim.create_optimizer_v2(model, fused=True, **options)
        if optimizer is None:
            optimizer = timm.optim.create_optimizer_v2(model, **options)
    except (TypeError, ValueError, ImportError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"{config.name} cannot be built: {error}", key="optim.name") from error
    if getattr(optimizer, "is_second_order", False):
        raise ConfigError(
            f"{config.name} needs second derivatives, which the training loop does not compute",
            key="optim.name",
        )
    return optimizer


class Schedule:
    """Sets the learning rate by the number of updates; for plateau, by the metric.

    Args:
        optimizer: optimizer whose rates are set.
        config: the `schedule` section.
        epochs: number of epochs of the whole training.
        updates_per_epoch: number of optimizer updates in an epoch.
        mode: "max" if a higher metric is better, or "min"; for plateau.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        config: ScheduleConfig,
        *,
        epochs: int,
        updates_per_epoch: int,
        mode: str,
    ) -> None:
        self._optimizer = optimizer
        self._plateau = None
        if config.name == "plateau":
            self._plateau = _Plateau(optimizer, config, updates_per_epoch, mode)
            return
        # "none" is a step schedule that never decays: unlike timm's "none" it applies warmup and
        # the factors of layer-wise decay.
        constant = config.name == "none"
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="step" if constant else config.name,
            num_epochs=epochs,
            decay_epochs=epochs + 1 if constant else config.decay_epochs,
            # timm decays one update before its milestone; half an update more fixes that.
            decay_milestones=[m + 0.5 / updates_per_epoch for m in config.decay_milestones],
            decay_rate=1.0 if constant else config.decay_rate,
            min_lr=config.min_lr,
            warmup_lr=config.warmup_lr,
            warmup_epochs=config.warmup_epochs,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )

    @property
    def lr(self) -> float:
        """The highest learning rate of the parameter groups."""
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    def after_update(self, num_updates: int) -> None:
        """Set the rate of the next update."""
        if self._plateau:
            self._plateau.after_update(num_updates)
        else:
            self._scheduler.step_update(num_updates=num_updates)

    def after_epoch(self, epoch: int, metric: float) -> None:
        """Set the rate of the next epoch, if the schedule is plateau."""
        if self._plateau:
            self._plateau.after_epoch(epoch, metric)

    def state_dict(self) -> dict[str, Any]:
        """The state of plateau; all other schedules depend only on the number of updates."""
        return dict(self._plateau.inner.state_dict()) if self._plateau else {}

    def load_state_dict(self, state: dict[str, Any], num_updates: int) -> None:
        """Resume after `num_updates` updates; the optimizer already has its rates."""
        if self._plateau:
            self._plateau.inner.load_state_dict(state)
        self.after_update(num_updates)


class _Plateau:
    """torch's ReduceLROnPlateau after a linear warmup; timm's is deprecated and cannot resume."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        config: ScheduleConfig,
        updates_per_epoch: int,
        mode: str,
    ) -> None:
        # Not its `param_groups`, which `Optimizer.load_state_dict` replaces on resume.
        self._optimizer = optimizer
        self._config = config
        self._warmup_updates = config.warmup_epochs * updates_per_epoch
        for group in optimizer.param_groups:
            # `lr_scale` is the factor of layer-wise decay.
            group["lr"] *= group.get("lr_scale", 1.0)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        if config.decay_rate >= 1:
            raise ConfigError(
                f"found {config.decay_rate:g}, expected a factor below 1 for plateau",
                key="schedule.decay_rate",
            )
        self.inner = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            mode="min" if mode == "min" else "max",
            factor=config.decay_rate,
            patience=config.patience_epochs,
            min_lr=config.min_lr,
        )
        self.after_update(0)

    def after_update(self, num_updates: int) -> None:
        """Set the rates of warmup; later rates stay as they are."""
        groups, start = self._optimizer.param_groups, self._config.warmup_lr
        if num_updates < self._warmup_updates:
            fraction = num_updates / self._warmup_updates
            for group, rate in zip(groups, self._rates, strict=True):
                low = start * group.get("lr_scale", 1.0)
                group["lr"] = low + fraction * (rate - low)
        elif num_updates < self._warmup_updates + 1:
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"] = rate

    def after_epoch(self, epoch: int, metric: float) -> None:
        """Decay when the metric has not improved for long enough; warmup does not count."""
        if epoch > self._config.warmup_epochs:
            self.inner.step(metric)
