"""Poincaré ResNet made of HypLL's layers: the peer that `poincare_resnet.py` measures.

HypLL 0.1.1 has the layers and not the network. What it has is used as it is, except for what is wrong or cannot run:
- its curvature is softplus of the number given, and float32: here c is the number itself, in the network's dtype;
- its average pooling shrinks points; here the midpoint of all pixels, by its own `manifold.midpoint`;
- its identity initialisation is never reached by a 3×3 convolution, and its Adam is not Adam: parameters are copied
  from our network, and torch's Adam is given the plain tensors inside HypLL's parameters (`leaves`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypll.manifolds.poincare_ball import Curvature, PoincareBall
from hypll.nn import HBatchNorm2d, HConvolution2d, HReLU
from hypll.tensors import ManifoldParameter, ManifoldTensor, TangentTensor
from torch import Tensor, nn

from hypimg.models.backbones.poincare_resnet import PoincareResNet
from hypimg.nn import PoincareBatchNorm2d, PoincareConv2d, PoincareLinear


class HypllResNet(nn.Module):
    """The same function as `head.scores(network(images))`: images [N, C, H, W] → logits [N, classes].

    network, head: ours, with midpoint pooling; their parameters are copied, in their dtype.
    """

    def __init__(self, network: PoincareResNet, head: PoincareLinear):
        super().__init__()
        ball = network.conv.ball
        c = Curvature(ball.start_c, constraining_strategy=lambda c: c, requires_grad=ball.log_ratio is not None)
        self.dtype = head.weight.dtype
        c.value.data = torch.tensor(ball.start_c, dtype=self.dtype)
        self.manifold = PoincareBall(c)
        self.relu = HReLU(self.manifold)
        self.conv, self.norm = self._conv(network.conv), self._norm(network.norm)
        self.blocks = nn.ModuleList()
        for block in network.blocks:
            ours = {"conv1": self._conv(block.conv1), "norm1": self._norm(block.norm1)}
            ours |= {"conv2": self._conv(block.conv2), "norm2": self._norm(block.norm2)}
            ours |= {} if block.shortcut is None else {"shortcut": self._conv(block.shortcut)}
            self.blocks.append(nn.ModuleDict(ours))
        self.z, self.r = self.manifold.construct_dl_parameters(head.in_features, head.out_features)
        _copy(self.z.tensor, head.weight.T)
        _copy(self.r, head.bias)

    def _conv(self, ours: PoincareConv2d) -> HConvolution2d:
        """With our directions as the columns of its matrix, whose rows are channel-major."""
        sizes = ours.in_channels, ours.out_channels, ours.kernel_size
        conv = HConvolution2d(*sizes, self.manifold, stride=ours.stride[0], padding=ours.padding[0])
        _copy(conv.weights.tensor, ours.weight.flatten(1).T)
        _copy(conv.bias, ours.bias)
        return conv

    def _norm(self, ours: PoincareBatchNorm2d) -> HBatchNorm2d:
        norm = HBatchNorm2d(ours.num_features, self.manifold, use_midpoint=ours.mean == "midpoint")
        _copy(norm.norm.weight, ours.weight)
        _copy(norm.norm.bias, ours.bias)
        return norm

    def leaves(self) -> Iterator[Tensor]:
        """The trained tensors that an optimizer of torch can take, in the order of ours: network, head, c."""
        for layer in self._layers():
            if isinstance(layer, HConvolution2d):
                yield layer.weights.tensor
                yield layer.bias
            else:
                yield layer.norm.weight
                yield layer.norm.bias
        yield self.z.tensor
        yield self.r
        if self.manifold.c.value.requires_grad:
            yield self.manifold.c.value

    def _layers(self) -> Iterator[nn.Module]:
        yield from (self.conv, self.norm)
        for block in self.blocks:
            yield from block.values()

    def forward(self, images: Tensor) -> Tensor:
        tangents = TangentTensor(data=images, manifold_points=None, manifold=self.manifold, man_dim=1)
        x = self.relu(self.norm(self.conv(self.manifold.expmap(tangents))))
        for block in self.blocks:
            skip = block["shortcut"](x) if "shortcut" in block else x
            y = self.relu(block["norm1"](block["conv1"](x)))
            y = block["norm2"](block["conv2"](y))
            x = self.relu(self.manifold.mobius_add(y, skip))
        pixels = ManifoldTensor(data=x.tensor.flatten(2), manifold=self.manifold, man_dim=1)
        pooled = self.manifold.midpoint(pixels, batch_dim=2)
        z = ManifoldTensor(data=self.z.tensor, manifold=self.z.manifold, man_dim=0)
        return self.manifold.hyperplane_dists(pooled, z, self.r)


def in_our_shape(gradient: Tensor, ours: Tensor) -> Tensor:
    """A gradient of HypLL's, laid out as our parameter: its matrices have a column per direction."""
    return gradient.T.reshape(ours.shape) if gradient.dim() == 2 else gradient


def _copy(theirs: Tensor | ManifoldParameter, ours: Tensor | None) -> None:
    assert ours is not None
    theirs.data = ours.detach().clone(memory_format=torch.contiguous_format)
