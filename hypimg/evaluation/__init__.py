"""Evaluations: trained runs and data in, named numbers and stored scores out.

An evaluator is a class whose constructor takes its settings (one YAML in configs/evaluator) and whose instances are
called as

    metrics, arrays = evaluator(predictors, data)

`metrics` maps flat names ([A-Za-z0-9_./-]+) to floats; `arrays` is stored beside them as one .npz, from which figures
draw without a model. An evaluator trains nothing and writes no result. What it draws at random (test episodes) is a
function of its options, the same for every run. One without runs (a manifest's `runs: []`) takes the option `seed`, is
called with [] and with data that it can only `open`, and names its data sets in its config. `evaluator.check(model,
data)`, where there is one, is called before a training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from hypimg.data.dataset import ImageDataset
    from hypimg.data.resident import Part
    from hypimg.data.store import ImageStore
    from hypimg.evaluation.predictor import Predictor


class EvaluationData(Protocol):
    """The test images of the run's own data set, and a way to open others under the same directories."""

    @property
    def store(self) -> ImageStore: ...

    @property
    def indices(self) -> np.ndarray:
        """The test images in `store`, int64 [N]."""

    @property
    def labels(self) -> np.ndarray:
        """Their classes, int64 [N]."""

    def labels_of(self, split: str) -> tuple[np.ndarray, list[str]]:
        """The labels of `part`, int64 [N], and their names, without its images."""

    def part(self, split: str) -> Part:
        """The images of a split of it as a model takes them, with their labels and the labels' names."""

    def open(self, dataset: ImageDataset) -> ImageStore:
        """The decoded store of another data set, found under the run's data_dir and store_dir."""


class Evaluator(Protocol):
    """The call above."""

    def __call__(
        self, predictors: list[Predictor], data: EvaluationData
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]: ...
