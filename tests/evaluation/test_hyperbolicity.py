"""The null has the spectrum of the data, subsamples are what they say, and the verdict tells structure from none."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hypimg.data.datasets.digits import Digits
from hypimg.errors import UserError
from hypimg.evaluation import hyperbolicity
from hypimg.evaluation.hyperbolicity import (
    Measured,
    Spectrum,
    analyse,
    checked,
    measure,
    pool,
    spares,
    subsample,
    verdict,
)
from hypimg.geometry import gromov
from hypimg.models import encoders
from hypimg.models.encoders import Encoder, Preprocessing

RANDOM = np.random.default_rng


def gaussian(count: int, dim: int = 200, decay: float = 1.0, seed: int = 0) -> np.ndarray:
    """Points of a Gaussian with eigenvalues k^−decay."""
    return RANDOM(seed).standard_normal((count, dim)) * np.arange(1, dim + 1) ** (-decay / 2)


def clusters(count: int, spread: float = 0.3) -> np.ndarray:
    random = RANDOM(0)
    return random.standard_normal((10, 64))[random.integers(10, size=count)] + spread * random.standard_normal(
        (count, 64)
    )


def tree(count: int, depth: int = 8) -> np.ndarray:
    """Leaves of a binary tree with a random step in 128 dimensions along each edge, and a little noise."""
    random = RANDOM(0)
    steps: dict[tuple[int, ...], np.ndarray] = {}
    points = []
    for _ in range(count):
        path = tuple(random.integers(2, size=depth).tolist())
        points.append(sum(steps.setdefault(path[:n], random.standard_normal(128)) for n in range(1, depth + 1)))
    return np.array(points) + 0.3 * random.standard_normal((count, 128))


def relu_layer(count: int) -> np.ndarray:
    random = RANDOM(0)
    return np.maximum(random.standard_normal((count, 64)) @ random.standard_normal((64, 500)), 0)


def far_out(count: int) -> np.ndarray:
    return gaussian(count) * np.exp(0.4 * RANDOM(1).standard_normal((count, 1)))


def kind(points: np.ndarray, samples: int = 150, repeats: int = 6) -> str:
    return verdict(analyse(points, samples, repeats))[0]


def test_measures_are_those_of_the_points():
    points = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1], [3, 3]])
    distances = torch.cdist(points, points)
    found = measure(points)
    assert found.delta_rel == pytest.approx(float(gromov.relative_delta(distances)), rel=1e-6)
    largest = max(float(gromov.relative_delta(distances, base=base)) for base in range(5))
    assert found.delta_rel_max == pytest.approx(largest, rel=1e-6)
    assert found.diameter == pytest.approx(math.sqrt(18))
    assert found.mean_distance == pytest.approx(float(distances.sum()) / 20)
    assert found.delta_over_mean == pytest.approx(found.delta_rel * found.diameter / found.mean_distance)


def test_points_on_a_line_have_delta_zero_and_no_verdict():
    analysis = analyse(RANDOM(0).standard_normal((60, 1)), samples=20, repeats=3)
    assert analysis.mean_and_std("data")[0] == pytest.approx(0, abs=1e-6)
    assert verdict(analysis)[0] == hyperbolicity.NO_SIGN and not analysis.suggests_c


def test_the_clouds_covariance_is_that_of_the_points():
    points = checked(gaussian(2000, dim=6) @ RANDOM(1).standard_normal((6, 6)))
    cloud = Spectrum.of(points).sample(20_000, RANDOM(2))
    np.testing.assert_allclose(np.cov(cloud.numpy().T), np.cov(points.numpy().T), atol=0.06 * float(points.var()))


def test_a_cloud_of_few_points_stays_in_their_span():
    spectrum = Spectrum.of(checked(np.eye(40)[:, :5] + 3 * np.eye(40)[:, :5].sum(0)))
    exact = Spectrum(spectrum.centred, 0.0, spectrum.mean_eigenvalue, spectrum.effective_dimension)
    assert torch.linalg.matrix_rank(exact.sample(30, RANDOM(0)), rtol=1e-5) <= 5


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [40, 400])
def test_the_effective_dimension_does_not_depend_on_how_few_points_it_is_seen_in(decay, count):
    eigenvalues = np.arange(1, 301) ** -decay
    true = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    found = [1 / Spectrum.of(checked(gaussian(count, 300, decay, seed))).effective_dimension for seed in range(30)]
    assert 1 / np.mean(found) == pytest.approx(true, rel=0.12)  # S itself: off by a factor 2 to 8 at 40 points


def test_the_effective_dimension_holds_for_distributions_with_heavy_tails():
    found = []
    for seed in range(60):
        scales = RANDOM([seed, 1]).choice([0.5, 2.0], (100, 1))
        found.append(1 / Spectrum.of(checked(gaussian(100, 50, 0.0, seed) * scales)).effective_dimension)
    assert 1 / np.mean(found) == pytest.approx(50, rel=0.12)


def test_a_gaussian_measures_as_its_own_cloud():
    for count, dim, decay in ((60, 500, 0.0), (200, 500, 0.5), (1000, 100, 1.0)):
        data, null = [], []
        for seed in range(8):
            points = checked(gaussian(count, dim, decay, seed))
            data.append(measure(points[:100], 1).delta_rel)
            null.append(measure(Spectrum.of(points).sample(min(count, 100), RANDOM(seed)), 1).delta_rel)
        error = math.hypot(np.std(data, ddof=1), np.std(null, ddof=1)) / math.sqrt(len(data))
        assert abs(np.mean(data) - np.mean(null)) < 3 * error, (count, dim, decay)


def test_disjoint_subsamples_share_no_row():
    parts = [subsample(100, 20, index, repeats=5) for index in range(5)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))


def test_subsamples_of_a_small_set_are_drawn_without_replacement_each():
    parts = [subsample(30, 20, index, repeats=5) for index in range(5)]
    assert all(len(set(part.tolist())) == 20 for part in parts)
    assert len({tuple(part) for part in parts}) == 5
    assert sorted(subsample(12, 20, 0)) == list(range(12))


def test_spares_are_the_rows_outside_of_the_pool():
    rows = np.concatenate([pool(100, 8, 5, seed=3), spares(100, 8, 5, seed=3)])
    assert sorted(rows.tolist()) == list(range(100))
    assert len(spares(40, 8, 5)) == len(spares(30, 8, 5)) == 0


def test_the_pool_is_as_large_as_the_subsamples_need():
    assert pool(10_000, 100, repeats=10).shape == (1000,)
    assert pool(700, 100).tolist() == list(range(700))
    rows = pool(10_000, 100)
    assert (np.diff(rows) > 0).all() and rows.max() > 9000
    assert not np.array_equal(rows, pool(10_000, 100, seed=1))


def test_the_same_seed_gives_the_same_analysis_and_another_another():
    points = gaussian(400, 30)
    first, again, other = (analyse(points, 40, 3, seed=seed) for seed in (0, 0, 1))
    assert (first.data, first.null) == (again.data, again.null)
    assert first.data != other.data and first.null != other.null
    assert first.disjoint and len(first.data) == 3 and first.samples == 40


def test_fewer_rows_than_samples_are_all_taken_each_time():
    analysis = analyse(gaussian(50, 20), samples=1000, repeats=3)
    assert analysis.samples == 50 and not analysis.disjoint
    assert len({measured.diameter for measured in analysis.data}) == 1


def test_no_verdict_of_structure_without_structure():
    assert kind(gaussian(1000)) == hyperbolicity.NO_SIGN
    assert kind(gaussian(120, 600, 0.5)) == hyperbolicity.NO_SIGN
    assert kind(relu_layer(1000)) == hyperbolicity.NO_SIGN


def test_points_of_a_sphere_are_not_taken_for_a_tree():
    points = gaussian(1000, 5, 0.0)
    assert kind(points / np.linalg.norm(points, axis=1, keepdims=True)) == hyperbolicity.NO_SIGN


def test_trees_and_clusters_are_told_clearly():
    assert kind(tree(1000)) == hyperbolicity.CLEAR
    assert kind(clusters(1000)) == hyperbolicity.CLEAR


def test_far_out_images_are_not_taken_for_a_tree():
    name, words = verdict(analyse(far_out(1000), 150, 6))
    assert name == hyperbolicity.FAR_OUT
    assert "outliers" in words and "times the mean distance" in words


def fake(
    delta: float, null: float, spread: float = 0.01, far: float = 1.5, samples: int = 100
) -> hyperbolicity.Analysis:
    """An analysis with these means of δ_rel, and diameters of `far` and 1.5 mean distances."""

    def side(mean: float, ratio: float) -> list[Measured]:
        return [Measured(mean + off, mean + off, ratio, 1.0) for off in (-spread, 0, spread)]

    return hyperbolicity.Analysis(1000, 100, 20.0, samples, True, side(delta, far), side(null, 1.5))


@pytest.mark.parametrize(
    ("delta", "null", "spread", "far", "expected"),
    [
        (0.30, 0.30, 0.01, 1.5, hyperbolicity.NO_SIGN),
        (0.35, 0.30, 0.01, 1.5, hyperbolicity.NO_SIGN),
        (0.28, 0.30, 0.001, 1.5, hyperbolicity.NO_SIGN),  # certain, and small
        (0.20, 0.30, 0.04, 1.5, hyperbolicity.NO_SIGN),  # large, and uncertain
        (0.30, 0.30, 0.01, 1.0, hyperbolicity.NO_SIGN),  # 2δ is lower in mean distances alone, as on a sphere
        (0.24, 0.30, 0.01, 1.5, hyperbolicity.WEAK),
        (0.24, 0.30, 0.01, 1.8, hyperbolicity.FAR_OUT),
        (0.15, 0.30, 0.01, 1.5, hyperbolicity.CLEAR),
        (0.0, 0.0, 0.0, 1.5, hyperbolicity.NO_SIGN),
    ],
)
def test_the_rule_of_the_verdict(delta, null, spread, far, expected):
    assert verdict(fake(delta, null, spread, far))[0] == expected


def test_a_sign_comes_with_values_of_c_to_try():
    analysis = fake(0.15, 0.30)
    words = verdict(analysis)[1]
    assert f"{(0.144 / 0.15) ** 2:.2g}" in words and "0.14" in words
    assert analysis.curvature("hyperbolic_plane") == pytest.approx((0.05679 / 0.15) ** 2, rel=1e-3)


def test_a_perfect_tree_suggests_an_infinite_c():
    analysis = fake(0.0, 0.3, 0.0)
    assert analysis.curvature("paper") == math.inf
    kind, words = verdict(analysis)
    assert kind == hyperbolicity.CLEAR and words.endswith("choose c by validation.")
    assert hyperbolicity.summary(analysis)["c"] is None


def test_fewer_than_a_hundred_images_are_too_few_to_be_sure():
    sure, unsure = (verdict(fake(0.15, 0.30, samples=samples)) for samples in (100, 99))
    assert unsure[0] == sure[0] and "too few" not in sure[1]
    assert unsure[1] == f"{sure[1]} But 99 images are too few to be sure: take 100 at least, better 1000."


def test_the_summary_holds_every_number():
    said = hyperbolicity.summary(fake(0.15, 0.30))
    assert said["mean_and_std"]["delta_rel_data"] == pytest.approx((0.15, 0.01))
    assert said["mean_and_std"]["delta_over_mean_null"] == pytest.approx((0.45, 0.015))
    assert len(said["subsamples"]) == len(said["gaussian_clouds"]) == 3
    assert said["verdict"]["kind"] == hyperbolicity.CLEAR and set(said["c"]) == {"paper", "hyperbolic_plane"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros(10), "must be a matrix of numbers"),
        (np.array([["a"]] * 5), "must be a matrix of numbers"),
        (np.zeros((5, 0)), "must be a matrix of numbers"),
        (np.eye(3), "four points"),
        (np.full((5, 2), 7.0), "all equal"),
        (np.array([[0.0], [1], [2], [np.nan], [np.inf]]), "row 3: not finite, as 2 of 5 rows"),
        (1e30 * np.eye(5), "too large for float32"),
        (1e-30 * np.eye(5), "too small"),
    ],
)
def test_what_is_no_feature_matrix_is_refused(rows, message):
    with pytest.raises(UserError, match=message):
        checked(rows)


def test_a_row_that_is_not_finite_is_named_by_its_place_in_the_matrix():
    points = gaussian(100, 5)
    row = int(pool(100, 4, 3)[5])
    points[row, 2] = np.nan
    with pytest.raises(UserError, match=f"row {row}: not finite, as 1 of 12 rows drawn"):
        analyse(points, samples=4, repeats=3)


def test_a_far_origin_costs_no_digits():
    points = gaussian(50, 10)
    np.testing.assert_allclose(checked(points + 1e8), checked(points), atol=1e-6)


@pytest.mark.parametrize(("samples", "repeats"), [(3, 10), (100, 1)])
def test_too_few_samples_or_repeats_are_refused(samples, repeats):
    with pytest.raises(UserError, match="must be at least 4 and 2"):
        analyse(gaussian(50), samples, repeats)


class Pixels(nn.Flatten):
    """The images themselves; counts them."""

    seen = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return super().forward(images)


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """The evaluator on the digits of scikit-learn, with an encoder that returns their pixels."""
    how = Preprocessing(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    encoder = Encoder("pixels", Pixels(), how, "last", "0" * 64)
    monkeypatch.setattr(encoders, "load", lambda name, download: encoder)
    data = SimpleNamespace(
        open=lambda dataset: dataset.open(tmp_path / "data", tmp_path / "store"), device="cpu", download=False
    )

    def call(**options: object) -> tuple[dict, dict]:
        return hyperbolicity.Hyperbolicity(Digits([0.3], [0.4]), "pixels", **options)([], data)

    call.store = data.open(Digits([0.3], [0.4]))
    call.encoder = encoder
    return call


def test_images_are_encoded_once_for_ten_seeds_and_no_more_than_these_need(evaluate):
    for seed in range(3):
        evaluate(samples=40, seed=seed)
    assert evaluate.encoder.network.seen == 400  # of the 500 of the test part


def test_the_evaluator_measures_one_subsample_per_seed(evaluate):
    runs = [evaluate(samples=40, seed=seed) for seed in (0, 1, 0)]
    assert runs[0][0] == runs[2][0] != runs[1][0]
    first, second = (set(arrays["images"].tolist()) for _, arrays in runs[:2])
    assert len(first) == 40 and not first & second
    assert first | second <= set(evaluate.store.indices("test").tolist())
    metrics = runs[0][0]
    assert all(re.fullmatch(r"[a-z_]+", name) and type(value) is float for name, value in metrics.items())
    assert metrics["c_paper"] == pytest.approx((0.144 / metrics["delta_rel"]) ** 2, rel=1e-6)
    assert 0 < metrics["delta_rel"] <= metrics["delta_rel_max_base"] < 1
    assert 0 < metrics["delta_rel_null"] <= metrics["delta_rel_max_base_null"] < 1


def test_the_evaluator_takes_a_seed_beyond_the_disjoint_parts_and_a_small_split(evaluate):
    _, arrays = evaluate(samples=40, seed=23)
    assert len(set(arrays["images"].tolist())) == 40
    _, arrays = evaluate(samples=1000, split="test", seed=1)
    assert len(arrays["images"]) == 500


def test_the_evaluator_refuses_a_wrong_split_or_size(evaluate):
    with pytest.raises(UserError, match="split=val"):
        evaluate(split="val")
    with pytest.raises(UserError, match="four points"):
        evaluate(samples=3)
