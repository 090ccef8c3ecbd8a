"""How hyperbolic is a data set? δ_rel of subsamples of its features, beside that of a Gaussian cloud.

Gromov's δ tells how far a metric space is from a tree, δ_rel = 2δ/diameter in units of the space's size: 0 for a tree,
at most 1. But distances concentrate in high dimension, and a cloud without any structure then has a low δ_rel as well.
So each value stands beside its null value: δ_rel of as many points of a Gaussian with the covariance of the features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypimg.data.dataset import ImageDataset
from hypimg.errors import UserError
from hypimg.evaluation import EvaluationData, features
from hypimg.evaluation.predictor import Predictor
from hypimg.geometry import gromov
from hypimg.models import encoders

SAMPLES, REPEATS = 1000, 10  # HIE, Table 2
BASE_POINTS = 5  # over which the largest δ is taken, beside that of the first point
FEW = 100  # images in a subsample, below which no verdict is sure
EXACT = 1e-3  # relative δ below which it is rounding: features on a line, or exactly a tree
POOL, SUBSAMPLE, NULL = 0, 1, 2  # purposes of random numbers
CONSTANTS = ("paper", "hyperbolic_plane")
MEASURES = ("delta_rel", "delta_rel_max", "delta_over_mean", "diameter_over_mean", "diameter")


@dataclass(frozen=True)
class Measured:
    """One cloud of points. delta_rel: 2δ/diameter, the first point as base; delta_rel_max: the largest of several."""

    delta_rel: float
    delta_rel_max: float
    diameter: float
    mean_distance: float

    @property
    def delta_over_mean(self) -> float:
        """2δ in units of the mean distance, which a few far-out points do not change as they change the diameter."""
        return self.delta_rel * self.diameter_over_mean

    @property
    def diameter_over_mean(self) -> float:
        return self.diameter / self.mean_distance


def measure(points: Tensor, base_points: int = BASE_POINTS) -> Measured:
    """δ_rel, diameter and mean distance of points [n, D], n ≥ 4, with Euclidean distances.

    δ with one base point is a lower bound: δ_p ≤ δ ≤ 2δ_p. The largest over `base_points` of them comes nearer to δ.
    Source: HIE, section 3.3 and Table 2; its code takes the first point alone.
    """
    distances = gromov.euclidean_distances(points)
    n, diameter = len(points), float(distances.amax())
    if diameter == 0:
        raise UserError("features", f"{n} rows drawn", "all equal: there is no distance to measure")
    relative = 2 * gromov.delta_by_base(distances, range(min(base_points, n))) / diameter
    mean_distance = float(distances.sum(dtype=torch.float64)) / (n * (n - 1))
    return Measured(float(relative[0]), float(relative.amax()), diameter, mean_distance)


@dataclass(frozen=True)
class Spectrum:
    """A Gaussian with the mean distances of some points, estimated from N of them: covariance (1 − a) S + a μ I.

    S is the sample covariance, μ its mean eigenvalue. S alone spreads its eigenvalues too far where N is not much
    larger than D, and a cloud drawn from it has a higher δ_rel than the true Gaussian. So a is such that tr Σ² has its
    unbiased estimate (Himeno and Yamada 2014), which holds for any distribution of the points; a ≈ 0 for N ≫ D.

    centred: [N, D].  effective_dimension: (tr Σ)²/tr Σ², the participation ratio of the covariance's eigenvalues.
    """

    centred: Tensor
    shrinkage: float
    mean_eigenvalue: float
    effective_dimension: float

    @classmethod
    def of(cls, points: Tensor) -> Spectrum:
        n, dim = points.shape
        centred = points - points.mean(0)
        squares = centred.double().square().sum(1)
        trace = float(squares.sum()) / (n - 1)
        gram = centred.T @ centred if dim < n else centred @ centred.T
        spread = float(gram.double().square().sum()) / (n - 1) ** 2  # tr S²
        fourth = float(squares.square().sum()) / (n - 1)
        unbiased = (n - 1) * ((n - 1) * (n - 2) * spread + trace**2 - n * fourth) / (n * (n - 2) * (n - 3))
        least = trace**2 / dim  # of all eigenvalues equal
        unbiased = min(max(unbiased, least), max(spread, least))
        kept = math.sqrt((unbiased - least) / (spread - least)) if spread > least else 1.0
        return cls(centred, 1 - kept, trace / dim, trace**2 / unbiased)

    def sample(self, count: int, random: np.random.Generator) -> Tensor:
        """Points [count, D] of the Gaussian, its mean at 0.

        Normal combinations of the centred rows have exactly the covariance S, of whatever rank, without an SVD.
        """
        n, dim = self.centred.shape
        weights = torch.from_numpy(random.standard_normal((count, n), np.float32)).to(self.centred)
        points = weights @ self.centred * math.sqrt((1 - self.shrinkage) / (n - 1))
        if self.shrinkage > 0:
            noise = torch.from_numpy(random.standard_normal((count, dim), np.float32)).to(self.centred)
            points += noise * math.sqrt(self.shrinkage * self.mean_eigenvalue)
        return points


def pool(total: int, samples: int, repeats: int = REPEATS, seed: int = 0) -> np.ndarray:
    """The rows that may be drawn: as many as `repeats` disjoint subsamples take, or all; random, ascending, int64."""
    size = min(total, samples * repeats)
    return np.sort(np.random.default_rng([seed, POOL]).permutation(total)[:size])


def spares(total: int, samples: int, repeats: int = REPEATS, seed: int = 0) -> np.ndarray:
    """The rows outside of the pool, in the order in which they stand in for rows of it that cannot be read; int64."""
    return np.random.default_rng([seed, POOL]).permutation(total)[samples * repeats :]


def subsample(total: int, samples: int, index: int, repeats: int = REPEATS, seed: int = 0) -> np.ndarray:
    """Rows of the subsample number `index`, in random order, without replacement; int64 [min(samples, total)].

    Disjoint subsamples, parts of one permutation, where `total` is enough for `repeats` of them; else independent ones.
    """
    if samples * repeats <= total and index < repeats:
        order = np.random.default_rng([seed, SUBSAMPLE]).permutation(total)
        return order[index * samples : (index + 1) * samples]
    return np.random.default_rng([seed, SUBSAMPLE, index]).permutation(total)[:samples]


@dataclass(frozen=True)
class Analysis:
    """Subsamples of a data set's features (`data`) and as many Gaussian clouds (`null`), each of `samples` points."""

    count: int  # of the features that were there
    dim: int
    effective_dimension: float
    samples: int
    disjoint: bool
    data: list[Measured]
    null: list[Measured]

    def mean_and_std(self, side: str, name: str = "delta_rel") -> tuple[float, float]:
        """Of a number of `Measured`; side: data or null. The standard deviation with n − 1."""
        values = [getattr(measured, name) for measured in getattr(self, side)]
        return float(np.mean(values)), float(np.std(values, ddof=1))

    def ratio(self, name: str = "delta_rel") -> float:
        """The data's mean over the null's."""
        return self.mean_and_std("data", name)[0] / self.mean_and_std("null", name)[0]

    @property
    def suggests_c(self) -> bool:
        """Whether δ_rel is more than rounding, so that a c can follow from it."""
        return self.mean_and_std("data")[0] >= EXACT

    def curvature(self, constant: str) -> float:
        """c from the mean δ_rel, infinite at 0; constant: paper or hyperbolic_plane (`gromov.curvature_from_delta`)."""
        return float(gromov.curvature_from_delta(self.mean_and_std("data")[0], constant))


