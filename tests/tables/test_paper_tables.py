"""The form of a manifest holds every kind of table that the two papers print."""

from __future__ import annotations

import textwrap

import pytest

from hypimg.tables import runner
from hypimg.tables.manifest import Paper, load
from hypimg.tables.render import render

# Toy spaces: a column of theory, and ± that is a spread over subsamples.
HIE_TABLE_1 = """
    title: Relative delta-hyperbolicity of toy spaces
    source: Hyperbolic Image Embeddings, Table 1
    metric: {name: accuracy, digits: 2, interval: standard deviation over subsamples}
    evaluator: ood
    columns:
      theory: {quoted: true}
      estimate: {}
    rows:
      disk: {overrides: [dim=2], paper: [0, [0.18, 0.08]]}
      sphere: {overrides: [dim=3], paper: [1, [0.97, 0.13]]}
      tree: {overrides: [dim=4], paper: [0, 0.0]}
"""

# Few shots: most rows are quoted, one method under two backbones, ± over episodes of other papers.
HIE_TABLE_4 = """
    title: Few-shot accuracy on MiniImageNet
    source: Hyperbolic Image Embeddings, Table 4
    heading: method
    metric:
      name: accuracy
      description: mean accuracy over test episodes
      unit: "%"
      scale: 100
      digits: 2
      higher_is_better: true
      interval: 95 % over 10,000 test episodes of one model
    evaluator: ood
    columns:
      1-shot: [epochs=1]
      5-shot: [epochs=5]
    rows:
      MatchingNet: &quoted
        group: 4-Conv
        quoted: true
        source: "[53]"
        metric: {interval: as printed by the quoted papers}
        paper: [[43.56, 0.84], [55.31, 0.73]]
      Baseline: {<<: *quoted, label: "Baseline*", source: "[4]", paper: [[41.08, 0.70], [54.50, 0.66]]}
      Hyperbolic ProtoNet: {group: 4-Conv, overrides: [dim=8], paper: [[54.43, 0.20], [72.67, 0.15]]}
      Euclidean ProtoNet: {group: 4-Conv, ours: true, overrides: [dim=8, space=euclidean]}
      TPN: {<<: *quoted, group: ResNet, source: "[25]", paper: [59.46, 75.65]}
      Hyperbolic ProtoNet, ResNet-18:
        group: ResNet
        label: Hyperbolic ProtoNet
        overrides: [dim=16]
        paper: [[59.47, 0.20], [76.84, 0.14]]
        cells: {5-shot: {not_run: "no copy of the data"}}
    compare: [[Hyperbolic ProtoNet, Euclidean ProtoNet]]
""".replace("Hyperbolic ProtoNet, ResNet-18", "Hyperbolic ProtoNet ResNet-18")

# Re-identification: the metric belongs to the column, arms are columns.
HIE_TABLE_6 = """
    title: Person re-identification
    source: Hyperbolic Image Embeddings, Table 6
    metric: {unit: "%", scale: 100, digits: 1, higher_is_better: true}
    evaluator: ood
    columns:
      Eucl r1: {overrides: [space=euclidean], metric: accuracy}
      Eucl mAP: {overrides: [space=euclidean], metric: ks/p_max}
      Hyp r1: {overrides: [space=poincare], metric: accuracy}
      Hyp mAP: {overrides: [space=poincare], metric: ks/p_max}
    rows:
      "32, sch#1": {overrides: [dim=32, epochs=1], paper: [71.4, 49.7, 69.8, 45.9]}
      "32, sch#2": {overrides: [dim=32, epochs=2], paper: [68.0, 43.4, 75.9, 51.9]}
    compare: [[Hyp r1, Eucl r1], [Hyp mAP, Eucl mAP]]
""".replace('"32, ', '"32 ')

# Values lost, and rows of another unit whose numbers follow from others.
HIE_TABLE_7 = """
    title: Few-shot accuracy on Omniglot
    source: Hyperbolic Image Embeddings, Table 7
    metric: accuracy
    evaluator: ood
    columns: {1s5w: [epochs=1], 5s5w: [epochs=2]}
    rows:
      ProtoNet: {overrides: [space=euclidean], paper: [null, null]}
      Hyperbolic ProtoNet: {}
    notes: ["The paper's numbers are missing in every copy that we have."]
"""

