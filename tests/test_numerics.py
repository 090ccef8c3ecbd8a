"""The accuracy that `benchmarks/numerics.py` reports, held on a part of its grid; and the report that it draws."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import mpmath
import pytest
import torch
from mpmath import mpf

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def numerics(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("numerics")


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("numerics_report")


@pytest.mark.parametrize("c", [1e-3, 0.1, 1.0, 10.0])
def test_hypimg_keeps_its_digits_up_to_the_sphere(numerics, report, c):
    norms = (1e-4, 0.5, 0.9, 1 - 1e-3, 1 - 1e-5)
    records = list(numerics.measure({"hypimg": numerics.hypimg}, (c,), norms, per_kind=2))
    assert {r["operation"] for r in records} == set(report.ERRORS) - {"cdist"}
    assert all(r["error"] is not None for r in records)
    assert report.missed(records) == []
    assert all(r["of_equal"] == 0 for r in records if r["operation"] in ("dist", "cdist auto", "cdist exact"))
    # What the docstring of cdist promises of mode "matmul", in units of 1e-7 (‖x‖² + ‖y‖²).
    assert max(r["square_error"] for r in records if r["operation"] == "cdist matmul") < 5


@pytest.mark.parametrize("c", [1e-3, 1.0, 10.0])
@pytest.mark.parametrize("norm", [1e-4, 0.9, 1 - 1e-3, 1 - 1e-5])
def test_gradients_in_a_learnable_c_are_finite(numerics, c, norm):
    k = torch.tensor(c, requires_grad=True)
    operations, _ = numerics.hypimg(k)
    given = {
        "dist": numerics.pairs(c, norm, 2),
        "logmap∘expmap": numerics.steps(c, norm, 2),
        **numerics.mlr(c, norm, 2),
    }
    for name, function in operations.items():
        values = function(*given["dist" if name.startswith("cdist") else name])
        (gradient,) = torch.autograd.grad(values.sum(), k)
        assert gradient.isfinite(), name


def test_a_missed_goal_and_a_value_that_is_not_finite_are_told(report):
    good = {"operation": "dist", "library": "hypimg", "c": 1.0, "norm": 0.9, "error": 1e-7}
    good |= {"not_finite": 0, "gradients_not_finite": 0}
    others = [{**good, "library": "hypll", "error": 1.0}, {**good, "norm": 1 - 1e-6, "error": None, "not_finite": 3}]
    assert report.missed([good, *others]) == []
    assert report.missed([{**good, "error": 2e-6}]) == ["dist at c = 1, norm 0.9: 2e-06 > 1e-06"]
    assert report.missed([{**good, "error": None}]) == ["dist at c = 1, norm 0.9: None > 1e-06"]
    assert report.missed([{**good, "gradients_not_finite": 1}]) == ["dist at c = 1, norm 0.9: not finite"]


def test_the_oracle_is_the_printed_formula(numerics):
    """artanh of the Möbius sum, with numbers that are not float32's own integers."""
    x, y = numerics.pairs(0.1, 0.99, per_kind=1)
    exact = numerics.exact_cdist(x, y, 0.1)
    c = mpf(0.1)
    for i, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        a, b = [-mpf(v) for v in a], [mpf(v) for v in b]
        ab, aa, bb = (mpmath.fdot(p, q) for p, q in ((a, b), (a, a), (b, b)))
        denominator = 1 + 2 * c * ab + c**2 * aa * bb
        moved = [((1 + 2 * c * ab + c * bb) * p + (1 - c * aa) * q) / denominator for p, q in zip(a, b, strict=True)]
        d = 2 / mpmath.sqrt(c) * mpmath.atanh(mpmath.sqrt(c * mpmath.fdot(moved, moved)))
        assert exact[i, i] == pytest.approx(float(d), rel=1e-15)


def test_the_oracle_of_logits_agrees_with_float64_inside_the_ball(numerics):
    from hypimg.geometry import hyperplanes

    given = numerics.mlr(1.0, 0.5, per_kind=2)
    for operation in ("MLR (p, a)", "MLR near p"):
        x, p, a = given[operation]
        ours = hyperplanes.mlr_logits(x.double(), p.double(), a.double(), 1.0).numpy()
        assert numerics.exact_logits(x, p, a, 1.0) == pytest.approx(ours, rel=1e-12)
    x, z, r = given["MLR (z, r)"]
    ours = hyperplanes.unidirectional_logits(x.double(), z.double(), r.double(), 1.0).numpy()
    assert numerics.exact_unidirectional(x, z, r, 1.0) == pytest.approx(ours, rel=1e-12)


def test_the_grid_reaches_every_separation(numerics):
    x, y = (t.double() for t in numerics.pairs(10.0, 1 - 1e-5, per_kind=3))
    share = (x - y).norm(dim=-1).reshape(-1, 3) / x.norm(dim=-1).reshape(-1, 3)
    expected = torch.tensor([*numerics.NEAR, 0.66, 2.0], dtype=torch.float64)
    assert (share[: len(expected)].mean(-1) / expected)[1:] == pytest.approx([1.0] * 10, rel=0.3)
    assert not share[0].any() and share[-1] == pytest.approx([1.0] * 3)
    start, v = numerics.steps(1.0, 0.9, per_kind=1)
    assert len(start) == len(v) == 3 * len(numerics.STEPS)


def test_committed_table_and_caption_are_those_of_the_committed_records(report, tmp_path, monkeypatch):
    about, records = report.read()
    folder = report.RECORDS.parent
    assert report.table(about, records) == (folder / "numerics.md").read_text(encoding="utf-8")
    assert report.missed(records) == []
    text = report.RECORDS.read_text(encoding="utf-8")
    monkeypatch.setattr(report, "RECORDS", tmp_path / "numerics.jsonl")
    report.RECORDS.write_text(text, encoding="utf-8")
    report.main()
    drawn = (tmp_path / "numerics.pdf").read_bytes()
    assert (tmp_path / "numerics.txt").read_bytes() == (folder / "numerics.txt").read_bytes()
    report.main()
    assert (tmp_path / "numerics.pdf").read_bytes() == drawn  # the same records, the same bytes
    assert math.isclose(report.places([0.5])[0], 0)
