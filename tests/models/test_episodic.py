"""Decisions over many episodes against a loop written from the formulas, in every space and by every way."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hypimg.data.episodes import EpisodeSampler
from hypimg.models import episodic
from hypimg.models.episodic import draw, episode_accuracies, predictions
from hypimg.models.heads import ProtoNet
from hypimg.nn.spaces import AngularBall, Euclidean, HIEBall, PoincareBall, Space

WAY, QUERY, EPISODES, D = 5, 4, 12, 16

WAYS = {"matrix": True, "products": False}

# name → space, logits
HEADS: dict[str, tuple[Callable[[], Space], str]] = {
    "euclidean": (Euclidean, "distance"),
    "euclidean squared": (Euclidean, "published"),
    "cosine": (Euclidean, "cosine"),
    "ball c=1": (lambda: PoincareBall(1.0), "published"),
    "ball c=0.01": (lambda: PoincareBall(0.01), "published"),
    "ball c=0.005, squared": (lambda: PoincareBall(0.005), "squared_distance"),
    "ball, learnable c": (lambda: PoincareBall(0.3, learn_c=True), "distance"),
    "angular": (lambda: AngularBall(0.05), "published"),
}


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes `predictions` take one of the two ways over pairs, in batches of a few episodes."""

    def force(way: str) -> None:
        monkeypatch.setattr(episodic, "_matrix_pays", lambda *sizes: WAYS[way])
        monkeypatch.setitem(episodic._AT_A_TIME, "cpu", 3000)

    return force


