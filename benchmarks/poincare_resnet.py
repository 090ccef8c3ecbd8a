"""Training steps of Poincaré ResNet-20 against HypLL's layers and the Euclidean ResNet-20; one JSON line per case.

    python benchmarks/poincare_resnet.py [--threads 1] [--rounds 3] [--device cpu] [--quick] [--profile]

A step is forward, cross-entropy, backward and Adam (torch's fused one for all) on 3×32×32 images, 10 classes; all
rivals in turns in this process, medians; in its turn each takes two steps and the second counts, since a training run
does not pay for memory that another gave back. HypLL's layers stand in the same architecture (see `hypll_resnet`), with
midpoint batch norm and pooling; the Euclidean network runs in both memory formats and the better counts. Ours is
measured with the native kernels and, as `plain`, without a compiler. c = 0.1, random directions ‖z_k‖ = ½, small
biases. `saved MB`: what autograd keeps for backward, images and parameters included. A width is compared with HypLL
too: in float64 the largest differences in units of a tensor's largest number, gradients being those in images, all
parameters and c; in float32 the median over ten draws of the outputs' error against float64.

Lines of a CPU go to poincare_resnet.jsonl, those of a GPU, where the step is taken eagerly, compiled and from a CUDA
graph, to poincare_resnet_cuda.jsonl (no GPU has run this yet). --quick: one width, small batches, one round, nothing
written. --profile: instead of measuring, torch's profile of a step in each form.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hypll_resnet import HypllResNet, in_our_shape
from measure import interleaved, report, saved_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from hypimg.models.backbones.cifar_resnet import CifarResNet
from hypimg.models.backbones.poincare_resnet import PoincareResNet
from hypimg.nn import PoincareBatchNorm2d, PoincareConv2d, PoincareLinear, _native
from hypimg.nn.spaces import PoincareBall

IMAGE, CLASSES, C = (3, 32, 32), 10, 0.1
MARGINS = {torch.float32: 4e-3, torch.float64: 1e-5}  # HypLL's
SMALL, LARGE = (4, 8, 16), (8, 16, 32)
DRAWS, CHECKED = 10, 8  # of float32; images that HypLL is compared on
MB = 1e6

Step = Callable[[], Any]

# HypLL's time over ours, with the native kernels and without a compiler.
GOALS = {(SMALL, 128): (9.5, 5.3), (LARGE, 128): (11.0, None), (SMALL, 32): (5.8, None)}


class Net(nn.Module):
    """Ours: images → logits, the scores of the classes' hyperplanes; of the official code, tangent coordinates."""

    def __init__(
        self, widths: tuple[int, ...], dtype: torch.dtype, learn_c: bool = False, official: bool = False, **options: Any
    ):
        super().__init__()
        ball = PoincareBall(C, learn_c, MARGINS[dtype])
        if official:
            options |= {"inverted_lambda": True, "residual_axis": "rows"}
        self.backbone = PoincareResNet(IMAGE, ball, widths=widths, pooling="midpoint", **options)
        self.head = PoincareLinear(widths[-1], CLASSES, ball, inverted_lambda=official)
        self.official = official

    def forward(self, images: Tensor) -> Tensor:
        tangents = self.backbone(images)
        return self.head(tangents) if self.official else self.head.scores(tangents)


@torch.no_grad()
def poincare(
    widths: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32, spread: bool = False, **options: Any
) -> Net:
    """Ours with random parameters that are float32 numbers.  spread: batch norms too, else as they start."""
    net, generator = Net(widths, dtype, **options), torch.Generator().manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, PoincareConv2d | PoincareLinear):
            z = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.copy_(0.5 * F.normalize(z.flatten(1)).view_as(z))
            assert layer.bias is not None
            layer.bias.copy_(0.05 * torch.randn(layer.bias.shape, generator=generator))
        elif isinstance(layer, PoincareBatchNorm2d) and spread:
            layer.weight.copy_(0.7 + 0.7 * torch.rand((), generator=generator))
            layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=generator))
    return net.to(dtype)


