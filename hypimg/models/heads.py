"""Heads: what turns a point of the space into logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hypimg.errors import UserError
from hypimg.nn.poincare import PoincareLinear
from hypimg.nn.spaces import Euclidean, PoincareBall, Space


class MLR(nn.Module):
    """Multinomial logistic regression on the hyperplanes of the space.

    In Euclidean space a linear layer; in the Poincaré ball the hyperbolic MLR of Ganea et al. (NeurIPS 2018), as HIE
    uses it.  `forward`: points [..., in_features] → logits [..., num_classes].
    """

    def __init__(self, space: Space, in_features: int, num_classes: int):
        super().__init__()
        self.hyperplanes = space.hyperplanes(in_features, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        return self.hyperplanes(points)


class Linear(nn.Module):
    """A linear layer on log_0 of the points: the Euclidean classifier over a space that may be curved.

    `forward`: points [..., in_features] → logits [..., num_classes].
    """

    def __init__(self, space: Space, in_features: int, num_classes: int):
        super().__init__()
        self.space = space
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        return self.linear(self.space.logmap0(points))


class UnidirectionalMLR(nn.Module):
    """The classifier of HNN++ and Poincaré ResNet: a `PoincareLinear` layer on log_0 of the points.

    logits: `scores`: the signed distances v_k to the hyperplanes; `tangent`: log_0 of the layer's output, as PR's
        official code takes them (bounded by artanh(1 − margin)/√c in norm).
    Far points lose digits on the way: in float32 at c = 0.1 a tangent vector of length 5, 10, 15 comes back from its
    point within 3e-7, 4e-6, 7e-5.
    init, inverted_lambda: see `PoincareLinear`; PR: `hnnpp`, its official code: `identity` and an inverted λ.
    `forward`: points [..., in_features] → logits [..., num_classes].  Raises UserError in a space that is no ball.
    """

    def __init__(
        self,
        space: Space,
        in_features: int,
        num_classes: int,
        logits: str = "scores",
        init: str = "hnnpp",
        inverted_lambda: bool = False,
    ):
        super().__init__()
        if not isinstance(space, PoincareBall):
            raise UserError("space", type(space).__name__, "head=hnnpp needs a Poincaré ball: space=poincare_net")
        if logits not in {"scores", "tangent"}:
            raise UserError("head.logits", logits, "must be scores or tangent")
        self.space, self.logits = space, logits
        self.linear = PoincareLinear(in_features, num_classes, space, init=init, inverted_lambda=inverted_lambda)

    def forward(self, points: Tensor) -> Tensor:
        tangents = self.space.logmap0(points)
        return self.linear.scores(tangents) if self.logits == "scores" else self.linear(tangents)


LOGITS = ("published", "distance", "squared_distance", "cosine")


class ProtoNet(nn.Module):
    """Classes are the means of a few labelled points; logits say how near a query is to each.

    logits: `distance`: −d / temperature; `squared_distance`: −d² / temperature; `cosine`: cosine of the angle at the
        origin / temperature; `published`: what HIE's official code takes, −d in a curved space and −d² else.
    temperature: > 0.
    Prototypes are the space's midpoints (in the ball the Einstein midpoint). The head has no parameters; in_features
    and num_classes are not used.
    Source: Snell et al. (NeurIPS 2017); HIE, section 5.2.
    """

    def __init__(
        self, space: Space, in_features: int, num_classes: int, logits: str = "published", temperature: float = 1.0
    ):
        super().__init__()
        if logits not in LOGITS:
            raise UserError("head.logits", logits, f"must be one of {', '.join(LOGITS)}")
        if isinstance(temperature, bool) or not (0 < temperature < math.inf):
            raise UserError("head.temperature", temperature, "must be a finite number > 0")
        if logits == "published":
            logits = "squared_distance" if isinstance(space, Euclidean) else "distance"
        self.space, self.logits, self.temperature = space, logits, float(temperature)

    def scores(self, support: Tensor, queries: Tensor) -> Tensor:
        """support [..., shot, way, d], queries [..., q, d] → logits [..., q, way], float32 under autocast too."""
        with torch.autocast(support.device.type, enabled=False):
            support, queries = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (support, queries))
            prototypes = self.space.midpoint(support, dim=-3)
            if self.logits == "cosine":
                unit = nn.functional.normalize
                return unit(queries, dim=-1) @ unit(prototypes, dim=-1).mT / self.temperature
            distances = self.space.cdist(queries, prototypes)
            return -(distances if self.logits == "distance" else distances.square()) / self.temperature

    def forward(self, points: Tensor, way: int = 0, shot: int = 0) -> Tensor:
        """One episode: points [way · (shot + query), d], support first (see `EpisodeSampler`) → [way · query, way].

        Raises UserError without `way` and `shot`: the head knows no classes of its own.
        """
        if not (way and shot):
            raise UserError(
                "head",
                "ProtoNet",
                "knows no classes of its own: embed support and query images (predictor.embed) and call "
                "predictor.model.head.scores(support [shot, way, d], queries [q, d])",
            )
        support, queries = points.split([way * shot, len(points) - way * shot])
        return self.scores(support.unflatten(0, (shot, way)), queries)

    def extra_repr(self) -> str:
        return f"logits={self.logits}, temperature={self.temperature:g}"
