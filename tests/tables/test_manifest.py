"""Reading a manifest: what is said once reaches every cell, and every mistake is named."""

from __future__ import annotations

import pytest
import yaml

from hypimg.errors import UserError
from hypimg.tables import manifest
from hypimg.tables.manifest import Evaluator, Measure, Paper, parse


def small(**changes):
    """A table of two rows and two columns, as little as a manifest can say, with changes."""
    raw = {
        "title": "a title",
        "source": "a paper, Table 1",
        "metric": "accuracy",
        "columns": {"n=2": ["dim=2"], "n=8": ["dim=8"]},
        "rows": {"hyp": {"paper": [1.0, 2.0]}, "euc": {"overrides": ["space=euclidean"], "paper": [3.0, None]}},
    }
    raw.update(changes)
    return {key: value for key, value in raw.items() if value is not None}


def rows(**row):
    return small(rows={"hyp": {}, "row": row})


def test_overrides_come_from_the_table_the_column_the_row_and_the_cell():
    raw = small(
        common=["experiment=mnist"], rows={"r": {"overrides": ["c=1"], "cells": {"n=8": {"overrides": "lr=1"}}}}
    )
    table = parse("t", raw)
    assert table.cell("r", "n=2").runs == (("experiment=mnist", "dim=2", "c=1"),)
    assert table.cell("r", "n=8").runs == (("experiment=mnist", "dim=8", "c=1", "lr=1"),)


def test_cells_go_row_by_row():
    assert [cell.name for cell in parse("t", small()).cells] == ["hyp/n=2", "hyp/n=8", "euc/n=2", "euc/n=8"]


def test_paper_values_by_list_by_column_and_by_cell():
    raw = rows(paper={"n=8": [64.02, 0.24]}, cells={"n=2": {"paper": 5}})
    table = parse("t", raw)
    assert table.cell("row", "n=8").paper == Paper(64.02, 0.24)
    assert table.cell("row", "n=2").paper == Paper(5.0)
    assert parse("t", small()).cell("euc", "n=8").paper is None


def test_a_metric_of_the_row_replaces_the_columns_and_braces_take_it_in():
    columns = {"FPR": {"metric": {"name": "fpr95", "higher_is_better": False}}, "AUROC": {"metric": "auroc"}}
    raw = small(
        columns=columns, rows={"svhn": {"metric": "svhn/{}"}, "own": {"metric": "other"}}, metric={"scale": 100}
    )
    table = parse("t", raw)
    assert table.cell("svhn", "FPR").measure == Measure("svhn/fpr95", scale=100, higher_is_better=False)
    assert table.cell("svhn", "AUROC").measure.name == "svhn/auroc"
    assert table.cell("own", "AUROC").measure.name == "other"


def test_null_takes_an_evaluator_back():
    raw = small(
        evaluator="ood", rows={"a": {}, "b": {"evaluator": None}, "c": {"evaluator": {"name": "fsl", "shot": 5}}}
    )
    table = parse("t", raw)
    assert table.cell("a", "n=2").evaluator == Evaluator("ood")
    assert table.cell("b", "n=2").evaluator is None
    assert table.cell("c", "n=2").evaluator == Evaluator("fsl", (("shot", 5),))


def test_options_add_up_over_table_column_row_and_cell_until_another_evaluator_is_named():
    raw = small(
        evaluator={"name": "delta", "samples": 1000},
        columns={"cifar": {"evaluator": {"dataset": "cifar10"}}, "cub": {"evaluator": {"dataset": "cub"}}},
        rows={
            "vgg": {"evaluator": {"encoder": "vgg19"}, "cells": {"cub": {"evaluator": {"samples": 300}}}},
            "other": {"evaluator": "accuracy"},
            "again": {"evaluator": {"name": "delta", "dataset": "own"}},
        },
    )
    table = parse("t", raw)
    options = {cell.name: (cell.evaluator.name, dict(cell.evaluator.options)) for cell in table.cells}
    assert options["vgg/cifar"] == ("delta", {"dataset": "cifar10", "encoder": "vgg19", "samples": 1000})
    assert options["vgg/cub"] == ("delta", {"dataset": "cub", "encoder": "vgg19", "samples": 300})
    assert options["other/cub"] == ("accuracy", {})
    assert options["again/cub"] == ("delta", {"dataset": "own", "samples": 1000})


