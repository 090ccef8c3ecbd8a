"""Times of training steps: who goes when, what is counted, and that the trained model is left as it is."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hypimg.errors import UserError
from hypimg.evaluation import step_time
from hypimg.evaluation.predictor import Predictor
from hypimg.evaluation.step_time import StepTime
from hypimg.models.backbones.cifar_resnet import CifarResNet
from hypimg.models.backbones.poincare_resnet import PoincareResNet
from hypimg.models.classifier import Classifier
from hypimg.models.heads import Linear, UnidirectionalMLR
from hypimg.nn.poincare import PoincareBatchNorm2d, freeze
from hypimg.nn.spaces import Euclidean, PoincareBall

SHAPE = (3, 8, 8)
CPU = torch.device("cpu")


def predictor(curved: bool) -> Predictor:
    """A finished run's: in evaluation mode, without gradients, its batch norms frozen."""
    torch.manual_seed(0)
    if curved:
        ball = PoincareBall(0.1, margin=1e-5)
        backbone = PoincareResNet(SHAPE, ball, depth=8, widths=(2, 2, 2))
        model = Classifier(backbone, ball, UnidirectionalMLR(ball, 2, 3))
    else:
        space = Euclidean()
        model = Classifier(CifarResNet(SHAPE, depth=8, widths=(2, 2, 2)), space, Linear(space, 2, 3))
    for norm in model.modules():
        if isinstance(norm, PoincareBatchNorm2d):
            norm.batches_seen += 1  # the mean at the origin, the variance 1
    model.eval().requires_grad_(False)
    freeze(model)
    return Predictor("run", model, SHAPE, [0.5] * 3, [0.5] * 3, ["a", "b", "c"])


@pytest.fixture
def data():
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    store = SimpleNamespace(images=images)
    return SimpleNamespace(store=store, indices=np.arange(4, 20), labels=np.arange(16) % 3)


def test_the_ratio_is_that_of_two_networks_measured_in_turns(data):
    threads = torch.get_num_threads()
    metrics, arrays = StepTime(batch_size=4, turns=3, threads=1)([predictor(True), predictor(False)], data)
    assert torch.get_num_threads() == threads
    seconds = arrays["seconds"]
    assert seconds.shape == (3, 2) and (seconds > 0).all() and str(arrays["device"]) == "cpu"
    assert metrics["ratio"] == np.median(seconds[:, 0] / seconds[:, 1])
    assert metrics["change"] == pytest.approx(100 * (metrics["ratio"] - 1))
    assert (metrics["seconds/first"], metrics["seconds/second"]) == tuple(np.median(seconds, axis=0))
    assert metrics["threads"] == 1 and metrics["cores"] >= 1 and metrics["load"] >= 0


def test_each_turn_has_both_and_the_first_alternates(monkeypatch):
    now, taken = [0.0], []
    monkeypatch.setattr(step_time, "_clock", lambda device: now[0])

    def work(name: str, seconds: float):
        def run() -> None:
            taken.append(name)
            # a warm-up takes a hundred times as long, and must not count
            now[0] += seconds * (100 if len(taken) <= 2 * step_time.WARM_UP else 1)

        return run

    seconds = step_time.in_turns([work("a", 3), work("b", 2)], 4, CPU)
    np.testing.assert_allclose(seconds, [[3, 2]] * 4)
    turns = ["".join(taken[i : i + 2]) for i in range(0, len(taken), 2)]
    assert turns == (["ba", "ab"] * 4)[: step_time.WARM_UP + 4]


def test_a_step_trains_a_copy_by_the_batchs_statistics(data, monkeypatch):
    finished = predictor(True)
    before = {name: value.clone() for name, value in finished.model.state_dict().items()}
    copied = []
    copying = SimpleNamespace(deepcopy=lambda model: copied.append(copy.deepcopy(model)) or copied[-1])
    monkeypatch.setattr(step_time, "copy", copying)
    images = torch.from_numpy(data.store.images[:6].transpose(0, 3, 1, 2).copy())
    step = step_time.training_step(finished, images, torch.tensor([0, 1, 2, 0, 1, 2]))
    seen = []
    norm = next(module for module in copied[0].modules() if isinstance(module, PoincareBatchNorm2d))
    monkeypatch.setattr(norm, "observe", lambda mean, variance, newton: seen.append(norm.by_batch))
    step()
    assert seen == [True], "training takes the statistics of the batch at hand"
    after = finished.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not finished.model.training and norm.statistics == "frozen"
    moved = [name for name, value in copied[0].named_parameters() if not torch.equal(value, before[name])]
    assert {"backbone.conv.weight", "head.linear.weight"} <= set(moved)


def test_what_it_cannot_compare_is_said(data):
    runs = [predictor(False)] * 2
    with pytest.raises(UserError, match=r"evaluator\.step_time=1 runs: compares two"):
        StepTime(4, 1, 1)(runs[:1], data)
    with pytest.raises(UserError, match=r"evaluator\.batch_size=17: there are only 16 test images"):
        StepTime(17, 1, 1)(runs, data)
    with pytest.raises(UserError, match=r"evaluator\.turns=0: must be a whole number ≥ 1"):
        StepTime(4, 0, 1)
