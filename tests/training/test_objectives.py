from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hypimg.data.resident import Part, ResidentImages
from hypimg.errors import UserError
from hypimg.models.classifier import Classifier
from hypimg.models.heads import ProtoNet
from hypimg.nn.spaces import Euclidean
from hypimg.training.objectives import Classification, FewShot
from hypimg.training.seeding import derive_seed, generator


def _images(labels: np.ndarray, side: int = 2) -> ResidentImages:
    """Images whose pixels say their class."""
    pixels = np.broadcast_to(labels[:, None, None, None] * 10, (len(labels), side, side, 1)).astype(np.uint8).copy()
    return ResidentImages(Part(pixels, labels, [f"class {i}" for i in range(labels.max() + 1)]), [0.0], [1.0])


def _classification(n: int, batch: int, **options: bool) -> Classification:
    objective = Classification(batch, **options)
    objective.prepare(_images(np.zeros(n, np.int64)), None)
    return objective


def _drawn(objective: Classification | FewShot, seed: int, step: int, rank: int = 0, ranks: int = 1) -> list[int]:
    pieces = objective.pieces(seed, step, rank, ranks)
    return torch.cat([piece.indices[piece.rows] for piece in pieces]).tolist()


@given(n=st.integers(1, 200), batch=st.integers(1, 70), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_sees_every_image_once_whatever_was_drawn_before(n: int, batch: int, seed: int, epoch: int) -> None:
    objective = _classification(n, batch)
    steps = objective.steps_per_epoch
    drawn = [_drawn(objective, seed, epoch * steps + i) for i in range(steps)]
    assert sorted(chain.from_iterable(drawn)) == list(range(n))
    middle = steps // 2
    assert _drawn(_classification(n, batch), seed, epoch * steps + middle) == drawn[middle]


@given(n=st.integers(4, 50), batch=st.integers(4, 20), ranks=st.integers(1, 4))
def test_ranks_share_a_batch_and_their_weighted_means_average_to_its_mean(n: int, batch: int, ranks: int) -> None:
    objective = _classification(n, batch)
    values = torch.rand(n, dtype=torch.float64)
    for step in range(objective.steps_per_epoch):
        whole = _drawn(objective, 0, step)
        if len(whole) < ranks:
            continue
        shares = [next(objective.pieces(0, step, rank, ranks)) for rank in range(ranks)]
        assert sorted(torch.cat([piece.indices[piece.rows] for piece in shares]).tolist()) == sorted(whole)
        means = [values[piece.indices[piece.rows]].mean() * piece.weight for piece in shares]
        torch.testing.assert_close(torch.stack(means).mean(), values[whole].mean())


def test_drop_last_leaves_full_batches_only() -> None:
    objective = _classification(130, 64, drop_last=True)
    assert objective.steps_per_epoch == 2
    assert {len(_drawn(objective, 0, step)) for step in range(4)} == {64}


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    objective = _classification(100, 100)
    assert len({tuple(_drawn(objective, seed, step)) for seed in (0, 1) for step in (0, 1)}) == 4


class _Pixels(nn.Module):
    """A backbone that hands on the pixels."""

    out_features = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def test_validation_of_a_classifier_covers_every_image_once() -> None:
    labels = np.arange(2500) % 5
    model = Classifier(_Pixels(), Euclidean(), nn.Linear(4, 5))
    objective, val = Classification(64), _images(labels)
    sums = list(objective.validate(model, val, 0))
    assert len(sums) == 3 and sum(float(part["count"]) for part in sums) == 2500
    images, _ = val.take(torch.arange(2500))
    right = (model(images).argmax(-1).numpy() == labels).sum()
    assert sum(float(part["accuracy"]) for part in sums) == right


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.batch_size=0"):
        Classification(0)


def test_episodes_are_functions_of_their_number_and_shared_whole_among_ranks() -> None:
    train = _images(np.repeat(np.arange(8), 6))
    objective = FewShot(way=3, shot=1, query=2, episodes_per_step=4)
    objective.prepare(train, None, ranks=2)
    alone = list(objective.pieces(5, 7))
    assert [piece.number for piece in alone] == [28, 29, 30, 31] and {piece.weight for piece in alone} == {0.25}
    for rank in (0, 1):
        for mine, same in zip(objective.pieces(5, 7, rank, 2), alone[rank::2], strict=True):
            assert torch.equal(mine.indices, same.indices) and mine.number == same.number and mine.weight == 0.5
    assert not torch.equal(alone[0].indices, next(objective.pieces(6, 7)).indices)
    with pytest.raises(UserError, match=r"devices=3: whole episodes .* multiple of 3"):
        objective.prepare(train, None, ranks=3)


def test_the_loss_of_an_episode_is_the_cross_entropy_of_its_queries() -> None:
    train = _images(np.repeat(np.arange(8), 6))
    objective = FewShot(way=3, shot=2, query=4)
    objective.prepare(train, None)
    model = Classifier(_Pixels(), Euclidean(), ProtoNet(Euclidean(), 4, 8))
    (piece,) = objective.pieces(0, 0)
    images, labels = train.take(piece.indices)
    loss, metrics = objective.loss(model, images, labels)
    values = (labels * 10 / 255).double()  # every pixel of an image; four pixels
    classes = [int(label) for label in labels[:3]]
    logits = -4 * (values[6:, None] - torch.tensor([c * 10 / 255 for c in classes], dtype=torch.float64)) ** 2
    expected = nn.functional.cross_entropy(logits, torch.arange(3).repeat(4))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert {name: float(value) for name, value in metrics.items() if name != "loss"} == {
        "accuracy": 12,
        "clipped": 0,
        "count": 12,
    }


def test_validation_episodes_are_the_same_after_each_epoch_and_perfect_where_pixels_say_the_class() -> None:
    val = _images(np.repeat(np.arange(6), 20))
    objective = FewShot(way=2, shot=1, query=2, val_way=3, val_query=4, val_episodes=50)
    objective.prepare(val, val)
    model = Classifier(_Pixels(), Euclidean(), ProtoNet(Euclidean(), 4, 6))
    for _ in range(2):
        *waits, sums = objective.validate(model, val, 0)
        assert all(wait == {} for wait in waits)
        assert float(sums["accuracy"]) == float(sums["count"]) == 50


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.episodes_per_epoch=0"):
        FewShot(way=5, shot=1, episodes_per_epoch=0)


def test_generators_are_named_not_shared() -> None:
    state = torch.random.get_rng_state()
    first = torch.rand(4, generator=generator(3, "crops", 7))
    assert torch.equal(first, torch.rand(4, generator=generator(3, "crops", 7)))
    others = [generator(4, "crops", 7), generator(3, "flips", 7), generator(3, "crops", 8)]
    assert all(not torch.equal(first, torch.rand(4, generator=other)) for other in others)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is left alone"
    assert derive_seed(0, "weights") == 664910812957149500, "a seed means the same in every release"
