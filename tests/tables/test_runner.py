"""Plan and run: what is missing is trained once, what is finished is written down, what is done is left alone."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

import hypimg.run
from hypimg.errors import UserError
from hypimg.tables import runner
from hypimg.tables.plan import describe, plan
from hypimg.tables.results import read_lines


def reproduce(lab, table=None, **options):
    return runner.reproduce(table or lab.table(), results=lab.results, **options)


def states(lab, table=None, **options):
    return [item.state for item in plan(table or lab.table(), results=lab.results, **options)]


def test_a_table_is_trained_once_and_every_cell_and_seed_gets_a_line(lab):
    assert reproduce(lab) == 0
    assert len(lab.trained) == len(set(lab.trained)) == 8
    lines = read_lines(lab.results, "t")
    places = {(line["row"], line["column"], line["seed"]) for line in lines}
    assert (len(lines), len(places)) == (12, 12)
    assert states(lab) == ["done"] * 12


def test_a_line_says_what_was_measured_on_what_and_where(lab):
    reproduce(lab, only="euc/n=8", seeds=[1])
    (line,) = read_lines(lab.results, "t")
    assert line["overrides"] == [["dim=8", "space=euclidean"]]
    assert line["metrics"] == {"ks/dist0": 0.481, "ks/p_max": 0.2405, "accuracy": 0.481}
    assert line["runs"] == lab.trained
    assert [entry["name"] for entry in line["data"]] == ["mnist", "omniglot"]
    assert {"key", "result_version", "commit", "device", "threads", "seconds", "official", "budget"} < line.keys()


def test_what_is_done_is_not_run_again(lab):
    reproduce(lab)
    before = (lab.results / "t" / "runs.jsonl").read_bytes()
    assert reproduce(lab) == 0
    assert len(lab.trained) == 8
    assert (lab.results / "t" / "runs.jsonl").read_bytes() == before


def test_a_fresh_clone_without_runs_knows_what_is_done(lab):
    reproduce(lab, only="hyp")
    shutil.rmtree(lab.root / "runs")
    table = lab.table()
    planned = plan(table, results=lab.results)
    assert {item.cell.row.name for item in planned if item.state == "done"} == {"hyp", "control"}
    assert {item.cell.row.name for item in planned if item.state == "absent"} == {"euc"}


def test_the_plan_tells_finished_begun_and_absent_runs(lab):
    table = lab.table(
        rows={"hyp": {"metric": "ks/dist0"}},
        seeds=1,
        columns={"2": ["dim=2"], "8": ["dim=8"], "16": ["dim=16"]},
        compare=[],
    )
    begun, finished, _ = plan(table, results=lab.results)
    begun.directories[0].mkdir(parents=True)
    lab.finish(finished.directories[0], lab.compose(list(finished.overrides[0])))
    assert states(lab, table) == ["unfinished", "run-finished", "absent"]


def test_the_plan_goes_seed_by_seed(lab):
    assert [item.seed for item in plan(lab.table(), results=lab.results)] == [0] * 6 + [1] * 6
    reproduce(lab)
    assert [words[-1] for words in lab.words] == ["seed=0"] * 4 + ["seed=1"] * 4


def test_planning_trains_evaluates_and_writes_nothing(lab):
    plan(lab.table(), results=lab.results)
    assert (lab.trained, lab.evaluated, list(lab.root.iterdir())) == ([], [], [])


def test_a_finished_run_is_evaluated_without_training(lab):
    reproduce(lab)
    shutil.rmtree(lab.results)
    assert reproduce(lab) == 0
    assert len(lab.trained) == 8
    assert len(read_lines(lab.results, "t")) == 12


def test_cells_of_one_key_are_evaluated_once(lab):
    reproduce(lab)
    assert len(lab.evaluated) == 8


def test_another_config_makes_old_lines_history(lab):
    reproduce(lab, seeds=[0])
    changed = lab.table(common=["epochs=20"])
    assert set(states(lab, changed, seeds=[0])) == {"absent"}
    reproduce(lab, changed, seeds=[0])
    assert len(read_lines(lab.results, "t")) == 12
    assert set(states(lab, seeds=[0])) == {"done"}


def test_a_renamed_row_keeps_its_results(lab):
    reproduce(lab)
    renamed = lab.table(rows={"d0": {"metric": "ks/dist0"}}, compare=[])
    assert set(states(lab, renamed)) == {"done"}


def test_fresh_sets_aside_and_runs_again(lab):
    reproduce(lab, only="hyp/n=2", seeds=[0])
    assert reproduce(lab, only="hyp/n=2", seeds=[0], fresh=True) == 0
    assert len(lab.trained) == 2
    assert lab.trained[0] == lab.trained[1]
    assert len(read_lines(lab.results, "t")) == 2
    assert len(list((lab.root / "runs").rglob("superseded*"))) == 1


def test_a_failed_run_does_not_stop_the_others_and_gives_the_exit_code(lab, capsys):
    lab.fails["dim=8"] = 3
    assert reproduce(lab) == 3
    assert len(lab.trained) == 8
    assert {line["column"] for line in read_lines(lab.results, "t")} == {"n=2"}
    assert "written: " in capsys.readouterr().out
    lab.fails.clear()
    assert reproduce(lab) == 0
    assert len(lab.trained) == 12
    assert states(lab) == ["done"] * 12


@pytest.mark.parametrize("how", ["code", "exit"])
def test_a_signal_stops_the_rest_and_keeps_what_was_finished(lab, how):
    if how == "code":
        lab.fails["space=euclidean"] = 143
    else:
        lab.raises["space=euclidean"] = SystemExit(143)
    assert reproduce(lab) == 143
    assert len(lab.words) == 3  # two hyperbolic runs of seed 0, then the one that was stopped
    assert {line["row"] for line in read_lines(lab.results, "t")} == {"hyp", "control"}


def test_a_failed_evaluation_leaves_its_cells_open_and_the_others_done(lab, monkeypatch, capsys):
    def evaluate(run_dirs, evaluator, **machine):
        if len(lab.evaluated) == 1:
            lab.evaluated.append(())
            raise UserError("dataset", "omniglot", "not found; download it")
        return lab.evaluate(run_dirs, evaluator, **machine)

    monkeypatch.setattr(hypimg.run, "evaluate", evaluate)
    assert reproduce(lab, only="hyp") == 2
    assert "hyp/n=8 seed 0: dataset=omniglot: not found" in capsys.readouterr().out
    assert states(lab, only="hyp") == ["done", "run-finished", "done", "done"]


def test_our_bug_in_an_evaluation_shows_its_traceback_and_goes_on(lab, monkeypatch, capsys):
    monkeypatch.setattr(hypimg.run, "evaluate", lambda *args, **machine: 1 / 0)
    assert reproduce(lab, only="hyp/n=2") == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_metric_that_the_evaluation_lacks_is_told_and_the_cell_is_done(lab, capsys):
    lab.undefined = {"ks/dist0"}
    assert reproduce(lab, only="hyp/n=2", seeds=[0]) == 0
    assert "no metric ks/dist0" in capsys.readouterr().out
    assert states(lab, only="hyp/n=2", seeds=[0]) == ["done"]


def test_a_cell_without_evaluator_takes_the_runs_own_metrics(lab):
    table = lab.table(
        evaluator=None, rows={"val": {"metric": "val/accuracy"}, "time": {"metric": "seconds"}}, compare=[]
    )
    reproduce(lab, table, seeds=[0])
    assert lab.evaluated == []
    assert read_lines(lab.results, "t")[0]["metrics"] == {"val/accuracy": 0.52, "seconds": 20.0, "epochs": 10}


def test_a_cell_of_two_runs_waits_for_both(lab):
    rows = {"fused": {"metric": "accuracy", "evaluator": "fusion", "runs": [["space=euclidean"], ["space=poincare"]]}}
    table = lab.table(rows=rows, compare=[], seeds=1)
    lab.fails["space=poincare"] = 2
    assert reproduce(lab, table) == 2
    assert read_lines(lab.results, "t") == []
    lab.fails.clear()
    assert reproduce(lab, table) == 0
    assert [len(line["runs"]) for line in read_lines(lab.results, "t")] == [2, 2]
    assert read_lines(lab.results, "t")[0]["seconds"] == 40.0
    assert len(lab.trained) == 6  # the Euclidean ones once


def test_runs_that_tables_share_are_trained_once(lab):
    reproduce(lab)
    other = lab.table(rows={"hyp": {"metric": "accuracy"}}, compare=[])
    runner.reproduce(other, results=lab.root / "elsewhere")
    assert len(lab.trained) == 8


def test_jobs_go_through_joblib_in_batches(lab, monkeypatch):
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_joblib_launcher", SimpleNamespace())
    reproduce(lab, jobs=2, seeds=range(3))
    assert lab.launchers == [["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]] * 2  # 8 runs, then 4
    assert len(lab.trained) == 12


def test_another_launcher_gets_all_runs_at_once(lab):
    reproduce(lab, launcher=["hydra/launcher=submitit_slurm"])
    assert lab.launchers == [["hydra/launcher=submitit_slurm"]]
    with pytest.raises(UserError, match="jobs=2"):
        reproduce(lab, jobs=2, launcher=["hydra/launcher=submitit_slurm"])


def test_jobs_without_the_launcher_say_what_to_install(lab, monkeypatch):
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_joblib_launcher", None)
    with pytest.raises(UserError, match=r"pip install 'hypimg\[launch\]'"):
        reproduce(lab, jobs=2)


def test_settings_reach_the_runs_and_leave_the_key(lab):
    reproduce(lab, only="hyp/n=2", seeds=[0], settings=["device=cpu", "data_dir=/elsewhere"])
    assert lab.words == [["dim=2", "seed=0", "device=cpu", "data_dir=/elsewhere"]]
    assert states(lab, only="hyp/n=2", seeds=[0]) == ["done"]


@pytest.mark.parametrize("setting", ["epochs=1", "dim=4", "seed=3"])
def test_a_setting_that_would_change_results_is_refused(lab, setting):
    with pytest.raises(UserError, match=setting):
        reproduce(lab, settings=[setting])
    assert lab.trained == []


def test_the_expected_time_is_what_earlier_runs_of_the_cell_the_row_the_column_took(lab):
    reproduce(lab, only="hyp", seeds=[0])  # n=2: 20 s, n=8: 80 s
    seconds = {item.cell.name: item.seconds for item in plan(lab.table(), seeds=[1], results=lab.results)}
    assert seconds == {
        "hyp/n=2": 20,
        "hyp/n=8": 80,
        "euc/n=2": 20,
        "euc/n=8": 80,
        "control/n=2": 20,
        "control/n=8": 80,
    }
    text = describe(lab.table(), plan(lab.table(), results=lab.results), "paper")
    assert "4 of 12 done; 6 runs to train, about 5.0 min" in text  # three times 20 + 80


def test_the_plan_is_shown_with_what_is_done_and_left(lab):
    table = lab.table()
    assert "time unknown" in describe(table, plan(table, results=lab.results), "paper")
    reproduce(lab, seeds=[0])
    text = describe(table, plan(table, results=lab.results), "paper", jobs=2)
    assert "hyp      1/2  1/2" in text
    assert "6 of 12 done; 4 runs to train, about" in text
    reproduce(lab)
    assert describe(table, plan(table, results=lab.results), "paper").endswith("12 of 12 done; nothing to train")


def test_figures_are_drawn_from_the_scores_of_the_lowest_finished_seed(lab, monkeypatch, capsys):
    drawn = {}

    def draw(scores, out_dir):
        drawn.update(scores)
        return [out_dir / "fig.pdf"]

    monkeypatch.setitem(sys.modules, "hypimg.figures.fig", SimpleNamespace(draw=draw))
    table = lab.table(figures=["fig"])
    planned = plan(table, results=lab.results)
    assert runner.draw_figures(table, planned, results=lab.results) == 2
    assert "to make them: python scripts/reproduce.py t" in capsys.readouterr().out
    reproduce(lab, table)
    assert set(drawn) == {(row, column) for row in ("hyp", "euc", "control") for column in ("n=2", "n=8")}
    assert drawn["hyp", "n=2"].parent == planned[0].directories[0]
    assert f"drawn: {lab.results / 't' / 'fig.pdf'}" in capsys.readouterr().out


def test_scores_that_an_evaluation_stored_are_drawn_without_evaluating_again(lab, monkeypatch):
    drawn = {}
    monkeypatch.setitem(
        sys.modules, "hypimg.figures.fig", SimpleNamespace(draw=lambda s, out_dir: drawn.update(s) or [])
    )
    table = lab.table(figures=["fig"], seeds=1, rows={"hyp": {"metric": "ks/dist0"}}, compare=[])
    reproduce(lab, table)
    asked = len(lab.evaluated)
    planned = plan(table, results=lab.results)
    stored = planned[0].directories[0] / "evaluations"
    stored.mkdir()
    for name, part in (("other", "kmnist"), ("wanted", "omniglot")):
        record = {"runs": list(planned[0].run_keys), "evaluator": {"_target_": "hypimg.Ood", "outliers": part}}
        (stored / f"{name}.json").write_text(json.dumps(record))
        (stored / f"{name}.npz").write_bytes(b"")
    assert runner.draw_figures(table, planned, results=lab.results) == 0
    assert drawn["hyp", "n=2"] == stored / "wanted.npz"
    assert len(lab.evaluated) == asked + 1  # n=8, which stored nothing


def test_a_figure_that_lacks_its_cells_is_told_and_the_others_are_drawn(lab, monkeypatch, capsys):
    def lacks(scores, out_dir):
        raise UserError("figure", "one", "no scores")

    monkeypatch.setitem(sys.modules, "hypimg.figures.one", SimpleNamespace(draw=lacks))
    monkeypatch.setitem(sys.modules, "hypimg.figures.two", SimpleNamespace(draw=lambda s, out_dir: [out_dir / "two"]))
    table = lab.table(figures=["one", "two"])
    assert reproduce(lab, table) == 0
    assert "not drawn: figure=one: no scores\ndrawn: " in capsys.readouterr().out
    assert runner.draw_figures(table, plan(table, results=lab.results), results=lab.results) == 2


def test_an_unknown_figure_is_named(lab):
    with pytest.raises(UserError, match=r"figure=fgi.*did you mean fig"):
        runner.draw_figures(lab.table(figures=["fig"]), [], figures=["fgi"], results=lab.results)
