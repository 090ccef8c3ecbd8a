"""What a reader sees: every number with its interval, its n, the paper's beside it, and what was not run."""

from __future__ import annotations

import csv
import io
import json
import random

import pytest

from hypimg.errors import UserError
from hypimg.tables import render as render_module
from hypimg.tables import runner
from hypimg.tables.as_csv import escape_csv
from hypimg.tables.as_latex import escape_latex
from hypimg.tables.as_markdown import escape_markdown
from hypimg.tables.collect import collect
from hypimg.tables.render import readme_section, render, write
from hypimg.tables.results import append_line, identify, read_lines
from hypimg.tables.wording import number, trainings


def fill(lab, table, values, budget="paper", **said):
    """Append a line per (row, column): its metric's values, seed by seed."""
    identity = identify(table, budget)
    for name, numbers in values.items():
        cell = table.cell(*name.split("/"))
        for seed, value in enumerate(numbers):
            known = identity(cell, seed)
            line = {"row": cell.row.name, "column": cell.column.name, "seed": seed, "budget": budget, "key": known.key}
            line |= {"runs": list(known.run_keys), "metrics": {cell.measure.name: value}, "seconds": 60.0}
            line |= {"device": "CPU", "threads": 1, "commit": "abc", "official": True, "data": []}
            append_line(lab.results, table.name, line | said)


def markdown(lab, table, budget="paper"):
    files = render(table, lab.results, budget)
    return next(text for name, text in files.items() if name.endswith(".md"))


def records(lab, table, budget="paper"):
    files = render(table, lab.results, budget)
    text = next(text for name, text in files.items() if name.endswith(".csv"))
    return {f"{r['row']}/{r['column']}": r for r in csv.DictReader(io.StringIO(text))}


def one_row(lab, **changes):
    row = {"metric": "ks/dist0", "paper": [0.868, 0.832]}
    return lab.table(**({"rows": {"hyp": row}, "compare": [], "seeds": 5} | changes))


def test_the_whole_table_reads_as_it_should(lab):
    table = lab.table(
        seeds=3,
        rows={"hyp": {"label": "d(x, 0)", "metric": "ks/dist0", "paper": [0.87, 0.9]}},
        compare=[],
        notes=["c is ours."],
    )
    fill(lab, table, {"hyp/n=2": [0.90, 0.91, 0.92]})
    assert markdown(lab, table) == (
        "**KS distance** (a paper, Table 3)\n"
        "\n"
        "| score   | n=2                                | n=8                  |\n"
        "| ------- | ---------------------------------- | -------------------- |\n"
        "| d(x, 0) | 0.910 ± 0.025 (paper 0.87, +0.040) | not run (paper 0.90) |\n"
        "\n"
        "KS statistic; higher is better. Ours: mean ± 95 % t-interval over 3 seeds (0 to 2). The paper prints no "
        "interval. Budget paper: the paper's schedule as far as it is known. 3 trainings on CPU, 1 thread: 60 s each, "
        "3.0 min in all. Commit abc.\n"
        "\n"
        "**Against the paper.** Does its number lie where one more training of ours would be expected? 95 % prediction "
        "interval, ± its half width; then ours − paper in units of our standard deviation s over seeds. Below 3 seeds "
        "nothing is decided.\n"
        "\n"
        "| score   | n=2                     | n=8 |\n"
        "| ------- | ----------------------- | --- |\n"
        "| d(x, 0) | inside ± 0.050 (+4.0 s) | –   |\n"
        "\n"
        "Not run yet; to run:\n"
        "\n"
        "    python scripts/reproduce.py t 'only=hyp/n=8'\n"
        "\n"
        "- c is ours.\n"
    )


def test_rendering_gives_the_same_bytes_whatever_the_order_of_the_lines(lab):
    table = lab.table(seeds=5)
    runner.reproduce(table, results=lab.results)
    before = render(table, lab.results)
    path = lab.results / "t" / "runs.jsonl"
    lines = path.read_text().splitlines()
    random.Random(0).shuffle(lines)
    path.write_text("\n".join(lines) + "\n")
    assert render(table, lab.results) == before