def analyse(
    rows: np.ndarray,
    samples: int = SAMPLES,
    repeats: int = REPEATS,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] = lambda done: None,
) -> Analysis:
    """δ_rel of `repeats` subsamples of `samples` rows of a feature matrix [N, D], and of as many Gaussian clouds.

    Where N < samples each subsample is all rows, and the spread is that over base points alone.
    progress: told after each subsample how many are done.
    Raises UserError: fewer than 4 rows, values that are not finite, rows all equal.
    """
    if samples < 4 or repeats < 2:
        raise UserError("samples, repeats", f"{samples}, {repeats}", "must be at least 4 and 2: δ is about four points")
    drawn = pool(len(rows), samples, repeats, seed)
    points = checked(rows[drawn], numbers=drawn).to(device)
    spectrum = Spectrum.of(points)
    data, null = [], []
    for index in range(repeats):
        chosen = torch.from_numpy(subsample(len(points), samples, index, repeats, seed)).to(device)
        data.append(measure(points[chosen]))
        null.append(measure(spectrum.sample(len(chosen), np.random.default_rng([seed, NULL, index]))))
        progress(index + 1)
    count, dim = rows.shape
    enough = samples * repeats <= len(points)
    return Analysis(count, dim, spectrum.effective_dimension, len(chosen), enough, data, null)


