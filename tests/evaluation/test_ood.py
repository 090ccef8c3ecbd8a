"""Out-of-distribution metrics against hand-made lists, brute force and scikit-learn; the evaluator on a fake run."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

from hypimg.errors import UserError
from hypimg.evaluation.ood import OutOfDistribution, auroc, fpr95, hyperplanes, ks_distance, log_p_max
from hypimg.geometry.hyperplanes import mlr_logits
from hypimg.models.classifier import Classifier
from hypimg.models.heads import MLR, Linear
from hypimg.nn.spaces import Euclidean, PoincareBall

# Few distinct values, so that ties within and across the sides are the rule.
coarse_scores = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=30).map(np.array)


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [
        ([1, 2, 3], [4, 5, 6], 1.0),
        ([1, 2, 3], [1, 2, 3], 0.0),
        ([1, 3], [2, 4], 0.5),
        ([1, 1, 1, 2], [1, 2, 2, 2], 0.5),  # at t = 1: 3/4 against 1/4
        ([0], [0, 1, 2, 3], 0.75),
    ],
)
def test_ks_distance_of_hand_made_lists(inside, outside, expected):
    assert ks_distance(np.array(inside), np.array(outside)) == expected


@settings(max_examples=50)
@given(coarse_scores, coarse_scores)
def test_ks_distance_is_the_largest_gap_of_the_distribution_functions(inside, outside):
    gaps = [abs(np.mean(inside <= t) - np.mean(outside <= t)) for t in np.concatenate([inside, outside])]
    assert ks_distance(inside, outside) == pytest.approx(max(gaps), abs=1e-14)


@settings(max_examples=50)
@given(coarse_scores, coarse_scores)
def test_ks_distance_does_not_change_under_an_increasing_map(inside, outside):
    assert ks_distance(np.exp(inside), np.exp(outside)) == ks_distance(inside, outside)


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [([3, 4], [1, 2], 1.0), ([1, 2], [3, 4], 0.0), ([1, 1], [1, 1], 0.5), ([1, 2], [1, 0], 0.875)],
)
def test_auroc_of_hand_made_lists_counts_a_tie_as_half(inside, outside, expected):
    assert auroc(np.array(inside), np.array(outside)) == expected


@settings(max_examples=50)
@given(coarse_scores, coarse_scores)
def test_auroc_agrees_with_scikit_learn(inside, outside):
    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, np.concatenate([inside, outside])), abs=1e-14)


@settings(max_examples=50)
@given(coarse_scores, coarse_scores)
def test_auroc_does_not_depend_on_the_positive_class(inside, outside):
    assert auroc(-outside, -inside) == pytest.approx(auroc(inside, outside), abs=1e-14)


TEN_IN = np.arange(10.0)  # all ten are needed for a recall of 95 %
TWENTY_OUT = np.array([-1.0] * 15 + [0.0] * 3 + [20.0] * 2)  # 19 of 20 are needed


def test_fpr95_with_in_distribution_positive():
    assert fpr95(TEN_IN, TWENTY_OUT, positive="in") == 5 / 20  # threshold 0: the ties at 0 pass, too


def test_fpr95_with_outliers_positive():
    assert fpr95(TEN_IN, TWENTY_OUT, positive="out") == 1.0  # the nineteenth outlier scores 20
    assert fpr95(TEN_IN, TWENTY_OUT[:19], positive="out") == 1.0
    assert fpr95(TEN_IN, TWENTY_OUT[:18], positive="out") == 0.1  # threshold 0: one of ten is rejected by mistake


def test_fpr95_has_two_meanings():
    inside, outside = np.linspace(0, 1, 101), np.linspace(-0.5, 0.5, 101) ** 3
    assert fpr95(inside, outside, positive="in") != fpr95(inside, outside, positive="out")


@settings(max_examples=50)
@given(coarse_scores, coarse_scores, st.sampled_from(["in", "out"]))
def test_fpr95_is_the_first_point_of_the_roc_curve_with_enough_recall(inside, outside, positive):
    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    scores = np.concatenate([inside, outside])
    if positive == "out":
        truth, scores = 1 - truth, -scores
    rates_false, rates_true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert fpr95(inside, outside, positive) == rates_false[rates_true >= 0.95 - 1e-12].min()


def test_fpr95_needs_no_image_more_than_95_percent():
    positives = np.arange(100.0)  # the five lowest may be lost
    assert fpr95(positives, np.array([4.5, 5.0]), positive="in") == 0.5


def test_fpr95_refuses_an_unknown_convention():
    with pytest.raises(ValueError, match="positive must be 'in' or 'out'"):
        fpr95(TEN_IN, TWENTY_OUT, positive="id")


@pytest.mark.parametrize("bad", [np.array([]), np.array([1.0, np.nan]), np.ones((2, 2))])
@pytest.mark.parametrize("metric", [ks_distance, auroc, lambda a, b: fpr95(a, b, positive="in")])
def test_metrics_refuse_empty_or_nan_scores(metric, bad):
    with pytest.raises(ValueError, match="scores must be"):
        metric(np.ones(3), bad)
    with pytest.raises(ValueError, match="scores must be"):
        metric(bad, np.ones(3))


def test_log_p_max_agrees_with_log_softmax():
    logits = np.random.default_rng(0).normal(0, 5, (200, 10)).astype(np.float32)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=1).max(dim=1).values.numpy()
    np.testing.assert_allclose(log_p_max(logits), expected, rtol=1e-9, atol=1e-15)


def test_log_p_max_orders_images_whose_probability_rounds_to_one():
    logits = np.array([[0, 20, 0], [0, 0, 40], [100, 0, 0], [0, 200, 0]], dtype=np.float32)
    assert (torch.softmax(torch.from_numpy(logits), dim=1).max(dim=1).values == 1).all()
    assert (np.diff(log_p_max(logits)) > 0).all()
    np.testing.assert_allclose(log_p_max(logits), -2 * np.exp(-np.array([20.0, 40, 100, 200])), rtol=1e-8)


class FakeRun:
    """Predictor and data in one: a store is a pair (points, labels)."""

    def __init__(self, inside: np.ndarray, outside: np.ndarray):
        self.name, self.stores = "fake", {"test": inside, "outliers": outside}
        self.model = Classifier(nn.Identity(), PoincareBall(c=1.0, margin=0.1), nn.Identity())  # clip sphere at 0.9
        self.store = self._store(inside)
        self.indices, self.labels = np.arange(len(inside)), np.zeros(len(inside), np.int64)

    @staticmethod
    def _store(points: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(
            points=points,
            indices=lambda split: {None: np.arange(len(points)), "odd": np.arange(1, len(points), 2)}[split],
        )

    def open(self, dataset: str) -> SimpleNamespace:
        return self._store(self.stores[dataset])

    def embed_all(self, store: SimpleNamespace, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points = store.points[indices]
        return points, np.stack([10 * np.linalg.norm(points, axis=1), np.zeros(len(points))], axis=1)


def on_axis(radii: list[float]) -> np.ndarray:
    return np.stack([radii, np.zeros(len(radii))], axis=1).astype(np.float32)


def evaluate(inside: list[float], outside: list[float]) -> tuple[dict, dict]:
    run = FakeRun(on_axis(inside), on_axis(outside))
    return OutOfDistribution("outliers")([run], run)


def test_evaluator_compares_test_images_with_outliers():
    metrics, arrays = evaluate([0.5, 0.7, 0.9, 0.9], [0.1, 0.2, 0.6, 0.9])
    # At the third smallest outlier: 1/4 of the test images against 3/4 of the outliers lie nearer the origin.
    assert metrics["ks/dist0"] == metrics["ks/p_max"] == metrics["ks/norm"] == 0.5
    assert metrics["accuracy"] == 1.0
    assert (metrics["clipped/in"], metrics["clipped/out"]) == (0.5, 0.25)
    assert metrics["ks/dist0_unclipped"] == pytest.approx(2 / 3)
    np.testing.assert_allclose(arrays["dist0_in"], 2 * np.arctanh([0.5, 0.7, 0.9, 0.9]), rtol=1e-6)
    assert arrays["dist0_out"].dtype == arrays["pmax_out"].dtype == np.float64
    np.testing.assert_array_equal(arrays["clipped_out"], [False, False, False, True])
    assert {"points", "labels", "outliers", "pmax_in", "c"} <= set(arrays)


def test_evaluator_takes_one_split_of_the_outliers_or_all():
    run = FakeRun(on_axis([0.5, 0.7]), on_axis([0.1, 0.2, 0.3, 0.4]))
    assert len(OutOfDistribution("outliers")([run], run)[1]["outliers"]) == 4
    _, arrays = OutOfDistribution("outliers", split="odd")([run], run)
    np.testing.assert_array_equal(arrays["outliers"], on_axis([0.2, 0.4]))


def test_evaluator_names_are_flat_and_plain():
    metrics, _ = evaluate([0.5, 0.7, 0.8], [0.1, 0.2, 0.3])
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_./-]*", name) for name in metrics)
    assert {"auroc/dist0", "auroc/p_max", "fpr95/dist0/in_positive", "fpr95/p_max/out_positive"} <= set(metrics)
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize(("inside", "outside"), [([0.9, 0.9, 0.5], [0.1, 0.2]), ([0.1, 0.2], [0.9, 0.9, 0.1])])
def test_unclipped_distance_is_left_out_where_nearly_all_points_are_clipped(inside, outside):
    metrics, _ = evaluate(inside, outside)
    assert "ks/dist0_unclipped" not in metrics
    assert "ks/dist0" in metrics


def test_evaluator_refuses_two_runs():
    run = FakeRun(on_axis([0.1]), on_axis([0.2]))
    with pytest.raises(UserError, match="give one run"):
        OutOfDistribution("outliers")([run, run], run)


@pytest.mark.parametrize("space", [Euclidean(), PoincareBall(c=0.5)])
def test_stored_hyperplanes_give_the_logits_of_the_head(space):
    torch.manual_seed(0)
    head = MLR(space, in_features=3, num_classes=4)
    points = space.embed(torch.randn(7, 3))
    planes = hyperplanes(Classifier(nn.Identity(), space, head))
    logits = mlr_logits(
        points, torch.from_numpy(planes["offsets"]), torch.from_numpy(planes["normals"]), float(planes["c"])
    )
    scale = 4 if planes["c"] == 0 else 1  # the limit of the ball's logits is four times the linear ones
    torch.testing.assert_close(logits, scale * head(points))


def test_hyperplanes_are_left_out_for_a_head_without_them():
    space = PoincareBall(c=0.5)
    assert set(hyperplanes(Classifier(nn.Identity(), space, Linear(space, 3, 4)))) == {"c"}
