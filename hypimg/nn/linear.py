"""Layers that read points of the Poincaré ball as `torch.nn` reads vectors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hypimg.geometry import hyperplanes, poincare

if TYPE_CHECKING:
    from hypimg.nn.spaces import HIEBall, PoincareBall


class MobiusLinear(nn.Module):
    """Linear layer of the ball: points [..., in_features] → points [..., out_features] that keep the ball's margin.

    y = (M ⊗ x) ⊕ b with M ⊗ x = exp₀(M log₀(x)) = (1/√c) tanh( (‖Mx‖/‖x‖) artanh(√c ‖x‖) ) Mx/‖Mx‖;  Mx + b as c → 0.

    `weight` M [out_features, in_features] and `bias` [out_features] are free and start as in `nn.Linear`. The point b
    is exp₀(bias) within the margin: no optimizer takes it out of the ball. M ⊗ x and y are projected too. Without bias,
    layers compose as matrices do, M ⊗ (N ⊗ x) = (MN) ⊗ x, as long as no point meets the margin.

    ball: whose c, margin and arithmetic of ⊕ are used; a learnable c is shared with it, not copied.
    Raises ValueError for points of another size.   Source: Ganea et al. 2018; HIE, linear layer.
    """

    def __init__(self, in_features: int, out_features: int, ball: PoincareBall, bias: bool = True):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.ball = ball
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, points: Tensor) -> Tensor:
        moved = _times(self.weight, points, self.ball)
        if self.bias is None:
            return moved
        return self.ball.project(self.ball.mobius_add(moved, self.ball.expmap0(self.bias)))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class MobiusConcat(nn.Module):
    """Two points become one: [..., in1_features] and [..., in2_features] → [..., out_features], within the margin.

    y = (M₁ ⊗ x₁) ⊕ (M₂ ⊗ x₂), the ball's form of M [x₁; x₂] = M₁ x₁ + M₂ x₂, which it becomes as c → 0.

    `weight1` [out_features, in1_features] and `weight2` [out_features, in2_features] start as one `nn.Linear` of
    in1_features + in2_features does. ⊕ does not commute: the order of the points matters.

    ball: as in `MobiusLinear`, which see for M ⊗ x, errors and source.
    """

    def __init__(self, in1_features: int, in2_features: int, out_features: int, ball: PoincareBall):
        super().__init__()
        self.in1_features, self.in2_features, self.out_features = in1_features, in2_features, out_features
        self.ball = ball
        self.weight1 = nn.Parameter(torch.empty(out_features, in1_features))
        self.weight2 = nn.Parameter(torch.empty(out_features, in2_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(max(self.in1_features + self.in2_features, 1))
        nn.init.uniform_(self.weight1, -bound, bound)
        nn.init.uniform_(self.weight2, -bound, bound)

    def forward(self, points1: Tensor, points2: Tensor) -> Tensor:
        first, second = _times(self.weight1, points1, self.ball), _times(self.weight2, points2, self.ball)
        return self.ball.project(self.ball.mobius_add(first, second))

    def extra_repr(self) -> str:
        return f"in1_features={self.in1_features}, in2_features={self.in2_features}, out_features={self.out_features}"


def _times(weight: Tensor, points: Tensor, ball: PoincareBall) -> Tensor:
    """M ⊗ x within the margin."""
    if points.shape[-1] != weight.shape[-1]:
        raise ValueError(f"points must be [..., {weight.shape[-1]}], got shape {tuple(points.shape)}")
    return ball.project(poincare.mobius_matvec(weight, points, ball.curvature))


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


class HIEMLR(HyperbolicMLR):
    """`HyperbolicMLR` as HIE's official code computes it, for runs that must repeat its numbers: it can become NaN.

    The same parameters. What differs: p = exp₀(q) is not projected, so from √c ‖q‖ ≥ 9.02 on, float32 has λ_p = ∞ and
    the loss is NaN; z = (−p) ⊕ x is formed with the official ⊕, [..., out_features, in_features]; and arsinh(t) is
    log(max(t + √(1 + t²), 1e-5)), −11.51 for all t below about −5e4 and without digits from −1e3 on.
    Source: the official code of HIE.
    """

    ball: HIEBall

    @property
    def offsets(self) -> Tensor:
        return self.ball.unclipped_expmap0(self.offset)

    @property
    def normals(self) -> Tensor:
        return (1 - self.ball.curvature * self.offsets.square().sum(-1, keepdim=True)) * self.normal

    def forward(self, points: Tensor) -> Tensor:
        c, p, a = self.ball.curvature, self.offsets, self.normals
        z = self.ball.mobius_add(-p, points.unsqueeze(-2))
        norm = a.norm(dim=-1)
        t = 2 * c**0.5 * (z * a).sum(-1) / ((1 - c * z.square().sum(-1)) * norm)
        scale = 2 / (1 - c * p.square().sum(-1)) * norm / c**0.5
        return scale * (t + (1 + t.square()).sqrt()).clamp_min(1e-5).log()
