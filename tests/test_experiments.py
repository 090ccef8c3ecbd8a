"""Every experiment trains two steps, validates and is evaluated, on generated images with the classes of its split."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hypimg import config, launch, run
from hypimg.data.dataset import ImageDataset
from hypimg.data.datasets.digits import Digits
from hypimg.data.datasets.miniimagenet import CLASSES as MINI_IMAGENET
from hypimg.data.store import Decoded, ImageStore, open_or_fill
from hypimg.tables import manifest as manifests
from hypimg.tables import runner
from hypimg.training.loggers import read_metrics

RAGGED = {"birds2010", "cub", "miniimagenet"}  # their stores keep the photographs' own sizes
EPISODES = 20


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generated")


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch, generated: Path) -> None:
    """Data sets open generated images; the digits are real."""

    def open_generated(self: ImageDataset, data_dir: Path, store_dir: Path, download: bool = False) -> ImageStore:
        words = f"{self.name} {self.splits} {self.class_split and self.class_split.name} {self.image_shape}"
        digest = hashlib.sha256(words.encode()).hexdigest()
        store = open_or_fill(generated, self.name, digest, lambda: _decoded(self))
        if self.class_split is not None:
            self.class_split.check(store.classes)
        return store

    real = ImageDataset.open
    monkeypatch.setattr(ImageDataset, "open", open_generated)
    monkeypatch.setattr(Digits, "open", real)


def _decoded(dataset: ImageDataset) -> Decoded:
    """Noise around a grey value of the class: as many images as 5 shots and a query take, 20 of each of few classes."""
    if dataset.class_split is not None:
        parts = {dataset.splits[0]: sorted(name for names in dataset.class_split.parts.values() for name in names)}
    elif dataset.name == "miniimagenet":
        parts = MINI_IMAGENET
    else:
        parts = {split: [str(digit) for digit in range(10)] for split in dataset.splits}
    classes = list(dict.fromkeys(name for names in parts.values() for name in names))
    of_image = [
        (classes.index(name), dataset.splits.index(split))
        for split, names in parts.items()
        for name in names
        for _ in range(20 if len(classes) <= 10 else 6)
    ]
    labels, splits = np.array(of_image, np.int64).T
    random = np.random.default_rng(0)
    channels, height, width = dataset.image_shape

    def image(label: int, sides: tuple[int, ...]) -> np.ndarray:
        return random.integers(label % 7 * 30, label % 7 * 30 + 60, (*sides, channels), np.uint8)

    photographs = (image(label, tuple(random.integers(18, 30, 2))) for label in labels)
    return Decoded(
        images=photographs if dataset.name in RAGGED else np.stack([image(label, (height, width)) for label in labels]),
        columns={"label": labels, "split": splits},
        names={"label": classes, "split": list(dataset.splits)},
        form="generated",
        official=False,
    )


def _small(experiment: str) -> list[str]:
    """Overrides that leave two steps, and images and networks as small as they may be."""
    cfg = config.compose([f"experiment={experiment}"])
    words = [f"experiment={experiment}", "trainer.epochs=1", "logger=csv", "threads=1", "device=cpu"]
    if "episodes_per_epoch" not in cfg.objective:
        return [*words, f"objective.batch_size={600 if cfg.name == 'digits_disk' else 100}"]
    words += ["objective.episodes_per_epoch=2", "objective.val_episodes=10"]
    words += [f"objective.{name}={min(cfg.objective[name], 3)}" for name in ("way", "val_way")]
    words += ["objective.query=1", "objective.val_query=1"]
    words += ["evaluator.fewshot.query=1", f"evaluator.fewshot.episodes={EPISODES}", "dim=8"]
    words += ["backbone.width=8"] if "width" in cfg.backbone else []
    words += ["dataset.image_size=16"] if "image_size" in cfg.dataset else []
    words += ["augment.size=16"] if cfg.get("augment") and cfg.augment.size else []
    return words


def _run(words: list[str], tmp_path: Path) -> tuple[Path, dict[str, float]]:
    cfg = config.compose([*words, f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}"])
    assert launch.run_task(cfg) == 0
    folder = run.run_directory(cfg)
    (row,) = read_metrics(folder / "metrics.csv")
    assert row["step"] == 2 and np.isfinite(row["train/loss"]) and 0 <= row["train/clipped"] <= 1
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    assert all(np.isfinite(value) for value in metrics.values())
    return folder, metrics


@pytest.mark.parametrize("experiment", config.members("experiment"))
def test_every_experiment_runs(experiment: str, tmp_path: Path) -> None:
    folder, metrics = _run(_small(experiment), tmp_path)
    assert all(0 <= value <= 1 for name, value in metrics.items() if name.endswith("accuracy"))
    assert ("val/accuracy" in metrics) == (not experiment.startswith("pr_")), "there all training images train"
    if "fewshot/accuracy" in metrics:
        (scores,) = (folder / "evaluations").glob("*.npz")
        with np.load(scores) as arrays:
            assert arrays["accuracies"].shape == (EPISODES,)
            assert metrics["fewshot/accuracy"] == pytest.approx(arrays["accuracies"].mean())
    elif experiment.startswith("pr_"):
        assert {"test/accuracy", "by_batch/accuracy"} <= metrics.keys()
    else:
        assert "test/accuracy" in metrics and any(name.startswith("ood_") for name in metrics)


ARMS = {
    "euclidean": ["space=euclidean"],
    "cosine": ["space=euclidean", "head=cosine_protonet"],
    "angular": ["space=angular"],
    "official": ["variant=official"],
}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_of_the_tables_runs(arm: str, tmp_path: Path) -> None:
    _, metrics = _run([*_small("cifar_fs_5shot"), *ARMS[arm]], tmp_path)
    if arm in ("euclidean", "cosine"):
        assert metrics["fewshot/clipped"] == 0
    if arm == "angular":
        assert metrics["fewshot/clipped"] == metrics["val/clipped"] == 1


def test_an_experiment_runs_with_the_other_split_of_its_classes(tmp_path: Path) -> None:
    _run([*_small("cub_1shot"), "dataset.class_split=cub_chen"], tmp_path)


def _fails(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a run that ends before its first step."""
    cfg = config.compose([*words, f"runs_dir={tmp_path / 'runs'}"])
    assert launch.run_task(cfg) == 2
    assert not (run.run_directory(cfg) / "metrics.csv").exists(), "nothing was trained"
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "words, line",
    [
        (["evaluator.fewshot.way=90"], "evaluator.fewshot.way=90: there are only 20 classes to draw from"),
        (["evaluator.fewshot.split=tset"], "split=tset: cifar_fs has train, val, test"),
        (["objective.val_way=17"], "objective.val_way=17: there are only 16 classes"),
        (["objective.shot=abc"], "objective.shot=abc: must be a whole number ≥ 1"),
        (["objective.episodes_per_step=3"], "objective.episodes_per_step=3: an epoch of 2 episodes"),
        (["head=mlr", "evaluator=[]"], "head=MLR: takes no support images; episodes need head=protonet"),
        (["objective.query=60"], "class=apple: has 6 images, and an episode takes 1 + 60"),
    ],
)
def test_what_cannot_work_is_said_before_training(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in _fails([*_without_evaluators(_small("cifar_fs_1shot"), words), *words], tmp_path, capsys)


def _without_evaluators(small: list[str], words: list[str]) -> list[str]:
    return [word for word in small if not ("evaluator=[]" in words and word.startswith("evaluator."))]


def test_a_head_without_classes_is_refused_by_a_classification(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "head=ProtoNet: knows no classes of its own; it needs objective=fewshot"
    assert line in _fails([*_small("digits_disk"), "head=protonet"], tmp_path, capsys)


def test_two_dimensions_need_no_picture_of_outliers(tmp_path: Path) -> None:
    folder, _ = _run([*_small("cifar_fs_1shot"), "dim=2"], tmp_path)
    assert (folder / "summary.json").exists()


def test_a_finished_run_is_evaluated_anew_where_an_evaluator_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = _small("cifar_fs_1shot")
    folder, first = _run(words, tmp_path)
    trained = (folder / "checkpoints" / "last.pt").stat().st_mtime_ns
    again, more = _run([*words, "evaluator.fewshot.shot=3", "evaluator.fewshot.episodes=30"], tmp_path)
    assert again == folder and (folder / "checkpoints" / "last.pt").stat().st_mtime_ns == trained
    assert len(list((folder / "evaluations").glob("*.json"))) == 2
    assert more["fewshot/ci95"] != first["fewshot/ci95"] and more["val/accuracy"] == first["val/accuracy"]
    before = (folder / "summary.json").stat().st_mtime_ns
    _run([*words, "evaluator.fewshot.shot=3", "evaluator.fewshot.episodes=30"], tmp_path)
    _run([*_without_evaluators(words, ["evaluator=[]"]), "evaluator=[]"], tmp_path)
    assert (folder / "summary.json").stat().st_mtime_ns == before, "equal options and fewer evaluators change nothing"


def test_a_class_split_of_ones_own_is_part_of_the_data_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = config.CONFIG_DIR.parent / "hypimg" / "data" / "splits" / "cifar_fs.json"
    split = json.loads(parts.read_text())
    own = tmp_path / "own.json"
    own.write_text(json.dumps(split))
    words = [*_small("cifar_fs_1shot"), f"dataset.class_split={own}"]
    folder, _ = _run(words, tmp_path)
    own.write_text(json.dumps(split | {"val": split["test"], "test": split["val"]}))
    _run(words, tmp_path)
    assert list(folder.glob("superseded-*")), "other parts, so another result: set aside and trained anew"


def test_a_few_shot_run_stopped_between_steps_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ResNet-12 has dropout and DropBlock, birds are cropped anew in each episode."""
    words = _without_evaluators([word for word in _small("birds2010_1shot") if "width" not in word], ["evaluator=[]"])
    words += ["backbone=resnet12", "evaluator=[]", "checkpoint_seconds=0"]
    whole, _ = _run(words, tmp_path / "whole")
    from hypimg.training import trainer

    step = trainer._Loop.train_step
    taken = []

    def one_step(self) -> None:
        step(self)
        taken.append(self.step)
        if len(taken) == 1:
            self.stop.signal = 15

    monkeypatch.setattr(trainer._Loop, "train_step", one_step)
    cfg = config.compose([*words, f"runs_dir={tmp_path / 'cut' / 'runs'}"])
    with pytest.raises(SystemExit):
        raise SystemExit(launch.run_task(cfg))
    cut, _ = _run(words, tmp_path / "cut")
    assert taken == [1, 2]
    a, b = (torch.load(f / "checkpoints" / "last.pt", weights_only=True)["state"]["model"] for f in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_tables_of_poincare_resnet_run(tmp_path: Path) -> None:
    """Both arms, their times and the figure's curves, from trainings of two steps of the smallest networks."""
    small = ["trainer.epochs=1", "objective.batch_size=100", "backbone.depth=8", "backbone.widths=[2,2,2]"]
    settings = [f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}", "logger=csv", "threads=1"]

    def reproduced(name: str, column: str, rows: set[str]) -> str:
        """One column of a table: each config that is composed takes its time."""
        raw = manifests.read(manifests.EXPERIMENTS / f"{name}.yaml", name)
        assert isinstance(raw, dict)
        position = list(raw["columns"]).index(column)
        raw["columns"] = {column: raw["columns"][column]}
        raw["rows"] = {key: row for key, row in raw["rows"].items() if key in rows}
        raw["budgets"]["cpu"] = small
        for row in raw["rows"].values():
            row["paper"] = [row["paper"][position]] if "paper" in row else None
            row.pop("cells", None)
            if row.get("evaluator") == "step_time":
                row["evaluator"] = {"name": "step_time", "turns": 1}
        table = manifests.parse(name, raw | {"compare": []})
        results = tmp_path / "results"
        assert runner.reproduce(table, "cpu", settings=[*settings, "device=cpu"], results=results) == 0
        return (results / name / "table_cpu.md").read_text()

    arms = {"frechet", "midpoint", "midpoint_frozen", "euclidean", "time_change", "time_euclidean"}
    text = reproduced("pr_table1", "ResNet-20 official", arms)
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.splitlines() if line[:1] == "|"}
    assert "undefined" not in text and "not run" not in text
    assert rows["midpoint against Fréchet mean (% of the time) ↓"].endswith("† (paper −23)")
    assert float(rows["*ours:* midpoint against the Euclidean network (times) ↓"].rstrip(" †")) > 0
    reproduced("pr_fig3", "official", {"ReLU", "c=0.1", "c=1"})
    drawn = tmp_path / "results" / "pr_fig3" / "cpu"
    assert sorted(path.suffix for path in drawn.iterdir()) == [".csv", ".pdf", ".png", ".txt"]
    assert len((drawn / "pr_fig3.csv").read_text().splitlines()) == 1 + 3
    assert len(list((tmp_path / "runs" / "pr_cifar10").iterdir())) == 3 + 1, "c = 0.1 with ReLU is the table's midpoint"