def test_cells_without_runs_are_said_at_any_place_and_can_be_run():
    whole = parse("t", small(runs=[], evaluator="delta", columns={"a": {}, "b": {}}, rows={"r": {}}))
    assert [(cell.runs, cell.runnable) for cell in whole.cells] == [((), True)] * 2
    mixed = parse("t", small(evaluator="delta", columns={"a": {}, "b": {"runs": []}}, rows={"r": {}}))
    assert [cell.runs for cell in mixed.cells] == [((),), ()]
    row = parse("t", small(columns={"a": {}}, rows={"r": {"runs": [], "evaluator": "delta"}, "s": {}}))
    assert [cell.runs for cell in row.cells] == [(), ((),)]
    cell = parse("t", small(evaluator="delta", columns={"a": {}}, rows={"r": {"cells": {"a": {"runs": []}}}}))
    assert cell.cells[0].runs == () and cell.cells[0].computed


def test_a_manifest_of_figures_alone_has_no_cells():
    table = parse("t", {"title": "a title", "source": "a paper, Figure 3", "figures": ["fig"]})
    assert (table.cells, table.figures) == ((), ("fig",))


def test_a_cell_of_several_runs_has_an_override_list_for_each():
    raw = rows(runs=[["space=euclidean"], ["space=poincare", "c=0.1"]], evaluator="fusion")
    assert parse("t", raw).cell("row", "n=8").runs == (
        ("dim=8", "space=euclidean"),
        ("dim=8", "space=poincare", "c=0.1"),
    )


def test_quoted_rows_and_columns_and_cells_with_a_reason_are_never_run():
    columns = {"theory": {"quoted": True}, "ours": {}}
    raw = small(
        columns=columns,
        rows={
            "lit": {"quoted": True, "source": "[53]", "paper": [1, 2]},
            "own": {"cells": {"ours": {"not_run": "no data"}}},
        },
    )
    table = parse("t", raw)
    assert not any(cell.runnable for cell in table.cells)
    assert table.cell("lit", "ours").runs == ()
    assert table.cell("own", "ours").not_run == "no data"


def test_seeds_are_a_count_or_a_list():
    assert parse("t", small()).seeds == (0, 1, 2, 3, 4)
    assert parse("t", small(seeds=2)).seeds == (0, 1)
    assert parse("t", small(seeds=[3, 1])).seeds == (3, 1)


def test_only_selects_by_pattern_whole_rows_and_several():
    table = parse("t", small())
    assert [c.name for c in table.select("hyp/n=8")] == ["hyp/n=8"]
    assert [c.name for c in table.select("*/n=8")] == ["hyp/n=8", "euc/n=8"]
    assert [c.name for c in table.select("euc")] == ["euc/n=2", "euc/n=8"]
    assert [c.name for c in table.select("euc/n=8,hyp/n=2")] == ["hyp/n=2", "euc/n=8"]
    assert len(table.select("")) == 4
    with pytest.raises(UserError, match="did you mean hyp/n=8"):
        table.select("hyp/n=9")


