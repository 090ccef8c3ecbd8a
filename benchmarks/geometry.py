"""Speed and memory of the geometry against its peers, in turns in one process; one JSON line per case.

    python benchmarks/geometry.py [threads=1] [rounds=7] [device=cpu] [only=cdist,retrieval,mlr,rows]

`ratio` is the peer's time over ours (larger is better) where a case names a goal ">= …", and ours over the peer's where
it names "<= …". `error` is our largest relative error against float64 on the same input. Peers: geoopt and hypll from
the extra `peers`, plain PyTorch, and the textbook formula by broadcasting. Memory is what autograd keeps for backward.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import geoopt
import torch
from measure import interleaved, report, saved_bytes
from torch import Tensor

from hypimg.errors import UserError
from hypimg.geometry import hyperplanes, poincare, retrieval

MB = 1e6


def random_points(generator: torch.Generator, n: int, d: int, norm: float = 0.64) -> Tensor:
    return torch.randn(n, d, generator=generator) * (norm / d**0.5)


def train(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], None]:
    """Forward and backward of a function in all its inputs."""
    with torch.no_grad():
        weights = torch.ones_like(function(*inputs))

    def step() -> None:
        leaves = [t.detach().requires_grad_() for t in inputs]
        function(*leaves).backward(weights)

    return step


def saved(function: Callable[..., Tensor], *inputs: Tensor) -> float:
    """MB that autograd keeps, the inputs included."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    return saved_bytes(lambda: function(*leaves)) / MB


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """Largest error of a row in units of its own length."""
    ours, exact = ours.double(), exact.double()
    if exact.dim() == 1:
        ours, exact = ours.unsqueeze(-1), exact.unsqueeze(-1)
    return float(((ours - exact).norm(dim=-1) / exact.norm(dim=-1).clamp(min=1e-30)).max())


def arcosh_broadcast(x: Tensor, y: Tensor) -> Tensor:
    """The textbook's distance, c = 1."""
    x, y = x.unsqueeze(1), y.unsqueeze(0)
    inverse = 1 / ((1 - x.square().sum(-1)) * (1 - y.square().sum(-1)))
    return (1 + 2 * (x - y).square().sum(-1) * inverse).clamp(min=1 + 1e-7).arccosh()


def cdist(rounds: int, device: str) -> None:
    from hypll.manifolds.poincare_ball import Curvature, PoincareBall
    from hypll.tensors import ManifoldTensor

    generator = torch.Generator().manual_seed(0)
    x, y = (random_points(generator, 1000, 64).to(device) for _ in range(2))
    ball = geoopt.PoincareBall(c=1.0).to(device)
    hypll = PoincareBall(Curvature(1.0, constraining_strategy=lambda c: c)).to(device)
    modes = {mode: lambda x, y, mode=mode: poincare.cdist(x, y, 1.0, mode) for mode in ("matmul", "auto", "exact")}
    peers = {
        "geoopt broadcast": lambda x, y: ball.dist(x[:, None], y[None]),
        "hypll cdist": lambda x, y: hypll.cdist(
            ManifoldTensor(x[None], manifold=hypll), ManifoldTensor(y[None], manifold=hypll)
        )[0],
        "arcosh broadcast": arcosh_broadcast,
    }
    works = {name: train(function, x, y) for name, function in (modes | peers).items()}
    times = interleaved(works | {"three products": lambda: ((x @ y.mT) @ y, (x @ y.mT).mT @ x)}, rounds, 1)
    goals = {"matmul": ">= 230", "auto": ">= 190", "exact": ">= 65"}
    exact = poincare.cdist(x.double(), y.double(), 1.0, "exact")
    theirs = {name: saved(function, x, y) for name, function in peers.items()}
    for mode, function in modes.items():
        report(
            f"cdist 1000 x 1000 x 64, forward + backward, {mode}",
            peer="geoopt broadcast",
            ratio=times["geoopt broadcast"] / times[mode],
            goal=goals[mode],
            ms=1e3 * times[mode],
            **{"ms of three matrix products": 1e3 * times["three products"]},
            **{f"ratio to {name}": times[name] / times[mode] for name in ("hypll cdist", "arcosh broadcast")},
            **{
                "saved MB": saved(function, x, y),
                "saved goal": "<= 4.6",
                "geoopt saved MB": theirs["geoopt broadcast"],
            },
            error=relative_error(function(x, y).flatten(), exact.flatten()),
        )


