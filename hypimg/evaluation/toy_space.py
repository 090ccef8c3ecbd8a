"""δ-hyperbolicity of spaces whose answer is known: a random tree, the Poincaré disk, the hemisphere and the sphere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from hypimg.errors import UserError, nearest
from hypimg.evaluation import EvaluationData
from hypimg.evaluation.predictor import Predictor
from hypimg.geometry import gromov, poincare

DISK_RADIUS = 1 - 1e-5  # Euclidean; HIE clips there, and its constant 0.144 belongs to this disk

Sample = tuple[np.ndarray, np.ndarray]  # what was drawn, and its distances [n, n]


def tree(count: int, random: np.random.Generator) -> Sample:
    """Nodes of a random recursive tree with path distances: each node hangs on an earlier one, all equally likely.

    Edge lengths are uniform in (0, 1].  Returns parents and lengths [n, 2] (the root has length 0), distances [n, n].
    """
    parents = np.array([0, *(random.integers(node) for node in range(1, count))])
    lengths = np.array([0.0, *(1 - random.random(count - 1))])
    distances = np.zeros((count, count))
    for node in range(1, count):
        distances[node, :node] = distances[parents[node], :node] + lengths[node]
        distances[:node, node] = distances[node, :node]
    return np.stack([parents, lengths], axis=1), distances


def disk_area(count: int, random: np.random.Generator) -> Sample:
    """Points of the Poincaré disk (c = 1), uniform in the Euclidean area of the disk of radius `DISK_RADIUS`."""
    return _disk(DISK_RADIUS * np.sqrt(random.random(count)), random)


def disk_hyperbolic(count: int, random: np.random.Generator) -> Sample:
    """Points of the same disk, uniform in the hyperbolic area: P(d(x, 0) ≤ r) = (cosh r − 1)/(cosh R − 1).

    R = 2 artanh(`DISK_RADIUS`) = 12.206.  Half of them lie within 0.7 of the rim: the area grows as e^r.
    """
    half = np.sinh(np.arctanh(DISK_RADIUS)) * np.sqrt(random.random(count))  # sinh(r/2), as cosh r − 1 = 2 sinh²(r/2)
    return _disk(half / np.sqrt(1 + half**2), random)


def _disk(norms: np.ndarray, random: np.random.Generator) -> Sample:
    angles = random.uniform(0, 2 * np.pi, len(norms))
    points = torch.from_numpy(norms[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    return points.numpy(), poincare.cdist(points, points, 1.0, mode="exact").numpy()


def sphere(count: int, random: np.random.Generator) -> Sample:
    """Points of the unit sphere in space, uniform in area, with great-circle distances 2 atan(‖x − y‖/‖x + y‖)."""
    points = random.normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points, _great_circle(points)


def hemisphere(count: int, random: np.random.Generator) -> Sample:
    """The same with the third coordinate taken upwards; the shortest ways stay within the hemisphere."""
    points, _ = sphere(count, random)
    points[:, 2] = np.abs(points[:, 2])
    return points, _great_circle(points)


def _great_circle(points: np.ndarray) -> np.ndarray:
    apart, together = (np.linalg.norm(points[:, None] + sign * points, axis=2) for sign in (-1, 1))
    return 2 * np.arctan2(apart, together)


SPACES: dict[str, Callable[[int, np.random.Generator], Sample]] = {
    sampler.__name__: sampler for sampler in (tree, disk_area, disk_hyperbolic, hemisphere, sphere)
}


class ToySpace:
    """`delta_rel` = 2δ/diameter of `points` points drawn from a space, and their `diameter`; no run, no data.

    space: tree, disk_area, disk_hyperbolic, hemisphere or sphere.  base: the base point of the Gromov products, by its
    number, or "all" for the largest δ over all of them.  seed: of the sample; the same seed and number of points give
    the same sample for every base.  Distances and δ in float64.  Arrays: `sample`, what was drawn.
    Source: HIE, Table 1, which names neither the number of points nor the laws.
    """

    def __init__(self, space: str, points: int, base: int | Literal["all"] = 0, seed: int = 0):
        if space not in SPACES:
            raise UserError("evaluator.space", space, nearest(str(space), SPACES))
        if not isinstance(points, int) or points < 4:
            raise UserError("evaluator.points", points, "must be a whole number ≥ 4: δ is a property of four points")
        if base != "all" and (not isinstance(base, int) or not 0 <= base < points):
            raise UserError("evaluator.base", base, f"must be all, or a number from 0 to {points - 1}")
        self.space, self.points, self.base, self.seed = space, points, base, seed

    def __call__(
        self, predictors: list[Predictor], data: EvaluationData
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        sample, distances = SPACES[self.space](self.points, np.random.default_rng([self.seed, self.points]))
        delta_rel = gromov.relative_delta(torch.from_numpy(distances), base=self.base)
        return {"delta_rel": float(delta_rel), "diameter": float(distances.max())}, {"sample": sample}