BAD = {
    "no such key of a table": (small(colums={}), "colums.*did you mean columns"),
    "no such key of a row": (rows(metrik="x"), "rows.row=metrik.*did you mean metric"),
    "no such key of a column": (small(columns={"a": {"labl": "x"}}, rows={"r": {}}), "columns.a=labl.*label"),
    "no such key of a cell": (rows(cells={"n=2": {"papers": 1}}), "papers.*did you mean paper"),
    "no such key of a metric": (small(metric={"nam": "x"}), "nam: .*name"),
    "no such column in paper": (rows(paper={"n=3": 1}), "n=3: no such column.*n=2"),
    "no such column in cells": (rows(cells={"m": {}}), "no such column"),
    "too few paper values": (rows(paper=[1]), "one value per column .2.: n=2, n=8"),
    "paper value that is text": (rows(paper=["1", 2]), "paper.n=2=1: must be a finite number"),
    "paper value that is true": (rows(paper=[True, 2]), "finite number"),
    "paper value of three": (rows(paper=[[1, 2, 3], 2]), "must be a number, .number, ±. or null"),
    "paper value not finite": (rows(paper=[float("nan"), 2]), "finite number"),
    "no such row in compare": (small(compare=[["hyp", "eucl"]]), "compare=eucl: .*did you mean euc"),
    "a row against a column": (small(compare=[["hyp", "n=2"]]), "two different rows or two different columns"),
    "a row against itself": (small(compare=[["hyp", "hyp"]]), "two different rows"),
    "no pair": (small(compare=["hyp"]), "must be a pair"),
    "no title": (small(title=None), "lacks the key title"),
    "no rows": (small(rows={}), "mapping of names"),
    "rows as a list": (small(rows=["a"]), "mapping of names"),
    "a name with a slash": (small(rows={"a/b": {}}), "none of / ,"),
    "no metric": (small(metric=None), "no metric"),
    "braces without a metric": (small(metric="a/{}"), "nothing to fill"),
    "quoted without source": (rows(quoted=True), "names where its numbers come from"),
    "quoted and run": (rows(quoted=True, source="x", overrides=["c=1"]), "never run"),
    "several runs without evaluator": (rows(runs=[["a=1"], ["a=2"]]), "several runs needs an evaluator"),
    "no runs and no evaluator": (small(runs=[], columns={"a": {}}, rows={"r": {}}), "a cell of no runs needs an"),
    "no runs and overrides": (rows(runs=[], evaluator="delta", overrides=["c=1"]), "no meaning in cells without runs"),
    "no runs and common": (small(runs=[], common=["c=1"], evaluator="delta"), "no meaning in a table without runs"),
    "the seed as an option": (
        small(runs=[], columns={"a": {}}, rows={"r": {"evaluator": {"name": "delta", "seed": 1}}}),
        "evaluator.seed: is the cell's seed",
    ),
    "an unknown spread": (small(metric={"name": "a", "spread": "sem"}), "spread=sem: must be interval or std"),
    "two spreads": (rows(metric={"spread": "std"}), "spread=std: one table shows one kind of ±"),
    "a mean of nothing": (small(metric={"name": "a", "paper_n": 0}), "paper_n=0: must be a whole number ≥ 1"),
    "columns without rows": (small(rows=None, figures=["fig"]), "lacks the key rows"),
    "runs that are words": (rows(runs=["a=1"]), "list of override lists"),
    "overrides that are numbers": (rows(overrides=[1]), "list of texts"),
    "budgets without paper": (small(budgets={"cpu": []}), "needs a budget `paper`"),
    "seeds of none": (small(seeds=0), "count ≥ 1"),
    "seeds below zero": (small(seeds=[-1]), "seeds ≥ 0"),
    "seeds as text": (small(seeds="5"), "count ≥ 1"),
    "a flag that is text": (rows(ours="yes"), "true or false"),
    "digits": (small(metric={"name": "a", "digits": 1.5}), "whole number from 0 to 10"),
    "scale": (small(metric={"name": "a", "scale": "100"}), "finite number"),
    "evaluator without name": (rows(evaluator={"shot": 5}), "lacks the key name"),
    "change of an unknown row": (rows(change=["hyp", "hypp"]), "did you mean hyp"),
    "a list as manifest": ([], "must be a mapping"),
}


@pytest.mark.parametrize("raw, message", BAD.values(), ids=BAD.keys())
def test_a_mistake_is_named(raw, message):
    with pytest.raises(UserError, match=message) as caught:
        parse("t", raw)
    assert "\n" not in str(caught.value)


def test_load_reads_numbers_as_the_configs_do_and_names_the_file(tmp_path):
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(small()).replace("3.0", "1e-3"))
    assert manifest.load("t", tmp_path).cell("euc", "n=2").paper == Paper(0.001)
    with pytest.raises(UserError, match=r"no manifest .*/tt\.yaml; did you mean t"):
        manifest.load("tt", tmp_path)


@pytest.mark.parametrize("text", ["a: [", "a: 1\na: 2", "\xff\xfe", "- a"])
def test_load_of_broken_yaml_is_one_line(tmp_path, text):
    (tmp_path / "t.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"t\.yaml"):
        manifest.load("t", tmp_path)


@pytest.mark.parametrize("name", manifest.names())
def test_every_manifest_of_the_suite_loads(name):
    table = manifest.load(name)
    assert table.cells or table.figures


def test_table_1_has_the_papers_numbers_and_theory():
    table = manifest.load("hie_table1")
    printed = {cell.name: (cell.paper.value, cell.paper.half_width) for cell in table.cells if cell.paper}
    assert printed == {
        "tree/theory": (0, None),
        "tree/paper": (0, None),
        "disk_area/theory": (0, None),
        "disk_area/paper": (0.18, 0.08),
        "hemisphere/theory": (1, None),
        "hemisphere/paper": (0.86, 0.11),
        "sphere/theory": (1, None),
        "sphere/paper": (0.97, 0.13),
    }
    assert not any(cell.runs for cell in table.cells)


def test_table_3_has_the_papers_eight_numbers():
    table = manifest.load("hie_table3")
    printed = [cell.paper.value for cell in table.cells if cell.paper]
    assert printed == [0.868, 0.832, 0.853, 0.859, 0.834, 0.835, 0.84, 0.846]
