"""What a head asks of the space that it works in: Euclidean, the Poincaré ball, and HIE's official arithmetic of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hypimg.errors import UserError
from hypimg.geometry import means, poincare
from hypimg.nn.linear import HIEMLR, HyperbolicMLR

BALL_MARGIN = 1e-3  # HIE clips at norm (1 − 1e-3)/√c; geoopt's float32 default is 4e-3

# A point counts as clipped from this relative distance below the clip sphere: float32 rounds norms at about 1e-7.
CLIPPED_TOLERANCE = 1e-6

# A learnable c stays within this factor of its start.
LARGEST_CHANGE_OF_C = 10.0


class Space(nn.Module):
    """Where embeddings live. Every head works in every space, so a comparison's arms differ in one line of config.

    Vectors and points are [..., d].
    """

    @property
    def c(self) -> Tensor:
        """Minus the sectional curvature, a 0-dim tensor on the module's device."""
        raise NotImplementedError

    def embed(self, features: Tensor) -> Tensor:
        """Features of a backbone [..., d] → points [..., d]."""
        raise NotImplementedError

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of paired points, [...]."""
        raise NotImplementedError

    def cdist(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances of all pairs: [..., n, d], [..., m, d] → [..., n, m]."""
        raise NotImplementedError

    def dist0(self, x: Tensor) -> Tensor:
        """Distance to the origin, [...]."""
        raise NotImplementedError

    def logmap0(self, x: Tensor) -> Tensor:
        """Points → tangent vectors at the origin, [..., d]: the coordinates in which Euclidean methods apply."""
        raise NotImplementedError

    def midpoint(self, x: Tensor, weights: Tensor | None = None, dim: int = -2) -> Tensor:
        """Mean over `dim` (not the last); weights: x's shape without its last dimension, ≥ 0, not all 0."""
        raise NotImplementedError

    def clipped(self, points: Tensor) -> Tensor:
        """Which points lie on the clip sphere, bool [...]."""
        raise NotImplementedError

    def hyperplanes(self, in_features: int, classes: int) -> nn.Module:
        """A trainable linear classifier of this space: points [..., in_features] → logits [..., classes]."""
        raise NotImplementedError

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Parameters that an optimizer must not decay."""
        return []


class Euclidean(Space):
    """R^d with dist = ‖x − y‖: the baseline arm. Points are the features themselves."""

    _c: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_c", torch.zeros(()), persistent=False)

    @property
    def c(self) -> Tensor:
        return self._c

    def embed(self, features: Tensor) -> Tensor:
        return features

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x - y, dim=-1)

    def cdist(self, x: Tensor, y: Tensor) -> Tensor:
        # From differences: the matrix product form is wrong for near pairs.
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")

    def dist0(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=-1)

    def logmap0(self, x: Tensor) -> Tensor:
        return x

    def midpoint(self, x: Tensor, weights: Tensor | None = None, dim: int = -2) -> Tensor:
        if weights is None:
            return x.mean(dim)
        w = weights.unsqueeze(-1)
        return (w * x).sum(dim) / w.expand(*x.shape[:-1], 1).sum(dim)

    def clipped(self, points: Tensor) -> Tensor:
        return torch.zeros(points.shape[:-1], dtype=torch.bool, device=points.device)

    def hyperplanes(self, in_features: int, classes: int) -> nn.Module:
        return nn.Linear(in_features, classes)


class _Hold(torch.autograd.Function):
    """clamp(x, −bound, bound) whose gradient still reaches an x outside, if it leads back inside.

    With torch.clamp an optimizer's overshoot past the bound would freeze the parameter for good.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bound: float) -> Tensor:
        return x.clamp(-bound, bound)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, ctx.bound = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        # Descent moves x against its gradient.
        outward = ((x > ctx.bound) & (grad < 0)) | ((x < -ctx.bound) & (grad > 0))
        return torch.where(outward, 0.0, grad), None


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and value > 0 and math.isfinite(value)


