"""Speed of few-shot evaluation; one JSON line each, ours and the peers interleaved in this process.

    python benchmarks/fewshot.py [threads=1] [rounds=5] [dims=512,1600] [device=cpu]

10,000 episodes, 5-way 5-shot with 15 queries, over 50 classes of 60 images as in CUB's test part, in the Poincaré ball
of c = 0.01. Ours draws the episodes too; the peers are given them. What is too slow to be run whole is run in part and
taken for all: 100 episodes of the loops on embeddings at hand (Einstein midpoint by Klein coordinates and Möbius
distance, as the official code has them; geoopt), 2 episodes of the loop that embeds each one's 100 images with 4-Conv
at 84 pixels, and 100 of the 3,000 images that ours embeds once. The lines say so. Before anything is timed, ours is
compared with the first loop in float64, query by query, over its first 400 episodes. Lines of a CPU are written to
fewshot.jsonl, those of a GPU to fewshot_cuda.jsonl.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geoopt
import torch
from measure import interleaved, report
from torch import Tensor

from hypimg.data.episodes import EpisodeSampler
from hypimg.models import episodic
from hypimg.models.backbones.conv4 import Conv4
from hypimg.models.heads import ProtoNet
from hypimg.nn.spaces import PoincareBall

CLASSES, IMAGES, WAY, SHOT, QUERY, EPISODES, C = 50, 60, 5, 5, 15, 10_000, 0.01
CHECKED, LOOPED, EMBEDDED = 2 * episodic.DRAWN, 100, 2  # episodes
GOALS = {512: 12, 1600: 19}
GOAL_WITH_EMBEDDING = 100


def features(d: int) -> tuple[Tensor, Tensor]:
    """Classes that overlap, no coordinate below 0, norms about 8 (√c times that is 0.8); and labels."""
    generator = torch.Generator().manual_seed(d)
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES)
    x = 0.16 * torch.randn(CLASSES, d, generator=generator)[labels] + torch.randn(len(labels), d, generator=generator)
    x = x.relu()
    return 8 * x / x.norm(dim=1).mean(), labels


def einstein_midpoint(support: Tensor) -> Tensor:
    """[shot, way, d] → [way, d]."""
    klein = 2 * support / (1 + C * support.square().sum(-1, keepdim=True))
    gamma = (1 - C * klein.square().sum(-1, keepdim=True)).rsqrt()
    mean = (gamma * klein).sum(0) / gamma.sum(0)
    return mean / (1 + (1 - C * mean.square().sum(-1, keepdim=True)).sqrt())


def mobius_distances(x: Tensor, y: Tensor) -> Tensor:
    """[n, d], [m, d] → [n, m], through the vectors (−x) ⊕ y."""
    x, y = -x[:, None], y[None]
    xy, xx, yy = (x * y).sum(-1, keepdim=True), x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
    difference = ((1 + 2 * C * xy + C * yy) * x + (1 - C * xx) * y) / (1 + 2 * C * xy + C**2 * xx * yy)
    return 2 / C**0.5 * torch.atanh(C**0.5 * difference.norm(dim=-1))


def published(support: Tensor, queries: Tensor) -> Tensor:
    return mobius_distances(queries, einstein_midpoint(support))


def by_geoopt(ball: geoopt.PoincareBall) -> Callable[[Tensor, Tensor], Tensor]:
    def distances(support: Tensor, queries: Tensor) -> Tensor:
        return ball.dist(queries[:, None], ball.weighted_midpoint(support, reducedim=[0]))

    return distances


@torch.no_grad()
def loop(points: Callable[[Tensor], Tensor], episodes: Tensor, distances: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Predictions [E, Q], one episode after another; points: rows of the images → [n, d]."""
    found = []
    for episode in episodes:
        x = points(episode)
        support, queries = x[: WAY * SHOT].unflatten(0, (SHOT, WAY)), x[WAY * SHOT :]
        found.append(distances(support, queries).argmin(1))
    return torch.stack(found)


