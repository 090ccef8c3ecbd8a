"""The training loop. A checkpoint is weights, optimizer, scheduler, step and sums; all else is a function of these."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hypimg.data.resident import ResidentImages
from hypimg.errors import Stopped, UserError
from hypimg.training.checkpoint import Checkpoints
from hypimg.training.diagnosis import explain_nondeterminism, first_non_finite, non_finite_error
from hypimg.training.loggers import Row
from hypimg.training.preemption import StopRequest

# On a GPU, looking at the loss waits for the device; on a CPU it is free and done at every step.
STEPS_BETWEEN_CHECKS = {"cpu": 1, "cuda": 100}


@dataclass(frozen=True)
class Machine:
    """Where and how fast a run is computed; none of it is meant to change the result."""

    device: str = "cpu"
    compile: bool = False
    deterministic: bool = False
    checkpoint_seconds: float = 60.0


class Trainer:
    """Trains one model for a number of epochs; stopped at any step, it goes on to the same bits.

    epochs: passes over the training images, ≥ 1.  val_fraction: share of them that is split off for validation.
    select: `best` keeps the weights of the epoch with the highest validation accuracy, `last` those of the last epoch.
    precision: a name of Lightning Fabric's (32-true, bf16-mixed, …).  gradient_clip: largest norm of the gradient.
    """

    def __init__(
        self,
        epochs: int,
        val_fraction: float = 0.1,
        select: str = "best",
        precision: str = "32-true",
        gradient_clip: float | None = None,
        *,
        seed: int,
        machine: Machine,
    ):
        if not isinstance(epochs, int) or epochs < 1:
            raise UserError("trainer.epochs", epochs, "must be a whole number ≥ 1")
        if select not in {"best", "last"}:
            raise UserError("trainer.select", select, "must be best or last")
        if not 0 <= val_fraction < 1 or (val_fraction == 0 and select == "best"):
            raise UserError("trainer.val_fraction", val_fraction, "must lie in (0, 1); 0 needs trainer.select=last")
        if gradient_clip is not None and not gradient_clip > 0:
            raise UserError("trainer.gradient_clip", gradient_clip, "must be > 0, or null for no clipping")
        self.epochs, self.val_fraction, self.select = epochs, val_fraction, select
        self.precision, self.gradient_clip, self.seed, self.machine = precision, gradient_clip, seed, machine

    def fit(
        self,
        model: nn.Module,
        train: ResidentImages,
        val: ResidentImages | None,
        objective: Any,
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        make_scheduler: Callable[[torch.optim.Optimizer], Any],
        checkpoints: Checkpoints,
        loggers: list[Any],
        make_progress: Callable[[int, int, int], Any],
        stop: StopRequest,
    ) -> dict[str, Any]:
        """Train from where the checkpoints stand to the end; leaves `last.pt` (and `best.pt`).

        loggers: objects with resume(closed epochs) and epoch(row).  make_progress: (epochs, steps per epoch, steps
        done) → an object with step(), epoch(row), close().  Returns {"epoch", "value"} of the selected epoch.
        Raises NonFiniteError (last good checkpoint kept) and Stopped (after saving).
        """
        loop = _Loop(self, model, train, val, objective, make_optimizer, make_scheduler, checkpoints, stop)
        loop.resume()
        for logger in loggers:
            logger.resume(loop.closed)
        progress = make_progress(self.epochs, loop.per_epoch, loop.step)
        try:
            while loop.closed < self.epochs:
                loop.leave_if_asked()
                if loop.step == (loop.closed + 1) * loop.per_epoch:
                    row = loop.close_epoch()
                    for logger in (*loggers, progress):
                        logger.epoch(row)
                    loop.save()
                else:
                    loop.train_step()
                    progress.step()
                    if time.monotonic() - loop.saved > self.machine.checkpoint_seconds:
                        loop.save()
        finally:
            progress.close()
        return loop.best


class _Loop:
    """A training under way: everything that a checkpoint holds, and the steps that move it."""

    def __init__(
        self,
        trainer: Trainer,
        model: Any,
        train: ResidentImages,
        val: ResidentImages | None,
        objective: Any,
        make_optimizer: Callable[..., torch.optim.Optimizer],
        make_scheduler: Callable[..., Any],
        checkpoints: Checkpoints,
        stop: StopRequest,
    ):
        self.trainer, self.model, self.train, self.val = trainer, model, train, val
        self.objective, self.checkpoints, self.stop = objective, checkpoints, stop
        self.fabric = _fabric(trainer)
        self.eager = self.fabric.setup_module(model)
        self.compiled = self.fabric.setup_module(torch.compile(model)) if trainer.machine.compile else self.eager
        plain = make_optimizer(parameter_groups(model))
        self.scheduler = make_scheduler(plain)
        self.optimizer = self.fabric.setup_optimizers(plain)
        self.per_epoch: int = objective.steps_per_epoch(train.labels)
        self.check_every = STEPS_BETWEEN_CHECKS.get(train.device.type, 100)

        self.step, self.closed = 0, 0
        self.sums: dict[str, Tensor] = {}
        self.best: dict[str, Any] = {"epoch": 0, "value": -math.inf}
        self.seconds = 0.0  # spent in the open epoch, by earlier processes too
        self.since = self.saved = time.monotonic()

    def state(self) -> dict[str, Any]:
        now = time.monotonic()
        self.seconds, self.since = self.seconds + now - self.since, now
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            **{name: getattr(self, name) for name in ("step", "closed", "sums", "best", "seconds")},
        }

    def resume(self) -> None:
        if state := self.checkpoints.resume():
            for name in ("model", "optimizer", "scheduler"):
                getattr(self, name).load_state_dict(state.pop(name))
            vars(self).update(state)
            self.sums = {name: value.to(self.train.device) for name, value in self.sums.items()}

    def save(self, name: str = "last") -> None:
        if first_non_finite(self.model, None):  # a gradient may have spoilt them after the last look at the loss
            raise non_finite_error(self.model, None)
        self.checkpoints.save(name, self.state())
        self.saved = time.monotonic()

    def leave_if_asked(self) -> None:
        if self.stop.signal is not None:
            self.save()
            raise Stopped(self.stop.signal, str(self.checkpoints.path("last")))

    def train_step(self) -> None:
        indices = self.objective.draw(self.train.labels, self.trainer.seed, self.step)
        images, labels = self.train.take(indices)
        # Compiled code is made for one batch size; a smaller last batch takes the eager path.
        forward = self.compiled if len(indices) == self.objective.batch_size else self.eager
        self.eager.train()
        self.optimizer.zero_grad(set_to_none=True)
        with explain_nondeterminism(self.trainer.machine.deterministic):
            loss, metrics = self.objective.loss(forward, images, labels)
            if (self.step + 1) % self.check_every == 0 and not bool(torch.isfinite(loss)):
                raise non_finite_error(self.model, images)
            self.fabric.backward(loss)
        if limit := self.trainer.gradient_clip:
            self.fabric.clip_gradients(self.eager, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        self.optimizer.step()
        self.step += 1
        self.sums = added(self.sums, metrics)

    def close_epoch(self) -> Row:
        """Validate, move the schedule, note the best; returns the epoch's row of metrics."""
        row: Row = {"epoch": self.closed + 1, "step": self.step, "lr": self.optimizer.param_groups[0]["lr"]}
        row |= averages("train", self.sums)
        if self.val is not None:
            row |= averages("val", self.validate(self.val))
        row["c"] = float(self.model.space.c)  # moves where it is learned
        self.scheduler.step()
        self.closed, self.sums = self.closed + 1, {}
        now = time.monotonic()
        row["seconds"], self.seconds, self.since = self.seconds + now - self.since, 0.0, now
        value = row.get("val/accuracy", -math.inf)
        if self.trainer.select == "last" or value > self.best["value"]:
            self.best = {"epoch": self.closed, "value": value}
            if self.trainer.select == "best":
                self.save("best")
        return row

    def validate(self, val: ResidentImages) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        self.eager.eval()
        with torch.no_grad():
            for indices in self.objective.validation_batches(val.labels, self.trainer.seed):
                self.leave_if_asked()
                _, metrics = self.objective.loss(self.eager, *val.take(indices))
                sums = added(sums, metrics)
        return sums


def _fabric(trainer: Trainer) -> Any:
    from lightning_fabric import Fabric

    device = torch.device(trainer.machine.device)
    if trainer.machine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    devices: Any = [device.index or 0] if device.type == "cuda" else 1
    try:
        fabric = Fabric(accelerator=device.type, devices=devices, precision=trainer.precision)  # type: ignore[arg-type]
    except (ImportError, ValueError) as error:
        raise UserError("trainer.precision", trainer.precision, str(error)) from error
    fabric.launch()
    return fabric


def added(sums: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: sums[name] + value for name, value in more.items()} if sums else more


def averages(split: str, sums: dict[str, Tensor]) -> Row:
    """Sums over images → means per image, named `<split>/<metric>`; only here the loop waits for the device."""
    values = {name: float(value) for name, value in sums.items()}
    count = values.pop("count")
    return {f"{split}/{name}": value / count for name, value in values.items()}


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters; those that a module lists in `no_weight_decay()` (a learnable curvature) undecayed."""
    exempt = {id(p) for part in model.modules() for p in getattr(part, "no_weight_decay", list)()}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for p in trained if id(p) not in exempt]}]
    if exempt:
        groups.append({"params": [p for p in trained if id(p) in exempt], "weight_decay": 0.0})
    return groups
