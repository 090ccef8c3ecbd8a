"""Batch norms by the batch: what a run stores at its end, and who then uses which statistics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import hypimg
from hypimg import config, launch, run
from hypimg.data.resident import resident
from hypimg.nn import lorentz
from hypimg.nn.poincare import PoincareBatchNorm2d, norms_with
from hypimg.training.preemption import StopRequest
from hypimg.training.seeding import generator
from hypimg.training.statistics import store_statistics

NET = [
    "experiment=pr_cifar10",
    "dataset=digits",
    "augment=none",
    "backbone.depth=8",
    "trainer.epochs=1",
    "objective.batch_size=100",
    "evaluator=[accuracy,accuracy_by_batch]",
    "logger=csv",
    "threads=1",
]


@pytest.fixture
def net(quick: list[str]) -> list[str]:
    return [*NET, *quick[-2:]]


@pytest.fixture
def trained(net: list[str]) -> Path:
    cfg = config.compose(net)
    assert launch.run_task(cfg) == 0
    return run.run_directory(cfg)


def _norms(model: torch.nn.Module) -> list[PoincareBatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, PoincareBatchNorm2d)]


def test_a_loaded_model_uses_frozen_statistics_and_evaluators_those_that_they_ask_for(trained: Path) -> None:
    predictor = hypimg.load(trained)
    assert {norm.statistics for norm in _norms(predictor.model)} == {"frozen"}
    images = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    together, alone = predictor(images)[1], predictor(images[:1])[1]
    torch.testing.assert_close(together[:1], alone)
    with predictor.normed_by("batch", 4):
        assert not torch.allclose(predictor(images)[1][:1], together[:1], atol=1e-3)
        torch.testing.assert_close(predictor(images)[1][:4], predictor(images[:4])[1])
    assert {norm.statistics for norm in _norms(predictor.model)} == {"frozen"} and predictor.batch_size == 1000
    metrics = json.loads((trained / "summary.json").read_text())["metrics"]
    assert metrics["by_batch/nll"] != metrics["test/nll"]


def test_what_is_stored_is_the_plain_average_over_batches_of_the_training_images(trained: Path, net: list[str]) -> None:
    cfg = config.compose(net)
    dataset, data = run.open_data(cfg)
    train = resident(dataset, data.store, dataset.indices(data.store, "train"), "cpu")
    first = _norms(hypimg.load(trained).model)[0]
    assert int(first.batches_seen) == len(train) // 100
    # The same images at once: their midpoint is the batches' midpoint but for terms of second order.
    model = hypimg.load(trained).model
    order = torch.randperm(len(train), generator=generator(cfg.seed, "statistics order"))[: len(train) // 100 * 100]
    images = train.take(order)[0].contiguous()
    conv = model.backbone.conv
    planes = lorentz.planes(conv.weight, conv.bias, 0.1)
    points = lorentz.convolution(conv.scaled(images), planes, (1, 1), (1, 1), conv.limit, False)
    whole = lorentz.midpoint(points)
    torch.testing.assert_close(first.stored()[0], whole, atol=1e-5, rtol=0)


def test_storing_again_changes_nothing_and_a_euclidean_model_is_left_alone(trained: Path, net: list[str]) -> None:
    cfg = config.compose(net)
    dataset, data = run.open_data(cfg)
    train = resident(dataset, data.store, dataset.indices(data.store, "train"), "cpu")
    checkpoints = run.checkpoints_of(trained, cfg, data.identity["digest"])
    before = checkpoints.path("last").read_bytes()
    store_statistics(run.build_model(cfg, dataset), train, 100, 0, checkpoints, "last", StopRequest())
    assert checkpoints.path("last").read_bytes() == before
    store_statistics(torch.nn.Linear(2, 2), train, 100, 0, checkpoints, "missing", StopRequest())


def test_statistics_come_back_after_a_while_with_others() -> None:
    model = run.build_model(config.compose(NET), run.open_data(config.compose(NET))[0])
    with pytest.raises(ZeroDivisionError), norms_with(model, "running"):
        assert {norm.statistics for norm in _norms(model)} == {"running"}
        1 / 0  # noqa: B018
    assert {norm.statistics for norm in _norms(model)} == {"batch"}


def test_a_run_whose_embeddings_are_all_clipped_says_so(quick: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cfg = config.compose([*quick, "trainer.epochs=1", "c=10", "space.margin=0.9"])
    assert launch.run_task(cfg) == 0
    summary = json.loads((run.run_directory(cfg) / "summary.json").read_text())
    assert "embeddings lie on the clip sphere" in summary["warnings"][0]
    assert "lie on the clip sphere" in capsys.readouterr().out
    plain = config.compose([*quick, "trainer.epochs=1"])
    assert launch.run_task(plain) == 0
    assert json.loads((run.run_directory(plain) / "summary.json").read_text())["warnings"] == []


def test_the_backbone_shares_the_heads_ball(net: list[str]) -> None:
    cfg = config.compose([*net, "space.learn_c=true"])
    model = run.build_model(cfg, run.open_data(cfg)[0])
    assert model.backbone.conv.ball is model.space is model.head.linear.ball
    assert [name for name, _ in model.named_parameters() if name.endswith("log_ratio")] == [
        "backbone.conv.ball.log_ratio"
    ]