def measure(d: int, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """The two lines of one dimension."""
    x, labels = features(d)
    space = PoincareBall(C)
    points = space.embed(x.to(device))
    head, sampler = ProtoNet(space, d, WAY), EpisodeSampler(labels, WAY, SHOT, QUERY)
    episodes = episodic.draw(sampler, CHECKED, torch.Generator().manual_seed(0)).long().to(device)

    def ours() -> Tensor:
        return episodic.episode_accuracies(head, points, sampler, EPISODES, torch.Generator().manual_seed(0))

    exact = loop(points.double().__getitem__, episodes, published)
    found = episodic.predictions(head, points, episodes.repeat(EPISODES // CHECKED, 1), WAY, SHOT)[:CHECKED]
    of_loop = float(exact.eq(torch.arange(WAY, device=device).repeat(QUERY)).double().mean())
    same = {
        "accuracy": float(ours()[:CHECKED].mean()),
        "accuracy of the float64 loop": of_loop,
        "queries compared": exact.numel(),
        "queries that differ": int((exact != found).sum()),
    }
    ball = geoopt.PoincareBall(C).to(device)
    net = Conv4((3, 84, 84), dim=d).to(device).eval()
    pixels = torch.randn(CLASSES * IMAGES, 3, 84, 84, generator=torch.Generator().manual_seed(0)).to(device)
    some = episodes[:LOOPED]

    @torch.no_grad()
    def embed(rows: Tensor) -> Tensor:
        return space.embed(net(pixels[rows]))

    hundred = torch.arange(100, device=device)
    works = {
        "ours": ours,
        "of products": lambda: loop_of_products(head, points, sampler),
        "published": lambda: loop(points.__getitem__, some, published),
        "geoopt": lambda: loop(points.__getitem__, some, by_geoopt(ball)),
        "embedding loop": lambda: loop(embed, episodes[:EMBEDDED], published),
        "embedding 100": lambda: embed(hundred),
    }
    seconds = interleaved(works, rounds, warmup=1)
    mine, loops = seconds["ours"], EPISODES / LOOPED
    about = f"10,000 episodes, {d}-d"
    with_embedding = mine + seconds["embedding 100"] * len(points) / len(hundred)
    embedding_loop = seconds["embedding loop"] * EPISODES / EMBEDDED
    return [
        report(
            f"{about}, embeddings at hand",
            peer=f"loop of the published formulas ({LOOPED} episodes, taken for all)",
            ratio=seconds["published"] * loops / mine,
            goal=f">= {GOALS.get(d, 12)}",
            ms=1e3 * mine,
            **{"peer ms": 1e3 * seconds["published"] * loops},
            **{"ratio to geoopt in the loop": seconds["geoopt"] * loops / mine},
            **{"ratio to ours without the matrix of pairs": seconds["of products"] / mine},
            **same,
        ),
        report(
            f"{about}, 4-Conv at 84 pixels included",
            peer=f"loop that embeds each episode ({EMBEDDED} episodes, taken for all)",
            ratio=embedding_loop / with_embedding,
            goal=f">= {GOAL_WITH_EMBEDDING}",
            ms=1e3 * with_embedding,
            **{"peer ms": 1e3 * embedding_loop},
            **{"embedding ms, from 100 of 3,000 images": 1e3 * (with_embedding - mine)},
        ),
    ]


def loop_of_products(head: ProtoNet, points: Tensor, sampler: EpisodeSampler) -> Tensor:
    """Ours with a matrix product per batch of episodes."""
    most, episodic.MOST_PAIRS = episodic.MOST_PAIRS, 0
    try:
        return episodic.episode_accuracies(head, points, sampler, EPISODES, torch.Generator().manual_seed(0))
    finally:
        episodic.MOST_PAIRS = most


def main(words: list[str]) -> None:
    """Measure and write the lines."""
    options = {"threads": "1", "rounds": "5", "dims": "512,1600", "device": "cpu"} | dict(w.split("=") for w in words)
    torch.set_num_threads(int(options["threads"]))
    device = torch.device(options["device"])
    lines = []
    for d in options["dims"].split(","):
        lines += measure(int(d), device, int(options["rounds"]))
    name = "fewshot" if device.type == "cpu" else f"fewshot_{device.type}"
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    Path(__file__).with_name(f"{name}.jsonl").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
