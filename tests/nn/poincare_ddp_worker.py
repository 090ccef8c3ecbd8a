"""One rank of two: `python poincare_ddp_worker.py STORE RANK`. Fails unless DDP's gradients are the halves' average.

Batch statistics are each rank's own, as in torch's batch norm, so the whole batch in one process is another function.
"""

from __future__ import annotations

import copy
import sys

import torch
from torch import nn

from hypimg.nn import PoincareBall, PoincareBatchNorm2d, PoincareConv2d, PoincareLinear


def model() -> nn.Sequential:
    ball = PoincareBall(0.3, learn_c=True)
    norm = PoincareBatchNorm2d(3, ball, statistics="running")
    return nn.Sequential(PoincareConv2d(2, 3, 3, ball), norm, nn.Flatten(), PoincareLinear(12, 4, ball))


def main(store: str, rank: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, images, labels = model(), torch.randn(4, 2, 4, 4), torch.randint(4, (4,))
    halves = [slice(0, 2), slice(2, 4)]
    losses = [nn.functional.cross_entropy(copy.deepcopy(network)(images[half]), labels[half]) for half in halves]
    expected = []
    for half in halves:
        twin = copy.deepcopy(network)
        loss = nn.functional.cross_entropy(twin(images[half]), labels[half])
        expected.append(torch.autograd.grad(loss, list(twin.parameters())))
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(store, 2), rank=rank, world_size=2)
    parallel = nn.parallel.DistributedDataParallel(network)
    for _ in range(2):  # a second pass fails if a parameter got no gradient in the first
        network.zero_grad()
        loss = nn.functional.cross_entropy(parallel(images[halves[rank]]), labels[halves[rank]])
        torch.testing.assert_close(loss, losses[rank])
        loss.backward()
    for parameter, *gradients in zip(network.parameters(), *expected, strict=True):
        torch.testing.assert_close(parameter.grad, sum(gradients) / 2)
    assert int(network[1].batches_seen) == 2
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
