"""The compiled layers: lorentz.layer by other means, so everything is asked of the two of them side by side."""

from __future__ import annotations

import itertools
import logging
import statistics

import pytest
import torch

from hypimg.nn import _native, lorentz

pytestmark = pytest.mark.skipif(not _native.usable(torch.ones(1)), reason="no C compiler")

LIMIT = lorentz.longest_tangent(4e-3)
NORMS = [None, "midpoint", "frechet"]
# beside its values: what a layer's gradient is asked in
INPUTS = ("u", "weight", "shift", "steepness", "gain", "bias", "c", "skip")


def draw(seed=0, images=3, channels=4, filters=5, size=(9, 7), kernel=3, stride=1, scale=0.5, dtype=torch.float64):
    """A layer's tensors and the gradient in its result; numbers that float32 has too."""
    make = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=make).to(dtype)

    out = [(side + 2 * (kernel // 2) - kernel) // stride + 1 for side in size]
    z = normal(filters, channels, kernel, kernel)
    z = z / z.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * (0.3 + 0.2 * normal(filters, 1, 1, 1).abs())
    p = lorentz.planes(z, 0.3 * normal(filters), 0.7)
    return {
        "u": scale * normal(images, channels, *size),
        **p._asdict(),
        "gain": 0.5 + normal(()).abs(),
        "bias": 0.3 * normal(filters),
        "c": torch.tensor(0.7, dtype=dtype),
        "skip": scale * normal(images, filters, *out),
        "grad": normal(images, filters, *out),
    }


def run(layer, given, stride=1, padding=None, limit=LIMIT, inverted=False, norm=None, skip=False, relu=False):
    """Values and gradients by name."""
    held = {name: tensor.clone().requires_grad_(name != "grad") for name, tensor in given.items()}
    padding = held["weight"].shape[-1] // 2 if padding is None else padding
    made = layer(
        held["u"],
        lorentz.Planes(held["weight"], held["shift"], held["steepness"]),
        (stride, stride),
        (padding, padding),
        limit,
        inverted,
        lorentz.Norm(held["gain"], held["bias"], held["c"], 1e-6, norm == "frechet") if norm else None,
        held["skip"] if skip else None,
        relu,
    )
    made.tangents.backward(held["grad"])
    values = {name: value.detach() for name, value in made._asdict().items() if value is not None and name != "newton"}
    return values | {f"grad {name}": held[name].grad for name in INPUTS if held[name].grad is not None}


def gap(a, b):
    """‖a − b‖/‖b‖."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-300))


def worst(given, **how):
    plain, native = run(lorentz.layer, given, **how), run(_native.layer, given, **how)
    assert plain.keys() == native.keys()
    return max((gap(native[name], plain[name]), name) for name in plain)


# --- the same as the plain form


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2), (5, 1)])
def test_values_and_gradients(norm, kernel, stride):
    given = draw(kernel=kernel, stride=stride)
    for skip, relu, inverted in itertools.product((False, True), repeat=3):
        assert worst(given, stride=stride, norm=norm, skip=skip, relu=relu, inverted=inverted) < (1e-11, "")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("inverted", [False, True])
def test_cuts(norm, inverted):
    """Fields, points and skips beyond the clip sphere, some or nearly all of them, and scores beyond the last angle."""
    assert worst(draw(scale=0.2), limit=0.3, norm=norm, inverted=inverted, skip=True) < (1e-11, "")
    # far points: their products round by e²ᵈ
    assert worst(draw(scale=4.0), norm=norm, inverted=inverted, skip=True) < (1e-9, "")
    given = draw()
    given["steepness"] = 40 * given["steepness"]
    # no margin, no norm: sinh 30 as it is
    assert worst(given, limit=lorentz.longest_tangent(0), inverted=inverted) < (1e-11, "")


@pytest.mark.parametrize(
    "shape",
    [
        {"images": 1},
        {"images": 1, "size": (1, 1), "kernel": 1},
        {"images": 2, "channels": 1, "filters": 3, "size": (5, 4)},
        {"channels": 33, "filters": 70, "size": (5, 6)},  # more filters than go together
        {"images": 5, "size": (8, 8)},  # several images in a heap
        {"images": 2, "channels": 2, "filters": 2, "size": (40, 30)},  # several blocks in an image
        {"size": (33, 2), "stride": 2},
    ],
    ids=str,
)
def test_shapes(shape):
    norm = None if shape.get("size") == (1, 1) else "midpoint"  # one point has no spread: nothing but rounding
    assert worst(draw(**shape), stride=shape.get("stride", 1), norm=norm, skip=True, relu=True) < (1e-10, "")


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 0), (3, 1, 2), (3, 3, 1), (2, 3, 0), (3, 2, 4)])
def test_strides_and_paddings(kernel, stride, padding):
    given = draw(kernel=kernel, size=(8, 7))
    out = [(side + 2 * padding - kernel) // stride + 1 for side in (8, 7)]
    given["grad"] = torch.randn(3, 5, *out, dtype=torch.float64)
    assert worst(given, stride=stride, padding=padding) < (1e-12, "")


def test_channels_last_and_strided_memory():
    given = draw()
    there = {name: tensor.to(memory_format=torch.channels_last) for name, tensor in given.items() if tensor.dim() == 4}
    expected, got = (run(_native.layer, each, norm="midpoint", skip=True) for each in (given, given | there))
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_float32_is_as_good_as_the_plain_form(norm, scale):
    """Errors against float64, medians of ten draws: a single ReLU that flips decides any one."""
    errors = {"plain": [], "native": []}
    for seed in range(10):
        given = draw(seed, images=4, channels=8, filters=8, size=(8, 8), scale=scale)
        exact = run(lorentz.layer, given, norm=norm, skip=True, relu=True)
        single = {name: tensor.float() for name, tensor in given.items()}
        for form, layer in (("plain", lorentz.layer), ("native", _native.layer)):
            got = run(layer, single, norm=norm, skip=True, relu=True)
            assert all(value.dtype == torch.float32 for value in got.values())
            errors[form].append({name: gap(got[name], exact[name]) for name in exact})
    for name in errors["plain"][0]:
        plain, native = (statistics.median(each[name] for each in errors[form]) for form in ("plain", "native"))
        # γ and c have one number each, left over from sums that cancel: medians of ten differ tenfold in either form
        assert native < 2 * plain + (5e-5 if name in ("grad gain", "grad c") else 5e-6), name


@pytest.mark.parametrize("norm", ["midpoint", "frechet"])
def test_finite_differences(norm):
    """Of the loops alone, whatever the plain form says."""
    given = draw(images=2, channels=2, filters=3, size=(4, 3))
    names = [name for name in INPUTS if name != "c"]

    def of(*tensors):
        held = given | dict(zip(names, tensors, strict=True))
        made = _native.layer(
            held["u"],
            lorentz.Planes(held["weight"], held["shift"], held["steepness"]),
            (1, 1),
            (1, 1),
            LIMIT,
            norm=lorentz.Norm(held["gain"], held["bias"], 0.7, 1e-6, norm == "frechet"),
            skip=held["skip"],
        )
        return made.tangents

    tensors = [given[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(of, tensors, fast_mode=True, atol=1e-6)


# --- edges


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_where_lengths_are_zero(norm, dtype):
    for kernel, factor in ((3, 0.0), (3, 1e-20), (3, 1e4), (1, None)):
        given = draw(dtype=dtype, kernel=kernel)
        # None: constant images, whose variance is 0
        given["u"] = torch.full_like(given["u"], 0.3) if factor is None else factor * given["u"]
        given |= {"skip": 0 * given["skip"], "bias": 0 * given["bias"]}
        for skip in (False, True):
            values = run(_native.layer, given, norm=norm, skip=skip, relu=True)
            assert all(value.isfinite().all() for value in values.values())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_comes_through(norm, dtype):
    given = draw(dtype=dtype)
    given["u"][0, 0, 0, 0] = torch.nan
    plain, native = (run(layer, given, norm=norm, relu=True) for layer in (lorentz.layer, _native.layer))
    for name in plain:
        assert torch.equal(native[name].isnan(), plain[name].isnan()), name


def test_gradients_that_nobody_wants():
    given = draw()
    p = lorentz.Planes(given["weight"].requires_grad_(), given["shift"], given["steepness"])
    norm = lorentz.Norm(given["gain"], given["bias"], 0.7, 1e-6, False)
    made = _native.layer(given["u"], p, (1, 1), (1, 1), LIMIT, norm=norm, skip=given["skip"])
    assert not made.mean.requires_grad and not made.variance.requires_grad and not made.newton.requires_grad
    made.tangents.sum().backward()
    assert p.weight.grad.abs().sum() > 0 and given["u"].grad is None


@pytest.mark.parametrize("name", ["shift", "steepness", "bias", "skip", "weight"])
def test_shapes_that_do_not_fit(name):
    given = draw()
    given[name] = given[name][:, :-1] if given[name].dim() == 4 else given[name][:-1]
    with pytest.raises(ValueError):
        run(_native.layer, given, norm="midpoint", skip=True)


def test_planes():
    make = torch.Generator().manual_seed(0)
    z, r = torch.randn(5, 3, 3, 3, generator=make).double(), torch.randn(5, generator=make).double()
    z[1], r[2], r[3] = 0, 0, 40  # no direction, no offset, beyond the last angle
    grads = [torch.randn(shape, generator=make).double() for shape in ((5, 3, 3, 3), (5,), (5,))]
    results = []
    for planes in (lorentz.planes, _native.planes):
        held = [t.clone().requires_grad_() for t in (z, r, torch.tensor(0.7, dtype=torch.float64))]
        made = planes(*held)
        torch.autograd.backward(made, grads)
        results.append([*made, *(t.grad for t in held)])
    for plain, native in zip(*results, strict=True):
        torch.testing.assert_close(native, plain, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(_native.planes(z, None, 0.7), lorentz.planes(z, None, 0.7), rtol=1e-14, atol=1e-14)


# --- threads, memory, compiler


@pytest.mark.parametrize("norm", NORMS)
def test_results_do_not_depend_on_the_threads(norm, monkeypatch):
    monkeypatch.setattr(_native, "WORTH_A_THREAD", 1)
    given = draw(images=7, size=(8, 6), dtype=torch.float32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append(run(_native.layer, given, norm=norm, skip=True, relu=True))
        finally:
            torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


def test_two_wide_tensors_are_saved():
    given = draw(images=4, size=(16, 16))
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.__setitem__(t.untyped_storage().data_ptr(), t.numel()) or t, lambda t: t
    ):
        p = lorentz.Planes(given["weight"].requires_grad_(), given["shift"], given["steepness"])
        norm = lorentz.Norm(given["gain"], given["bias"], 0.7, 1e-6, False)
        _native.layer(given["u"], p, (1, 1), (1, 1), LIMIT, norm=norm)
    pixels = 4 * 16 * 16
    assert sum(sizes.values()) < pixels * (4 + 5 + 1) + 1000  # u, P, s²


def test_a_second_backward_but_no_second_derivative():
    given = draw()
    u = given["u"].requires_grad_()
    p = lorentz.Planes(given["weight"], given["shift"], given["steepness"])
    tangents = _native.layer(u, p, (1, 1), (1, 1), LIMIT, relu=True).tangents
    once, twice = (torch.autograd.grad(tangents.sum(), u, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)
    (with_graph,) = torch.autograd.grad(tangents.square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        with_graph.sum().backward()


def test_usable():
    x = torch.ones(2)
    assert _native.usable(x) and _native.usable(x.double())
    assert not _native.usable(x.half()) and not _native.usable(x[:0]) and not _native.usable(x.to("meta"))
    seen = []
    torch.func.vmap(lambda y: seen.append(_native.usable(y)) or y)(x)
    torch.func.grad(lambda y: seen.append(_native.usable(y)) or y.sum())(x)
    with torch.autograd.forward_ad.dual_level():
        seen.append(_native.usable(x))
    with torch.autocast("cpu"):
        seen.append(_native.usable(x))
    assert seen == [False] * 4


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache of libraries."""
    monkeypatch.setenv("HYPIMG_CACHE", str(tmp_path / "cache"))
    _native._library.cache_clear()
    yield tmp_path / "cache"
    _native._library.cache_clear()


def test_switched_off(monkeypatch):
    monkeypatch.setenv("HYPIMG_NATIVE", "0")
    assert not _native.usable(torch.ones(1))


def test_no_compiler(fresh, monkeypatch, caplog):
    monkeypatch.setattr(_native.shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert not _native.usable(torch.ones(1)) and not _native.usable(torch.ones(1))
    assert len(caplog.records) == 1


def test_a_compiler_that_fails(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CC", "false")
    assert not _native.usable(torch.ones(1)) and not _native.usable(torch.ones(1))
    assert len(caplog.records) == 1 and not list(fresh.iterdir())


def test_a_cache_that_cannot_be_written(fresh, caplog):
    fresh.write_text("a file where the folder should be")
    assert not _native.usable(torch.ones(1))
    assert len(caplog.records) == 1


def test_compiled_once(fresh, monkeypatch):
    monkeypatch.setattr(_native, "FLAGS", ["-O0", "-std=gnu11"])  # a second rather than five
    given = draw()
    assert worst(given, norm="midpoint", skip=True) < (1e-11, "")
    (library,) = fresh.iterdir()  # and nothing unfinished
    before = library.stat().st_mtime_ns
    _native._library.cache_clear()
    assert _native.usable(given["u"]) and library.stat().st_mtime_ns == before