def euclidean(widths: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    backbone = CifarResNet(IMAGE, widths=widths)
    return nn.Sequential(backbone, nn.Linear(backbone.out_features, CLASSES))


def batch_of(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *IMAGE, generator=generator), torch.randint(CLASSES, (size,), generator=generator)


@contextmanager
def kernels(native: bool) -> Iterator[None]:
    """With the native kernels, or the plain form."""
    before = os.environ.get("HYPIMG_NATIVE")
    os.environ["HYPIMG_NATIVE"] = str(int(native))
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYPIMG_NATIVE"]
        else:
            os.environ["HYPIMG_NATIVE"] = before


def in_form(native: bool, work: Step) -> Step:
    def run() -> Any:
        with kernels(native):
            return work()

    return run


def trained(net: nn.Module, parameters: list[Tensor], images: Tensor, labels: Tensor, **options: Any) -> Step:
    """A training step.  options: of Adam."""
    adam = torch.optim.Adam(parameters, lr=1e-3, fused=True, **options)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        F.cross_entropy(net(images), labels).backward()
        adam.step()

    return step


def forward(net: nn.Module, images: Tensor) -> Step:
    return torch.no_grad()(lambda: net(images))


def rivals(widths: tuple[int, ...], batch: int) -> dict[str, tuple[nn.Module, list[Tensor], Tensor]]:
    """Networks with their parameters and images, by name; ours stands for both of its forms."""
    images, _ = batch_of(batch)
    ours, flat, last = poincare(widths), euclidean(widths), euclidean(widths).to(memory_format=torch.channels_last)
    hypll = HypllResNet(ours.backbone, ours.head)
    return {
        "hypll": (hypll, list(hypll.leaves()), images),
        "ours": (ours, list(ours.parameters()), images),
        "euclidean": (flat, list(flat.parameters()), images),
        "euclidean channels_last": (last, list(last.parameters()), images.to(memory_format=torch.channels_last)),
    }


def in_all_forms(name: str, work: Step) -> dict[str, Step]:
    return {"native": in_form(True, work), "plain": in_form(False, work)} if name == "ours" else {name: work}


def measure_steps(widths: tuple[int, ...], batch: int, rounds: int, **found: Any) -> dict[str, Any]:
    """The line of one width and batch.  found: what else it is to say."""
    steps: dict[str, Step] = {}
    forwards: dict[str, Step] = {}
    megabytes = {}
    _, labels = batch_of(batch)
    for name, (net, parameters, images) in rivals(widths, batch).items():
        steps |= in_all_forms(name, trained(net, parameters, images, labels))
        forwards |= in_all_forms(name, forward(net, images))
        losses = in_all_forms(name, lambda net=net, images=images: F.cross_entropy(net(images), labels))
        megabytes |= {form: saved_bytes(loss) / MB for form, loss in losses.items()}
    seconds = interleaved(steps, rounds, warmup=1, quick=math.inf)
    once = interleaved(forwards, rounds, warmup=1, quick=math.inf)
    flat = min(seconds["euclidean"], seconds["euclidean channels_last"])
    goals = GOALS.get((widths, batch), (None, None))
    return report(
        f"ResNet-20 step, widths {widths}, batch {batch}",
        peer="HypLL",
        ratio=seconds["hypll"] / seconds["native"],
        goal="" if goals[0] is None else f">= {goals[0]:g}",
        ms=1e3 * seconds["native"],
        **{"plain ratio": seconds["hypll"] / seconds["plain"]},
        **{"plain goal": "" if goals[1] is None else f">= {goals[1]:g}"},
        **{f"{name} ms": 1e3 * seconds[name] for name in steps if name != "native"},
        **{"time / Euclidean": seconds["native"] / flat, "plain time / Euclidean": seconds["plain"] / flat},
        **{"time goal": "<= 3.3" if batch == 128 else ""},
        **{"saved MB": megabytes["native"]},
        **{f"{name} saved MB": megabytes[name] for name in megabytes if name != "native"},
        **{"HypLL saved MB / ours": megabytes["hypll"] / megabytes["native"]},
        **{"saved goal": ">= 12" if batch == 128 else ""},
        **{f"{name} forward ms": 1e3 * once[name] for name in once},
        **found,
    )


def relative(x: Tensor, y: Tensor) -> float:
    """Largest difference in units of y's largest number."""
    x, y = x.detach().double(), y.detach().double()
    return float((x - y).abs().max() / y.abs().max())


def agreement(widths: tuple[int, ...]) -> dict[str, float]:
    """Largest differences from HypLL in float64, of outputs and of gradients."""
    net = poincare(widths, dtype=torch.float64, spread=True, learn_c=True)
    hypll = HypllResNet(net.backbone, net.head)
    images, labels = batch_of(CHECKED)
    images = images.double().requires_grad_()
    log_ratio = net.head.ball.log_ratio
    assert log_ratio is not None
    ours = [images, *(p for p in net.parameters() if p is not log_ratio), log_ratio]
    outputs = hypll(images)
    gradients = torch.autograd.grad(F.cross_entropy(outputs, labels), [images, *hypll.leaves()])
    *gradients, by_c = (in_our_shape(g, p) for g, p in zip(gradients, ours, strict=True))
    gradients.append(by_c * C)  # ours is that of log c
    found = {}
    for form, native in (("", True), ("plain ", False)):
        with kernels(native):
            mine = net(images)
            back = torch.autograd.grad(F.cross_entropy(mine, labels), ours)
        found[f"{form}outputs"] = relative(mine, outputs)
        found[f"{form}gradients"] = max(relative(g, h) for g, h in zip(back, gradients, strict=True))
    return found


@torch.no_grad()
def single_errors(widths: tuple[int, ...], seed: int) -> dict[str, float]:
    """Errors of the outputs in float32 against float64, of one draw of parameters and images."""
    images, _ = batch_of(CHECKED, seed)
    single, double = (poincare(widths, seed, dtype, spread=True) for dtype in MARGINS)
    with kernels(False):
        exact = double(images.double())
    works = in_all_forms("ours", lambda: single(images)) | {
        "hypll": lambda: HypllResNet(single.backbone, single.head)(images)
    }
    return {name: relative(work(), exact) for name, work in works.items()}


def digits(widths: tuple[int, ...], draws: int) -> dict[str, Any]:
    """How near ours is to HypLL in float64, and either in float32 to itself in float64."""
    errors: dict[str, list[float]] = {"native": [], "plain": [], "hypll": []}
    for seed in range(draws):
        for name, error in single_errors(widths, seed).items():
            errors[name].append(error)
    medians = {name: statistics.median(values) for name, values in errors.items()}
    return {
        **{f"float64 {name}": value for name, value in agreement(widths).items()},
        "float64 goals": ["<= 1e-12", "<= 1e-9"],
        "float32 error": medians["native"],
        **{f"{name} float32 error": medians[name] for name in ("plain", "hypll")},
        "float32 goal": "<= 2e-6",
    }


def measure_variants(widths: tuple[int, ...], batch: int, rounds: int) -> list[dict[str, Any]]:
    """What options cost, each against the network without it."""
    images, labels = batch_of(batch)
    nets = {
        "": poincare(widths),
        "Fréchet batch norm": poincare(widths, norm_mean="frechet"),
        "a learnable c": poincare(widths, learn_c=True),
        "the official code's formulas": poincare(widths, official=True),
    }
    goals = {"Fréchet batch norm": 1.3, "a learnable c": 1.05, "the official code's formulas": 1.25}
    steps = {name: trained(net, list(net.parameters()), images, labels) for name, net in nets.items()}
    works = {(name, native): in_form(native, step) for name, step in steps.items() for native in (True, False)}
    seconds = interleaved(
        {f"{name} {native}": work for (name, native), work in works.items()}, rounds, warmup=1, quick=math.inf
    )
    plain, base = seconds[" False"], seconds[" True"]
    return [
        report(
            f"ResNet-20 step with {name}, widths {widths}, batch {batch}",
            peer="midpoints, c fixed",
            ratio=base / seconds[f"{name} True"],
            goal=f">= {1 / goals[name]:.3f}",
            ms=1e3 * seconds[f"{name} True"],
            **{"time / without": seconds[f"{name} True"] / base, "time goal": f"<= {goals[name]:g}"},
            **{"plain ms": 1e3 * seconds[f"{name} False"], "plain time / without": seconds[f"{name} False"] / plain},
        )
        for name in goals
    ]


def without_norms(net: PoincareResNet | HypllResNet) -> None:
    """Take the batch norms out of a network."""
    if isinstance(net, HypllResNet):
        net.norm = nn.Identity()
        for block in net.blocks:
            block["norm1"] = block["norm2"] = nn.Identity()
    else:
        net.norm = None  # type: ignore[assignment]
        for block in net.blocks:
            block.norm1 = block.norm2 = None  # type: ignore[assignment]


def measure_norms(widths: tuple[int, ...], batch: int, rounds: int) -> dict[str, Any]:
    """The share of a training step's forward pass that batch norms take: PR says 77 % of Fréchet ones."""
    images, _ = batch_of(batch)
    works: dict[str, Step] = {}
    for mean in ("frechet", "midpoint", "none"):
        ours = poincare(widths, norm_mean="midpoint" if mean == "none" else mean)
        hypll = HypllResNet(ours.backbone, ours.head)
        if mean == "none":
            without_norms(ours.backbone)
            without_norms(hypll)
        works |= {f"{form} {mean}": work for form, work in in_all_forms("ours", lambda n=ours: n(images)).items()}
        works[f"hypll {mean}"] = lambda n=hypll: n(images)
    seconds = interleaved(works, rounds, warmup=1, quick=math.inf)
    shares = {
        f"{form} {mean} share": 1 - seconds[f"{form} none"] / seconds[f"{form} {mean}"]
        for form in ("native", "plain", "hypll")
        for mean in ("frechet", "midpoint")
    }
    return report(
        f"forward pass with Fréchet batch norm, widths {widths}, batch {batch}",
        peer="without batch norm",
        ratio=seconds["native none"] / seconds["native frechet"],
        goal="",
        ms=1e3 * seconds["native frechet"],
        **shares,
        **{"share in PR": 0.77},
        **{f"{name} ms": 1e3 * s for name, s in seconds.items() if not name.startswith("native frechet")},
    )


FIRST_CALL = """
import json, resource, time, torch
torch.set_num_threads(1)
from poincare_resnet import SMALL, batch_of, forward, poincare
call = forward(poincare(SMALL), batch_of(1)[0])
times = [time.perf_counter()]
for _ in range(2):
    call()
    times.append(time.perf_counter())
spent = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([2 * times[1] - times[0] - times[2], spent.ru_utime + spent.ru_stime]))
"""


def compilation() -> dict[str, Any]:
    """Seconds that the first call in a process takes over the second: nothing compiled yet, and from the cache."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "cached"):
            environment = {**os.environ, "HYPIMG_CACHE": cache, "HYPIMG_NATIVE": "1"}
            command = [sys.executable, "-c", FIRST_CALL]
            folder = Path(__file__).resolve().parent
            run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=folder)
            found[f"compile s, {state}"], found[f"compiler's CPU s, {state}"] = json.loads(run.stdout)
    return {**found, "compile goal": "<= 100"}


def measure_on_gpu(widths: tuple[int, ...], batch: int, rounds: int) -> dict[str, Any]:
    """The step of ours and of the Euclidean network on a GPU: eager, compiled, from a CUDA graph; and its memory."""
    images, labels = (tensor.cuda() for tensor in batch_of(batch))
    works: dict[str, Step] = {}
    peaks = {}
    for name, net in {"ours": poincare(widths).cuda(), "euclidean": euclidean(widths).cuda()}.items():
        step = trained(net, list(net.parameters()), images, labels, capturable=True)
        torch.cuda.reset_peak_memory_stats()
        step()
        peaks[name] = torch.cuda.max_memory_allocated() / MB
        works[f"{name} eager"] = step
        works[f"{name} graph"] = captured(step)
        works[f"{name} compiled"] = trained(torch.compile(net), list(net.parameters()), images, labels, capturable=True)
    seconds = interleaved(works, rounds, warmup=3)
    return report(
        f"ResNet-20 step, widths {widths}, batch {batch}, CUDA graph",
        peer="Euclidean, CUDA graph",
        ratio=seconds["euclidean graph"] / seconds["ours graph"],
        goal="",
        ms=1e3 * seconds["ours graph"],
        **{f"{name} ms": 1e3 * s for name, s in seconds.items() if name != "ours graph"},
        **{f"{name} peak MB": peak for name, peak in peaks.items()},
    )


def captured(step: Step) -> Step:
    """A step as a CUDA graph, after three on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def profile(widths: tuple[int, ...], batch: int) -> None:
    """Print torch's profile of a step, by operator."""
    images, labels = batch_of(batch)
    net = poincare(widths)
    for form, step in in_all_forms("ours", trained(net, list(net.parameters()), images, labels)).items():
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            step()
        print(f"{form}, widths {widths}, batch {batch}")
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=48))


