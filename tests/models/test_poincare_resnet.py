"""Poincaré ResNets and the plain networks of Figure 2, against slow references in coordinates of the ball."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hypimg.errors import UserError
from hypimg.models.backbones.poincare_resnet import PoincareConvNet, PoincareResNet
from hypimg.nn import PoincareBall, PoincareBatchNorm2d, PoincareConv2d, PoincareLinear
from hypimg.nn.poincare import freeze, norms_with

SMALL = {"depth": 8, "widths": (2, 3, 4)}
OFFICIAL = {"inverted_lambda": True, "residual_axis": "rows"}


@pytest.fixture(autouse=True)
def plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPIMG_NATIVE", "0")


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "nn"))
    return importlib.import_module("poincare_reference")


def inputs_of(*modules, images):
    return {"images": images, **{f"{i}.{name}": p for i, m in enumerate(modules) for name, p in m.named_parameters()}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_mean": "frechet", "pooling": "midpoint"},
        {"relu": False, "pooling": "midpoint", "residual_axis": "rows"},
        {"inverted_lambda": True, "norm_mean": "frechet"},
        OFFICIAL,
    ],
)
def test_it_is_the_network_as_printed(form, reference, options):
    """Output, and the gradients of images, every parameter and the curvature, in float64."""
    ball = PoincareBall(0.1, learn_c=True, margin=1e-5)
    net = reference.randomise(PoincareResNet((3, 8, 8), ball, **SMALL, **options))
    images = reference.tensor(3, 3, 8, 8).requires_grad_()
    # the Fréchet mean's gradient is as right as its three Newton steps: 2e-8 was seen for the curvature's
    slope = 1e-6 if options.get("norm_mean") == "frechet" else 1e-8
    reference.agree(net(images), reference.resnet(net, images), inputs_of(net, images=images), slope=slope)


@pytest.mark.parametrize("official", [False, True])
def test_with_its_head_it_is_the_classifier_as_printed(form, reference, official):
    """`paper`: logits v_k; `official`: log₀ of the layer's output, λ inverted, ⊕ along rows, and its float32 margin."""
    ball = PoincareBall(0.1, learn_c=True, margin=4e-3)
    net = PoincareResNet((3, 8, 8), ball, **SMALL, **(OFFICIAL if official else {}))
    head = PoincareLinear(4, 10, ball, init="identity" if official else "hnnpp", inverted_lambda=official)
    reference.randomise(net), reference.randomise(head)
    images = reference.tensor(3, 3, 8, 8, size=3.0).requires_grad_()
    tangents, scores = reference.linear(head, reference.resnet(net, images))
    logits = head(net(images)) if official else head.scores(net(images))
    reference.agree(logits, tangents if official else scores, inputs_of(net, head, images=images))


@pytest.mark.parametrize("norm", [False, True])
def test_the_plain_network_is_as_printed(form, reference, norm):
    ball = PoincareBall(0.1, learn_c=True, margin=1e-5)
    net = reference.randomise(PoincareConvNet((3, 6, 6), ball, widths=(3, 3, 4), norm=norm))
    images = reference.tensor(2, 3, 6, 6).requires_grad_()
    reference.agree(net(images), reference.conv_net(net, images), inputs_of(net, images=images))
    assert [layer.conv.stride for layer in net.layers] == [(1, 1), (1, 1), (2, 2)] and net.out_features == 4


@pytest.mark.parametrize(
    ("depth", "widths", "count"),
    [(20, (4, 8, 16), 17_529), (32, (4, 8, 16), 29_861), (20, (8, 16, 32), 68_757), (32, (8, 16, 32), 117_601)],
)
def test_there_are_as_many_parameters_as_in_the_official_code(depth, widths, count):
    ball = PoincareBall(0.1)
    net = PoincareResNet((3, 32, 32), ball, depth=depth, widths=widths)
    modules = (net, PoincareLinear(net.out_features, 10, ball))
    assert sum(p.numel() for module in modules for p in module.parameters()) == count
    assert len(net.blocks) == (depth - 2) // 2
    each = (depth - 2) // 6
    strides = [1] * each + 2 * ([2] + [1] * (each - 1))
    assert [block.conv1.stride for block in net.blocks] == [(stride, stride) for stride in strides]
    for block, stride in zip(net.blocks, strides, strict=True):
        assert block.conv1.padding == block.conv2.padding == (1, 1) and block.conv2.stride == (1, 1)
        assert (block.shortcut is None) == (stride == 1)
        assert stride == 1 or (block.shortcut.kernel_size, block.shortcut.stride) == ((1, 1), (2, 2))