def test_rendering_trains_and_evaluates_nothing(lab):
    render(lab.table(), lab.results)
    assert (lab.trained, lab.evaluated) == ([], [])
    assert not lab.results.exists()


def test_lines_with_another_key_are_not_rendered(lab):
    fill(lab, one_row(lab, common=["epochs=20"]), {"hyp/n=2": [0.1, 0.1, 0.1]})
    assert "not run" in markdown(lab, one_row(lab))
    assert records(lab, one_row(lab))["hyp/n=2"]["seeds"] == "0"


def test_seeds_beyond_the_manifests_count_too(lab):
    fill(lab, one_row(lab, seeds=7), {"hyp/n=2": [0.1] * 7})
    assert records(lab, one_row(lab, seeds=2))["hyp/n=2"]["seeds"] == "7"


def test_a_cell_with_fewer_seeds_says_so(lab):
    fill(lab, one_row(lab), {"hyp/n=2": [0.90, 0.91, 0.92, 0.93, 0.94], "hyp/n=8": [0.8, 0.9]})
    text = markdown(lab, one_row(lab))
    assert "over 5 seeds" in text
    assert "0.850 ± 0.635 (2 seeds) (paper 0.832" in text
    assert "undecided ± 1.100" in text


def test_one_seed_has_no_interval_and_decides_nothing(lab):
    fill(lab, one_row(lab), {"hyp/n=2": [0.9], "hyp/n=8": [0.9]})
    text = markdown(lab, one_row(lab))
    assert "0.900 (paper 0.868, +0.032)" in text
    assert "Ours: 1 seed (0)." in text
    assert "undecided |" in text


def test_another_budget_shows_the_papers_number_without_difference_or_verdict(lab):
    table = one_row(lab)
    fill(lab, table, {"hyp/n=2": [0.90, 0.91, 0.92]}, budget="cpu")
    files = render(table, lab.results, "cpu")
    assert list(files) == ["table_cpu.md", "table_cpu.tex", "table_cpu.csv"]
    text = files["table_cpu.md"]
    assert "0.910 ± 0.025 (paper 0.868) |" in text
    assert "Budget cpu (epochs=1): not the paper's schedule" in text
    assert "Against the paper" not in text
    assert records(lab, table, "cpu")["hyp/n=2"]["verdict"] == ""
    assert "not run" in markdown(lab, table)
    assert "python scripts/reproduce.py t budget=cpu 'only=hyp/n=8'" in text


def test_controls_of_ours_are_marked_beside_rows_of_the_paper(lab):
    runner.reproduce(lab.table(), results=lab.results)
    text = markdown(lab, lab.table())
    assert "| *ours:* control |" in text
    assert "| hyp " in text
    own = lab.table(rows={"a": {"ours": True, "metric": "ks/dist0"}}, compare=[])
    assert "*ours:*" not in markdown(lab, own)


def test_arms_are_compared_by_seed(lab):
    table = lab.table(seeds=3)
    fill(lab, table, {"hyp/n=2": [0.5, 0.6, 0.7], "euc/n=2": [0.4, 0.5, 0.5]})
    text = markdown(lab, table)
    assert "| hyp − euc | +0.133 ± 0.143 (3/3, p = 0.057) | –" in text


def test_columns_are_compared_by_seed_too(lab):
    columns = {"Euclidean": ["space=euclidean"], "hyperbolic": ["space=poincare"]}
    rows = {"rank-1": {"metric": "ks/dist0"}, "mAP": {"metric": "ks/p_max"}}
    table = lab.table(columns=columns, rows=rows, compare=[["hyperbolic", "Euclidean"]], seeds=3)
    runner.reproduce(table, results=lab.results)
    assert "| a − b  | hyperbolic − Euclidean" in markdown(lab, table)
    assert "| rank-1 | +0.100 ± 0.000 (3/3, p < 0.001)" in markdown(lab, table)


