"""Layers of Poincaré ResNet: tangent vectors at the origin in, tangent vectors out, channels first.

A tangent vector u stands for the point exp₀(u) of the Poincaré ball; here it is always the vector of one pixel's
channels (dimension 1 of [N, C, H, W]) or the last dimension of [..., n]. Each layer first projects the points that it
is given to the ball's margin, as the official code's exp₀ does (a convolution: the points of its fields, not those of
pixels; tangent pooling: none), and gives back log₀ of its result. So layers of torch that act on tangent vectors
(dropout, reshaping, pooling) stand between them as they are.

Everything is computed in float32 at least, under autocast too; the ball's c may be learned (it is shared, not copied).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypimg.errors import UserError, nearest
from hypimg.nn import _native, lorentz
from hypimg.nn.spaces import AngularBall, HIEBall, PoincareBall

Pair = int | Sequence[int]

MEANS = ("midpoint", "frechet")
STATISTICS = ("batch", "running", "frozen")
POOLINGS = ("tangent", "midpoint")
AXES = {"channels": 1, "rows": 3}


def _choice(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise UserError(name, value, f"unknown; {nearest(str(value), list(known))}")
    return value


def _pair(value: Pair, name: str, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= least for side in pair):
        raise UserError(name, value, f"must be one or two whole numbers ≥ {least}")
    return pair


def _count(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise UserError(name, value, "must be a whole number ≥ 1")
    return value


def _in_full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _OfTheBall(nn.Module):
    """A layer that knows its ball: the scale √c between tangent vectors and what `lorentz` takes, and the margin."""

    def __init__(self, ball: PoincareBall):
        super().__init__()
        if not isinstance(ball, PoincareBall) or isinstance(ball, AngularBall | HIEBall):
            raise UserError("space", type(ball).__name__, "a Poincaré layer needs a PoincareBall: space=poincare_net")
        self.ball = ball

    @property
    def limit(self) -> float:
        """The longest scaled tangent: beyond it a point lies outside the margin."""
        return lorentz.longest_tangent(self.ball.margin)

    def scaled(self, tangents: Tensor) -> Tensor:
        return _in_full_precision(tangents) * self.ball.root_curvature

    def unscaled(self, u: Tensor) -> Tensor:
        return u / self.ball.root_curvature


# Identity initialisations of a convolution's directions z [K, C, h, w]: which number of the field output k copies.


def _channel_major(z: Tensor) -> Tensor:
    return z.flatten(1)


def _first_pixel(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).reshape(len(z), -1)


def _centre(z: Tensor) -> Tensor:
    return z[:, :, z.shape[2] // 2, z.shape[3] // 2]


CONVOLUTION_INITS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "channel_major": _channel_major,
    "first_pixel": _first_pixel,
    "centre": _centre,
    "hnnpp": None,
}
LINEAR_INITS = ("identity", "hnnpp")


def _hnnpp(z: Tensor) -> None:
    nn.init.normal_(z, std=(2 * z.numel()) ** -0.5)


class PoincareLinear(_OfTheBall):
    """Fully connected layer of HNN++ and Poincaré ResNet: tangent vectors [..., in_features] → [..., out_features].

    v_k(x) = (2‖z_k‖/√c) arsinh( √c λ_x ⟨x, z_k/‖z_k‖⟩ cosh(2√c r_k) − (λ_x − 1) sinh(2√c r_k) ), the signed distance
    of x = exp₀(u) to hyperplane k, times 2‖z_k‖;  w_k = sinh(√c v_k)/√c;  y = w/(1 + √(1 + c‖w‖²));  the result is
    log₀(y).
    As c → 0 it becomes the linear map 4(⟨u, z_k⟩ − ‖z_k‖ r_k)/2 = 2⟨u, z_k⟩ − 2‖z_k‖ r_k.

    `weight` z [out_features, in_features] and `bias` r [out_features] are free.
    init: `hnnpp`: normal with deviation (2 · in · out)^−½; `identity`: z_k = e_k/2, with which y = x as far as the
        dimensions go. r starts at 0.
    inverted_lambda: 2(1 − c‖x‖²) in place of λ_x = 2/(1 − c‖x‖²), as PR's official code has it.
    `scores`: the v_k [..., out_features]: the logits of a classifier.
    Raises UserError for tangent vectors of another size.   Source: Shimizu et al. 2021 (HNN++); PR, section 3.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        ball: PoincareBall,
        bias: bool = True,
        init: str = "hnnpp",
        inverted_lambda: bool = False,
    ):
        super().__init__(ball)
        self.in_features = _count("in_features", in_features)
        self.out_features = _count("out_features", out_features)
        self.init, self.inverted_lambda = _choice("init", init, LINEAR_INITS), inverted_lambda
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.init == "hnnpp":
            _hnnpp(self.weight)
        else:
            self.weight.zero_().fill_diagonal_(0.5)
        if self.bias is not None:
            self.bias.zero_()

    def scores(self, tangents: Tensor) -> Tensor:
        return self.unscaled(self._scores(tangents)).view(*tangents.shape[:-1], self.out_features)

    def forward(self, tangents: Tensor) -> Tensor:
        points = lorentz.points_of_scores(self._scores(tangents), self.limit)
        return self.unscaled(lorentz.tangents_of(points)).view(*tangents.shape[:-1], self.out_features)

    def _scores(self, tangents: Tensor) -> Tensor:
        """√c v_k of all vectors one below another, [B, out_features]."""
        if tangents.shape[-1] != self.in_features:
            raise UserError("tangents", tuple(tangents.shape), f"must be [..., {self.in_features}]")
        with torch.autocast(tangents.device.type, enabled=False):
            u = self.scaled(tangents).reshape(-1, self.in_features)
            planes = _planes(self)
            square = lorentz.sum_of_squares(u)
            return lorentz.scores(u @ planes.weight.T, square, planes, self.limit, self.inverted_lambda)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, init={self.init}"


