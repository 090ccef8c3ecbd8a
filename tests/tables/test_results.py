"""Lines and keys: what is known of a table without runs and without data."""

from __future__ import annotations

import fcntl
import json
import math
import threading

import pytest

from hypimg.errors import UserError
from hypimg.tables.results import append_line, by_key, identify, later_wins, read_lines, run_overrides


def line(key="k", seed=0, **metrics):
    return {"key": key, "seed": seed, "metrics": metrics or {"a": 1.0}, "runs": ["r"]}


def test_lines_come_back_as_they_were_appended(tmp_path):
    append_line(tmp_path, "t", line("a", 0, x=0.1))
    append_line(tmp_path, "t", line("b", 1, x=1 / 3))
    assert read_lines(tmp_path, "t") == [line("a", 0, x=0.1), line("b", 1, x=1 / 3)]
    assert read_lines(tmp_path, "other") == []


def test_a_metric_that_is_not_finite_is_written_as_null(tmp_path):
    append_line(tmp_path, "t", line(x=math.nan, y=math.inf, z=1.0))
    assert read_lines(tmp_path, "t")[0]["metrics"] == {"x": None, "y": None, "z": 1.0}


@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_a_torn_last_line_is_passed_over_and_cut_off_by_the_next(tmp_path, cut):
    append_line(tmp_path, "t", line("a"))
    append_line(tmp_path, "t", line("b"))
    path = tmp_path / "t" / "runs.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    whole = read_lines(tmp_path, "t")
    assert [entry["key"] for entry in whole] == (["a", "b"] if cut == 1 else ["a"])
    append_line(tmp_path, "t", line("c"))
    assert read_lines(tmp_path, "t") == [*whole, line("c")]
    assert path.read_bytes().endswith(b"\n")


def test_a_damaged_line_before_the_last_is_named(tmp_path):
    append_line(tmp_path, "t", line())
    path = tmp_path / "t" / "runs.jsonl"
    path.write_text("<<<<<<< HEAD\n" + path.read_text())
    with pytest.raises(UserError, match=r"runs\.jsonl=line 1"):
        read_lines(tmp_path, "t")
    path.write_text('{"key": "a"}\n' + path.read_text())
    with pytest.raises(UserError, match="line 1"):
        read_lines(tmp_path, "t")


def test_appending_waits_for_another_process_that_writes(tmp_path):
    append_line(tmp_path, "t", line("a"))
    with open(tmp_path / "t" / "runs.jsonl", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = threading.Thread(target=append_line, args=(tmp_path, "t", line("b")))
        waiting.start()
        waiting.join(0.2)
        assert [entry["key"] for entry in read_lines(tmp_path, "t")] == ["a"]
    waiting.join()
    assert [entry["key"] for entry in read_lines(tmp_path, "t")] == ["a", "b"]


def test_the_newest_line_of_a_key_counts():
    assert by_key([line("a", x=1.0), line("b"), line("a", x=2.0)])["a"]["metrics"] == {"x": 2.0}


def test_the_later_of_two_words_for_one_key_stays():
    assert later_wins(["c=1", "dim=2", "c=0.1"]) == ("dim=2", "c=0.1")


def test_a_budgets_words_come_last(lab):
    table = lab.table(common=["epochs=200"])
    assert run_overrides(table, table.cell("hyp", "n=2"), "cpu") == (("dim=2", "epochs=1"),)
    with pytest.raises(UserError, match=r"budget=cpuu.*did you mean cpu"):
        run_overrides(table, table.cell("hyp", "n=2"), "cpuu")


def test_cells_that_ask_the_same_of_the_same_runs_share_a_key(lab):
    table = lab.table()
    identity = identify(table, "paper")
    one, control = (identity(table.cell(row, "n=2"), 0) for row in ("hyp", "control"))
    assert one == control
    others = [(("euc", "n=2"), 0), (("hyp", "n=8"), 0), (("hyp", "n=2"), 1)]
    assert len({one.key, *(identity(table.cell(*place), seed).key for place, seed in others)}) == 4
    assert identify(table, "cpu")(table.cell("hyp", "n=2"), 0).key != one.key


def test_the_evaluator_and_its_options_are_part_of_the_key(lab):
    keys = set()
    for evaluator in ("ood", None, {"name": "ood", "outliers": "kmnist"}, "fusion"):
        table = lab.table(evaluator=evaluator)
        keys.add(identify(table, "paper")(table.cell("hyp", "n=2"), 0).key)
    assert len(keys) == 4


@pytest.mark.parametrize(
    "evaluator, message", [("od", "did you mean ood"), ({"name": "ood", "outlier": 1}, "outliers")]
)
def test_an_unknown_evaluator_or_option_is_named(lab, evaluator, message):
    table = lab.table(evaluator=evaluator)
    with pytest.raises(UserError, match=message):
        identify(table, "paper")(table.cell("hyp", "n=2"), 0)


def test_each_override_list_is_composed_once_for_all_seeds_and_cells(lab):
    table = lab.table(seeds=50)
    identity = identify(table, "paper")
    keys = {identity(cell, seed).run_keys for seed in table.seeds for cell in table.cells}
    assert (len(keys), lab.composed) == (200, 4)


def test_the_keys_seed_is_that_of_the_composed_word(lab):
    table = lab.table()
    (key,) = identify(table, "paper")(table.cell("euc", "n=8"), 7).run_keys
    assert key == lab.run_key(lab.compose(["dim=8", "space=euclidean", "seed=7"]))


def test_lines_are_plain_json(tmp_path):
    append_line(tmp_path, "t", line() | {"label": "‖x‖"})
    raw = (tmp_path / "t" / "runs.jsonl").read_text()
    assert json.loads(raw)["label"] == "‖x‖"
    assert raw.count("\n") == 1
