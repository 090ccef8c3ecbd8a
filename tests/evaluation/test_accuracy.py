"""Accuracy and negative log-likelihood on hand-made logits."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hypimg.errors import UserError
from hypimg.evaluation.accuracy import Accuracy, accuracy, log_softmax, negative_log_likelihood

LABELS = np.array([0, 1, 1, 0])
LOGITS = np.array([[2, 0], [0, 2], [3, 0], [0, 0]], dtype=np.float32)  # right, right, wrong, tie won by class 0


class FixedPredictor:
    """Answers every question with the same logits."""

    def __init__(self, logits: np.ndarray):
        self.name, self.model, self.logits = "fixed", None, logits

    def normed_by(self, statistics: str | None, batch_size: int | None) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def embed_all(self, store: object, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(indices), 2), np.float32), self.logits[indices]


DATA = SimpleNamespace(store=None, indices=np.arange(4), labels=LABELS, open=None)


def test_accuracy_of_a_hand_made_list():
    assert accuracy(LOGITS, LABELS) == 0.75


def test_negative_log_likelihood_of_a_hand_made_list():
    expected = (2 * math.log1p(math.exp(-2)) + 3 + math.log1p(math.exp(-3)) + math.log(2)) / 4
    assert negative_log_likelihood(LOGITS, LABELS) == pytest.approx(expected, rel=1e-12)


def test_log_softmax_agrees_with_torch_and_survives_huge_logits():
    logits = np.array([[1e4, 0.0, -1e4], [0.3, -0.2, 5.0]], dtype=np.float32)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-14, atol=1e-14)


def test_images_come_shuffled_and_their_logits_in_the_datas_order():
    order = []

    class Recorder(FixedPredictor):
        def embed_all(self, store: object, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            order.extend(indices.tolist())
            return super().embed_all(store, indices)

    metrics, arrays = Accuracy(shuffle_seed=0)([Recorder(LOGITS)], DATA)
    assert sorted(order) == [0, 1, 2, 3] != order
    assert metrics["accuracy"] == 0.75
    np.testing.assert_array_equal(arrays["logits"], LOGITS)


def test_evaluator_reports_both_numbers_and_keeps_the_logits():
    metrics, arrays = Accuracy()([FixedPredictor(LOGITS)], DATA)
    assert metrics == {"accuracy": 0.75, "nll": negative_log_likelihood(LOGITS, LABELS)}
    np.testing.assert_array_equal(arrays["logits"], LOGITS)
    np.testing.assert_array_equal(arrays["labels"], LABELS)


def test_several_predictors_vote_by_mean_logit():
    against = np.array([[-1, 0], [0, -1], [-9, 0], [1, 0]], dtype=np.float32)
    metrics, _ = Accuracy()([FixedPredictor(LOGITS), FixedPredictor(against)], DATA)
    assert metrics["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, r"batch_size=2\.5"),
        ({"statistics": "x"}, "statistics=x"),
        ({"shuffle_seed": -1}, "shuffle_seed=-1"),
    ],
)
def test_options_out_of_range_are_named(options: dict, wrong: str):
    with pytest.raises(UserError, match=wrong):
        Accuracy(**options)
