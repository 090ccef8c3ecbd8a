"""Heads: what turns a point of the space into logits."""

from __future__ import annotations

from torch import Tensor, nn

from hypimg.nn.spaces import Space


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