def retrieval_(rounds: int, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    queries, gallery = (random_points(generator, n, 128).to(device) for n in (3368, 15913))
    matches = torch.randint(len(gallery), (len(queries), 10), generator=generator).to(device)

    def argsort_ranks() -> Tensor:
        places = torch.cdist(queries, gallery).argsort(dim=1).argsort(dim=1)
        return places.gather(1, matches)

    works = {
        "distances": lambda: poincare.cdist(queries, gallery, 1.0),
        "distances, matmul": lambda: poincare.cdist(queries, gallery, 1.0, "matmul"),
        "Euclidean distances": lambda: torch.cdist(queries, gallery),
        "top-50": lambda: retrieval.topk(queries, gallery, 1.0, 50),
        "Euclidean top-50": lambda: torch.cdist(queries, gallery).topk(50, dim=1, largest=False),
        "ranks": lambda: retrieval.rank_by_distance(queries, gallery, 1.0, matches),
        "Euclidean argsort": lambda: torch.cdist(queries, gallery).argsort(dim=1),
    }
    with torch.no_grad():
        times = interleaved(works, max(2, rounds // 2), 1)
        peaks = {name: peak_mb(works[name]) for name in ("distances", "top-50", "ranks")}
        rows = slice(0, 200)
        exact = poincare.cdist(queries[rows].double(), gallery.double(), 1.0, "exact")
        error = relative_error(works["distances"]()[rows].flatten(), exact.flatten())
    name = "retrieval 3368 x 15913 x 128"
    output = len(queries) * len(gallery) * 4 / MB
    for ours, peer, goal, kept in (
        ("distances", "Euclidean distances", ">= 0.55", output),
        ("distances, matmul", "Euclidean distances", ">= 0.55", output),
        ("top-50", "Euclidean top-50", ">= 1.1", 0.0),
        ("ranks", "Euclidean argsort", ">= 3.6", 0.0),
    ):
        more = {"peak MB over the output": peaks[ours] - kept, "peak goal": "<= 60"} if ours in peaks else {}
        more |= {"error": error} if ours == "distances" else {}
        report(f"{name}, {ours}", peer=peer, ratio=times[peer] / times[ours], goal=goal, ms=1e3 * times[ours], **more)


def peak_mb(work: Callable[[], object]) -> float:
    """MB by which the process (or the device) grows at most while it works: sampled every few ms on CPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / MB
    import threading
    from pathlib import Path

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    done, sizes = threading.Event(), [resident()]

    def watch() -> None:
        while not done.wait(0.003):
            sizes.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = work()
    done.set()
    watcher.join()
    del kept
    return (max(sizes) - sizes[0]) / MB


def mlr(rounds: int, device: str) -> None:
    ball = geoopt.PoincareBall(c=1.0).to(device)
    for d, goals in ((64, (">= 40", "<= 2.3")), (2048, (">= 400", "<= 2.1"))):
        generator = torch.Generator().manual_seed(2)
        x, p, a = (random_points(generator, n, d, norm).to(device) for n, norm in ((128, 0.6), (751, 0.3), (751, 1.0)))
        r = p[:, 0].contiguous()
        linear = torch.nn.Linear(d, len(p)).to(device)
        ours = lambda x, p, a: hyperplanes.mlr_logits(x, p, a, 1.0)  # noqa: E731
        compiled = torch.compile(ours, fullgraph=True)
        works = {
            "mlr_logits": train(ours, x, p, a),
            "mlr_logits, compiled": train(compiled, x, p, a),
            "unidirectional_logits": train(lambda x, z, r: hyperplanes.unidirectional_logits(x, z, r, 1.0), x, a, r),
            "nn.Linear": train(lambda x, w, b: torch.nn.functional.linear(x, w, b), x, linear.weight, linear.bias),
        }

        def geoopt_logits(x: Tensor, p: Tensor, a: Tensor) -> Tensor:
            return ball.dist2plane(x[:, None], p[None], a[None], signed=True, scaled=True)

        shown = 128 if d == 64 else 8  # the peer's time and memory grow with the batch: the rest is extrapolated
        both = interleaved(works | {"geoopt": train(geoopt_logits, x[:shown], p, a)}, rounds)
        slow = both["geoopt"] * len(x) / shown
        fast = interleaved(works, 6 * rounds)  # without a rival that takes the memory of the others
        exact = hyperplanes.mlr_logits(*(t.double() for t in (x, p, a)), 1.0)
        for name in ("mlr_logits", "mlr_logits, compiled", "unidirectional_logits"):
            report(
                f"MLR logits 128 x 751 x {d}, forward + backward, {name}",
                peer="geoopt dist2plane" + ("" if shown == len(x) else f" (extrapolated from {shown} rows)"),
                ratio=slow / both[name],
                goal=goals[0],
                **{"time / nn.Linear": fast[name] / fast["nn.Linear"], "time goal": goals[1]},
                ms=1e3 * fast[name],
                **({"error": relative_error(ours(x, p, a), exact)} if name == "mlr_logits" else {}),
            )


def rows(rounds: int, device: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x, y, v = (random_points(generator, 65536, 64).to(device) for _ in range(3))
    ball = geoopt.PoincareBall(c=1.0).to(device)
    cases: dict[str, tuple] = {
        # name: ours, geoopt's, inputs, goals compiled and eager
        "dist": (lambda x, y: poincare.dist(x, y, 1.0), ball.dist, (x, y), 16, 3.6),
        "expmap0": (lambda v: poincare.expmap0(v, 1.0, 1e-3), ball.expmap0, (v,), 14, 8.1),
        "expmap": (lambda x, v: poincare.expmap(x, v, 1.0), ball.expmap, (x, v), 12, 5.3),
        "logmap": (lambda x, y: poincare.logmap(x, y, 1.0), ball.logmap, (x, y), 10, 3.2),
        "mobius_add": (lambda x, y: poincare.mobius_add(x, y, 1.0), ball.mobius_add, (x, y), 5.6, 1.8),
        "project": (lambda x: poincare.project(x, 1.0, 1e-3), ball.projx, (2 * x,), 3.9, 1.9),
        "logmap0": (lambda x: poincare.logmap0(x, 1.0), ball.logmap0, (x,), 2.2, 2.2),
    }
    for name, (ours, theirs, inputs, compiled_goal, eager_goal) in cases.items():
        torch._dynamo.reset()
        compiled = torch.compile(ours, fullgraph=True)
        works = {
            "geoopt": train(theirs, *inputs),
            "eager": train(ours, *inputs),
            "compiled": train(compiled, *inputs),
            # what any code must do: read the inputs and write the output, read them and the gradient and write theirs
            "copies": lambda inputs=inputs: [t.clone() for t in inputs for _ in range(2)],
        }
        times = interleaved(works, 2 * rounds)
        own = sum(t.nbytes for t in inputs) / MB
        exact = ours(*(t.double() for t in inputs))
        for how, goal in (("compiled", compiled_goal), ("eager", eager_goal)):
            report(
                f"{name} 65536 x 64, forward + backward, {how}",
                peer="geoopt",
                ratio=times["geoopt"] / times[how],
                goal=f">= {goal}",
                ms=1e3 * times[how],
                **{"ms of copying in and out": 1e3 * times["copies"]},
                **{"saved MB over the inputs": saved(compiled if how == "compiled" else ours, *inputs) - own},
                **{"saved goal": "<= 6", "geoopt saved MB over the inputs": saved(theirs, *inputs) - own},
                error=relative_error((compiled if how == "compiled" else ours)(*inputs), exact),
            )


CASES: dict[str, Callable[[int, str], None]] = {"cdist": cdist, "retrieval": retrieval_, "mlr": mlr, "rows": rows}


def words_of(words: list[str]) -> Iterator[tuple[str, str]]:
    defaults = {"threads": "1", "rounds": "7", "device": "cpu", "only": ",".join(CASES)}
    for word in words:
        key, _, value = word.partition("=")
        if key not in defaults or not value:
            raise UserError("argument", word, f"must be one of {', '.join(f'{k}={v}' for k, v in defaults.items())}")
        defaults[key] = value
    yield from defaults.items()


def main(words: list[str]) -> None:
    options = dict(words_of(words))
    torch.set_num_threads(int(options["threads"]))
    for name in options["only"].split(","):
        CASES[name](int(options["rounds"]), options["device"])


if __name__ == "__main__":
    main(sys.argv[1:])