class PoincareConv2d(_OfTheBall):
    """Convolution of Poincaré ResNet: tangent vectors [N, in_channels, H, W] → [N, out_channels, H′, W′].

    The points of a field are β-concatenated: their tangent vectors are joined and scaled by
    ρ = β(n/2, ½)/β(in_channels/2, ½), n = in_channels · h · w (about 1/3 for a field of 3×3); the field's point goes
    through the hyperplanes of `PoincareLinear`. Padding is the origin. Computed without forming fields: ⟨field, z_k⟩ is
    an ordinary convolution and the field's length a box filter.

    `weight` z [out_channels, in_channels, h, w] and `bias` r [out_channels] are free; stride and padding as in
    `nn.Conv2d`.
    init: `hnnpp`, as in `PoincareLinear`, or a reading of the paper's identity, ½ on the main diagonal of the matrix
        [n, out_channels], whose rows may be counted in two ways. `channel_major`: channel · h·w + position, as in the
        official code: output k is position k mod h·w of channel k div h·w. `first_pixel`: position · in_channels +
        channel, the literal β-concatenation: the first outputs copy the corner of the field. `centre`: output k copies
        channel k at the centre; outputs beyond the channels start at the origin. Measured gain of one layer 3×3, C → C
        (norm out / norm in, c = 0.1, C = 4…32, random input of tangent norm up to 1, no padding): 0.31 to 0.34 for each
        identity, hnnpp 0.47/√C.
    Raises UserError for images of other channels or smaller than the field, and for `centre` with an even field.
    Source: PR, section 3; `hnnpp`: Shimizu et al. 2021.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        ball: PoincareBall,
        stride: Pair = 1,
        padding: Pair = 0,
        bias: bool = True,
        init: str = "channel_major",
        inverted_lambda: bool = False,
    ):
        super().__init__(ball)
        self.in_channels = _count("in_channels", in_channels)
        self.out_channels = _count("out_channels", out_channels)
        self.kernel_size = _pair(kernel_size, "kernel_size", 1)
        self.stride, self.padding = _pair(stride, "stride", 1), _pair(padding, "padding", 0)
        self.init, self.inverted_lambda = _choice("init", init, list(CONVOLUTION_INITS)), inverted_lambda
        if init == "centre" and not all(side % 2 for side in self.kernel_size):
            raise UserError("kernel_size", kernel_size, "is even and has no centre; take init=channel_major")
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        rows = CONVOLUTION_INITS[self.init]
        if rows is None:
            _hnnpp(self.weight)
        else:
            eye = torch.eye(self.out_channels, rows(self.weight).shape[1]).mul_(0.5)
            self.weight.zero_()
            if self.init == "first_pixel":  # whose rows are a copy
                self.weight.copy_(eye.unflatten(1, (*self.kernel_size, self.in_channels)).permute(0, 3, 1, 2))
            else:
                rows(self.weight).copy_(eye)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, tangents: Tensor) -> Tensor:
        return self.unscaled(_fused(self.scaled(tangents), self))

    def extra_repr(self) -> str:
        sides = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{sides}, padding={self.padding}, bias={self.bias is not None}, init={self.init}"


def _planes(layer: PoincareLinear | PoincareConv2d) -> lorentz.Planes:
    bias = None if layer.bias is None else _in_full_precision(layer.bias)
    z = _in_full_precision(layer.weight)
    return (_native if _native.usable(z) else lorentz).planes(z, bias, layer.ball.curvature)


class PoincareBatchNorm2d(_OfTheBall):
    """Batch norm of Poincaré ResNet: tangent vectors [N, num_features, H, W] → the same shape.

    Over all pixels of all images: μ = their mean, σ² = mean of d(x, μ)²; each log_μ(x) is transported to exp₀(`bias`),
    scaled by √(`weight`/(σ² + eps)), and mapped back by exp. `weight` γ [], 1 at first; it must stay > 0 (a negative
    one gives NaN, as in the official code). `bias` [num_features], a tangent vector at 0, 0 at first.

    mean: `midpoint` (PR) or `frechet`: two Newton steps from the midpoint and one that is differentiated, without
        looking at values; the length of the last one is kept in `newton`.
    statistics: `batch`: of the batch at hand, in training and in evaluation, as in the paper: a result depends on the
        images beside it. `running`: of the batch in training, in evaluation the exponential average with `momentum`
        (None: the plain average) of what training saw. `frozen`: always those stored. The attribute may be set later.
        Stored are the average point of the means, in Lorentz coordinates of the unit hyperboloid, and of the variances.
    Raises UserError for other channels, and where statistics are frozen that were never stored or loaded.
    Source: PR, section 3 and the midpoint batch normalisation.
    """

    running_mean: Tensor
    running_excess: Tensor
    running_variance: Tensor
    batches_seen: Tensor
    newton: Tensor

    def __init__(
        self,
        num_features: int,
        ball: PoincareBall,
        mean: str = "midpoint",
        statistics: str = "batch",
        eps: float = 1e-6,
        momentum: float | None = 0.1,
    ):
        super().__init__(ball)
        if not eps >= 0:
            raise UserError("eps", eps, "must be ≥ 0")
        self.num_features, self.eps, self.momentum = _count("num_features", num_features), eps, momentum
        self.mean, self.statistics = _choice("mean", mean, MEANS), statistics
        self.weight = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_excess", torch.zeros(()))
        self.register_buffer("running_variance", torch.ones(()))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("newton", torch.zeros(()), persistent=False)
        self._has_stored = False  # batches_seen > 0, known without a look at the device

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._has_stored = bool(self.batches_seen > 0)

    @property
    def statistics(self) -> str:
        return self._statistics

    @statistics.setter
    def statistics(self, value: str) -> None:
        self._statistics = _choice("statistics", value, STATISTICS)

    @property
    def by_batch(self) -> bool:
        """Whether the statistics are now those of the batch at hand."""
        return self.statistics == "batch" or (self.statistics == "running" and self.training)

    def spec(self) -> lorentz.Norm:
        c, gain, bias = self.ball.curvature, _in_full_precision(self.weight), _in_full_precision(self.bias)
        return lorentz.Norm(gain, bias * self.ball.root_curvature, c, self.eps, self.mean == "frechet")

    def stored(self) -> tuple[Tensor, Tensor]:
        """Mean point [1, C, 1, 1] and variance [] of the stored statistics."""
        if self.statistics == "frozen" and not self._has_stored:
            raise UserError("statistics", "frozen", "none were stored; train with statistics=running, or load some")
        mean, variance = _in_full_precision(self.running_mean), _in_full_precision(self.running_variance)
        excess = self.running_excess.double()
        length = (1 + excess * (2 + excess) - mean.double().square().sum()).clamp(min=1e-30).sqrt()
        return (mean / length).to(mean.dtype).view(1, -1, 1, 1), variance

    @torch.no_grad()
    def observe(self, mean: Tensor, variance: Tensor, newton: Tensor) -> None:
        """Note what a batch was like; average it in where running statistics are wanted."""
        self.newton.copy_(newton)
        if self.statistics == "running" and self.training:
            self.batches_seen += 1
            share = 1 / self.batches_seen.to(mean.dtype)
            if self.momentum is not None:
                share = share.clamp(min=self.momentum)  # the first batches count alike: nothing to average them with
            excess = lorentz.excess(lorentz.sum_of_squares(mean)).squeeze()
            stored = (self.running_mean, self.running_excess, self.running_variance)
            for average, seen in zip(stored, (mean.flatten(), excess, variance), strict=True):
                average.lerp_(seen.to(average.dtype), share.to(average.dtype))
            if not self._has_stored:
                self._has_stored = True

    def forward(self, tangents: Tensor) -> Tensor:
        _check_images(tangents, self.num_features)
        with torch.autocast(tangents.device.type, enabled=False):
            points = lorentz.points_of(self.scaled(tangents), self.limit)
            return self.unscaled(lorentz.tangents_of(self.of_points(points)))

    def of_points(self, points: Tensor) -> Tensor:
        """The same for points in Lorentz coordinates, see `lorentz`."""
        norm = self.spec()
        if not self.by_batch:
            return lorentz.moved(points, *self.stored(), norm, self.limit)[0]
        if norm.frechet:
            mean, newton = lorentz.frechet_mean(points)
        else:
            mean, newton = lorentz.midpoint(points), points.new_zeros(())
        moved, variance = lorentz.moved(points, mean, None, norm, self.limit)
        self.observe(mean.detach(), variance.detach(), newton.detach())
        return moved

    def extra_repr(self) -> str:
        return f"{self.num_features}, mean={self.mean}, statistics={self.statistics}"


def _check_images(tangents: Tensor, channels: int, sides: tuple[int, int] = (1, 1)) -> None:
    if tangents.dim() != 4 or tangents.shape[1] != channels:
        raise UserError("tangents", tuple(tangents.shape), f"must be [N, {channels}, H, W]")
    if tangents.shape[2] < sides[0] or tangents.shape[3] < sides[1]:
        smallest = f"{sides[0]}×{sides[1]}"
        raise UserError("tangents", tuple(tangents.shape), f"are smaller than {smallest}, what the layer looks at")


def fused(
    u: Tensor,
    conv: PoincareConv2d,
    norm: PoincareBatchNorm2d | None = None,
    skip: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """conv → [norm] → [⊕ skip] → [ReLU] of scaled tangents √c u, in one pass where the machine has a compiler.

    What the modules do one after another, without log₀ and exp₀ in between; where a module has hooks it is called by
    itself.  u: [N, C, H, W].  skip: the right summand, of the result's shape.  Returns scaled tangents.
    """
    if not any(module._forward_hooks or module._forward_pre_hooks for module in (conv, norm) if module is not None):
        return _fused(u, conv, norm, skip, relu)
    tangents = conv(conv.unscaled(u))
    u = conv.scaled(tangents if norm is None else norm(tangents))
    if skip is not None:
        _check_skip(u.shape, skip)
        u = lorentz.residual(u, skip, conv.limit)
    return u.relu() if relu else u


def _check_skip(branch: Sequence[int], skip: Tensor) -> None:
    if tuple(skip.shape) != tuple(branch):
        raise UserError("branch and skip", f"{tuple(branch)} and {tuple(skip.shape)}", "must be one shape [N, C, H, W]")


def _fused(
    u: Tensor,
    conv: PoincareConv2d,
    norm: PoincareBatchNorm2d | None = None,
    skip: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    _check_images(u, conv.in_channels)
    sides = [side + 2 * padding for side, padding in zip(u.shape[2:], conv.padding, strict=True)]
    if sides[0] < conv.kernel_size[0] or sides[1] < conv.kernel_size[1]:
        raise UserError("tangents", tuple(u.shape), f"are smaller than the field {conv.kernel_size} of the convolution")
    if skip is not None:
        around = zip(sides, conv.kernel_size, conv.stride, strict=True)
        _check_skip((len(u), conv.out_channels, *((long - tap) // step + 1 for long, tap, step in around)), skip)
    with torch.autocast(u.device.type, enabled=False):
        planes = _planes(conv)
        window = (planes, conv.stride, conv.padding, conv.limit, conv.inverted_lambda)
        if norm is None or norm.by_batch:
            layer = _native.layer if _native.usable(u) else lorentz.layer
            made = layer(u, *window, None if norm is None else norm.spec(), skip, relu)
            if norm is not None:
                assert made.mean is not None and made.variance is not None and made.newton is not None
                norm.observe(made.mean, made.variance, made.newton)
            return made.tangents
        if not torch.is_grad_enabled() and _native.usable(u):
            return _native.stored_layer(u, *window, norm.spec(), *norm.stored(), skip, relu)
        points = norm.of_points(lorentz.convolution(u, *window))
        if skip is not None:
            points = lorentz.mobius_sum(points, lorentz.points_of(skip, conv.limit))
        tangents = lorentz.tangents_of(points)
        return tangents.relu() if relu else tangents


class MobiusResidual(_OfTheBall):
    """log₀( exp₀(branch) ⊕ exp₀(skip) ) of tangent vectors, both [N, C, H, W]; branch + skip as c → 0.

    ⊕ does not commute; the branch comes first, as in the official code. The sum is not projected.
    axis: `channels`, the vectors of pixels; `rows`: of each channel's image rows, as the official code has it.
    Source: PR, section 3.
    """

    def __init__(self, ball: PoincareBall, axis: str = "channels"):
        super().__init__(ball)
        self.axis = _choice("axis", axis, list(AXES))

    def forward(self, branch: Tensor, skip: Tensor) -> Tensor:
        _check_images(branch, branch.shape[1] if branch.dim() == 4 else 0)
        _check_skip(branch.shape, skip)
        return self.unscaled(self.of_scaled(self.scaled(branch), self.scaled(skip)))

    def of_scaled(self, branch: Tensor, skip: Tensor) -> Tensor:
        """The same of scaled tangents √c u."""
        with torch.autocast(branch.device.type, enabled=False):
            if self.axis == "rows" and _native.usable(branch):
                return _native.row_residual(branch, skip, self.limit)
            return lorentz.residual(branch, skip, self.limit, AXES[self.axis])


class PoincareAvgPool2d(_OfTheBall):
    """Average of the points of each window: tangent vectors [N, C, H, W] → [N, C, H′, W′].

    kernel_size: of the windows, which lie side by side; None: the whole image, [N, C, 1, 1].
    mean: `tangent`: log₀ of the points is averaged, as in the official code; `midpoint`: the Poincaré midpoint.
    Raises UserError for images smaller than a window.   Source: PR; the midpoint: PR, midpoint batch normalisation.
    """

    def __init__(self, ball: PoincareBall, kernel_size: Pair | None = None, mean: str = "tangent"):
        super().__init__(ball)
        self.kernel_size = None if kernel_size is None else _pair(kernel_size, "kernel_size", 1)
        self.mean = _choice("pooling", mean, POOLINGS)

    def forward(self, tangents: Tensor) -> Tensor:
        sides = self.kernel_size or (1, 1)
        _check_images(tangents, tangents.shape[1] if tangents.dim() == 4 else 0, sides)
        window = self.kernel_size or (tangents.shape[2], tangents.shape[3])
        with torch.autocast(tangents.device.type, enabled=False):
            if self.mean == "tangent":
                return F.avg_pool2d(_in_full_precision(tangents), window)
            return self.unscaled(lorentz.pooled(self.scaled(tangents), window, self.limit))


class TangentReLU(nn.Module):
    """ReLU of tangent vectors at the origin: log₀ ∘ (exp₀ ∘ ReLU ∘ log₀) ∘ exp₀.   Source: PR, section 3."""

    def forward(self, tangents: Tensor) -> Tensor:
        return tangents.relu()


@contextlib.contextmanager
def norms_with(model: nn.Module, statistics: str) -> Iterator[None]:
    """Let all Poincaré batch norms of a model take these statistics for a while."""
    norms = [module for module in model.modules() if isinstance(module, PoincareBatchNorm2d)]
    before = [norm.statistics for norm in norms]
    for norm in norms:
        norm.statistics = statistics
    try:
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            norm.statistics = own


def freeze(model: nn.Module) -> None:
    """Let the Poincaré batch norms of a model take their stored statistics for good, where there are any."""
    for module in model.modules():
        if isinstance(module, PoincareBatchNorm2d) and int(module.batches_seen):
            module.statistics = "frozen"
