"""What a chain of Poincaré linear layers does to the norms of points, as they are initialised (PR, Figure 2a)."""

from __future__ import annotations

import numpy as np
import torch

from hypimg.errors import UserError
from hypimg.evaluation import EvaluationData
from hypimg.evaluation.predictor import Predictor
from hypimg.nn.poincare import LINEAR_INITS, PoincareLinear
from hypimg.nn.spaces import PoincareBall

# So near to the boundary that no point here is projected: PR's own margin would cut the points of c = 1 already.
MARGIN = 1e-15


class LayerNorms:
    """Mean norms of a batch of points before and after each of `layers` layers `PoincareLinear`; no run, no data.

    The points are exp₀ of normal vectors with deviation `std` in `features` dimensions; offsets are 0. Everything in
    float64, without projection.  init, inverted_lambda: see `PoincareLinear`.  draws: of points and weights.  seed: of
    all draws; the points are the same for every init, λ and c, the weights of HNN++ for every λ and c.
    Metrics: `first`, `last`: medians over the draws of the mean norm before the first and after the last layer;
    `last_5`, `last_95`: its percentiles; `change`: the largest |norm/first norm − 1| of any draw after any layer.
    Arrays: `norms` [draws, layers + 1], mean norms in the ball of curvature −c; `c` [].
    Source: PR, Figure 2a, which has 10 layers 20 → 20 and batches of 16; its c and its deviation are lost.
    """

    def __init__(
        self,
        init: str,
        inverted_lambda: bool,
        c: float,
        std: float,
        layers: int,
        features: int,
        batch: int,
        draws: int,
        seed: int = 0,
    ):
        if init not in LINEAR_INITS:
            raise UserError("evaluator.init", init, f"must be {' or '.join(LINEAR_INITS)}")
        for name, count in {"layers": layers, "features": features, "batch": batch, "draws": draws}.items():
            if not isinstance(count, int) or count < 1:
                raise UserError(f"evaluator.{name}", count, "must be a whole number ≥ 1")
        if not std > 0:
            raise UserError("evaluator.std", std, "must be > 0")
        self.ball = PoincareBall(c, margin=MARGIN)
        self.init, self.inverted_lambda, self.std = init, inverted_lambda, std
        self.layers, self.features, self.batch, self.draws, self.seed = layers, features, batch, draws, seed

    def __call__(
        self, predictors: list[Predictor], data: EvaluationData
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        random = np.random.default_rng([self.seed, self.features])
        starts = torch.from_numpy(random.normal(scale=self.std, size=(self.draws, self.batch, self.features)))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self.seed)
            norms = np.stack([self._through(start) for start in starts])
        last = norms[:, -1]
        metrics = {
            "first": float(np.median(norms[:, 0])),
            "last": float(np.median(last)),
            "last_5": float(np.percentile(last, 5)),
            "last_95": float(np.percentile(last, 95)),
            "change": float(np.abs(norms / norms[:, :1] - 1).max()),
        }
        return metrics, {"norms": norms, "c": np.array(self.ball.start_c)}

    def _through(self, tangents: torch.Tensor) -> np.ndarray:
        """Mean norms [layers + 1] of the points of these tangent vectors [batch, features] in layers drawn anew."""
        norms = [self._norm(tangents)]
        for _ in range(self.layers):
            layer = PoincareLinear(
                self.features,
                self.features,
                self.ball,
                init=self.init,
                inverted_lambda=self.inverted_lambda,
            ).double()
            tangents = layer(tangents)
            norms.append(self._norm(tangents))
        return np.array(norms)

    def _norm(self, tangents: torch.Tensor) -> float:
        """Mean of ‖exp₀(u)‖ = tanh(√c ‖u‖)/√c."""
        root_c = self.ball.start_c**0.5
        return float((root_c * tangents.norm(dim=-1)).tanh().mean() / root_c)
