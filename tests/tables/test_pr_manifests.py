"""The manifests of Poincaré ResNet: the paper's numbers, and which cells are one run."""

from __future__ import annotations

import pytest

from hypimg.tables import manifest
from hypimg.tables.results import compose_evaluator, identify


@pytest.fixture(scope="module")
def keys():
    """The keys of the runs of each cell, (table, cell) → tuple, at budget cpu."""
    found = {}
    for name in ("pr_table1", "pr_fig2", "pr_fig3"):
        table = manifest.load(name)
        identity = identify(table, "cpu")
        found |= {(name, cell.name): identity(cell, 0).run_keys for cell in table.cells}
    return found


def test_table_1_has_the_papers_numbers_beside_both_variants():
    table = manifest.load("pr_table1")
    printed = {row.name: [table.cell(row.name, column.name).paper for column in table.columns] for row in table.rows}
    values = {row: [paper.value for paper in papers] for row, papers in printed.items() if any(papers)}
    assert values == {
        "frechet": [79.4, 79.4, 82.4, 82.4],
        "midpoint": [80.9, 80.9, 81.9, 81.9],
        "time_change": [-23, -23, -22, -22],
    }
    assert not any(cell.measure.comparable for cell in table.cells if cell.row.name == "time_change")


def test_the_arms_of_table_1_are_runs_of_their_own_and_the_euclidean_one_knows_no_variant(keys):
    networks = ("ResNet-20", "ResNet-20 official", "ResNet-32", "ResNet-32 official")
    poincare = [keys["pr_table1", f"{mean}/{network}"] for mean in ("frechet", "midpoint") for network in networks]
    assert len(set(poincare)) == 8
    euclidean = [keys["pr_table1", f"euclidean/{network}"] for network in networks]
    assert euclidean[0] == euclidean[1] != euclidean[2] == euclidean[3]
    assert not set(euclidean) & set(poincare)


@pytest.mark.parametrize("network", ["ResNet-20", "ResNet-20 official", "ResNet-32", "ResNet-32 official"])
def test_times_compare_the_runs_whose_accuracies_are_shown(keys, network):
    midpoint, frechet, euclidean = (
        keys["pr_table1", f"{row}/{network}"] for row in ("midpoint", "frechet", "euclidean")
    )
    assert keys["pr_table1", f"time_change/{network}"] == midpoint + frechet
    assert keys["pr_table1", f"time_euclidean/{network}"] == midpoint + euclidean
    for row in ("midpoint_frozen", "frechet_frozen"):
        assert keys["pr_table1", f"{row}/{network}"] == keys["pr_table1", f"{row.removesuffix('_frozen')}/{network}"]


def test_figure_3_shares_its_run_with_relu_and_c_of_a_tenth_with_table_1(keys):
    for column, network in (("paper", "ResNet-20"), ("official", "ResNet-20 official")):
        shared = keys["pr_table1", f"midpoint/{network}"]
        assert keys["pr_fig3", f"ReLU/{column}"] == keys["pr_fig3", f"c=0.1/{column}"] == shared
    assert len({run for (name, _), run in keys.items() if name == "pr_fig3"}) == 8


def test_figure_2_trains_every_initialisation_of_every_network(keys):
    assert len({run for (name, _), run in keys.items() if name == "pr_fig2"}) == 4 * 3 * 2


def test_figure_2a_needs_no_run():
    table = manifest.load("pr_fig2a")
    assert not any(cell.runs for cell in table.cells) and list(table.budgets) == ["paper"]
    options = {cell.name: compose_evaluator(cell, 0) for cell in table.cells}
    assert {(str(o.init), bool(o.inverted_lambda), float(o.c)) for o in options.values()} == {
        (init, inverted, c) for init in ("identity", "hnnpp") for inverted in (False, True) for c in (1.0, 0.1)
    }
    assert (options["identity_inverted/c=0.1"].inverted_lambda, options["hnnpp/c=1"].init) == (True, "hnnpp")