def checked(rows: np.ndarray, thing: str = "features", numbers: np.ndarray | None = None) -> Tensor:
    """A feature matrix as float32 [N, D] with mean 0 (distances do not change, digits are kept).

    numbers: these are rows drawn from a larger matrix, of these numbers [N]: so an error calls them.
    Raises UserError: not a matrix of numbers, fewer than 4 rows, NaN or infinity, rows all equal, values whose squares
    float32 cannot hold.
    """
    if rows.ndim != 2 or rows.dtype.kind not in "fiu" or 0 in rows.shape:
        raise UserError(thing, f"{rows.dtype} {list(rows.shape)}", "must be a matrix of numbers, one row per image")
    if len(rows) < 4:
        raise UserError(thing, f"{len(rows)} rows", "δ is a property of four points; give at least 4 (HIE: 1000)")
    drawn = "rows" if numbers is None else "rows drawn"
    exact = rows.astype(np.float64)
    finite = np.isfinite(exact).all(axis=1)
    if not finite.all():
        wrong = np.flatnonzero(~finite) if numbers is None else numbers[~finite]
        raise UserError(thing, f"row {wrong[0]}", f"not finite, as {len(wrong)} of {len(rows)} {drawn}; leave them out")
    if (exact == exact[0]).all():
        raise UserError(thing, f"{len(rows)} {drawn}", "all equal: there is no distance to measure")
    centred = exact - exact.mean(axis=0)
    largest = np.abs(centred).max()
    if not 1e-12 < largest < 1e12:
        raise UserError(thing, f"{largest:.0e}", "too small or too large for float32; multiply them by a constant")
    return torch.from_numpy(centred.astype(np.float32))


NO_SIGN, FAR_OUT, WEAK, CLEAR = "no sign", "far-out images", "weak", "clear"


def verdict(analysis: Analysis) -> tuple[str, str]:
    """What to make of it: a word, and sentences that a practitioner can act on (`_judge` has the rule)."""
    kind, words = _judge(analysis)
    if analysis.samples < FEW:
        words += f" But {analysis.samples} images are too few to be sure: take {FEW} at least, better {SAMPLES}."
    return kind, words


def _judge(analysis: Analysis) -> tuple[str, str]:
    """The verdict on subsamples that are large enough.

    The rule is ours. It reads two ratios of data to Gaussian clouds, of δ_rel and of 2δ over the mean distance, since
    each alone is misled: the first by far-out points, which stretch the diameter, the second by points on a sphere.
    Both ratios, measured at 300 to 1000 points. Without structure: a Gaussian 1.0 to 1.1 and 1.0, a random ReLU layer
    0.90 and 0.92, a cloud with far-out points 0.8 and 1.3 to 1.6, spheres 1.2 to 1.3 and 0.7 to 0.9. With structure: a
    binary tree of depth 8 0.82 and 0.55, of depth 4 0.5 and 0.3, ten clusters 0.58 and 0.36 or, if they touch, 0.9 and
    0.7. Features of EfficientNet-Lite0: CIFAR-10 0.82 and 0.73, 294 birds 0.80 and 0.72, but pictures of pure 1/f noise
    0.82 to 0.88 and 0.67 to 0.70 as well. So a second ratio above 0.6 is no evidence.
    """
    (delta, std), (null, null_std) = (analysis.mean_and_std(side, "delta_over_mean") for side in ("data", "null"))
    if null < EXACT:
        return NO_SIGN, (
            "Nothing to say: the features vary along one line, a tree by itself, and so does the Gaussian cloud."
        )
    ratio, scaled = analysis.ratio(), analysis.ratio("delta_over_mean")
    far, usual = (analysis.mean_and_std(side, "diameter_over_mean")[0] for side in ("data", "null"))
    if ratio <= 0.9 and scaled > 0.9 and far > 1.15 * usual:
        return FAR_OUT, (
            f"δ_rel is {100 - 100 * ratio:.0f} % below the Gaussian cloud's, but because of far-out images: the "
            f"diameter is {far:.1f} times the mean distance (the cloud's {usual:.1f}), and δ over the mean distance is "
            "not lower. "
            "Look for outliers; do not take it for a hierarchy."
        )
    if scaled > 0.9 or ratio > 0.95 or null - delta <= 2 * math.hypot(std, null_std):
        return NO_SIGN, (
            "No sign of tree structure beyond what the dimension gives: a Gaussian cloud without structure measures "
            "as low, or nearly. Do not expect curvature to help. If you try it, begin with a small c (0.01), nearly "
            "flat."
        )
    sweep = "choose c by validation"
    if analysis.suggests_c:
        low, high = (f"{analysis.curvature(constant):.2g}" for constant in ("hyperbolic_plane", "paper"))
        sweep += f", for instance among 0.01, {low} and {high}"
    below = f"δ_rel is {100 - 100 * ratio:.0f} % below its value, δ over the mean distance {100 - 100 * scaled:.0f} %"
    if scaled > 0.6:
        return WEAK, (
            f"Below a Gaussian cloud without structure, but no clear sign of a tree: {below}. Features of pure noise "
            "pictures came 12 % to 18 % and 30 % to 33 % below; known trees and well separated clusters 40 % to 70 % "
            "in the latter. A hyperbolic head may or may not help: compare it with a Euclidean one of the same size, "
            f"and {sweep}."
        )
    return CLEAR, (
        f"Clearly more tree-like than a Gaussian cloud without structure: {below}. A hierarchy of classes does this, "
        "and plain clusters do too; δ cannot tell them apart. Worth a hyperbolic head beside a Euclidean one of the "
        f"same size; {sweep}."
    )


