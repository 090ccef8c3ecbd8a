"""Backbone → space → head: one image classifier, Euclidean or hyperbolic by its space alone."""

from __future__ import annotations

from torch import Tensor, nn

from hypimg.nn.spaces import Space


class Classifier(nn.Module):
    """features = backbone(images); points = space.embed(features); logits = head(points).

    The head was built with the same `space` object, so a learnable curvature exists once.
    """

    def __init__(self, backbone: nn.Module, space: Space, head: nn.Module):
        super().__init__()
        self.backbone, self.space, self.head = backbone, space, head

    def features(self, images: Tensor) -> Tensor:
        """images [N, C, H, W], normalised → Euclidean features [N, dim]."""
        return self.backbone(images)

    def embed(self, images: Tensor) -> Tensor:
        """images [N, C, H, W], normalised → points of the space [N, dim]."""
        return self.space.embed(self.features(images))

    def forward(self, images: Tensor, with_points: bool = False, **task: int) -> Tensor | tuple[Tensor, Tensor]:
        """images [N, C, H, W], normalised → logits [N, K]; with_points: (logits, points [N, dim]).

        task: what the head has to know of the batch (way and shot of an episode).
        """
        points = self.embed(images)
        logits = self.head(points, **task)
        return (logits, points) if with_points else logits
