"""Episodes obey their laws for any classes, come out uniformly, and name the class that has too few images."""

from __future__ import annotations

from collections import Counter
from math import perm

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from hypimg.data.episodes import EpisodeSampler
from hypimg.errors import UserError


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _labels(sizes: list[int], seed: int = 0) -> torch.Tensor:
    """Classes of these sizes, numbered with gaps, in random order."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) * 3 + 1
    return labels[torch.randperm(len(labels), generator=_seeded(seed))]


@st.composite
def _settings(draw: st.DrawFn) -> tuple[list[int], int, int, int]:
    shot, query = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(shot + query, shot + query + 6), min_size=2, max_size=8))
    return sizes, draw(st.integers(2, len(sizes))), shot, query


@given(settings=_settings(), seed=st.integers(0, 1000))
def test_an_episode_has_its_classes_in_order_and_no_class_or_image_twice(
    settings: tuple[list[int], int, int, int], seed: int
) -> None:
    sizes, way, shot, query = settings
    labels = _labels(sizes, seed)
    sampler = EpisodeSampler(labels, way, shot, query)
    episodes = sampler.sample(7, _seeded(seed))
    assert episodes.shape == (7, sampler.images) and episodes.dtype == torch.int64
    assert sampler.images == way * (shot + query)
    assert episodes.min() >= 0, "the filling of smaller classes is never drawn"
    for row in episodes:
        assert len(row.unique()) == len(row), "no image twice, so support and queries are disjoint too"
        by_place = labels[row].view(shot + query, way)
        assert bool((by_place == by_place[0]).all()), "the class of position p is that of p % way"
        assert len(by_place[0].unique()) == way


@given(settings=_settings(), seed=st.integers(0, 1000))
def test_episodes_are_a_function_of_the_generator_alone(settings: tuple[list[int], int, int, int], seed: int) -> None:
    sizes, way, shot, query = settings
    labels = _labels(sizes, seed)
    hidden = torch.random.get_rng_state()
    first = EpisodeSampler(labels, way, shot, query).sample(5, _seeded(seed))
    assert torch.equal(torch.random.get_rng_state(), hidden)
    torch.rand(3)
    sampler, generator = EpisodeSampler(labels, way, shot, query), _seeded(seed)
    assert torch.equal(sampler.sample(5, generator), first)
    assert not torch.equal(sampler.sample(50, generator), sampler.sample(50, generator)), "the generator moves on"


def test_support_comes_first_all_first_shots_then_all_second_ones() -> None:
    labels = torch.tensor([0, 1, 2] * 4)
    support = EpisodeSampler(labels, 3, 3, 1).sample(1, _seeded(0))[0, :9].view(3, 3)
    assert bool((labels[support] == labels[support[0]]).all())


def test_every_episode_is_equally_likely_up_to_the_sizes_of_its_classes() -> None:
    """Ordered classes are uniform, and given them, so are ordered images: a chi-square test on all 56 outcomes."""
    sizes, count = [2, 3, 2], 20_000
    labels = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    episodes = EpisodeSampler(labels, 2, 1, 1).sample(count, _seeded(3))
    seen = Counter(map(tuple, episodes.tolist()))
    expected = {
        episode: count / perm(3, 2) / (perm(sizes[labels[episode[0]]], 2) * perm(sizes[labels[episode[1]]], 2))
        for episode in seen
    }
    assert len(seen) == 4 * (6 * 2) + 2 * (2 * 2) and sum(expected.values()) == pytest.approx(count)
    assert chisquare(list(seen.values()), list(expected.values())).pvalue > 0.01


def test_the_device_of_the_labels_and_their_order_of_classes_do_not_matter() -> None:
    labels = _labels([4, 5, 6])
    renumbered = 100 + 7 * labels
    first, second = (EpisodeSampler(each, 2, 1, 2).sample(9, _seeded(0)) for each in (labels, renumbered))
    assert torch.equal(first, second)


def test_a_class_with_too_few_images_is_named_with_its_count() -> None:
    labels = torch.tensor([0] * 5 + [2] * 3 + [4] * 4)
    names = ["ape", "bee", "cat", "dog", "eel"]
    with pytest.raises(UserError) as caught:
        EpisodeSampler(labels, 2, 1, 3, names)
    line = "class=cat: has 3 images, and an episode takes 1 + 3 of each class; take fewer, or leave that class out"
    assert str(caught.value) == line
    with pytest.raises(UserError, match=r"^class=number 2: has 3 images"):
        EpisodeSampler(labels, 2, 1, 3)
    EpisodeSampler(labels, 2, 1, 2, names)  # exactly enough


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(UserError, match=r"^way=4: there are only 3 classes to draw from"):
        EpisodeSampler(_labels([9, 9, 9]), 4, 1, 1)
    with pytest.raises(UserError, match=r"^way=2: there are only 0 classes to draw from"):
        EpisodeSampler(torch.zeros(0, dtype=torch.int64), 2, 1, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("way", 1), ("way", 0), ("shot", 0), ("query", 0), ("way", 2.0), ("shot", True), ("query", -1), ("way", "5")],
)
def test_counts_that_make_no_episode_are_refused(name: str, value: object) -> None:
    counts = {"way": 2, "shot": 1, "query": 1, name: value}
    with pytest.raises(UserError, match=rf"^{name}={value}: must be a whole number ≥ {2 if name == 'way' else 1}"):
        EpisodeSampler(_labels([9, 9, 9]), **counts)
