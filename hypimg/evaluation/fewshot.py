"""Few-shot classification: accuracy over many episodes of a split's images, each embedded once."""

from __future__ import annotations

import hashlib
import math
from typing import cast

import numpy as np
import torch

from hypimg.data.episodes import EpisodeSampler, check_count, check_task
from hypimg.errors import UserError
from hypimg.evaluation import EvaluationData
from hypimg.evaluation.predictor import Predictor
from hypimg.models.classifier import Classifier
from hypimg.models.episodic import episode_accuracies
from hypimg.models.heads import ProtoNet

# What is stored for figures: so many images of each of so many classes, the first ones.
STORED_CLASSES, STORED_IMAGES = 20, 100


def episode_generator(seed: int, way: int, shot: int, query: int) -> torch.Generator:
    """The generator of a test's episodes, on the CPU: seeded by the first 63 bits of SHA-256 of "seed/way/shot/query".

    Another protocol draws other episodes; the same one draws the same for every run and on every machine.
    """
    digest = hashlib.sha256(f"{seed}/{way}/{shot}/{query}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def half_width(accuracies: np.ndarray) -> float:
    """1.96 σ/√n of the episodes' accuracies [n], σ with divisor n: half the 95 % interval of their mean.

    It tells how well the episodes measure one trained model, and nothing of another training.
    Source: HIE's official code.
    """
    return float(1.96 * np.std(accuracies) / math.sqrt(len(accuracies)))


class FewShot:
    """`accuracy` of one run over `episodes` episodes of `way` classes with `shot` support and `query` query images.

    seed: which episodes; they depend on it and on way, shot and query alone, so runs are compared on the same ones.
    split: the part of the data that they are drawn from.

    Metrics: `accuracy`, the mean over episodes of the share of right queries; `ci95`, its half interval over episodes
    (`half_width`); `clipped`, the share of the split's embeddings on the clip sphere.

    Arrays: `accuracies` float64 [episodes]; `points` float32 [n, d] and `labels` int64 [n] of the first 100 images of
    each of the first 20 classes, in the data's order; `names` of these classes, which the labels count; `c`.

    Raises UserError for a count that is none, more than one run, a head that has no prototypes, embeddings that are not
    finite, and where the split has too few classes or images (`EpisodeSampler`).
    """

    def __init__(self, way: int, shot: int, query: int, episodes: int = 10_000, seed: int = 0, split: str = "test"):
        check_task(way, shot, query, "evaluator.fewshot.")
        check_count("evaluator.fewshot.episodes", episodes)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise UserError("evaluator.seed", seed, "must be a whole number")
        self.way, self.shot, self.query = way, shot, query
        self.episodes, self.seed, self.split = episodes, seed, split

    def check(self, model: Classifier, data: EvaluationData) -> None:
        """Raises UserError for what `__call__` would refuse, before a training that it would waste."""
        if not isinstance(model.head, ProtoNet):
            raise UserError("head", type(model.head).__name__, "few-shot evaluation takes a run with head=protonet")
        labels, names = data.labels_of(self.split)
        EpisodeSampler(torch.from_numpy(labels), self.way, self.shot, self.query, names, "evaluator.fewshot.")

    def __call__(
        self, predictors: list[Predictor], data: EvaluationData
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        if len(predictors) != 1:
            given = ", ".join(predictor.name for predictor in predictors)
            raise UserError("evaluator", given, "few-shot accuracy is that of one run; give one run")
        predictor = predictors[0]
        self.check(predictor.model, data)
        head, space = cast(ProtoNet, predictor.model.head), predictor.model.space
        images, labels, names = data.part(self.split)
        sampler = EpisodeSampler(torch.from_numpy(labels), self.way, self.shot, self.query, names)
        points = predictor.embed(images)
        finite = points.isfinite().all(dim=1)
        if not bool(finite.all()):
            broken = f"{int((~finite).sum())} of {len(points)}"
            raise UserError("embeddings", broken, f"are not finite; the run {predictor.name} is broken, train it anew")
        generator = episode_generator(self.seed, self.way, self.shot, self.query)
        accuracies = episode_accuracies(head, points, sampler, self.episodes, generator).cpu().numpy()
        with torch.no_grad():
            clipped, c = space.clipped(points).double().mean(), space.c.cpu().numpy()
        metrics = {"accuracy": float(accuracies.mean()), "ci95": half_width(accuracies), "clipped": float(clipped)}
        kept = first_of_each(labels)
        shown, numbers = np.unique(labels[kept], return_inverse=True)
        arrays = {
            "accuracies": accuracies,
            "points": points[torch.from_numpy(kept).to(points.device)].float().cpu().numpy(),
            "labels": numbers,
            "names": np.array([names[label] for label in shown]),
            "c": c,
        }
        return metrics, arrays


def first_of_each(labels: np.ndarray) -> np.ndarray:
    """Positions of the first `STORED_IMAGES` images of each of the first `STORED_CLASSES` classes, in order."""
    classes = np.unique(labels)[:STORED_CLASSES]
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:STORED_IMAGES] for label in classes]))