def summary(analysis: Analysis) -> dict[str, Any]:
    """All numbers of an analysis, for a file: of each subsample and cloud, means and deviations, c, the verdict."""
    sides = {side: [asdict(measured) for measured in getattr(analysis, side)] for side in ("data", "null")}
    means = {f"{name}_{side}": analysis.mean_and_std(side, name) for side in sides for name in MEASURES}
    kind, words = verdict(analysis)
    return {
        "features": [analysis.count, analysis.dim],
        "effective_dimension": analysis.effective_dimension,
        "samples": analysis.samples,
        "disjoint": analysis.disjoint,
        "mean_and_std": means,
        "c": {constant: analysis.curvature(constant) for constant in CONSTANTS} if analysis.suggests_c else None,
        "verdict": {"kind": kind, "words": words},
        "subsamples": sides["data"],
        "gaussian_clouds": sides["null"],
    }


class Hyperbolicity:
    """δ_rel of one subsample of a data set's features, and of one Gaussian cloud; no run. One subsample per seed.

    dataset, split: whose images.  encoder: a name that `hypimg.models.encoders` knows.  samples: images per subsample.
    seed: which subsample. Up to ten are disjoint where the split is large enough; features are computed for the images
    of these ten, once, and kept in the store.

    Metrics: `delta_rel` (base point: the first image), `delta_rel_max_base` (the largest of 5 base points), the same of
    the cloud as `delta_rel_null` and `delta_rel_max_base_null`, `delta_over_mean` and `delta_over_mean_null` (2δ in
    units of the mean distance), `diameter`, `effective_dimension`, `c_paper` and `c_hyperbolic_plane` (from delta_rel).
    Arrays: `images`, the subsample's positions in the store.
    Source: HIE, Table 2.
    """

    def __init__(
        self, dataset: ImageDataset, encoder: str, split: str | None = "test", samples: int = SAMPLES, seed: int = 0
    ):
        if not isinstance(samples, int) or samples < 4:
            raise UserError("evaluator.samples", samples, "must be a whole number ≥ 4: δ is a property of four points")
        self.dataset, self.encoder, self.split, self.samples, self.seed = dataset, encoder, split, samples, seed

    def __call__(
        self, predictors: list[Predictor], data: EvaluationData
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        encoder = encoders.load(self.encoder, getattr(data, "download", False))
        store = data.open(self.dataset)
        indices = store.indices(self.split)
        indices = indices[pool(len(indices), self.samples)]
        device = getattr(data, "device", "cpu")
        points = checked(features.of_store(store, indices, encoder, device=device), store.name)
        chosen = subsample(len(points), self.samples, self.seed)
        spectrum = Spectrum.of(points)
        of_data = measure(points[torch.from_numpy(chosen)])
        of_null = measure(spectrum.sample(len(chosen), np.random.default_rng([self.seed, NULL])))
        metrics = {"diameter": of_data.diameter, "effective_dimension": spectrum.effective_dimension}
        for name, measured in (("", of_data), ("_null", of_null)):
            metrics[f"delta_rel{name}"] = measured.delta_rel
            metrics[f"delta_rel_max_base{name}"] = measured.delta_rel_max
            metrics[f"delta_over_mean{name}"] = measured.delta_over_mean
        for constant in CONSTANTS:
            metrics[f"c_{constant}"] = float(gromov.curvature_from_delta(of_data.delta_rel, constant))
        return metrics, {"images": indices[chosen]}