def features(scale: float = 1.0, classes: int = 9, images: int = 12, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Overlapping classes with a common part, as after a ReLU: float64 [N, D] of norm about `scale`, and labels."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(classes).repeat(images)  # classes interleaved: a position is not a class
    centres = torch.randn(classes, D, generator=generator, dtype=torch.float64)
    noise = spread * torch.randn(len(labels), D, generator=generator, dtype=torch.float64)
    x = (centres[labels] + noise + 1).relu()
    return scale * x / x.norm(dim=1).mean(), labels


def episodes_of(labels: Tensor, shot: int) -> Tensor:
    return draw(EpisodeSampler(labels, WAY, shot, QUERY), EPISODES, torch.Generator().manual_seed(2))


def dissimilarity(head: ProtoNet, points: Tensor, episodes: Tensor, shot: int) -> Tensor:
    """What ProtoNet minimises, [E, Q, way], episode by episode, class by class and query by query from the formulas.

    Distances, for cosines 1 − cosine; everything in float64.
    """
    points, c = points.double(), float(head.space.c.detach())
    out = torch.empty(len(episodes), WAY * QUERY, WAY, dtype=torch.float64)
    for e, episode in enumerate(episodes.long()):
        for k in range(WAY):
            members = points[episode[: WAY * shot].view(shot, WAY)[:, k]]
            prototype = einstein_midpoint(members, c) if c else members.mean(0)
            for i, q in enumerate(points[episode[WAY * shot :]]):
                if head.logits == "cosine":
                    out[e, i, k] = 1 - torch.dot(q, prototype) / (q.norm() * prototype.norm())
                else:
                    out[e, i, k] = mobius_distance(q, prototype, c) if c else (q - prototype).norm()
    return out


def einstein_midpoint(x: Tensor, c: float) -> Tensor:
    klein = 2 * x / (1 + c * x.square().sum(1, keepdim=True))
    gamma = 1 / (1 - c * klein.square().sum(1, keepdim=True)).sqrt()
    mean = (gamma * klein).sum(0) / gamma.sum()
    return mean / (1 + (1 - c * mean.square().sum()).sqrt())


def mobius_distance(x: Tensor, y: Tensor, c: float) -> Tensor:
    xy, xx, yy = -torch.dot(x, y), torch.dot(x, x), torch.dot(y, y)
    difference = -(1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y
    norm = difference.norm() / (1 + 2 * c * xy + c**2 * xx * yy)
    return 2 / math.sqrt(c) * torch.atanh(math.sqrt(c) * norm)


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize("name", HEADS)
def test_predictions_are_those_of_the_loop(name: str, shot: int, forced: Callable[[str], None]) -> None:
    make, logits = HEADS[name]
    space = make()
    head = ProtoNet(space, D, 0, logits, temperature=0.3)
    # features that the map at the origin puts at √c ‖x‖ = tanh(1.5) = 0.91 on average
    root_c = float(space.c.detach()) ** 0.5
    x, labels = features(1.5 / root_c if root_c else 1.0)
    with torch.no_grad():
        points = space.embed(x)
    episodes = episodes_of(labels, shot)
    expected = dissimilarity(head, points, episodes, shot)
    right = (expected.argmin(2) == torch.arange(WAY).repeat(QUERY)).double().mean()
    assert 0.5 < right < 0.99  # a task on which one can be wrong
    for way in WAYS:
        forced(way)
        assert torch.equal(predictions(head, points, episodes, WAY, shot), expected.argmin(2))
        assert_nearest(predictions(head, points.float(), episodes, WAY, shot), expected, 1e-5)


def assert_nearest(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Each found class is as near as the nearest, up to a share of the distance."""
    taken = expected.gather(2, found.unsqueeze(2)).squeeze(2)
    assert (taken <= expected.amin(2) * (1 + tolerance)).all()


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize("scale", [3.8, 30.0])
def test_predictions_near_and_on_the_clip_sphere(scale: float, shot: int, forced: Callable[[str], None]) -> None:
    space = PoincareBall(1.0)
    head = ProtoNet(space, D, 0)
    x, labels = features(scale)
    points = space.embed(x.float())
    share = space.clipped(points).float().mean()
    assert share == 1 if scale == 30 else 0.1 < share < 0.9
    episodes = episodes_of(labels, shot)
    expected = dissimilarity(head, points, episodes, shot)
    for way in WAYS:
        forced(way)
        assert_nearest(predictions(head, points, episodes, WAY, shot), expected, 1e-5)


@pytest.mark.parametrize("name", ["euclidean", "ball c=1"])
def test_a_collapsed_model_is_judged_by_its_small_differences(name: str, forced: Callable[[str], None]) -> None:
    """Points within 1e-4 of one another keep their order, though ‖x‖² has lost it."""
    space = HEADS[name][0]()
    x, labels = features(1e-4)
    points = (x + 0.24).float()  # norm 0.96
    head, episodes = ProtoNet(space, D, 0), episodes_of(labels, 5)
    expected = dissimilarity(head, points, episodes, 5)
    for way in WAYS:
        forced(way)
        assert_nearest(predictions(head, points, episodes, WAY, 5), expected, 1e-3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("margin", [1e-3, 1e-5])
def test_copies_on_the_clip_sphere_are_recognised(margin: float, way: str, forced: Callable[[str], None]) -> None:
    space = PoincareBall(1.0, margin=margin)
    x, labels = features(30.0, spread=0.0)
    points = space.embed(x.float() + 1e-5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    forced(way)
    sampler = EpisodeSampler(labels, WAY, 5, QUERY)
    accuracies = episode_accuracies(ProtoNet(space, D, 0), points, sampler, 20, torch.Generator().manual_seed(0))
    assert torch.equal(accuracies, torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*HEADS, "official"])
@pytest.mark.parametrize("shot", [1, 5])
def test_copies_of_an_image_are_recognised(name: str, shot: int, way: str, forced: Callable[[str], None]) -> None:
    make, logits = HEADS.get(name, (lambda: HIEBall(1.0), "published"))
    space = make()
    x, labels = features(1.0, spread=0.0)
    with torch.no_grad():
        points = space.embed(
            x.float() * (1 + 1e-6 * torch.randn(len(x), 1, generator=torch.Generator().manual_seed(0)))
        )
    sampler = EpisodeSampler(labels, WAY, shot, QUERY)
    forced(way)
    accuracies = episode_accuracies(
        ProtoNet(space, D, 0, logits), points, sampler, 20, torch.Generator().manual_seed(0)
    )
    assert torch.equal(accuracies, torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("logits", ["distance", "cosine"])
@pytest.mark.parametrize("shot", [1, 5])
def test_the_official_arithmetic_is_left_to_the_head(logits: str, shot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(episodic._AT_A_TIME, "cpu", 3000)
    space = HIEBall(1.0)
    head = ProtoNet(space, D, 0, logits)
    x, labels = features(4.0)
    points = space.embed(x.float())
    assert episodic.pair_kernel(head, points) is None
    episodes = episodes_of(labels, shot)
    found = predictions(head, points, episodes, WAY, shot)
    for row, guesses in zip(episodes.long(), found, strict=True):
        support, queries = points[row[: WAY * shot]].view(shot, WAY, D), points[row[WAY * shot :]]
        assert torch.equal(guesses, head.scores(support, queries).argmax(1))


def test_cosines_in_a_ball_are_left_to_the_head() -> None:
    assert episodic.pair_kernel(ProtoNet(PoincareBall(1.0), D, 0, "cosine"), torch.zeros(3, D)) is None


def test_a_space_that_changes_the_ball_is_left_to_the_head() -> None:
    class Other(PoincareBall):
        pass

    assert episodic.pair_kernel(ProtoNet(Other(1.0), D, 0), torch.zeros(3, D)) is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*HEADS, "official"])
def test_equal_prototypes_give_the_first_class(name: str, way: str, forced: Callable[[str], None]) -> None:
    make, logits = HEADS.get(name, (lambda: HIEBall(1.0), "published"))
    points = torch.full((60, D), 0.1)
    sampler = EpisodeSampler(torch.arange(6).repeat(10), WAY, 5, QUERY)
    forced(way)
    accuracies = episode_accuracies(ProtoNet(make(), D, 0, logits), points, sampler, 9, torch.Generator())
    assert torch.equal(accuracies, torch.full((9,), 1 / WAY, dtype=torch.float64))


@pytest.mark.parametrize("way", WAYS)
def test_points_at_the_origin_have_no_direction(way: str, forced: Callable[[str], None]) -> None:
    forced(way)
    head = ProtoNet(Euclidean(), D, 0, "cosine")
    episodes = episodes_of(torch.arange(6).repeat(10), 5)
    assert not predictions(head, torch.zeros(60, D), episodes, WAY, 5).any()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HEADS)
def test_separated_classes_are_all_right_and_noise_is_chance(
    name: str, way: str, forced: Callable[[str], None]
) -> None:
    make, logits = HEADS[name]
    space = make()
    head = ProtoNet(space, D, 0, logits)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat_interleave(25)
    sampler = EpisodeSampler(labels, WAY, 5, 15)
    clusters = torch.eye(8, D)[labels] + 0.01 * torch.randn(200, D, generator=generator)
    noise = torch.randn(200, D, generator=generator)
    forced(way)
    with torch.no_grad():
        apart, blurred = (
            episode_accuracies(head, space.embed(x), sampler, 250, torch.Generator().manual_seed(1))
            for x in (clusters, noise)
        )
    assert apart.eq(1).all()
    assert blurred.mean() == pytest.approx(1 / WAY, abs=0.03)  # few images are shared by many episodes


@pytest.mark.parametrize("way", WAYS)
def test_a_query_is_no_member_of_its_prototype(way: str, forced: Callable[[str], None]) -> None:
    """Shots and queries come from the right places: only the support is in its class's place."""
    labels = torch.tensor([0, 1] * 2)
    points = torch.tensor([[0.0], [1.0], [10.0], [20.0]])
    head = ProtoNet(Euclidean(), 1, 0)
    forced(way)
    # support 0 (class 0), 1 (class 1); queries 2 and 3 are both nearer to 1
    assert predictions(head, points, torch.tensor([[0, 1, 2, 3]]), 2, 1).tolist() == [[1, 1]]
    # two shots: prototypes 5 and 10.5
    assert predictions(head, points, torch.tensor([[0, 1, 2, 3, 0, 2]]), 2, 2).tolist() == [[0, 1]]
    sampler = EpisodeSampler(labels, 2, 1, 1)
    assert len(draw(sampler, 3, torch.Generator())) == 3


def test_episodes_are_a_function_of_the_generator_alone(forced: Callable[[str], None]) -> None:
    labels = torch.arange(8).repeat_interleave(25)
    sampler = EpisodeSampler(labels, WAY, 1, 15)
    first = draw(sampler, 450, torch.Generator().manual_seed(3))
    assert first.shape == (450, WAY * 16)
    assert torch.equal(first, draw(sampler, 450, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, draw(sampler, 450, torch.Generator().manual_seed(4)))
    # fewer episodes are the first ones of more, in whole turns of DRAWN
    assert torch.equal(first[: 2 * episodic.DRAWN], draw(sampler, 2 * episodic.DRAWN, torch.Generator().manual_seed(3)))
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(0))
    results = []
    for way in WAYS:
        forced(way)
        results.append(
            episode_accuracies(ProtoNet(Euclidean(), D, 0), x, sampler, 450, torch.Generator().manual_seed(3))
        )
    assert torch.equal(*results)


@pytest.mark.parametrize("space", [Euclidean(), PoincareBall(1.0), HIEBall(1.0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_accuracies_are_float64_without_a_gradient(space: Space, dtype: torch.dtype) -> None:
    x, labels = features(0.5)
    points = x.to(dtype).requires_grad_()
    sampler = EpisodeSampler(labels, WAY, 2, QUERY)
    accuracies = episode_accuracies(ProtoNet(space, D, 0), points, sampler, 7, torch.Generator())
    assert accuracies.dtype == torch.float64 and accuracies.shape == (7,) and not accuracies.requires_grad


@pytest.mark.parametrize("way", WAYS)
def test_autocast_does_not_round_the_products(way: str, forced: Callable[[str], None]) -> None:
    x, labels = features(0.5)
    head, episodes = ProtoNet(PoincareBall(1.0), D, 0), episodes_of(labels, 1)
    forced(way)
    expected = predictions(head, x.float(), episodes, WAY, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predictions(head, x.float(), episodes, WAY, 1), expected)


def test_the_matrix_is_kept_within_bounds_and_made_where_it_pays() -> None:
    def pays(n: int, d: int, episodes: int, way: int, shot: int, query: int) -> bool:
        return episodic._matrix_pays(n, d, episodes, way * (shot + query), way, shot)

    assert pays(3_000, 512, 10_000, 5, 5, 15)  # CUB
    assert pays(3_000, 1600, 10_000, 5, 5, 15)
    assert not pays(9_600, 512, 500, 5, 1, 15)  # validation
    assert not pays(33_840, 64, 10**9, 20, 5, 15)  # Omniglot: a billion pairs
    assert not pays(14_143, 4096, 10**9, 5, 1, 15)


def test_the_matrix_of_pairs_is_whole_beyond_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodic, "_BLOCK", 10)
    x, _ = features(0.5)
    pairs = episodic.pair_kernel(ProtoNet(PoincareBall(0.7), D, 0), x)
    assert pairs is not None
    found = episodic._all_pairs(pairs)
    expected = torch.stack([torch.stack([mobius_distance(p, q, 0.7) for q in x[:4]]) for p in x])
    torch.testing.assert_close(found[:, :4], (0.7**0.5 * expected).cosh() - 1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, found.mT, rtol=1e-12, atol=1e-14)
