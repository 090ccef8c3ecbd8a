"""Telling images of the training distribution from images of another: KS distance, AUROC, FPR at 95 % recall.

A score is a number per image, *higher = more in-distribution*. HIE (section 5.1) compares two: the hyperbolic distance
of the embedding to the origin, and the largest softmax probability. Everything here is float64.
"""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import torch

from hypimg.data.dataset import ImageDataset
from hypimg.errors import UserError
from hypimg.evaluation import EvaluationData
from hypimg.evaluation.accuracy import accuracy
from hypimg.evaluation.predictor import Predictor
from hypimg.models.classifier import Classifier
from hypimg.nn.spaces import Space

Positive = Literal["in", "out"]


def ks_distance(scores_in: np.ndarray, scores_out: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov statistic: the largest gap between the two empirical distribution functions.

    sup_t |F_in(t) − F_out(t)|, in [0, 1]; unchanged by any increasing map of the scores, and by swapping the samples:
    it does not say which side scores higher (`auroc` does).   Source: HIE, Table 3.
    """
    from scipy.stats import ks_2samp

    return float(ks_2samp(_scores(scores_in), _scores(scores_out), method="asymp").statistic)


def auroc(scores_in: np.ndarray, scores_out: np.ndarray) -> float:
    """Area under the ROC curve: P(in > out) + ½ P(in = out) for one random score of each side.

    The same number whichever side is called positive, as long as the score points towards that side: swapping the
    classes and turning the score's sign cancel. So the metric needs no convention in its name; `fpr95` does.
    """
    from scipy.stats import rankdata

    scores_in, scores_out = _scores(scores_in), _scores(scores_out)
    n, m = len(scores_in), len(scores_out)
    rank_sum = rankdata(np.concatenate([scores_in, scores_out]))[:n].sum()
    return float((rank_sum - n * (n + 1) / 2) / (n * m))


def fpr95(scores_in: np.ndarray, scores_out: np.ndarray, positive: Positive) -> float:
    """False positive rate at the threshold that finds at least 95 % of the positives. Two meanings, two numbers:

    positive="in":  share of outliers accepted where 95 % of in-distribution images are accepted (score ≥ threshold);
                    the convention of PR's released code and of the energy-score code.
    positive="out": share of in-distribution images rejected where 95 % of outliers are (score ≤ threshold).

    The threshold is the strictest score that keeps the recall; images tied with it count as found, on both sides.
    """
    scores_in, scores_out = _scores(scores_in), _scores(scores_out)
    if positive == "in":
        positives, negatives = scores_in, scores_out
    elif positive == "out":
        positives, negatives = -scores_out, -scores_in
    else:
        raise ValueError(f"positive must be 'in' or 'out', got {positive!r}")
    needed = -(-95 * len(positives) // 100)  # ceil(0.95 n) in integers: 0.95 * n may round up to one image too many
    threshold = np.sort(positives)[len(positives) - needed]
    return float(np.mean(negatives >= threshold))


def log_p_max(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the largest softmax probability, float64 [N], for logits [N, K].

    log p_max = −log(1 + Σ_{k ≠ argmax} exp(logit_k − max)), which keeps its digits where p_max itself is 1.0: float32
    probabilities tie there from a logit gap of about 17 on, float64 ones from 37 on, and ties change the KS distance.
    """
    gaps = np.sort(logits.astype(np.float64), axis=1)
    gaps -= gaps[:, -1:].copy()
    return -np.log1p(np.exp(gaps[:, :-1]).sum(axis=1))


def _scores(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0 or np.isnan(scores).any():
        raise ValueError(f"scores must be a non-empty vector without NaN, got shape {scores.shape}")
    return scores


class OutOfDistribution:
    """Scores of the run's test images against those of `outliers` (one split, or all of it), for one predictor.

    Outliers are normalised like the model's training images, whatever their own data set says.

    Metrics, each for the scores `dist0` (distance of the embedding to the origin in the model's space), `p_max`
    (largest softmax probability) and `norm` (Euclidean norm of the embedding; in a ball an increasing function of
    dist0, so it ties with it but for rounding): `ks/<score>`, `auroc/<score>`, `fpr95/<score>/in_positive`,
    `fpr95/<score>/out_positive`. Beside them `accuracy` on the test images, `clipped/in` and `clipped/out` (share of
    points on the clip sphere) and `ks/dist0_unclipped` without those points, left out where fewer than two remain on
    a side.

    Arrays: `points` [N, d] and `labels` [N] of the test images, `outliers` [M, d], `dist0_in/out`, `pmax_in/out`
    (float64 *logarithms* of p_max), `clipped_in/out` (bool), `c`, and the decision hyperplanes as `offsets` and
    `normals` [K, d] where the head has them: logit_k = mlr_logits(x, offsets, normals, c)_k, which for c = 0 (a linear
    head) has the same zeros and the same argmax as the head's own logits.
    """

    def __init__(self, outliers: ImageDataset, split: str | None = None):
        self.outliers, self.split = outliers, split

    def __call__(
        self, predictors: list[Predictor], data: EvaluationData
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        if len(predictors) != 1:
            names = ", ".join(predictor.name for predictor in predictors)
            raise UserError("evaluator", names, "out-of-distribution scores are those of one run; give one run")
        predictor = predictors[0]
        outlier_store = data.open(self.outliers)
        points_in, logits_in = predictor.embed_all(data.store, data.indices)
        points_out, logits_out = predictor.embed_all(outlier_store, outlier_store.indices(self.split))
        model = predictor.model
        dist0_in, clipped_in = _radii(model.space, points_in)
        dist0_out, clipped_out = _radii(model.space, points_out)
        scores = {
            "dist0": (dist0_in, dist0_out),
            "p_max": (log_p_max(logits_in), log_p_max(logits_out)),
            "norm": (_norms(points_in), _norms(points_out)),
        }
        metrics = {"accuracy": accuracy(logits_in, data.labels)} | compare(scores)
        metrics |= {"clipped/in": float(clipped_in.mean()), "clipped/out": float(clipped_out.mean())}
        if min((~clipped_in).sum(), (~clipped_out).sum()) >= 2:
            metrics["ks/dist0_unclipped"] = ks_distance(dist0_in[~clipped_in], dist0_out[~clipped_out])
        arrays = {
            "points": points_in,
            "labels": data.labels,
            "outliers": points_out,
            "dist0_in": dist0_in,
            "dist0_out": dist0_out,
            "pmax_in": scores["p_max"][0],
            "pmax_out": scores["p_max"][1],
            "clipped_in": clipped_in,
            "clipped_out": clipped_out,
        }
        return metrics, arrays | hyperplanes(model)


def compare(scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """`ks`, `auroc` and both `fpr95` of each named pair (in-distribution, outliers) of scores."""
    metrics = {}
    for name, (inside, outside) in scores.items():
        metrics[f"ks/{name}"] = ks_distance(inside, outside)
        metrics[f"auroc/{name}"] = auroc(inside, outside)
        metrics[f"fpr95/{name}/in_positive"] = fpr95(inside, outside, positive="in")
        metrics[f"fpr95/{name}/out_positive"] = fpr95(inside, outside, positive="out")
    return metrics


def _norms(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points.astype(np.float64), axis=1)


def _radii(space: Space, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the origin (float64) and which points lie on the clip sphere, both [N]."""
    space = copy.deepcopy(space).cpu()  # float64 is not to be had on every device
    on_host = torch.from_numpy(points)
    with torch.no_grad():
        return space.dist0(on_host.double()).numpy(), space.clipped(on_host).numpy()


def hyperplanes(model: Classifier) -> dict[str, np.ndarray]:
    """`c` of the model's space, and its decision hyperplanes `offsets`, `normals` [K, d] where its head has them."""
    arrays = {"c": model.space.c}
    planes = getattr(model.head, "hyperplanes", None)
    if isinstance(planes, torch.nn.Linear):
        arrays["normals"] = planes.weight
        arrays["offsets"] = -planes.bias[:, None] * planes.weight / planes.weight.square().sum(dim=1, keepdim=True)
    elif planes is not None:
        arrays["normals"], arrays["offsets"] = planes.normals, planes.offsets
    return {name: array.detach().cpu().numpy() for name, array in arrays.items()}
