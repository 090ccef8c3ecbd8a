"""Norms through layers are those of the formulas written out, and those known of PR's Figure 2a."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypimg import config
from hypimg.errors import UserError
from hypimg.evaluation.layer_norms import LayerNorms
from hypimg.run import instantiate


def measured(**options):
    defaults = {"init": "identity", "inverted_lambda": False, "c": 1.0, "std": 1.0}
    defaults |= {"layers": 10, "features": 20, "batch": 16, "draws": 8}
    return LayerNorms(**(defaults | options))([], None)


def points_of(x, c):
    """exp₀ of tangent vectors x [n, d]."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.tanh(c**0.5 * norm) * x / (c**0.5 * norm)


def layer(x, z, c, inverted):
    """PR's fully connected layer without offsets, of points x [n, d], as the paper writes it."""
    square = c * (x * x).sum(1, keepdims=True)
    lam = 2 * (1 - square) if inverted else 2 / (1 - square)
    norms = np.linalg.norm(z, axis=1)
    v = 2 * norms / c**0.5 * np.arcsinh(lam * c**0.5 * x @ (z / norms[:, None]).T)
    w = np.sinh(c**0.5 * v) / c**0.5
    return w / (1 + np.sqrt(1 + c * (w * w).sum(1, keepdims=True)))


@pytest.mark.parametrize("init", ["identity", "hnnpp"])
@pytest.mark.parametrize("inverted", [False, True])
def test_the_norms_are_those_of_the_formula(init, inverted):
    c, features, seed = 0.3, 5, 3
    _, arrays = measured(init=init, inverted_lambda=inverted, c=c, features=features, layers=3, draws=4, seed=seed)
    starts = np.random.default_rng([seed, features]).normal(size=(4, 16, features))
    torch.manual_seed(seed)
    for start, norms in zip(starts, arrays["norms"], strict=True):
        x = points_of(start, c)
        expected = [np.linalg.norm(x, axis=1).mean()]
        for _ in range(3):
            z = torch.eye(features) / 2 if init == "identity" else torch.randn(features, features) / (50**0.5)
            x = layer(x, z.double().numpy(), c, inverted)
            expected.append(np.linalg.norm(x, axis=1).mean())
        # float32 rounds a drawn weight: by its deviation before or after it is drawn
        np.testing.assert_allclose(norms, expected, rtol=1e-6 if init == "hnnpp" else 1e-12)


@pytest.mark.parametrize("c", [1.0, 0.1])
def test_identity_layers_keep_every_norm(c):
    metrics, arrays = measured(c=c)
    assert metrics["change"] < 1e-14
    assert arrays["norms"].shape == (8, 11) and float(arrays["c"]) == c
    # the mean norm of exp₀ of 20 normal numbers: √c‖v‖ is near √(20 c)
    assert metrics["first"] == pytest.approx({1.0: 0.9994, 0.1: 2.76}[c], rel=0.02)


@pytest.mark.parametrize("c, median", [(1.0, 1.20e-4), (0.1, 0.74e-4)])
def test_hnnpp_layers_shrink_to_the_known_norm(c, median):
    """Medians of 800 draws; single draws spread by a factor e^0.28, so 40 of them by 5.5 % (deviation of a median)."""
    metrics, _ = measured(init="hnnpp", c=c, draws=40)
    assert metrics["last"] == pytest.approx(median, rel=4 * 0.055)
    assert metrics["last_5"] < metrics["last"] < metrics["last_95"] < 3 * metrics["last_5"]


def test_the_official_codes_lambda_shrinks_the_identity():
    """FACTS: 2.75 → 0.39 at c = 0.1; the mean of 16 points spreads by 3 % of it."""
    metrics, _ = measured(inverted_lambda=True, c=0.1, draws=20)
    assert metrics["first"] == pytest.approx(2.76, rel=0.02)
    assert metrics["last"] == pytest.approx(0.385, rel=0.05)


def test_points_are_the_same_for_every_arm_and_a_seed_gives_its_draws():
    starts = [
        measured(init=init, inverted_lambda=inverted, c=1.0, seed=1)[1]["norms"][:, 0]
        for init, inverted in (("identity", False), ("hnnpp", True))
    ]
    np.testing.assert_array_equal(*starts)
    state = torch.get_rng_state()
    first, again, other = (measured(init="hnnpp", draws=2, seed=seed)[1]["norms"] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state), "what others draw is left as it was"
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "centre"}, "evaluator.init=centre: must be identity or hnnpp"),
        ({"layers": 0}, "evaluator.layers=0: must be a whole number ≥ 1"),
        ({"draws": 2.5}, "evaluator.draws=2.5: must be"),
        ({"std": -1.0}, "evaluator.std=-1.0: must be > 0"),
        ({"c": 0.0}, "c=0.0: must be a finite number > 0"),
    ],
)
def test_a_wrong_option_ends_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        instantiate(config.OmegaConf.merge(config.compose_group("evaluator", "layer_norms"), options))
