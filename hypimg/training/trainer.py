"""The training loop. A checkpoint is weights, optimizer, scheduler, step and sums; all else is a function of these."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hypimg.data.resident import ResidentImages
from hypimg.errors import Stopped, UserError
from hypimg.training.checkpoint import Checkpoints
from hypimg.training.devices import Machine, any_flag, any_rank, average_buffers, open_fabric, sum_over_ranks
from hypimg.training.diagnosis import explain_nondeterminism, first_non_finite, non_finite_error
from hypimg.training.loggers import Row
from hypimg.training.metrics import added, averages
from hypimg.training.parameters import parameter_groups
from hypimg.training.preemption import StopRequest
from hypimg.training.seeding import derive_seed, generator
from hypimg.training.statistics import norm_metrics, store_statistics

# On a GPU, looking at the loss waits for the device; on a CPU it is free and done at every step.
STEPS_BETWEEN_CHECKS = {"cpu": 1, "cuda": 100}


class Trainer:
    """Trains one model for a number of epochs; stopped at any step, it goes on to the same bits.

    epochs: passes over the training images, or as many steps as the objective says, ≥ 1.
    val_fraction: share of the training images that is split off for validation; null: the data set has a part for it.
    val_every: epochs from one validation to the next; null: 1. The last epoch is always validated.
    select: `best` keeps the weights of the epoch with the highest validation accuracy, `last` those of the last epoch.
    precision: a name of Lightning Fabric's (32-true, bf16-mixed, …).  gradient_clip: largest norm of the gradient.
    """

    def __init__(
        self,
        epochs: int,
        val_fraction: float | None = 0.1,
        val_every: int | None = None,
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
        if val_fraction is not None and (not 0 <= val_fraction < 1 or (val_fraction == 0 and select == "best")):
            raise UserError("trainer.val_fraction", val_fraction, "must lie in (0, 1); 0 needs trainer.select=last")
        if val_every is not None and (not isinstance(val_every, int) or val_every < 1):
            raise UserError("trainer.val_every", val_every, "must be a whole number of epochs ≥ 1, or null")
        if gradient_clip is not None and not gradient_clip > 0:
            raise UserError("trainer.gradient_clip", gradient_clip, "must be > 0, or null for no clipping")
        self.epochs, self.val_fraction, self.val_every, self.select = epochs, val_fraction, val_every or 1, select
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
        for logger in loggers if loop.leads else []:
            logger.resume(loop.closed)
        progress = make_progress(self.epochs, loop.per_epoch, loop.step) if loop.leads else None
        try:
            while loop.closed < self.epochs:
                loop.save_if_due()
                if loop.step == (loop.closed + 1) * loop.per_epoch:
                    row = loop.close_epoch()
                    for logger in (*loggers, progress) if loop.leads else []:
                        logger.epoch(row)
                    loop.save()
                else:
                    loop.train_step()
                    if progress:
                        progress.step()
        finally:
            if progress:
                progress.close()
        if loop.leads:
            store_statistics(model, train, objective.batch_size, self.seed, checkpoints, self.select, stop)
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
        objective.check(model)
        objective.prepare(train, val, trainer.machine.devices)  # what it refuses, it refuses before ranks are started
        self.fabric = open_fabric(trainer.machine, trainer.precision)
        self.rank, self.ranks = self.fabric.global_rank, self.fabric.world_size
        self.leads = self.rank == 0  # this process validates, writes and speaks for all
        self.eager = self.fabric.setup_module(model)
        self.compiled = self.fabric.setup_module(torch.compile(model)) if trainer.machine.compile else self.eager
        plain = make_optimizer(parameter_groups(model))
        self.scheduler = make_scheduler(plain)
        self.optimizer = self.fabric.setup_optimizers(plain)
        self.per_epoch: int = objective.steps_per_epoch
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
            # What was summed over all ranks goes on in one of them.
            self.sums = {name: value.to(self.train.device) for name, value in self.sums.items() if self.leads}

    def save(self) -> None:
        """All ranks call this at the same step."""
        own, self.sums = self.sums, sum_over_ranks(self.fabric, self.sums)
        average_buffers(self.fabric, self.model)
        self.write("last")
        self.sums, self.saved = own, time.monotonic()

    def write(self, name: str) -> None:
        if first_non_finite(self.model, None):  # a gradient may have spoilt them after the last look at the loss
            raise non_finite_error(self.model, None)
        if self.leads:
            self.checkpoints.save(name, self.state())

    def save_if_due(self) -> None:
        due = time.monotonic() - self.saved > self.trainer.machine.checkpoint_seconds
        asked, due = any_rank(self.fabric, self.step, self.stop.signal, due)
        if asked:
            self.stop.signal = asked
            self.leave_if_asked()
        if due and self.step % self.per_epoch:
            self.save()

    def leave_if_asked(self) -> None:
        if self.stop.signal is not None:
            self.save()
            raise Stopped(self.stop.signal, str(self.checkpoints.path("last")))

    def train_step(self) -> None:
        seed = self.trainer.seed
        self.eager.train()
        self.optimizer.zero_grad(set_to_none=True)
        pieces = list(self.objective.pieces(seed, self.step, self.rank, self.ranks))
        for position, piece in enumerate(pieces, start=1):
            torch.manual_seed(derive_seed(seed, "dropout", piece.number))
            draw = generator(seed, "augmentation", piece.number)
            images, labels = self.train.take(piece.indices, draw, piece.rows)
            # Compiled code is made for one batch size; a smaller last batch takes the eager path.
            forward = self.compiled if len(images) == self.objective.batch_size else self.eager
            with (
                explain_nondeterminism(self.trainer.machine.deterministic),
                self.fabric.no_backward_sync(self.eager, enabled=position < len(pieces)),
            ):
                loss, metrics = self.objective.loss(forward, images, labels)
                if (self.step + 1) % self.check_every == 0 and any_flag(self.fabric, ~torch.isfinite(loss)):
                    raise non_finite_error(self.model, images, partial(self._loss, labels))
                self.fabric.backward(loss * piece.weight)
            self.sums = added(self.sums, metrics)
        if limit := self.trainer.gradient_clip:
            self.fabric.clip_gradients(self.eager, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        self.optimizer.step()
        self.step += 1

    def _loss(self, labels: Tensor, images: Tensor) -> object:
        return self.objective.loss(self.eager, images, labels)

    def close_epoch(self) -> Row:
        """Validate, move the schedule, note the best; returns the epoch's row of metrics."""
        row: Row = {"epoch": self.closed + 1, "step": self.step, "lr": self.optimizer.param_groups[0]["lr"]}
        row |= averages("train", sum_over_ranks(self.fabric, self.sums))
        average_buffers(self.fabric, self.model)
        epoch = self.closed + 1
        due = epoch % self.trainer.val_every == 0 or epoch == self.trainer.epochs
        if self.val is not None and self.leads and due:
            row |= averages("val", self.validate(self.val))
        row["c"] = float(self.model.space.c.detach())  # moves where it is learned
        row |= norm_metrics(self.model)
        self.scheduler.step()
        self.closed, self.sums = self.closed + 1, {}
        now = time.monotonic()
        row["seconds"], self.seconds, self.since = self.seconds + now - self.since, 0.0, now
        value = row.get("val/accuracy", -math.inf)
        if self.trainer.select == "last" or value > self.best["value"]:
            self.best = {"epoch": self.closed, "value": value}
            if self.trainer.select == "best":
                self.write("best")
        return row

    def validate(self, val: ResidentImages) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        self.eager.eval()
        with torch.no_grad():
            for metrics in self.objective.validate(self.eager, val, self.trainer.seed):
                if self.ranks == 1:  # else the others wait at the next step, and all leave there
                    self.leave_if_asked()
                if metrics:
                    sums = added(sums, metrics)
        return sums
