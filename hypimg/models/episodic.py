"""Few-shot episodes over points that were embedded once: many episodes at a time, and no prototype is ever built.

What `ProtoNet` compares follows from a number t_ij per pair of points: with its means over a class's shots s, s'

    a = mean_s t_qs,   b = mean_ss' t_ss',

    Euclidean   t_ij = ‖x_i − x_j‖²                 ‖q − prototype‖² = a − b/2
    ball        t_ij = cosh(√c d(x_i, x_j)) − 1     cosh(√c d(q, prototype)) − 1 = (a − b/(1 + √(1 + b)))/√(1 + b)
    cosine      t_ij = ⟨x_i, x_j⟩                   ⟨q, prototype⟩/‖prototype‖ = a/√b

The ball's line is that of the Einstein midpoint, on the hyperboloid Σ_s X_s over its Minkowski length: with C = 1 + t,
cosh(√c d(q, prototype)) = Σ_s C_qs/√(Σ_ss' C_ss') = (1 + a)/√(1 + b), from which 1 is taken before rounding does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hypimg.geometry import poincare
from hypimg.models.heads import ProtoNet
from hypimg.nn.spaces import AngularBall, Euclidean, PoincareBall

# Episodes drawn at a time. It belongs to what a generator's episodes are: another number, other episodes.
DRAWN = 200

# The matrix of all pairs may have this many numbers (800 MB in float32), which int32 can count.
MOST_PAIRS = 200_000_000

# Numbers worked on at a time: on a CPU a few buffers of this size stay in the cache, on a GPU calls are few.
_AT_A_TIME = {"cpu": 1 << 20, "cuda": 1 << 24}
_BLOCK = 256  # rows of the matrix made at a time; the blocks left of the diagonal are copied


class Sampler(Protocol):
    """What is asked of `hypimg.data.episodes.EpisodeSampler`, which tells the order of an episode's points."""

    way: int
    shot: int
    query: int

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Positions of the points, int64 [count, way · (shot + query)]."""


class Pairs(NamedTuple):
    """t_ij = ⟨left_i, right_j⟩ of all points, and how near a class is by its a [..., way] and b.

    left, right: [N, width].  alike: t_ii is 0.  nearness: (a, b) → [..., way], larger is nearer.
    """

    left: Tensor
    right: Tensor
    alike: bool
    nearness: Callable[[Tensor, Tensor], Tensor]


def pair_kernel(head: ProtoNet, points: Tensor) -> Pairs | None:
    """The pairs of these points [N, d] from which the head's decisions follow; None where they do not.

    They do not in `HIEBall`, whose arithmetic is not the formula's, and for cosines in a ball. The numbers are in the
    points' dtype (float32 at least): squares of distances from the points less their mean, which changes none of them,
    and 1 − c‖x‖² from a float64 sum.
    """
    space, kind = head.space, type(head.space)
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    if head.logits == "cosine":
        return Pairs(points, points, False, _cosine) if kind is Euclidean else None
    if kind not in (Euclidean, PoincareBall, AngularBall):
        return None
    x = points - points.mean(dim=0)
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64).square().to(x.dtype)
    one = torch.ones_like(square)
    left, right = torch.cat([x, square, one], dim=-1), torch.cat([x, one, square], dim=-1)
    left[:, :-2] *= -2
    if not isinstance(space, PoincareBall):
        return Pairs(left, right, True, _euclidean)
    # cosh(√c d) − 1 = 2 c ‖x − y‖²/((1 − c‖x‖²)(1 − c‖y‖²)) = λ_x λ_y ‖x − y‖² c/2
    c = space.curvature
    scale = (poincare.conformal_factor(points, c) * (c / 2) ** 0.5).unsqueeze(-1)
    return Pairs(left.mul_(scale), right.mul_(scale), True, _ball)


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    return b / 2 - a


def _ball(a: Tensor, b: Tensor) -> Tensor:
    b = b.clamp(min=0)  # rounding may leave less of copies near the sphere, where t is large
    root = (1 + b).sqrt()
    return (b / (1 + root) - a) / root


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return a * b.clamp(min=torch.finfo(b.dtype).tiny).rsqrt()


def episode_accuracies(
    head: ProtoNet, points: Tensor, sampler: Sampler, episodes: int, generator: torch.Generator
) -> Tensor:
    """Share of right queries of each of `episodes` episodes, float64 [episodes] on the points' device.

    points: [N, d] in the head's space, row i that of the sampler's image i.  generator: draws the episodes, the same
    ones whatever the head, the points and the device.  Nothing here waits for the device where `pair_kernel` has pairs.
    """
    way, shot = sampler.way, sampler.shot
    guesses = predictions(head, points, draw(sampler, episodes, generator), way, shot)
    labels = torch.arange(way, device=guesses.device).repeat(sampler.query)
    return (guesses == labels).double().mean(dim=1)


def draw(sampler: Sampler, episodes: int, generator: torch.Generator) -> Tensor:
    """int32 [episodes, way · (shot + query)], drawn `DRAWN` at a time."""
    counts = [DRAWN] * (episodes // DRAWN) + [episodes % DRAWN] * (episodes % DRAWN > 0)
    return torch.cat([sampler.sample(count, generator).int() for count in counts])


@torch.no_grad()
def predictions(head: ProtoNet, points: Tensor, episodes: Tensor, way: int, shot: int) -> Tensor:
    """The class of each query, int64 [E, Q] in 0 … way − 1: that of the largest logit, the first of equal ones.

    points: [N, d] in the head's space.  episodes: rows of them, [E, way · shot + Q] in the order of `EpisodeSampler`.

    One of three ways to the same decisions: where `pair_kernel` has the pairs, by looking them up in their matrix or by
    computing those of a batch of episodes, whichever costs less; else by `head.scores`. A logit of `ProtoNet` falls as
    the distance grows, so the nearest prototype tells, whatever the temperature. By pairs, two prototypes count as
    equally near where the squares of their distances differ by less than rounding leaves of the spread of the points
    (about 1e-6 of their variance for points in float32).
    """
    episodes = episodes.to(points.device, torch.int32, non_blocking=True)
    support, queries = episodes[:, : way * shot].unflatten(1, (shot, way)), episodes[:, way * shot :]
    with torch.autocast(points.device.type, enabled=False):
        pairs = pair_kernel(head, points)
        if pairs is None:
            return _by_scores(head, points, support, queries)
        looked_up = _matrix_pays(len(points), pairs.left.shape[1], len(episodes), episodes.shape[1], way, shot)
        return (_by_matrix if looked_up else _by_products)(pairs, support, queries)


def _matrix_pays(n: int, width: int, episodes: int, images: int, way: int, shot: int) -> bool:
    """Whether looking pairs up in their matrix costs less than computing those that the episodes need.

    By times measured on one core: what a GPU does faster, it does so in both.
    """
    if n * n > MOST_PAIRS:
        return False
    matrix = n * n * (0.013 * width + 2) + 5 * episodes * images * way * shot  # nanoseconds
    return matrix < 1.2 * episodes * images * width


# Each of the three takes support int32 [E, shot, way] and queries int32 [E, Q], rows of the points, and gives the
# classes of the queries, int64 [E, Q].


def _by_matrix(pairs: Pairs, support: Tensor, queries: Tensor) -> Tensor:
    matrix = _all_pairs(pairs)
    n, flat = len(matrix), matrix.view(-1)
    shots = _batches(support, support[0].numel() * support.shape[1])
    b = torch.cat([_at(flat, n * s.unsqueeze(2) + s.unsqueeze(1)).mean((1, 2)) for s in shots])
    # Query by query in the order of their rows, so that one row after another is in the cache.
    rows, order = queries.reshape(-1).sort()
    guesses = []
    for row, place in zip(_batches(rows, support[0].numel()), _batches(order, support[0].numel()), strict=True):
        episode = place // queries.shape[1]
        a = _at(flat, n * row[:, None, None] + _at(support, episode)).mean(1)
        guesses.append(pairs.nearness(a, _at(b, episode)).argmax(-1))
    return torch.empty_like(order).scatter_(0, order, torch.cat(guesses)).view(queries.shape)


def _all_pairs(pairs: Pairs) -> Tensor:
    """t [N, N]."""
    left, right, n = pairs.left, pairs.right, len(pairs.left)
    if left.is_cuda:
        matrix = left @ right.mT
    else:
        matrix = left.new_empty(n, n)
        for start in range(0, n, _BLOCK):
            end = min(n, start + _BLOCK)
            torch.mm(left[start:end], right[start:].mT, out=matrix[start:end, start:])
            matrix[end:, start:end] = matrix[start:end, end:].mT
    return matrix.fill_diagonal_(0) if pairs.alike else matrix


def _at(source: Tensor, index: Tensor) -> Tensor:
    """source[index] along its first dimension, which index_select does twice as fast."""
    return source.index_select(0, index.reshape(-1)).view(*index.shape, *source.shape[1:])


def _by_products(pairs: Pairs, support: Tensor, queries: Tensor) -> Tensor:
    """Means over shots pass through the products: a = ⟨left_q, mean_s right_s⟩, b = ⟨mean_s left_s, mean_s right_s⟩."""
    guesses = []
    numbers = (support[0].numel() + queries.shape[1]) * pairs.left.shape[1]
    for s, q in zip(_batches(support, numbers), _batches(queries, numbers), strict=True):
        left, right = (_at(side, s).mean(1) for side in (pairs.left, pairs.right))
        b = (left * right).sum(-1)
        if pairs.alike and support.shape[1] == 1:
            b.zero_()
        guesses.append(pairs.nearness(_at(pairs.left, q) @ right.mT, b.unsqueeze(1)).argmax(-1))
    return torch.cat(guesses)


def _by_scores(head: ProtoNet, points: Tensor, support: Tensor, queries: Tensor) -> Tensor:
    numbers = queries.shape[1] * support.shape[2] * points.shape[1]  # of distances from differences
    batches = zip(_batches(support, numbers), _batches(queries, numbers), strict=True)
    return torch.cat([head.scores(_at(points, s), _at(points, q)).argmax(-1) for s, q in batches])


def _batches(rows: Tensor, numbers: int) -> tuple[Tensor, ...]:
    """Rows as many at a time as may be, where a row is worth this many numbers."""
    return rows.split(max(1, _AT_A_TIME.get(rows.device.type, 1 << 20) // numbers))