def test_data_that_are_not_the_authors_bytes_are_marked(lab):
    lab.official = False
    table = one_row(lab)
    runner.reproduce(table, results=lab.results, only="hyp/n=2")
    text = markdown(lab, table)
    assert " † (paper" in text
    assert "† saw other bytes than the authors publish: mnist (npz, digest mnist-dige), omniglot" in text
    assert "not run † " not in text
    assert records(lab, table)["hyp/n=2"]["official_data"] == "False"


def test_an_undefined_metric_is_neither_a_number_nor_not_run(lab):
    fill(lab, one_row(lab), {"hyp/n=2": [float("nan")] * 3, "hyp/n=8": [0.8, float("nan"), 0.9]})
    text = markdown(lab, one_row(lab))
    assert "undefined (paper 0.868)" in text
    assert "0.850 ± 0.635 (" in text
    assert records(lab, one_row(lab))["hyp/n=2"]["state"] == "run"


def test_a_cell_with_a_reason_shows_it_and_asks_for_nothing(lab):
    rows = {"hyp": {"metric": "ks/dist0", "cells": {"n=8": {"not_run": "withdrawn by its owners"}}}}
    table = one_row(lab, rows=rows)
    fill(lab, table, {"hyp/n=2": [0.5]})
    text = markdown(lab, table)
    assert "not run: withdrawn by its owners" in text
    assert "to run:" not in text


def test_open_cells_are_asked_for_in_as_few_commands_as_can_be(lab):
    table = lab.table()
    assert "\n    python scripts/reproduce.py t\n" in markdown(lab, table)
    fill(lab, table, {"hyp/n=2": [0.5]})
    text = markdown(lab, table)
    assert "    python scripts/reproduce.py t 'only=hyp/n=8'\n    python scripts/reproduce.py t 'only=euc/*'\n" in text


def test_what_one_evaluation_gives_is_asked_for_once(lab):
    evaluator = {"name": "ood", "outliers": "omniglot"}
    rows = {"a": {"metric": "ks/dist0"}, "b": {"metric": "ks/p_max"}, "c": {"evaluator": None, "metric": "accuracy"}}
    table = lab.table(rows=rows | {"d": rows["c"] | {"overrides": ["c=2"]}}, compare=[], evaluator=evaluator)
    fill(lab, table, {"d/n=2": [0.5]})
    asked = [line.partition("t ")[2] for line in markdown(lab, table).splitlines() if "reproduce.py" in line]
    assert asked == ["'only=a/*'", "'only=c/*'", "'only=d/n=8'"]
    columns = {name: [f"dim={name}"] for name in "123"}
    table = lab.table(columns=columns, rows={"a": {"metric": "ks/dist0"}}, compare=[])
    fill(lab, table, {"a/1": [0.5]})
    assert "'only=a/2,a/3'" in markdown(lab, table)


def test_a_caption_that_begins_with_a_symbol_keeps_it(lab):
    table = one_row(lab, metric={"name": "delta", "description": "δ_rel of all"})
    fill(lab, table, {"hyp/n=2": [0.5]})
    assert "\nδ_rel of all." in markdown(lab, table)
    assert escape_latex("Δδ") == r"\ensuremath{\Delta}\ensuremath{\delta}"


def test_a_quoted_column_has_one_number_of_digits(lab):
    columns = {"theory": {"quoted": True}, "estimate": {"overrides": ["dim=2"]}}
    rows = {"tree": {"paper": [0, 0.1]}, "disk": {"paper": [0, 0.18]}, "sphere": {"paper": [1, None]}}
    table = lab.table(columns=columns, rows=rows, metric="ks/dist0", compare=[])
    lines = [line.split("|")[1:4] for line in markdown(lab, table).splitlines() if line.startswith("|")][2:]
    assert [[cell.strip() for cell in line][1:] for line in lines] == [
        ["0", "not run (paper 0.1)"],
        ["0", "not run (paper 0.18)"],
        ["1", "not run"],
    ]