def test_the_options_reach_every_layer():
    ball = PoincareBall(0.1, learn_c=True)
    chosen = {"init": "centre", "norm_mean": "frechet", "statistics": "running", "pooling": "midpoint"}
    net = PoincareResNet((3, 8, 8), ball, **SMALL, **chosen, **OFFICIAL)
    convs = [m for m in net.modules() if isinstance(m, PoincareConv2d)]
    norms = [m for m in net.modules() if isinstance(m, PoincareBatchNorm2d)]
    assert len(convs) == 9 and all(c.init == "centre" and c.inverted_lambda for c in convs)
    assert len(norms) == 7 and all(n.mean == "frechet" and n.statistics == "running" for n in norms)
    assert net.pool.mean == "midpoint" and all(block.residual.axis == "rows" for block in net.blocks)
    assert all(m.ball is ball for m in net.modules() if hasattr(m, "ball"))
    assert sum("log_ratio" in name for name, _ in net.named_parameters()) == 1


def test_float32_keeps_six_digits(form, reference):
    """The median of ten draws: one flipped ReLU decides about the largest."""
    errors = []
    for seed in range(10):
        exact = reference.randomise(PoincareResNet((3, 8, 8), PoincareBall(0.1, margin=4e-3), **SMALL), seed)
        images = reference.tensor(4, 3, 8, 8, seed=seed).float()
        with torch.no_grad():
            errors.append(reference.gap(copy.deepcopy(exact).float()(images).double(), exact(images.double())))
    assert sorted(errors)[5] < 2e-6


def test_an_image_depends_on_its_batch_unless_statistics_are_stored(reference):
    net = reference.randomise(PoincareResNet((3, 8, 8), PoincareBall(0.1), **SMALL)).eval()
    images = reference.tensor(6, 3, 8, 8)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    with torch.no_grad():
        assert reference.gap(net(images[order]), net(images)[order]) < 1e-12
        assert reference.gap(net(images[:2]), net(images)[:2]) > 1e-3
        with norms_with(net.train(), "running"):
            net(images)
        freeze(net)
        together = net(images)
        for i in range(6):
            assert reference.gap(net(images[i : i + 1]), together[i : i + 1]) < 1e-12


def test_a_batch_of_one_and_images_of_other_shapes(reference):
    for shape in ((1, 4, 4), (3, 7, 10)):
        net = PoincareResNet(shape, PoincareBall(0.1), **SMALL)
        assert net(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))).shape == (1, 4)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e4])
@pytest.mark.parametrize("options", [{}, {"norm_mean": "frechet"}, OFFICIAL])
def test_values_and_gradients_stay_finite(form, size, options):
    torch.manual_seed(0)
    net = PoincareResNet((3, 8, 8), PoincareBall(0.1, learn_c=True, margin=4e-3), **SMALL, **options)
    for images in (torch.randn(2, 3, 8, 8), torch.ones(2, 3, 8, 8)):
        net.zero_grad()
        made = net(size * images)
        made.square().sum().backward()
        assert made.isfinite().all()
        assert all(p.grad.isfinite().all() for p in net.parameters())


def test_low_precision_changes_nothing_but_the_images():
    net = PoincareResNet((3, 8, 8), PoincareBall(0.1), **SMALL)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    expected = net(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net(images)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert torch.equal(net(images.bfloat16()), expected)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda ball: PoincareResNet((3, 32, 32), ball, depth=18), r"backbone.depth=18: must be 6 b \+ 2"),
        (lambda ball: PoincareResNet((3, 32, 32), ball, depth=2), r"backbone.depth=2: must be 6 b \+ 2"),
        (lambda ball: PoincareResNet((3, 32, 32), ball, widths=(4, 8)), r"backbone.widths=\[4, 8\]: must be three"),
        (lambda ball: PoincareResNet((3, 32, 32), ball, widths=(4, 8, 0)), "backbone.widths=.*whole numbers ≥ 1"),
        (lambda ball: PoincareResNet((3, 3, 32), ball), "image_shape=3×32: is too small for two halvings"),
        (lambda ball: PoincareResNet((3, 32, 32), ball, init="identity"), "init=identity: unknown"),
        (lambda ball: PoincareResNet((3, 32, 32), ball, norm_mean="einstein"), "mean=einstein: unknown"),
        (lambda ball: PoincareResNet((3, 32, 32), ball, statistics="train"), "statistics=train: unknown"),
        (lambda ball: PoincareResNet((3, 32, 32), ball, pooling="midpoints"), "pooling=midpoints: .*mean midpoint"),
        (lambda ball: PoincareResNet((3, 32, 32), ball, residual_axis="row"), "axis=row: .*mean rows"),
        (lambda ball: PoincareResNet((3, 32, 32), ball)(torch.zeros(2, 1, 32, 32)), r"must be \[N, 3, H, W\]"),
        (lambda ball: PoincareConvNet((3, 32, 32), ball, widths=()), r"backbone.widths=\[\]: must be whole numbers"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(make, line):
    with pytest.raises(UserError, match=line) as caught:
        make(PoincareBall(0.1))
    assert "\n" not in str(caught.value)
