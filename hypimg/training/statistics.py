"""Statistics of the training images for networks that norm each batch by its own."""

from __future__ import annotations

import logging
from typing import Any

import torch

from hypimg.data.resident import ResidentImages
from hypimg.errors import Stopped
from hypimg.nn.poincare import PoincareBatchNorm2d, norms_with
from hypimg.training.checkpoint import Checkpoints
from hypimg.training.preemption import StopRequest
from hypimg.training.seeding import generator

log = logging.getLogger(__name__)


def norms_by_batch(model: torch.nn.Module) -> list[PoincareBatchNorm2d]:
    """The norms whose results depend on the images beside one: those with no statistics of their own."""
    return [m for m in model.modules() if isinstance(m, PoincareBatchNorm2d) and m.statistics == "batch"]


def norm_metrics(model: torch.nn.Module) -> dict[str, float]:
    """`newton`: the longest last step towards a Fréchet mean in the batch seen last, of a model that has such norms."""
    steps = [float(m.newton) for m in model.modules() if isinstance(m, PoincareBatchNorm2d) and m.mean == "frechet"]
    return {"newton": max(steps)} if steps else {}


def store_statistics(
    model: Any,
    train: ResidentImages,
    batch_size: int,
    seed: int,
    checkpoints: Checkpoints,
    name: str,
    stop: StopRequest,
) -> None:
    """Add to the checkpoint `name` what its norms see of the training images, augmented, on average over batches.

    The batches are drawn anew (a data set may be sorted by class). A model without such norms is left alone, and so is
    a checkpoint that has the statistics.  Raises Stopped where a signal asked for it: nothing is lost but this pass.
    """
    norms = norms_by_batch(model)
    if not norms:
        return
    state = checkpoints.load(name)
    model.load_state_dict(state["model"])
    if int(norms[0].batches_seen):
        return
    order = torch.randperm(len(train), generator=generator(seed, "statistics order"))
    batches = [batch for batch in order.split(batch_size) if len(batch) == min(batch_size, len(train))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain average
    model.eval()
    for norm in norms:
        norm.train()
    log.info("the statistics of %d training batches for predict and test", len(batches))
    with torch.no_grad(), norms_with(model, "running"):
        for number, batch in enumerate(batches):
            if stop.signal is not None:
                raise Stopped(stop.signal, str(checkpoints.path(name)))
            model.features(train.take(batch, generator(seed, "statistics", number))[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    state["model"] = model.state_dict()
    checkpoints.save(name, state)
