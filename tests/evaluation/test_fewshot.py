"""The few-shot evaluator on a fake run: its numbers, its episodes, what it stores, and what it refuses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from hypimg import config
from hypimg.data.episodes import EpisodeSampler
from hypimg.errors import UserError
from hypimg.evaluation.fewshot import STORED_CLASSES, STORED_IMAGES, FewShot, episode_generator, half_width
from hypimg.models.heads import MLR, ProtoNet
from hypimg.nn.spaces import Euclidean, PoincareBall, Space

SIZE = 4


class FakePredictor:
    """Embeds an image as its pixels; counts the images that it is given."""

    name = "fake"

    def __init__(self, space: Space, head: torch.nn.Module | None = None, broken: int = 0):
        self.model = SimpleNamespace(space=space, head=head or ProtoNet(space, SIZE * SIZE, 0))
        self.broken, self.embedded = broken, 0

    def embed(self, images: np.ndarray) -> Tensor:
        self.embedded += len(images)
        points = self.model.space.embed(torch.from_numpy(images).flatten(1).float() / 255)
        points[: self.broken] = math.nan
        return points


class FakeData:
    """`classes` classes of `each` noisy images around a random pattern of their own, in mixed order."""

    def __init__(self, classes: int = 6, each: int = 10, noise: float = 60.0):
        random = np.random.default_rng(0)
        labels = random.permutation(np.repeat(np.arange(3, classes + 3), each))
        patterns = random.uniform(0, 255, (classes + 3, SIZE, SIZE, 1))
        pixels = patterns[labels] + noise * random.normal(size=(len(labels), SIZE, SIZE, 1))
        images = pixels.clip(0, 255).astype(np.uint8)
        names = [f"name {number}" for number in range(classes + 3)]
        self.parts = {"test": (images, labels, names), "val": (images[::-1].copy(), labels, names)}

    def labels_of(self, split: str):
        _, labels, names = self.part(split)
        return labels, names

    def part(self, split: str):
        return self.parts[split]


@pytest.mark.parametrize("space", [Euclidean(), PoincareBall(1.0)])
def test_accuracy_is_the_mean_over_the_seeded_episodes(space: Space) -> None:
    """Against a loop that asks the head episode by episode."""
    data, predictor = FakeData(), FakePredictor(space)
    metrics, arrays = FewShot(way=4, shot=3, query=5, episodes=30, seed=7)([predictor], data)
    images, labels, _ = data.part("test")
    points = predictor.embed(images)
    sampler = EpisodeSampler(torch.from_numpy(labels), 4, 3, 5)
    episodes = sampler.sample(30, episode_generator(7, 4, 3, 5))
    truth = torch.arange(4).repeat(5)
    expected = [
        predictor.model.head(points[episode], way=4, shot=3).argmax(1).eq(truth).double().mean() for episode in episodes
    ]
    assert arrays["accuracies"].tolist() == [float(value) for value in expected]
    assert 0.5 < metrics["accuracy"] < 1
    assert metrics["accuracy"] == pytest.approx(np.mean(expected), abs=1e-15)
    assert metrics["ci95"] == pytest.approx(1.96 * np.std(expected) / math.sqrt(30), abs=1e-15)
    assert metrics.keys() == {"accuracy", "ci95", "clipped"}
    assert all(type(value) is float for value in metrics.values())


def test_half_width_of_known_accuracies() -> None:
    # mean 0.7, squares of the deviations 0.01 + 0.01 + 0.04 + 0.04 = 0.1, σ² = 0.025
    assert half_width(np.array([0.6, 0.8, 0.5, 0.9])) == pytest.approx(1.96 * math.sqrt(0.025) / 2, rel=1e-14)
    assert half_width(np.full(10, 0.4)) == 0
    # 10,000 episodes with a standard deviation of 10.2 points: the ± 0.20 of HIE's tables
    assert half_width(np.tile([0.4, 0.604], 5000)) == pytest.approx(0.0020, abs=1e-5)


def test_each_image_is_embedded_once() -> None:
    predictor = FakePredictor(Euclidean())
    FewShot(way=4, shot=1, query=5, episodes=300)([predictor], FakeData())
    assert predictor.embedded == 60


def test_the_same_protocol_draws_the_same_episodes_for_every_run() -> None:
    # the first 16 hex digits of `printf 0/5/1/15 | sha256sum`, less the last bit
    assert episode_generator(0, 5, 1, 15).initial_seed() == 0xA238E78D4F14B14C >> 1
    others = [(0, 5, 1, 15), (1, 5, 1, 15), (0, 20, 1, 15), (0, 5, 5, 15), (0, 5, 1, 5)]
    assert len({episode_generator(*of).initial_seed() for of in others}) == 5
    once, again = (FewShot(4, 2, 5, episodes=20)([FakePredictor(Euclidean())], FakeData())[1] for _ in range(2))
    other = FewShot(4, 2, 5, episodes=20, seed=1)([FakePredictor(Euclidean())], FakeData())[1]
    assert np.array_equal(once["accuracies"], again["accuracies"])
    assert not np.array_equal(once["accuracies"], other["accuracies"])


def test_the_split_is_an_option() -> None:
    accuracies = [
        FewShot(4, 2, 5, episodes=20, split=split)([FakePredictor(Euclidean())], FakeData())[1]["accuracies"]
        for split in ("test", "val")
    ]
    assert not np.array_equal(*accuracies)


def test_the_share_on_the_clip_sphere() -> None:
    space = PoincareBall(1.0)
    data, predictor = FakeData(), FakePredictor(space)
    images = data.part("test")[0]
    images[:15] = 255  # norm 4, beyond atanh(0.999) = 3.8
    images[15:] //= 2
    metrics, arrays = FewShot(4, 2, 5, episodes=5)([predictor], data)
    assert metrics["clipped"] == 15 / 60
    assert arrays["c"].shape == () and arrays["c"] == 1
    assert FewShot(4, 2, 5, episodes=5)([FakePredictor(Euclidean())], data)[0]["clipped"] == 0


def test_what_is_stored_is_the_first_images_of_the_first_classes() -> None:
    data = FakeData(classes=STORED_CLASSES + 2, each=STORED_IMAGES + 5)
    predictor = FakePredictor(PoincareBall(0.1))
    _, arrays = FewShot(4, 2, 5, episodes=5)([predictor], data)
    assert {name: array.dtype.kind for name, array in arrays.items()} == {
        "accuracies": "f",
        "points": "f",
        "labels": "i",
        "names": "U",
        "c": "f",
    }
    assert arrays["points"].shape == (STORED_CLASSES * STORED_IMAGES, SIZE * SIZE)
    assert arrays["points"].dtype == np.float32
    assert np.bincount(arrays["labels"]).tolist() == [STORED_IMAGES] * STORED_CLASSES
    assert arrays["names"].tolist() == [f"name {number}" for number in range(3, STORED_CLASSES + 3)]
    images, labels, _ = data.part("test")
    kept, seen = [], dict.fromkeys(range(3, STORED_CLASSES + 3), 0)
    for position, label in enumerate(labels):
        if label in seen and seen[label] < STORED_IMAGES:
            seen[label] += 1
            kept.append(position)
    assert np.array_equal(arrays["points"], predictor.embed(images[kept]).numpy())
    assert np.array_equal(arrays["labels"], labels[kept] - 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": 1}, "evaluator.fewshot.way=1: must be a whole number ≥ 2"),
        ({"shot": 0}, "evaluator.fewshot.shot=0: must be a whole number ≥ 1"),
        ({"query": 1.5}, "evaluator.fewshot.query=1.5: must be"),
        ({"episodes": 0}, "evaluator.fewshot.episodes=0: must be"),
        ({"seed": "x"}, "evaluator.seed=x: must be"),
        ({"way": True}, "evaluator.fewshot.way=True: must be"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        FewShot(**({"way": 5, "shot": 1, "query": 5} | options))


def test_too_few_images_or_classes_are_told_before_anything_is_embedded() -> None:
    predictor = FakePredictor(Euclidean())
    with pytest.raises(UserError, match=r"class=name 3: has 10 images, and an episode takes 1 \+ 15"):
        FewShot(5, 1, 15)([predictor], FakeData())
    with pytest.raises(UserError, match="way=7: there are only 6 classes"):
        FewShot(7, 1, 5)([predictor], FakeData())
    assert predictor.embedded == 0


def test_it_takes_one_run_with_a_prototype_head() -> None:
    evaluator, space = FewShot(4, 1, 5), Euclidean()
    with pytest.raises(UserError, match=r"evaluator=fake, fake: .*one run"):
        evaluator([FakePredictor(space)] * 2, FakeData())
    with pytest.raises(UserError, match="head=MLR: few-shot evaluation takes a run with head=protonet"):
        evaluator([FakePredictor(space, MLR(space, SIZE * SIZE, 6))], FakeData())


def test_embeddings_that_are_not_finite_give_no_number() -> None:
    with pytest.raises(UserError, match="embeddings=2 of 60: are not finite; the run fake is broken"):
        FewShot(4, 1, 5)([FakePredictor(Euclidean(), broken=2)], FakeData())


def test_the_config_is_the_official_protocol() -> None:
    node = config.compose(["evaluator=[fewshot]"]).evaluator.fewshot
    options = {str(key): value for key, value in node.items() if key != "_target_"}
    assert options == {"way": 5, "shot": 5, "query": 15, "episodes": 10_000, "seed": 0, "split": "test"}
    FewShot(**options)
