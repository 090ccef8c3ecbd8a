"""Speed of the training loop; one JSON line each, both arms of a ratio in this process, interleaved.

    python benchmarks/training.py [data_dir=../shared/data] [threads=2] [steps=150] [rounds=5]

1. hyperbolic against Euclidean MNIST step (data, forward, backward, optimizer);
2. share of the loop that is forward, backward and optimizer step;
3. `import hypimg` against `import torch`, in fresh processes.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hypimg import config, run
from hypimg.data.resident import ResidentImages
from hypimg.training.checkpoint import Checkpoints
from hypimg.training.preemption import StopRequest
from hypimg.training.trainer import Machine


class Quiet:
    """A progress that shows nothing."""

    def step(self) -> None: ...
    def epoch(self, row: dict[str, float]) -> None: ...
    def close(self) -> None: ...
    def resume(self, closed: int) -> None: ...


def fit_seconds(space: str, images: int, words: list[str]) -> tuple[float, dict[str, float]]:
    """Seconds of one epoch of the real trainer over `images` images, and the seconds inside its three parts."""
    cfg = config.compose(["experiment=mnist_hyperbolic", f"space={space}", "trainer.epochs=1", *words])
    dataset, data = run.open_data(cfg)
    train = ResidentImages(data.store, data.store.indices("train")[:images], dataset.mean, dataset.std)
    trainer = run.instantiate(cfg.trainer, seed=0, machine=Machine(checkpoint_seconds=1e9))
    model, objective = run.build_model(cfg, dataset), run.instantiate(cfg.objective)
    parts = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}

    def timed(part: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                parts[part] += time.perf_counter() - started

        return call

    objective.loss = timed("forward", objective.loss)
    backward = torch.Tensor.backward
    torch.Tensor.backward = timed("backward", backward)  # type: ignore[method-assign]

    def make_optimizer(groups: Any) -> Any:
        optimizer = run.instantiate(cfg.optimizer, groups)
        since = [0.0]

        def start(*_: Any) -> None:
            since[0] = time.perf_counter()

        def end(*_: Any) -> None:
            parts["optimizer"] += time.perf_counter() - since[0]

        optimizer.register_step_pre_hook(start)
        optimizer.register_step_post_hook(end)
        return optimizer

    try:
        with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
            started = time.perf_counter()
            trainer.fit(
                model=model,
                train=train,
                val=None,
                objective=objective,
                make_optimizer=make_optimizer,
                make_scheduler=lambda optimizer: run.instantiate(cfg.scheduler, optimizer),
                checkpoints=Checkpoints(Path(folder), {}),
                loggers=[],
                make_progress=lambda *_: Quiet(),
                stop=stop,
            )
            return time.perf_counter() - started, parts
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]


def import_seconds(module: str) -> float:
    """Seconds of `import module` in a fresh process, the start of the interpreter included."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - started


def main(words: list[str]) -> None:
    options = {"threads": "2", "steps": "150", "rounds": "5", "data_dir": "../shared/data"} | dict(
        w.split("=") for w in words
    )
    torch.set_num_threads(int(options["threads"]))
    images, rounds = 64 * int(options["steps"]), int(options["rounds"])
    about = {
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "threads": int(options["threads"]),
    }
    folder = [f"data_dir={options['data_dir']}", "trainer.val_fraction=0"]
    for dim in (2, 32):
        arms: dict[str, list[float]] = {"poincare": [], "euclidean": []}
        shares = []
        for round_ in range(rounds + 1):
            for space, times in arms.items():
                total, parts = fit_seconds(space, images, [*folder, f"dim={dim}"])
                if round_:  # the first round warms up
                    times.append(total)
                    if space == "poincare":
                        shares.append(sum(parts.values()) / total)
        ours, theirs = (statistics.median(times) for times in arms.values())
        line = {
            "case": "MNIST epoch, hyperbolic / Euclidean",
            "dim": dim,
            "ratio": round(ours / theirs, 3),
            "goal": "<= 1.15",
        }
        print(json.dumps({**line, "ms per step": round(1e3 * ours / int(options["steps"]), 2), **about}), flush=True)
        share = round(statistics.median(shares), 3)
        line = {"case": "loop: forward, backward, optimizer step / all", "dim": dim, "share": share, "goal": ">= 0.9"}
        print(json.dumps({**line, **about}), flush=True)
    ours_too = "hypimg, hypimg.geometry, hypimg.nn.linear, hypimg.models.classifier"
    pairs = [(import_seconds("torch"), import_seconds(ours_too)) for _ in range(rounds)]
    torch_s, hypimg_s = (statistics.median(times) for times in zip(*pairs, strict=True))
    line = {
        "case": "import hypimg with geometry, nn and models / import torch",
        "ratio": round(hypimg_s / torch_s, 3),
        "goal": "<= 1.3",
    }
    print(json.dumps({**line, "import torch s": round(torch_s, 2), **about}))


if __name__ == "__main__":
    main(sys.argv[1:])