PR_TABLE_1 = """
    title: Frechet against midpoint batch normalisation
    source: Poincaré ResNet, Table 1
    metric: {name: val/accuracy, unit: "%", scale: 100, digits: 1}
    columns: {ResNet-20: [dim=20], ResNet-32: [dim=32]}
    rows:
      frechet: {overrides: [c=2], paper: [79.4, 82.4]}
      midpoint: {paper: [80.9, 81.9]}
      frechet time:
        overrides: [c=2]
        metric: &time {name: seconds, unit: s, scale: 1, higher_is_better: false, comparable: false}
        paper: [179, 169.4]
      midpoint time: {metric: *time, paper: [137.5, 132.0]}
      change: {change: [midpoint time, frechet time], metric: {unit: "%", digits: 0}, paper: [-23, -22]}
"""

# Many metrics of one run: 3 models × 3 outlier sets × 3 metrics × 2 data sets × 2 networks from 12 runs a seed.
PR_TABLE_2 = """
    title: Out-of-distribution detection with the energy score
    source: Poincaré ResNet, Table 2
    metric: {unit: "%", scale: 100, digits: 1}
    evaluator: ood
    seeds: 1
    columns:
      C10 R20 FPR95: {overrides: [dim=20, epochs=10], metric: &fpr {name: fpr95/in_positive, higher_is_better: false}}
      C10 R20 AUROC: {overrides: [dim=20, epochs=10], metric: &auroc {name: auroc, higher_is_better: true}}
      C10 R20 AUPR: {overrides: [dim=20, epochs=10], metric: &aupr {name: aupr, higher_is_better: true}}
      C10 R32 FPR95: {overrides: [dim=32, epochs=10], metric: *fpr}
      C10 R32 AUROC: {overrides: [dim=32, epochs=10], metric: *auroc}
      C10 R32 AUPR: {overrides: [dim=32, epochs=10], metric: *aupr}
      C100 R20 FPR95: {overrides: [dim=20, epochs=100], metric: *fpr}
      C100 R20 AUROC: {overrides: [dim=20, epochs=100], metric: *auroc}
      C100 R20 AUPR: {overrides: [dim=20, epochs=100], metric: *aupr}
      C100 R32 FPR95: {overrides: [dim=32, epochs=100], metric: *fpr}
      C100 R32 AUROC: {overrides: [dim=32, epochs=100], metric: *auroc}
      C100 R32 AUPR: {overrides: [dim=32, epochs=100], metric: *aupr}
    rows:
      places euclidean: &places
        group: Places-365
        label: Euclidean
        metric: "places365/{}"
        overrides: [space=euclidean]
        paper: [64.2, 84.7, 96.2, 72.3, 82.0, 95.6, 89.5, 62.5, 89.3, 93.9, 57.9, 87.9]
      places hnn++:
        <<: *places
        label: w/ HNN++
        overrides: [space=head]
        paper: [63.8, 79.6, 94.5, 72.7, 77.7, 94.2, 93.2, 63.3, 89.8, 86.3, 66.6, 91.1]
      places poincare:
        <<: *places
        label: Poincaré
        overrides: []
        paper: [70.2, 82.3, 95.7, 70.7, 82.6, 95.9, 82.8, 71.5, 92.3, 83.8, 71.1, 92.2]
      svhn euclidean: &svhn
        group: SVHN
        label: Euclidean
        metric: "svhn/{}"
        overrides: [space=euclidean]
        paper: [97.3, 68.8, 92.8, 94.7, 73.4, 94.1, 99.5, 43.7, 83.7, 98.8, 54.6, 88.2]
      svhn hnn++:
        <<: *svhn
        label: w/ HNN++
        overrides: [space=head]
        paper: [73.1, 85.5, 96.9, 79.1, 82.2, 96.1, 92.1, 66.4, 91.1, 88.6, 68.9, 92.0]
      svhn poincare:
        <<: *svhn
        label: Poincaré
        overrides: []
        paper: [66.0, 85.0, 96.6, 69.3, 83.6, 96.3, 76.9, 76.8, 94.1, 83.0, 72.6, 92.9]
"""

# A cell of two runs: the mean logits of a Euclidean and a Poincaré net. A figure, so no numbers of the paper's.
PR_FIGURE_4B = """
    title: Fusion of Euclidean and Poincaré ResNets
    source: Poincaré ResNet, Figure 4b
    metric: {name: accuracy, unit: "%", scale: 100, digits: 1, higher_is_better: true}
    evaluator: fusion
    columns: {"8": [dim=8], "16": [dim=16]}
    rows:
      Euclidean: {overrides: [space=euclidean]}
      Poincaré: {}
      Euclidean + Poincaré: {runs: [[space=euclidean], [space=poincare]]}
      Euclidean + Euclidean: {ours: true, runs: [[space=euclidean], [space=euclidean, c=2]]}
    compare: [[Euclidean + Poincaré, Euclidean + Euclidean]]
"""

