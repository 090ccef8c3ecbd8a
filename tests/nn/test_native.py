"""The compiled layers: lorentz.layer by other means, so everything is asked of the two of them side by side."""

from __future__ import annotations

import itertools
import logging
import statistics

import pytest
import torch

from hypimg.nn import _native, lorentz

pytestmark = pytest.mark.skipif(
    not _native.usable(torch.ones(1)), reason="no C compiler that works, or HYPIMG_NATIVE=0"
)

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


def of_stored(given, mean, variance, native, stride=1, inverted=False, skip=False, relu=False):
    """Tangents of a layer with stored statistics, natively or by the plain form's steps."""
    p = lorentz.Planes(given["weight"], given["shift"], given["steepness"])
    norm = lorentz.Norm(given["gain"], given["bias"], given["c"], 1e-6, False)
    padding = given["weight"].shape[-1] // 2
    window = ((stride, stride), (padding, padding), LIMIT, inverted)
    v = given["skip"] if skip else None
    if native:
        return _native.stored_layer(given["u"], p, *window, norm, mean, variance, v, relu)
    w, _ = lorentz.moved(lorentz.convolution(given["u"], p, *window), mean, variance, norm, LIMIT)
    tangents = lorentz.tangents_of(w if v is None else lorentz.mobius_sum(w, lorentz.points_of(v, LIMIT)))
    return tangents.relu() if relu else tangents


def stored_statistics(given, **how):
    """Of another batch."""
    other = run(lorentz.layer, given | {"u": 1.3 * given["u"].flip(2)}, norm="midpoint", **how)
    return other["mean"], other["variance"]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_stored_statistics(kernel, stride):
    given = draw(kernel=kernel, stride=stride)
    stored = stored_statistics(given, stride=stride)
    for skip, relu, inverted in itertools.product((False, True), repeat=3):
        how = {"stride": stride, "skip": skip, "relu": relu, "inverted": inverted}
        assert gap(of_stored(given, *stored, True, **how), of_stored(given, *stored, False, **how)) < 1e-12


def test_stored_statistics_of_the_batch_itself():
    given = draw()
    own = run(_native.layer, given, norm="midpoint", skip=True)
    assert gap(of_stored(given, own["mean"], own["variance"], True, skip=True), own["tangents"]) < 1e-14


def test_stored_statistics_in_float32():
    errors = {False: [], True: []}
    for seed in range(10):
        given = draw(seed, images=4, channels=8, filters=8, size=(8, 8), scale=3.0)
        stored = [tensor.float() for tensor in stored_statistics(given)]
        exact = of_stored(given, *(tensor.double() for tensor in stored), False, skip=True, relu=True)
        single = {name: tensor.float() for name, tensor in given.items()}
        for native in errors:
            errors[native].append(gap(of_stored(single, *stored, native, skip=True, relu=True), exact))
    assert statistics.median(errors[True]) < 2 * statistics.median(errors[False]) + 1e-6


def test_stored_statistics_know_no_gradient():
    given = draw()
    stored = stored_statistics(given)
    given["bias"].requires_grad_()
    with pytest.raises(ValueError, match="no backward"):
        of_stored(given, *stored, True)
    with torch.no_grad():
        assert not of_stored(given, *stored, True).requires_grad
        with pytest.raises(ValueError, match="mean"):
            of_stored(given, stored[0][:, :-1], stored[1], True)


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


# --- Möbius sum of rows


def rows(seed=0, shape=(3, 5, 9, 7), scale=0.5, dtype=torch.float64):
    """Branch, skip and the gradient in their sum."""
    make = torch.Generator().manual_seed(seed)
    branch, skip, grad = (torch.randn(shape, generator=make).to(dtype) for _ in range(3))
    return scale * branch, scale * skip, grad


def of_rows(residual, branch, skip, grad, limit=LIMIT):
    """Sum and both gradients."""
    branch, skip = (t.clone().requires_grad_() for t in (branch, skip))
    made = residual(branch, skip, limit)
    made.backward(grad)
    return [made.detach(), branch.grad, skip.grad]


def plainly(branch, skip, limit):
    return lorentz.residual(branch, skip, limit, dim=3)


@pytest.mark.parametrize("shape", [(3, 5, 9, 7), (1, 1, 1, 2), (1, 2, 3, 33), (2, 3, 87, 16)], ids=str)
@pytest.mark.parametrize(("scale", "limit"), [(0.5, LIMIT), (0.01, LIMIT), (0.5, 0.8), (4.0, LIMIT), (9.0, 14.0)])
def test_row_residual(shape, scale, limit):
    """Short and middling rows; cut ones, some or nearly all; far ones."""
    given = rows(shape=shape, scale=scale)
    for native, plain in zip(
        of_rows(_native.row_residual, *given, limit), of_rows(plainly, *given, limit), strict=True
    ):
        assert gap(native, plain) < 1e-12


