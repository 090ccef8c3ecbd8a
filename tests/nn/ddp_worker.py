"""One rank of two: `python ddp_worker.py STORE RANK`. Fails unless DDP's gradients are those of the whole batch."""

from __future__ import annotations

import sys

import torch
from torch import nn

from hypimg.nn.linear import MobiusLinear
from hypimg.nn.spaces import PoincareBall


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ball = PoincareBall(0.5, learn_c=True)
        self.layer, self.head = MobiusLinear(4, 3, self.ball), self.ball.hyperplanes(3, 5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.ball.embed(features)))


def main(store: str, rank: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, features, labels = Model(), torch.randn(8, 4), torch.randint(5, (8,))
    whole = nn.functional.cross_entropy(model(features), labels)
    expected = torch.autograd.grad(whole, list(model.parameters()))
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(store, 2), rank=rank, world_size=2)
    parallel = nn.parallel.DistributedDataParallel(model)
    half = slice(4 * rank, 4 * rank + 4)
    for _ in range(2):  # a second pass fails if a parameter got no gradient in the first
        model.zero_grad()
        nn.functional.cross_entropy(parallel(features[half]), labels[half]).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
