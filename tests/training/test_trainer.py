from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hypimg import config, launch, run
from hypimg.training.diagnosis import explain_nondeterminism, first_non_finite
from hypimg.training.loggers import read_metrics
from hypimg.training.metrics import averages
from hypimg.training.parameters import parameter_groups


def _train(words: list[str]) -> tuple[Path, list[dict[str, float]]]:
    cfg = config.compose(words)
    assert launch.run_task(cfg) == 0
    folder = run.run_directory(cfg)
    return folder, read_metrics(folder / "metrics.csv")


def test_the_first_losses_do_not_drift(quick: list[str]) -> None:
    # Made by: python train.py trainer.epochs=2 threads=1. Changed only together with a reason.
    _, rows = _train(quick)
    assert [row["train/loss"] for row in rows] == pytest.approx([2.6126, 2.1075], abs=5e-3)


def test_the_same_command_twice_gives_the_same_bits_and_another_seed_other_ones(
    quick: list[str], tmp_path: Path
) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder, _ = _train([*quick, f"runs_dir={tmp_path / name}", f"seed={seed}"])
        weights.append(torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["state"]["model"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["backbone.out.weight"], weights[2]["backbone.out.weight"])


def test_best_keeps_the_epoch_with_the_highest_validation_accuracy(quick: list[str]) -> None:
    folder, rows = _train([*quick, "trainer.epochs=6"])
    summary = json.loads((folder / "summary.json").read_text())
    values = [row["val/accuracy"] for row in rows]
    assert summary["selected_epoch"] == values.index(max(values)) + 1
    assert summary["metrics"]["val/accuracy"] == max(values)
    best = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)["state"]
    assert best["closed"] == summary["selected_epoch"]


def test_a_schedule_moves_the_learning_rate_by_epochs(quick: list[str]) -> None:
    _, rows = _train([*quick, "trainer.epochs=4", "scheduler=step", "scheduler.step_size=2", "scheduler.gamma=0.1"])
    assert [row["lr"] for row in rows] == pytest.approx([3e-3, 3e-3, 3e-4, 3e-4])


def test_clipping_bounds_the_gradient(quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    step = torch.optim.SGD.step

    def look(self, *args):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", look)
    _train([*quick, "trainer.epochs=1", "optimizer=sgd", "trainer.gradient_clip=0.01"])
    assert max(norms) <= 0.01 * (1 + 1e-5) and len(norms) == 19


def test_a_learned_curvature_starts_as_configured_moves_and_is_not_decayed(quick: list[str]) -> None:
    words = [*quick, "c=0.1", "space.learn_c=true", "optimizer.weight_decay=0.5"]
    cfg = config.compose(words)
    dataset, _ = run.open_data(cfg)
    model = run.build_model(cfg, dataset)
    assert float(model.space.c.detach()) == pytest.approx(0.1, rel=1e-7)
    decayed, exempt = parameter_groups(model)
    assert exempt == {"params": [model.space.log_ratio], "weight_decay": 0.0}
    assert len(decayed["params"]) + 1 == len(list(model.parameters()))
    _, rows = _train(words)
    assert rows[-1]["c"] != pytest.approx(0.1, rel=1e-4) and 0.01 <= rows[-1]["c"] <= 1


@pytest.mark.parametrize(
    "words", [["trainer.precision=bf16-mixed"], ["deterministic=true"], ["optimizer=riemannian_adam"]]
)
def test_the_options_train(quick: list[str], words: list[str]) -> None:
    try:
        _, rows = _train([*quick, *words])
    finally:
        torch.use_deterministic_algorithms(False)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] - 0.1


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run_up_to_rounding(quick: list[str], tmp_path: Path) -> None:
    (a, eager), (b, compiled) = (
        _train([*quick, f"compile={on}", f"runs_dir={tmp_path / on}"]) for on in ("false", "true")
    )
    assert a.name == b.name
    assert compiled[-1]["train/loss"] == pytest.approx(eager[-1]["train/loss"], rel=0.02)


@pytest.mark.slow
def test_one_epoch_of_mnist_learns(shared_data: Path, tmp_path: Path, store_dir: Path) -> None:
    words = ["experiment=mnist_hyperbolic", "dim=8", "trainer.epochs=1", f"data_dir={shared_data}", "logger=csv"]
    folder, rows = _train([*words, f"runs_dir={tmp_path}", f"store_dir={store_dir}", "threads=1"])
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    assert rows[0]["val/accuracy"] > 0.96 and metrics["ood_omniglot/ks/dist0"] > 0.4


def test_sums_become_means_per_image() -> None:
    sums = {"loss": torch.tensor(6.0), "count": torch.tensor(4.0)}
    assert averages("val", sums) == {"val/loss": 1.5}


def test_the_culprit_is_named() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    images = torch.ones(1, 2)
    assert first_non_finite(net, images) is None
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    net.append(_Root())
    net[0].weight.data.fill_(-1)
    assert first_non_finite(net, images) == "the output of layer 1 (_Root)"
    assert first_non_finite(net, images / 0) == "the input images"
    net[0].bias.data[0] = float("inf")
    assert first_non_finite(net, images) == "parameter 0.bias"


class _Root(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 10).sqrt()


def test_an_operation_without_a_deterministic_form_is_named() -> None:
    message = "adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set x. More."
    from hypimg.errors import UserError

    with (
        pytest.raises(UserError, match="adaptive_max_pool2d_backward_cuda does not have"),
        explain_nondeterminism(True),
    ):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError), explain_nondeterminism(False):
        raise RuntimeError(message)
