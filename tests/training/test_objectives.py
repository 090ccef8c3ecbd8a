from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypimg.errors import UserError
from hypimg.training.objectives import Classification
from hypimg.training.seeding import derive_seed, generator


@given(n=st.integers(1, 200), batch=st.integers(1, 70), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_sees_every_image_once_whatever_was_drawn_before(n: int, batch: int, seed: int, epoch: int) -> None:
    labels = torch.zeros(n)
    objective = Classification(batch)
    steps = objective.steps_per_epoch(labels)
    drawn = [objective.draw(labels, seed, epoch * steps + i) for i in range(steps)]
    assert sorted(torch.cat(drawn).tolist()) == list(range(n))
    middle = steps // 2
    assert torch.equal(Classification(batch).draw(labels, seed, epoch * steps + middle), drawn[middle])


def test_drop_last_leaves_full_batches_only() -> None:
    objective = Classification(64, drop_last=True)
    labels = torch.zeros(130)
    assert objective.steps_per_epoch(labels) == 2
    assert {len(objective.draw(labels, 0, step)) for step in range(4)} == {64}


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    objective = Classification(100)
    labels = torch.zeros(100)
    draws = [objective.draw(labels, seed, step).tolist() for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(draw) for draw in draws}) == 4


def test_validation_covers_every_image_once() -> None:
    batches = list(Classification(64).validation_batches(torch.zeros(2500), 0))
    assert torch.cat(batches).tolist() == list(range(2500))


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.batch_size=0"):
        Classification(0)


def test_generators_are_named_not_shared() -> None:
    state = torch.random.get_rng_state()
    first = torch.rand(4, generator=generator(3, "crops", 7))
    assert torch.equal(first, torch.rand(4, generator=generator(3, "crops", 7)))
    others = [generator(4, "crops", 7), generator(3, "flips", 7), generator(3, "crops", 8)]
    assert all(not torch.equal(first, torch.rand(4, generator=other)) for other in others)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is left alone"
    assert derive_seed(0, "weights") == 664910812957149500, "a seed means the same in every release"