def _rescale_gradient(points: Tensor, c: float | Tensor) -> Tensor:
    """The same points, with their gradient multiplied by (1 − c‖x‖²)²/4 = 1/λ²."""
    fixed = points.detach()
    factor = poincare.conformal_factor(fixed, c).detach().pow(-2).unsqueeze(-1)
    return fixed + factor * (points - fixed)


class PoincareBall(Space):
    """The Poincaré ball of curvature −c: embed = [clip features] → exp₀ → project [→ rescale the gradient].

    c: > 0. A fixed c enters the formulas as the float it was given. With `learn_c` it is c₀ exp(log_ratio), where the
        parameter log_ratio starts at 0 (so training starts at c₀ exactly), is held within ± log 10 and is not decayed.
        c₀ belongs to the configuration and is not part of the state dict.
    margin: points keep norm ≤ (1 − margin)/√c; 1e-3 in HIE.
    clip_features: if given, features longer than this are shortened to it before exp₀ (Guo et al. 2022, Clipped
        Hyperbolic Classifiers Are Super-Hyperbolic Classifiers).
    rescale_gradient: multiply the gradient that reaches an embedding x by (1 − c‖x‖²)²/4, the inverse of the metric, as
        HIE's official code does (there with the initial c, here with the current one).
    """

    _c: Tensor

    def __init__(
        self,
        c: float = 1.0,
        learn_c: bool = False,
        margin: float = BALL_MARGIN,
        clip_features: float | None = None,
        rescale_gradient: bool = False,
    ):
        super().__init__()
        if not _is_positive(c):
            raise UserError("c", c, "must be a finite number > 0; for c = 0 use space=euclidean")
        if not (_is_positive(margin) and margin < 1):
            raise UserError("margin", margin, "must be > 0 and < 1; 1e-3 in HIE, 1e-5 in the layers of Poincaré ResNet")
        if clip_features is not None and not _is_positive(clip_features):
            raise UserError("clip_features", clip_features, "must be a finite number > 0, or null for no clipping")
        self.start_c = float(c)
        self.margin = float(margin)
        self.clip_features = None if clip_features is None else float(clip_features)
        self.rescale_gradient = rescale_gradient
        self.register_buffer("_c", torch.tensor(self.start_c, dtype=torch.float32), persistent=False)
        self.log_ratio = nn.Parameter(torch.zeros(())) if learn_c else None
        self._held: tuple[Tensor, Tensor] | None = None

    @property
    def curvature(self) -> float | Tensor:
        """c as the formulas take it: the float of the configuration, or a 0-dim tensor with a gradient if learnable."""
        if self.log_ratio is None:
            return self.start_c
        if self._held is not None:
            return self._held[0]
        # float32 at least: half precision would round c itself
        log_ratio = self.log_ratio.to(torch.promote_types(self.log_ratio.dtype, torch.float32))
        return self.start_c * _Hold.apply(log_ratio, math.log(LARGEST_CHANGE_OF_C)).exp()

    @property
    def root_curvature(self) -> float | Tensor:
        """√c, like `curvature`."""
        return self.curvature**0.5 if self._held is None else self._held[1]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within it a learnable c is computed once: for one forward pass of a network whose layers share the ball."""
        outer = self._held
        c = self.curvature
        if isinstance(c, Tensor) and outer is None:
            self._held = c, c**0.5
        try:
            yield
        finally:
            self._held = outer

    @property
    def c(self) -> Tensor:
        c = self.curvature
        # new_full: module.half() would have rounded the buffer, and a fill does not wait for the device.
        return c if isinstance(c, Tensor) else self._c.new_full((), c, dtype=torch.float32)

    def expmap0(self, v: Tensor) -> Tensor:
        """Tangent vectors at the origin → points of the ball that keep its margin."""
        return poincare.expmap0(v, self.curvature, self.margin)

    def project(self, points: Tensor) -> Tensor:
        """Points beyond the margin, shortened to it."""
        return poincare.project(points, self.curvature, self.margin)

    def mobius_add(self, x: Tensor, y: Tensor) -> Tensor:
        """x ⊕ y [..., d], not projected."""
        return poincare.mobius_add(x, y, self.curvature)

    def embed(self, features: Tensor) -> Tensor:
        if self.clip_features is not None:
            # Shortening to r is projecting into a ball of radius r.
            features = poincare.project(features, self.clip_features**-2, margin=0.0)
        points = self.expmap0(features)
        return _rescale_gradient(points, self._metric_c()) if self.rescale_gradient else points

    def _metric_c(self) -> float | Tensor:
        """The c by which gradients are rescaled."""
        return self.curvature

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return poincare.dist(x, y, self.curvature)

    def cdist(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances of all pairs: [..., n, d], [..., m, d] → [..., n, m].

        By `poincare.cdist` in mode auto, the faster one, on the CPU; on a GPU in mode exact: auto counts near pairs on
        the host, which would wait for the device in each training step.
        """
        return poincare.cdist(x, y, self.curvature, mode="exact" if x.is_cuda else "auto")

    def dist0(self, x: Tensor) -> Tensor:
        return poincare.dist0(x, self.curvature)

    def logmap0(self, x: Tensor) -> Tensor:
        return poincare.logmap0(x, self.curvature)

    def midpoint(self, x: Tensor, weights: Tensor | None = None, dim: int = -2) -> Tensor:
        return means.midpoint(x, self.curvature, weights, dim)

    def clipped(self, points: Tensor) -> Tensor:
        """Which points lie on the clip sphere: norm ≥ (1 − margin)(1 − 1e-6)/√c, bool [...]."""
        limit = (1 - self.margin) * (1 - CLIPPED_TOLERANCE)
        return self.curvature * points.detach().double().square().sum(-1) >= limit**2

    def hyperplanes(self, in_features: int, classes: int) -> nn.Module:
        return HyperbolicMLR(in_features, classes, ball=self)

    def no_weight_decay(self) -> list[nn.Parameter]:
        return [] if self.log_ratio is None else [self.log_ratio]

    def extra_repr(self) -> str:
        parts = [f"c={self.start_c:g}", f"margin={self.margin:g}"]
        if self.log_ratio is not None:
            parts.append("learn_c=True")
        if self.clip_features is not None:
            parts.append(f"clip_features={self.clip_features:g}")
        if self.rescale_gradient:
            parts.append("rescale_gradient=True")
        return ", ".join(parts)