def test_row_residual_of_zeros_and_opposites():
    branch, skip, grad = rows()
    for a, b in ((0 * branch, skip), (branch, 0 * skip), (0 * branch, 0 * skip)):
        plain, native = (of_rows(residual, a, b, grad) for residual in (plainly, _native.row_residual))
        torch.testing.assert_close(native, plain, rtol=1e-12, atol=1e-14)
    for dtype in (torch.float32, torch.float64):
        given = [t.to(dtype) for t in (branch, -branch, grad)]
        assert all(t.isfinite().all() for t in of_rows(_native.row_residual, *given))
        assert _native.row_residual(given[0], given[1], LIMIT).abs().max() < 1e-3


def test_row_residual_on_a_line_is_the_sum():
    branch, skip, _ = rows(shape=(2, 3, 50, 1))
    assert gap(_native.row_residual(branch, skip, 10.0), branch + skip) < 1e-14


def test_row_residual_in_strided_memory():
    branch, skip, grad = rows()
    expected = of_rows(_native.row_residual, branch, skip, grad)
    strided = [t.to(memory_format=torch.channels_last) for t in (branch, skip, grad)]
    assert all(torch.equal(a, b) for a, b in zip(of_rows(_native.row_residual, *strided), expected, strict=True))
    with pytest.raises(ValueError, match="branch and skip"):
        _native.row_residual(branch, skip[..., :-1], LIMIT)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_row_residual_in_float32_is_as_good_as_the_plain_form(scale):
    errors = {residual: [] for residual in (plainly, _native.row_residual)}
    for seed in range(10):
        given = rows(seed, scale=scale)
        exact = of_rows(plainly, *given)
        for residual, of in errors.items():
            got = of_rows(residual, *(t.float() for t in given))
            assert all(t.dtype == torch.float32 for t in got)
            of.append([gap(a, b) for a, b in zip(got, exact, strict=True)])
    for k in range(3):
        plain, native = (statistics.median(each[k] for each in of) for of in errors.values())
        assert native < 2 * plain + 1e-6


def test_row_residual_does_not_depend_on_the_threads(monkeypatch):
    monkeypatch.setattr(_native, "WORTH_A_THREAD", 1)
    given = rows(shape=(5, 8, 32, 12), dtype=torch.float32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append(of_rows(_native.row_residual, *given))
        finally:
            torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


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


@pytest.mark.parametrize("compiler", ["false", "true", '"'])
def test_a_compiler_that_fails(compiler, fresh, monkeypatch, caplog):
    """By its exit code, by leaving an empty file, by a name with an open quote."""
    monkeypatch.setenv("CC", compiler)
    assert not _native.usable(torch.ones(1)) and not _native.usable(torch.ones(1))
    assert len(caplog.records) == 1 and not (fresh.exists() and list(fresh.iterdir()))


def test_a_cache_that_cannot_be_written(fresh, caplog):
    fresh.write_text("a file where the folder should be")
    assert not _native.usable(torch.ones(1))
    assert len(caplog.records) == 1


@pytest.fixture
def hasty(monkeypatch):
    """Compiled in a second rather than five."""
    monkeypatch.setattr(_native, "FLAGS", ["-O0", "-std=gnu11"])


def test_compiled_once(fresh, hasty):
    given = draw()
    assert worst(given, norm="midpoint", skip=True) < (1e-11, "")
    (library,) = fresh.iterdir()  # and nothing unfinished
    before = library.stat().st_mtime_ns
    _native._library.cache_clear()
    assert _native.usable(given["u"]) and library.stat().st_mtime_ns == before


def test_a_damaged_library_is_compiled_again(fresh, hasty, monkeypatch, tmp_path):
    """Cut in the middle, which would end the process if it were opened; and whole, but not ours."""
    assert _native.usable(torch.ones(1))
    (library,) = fresh.iterdir()
    content = library.read_bytes()
    key = library.stem.split("-")[0]
    for name, damaged in ((library.name, content[: len(content) // 2]), (f"{key}-{_native._hash(b'?')}.so", b"?")):
        library.unlink()
        (fresh / name).write_bytes(damaged)
        _native._library.cache_clear()
        assert worst(draw(dtype=torch.float32), norm="midpoint") < (1e-3, "")
        (library,) = fresh.iterdir()
        assert library.stem == f"{key}-{_native._hash(library.read_bytes())}"
