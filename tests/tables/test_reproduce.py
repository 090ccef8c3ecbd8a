"""The command, and one small table through the real configs, trainer and evaluators."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from hypimg.tables import render, runner
from hypimg.tables.manifest import load, names, parse
from hypimg.tables.plan import plan
from hypimg.tables.results import RESULTS, read_lines

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("reproduce_script", ROOT / "scripts" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help_teaches_and_lists_the_tables(script, capsys):
    assert script.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {word}=" in text for word in script.OPTIONS)
    assert all(name in text for name in names())
    assert script.main([]) == 0


def test_empty_words_of_the_makefile_mean_the_default(script):
    words = [
        "hie_table3",
        "budget=",
        "seeds=",
        "only=",
        "jobs=2",
        "device=",
        "fresh=",
        "data_dir=x",
        "hydra/launcher=y",
    ]
    table, options, settings, launcher = script.parse(words)
    assert table == "hie_table3"
    assert options == {**script.OPTIONS, "jobs": "2"}
    assert (settings, launcher) == (["data_dir=x"], ["hydra/launcher=y"])


def test_only_may_hold_an_equals_sign_and_the_device_goes_to_the_runs(script):
    _, options, settings, _ = script.parse(["hie_table3", "only=hyperbolic/n=8", "device=cpu"])
    assert options["only"] == "hyperbolic/n=8"
    assert settings == ["device=cpu"]


def test_a_comma_makes_one_number_a_seed(script):
    assert [script._seeds(text) for text in ("3", "0,", "4,", "0,3", "")] == [(0, 1, 2), (0,), (4,), (0, 3), None]


@pytest.mark.parametrize(
    "words, message",
    [
        (["hie_tabel3"], "did you mean hie_table3"),
        (["plan=1"], "name one: birds2010, cifar_fs"),
        (["hie_table3", "hie_table4"], "only one table"),
        (["hie_table3", "budget=cpuu"], "did you mean cpu"),
        (["hie_table3", "seeds=0"], "a count must be ≥ 1; the seed 0 alone is seeds=0, with a comma"),
        (["hie_table3", "seeds=1.5"], "whole number"),
        (["hie_table3", "jobs=0"], "whole number"),
        (["hie_table3", "fresh=yes"], "must be 0 or 1"),
        (["hie_table3", "plan=1", "only=hyperbolic/n=9"], "did you mean hyperbolic/n=8"),
        (["hie_table3", "plan=1", "seed=3"], "seeds="),
        (["hie_table3", "plan=1", "dta_dir=x"], "did you mean data_dir"),
        (["hie_table3", "plan=1", "olny=x"], "no option (budget, seeds, only"),
        (["hie_table3", "plan=1", "olny=x"], "did you mean only"),
        (["hie_table3", "plan=1", "trainer.epochs=1"], "would change results"),
        (["hie_table3", "figures_only=hie_fig9"], "did you mean hie_fig"),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(script, capsys, words, message):
    assert script.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_plan_shows_and_runs_nothing(script, capsys, tmp_path):
    assert script.main(["hie_table3", "plan=1", "seeds=2", "only=*/n=8", f"runs_dir={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert "budget paper, seeds 0 1" in text
    assert " of 18 done" in text
    assert list(tmp_path.iterdir()) == []


def test_committed_lines_belong_to_a_manifest():
    for path in RESULTS.glob("*/runs.jsonl"):
        assert path.parent.name in names()
        assert read_lines(RESULTS, path.parent.name)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/runs.jsonl")))
def test_committed_tables_are_rendered_from_their_lines(name):
    for budget in sorted({line["budget"] for line in read_lines(RESULTS, name)}):
        stale = render.write(load(name), budget=budget, check=True)
        assert stale == [], f"python scripts/reproduce.py {name} budget={budget} render=1"


def test_a_small_table_without_runs_for_real(tmp_path, capsys):
    table = parse(
        "spaces",
        {
            "title": "Spaces",
            "source": "ours",
            "metric": {"name": "delta_rel", "spread": "std"},
            "runs": [],
            "evaluator": {"name": "toy_space", "points": 10},
            "seeds": 3,
            "columns": {"sphere": {"evaluator": {"space": "sphere"}}, "wrong": {"evaluator": {"space": "torus"}}},
            "rows": {"one": {}, "all": {"evaluator": {"base": "all"}}},
        },
    )
    folders = [f"{name}={tmp_path / name}" for name in ("runs_dir", "data_dir", "store_dir")]
    settings = [*folders, "device=cpu", "threads=1"]
    results = tmp_path / "results"
    assert runner.reproduce(table, settings=settings, results=results) == 2
    out = capsys.readouterr().out
    assert "4 cells to evaluate (12 evaluations)" in out
    assert out.count("\none/wrong: evaluator.space=torus: ") == 1
    lines = read_lines(results, "spaces")
    assert [(line["row"], line["seed"]) for line in lines] == [(r, s) for s in range(3) for r in ("one", "all")]
    assert all(0 < line["metrics"]["delta_rel"] <= 1 and line["data"] == [] and line["official"] for line in lines)
    assert len(list((tmp_path / "runs_dir" / "evaluations").glob("*.npz"))) == 6
    text = (results / "spaces" / "table.md").read_text()
    assert "mean ± standard deviation over 3 seeds" in text and "not run" in text

    shutil.rmtree(tmp_path / "runs_dir")
    assert runner.reproduce(table, only="*/sphere", settings=settings, results=results) == 0
    assert "6 of 6 done; nothing to evaluate" in capsys.readouterr().out
    assert not (tmp_path / "runs_dir").exists()


def test_figure_3_is_drawn_by_its_command(script, capsys, tmp_path):
    assert script.main(["hie_fig3", "plan=1"]) == 0
    assert "figures alone, nothing to run" in capsys.readouterr().out
    assert runner.reproduce(load("hie_fig3"), results=tmp_path) == 0
    assert sorted(path.name for path in (tmp_path / "hie_fig3").iterdir()) == [
        "hie_fig3.pdf",
        "hie_fig3.png",
        "hie_fig3.txt",
    ]


def test_a_small_table_for_real(tmp_path, capsys):
    table = parse(
        "digits",
        {
            "title": "Digits",
            "source": "ours",
            "common": ["experiment=digits_disk", "trainer.epochs=1"],
            "evaluator": "ood_blurred",
            "seeds": 1,
            "columns": {"n=4": ["dim=4"]},  # points of the plane would also be drawn
            "rows": {
                "hyp": {"metric": "ks/dist0", "paper": [0.9]},
                "euc": {"metric": "ks/p_max", "overrides": ["space=euclidean"]},
                "val": {"metric": "val/accuracy", "evaluator": None},
            },
            "compare": [["hyp", "euc"]],
        },
    )
    folders = [f"{name}={tmp_path / name}" for name in ("runs_dir", "data_dir", "store_dir")]
    settings = [*folders, "device=cpu", "threads=1", "logger=csv"]
    results = tmp_path / "results"
    assert runner.reproduce(table, settings=settings, results=results) == 0
    assert "2 runs to train" in capsys.readouterr().out
    lines = read_lines(results, "digits")
    assert len(lines) == 3
    assert all(line["data"][0]["name"] == "digits" and line["metrics"] for line in lines)
    assert "hyp − euc" in (results / "digits" / "table.md").read_text()

    before = (results / "digits" / "runs.jsonl").read_bytes()
    assert runner.reproduce(table, settings=settings, results=results) == 0
    assert "3 of 3 done; nothing to train" in capsys.readouterr().out
    assert (results / "digits" / "runs.jsonl").read_bytes() == before

    shutil.rmtree(tmp_path / "runs_dir")
    assert {item.state for item in plan(table, settings=settings, results=results)} == {"done"}
