"""Classification of the test images: accuracy and negative log-likelihood."""

from __future__ import annotations

import numpy as np

from hypimg.errors import UserError
from hypimg.evaluation import EvaluationData
from hypimg.evaluation.predictor import Predictor


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest logit is that of their label (the first of equal ones). logits [N, K], labels [N]."""
    return float(np.mean(logits.argmax(axis=1) == labels))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities [N, K] in float64, for logits of any size: x − max − log Σ exp(x − max)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of −log p(label) in nats, float64. logits [N, K], labels [N]."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


class Accuracy:
    """`accuracy` and `nll` on the test images; several predictors vote by the mean of their logits (PR, Figure 4b).

    batch_size, statistics: of Poincaré batch norms: `batch`: those of each test batch of this size, in the data's
    order; `frozen`: those stored of the training images. None: as the predictor has it, frozen. No other layer minds.
    shuffle_seed: of the order in which images come into batches; None: the data's own, which may be sorted by class.
    Arrays: `labels` [N] and `logits` [N, K], from which a confusion matrix or per-class accuracy follows.
    Raises UserError for a size below 1 and for unknown statistics.
    """

    def __init__(self, batch_size: int | None = None, statistics: str | None = None, shuffle_seed: int | None = None):
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise UserError("evaluator.batch_size", batch_size, "must be a whole number ≥ 1, or null")
        if statistics not in {None, "batch", "frozen"}:
            raise UserError("evaluator.statistics", statistics, "must be batch or frozen, or null")
        if shuffle_seed is not None and (not isinstance(shuffle_seed, int) or shuffle_seed < 0):
            raise UserError("evaluator.shuffle_seed", shuffle_seed, "must be a whole number ≥ 0, or null")
        self.batch_size, self.statistics, self.shuffle_seed = batch_size, statistics, shuffle_seed

    def __call__(
        self, predictors: list[Predictor], data: EvaluationData
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        count = len(data.indices)
        order = np.arange(count)
        if self.shuffle_seed is not None:
            order = np.random.default_rng(self.shuffle_seed).permutation(count)
        found = []
        for predictor in predictors:
            with predictor.normed_by(self.statistics, self.batch_size):
                found.append(predictor.embed_all(data.store, data.indices[order])[1])
        logits = np.mean(found, axis=0)[order.argsort()]
        metrics = {
            "accuracy": accuracy(logits, data.labels),
            "nll": negative_log_likelihood(logits, data.labels),
        }
        return metrics, {"labels": data.labels, "logits": logits}
