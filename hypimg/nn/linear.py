"""Layers that read points of the Poincaré ball as `torch.nn` reads vectors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hypimg.geometry import hyperplanes, poincare

if TYPE_CHECKING:
    from hypimg.nn.spaces import PoincareBall


class HyperbolicMLR(nn.Module):
    """Hyperbolic multinomial logistic regression: points of the ball [..., in_features] → logits [..., out_features].

    logit_k(x) = (λ_{p_k} ‖a_k‖ / √c) arsinh( 2√c ⟨z, a_k⟩ / ((1 − c‖z‖²) ‖a_k‖) ), z = (−p_k) ⊕ x, with two free
    matrices [out_features, in_features]: `offset` q gives p = project(exp₀(q)), `normal` a_raw gives
    a = a_raw (1 − c‖p‖²), so that λ_p ‖a‖ = 2 ‖a_raw‖. Both start Kaiming uniform with slope √5, like `nn.Linear`.

    The official code of HIE does not project p: from √c ‖q‖ ≥ 9.02 on, float32 tanh is 1, λ_p infinite and the loss NaN
    (users met it on MNIST at c = 1). Here p keeps the ball's margin. An offset q beyond the clip sphere gets the
    tangential part of its gradient only.

    ball: whose c and margin are used; a learnable c is shared with it, not copied.
    Source: Ganea et al. 2018; HIE, hyperbolic MLR, in the parametrisation of its official code.
    """

    def __init__(self, in_features: int, out_features: int, ball: PoincareBall):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.ball = ball
        self.normal = nn.Parameter(torch.empty(out_features, in_features))
        self.offset = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.normal, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.offset, a=math.sqrt(5))

    @property
    def offsets(self) -> Tensor:
        """p [out_features, in_features]: a point of the ball on each class's hyperplane."""
        return self.ball.expmap0(self.offset)

    @property
    def normals(self) -> Tensor:
        """a [out_features, in_features]: the normal of each class's hyperplane, a tangent vector at p."""
        return 2 / poincare.conformal_factor(self.offsets, self.ball.curvature).unsqueeze(-1) * self.normal

    def forward(self, points: Tensor) -> Tensor:
        return hyperplanes.mlr_logits(points, self.offsets, self.normal, self.ball.curvature, from_origin=True)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