def test_scale_unit_and_direction_are_shown(lab):
    rows = {
        "acc": {"metric": {"name": "accuracy", "unit": "%", "scale": 100, "digits": 1}, "paper": [99, 99.5]},
        "time": {"metric": {"name": "seconds", "unit": "min", "scale": 1 / 60, "higher_is_better": False}},
    }
    table = one_row(lab, rows=rows)
    fill(lab, table, {"acc/n=2": [0.9, 0.92, 0.94], "time/n=8": [90.0, 90.0, 90.0]})
    text = markdown(lab, table)
    assert "| acc (%)" in text
    assert "92.0 ± 5.0 (paper 99.0, −7.0)" in text
    assert "| time (min) ↓ |" in text
    assert "1.500 ± 0.000" in text


def test_a_row_that_is_neither_better_high_nor_low_has_no_arrow(lab):
    table = one_row(lab, rows={"share": {"metric": {"name": "clipped/in", "higher_is_better": None}}})
    assert "| share |" in markdown(lab, table)


def test_a_change_row_is_the_relative_change_by_seed(lab):
    rows = {
        "new": {"metric": "time"},
        "old": {"metric": "time"},
        "change": {"change": ["new", "old"], "metric": {"unit": "%", "digits": 0}, "paper": [-23, -22]},
    }
    rows["old"]["overrides"] = ["space=euclidean"]
    table = one_row(lab, rows=rows)
    fill(lab, table, {"new/n=2": [80.0, 75.0, 85.0], "old/n=2": [100.0, 100.0, 100.0]})
    assert "| change (%) | −20 ± 12 (paper −23, +3)" in markdown(lab, table)


def test_the_table_stands_in_latex(lab):
    table = lab.table(seeds=3, title="50 % of $x_1$ & more")
    fill(lab, table, {"hyp/n=2": [0.90, 0.91, 0.92]})
    text = render(table, lab.results)["table.tex"]
    assert r"hyp & 0.910 \ensuremath{\pm} 0.025 & not run \\" in text
    assert r"\quad paper & 0.52 & 0.90 \\" in text
    assert r"control (ours) & undefined & not run \\" in text
    assert r"\caption{50 \% of \$x\_1\$ \& more (a paper, Table 3)." in text
    assert text.count("{") == text.count("}")
    assert text.startswith("% needs \\usepackage{booktabs}\n\\begin{table}\n")


def test_the_csv_has_every_number_in_full(lab):
    fill(lab, one_row(lab), {"hyp/n=2": [1 / 3, 2 / 3, 1.0]})
    record = records(lab, one_row(lab))["hyp/n=2"]
    assert float(record["ours_mean"]) == pytest.approx(2 / 3, rel=1e-9)
    assert float(record["ours_std"]) == pytest.approx(1 / 3, rel=1e-9)
    assert (record["seeds"], record["paper"], record["verdict"], record["kind"]) == (
        "3",
        "0.868",
        "inside",
        "reproduced",
    )


def test_text_that_a_form_would_act_on_is_quoted():
    assert escape_csv("=cmd|' /C calc'!A0") == "'=cmd|' /C calc'!A0"
    assert [escape_csv(text) for text in ("@x", "+x", "-x", "\tx", "-1.5", "+2")] == [
        "'@x",
        "'+x",
        "'-x",
        "'\tx",
        "-1.5",
        "+2",
    ]
    assert escape_latex(r"a_b % & # $ { } ~ ^ \ ‖ δ").count("\\") == 14
    assert escape_markdown("Baseline* | [1] <b> `x`") == r"Baseline\* \| \[1\] \<b> \`x\`"


def test_a_label_with_signs_keeps_the_shape_of_the_markdown_table(lab):
    table = one_row(lab, rows={"hyp": {"label": "a | b", "metric": "ks/dist0"}})
    lines = [line for line in markdown(lab, table).splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in lines} == {4}


@pytest.mark.parametrize("value, digits, sign, text", [(-0.0004, 3, True, "+0.000"), (-0.0004, 3, False, "0.000")])
def test_zero_has_no_minus(value, digits, sign, text):
    assert number(value, digits, sign) == text


