"""What all tests share: repeatable hypothesis, one thread, the real data beside the checkout, and a quick run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from hypimg.nn import _native

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50, database=None)
hypothesis.settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

# A digits run of two short epochs, 0.1 s each.
QUICK = ["experiment=digits_disk", "trainer.epochs=2", "evaluator=[accuracy]", "logger=csv", "threads=1"]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test talks to a tracker that the machine happens to be logged in to."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)


@pytest.fixture(params=["plain", "native"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms of the Poincaré layers."""
    monkeypatch.setenv("HYPIMG_NATIVE", "0" if request.param == "plain" else "1")
    if request.param == "native" and not _native.usable(torch.zeros(1)):
        pytest.skip("no C compiler, so no native layers")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets that lie beside the checkout in CI."""
    assert SHARED_DATA.is_dir(), "the tests on real data need ../shared/data beside the checkout"
    return SHARED_DATA


@pytest.fixture(scope="session")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the session, so that each data set is decoded once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def quick(tmp_path: Path, store_dir: Path) -> list[str]:
    """Overrides of a run that takes about a second, in a folder of its own."""
    return [*QUICK, f"runs_dir={tmp_path / 'runs'}", f"store_dir={store_dir}"]


@pytest.fixture
def train() -> Callable[..., subprocess.Popen[str]]:
    """Start `python train.py` with these words as a real process."""

    def start(*words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "train.py", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
