"""Toy spaces: samples have the laws and distances they claim, and δ_rel is what theory says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hypimg import config
from hypimg.errors import UserError
from hypimg.evaluation import toy_space
from hypimg.evaluation.toy_space import SPACES, ToySpace
from hypimg.geometry import gromov, poincare
from hypimg.run import instantiate

RADIUS = 2 * math.atanh(toy_space.DISK_RADIUS)

names = st.sampled_from(sorted(SPACES))


def sample(space, count=40, seed=0):
    return SPACES[space](count, np.random.default_rng(seed))


def measured(space, points, base=0, seeds=20):
    return [ToySpace(space, points, base, seed)([], None)[0]["delta_rel"] for seed in range(seeds)]


@settings(max_examples=20)
@given(names, st.integers(4, 30), st.integers(0, 1000))
def test_distances_are_those_of_a_metric_space(space, count, seed):
    _, d = sample(space, count, seed)
    np.testing.assert_allclose(d, d.T, rtol=1e-12)
    assert (np.diag(d) == 0).all() and (d[~np.eye(count, dtype=bool)] > 0).all()
    assert (d[:, None, :] <= (d[:, :, None] + d[None]) * (1 + 1e-12)).all()


@settings(max_examples=20)
@given(st.integers(4, 30), st.integers(0, 1000))
def test_a_tree_is_0_hyperbolic_and_its_edges_are_the_drawn_ones(count, seed):
    drawn, d = sample("tree", count, seed)
    assert float(gromov.relative_delta(torch.from_numpy(d), base="all")) < 1e-14
    for node, (parent, length) in enumerate(drawn[1:], start=1):
        assert parent < node and 0 < length <= 1
        assert d[node, int(parent)] == length


def test_a_node_hangs_on_any_earlier_one_alike():
    drawn, _ = sample("tree", 2000)
    places = np.sort((drawn[1:, 0] + 0.5) / np.arange(1, 2000))
    assert np.abs(places - (np.arange(1999) + 0.5) / 1999).max() < 1.63 / math.sqrt(1999)  # Kolmogorov, 99 %


@pytest.mark.parametrize("space", ["disk_area", "disk_hyperbolic"])
def test_disks_reach_to_hies_clip_and_have_the_distances_of_the_ball(space):
    points, d = sample(space, 400)
    norms = np.linalg.norm(points, axis=1)
    assert norms.max() <= toy_space.DISK_RADIUS * (1 + 1e-15) and d.max() <= 2 * RADIUS
    x, y = torch.from_numpy(points[:200]), torch.from_numpy(points[200:])
    np.testing.assert_allclose(np.diag(d[:200, 200:]), poincare.dist(x, y, 1.0).numpy(), rtol=1e-10)


def test_the_laws_of_the_disks():
    count = 4000
    for space, share in (
        ("disk_area", lambda norms: (norms / toy_space.DISK_RADIUS) ** 2),
        ("disk_hyperbolic", lambda norms: (np.cosh(2 * np.arctanh(norms)) - 1) / (math.cosh(RADIUS) - 1)),
    ):
        points, _ = sample(space, count)
        shares = np.sort(share(np.linalg.norm(points, axis=1)))
        expected = (np.arange(count) + 0.5) / count
        assert np.abs(shares - expected).max() < 1.63 / math.sqrt(count), space
        angles = np.sort(np.arctan2(points[:, 1], points[:, 0])) / (2 * np.pi) + 0.5
        assert np.abs(angles - expected).max() < 1.63 / math.sqrt(count), space


@pytest.mark.parametrize("space", ["sphere", "hemisphere"])
def test_spheres_have_great_circle_distances_and_uniform_heights(space):
    points, d = sample(space, 2000)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1)
    np.testing.assert_allclose(d, np.arccos(np.clip(points @ points.T, -1, 1)), atol=3e-8)
    lowest = 0 if space == "hemisphere" else -1
    heights = np.sort((points[:, 2] - lowest) / (1 - lowest))  # Archimedes: uniform
    assert np.abs(heights - (np.arange(2000) + 0.5) / 2000).max() < 1.63 / math.sqrt(2000)


def test_four_points_of_a_great_circle_have_delta_rel_1():
    circle = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], dtype=float)
    assert float(gromov.relative_delta(torch.from_numpy(toy_space._great_circle(circle)))) == pytest.approx(1)


def test_the_hyperbolic_disk_has_ln_2_over_its_radius():
    assert measured("disk_hyperbolic", 100, seeds=3) == pytest.approx([math.log(2) / RADIUS] * 3, rel=0.01)


@pytest.mark.parametrize(
    ("space", "points", "mean"),
    [("disk_area", 30, 0.146), ("disk_area", 100, 0.121), ("hemisphere", 30, 0.675), ("sphere", 30, 0.796)],
)
def test_the_known_means_of_other_samples_come_out(space, points, mean):
    values = measured(space, points)
    assert np.mean(values) == pytest.approx(mean, abs=4 * np.std(values) / math.sqrt(len(values)))


def test_one_base_point_gives_between_half_and_all_of_delta():
    for space in ("disk_area", "hemisphere", "sphere"):
        one, every = measured(space, 30, seeds=5), measured(space, 30, "all", seeds=5)
        assert all(every_ / 2 <= one_ <= every_ for one_, every_ in zip(one, every, strict=True))
        assert one != every


@pytest.mark.parametrize("space", SPACES)
def test_a_seed_gives_its_sample_whatever_the_base(space):
    first, again, other = (ToySpace(space, 20, seed=seed)([], None) for seed in (1, 1, 2))
    assert first[0] == again[0] and first[0] != other[0]
    np.testing.assert_array_equal(first[1]["sample"], ToySpace(space, 20, "all", 1)([], None)[1]["sample"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "spher"}, "evaluator.space=spher: did you mean sphere"),
        ({"points": 3}, "evaluator.points=3: must be a whole number ≥ 4"),
        ({"points": 10.5}, "evaluator.points=10.5: must be"),
        ({"base": 100}, "evaluator.base=100: must be all, or a number from 0 to 99"),
        ({"base": "one"}, "evaluator.base=one: must be all"),
    ],
)
def test_a_wrong_option_ends_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        instantiate(config.OmegaConf.merge(config.compose_group("evaluator", "toy_space"), options))
