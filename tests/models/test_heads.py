"""Prototypes and logits against the formulas, evaluated slowly in float64, in every space."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from hypimg.data.episodes import EpisodeSampler
from hypimg.errors import UserError
from hypimg.evaluation.predictor import Predictor
from hypimg.geometry import hyperplanes
from hypimg.models.classifier import Classifier
from hypimg.models.heads import LOGITS, ProtoNet, UnidirectionalMLR
from hypimg.nn.spaces import AngularBall, Euclidean, HIEBall, PoincareBall, Space

SPACES: dict[str, Callable[[], Space]] = {
    "euclidean": Euclidean,
    "ball": lambda: PoincareBall(0.3),
    "angular": lambda: AngularBall(0.3),
    "hie": lambda: HIEBall(0.3),
    "ball_learned": lambda: PoincareBall(0.3, learn_c=True),
}
WAY, SHOT, QUERY, DIM = 3, 4, 5, 6

Vector = np.ndarray


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Space:
    return SPACES[request.param]()


def _features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- the formulas, point by point ----------------------------------------------------------------------------------


def _mean(points: list[Vector], space: Space) -> Vector:
    if isinstance(space, Euclidean):
        return sum(points) / len(points)
    c, total, weights = float(space.curvature), 0.0, 0.0
    for x in points:  # the Einstein midpoint, by way of Klein coordinates
        klein = 2 * x / (1 + c * x @ x)
        lorentz = 1 / math.sqrt(1 - c * klein @ klein)
        total, weights = total + lorentz * klein, weights + lorentz
    mean = total / weights
    return mean / (1 + math.sqrt(1 - c * mean @ mean))


def _distance(x: Vector, y: Vector, space: Space) -> float:
    if isinstance(space, Euclidean):
        return math.sqrt((x - y) @ (x - y))
    c = float(space.curvature)
    if isinstance(space, HIEBall):
        xy, xx, yy = -x @ y, x @ x, y @ y
        moved = (-(1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c**2 * xx * yy + 1e-5)
        return 2 / math.sqrt(c) * math.atanh(min(math.sqrt(c * moved @ moved), 1 - 1e-5))
    ratio = 2 * c * ((x - y) @ (x - y)) / ((1 - c * x @ x) * (1 - c * y @ y))
    return math.acosh(1 + ratio) / math.sqrt(c)


def _slow_scores(support: Vector, queries: Vector, space: Space, logits: str, temperature: float) -> Vector:
    """support [shot, way, d], queries [q, d] → [q, way]"""
    scores = np.empty((len(queries), support.shape[1]))
    for k in range(support.shape[1]):
        prototype = _mean(list(support[:, k]), space)
        for i, query in enumerate(queries):
            if logits == "cosine":
                value = query @ prototype / math.sqrt((query @ query) * (prototype @ prototype))
            else:
                square = logits == "squared_distance" or (logits == "published" and isinstance(space, Euclidean))
                value = -(_distance(query, prototype, space) ** (2 if square else 1))
            scores[i, k] = value / temperature
    return scores


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("shot", [1, SHOT])
def test_scores_are_those_of_the_formula(space: Space, logits: str, shot: int) -> None:
    support = space.embed(_features(shot, WAY, DIM)).detach()
    queries = space.embed(_features(QUERY, DIM, seed=1)).detach()
    head = ProtoNet(space, DIM, 0, logits, temperature=0.7)
    expected = _slow_scores(support.numpy(), queries.numpy(), space, logits, 0.7)
    torch.testing.assert_close(head.scores(support, queries), torch.from_numpy(expected), rtol=1e-6, atol=1e-9)
    single = head.scores(support.float(), queries.float())
    assert single.dtype == torch.float32
    # HIE's arithmetic is float32's on the sphere: its Möbius sum divides a rounded difference by (1 − c‖x‖²)².
    rtol, atol = (2e-2, 2e-2) if isinstance(space, HIEBall) else (2e-4, 2e-5)
    torch.testing.assert_close(single.double(), torch.from_numpy(expected), rtol=rtol, atol=atol)


def test_the_published_choice_is_the_square_in_euclidean_space_alone(space: Space) -> None:
    square = isinstance(space, Euclidean)
    assert ProtoNet(space, DIM, 0).logits == ("squared_distance" if square else "distance")
    assert ProtoNet(space, DIM, 0, "distance").logits == "distance"


def test_one_shot_prototypes_are_the_support_points(space: Space) -> None:
    support = space.embed(_features(1, WAY, DIM)).detach()
    queries = space.embed(_features(QUERY, DIM, seed=1)).detach()
    scores = ProtoNet(space, DIM, 0, "distance").scores(support, queries)
    torch.testing.assert_close(scores, -space.cdist(queries, support[0]).detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("logits", LOGITS)
def test_leading_dimensions_are_episodes_of_their_own(space: Space, logits: str) -> None:
    support = space.embed(_features(2, 3, SHOT, WAY, DIM)).detach()
    queries = space.embed(_features(2, 3, QUERY, DIM, seed=1)).detach()
    head = ProtoNet(space, DIM, 0, logits)
    scores = head.scores(support, queries)
    assert scores.shape == (2, 3, QUERY, WAY)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(scores[i, j], head.scores(support[i, j], queries[i, j]))


@pytest.mark.parametrize("logits", LOGITS)
def test_a_batch_in_the_samplers_order_is_recognised(space: Space, logits: str) -> None:
    """Class k lies around its own axis, so the right logit of query i is that of class i % way."""
    labels = torch.arange(6).repeat(9)
    features = 2 * torch.eye(6, dtype=torch.float64)[labels] + 0.05 * _features(54, 6)
    (row,) = EpisodeSampler(labels, WAY, SHOT, QUERY).sample(1, torch.Generator().manual_seed(0))
    head = ProtoNet(space, 6, 6, logits)
    points = space.embed(features[row]).detach()
    scores = head(points, WAY, SHOT)
    assert scores.shape == (WAY * QUERY, WAY)
    assert torch.equal(scores.argmax(-1), torch.arange(WAY).repeat(QUERY))
    support = points[: WAY * SHOT].view(SHOT, WAY, 6)
    torch.testing.assert_close(scores, head.scores(support, points[WAY * SHOT :]))


@pytest.mark.parametrize("logits", LOGITS)
def test_autocast_does_not_round_logits(space: Space, logits: str) -> None:
    head = ProtoNet(space, DIM, 0, logits)
    # 0.9: rounded to bfloat16, points of the clip sphere itself may leave the ball.
    points = 0.9 * space.embed(_features(WAY * (SHOT + QUERY), DIM, dtype=torch.float32)).detach()
    expected = head(points, WAY, SHOT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(points, WAY, SHOT), expected)
        half = head(points.bfloat16(), WAY, SHOT)
    assert half.dtype == expected.dtype == torch.float32
    assert torch.equal(half, head(points.bfloat16().float(), WAY, SHOT))


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("length", [0.0, 1e-3, 0.3, 1e4])
def test_gradients_are_finite_even_where_a_query_is_its_prototype(space: Space, logits: str, length: float) -> None:
    """Every query equals a support point; a length of 1e4 puts all points on the clip sphere."""
    features = (length * _features(WAY, DIM, dtype=torch.float32)).requires_grad_()
    points = space.embed(features.repeat(2, 1))
    head = ProtoNet(space, DIM, 0, logits, temperature=50.0)
    scores = head(points, WAY, 1)
    loss = torch.nn.functional.cross_entropy(scores, torch.arange(WAY))
    gradients = torch.autograd.grad(loss, [features, *space.parameters()], allow_unused=logits == "cosine")
    assert bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients if g is not None)
    if length == 0.3:
        assert bool(gradients[0].any())


def test_the_head_has_no_parameters_of_its_own_and_says_what_it_is() -> None:
    head = ProtoNet(Euclidean(), 7, 100, temperature=0.1)
    assert not list(head.parameters()) and not head.state_dict()
    assert "logits=squared_distance, temperature=0.1" in repr(head)
    space = PoincareBall(learn_c=True)
    assert [name for name, _ in ProtoNet(space, 7, 100).named_parameters()] == ["space.log_ratio"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"logits": "euclid"}, "head.logits=euclid: must be one of published, distance, squared_distance, cosine"),
        ({"temperature": 0.0}, "head.temperature=0.0: must be a finite number > 0"),
        ({"temperature": -1.0}, "head.temperature=-1.0: must be"),
        ({"temperature": math.inf}, "head.temperature=inf: must be"),
        ({"temperature": math.nan}, "head.temperature=nan: must be"),
        ({"temperature": True}, "head.temperature=True: must be"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as caught:
        ProtoNet(Euclidean(), 2, 2, **arguments)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize("task", [{}, {"way": 3}, {"shot": 1}])
def test_without_an_episode_it_has_no_classes(task: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"^head=ProtoNet: knows no classes of its own"):
        ProtoNet(Euclidean(), 2, 2)(torch.zeros(6, 2), **task)


def test_a_loaded_model_says_how_to_classify_and_that_works() -> None:
    space = PoincareBall(0.3)
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), space, ProtoNet(space, 4, 2)).eval()
    predictor = Predictor("x", model, (3, 2, 2), [0.5] * 3, [0.2] * 3, ["a", "b"])
    images = np.random.default_rng(0).integers(0, 256, (10, 2, 2, 3), np.uint8)
    with pytest.raises(UserError) as caught:
        predictor(torch.from_numpy(images).permute(0, 3, 1, 2))
    for call in ("predictor.embed", "predictor.model.head.scores(support [shot, way, d], queries [q, d])"):
        assert call in str(caught.value)
    points = predictor.embed(images)
    support, queries = points[:6].unflatten(0, (2, 3)), points[6:]
    expected = model.head(points, way=3, shot=2)
    torch.testing.assert_close(predictor.model.head.scores(support, queries), expected)


def test_the_head_of_hnnpp_scores_by_the_hyperplanes_of_the_geometry() -> None:
    ball = PoincareBall(0.3, margin=1e-5)
    head = UnidirectionalMLR(ball, DIM, 4).double()
    points = ball.embed(_features(3, 5, DIM))
    with torch.no_grad():
        head.linear.bias.copy_(_features(4, seed=1))
    expected = hyperplanes.unidirectional_logits(points, head.linear.weight, head.linear.bias, 0.3)
    torch.testing.assert_close(head(points), expected)


def test_the_official_head_gives_tangents_of_bounded_norm_and_copies_features_at_first() -> None:
    ball = PoincareBall(0.1, margin=4e-3)
    head = UnidirectionalMLR(ball, DIM, DIM + 2, logits="tangent", init="identity")
    features = _features(5, DIM, dtype=torch.float32)
    torch.testing.assert_close(head(ball.embed(features)), nn.functional.pad(features, (0, 2)), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        head.linear.weight.mul_(10)
    longest = math.atanh(1 - 4e-3) / 0.1**0.5
    assert longest == pytest.approx(9.82, abs=0.01)
    norms = head(ball.embed(100 * features)).norm(dim=-1)
    assert (norms <= longest * (1 + 1e-5)).all() and norms.max() > 0.99 * longest


def test_the_head_of_hnnpp_names_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="space=Euclidean: head=hnnpp needs a Poincaré ball"):
        UnidirectionalMLR(Euclidean(), DIM, 4)
    with pytest.raises(UserError, match=r"head\.logits=distance: must be scores or tangent"):
        UnidirectionalMLR(PoincareBall(1.0), DIM, 4, logits="distance")