def main(words: list[str]) -> None:
    """Measure and write the lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="a small case, one round; writes nothing")
    parser.add_argument("--profile", action="store_true", help="where a step's time goes; writes nothing")
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    if given.device == "cpu" and not _native.usable(torch.ones(1)):
        raise SystemExit("no native kernels to measure: there is no C compiler, or HYPIMG_NATIVE is 0")
    if given.profile:
        profile(SMALL, 8 if given.quick else 128)
        return
    if given.quick:
        measure_steps(SMALL, 4, 1, **digits(SMALL, 1), **compilation())
        measure_variants(SMALL, 4, 1)
        measure_norms(SMALL, 4, 1)
        return
    if given.device == "cuda":
        lines = [measure_on_gpu(widths, batch, given.rounds) for widths in (SMALL, LARGE) for batch in (128, 1024)]
    else:
        lines = [measure_steps(SMALL, 128, given.rounds, **digits(SMALL, DRAWS), **compilation())]
        lines += [measure_steps(LARGE, 128, given.rounds, **digits(LARGE, DRAWS))]
        lines += [measure_steps(widths, 32, given.rounds) for widths in (SMALL, LARGE)]
        lines += [line for batch in (128, 32) for line in measure_variants(SMALL, batch, 2 * given.rounds + 1)]
        lines += [measure_norms(SMALL, batch, given.rounds) for batch in (128, 32)]
    name = "poincare_resnet" if given.device == "cpu" else "poincare_resnet_cuda"
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    Path(__file__).with_name(f"{name}.jsonl").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