class AngularBall(PoincareBall):
    """The Poincaré ball where only directions count: each feature vector is moved onto the clip sphere.

    embed = (1 − margin)/√c · v/‖v‖ (0 stays 0). Between two such points at an angle θ the distance is
    (2/√c) arsinh(2 (1 − ε) sin(θ/2)/(1 − (1 − ε)²)) with ε the margin: one function of θ over √c, so c is a temperature
    and nothing else. The control for models whose embeddings all lie on the clip sphere anyhow.
    """

    def __init__(
        self, c: float = 1.0, learn_c: bool = False, margin: float = BALL_MARGIN, rescale_gradient: bool = False
    ):
        super().__init__(c, learn_c, margin, None, rescale_gradient)

    def embed(self, features: Tensor) -> Tensor:
        points = nn.functional.normalize(_single(features), dim=-1) * ((1 - self.margin) / self.curvature**0.5)
        return _rescale_gradient(points, self._metric_c()) if self.rescale_gradient else points


# HIE's official code: the floor of norms, what a Möbius sum adds to its denominator, and how far artanh stays below 1.
_OFFICIAL_EPS = 1e-5
_OFFICIAL_TANH_LIMIT = 15.0


class HIEBall(PoincareBall):
    """The Poincaré ball in the arithmetic of HIE's official code, for runs that must repeat its numbers.

    What differs from PoincareBall, which computes what the formulas say:
    - exp₀, project, log₀: the norm is floored at 1e-5 and tanh's argument held within ± 15.
    - dist, dist0, cdist, log₀: artanh's argument is held within ± (1 − 1e-5), with the gradient of the held value, not
      cut: no distance exceeds 12.2047/√c though two clipped points can be 15.20/√c apart. The denominator of the
      Möbius sum has 1e-5 added. At c = 1 and norms 0.5 / 0.9 / 0.99 / 0.999 this is wrong by 3e-5 / 6e-4 / 0.05 / 2.8.
    - cdist stores [..., n, m, d].
    - midpoint goes through Klein coordinates, which lose digits near the sphere: of one point at norm 0.999 it is
      0.99896, nearer to the origin by 0.035. With a margin below 1e-3 it may be NaN.
    - the gradient is rescaled by default, as in every run of the official code, by the initial c even if c is learned.

    official_mlr: take the official hyperplanes too (`HIEMLR`). By default they are ours: the official ones turn NaN.
    M ⊗ x (`MobiusLinear`) is ours. A learnable c is held as in PoincareBall; the official one is free.
    """

    def __init__(
        self,
        c: float = 1.0,
        learn_c: bool = False,
        margin: float = BALL_MARGIN,
        clip_features: float | None = None,
        rescale_gradient: bool = True,
        official_mlr: bool = False,
    ):
        super().__init__(c, learn_c, margin, clip_features, rescale_gradient)
        self.official_mlr = official_mlr

    def _metric_c(self) -> float:
        return self.start_c

    def unclipped_expmap0(self, v: Tensor) -> Tensor:
        """exp₀ without the projection: from √c ‖v‖ ≥ 9.02 on, float32 puts the point on the sphere."""
        v = _single(v)
        s = self.curvature**0.5 * _floored_norm(v)
        return s.clamp(-_OFFICIAL_TANH_LIMIT, _OFFICIAL_TANH_LIMIT).tanh() * v / s

    def expmap0(self, v: Tensor) -> Tensor:
        return self.project(self.unclipped_expmap0(v))

    def project(self, points: Tensor) -> Tensor:
        points = _single(points)
        norm, longest = _floored_norm(points), (1 - self.margin) / self.curvature**0.5
        return torch.where(norm > longest, points / norm * longest, points)

    def mobius_add(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = _single(x), _single(y)
        c = self.curvature
        xy, xx, yy = ((a * b).sum(-1, keepdim=True) for a, b in ((x, y), (x, x), (y, y)))
        numerator = (1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y
        return numerator / (1 + 2 * c * xy + c**2 * xx * yy + _OFFICIAL_EPS)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        root_c = self.curvature**0.5
        return 2 / root_c * _official_artanh(root_c * self.mobius_add(-x, y).norm(dim=-1))

    def cdist(self, x: Tensor, y: Tensor) -> Tensor:
        return self.dist(x.unsqueeze(-2), y.unsqueeze(-3))

    def dist0(self, x: Tensor) -> Tensor:
        root_c = self.curvature**0.5
        return 2 / root_c * _official_artanh(root_c * _single(x).norm(dim=-1))

    def logmap0(self, x: Tensor) -> Tensor:
        x = _single(x)
        root_c, norm = self.curvature**0.5, _floored_norm(x)
        return x / norm / root_c * _official_artanh(root_c * norm)

    def midpoint(self, x: Tensor, weights: Tensor | None = None, dim: int = -2) -> Tensor:
        x = _single(x)
        c = self.curvature
        k = 2 * x / (1 + c * (x * x).sum(-1, keepdim=True))
        w = (1 - c * (k * k).sum(-1, keepdim=True)).rsqrt()
        if weights is not None:
            w = w * weights.unsqueeze(-1)
        mean = (w * k).sum(dim) / w.sum(dim)
        return mean / (1 + (1 - c * (mean * mean).sum(-1, keepdim=True)).sqrt())

    def hyperplanes(self, in_features: int, classes: int) -> nn.Module:
        return (HIEMLR if self.official_mlr else HyperbolicMLR)(in_features, classes, ball=self)

    def extra_repr(self) -> str:
        return super().extra_repr() + ", official_mlr=True" * self.official_mlr


def _single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _floored_norm(x: Tensor) -> Tensor:
    return x.norm(dim=-1, keepdim=True).clamp_min(_OFFICIAL_EPS)


def _official_artanh(x: Tensor) -> Tensor:
    # The held value with the gradient of the value it was given: the official backward pass does not cut it.
    held = x + (x.clamp(-1 + _OFFICIAL_EPS, 1 - _OFFICIAL_EPS) - x).detach()
    return 0.5 * ((1 + held).log() - (1 - held).log())