def test_write_renews_what_is_stale_and_check_only_tells(lab):
    table = one_row(lab)
    names = ["table.md", "table.tex", "table.csv"]
    assert [path.name for path in write(table, lab.results, check=True)] == names
    assert not (lab.results / "t").exists()
    assert [path.name for path in write(table, lab.results)] == names
    assert write(table, lab.results) == []
    (lab.results / "t" / "table.md").write_text("0.999")
    assert [path.name for path in write(table, lab.results, check=True)] == ["table.md"]


def test_the_interval_within_one_seed_stands_in_brackets(lab):
    metric = {
        "name": "ks/dist0",
        "scale": 100,
        "digits": 1,
        "within": "width",
        "within_interval": "interval over episodes",
    }
    table = lab.table(metric=metric, rows={"a": {}}, columns={"x": []}, compare=[], seeds=3)
    fill(lab, table, {"a/x": [0.5, 0.6, 0.7]})
    lines = read_lines(lab.results, table.name)
    path = lab.results / table.name / "runs.jsonl"
    widths = [
        line | {"metrics": line["metrics"] | {"width": w}} for line, w in zip(lines, (0.01, 0.02, 0.03), strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in widths))
    text = markdown(lab, table)
    assert r"60.0 ± 24.8 \[± 2.0\]" in text and "in brackets the interval over episodes" in text
    assert float(records(lab, table)["a/x"]["ours_within"]) == pytest.approx(2.0)


def test_a_readme_section_of_another_budget_has_its_own_marker(lab, tmp_path):
    table, readme = lab.table(), tmp_path / "README.md"
    readme.write_text(f"<!-- results:{table.name} budget=cpu -->\nold\n<!-- /results -->\n")
    write(table, lab.results, "paper", readme)
    assert "old" in readme.read_text()
    write(table, lab.results, "cpu", readme)
    assert "old" not in readme.read_text() and "Budget cpu" in readme.read_text()


def test_a_readme_section_is_renewed_between_its_markers_alone(lab, tmp_path):
    readme = tmp_path / "README.md"
    text = (
        "above\n<!-- results:t -->\n{}<!-- /results -->\nbetween\n<!-- results:u -->\nkeep\n<!-- /results -->\nbelow\n"
    )
    readme.write_text(text.format(r"old \1"))
    assert not readme_section(readme, "t", "new\n", check=True)
    assert readme.read_text() == text.format(r"old \1")
    assert not readme_section(readme, "t", r"\g<0> new" + "\n")
    assert readme.read_text() == text.format("\\g<0> new\n")
    assert readme_section(readme, "t", r"\g<0> new" + "\n", check=True)
    assert readme_section(readme, "other", "x")
    readme.write_text("<!-- results:t -->\nno end")
    with pytest.raises(UserError, match=r"no closing <!-- /results -->"):
        readme_section(readme, "t", "x")


def test_only_the_papers_budget_goes_into_the_readme(lab, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:t -->\n<!-- /results -->\n")
    write(one_row(lab), lab.results, "cpu", readme)
    assert readme.read_text() == "<!-- results:t -->\n<!-- /results -->\n"
    assert readme in write(one_row(lab), lab.results, "paper", readme)
    assert "**KS distance**" in readme.read_text()


def test_a_run_ends_with_files_that_are_not_stale(lab):
    table = lab.table()
    runner.reproduce(table, results=lab.results)
    assert render_module.write(table, lab.results, check=True) == []
    assert len(read_lines(lab.results, "t")) == 12
    assert collect(table, lab.results).shown("hyp", "n=2").estimate.n == 2


def test_a_budget_that_trains_as_the_paper_did_bears_verdicts(lab):
    table = one_row(lab, budgets={"paper": [], "cpu": []})
    fill(lab, table, {"hyp/n=2": [0.90, 0.91, 0.92]}, budget="cpu")
    text = markdown(lab, table, "cpu")
    assert "Budget cpu: the paper's schedule" in text
    assert "inside ± 0.050" in text


def test_a_cell_of_two_runs_costs_no_training_where_each_run_has_a_line_of_its_own():
    a, b, both, other = ({"runs": list(runs)} for runs in ("a", "b", "ab", "ac"))
    assert trainings([a, b, both, {"runs": []}]) == [a, b]
    assert trainings([a, other]) == [a, other]  # the only line that tells of c
