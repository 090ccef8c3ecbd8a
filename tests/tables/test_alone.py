"""Cells without runs: an evaluator with the cell's seed makes them; nothing is trained."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from hypimg import config
from hypimg.errors import UserError
from hypimg.tables import runner
from hypimg.tables.manifest import parse
from hypimg.tables.plan import describe, plan
from hypimg.tables.render import render
from hypimg.tables.results import compose_evaluator, identify, read_lines


def delta_table(lab, **changes):
    """Two encoders × two data sets, three seeds."""
    raw = {
        "metric": {"name": "delta_rel", "spread": "std", "interval": "std over subsamples"},
        "runs": [],
        "evaluator": {"name": "delta", "samples": 500},
        "budgets": {"paper": []},
        "columns": {"cifar": {"evaluator": {"dataset": "cifar"}}, "cub": {"evaluator": {"dataset": "cub"}}},
        "rows": {
            "vgg": {"evaluator": {"encoder": "vgg"}, "paper": [0.031, [0.5, 0.1]]},
            "resnet": {"evaluator": {"encoder": "resnet"}},
        },
        "compare": [],
        "seeds": 3,
    }
    return lab.table(**(raw | changes))


def reproduce(lab, table, **options):
    return runner.reproduce(table, results=lab.results, **options)


def states(lab, table, **options):
    return [item.state for item in plan(table, results=lab.results, **options)]


def test_each_cell_and_seed_is_evaluated_once_and_nothing_is_trained(lab):
    table = delta_table(lab)
    assert reproduce(lab, table) == 0
    assert lab.trained == lab.evaluated == []
    assert [(e["encoder"], e["dataset"], e["seed"]) for e in lab.asked[:5]] == [
        ("vgg", "cifar", 0),
        ("vgg", "cub", 0),
        ("resnet", "cifar", 0),
        ("resnet", "cub", 0),
        ("vgg", "cifar", 1),
    ]
    assert {e["samples"] for e in lab.asked} == {500}
    assert {e["folder"] for e in lab.asked} == {lab.root / "runs" / "evaluations"}
    assert states(lab, table) == ["done"] * 12
    assert reproduce(lab, table) == 0
    assert len(lab.asked) == 12


def test_a_line_says_what_was_opened_and_what_it_was_made_on(lab):
    table = delta_table(lab)
    reproduce(lab, table, only="vgg/cub", seeds=[2], settings=["data_dir=/elsewhere"])
    (line,) = read_lines(lab.results, "t")
    assert (line["runs"], line["overrides"], line["seed"], line["seconds"]) == ([], [], 2, 2.5)
    assert line["metrics"] == {"delta_rel": 0.032, "diameter": 3.0}
    assert [entry["name"] for entry in line["data"]] == ["cub"] and line["official"]
    assert (line["commit"], line["device"], line["threads"]) == ("abc1234", "CPU (test)", 1)
    assert lab.asked[0]["data_dir"] == "/elsewhere"


def test_the_key_moves_with_options_seed_and_version_and_needs_no_data(lab, monkeypatch):
    table = delta_table(lab)
    identity = identify(table, "paper")
    vgg, resnet = (table.cell(row, "cub") for row in ("vgg", "resnet"))
    keys = {identity(vgg, 0).key, identity(vgg, 1).key, identity(resnet, 0).key}
    other = delta_table(lab, evaluator={"name": "delta", "samples": 1000})
    keys |= {identify(other, "paper")(other.cell("vgg", "cub"), 0).key}
    monkeypatch.setattr(config, "RESULT_VERSION", config.RESULT_VERSION + 1)
    keys |= {identify(table, "paper")(vgg, 0).key}
    assert len(keys) == 5


def test_two_metrics_of_one_evaluation_are_asked_for_once(lab):
    rows = {name: {"metric": name, "evaluator": {"encoder": "vgg"}} for name in ("delta_rel", "diameter")}
    table = delta_table(lab, rows=rows)
    reproduce(lab, table)
    assert (len(lab.asked), len(read_lines(lab.results, "t"))) == (6, 12)


def test_what_is_missing_is_told_once_and_the_other_cells_go_on(lab, capsys):
    table = delta_table(lab)
    lab.lacks = {"cub"}
    assert reproduce(lab, table) == 2
    out = capsys.readouterr().out
    assert out.count("not found") == 2
    assert "\nvgg/cub: dataset=cub: not found under data; download it\n" in out
    assert len(read_lines(lab.results, "t")) == 6
    text = render(table, lab.results)["table.md"]
    assert "not run (paper 0.500 ± 0.100)" in text
    assert "    python scripts/reproduce.py t 'only=vgg/cub'\n" in text
    lab.lacks = set()
    assert reproduce(lab, table) == 0
    assert states(lab, table) == ["done"] * 12


def test_our_bug_shows_its_traceback_and_the_other_seeds_go_on(lab, capsys, monkeypatch):
    monkeypatch.setattr("hypimg.run.evaluate_alone", lambda *words: 1 / 0)
    assert reproduce(lab, delta_table(lab)) == 1
    assert capsys.readouterr().err.count("ZeroDivisionError") == 12


def test_the_plan_speaks_of_cells_to_evaluate_and_their_time(lab):
    table = delta_table(lab)
    text = describe(table, plan(table, results=lab.results), "paper")
    assert text.endswith(
        "0 of 12 done; 4 cells to evaluate (12 evaluations), time unknown: none of this table has been evaluated yet"
    )
    reproduce(lab, table, only="vgg")
    text = describe(table, plan(table, seeds=[0], results=lab.results), "paper")
    assert text.endswith("2 of 4 done; 2 cells to evaluate, about 5 s by what earlier ones took")
    reproduce(lab, table)
    assert describe(table, plan(table, results=lab.results), "paper").endswith("12 of 12 done; nothing to evaluate")


def test_a_table_may_hold_cells_of_both_kinds(lab, capsys):
    rows = {
        "hyp": {"metric": "ks/dist0"},
        "delta": {"metric": "delta_rel", "runs": [], "evaluator": "delta"},
    }
    table = lab.table(rows=rows, compare=[], seeds=1)
    assert reproduce(lab, table) == 0
    assert (
        "2 runs to train, time unknown: none of this table has run yet; 2 cells to evaluate" in capsys.readouterr().out
    )
    assert (len(lab.trained), len(lab.asked)) == (2, 1)  # the columns' overrides say nothing to an evaluator alone
    text = render(table, lab.results)["table.md"]
    assert "2 trainings on CPU (test), 1 thread: 50 s each" in text
    assert "1 evaluation on CPU (test), 1 thread: 2 s." in text


def test_fresh_asks_again(lab):
    table = delta_table(lab)
    reproduce(lab, table, only="vgg/cub", seeds=[0])
    assert reproduce(lab, table, only="vgg/cub", seeds=[0], fresh=True) == 0
    assert [e["fresh"] for e in lab.asked] == [False, True]
    assert len(read_lines(lab.results, "t")) == 2


@pytest.mark.parametrize(
    ("setting", "message"), [("epochs=1", "would change"), ("dvice=cpu", "unknown"), ("seed=1", "seeds=")]
)
def test_a_setting_that_is_not_of_the_machine_is_refused(lab, setting, message):
    with pytest.raises(UserError, match=message):
        reproduce(lab, delta_table(lab), settings=[setting])
    assert lab.asked == []


def test_an_evaluator_that_takes_no_seed_needs_runs(lab):
    with pytest.raises(UserError, match="evaluator ood=seed: unknown option"):
        reproduce(lab, lab.table(runs=[], columns={"a": {}}, rows={"r": {"metric": "x"}}, compare=[]))


def test_an_unknown_option_is_named(lab):
    with pytest.raises(UserError, match="did you mean encoder"):
        reproduce(lab, delta_table(lab, evaluator={"name": "delta", "encodr": "vgg"}))


def test_an_option_that_is_a_part_is_given_by_its_name(lab, monkeypatch):
    node = OmegaConf.create(
        {"_target_": "hypimg.Delta", "dataset": {"_target_": "hypimg.Digits", "blur": 1}, "seed": 0}
    )
    parts = {("evaluator", "delta"): node, ("dataset", "cub"): OmegaConf.create({"_target_": "hypimg.Cub"})}
    monkeypatch.setattr(config, "compose_group", lambda group, name: parts[group, name].copy())
    table = delta_table(lab, evaluator="delta", rows={"r": {}})
    by_name = compose_evaluator(table.cell("r", "cub"), 3)
    assert by_name == {"_target_": "hypimg.Delta", "dataset": {"_target_": "hypimg.Cub"}, "seed": 3}
    columns = {"a": {"evaluator": {"dataset.blur": 2}}}
    inside = compose_evaluator(delta_table(lab, evaluator="delta", columns=columns, rows={"r": {}}).cells[0], 3)
    assert inside.dataset == {"_target_": "hypimg.Digits", "blur": 2}


def test_ours_is_shown_with_its_standard_deviation_where_the_table_says_so(lab):
    table = delta_table(lab)
    reproduce(lab, table)
    files = render(table, lab.results)
    text = files["table.md"]
    assert "| vgg    | 0.031 ± 0.001 (paper 0.031, +0.000) |" in text
    assert "Ours: mean ± standard deviation over 3 seeds (0 to 2)." in text
    assert "The paper's ±: std over subsamples." in text
    assert "Budget" not in text and "training" not in text
    assert "12 evaluations on CPU (test), 1 thread: 2 s each, 30 s in all." in text
    assert r"vgg & 0.031 \ensuremath{\pm} 0.001" in files["table.tex"]


def test_the_papers_mean_is_judged_as_a_mean(lab):
    single = delta_table(lab)
    reproduce(lab, single)
    text = render(single, lab.results)["table.md"]
    assert "where one more seed of ours would be expected" in text
    assert "inside ± 0.005 (+0.0 s)" in text
    mean = delta_table(lab, metric={"name": "delta_rel", "spread": "std", "paper_n": 10})
    text = render(mean, lab.results)["table.md"]
    assert "where the mean of 10 more seeds of ours would be expected" in text
    assert "inside ± 0.003 (+0.0 s)" in text


def test_figures_are_drawn_from_what_is_stored_and_ask_for_nothing(lab, monkeypatch):
    drawn = {}
    figure = SimpleNamespace(draw=lambda scores, out_dir: drawn.update(scores) or [])
    monkeypatch.setitem(sys.modules, "hypimg.figures.fig", figure)
    table = delta_table(lab, figures=["fig"], seeds=1)
    planned = plan(table, results=lab.results)
    folder = lab.root / "runs" / "evaluations"
    folder.mkdir(parents=True)
    said = {"_target_": "hypimg.Delta", "encoder": "vgg", "dataset": "cub", "samples": 500, "seed": 0}
    for name, seed in (("other", 1), ("wanted", 0)):
        (folder / f"{name}.json").write_text(json.dumps({"evaluator": {**said, "seed": seed}, "result_version": 1}))
        (folder / f"{name}.npz").write_bytes(b"")
    assert runner.draw_figures(table, planned, results=lab.results) == 0
    assert drawn == {("vgg", "cub"): folder / "wanted.npz"}
    assert lab.asked == []


def test_figures_that_need_no_scores_are_drawn_without_a_table(lab, monkeypatch, capsys):
    def draw(scores, out_dir):
        assert scores == {}
        return [out_dir / "fig.pdf"]

    monkeypatch.setitem(sys.modules, "hypimg.figures.fig", SimpleNamespace(draw=draw))
    table = parse("t", {"title": "A drawing", "source": "a paper, Figure 3", "figures": ["fig"]})
    assert reproduce(lab, table) == 0
    out = capsys.readouterr().out
    assert "t: A drawing (a paper, Figure 3); figures alone, nothing to run\n" in out
    assert f"drawn: {lab.results / 't' / 'fig.pdf'}" in out and "written" not in out