TABLES = {
    "hie_table1": HIE_TABLE_1,
    "hie_table4": HIE_TABLE_4,
    "hie_table6": HIE_TABLE_6,
    "hie_table7": HIE_TABLE_7,
    "pr_table1": PR_TABLE_1,
    "pr_table2": PR_TABLE_2,
    "pr_fig4b": PR_FIGURE_4B,
}


@pytest.fixture
def manifest(tmp_path, request):
    (tmp_path / f"{request.param}.yaml").write_text(textwrap.dedent(TABLES[request.param]))
    return load(request.param, tmp_path)


def reproduced(lab, manifest, **options):
    assert runner.reproduce(manifest, results=lab.results, **options) == 0
    return render(manifest, lab.results)["table.md"]


@pytest.mark.parametrize("manifest", TABLES, indirect=True)
def test_it_runs_and_renders(lab, manifest):
    text = reproduced(lab, manifest, seeds=[0])
    assert "not run |" not in text
    assert len(lab.trained) == len(set(lab.trained))


@pytest.mark.parametrize("manifest", ["hie_table1"], indirect=True)
def test_a_column_of_theory_is_shown_and_not_run(lab, manifest):
    text = reproduced(lab, manifest, seeds=[0])
    assert "| sphere | 1      | 0.53 (paper 0.97 ± 0.13, −0.44) |" in text
    assert "The paper's ±: standard deviation over subsamples." in text
    assert len(lab.trained) == 3


@pytest.mark.parametrize("manifest", ["hie_table4"], indirect=True)
def test_quoted_rows_stand_beside_ours(lab, manifest):
    text = reproduced(lab, manifest)
    assert r"| MatchingNet (quoted, \[53\])" in text
    assert r"| Baseline\* (quoted, \[4\])" in text
    assert "| 43.56 ± 0.84 " in text
    assert "(paper 54.43 ± 0.20, " in text
    assert "| 59.46 " in text
    assert "not run: no copy of the data (paper 76.84 ± 0.14)" in text
    assert "The paper's ±: as printed by the quoted papers; 95 % over 10,000 test episodes of one model." in text
    assert text.index("**4-Conv**") < text.index("**ResNet**")
    assert len(lab.trained) == 5 * 5


@pytest.mark.parametrize("manifest", ["hie_table6"], indirect=True)
def test_two_metrics_of_one_run_fill_two_columns(lab, manifest):
    text = reproduced(lab, manifest)
    assert len(lab.trained) == 4 * 5
    assert "Hyp mAP − Eucl mAP" in text
    assert manifest.cell("32 sch#2", "Hyp mAP").paper == Paper(51.9)


@pytest.mark.parametrize("manifest", ["hie_table7"], indirect=True)
def test_lost_numbers_are_not_compared_with(lab, manifest):
    text = reproduced(lab, manifest)
    assert "(paper " not in text
    assert "Against the paper" not in text
    assert "- The paper's numbers are missing" in text


@pytest.mark.parametrize("manifest", ["pr_table1"], indirect=True)
def test_times_and_what_follows_from_them(lab, manifest):
    text = reproduced(lab, manifest)
    assert "| frechet time (s) ↓  | 200.0 ± 0.0 (paper 179.0)      |" in text
    assert "0 ± 0 (paper −23, +23)" in text
    assert len(lab.trained) == 4 * 5


@pytest.mark.parametrize("manifest", ["pr_table2"], indirect=True)
def test_many_cells_of_few_runs(lab, manifest):
    names = {f"{s}/{m}" for s in ("places365", "svhn") for m in ("fpr95/in_positive", "auroc", "aupr")}
    assert {cell.measure.name for cell in manifest.cells} == names
    text = reproduced(lab, manifest)
    assert (len(manifest.cells), len(lab.trained), len(lab.evaluated)) == (72, 12, 12)
    assert "C10 R20 FPR95 ↓" in text
    assert "C10 R20 AUROC ↑" in text


@pytest.mark.parametrize("manifest", ["pr_fig4b"], indirect=True)
def test_a_fusion_is_a_cell_of_two_runs(lab, manifest):
    reproduced(lab, manifest, seeds=[0])
    assert len(lab.trained) == 6  # the members are those of the rows above, and one more Euclidean net
    assert sorted(map(len, lab.evaluated)) == [1] * 4 + [2] * 4
