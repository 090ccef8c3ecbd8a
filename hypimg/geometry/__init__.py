"""Hyperbolic geometry as functions on tensors. Imports torch alone (and numba where `gromov` is asked to be fast)."""

from hypimg.geometry import gromov, hyperplanes, means, poincare, retrieval
from hypimg.geometry.poincare import check_points

__all__ = ["check_points", "gromov", "hyperplanes", "means", "poincare", "retrieval"]
