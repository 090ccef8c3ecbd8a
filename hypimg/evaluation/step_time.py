"""What a training step of one network costs against that of another, measured in turns within one process."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from hypimg.errors import UserError
from hypimg.evaluation import EvaluationData
from hypimg.evaluation.predictor import Predictor
from hypimg.nn.poincare import norms_with

WARM_UP = 3  # turns that do not count


class StepTime:
    """Time of a training step of the first run's network in units of the second's.

    A step is forward, cross-entropy, backward and Adam, in float32, on the first `batch_size` test images of each run;
    Poincaré batch norms by the batch's statistics.  turns: how often both take a step, one after the other.
    threads: of the processor. On a processor its time counts, on a GPU the clock's.
    Metrics: `ratio`: median over the turns of first/second; `change`: 100 (ratio − 1), in %; `seconds/first`,
    `seconds/second`: medians; and what the machine was like: `threads`, `cores`, `load` (processes that were running or
    waiting in the minute before: what exceeds the threads here is others' work).
    Arrays: `seconds` [turns, 2], `device`.  Raises UserError unless there are two runs, and for fewer test images.
    """

    def __init__(self, batch_size: int, turns: int, threads: int):
        for name, count in {"batch_size": batch_size, "turns": turns, "threads": threads}.items():
            if not isinstance(count, int) or count < 1:
                raise UserError(f"evaluator.{name}", count, "must be a whole number ≥ 1")
        self.batch_size, self.turns, self.threads = batch_size, turns, threads

    def __call__(
        self, predictors: list[Predictor], data: EvaluationData
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        if len(predictors) != 2:
            raise UserError("evaluator.step_time", f"{len(predictors)} runs", "compares two: the cell's `runs`")
        positions = data.indices[: self.batch_size]
        if len(positions) < self.batch_size:
            raise UserError("evaluator.batch_size", self.batch_size, f"there are only {len(positions)} test images")
        images = torch.from_numpy(np.ascontiguousarray(data.store.images[positions].transpose(0, 3, 1, 2)))
        labels = torch.from_numpy(data.labels[: self.batch_size])
        load = os.getloadavg()[0]
        with _threads(self.threads):
            steps = [training_step(predictor, images, labels) for predictor in predictors]
            seconds = in_turns(steps, self.turns, predictors[0].device)
        ratio = float(np.median(seconds[:, 0] / seconds[:, 1]))
        first, second = np.median(seconds, axis=0).tolist()
        metrics = {"ratio": ratio, "change": 100 * (ratio - 1), "seconds/first": first, "seconds/second": second}
        metrics |= {"threads": float(self.threads), "cores": float(os.cpu_count() or 1), "load": load}
        return metrics, {"seconds": seconds, "device": np.array(predictors[0].device.type)}


def training_step(predictor: Predictor, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """One step on a copy of the predictor's model, which is left as it is.  images: uint8 [N, C, H, W], labels [N]."""
    model = copy.deepcopy(predictor.model).train().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    normalised, labels = predictor.preprocess(images), labels.to(predictor.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with norms_with(model, "batch"):  # a finished run's are frozen
            loss = nn.functional.cross_entropy(model(normalised), labels)
        loss.backward()
        optimizer.step()

    return step


def in_turns(works: list[Callable[[], None]], turns: int, device: torch.device) -> np.ndarray:
    """Seconds [turns, works]; in every other turn the last goes first, so that none always follows the same one."""
    seconds = np.zeros((WARM_UP + turns, len(works)))
    for turn in range(WARM_UP + turns):
        for place in range(len(works))[:: 1 if turn % 2 else -1]:
            started = _clock(device)
            works[place]()
            seconds[turn, place] = _clock(device) - started
    return seconds[WARM_UP:]


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
