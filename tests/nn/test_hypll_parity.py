"""Against HypLL 0.1.1, the library of Poincaré ResNet's author, where it computes what the paper says.

Its curvature is softplus of the number given and float32: here it is the number itself, in float64. Its identity
initialisation is never reached and its average pooling shrinks points: here parameters are ours, and points are pooled
by its midpoint of a list. It clips at (1 − 1e-5)/√c in float64, ours likewise.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from poincare_reference import agree, gap, randomise, tensor

from hypimg.models.backbones.poincare_resnet import PoincareResNet
from hypimg.nn import (
    MobiusResidual,
    PoincareAvgPool2d,
    PoincareBall,
    PoincareBatchNorm2d,
    PoincareConv2d,
    PoincareLinear,
)

manifolds = pytest.importorskip("hypll.manifolds.poincare_ball")
modules = pytest.importorskip("hypll.nn")
tensors = pytest.importorskip("hypll.tensors")

MARGIN = 1e-5
BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def plain_form(monkeypatch):
    monkeypatch.setenv("HYPIMG_NATIVE", "0")


class Peer:
    """HypLL's manifold of the curvature of one of our balls, through which its gradient flows."""

    def __init__(self, ball):
        curvature = manifolds.Curvature(1.0, constraining_strategy=lambda value: ball.curvature)
        self.ball, self.manifold = ball, manifolds.PoincareBall(curvature)
        assert self.manifold.c().dtype == torch.float64

    def points(self, u, dim=1):
        v = tensors.TangentTensor(data=u, manifold_points=None, manifold=self.manifold, man_dim=dim)
        return self.manifold.expmap(v)

    def tangents(self, x):
        return self.manifold.logmap(None, x).tensor


def euclidean(data):
    """A parameter of HypLL that is one of ours, seen from its side."""
    from hypll.manifolds.euclidean import Euclidean

    return tensors.ManifoldTensor(data=data, manifold=Euclidean(), man_dim=0)


@pytest.fixture
def ball():
    return PoincareBall(0.1, learn_c=True, margin=MARGIN).double()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "bias"), [(3, 1, 1, True), (3, 2, 1, True), (1, 2, 0, True), (3, 1, 0, False)]
)
def test_convolution(form, ball, kernel, stride, padding, bias):
    ours = randomise(PoincareConv2d(3, 4, kernel, ball, stride, padding, bias))
    peer, u = Peer(ball), tensor(2, 3, 6, 6).requires_grad_()
    theirs = modules.HConvolution2d(3, 4, kernel, peer.manifold, bias, stride, padding)
    del theirs.weights, theirs.bias
    theirs.weights, theirs.bias = euclidean(ours.weight.flatten(1).T), ours.bias
    inputs = {"u": u, **dict(ours.named_parameters())}
    agree(ours(u), peer.tangents(theirs(peer.points(u))), inputs)


@pytest.mark.parametrize("mean", ["midpoint", "frechet"])
@pytest.mark.parametrize("size", [0.5, 2.0])
def test_batch_norm(ball, mean, size):
    ours = randomise(PoincareBatchNorm2d(3, ball, mean))
    peer, u = Peer(ball), tensor(3, 3, 4, 4, size=size).requires_grad_()
    theirs = modules.HBatchNorm2d(3, peer.manifold, use_midpoint=mean == "midpoint")
    del theirs.norm.weight, theirs.norm.bias
    theirs.norm.weight, theirs.norm.bias = ours.weight, ours.bias
    inputs = {"u": u, **dict(ours.named_parameters())}
    # its Fréchet mean stops at steps of 1e-12 of a slow iteration; the gradient of ours is that of three Newton steps
    digits = {} if mean == "midpoint" else {"value": 1e-9, "slope": 1e-7}
    agree(ours(u), peer.tangents(theirs(peer.points(u))), inputs, **digits)


def test_linear_residual_and_pooling(ball):
    peer, u, v = Peer(ball), tensor(4, 3).requires_grad_(), tensor(2, 3, 4, 4, size=0.7).requires_grad_()
    linear = randomise(PoincareLinear(3, 5, ball))
    z = euclidean(linear.weight.T)
    inputs = {"u": u, **dict(linear.named_parameters())}
    agree(linear(u), peer.tangents(peer.manifold.fully_connected(peer.points(u), z, linear.bias)), inputs)
    agree(linear.scores(u), peer.manifold.hyperplane_dists(peer.points(u), z, linear.bias), inputs)
    branch = tensor(2, 3, 4, 4, seed=1).requires_grad_()
    total = peer.tangents(peer.manifold.mobius_add(peer.points(branch), peer.points(v)))
    inputs = {"branch": branch, "skip": v, "c": ball.log_ratio}
    agree(MobiusResidual(ball)(branch, v), total, inputs)
    mean = peer.tangents(peer.manifold.midpoint(peer.points(v.flatten(2)), batch_dim=2))
    agree(PoincareAvgPool2d(ball, mean="midpoint")(v).flatten(1), mean, {"v": v, "c": ball.log_ratio})


def test_the_whole_network(form, monkeypatch):
    """ResNet-20 as `benchmarks/hypll_resnet.py` builds it of HypLL's layers: 1e-12 in outputs, 1e-9 in gradients."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    peer = importlib.import_module("hypll_resnet")
    ball = PoincareBall(0.1, margin=MARGIN)
    net = randomise(PoincareResNet((3, 16, 16), ball, depth=20, widths=(4, 8, 16), pooling="midpoint"))
    head = randomise(PoincareLinear(16, 10, ball))
    theirs = peer.HypllResNet(net, head)
    images, labels = tensor(2, 3, 16, 16), torch.arange(2)
    found, expected = head.scores(net(images)), theirs(images)
    assert gap(found, expected) < 1e-12
    ours = [*net.parameters(), *head.parameters()]
    loss, their_loss = (torch.nn.functional.cross_entropy(y, labels) for y in (found, expected))
    gradients = torch.autograd.grad(loss, ours)
    for name, a, b in zip(
        [n for n, _ in net.named_parameters()] + ["head", "head"],
        gradients,
        torch.autograd.grad(their_loss, list(theirs.leaves())),
        strict=True,
    ):
        assert gap(a, peer.in_our_shape(b, a)) < 1e-9, name
