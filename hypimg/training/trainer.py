"""The training loop. A checkpoint is weights, optimizer, scheduler, step and sums; all else is a function of these."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hypimg.data.resident import ResidentImages
from hypimg.errors import NonFiniteError, Stopped, UserError
from hypimg.training.checkpoint import Checkpoints
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
        make_optimizer: Callable[..., Any],
        make_scheduler: Callable[..., Any],
        checkpoints: Checkpoints,
        loggers: list[Any],
        progress: Callable[[int, int, int], Any],
        stop: StopRequest,
    ) -> dict[str, Any]:
        """Train to the end and leave `last.pt` (and `best.pt`); returns {"epoch", "value"} of the epoch selected.

        progress: (epochs, steps per epoch, steps done) → an object with step(), epoch(row), close().
        Raises NonFiniteError (last good checkpoint kept) and Stopped (after saving).
        """
        fabric = self._fabric()
        eager = fabric.setup_module(model)
        compiled = fabric.setup_module(torch.compile(model)) if self.machine.compile else eager
        optimizer = fabric.setup_optimizers(make_optimizer(parameter_groups(model, make_optimizer)))
        scheduler = make_scheduler(optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer)
        per_epoch = objective.steps_per_epoch(train.labels)

        step, closed, seconds = 0, 0, 0.0
        sums: dict[str, Tensor] = {}
        best: dict[str, Any] = {"epoch": 0, "value": -math.inf}
        if state := checkpoints.resume():
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            step, closed, best, seconds = state["step"], state["closed"], state["best"], state["seconds"]
            sums = {name: value.to(train.device) for name, value in state["sums"].items()}
        for logger in loggers:
            if hasattr(logger, "rewind"):
                logger.rewind(closed)

        def save(name: str = "last") -> None:
            self._check_finite(model, None, None)
            checkpoints.save(
                name,
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "step": step,
                    "closed": closed,
                    "best": best,
                    "seconds": seconds,
                    "sums": sums,
                },
            )

        def leave_if_asked() -> None:
            if stop.signal is not None:
                save()
                raise Stopped(stop.signal, str(checkpoints.path("last")))

        shown = progress(self.epochs, per_epoch, step)
        check_every = STEPS_BETWEEN_CHECKS.get(train.device.type, 100)
        lap = saved = time.monotonic()
        try:
            while closed < self.epochs:
                leave_if_asked()
                if step == (closed + 1) * per_epoch:
                    row: Row = {"epoch": closed + 1, "step": step, "lr": optimizer.param_groups[0]["lr"]}
                    row |= averages("train", sums)
                    if val is not None:
                        row |= averages("val", self._validate(eager, val, objective, leave_if_asked))
                    scheduler.step()
                    now = time.monotonic()
                    seconds, lap = seconds + now - lap, now
                    row["seconds"], seconds = seconds, 0.0
                    closed, sums = closed + 1, {}
                    better = row.get("val/accuracy", -math.inf) > best["value"]
                    if self.select == "last" or better:
                        best = {"epoch": closed, "value": row.get("val/accuracy", -math.inf)}
                    for logger in loggers:
                        logger.epoch(row)
                    shown.epoch(row)
                    if self.select == "best" and better:
                        save("best")
                    save()
                    saved = time.monotonic()
                    continue
                indices = objective.draw(train.labels, self.seed, step)
                images, labels = train.take(indices)
                forward = compiled if len(indices) == objective.batch_size else eager
                eager.train()
                optimizer.zero_grad(set_to_none=True)
                loss, metrics = objective.loss(forward, images, labels)
                if (step + 1) % check_every == 0:
                    self._check_finite(model, loss, images)
                with explain_nondeterminism(self.machine.deterministic):
                    fabric.backward(loss)
                if self.gradient_clip is not None:
                    fabric.clip_gradients(eager, optimizer, max_norm=self.gradient_clip, error_if_nonfinite=False)
                optimizer.step()
                step += 1
                sums = {name: sums[name] + value for name, value in metrics.items()} if sums else metrics
                shown.step()
                now = time.monotonic()
                if now - saved > self.machine.checkpoint_seconds:
                    seconds, lap = seconds + now - lap, now
                    save()
                    saved = time.monotonic()
        finally:
            shown.close()
        return best

    def _fabric(self) -> Any:
        from lightning_fabric import Fabric

        device = torch.device(self.machine.device)
        if self.machine.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        devices: Any = [device.index or 0] if device.type == "cuda" else 1
        try:
            fabric = Fabric(accelerator=device.type, devices=devices, precision=self.precision)  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError("trainer.precision", self.precision, str(error)) from error
        fabric.launch()
        return fabric

    def _validate(
        self, model: nn.Module, val: ResidentImages, objective: Any, leave_if_asked: Callable[[], None]
    ) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        model.eval()
        with torch.no_grad():
            for indices in objective.validation_batches(val.labels, self.seed):
                leave_if_asked()
                _, metrics = objective.loss(model, *val.take(indices))
                sums = {name: sums[name] + value for name, value in metrics.items()} if sums else metrics
        return sums

    def _check_finite(self, model: nn.Module, loss: Tensor | None, images: Tensor | None) -> None:
        """Raise NonFiniteError that names the first parameter or layer concerned."""
        if loss is not None and bool(torch.isfinite(loss)):
            return
        culprit = first_non_finite(model, images)
        if loss is None and culprit is None:
            return
        remedy = "is not finite; the last good checkpoint is kept. Try a lower optimizer.lr or trainer.gradient_clip=1"
        raise NonFiniteError("training", culprit or "the loss", remedy)


def averages(split: str, sums: dict[str, Tensor]) -> Row:
    """Sums over images → means per image, named `<split>/<metric>`; the one place where the loop waits for the device."""
    values = {name: float(value) for name, value in sums.items()}
    count = values.pop("count")
    return {f"{split}/{name}": value / count for name, value in values.items()}


def parameter_groups(model: nn.Module, make_optimizer: Any) -> list[dict[str, Any]]:
    """All trained parameters; those that a module lists in `no_weight_decay()` (a learnable curvature) without decay."""
    exempt = {id(p) for module in model.modules() if hasattr(module, "no_weight_decay") for p in module.no_weight_decay()}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if id(p) not in exempt]}]
    if exempt:
        groups.append({"params": [p for p in trained if id(p) in exempt], "weight_decay": 0.0})
    return groups


def first_non_finite(model: nn.Module, images: Tensor | None) -> str | None:
    """The first parameter that is not finite, else (given images) the first module whose output is not; None if all are."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"parameter {name}"
    if images is None:
        return None
    if not bool(torch.isfinite(images).all()):
        return "the input images"
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [t for t in (output if isinstance(output, tuple) else (output,)) if isinstance(t, Tensor)]
            if any(not bool(torch.isfinite(t).all()) for t in tensors):
                found.append(f"the output of layer {name or 'model'} ({type(module).__name__})")

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model(images)
    for handle in hooks:
        handle.remove()
    return found[0] if found else None


@contextlib.contextmanager
def explain_nondeterminism(wanted: bool) -> Iterator[None]:
    """Torch names the operation that breaks determinism on this device; bring that to one line."""
    try:
        yield
    except RuntimeError as error:
        if not wanted or "deterministic" not in str(error):
            raise
        raise UserError("deterministic", True, f"{str(error).split('. ')[0]}; use deterministic=false") from error
