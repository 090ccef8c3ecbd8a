"""What `benchmarks/poincare_resnet.py` compares is the same function, and its lines become the table's rows."""

from __future__ import annotations

import importlib
import os
import statistics
from pathlib import Path

import pytest
import torch

pytest.importorskip("hypll")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """The script, with two images where it takes eight."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("poincare_resnet")
    monkeypatch.setattr(module, "CHECKED", 2)
    return module


@pytest.fixture
def small(benchmark, monkeypatch):
    """With small images too, and every piece of work done once."""
    if not benchmark._native.usable(torch.ones(1)):
        pytest.skip("needs a C compiler")
    monkeypatch.setattr(benchmark, "IMAGE", (3, 16, 16))
    seconds = benchmark.interleaved.__globals__["_seconds"]
    monkeypatch.setattr(
        benchmark, "interleaved", lambda works, *_, **__: {name: seconds(work) for name, work in works.items()}
    )
    return benchmark


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("speed_report")


def test_hypll_in_the_same_architecture_is_the_same_function(benchmark):
    found = benchmark.agreement(benchmark.SMALL)
    assert found["outputs"] < 1e-12 and found["plain outputs"] < 1e-12
    assert found["gradients"] < 1e-9 and found["plain gradients"] < 1e-9


def test_float32_is_near_float64_in_both_forms(benchmark):
    draws = [benchmark.single_errors(benchmark.SMALL, seed) for seed in range(10)]
    assert draws[0].keys() == {"native", "plain", "hypll"}
    for form in ("native", "plain"):
        assert 1e-8 < statistics.median(draw[form] for draw in draws) < 2e-6


def test_the_forms_are_switched_and_the_environment_is_left_as_it_was(benchmark, monkeypatch):
    monkeypatch.setenv("HYPIMG_NATIVE", "1")
    x = torch.ones(1)
    with benchmark.kernels(False):
        assert not benchmark._native.usable(x)
    assert os.environ["HYPIMG_NATIVE"] == "1"
    monkeypatch.delenv("HYPIMG_NATIVE")
    seen = [work() for work in benchmark.in_all_forms("ours", lambda: os.environ["HYPIMG_NATIVE"]).values()]
    assert seen == ["1", "0"] and "HYPIMG_NATIVE" not in os.environ


def test_every_rival_takes_a_step_and_the_lines_become_rows(small, report):
    line = small.measure_steps(small.SMALL, 1, 1)
    assert {"hypll ms", "plain ms", "euclidean ms", "euclidean channels_last ms"} < line.keys()
    assert 0 < line["saved MB"] < line["plain saved MB"] < line["hypll saved MB"]
    line |= {"goal": ">= 1e9", "saved goal": ">= 12", "HypLL saved MB / ours": 12.0}
    native, plain = report.of_poincare_resnet(line)
    assert native.work == "step, (4, 8, 16), batch 1" and plain.work == "step, (4, 8, 16), batch 1, without a compiler"
    assert not report.met(native.ratio, native.goal)
    told = [report.said(extra, judged=True) for extra in native.extras]
    assert "keeps 1/12 of HypLL's memory (≥ 12, met)" in told


def test_what_an_option_costs_is_told_as_a_row_with_its_goal(small, report):
    rows = [row for line in small.measure_variants(small.SMALL, 1, 1) for row in report.of_poincare_resnet(line)]
    assert [row.goal for row in rows] == [">= 0.769", ">= 0.952", ">= 0.800"]
    assert rows[0].work == "step with Fréchet batch norm, (4, 8, 16), batch 1"
    (row,) = report.of_poincare_resnet(small.measure_norms(small.SMALL, 1, 1))
    assert "in PR 77 %" in row.extras[0].text
