"""Modules on top of the geometry: spaces, and layers that work in them. Imports torch and hypimg.geometry alone."""

from hypimg.nn.linear import HyperbolicMLR, MobiusConcat, MobiusLinear
from hypimg.nn.poincare import (
    MobiusResidual,
    PoincareAvgPool2d,
    PoincareBatchNorm2d,
    PoincareConv2d,
    PoincareLinear,
    TangentReLU,
)
from hypimg.nn.spaces import AngularBall, Euclidean, HIEBall, PoincareBall, Space

__all__ = [
    "AngularBall",
    "Euclidean",
    "HIEBall",
    "HyperbolicMLR",
    "MobiusConcat",
    "MobiusLinear",
    "MobiusResidual",
    "PoincareAvgPool2d",
    "PoincareBall",
    "PoincareBatchNorm2d",
    "PoincareConv2d",
    "PoincareLinear",
    "Space",
    "TangentReLU",
]
