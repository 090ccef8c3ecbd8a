from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hypimg.errors import UserError
from hypimg.training import checkpoint
from hypimg.training.checkpoint import Checkpoints, remove_stale_temporaries, write_atomically

IDENTITY = {"config": "abc", "data set": "def"}


def _state(value: float) -> dict:
    return {"model": {"w": torch.full((3, 2), float(value))}, "step": int(value), "none": torch.zeros(0)}


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    assert checkpoints.resume() is None
    checkpoints.save("last", _state(1))
    checkpoints.save("last", _state(2))
    assert torch.equal(checkpoints.resume()["model"]["w"], torch.full((3, 2), 2.0))
    assert checkpoints.load("previous")["step"] == 1
    torch.load(checkpoints.path("last"), weights_only=True)


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "text"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save("last", _state(1))
    checkpoints.save("last", _state(2))
    path = checkpoints.path("last")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        where = content.index(torch.full((3, 2), 2.0).numpy().tobytes())
        content[where + 2] ^= 0x10
    path.write_bytes({"truncate": content[:-40], "empty": b"", "flip": content, "text": b"hello"}[damage])
    with pytest.raises(UserError, match=r"last\.pt: damaged .*delete"):
        checkpoints.load("last")
    assert checkpoints.resume()["step"] == 1
    checkpoints.path("previous").write_bytes(b"")
    with pytest.raises(UserError, match=r"previous\.pt: damaged"):
        checkpoints.resume()


def test_a_checkpoint_of_another_config_or_data_set_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, IDENTITY).save("last", _state(1))
    for other, named in (({**IDENTITY, "config": "x"}, "config"), ({**IDENTITY, "data set": "x"}, "data set")):
        with pytest.raises(UserError, match=f"another {named}"):
            Checkpoints(tmp_path, other).resume()


def test_a_pickle_in_place_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Attack:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    (tmp_path / "last.pt").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(UserError, match="damaged"):
        Checkpoints(tmp_path, IDENTITY).load("last")
    assert not (tmp_path / "owned").exists()


def test_a_full_disk_keeps_the_last_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save("last", _state(1))

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(UserError, match=r"last\.pt: cannot be written \(No space left on device\); make room"):
        checkpoints.save("last", _state(2))
    assert checkpoints.load("last")["step"] == 1
    assert not list(tmp_path.glob(".tmp-last*"))


def test_a_file_size_limit_keeps_the_last_good_file(tmp_path: Path) -> None:
    code = """
import resource, signal, sys, torch
from pathlib import Path
from hypimg.errors import UserError
from hypimg.training.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), {"config": "a"})
checkpoints.save("last", {"w": torch.zeros(10), "step": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save("last", {"w": torch.zeros(100_000), "step": 2})
except UserError as error:
    print(error)
print(checkpoints.load("last")["step"])
"""
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert "cannot be written (File too large)" in out and out.splitlines()[-1] == "1"


def test_no_kill_leaves_a_broken_file(tmp_path: Path) -> None:
    code = """
import sys, torch
from pathlib import Path
from hypimg.training.checkpoint import Checkpoints
checkpoints, step = Checkpoints(Path(sys.argv[1]), {"config": "a"}), 0
while True:
    checkpoints.save("last", {"w": torch.full((300_000,), float(step)), "step": step})
    step += 1
    print(step, flush=True)
"""
    checkpoints = Checkpoints(tmp_path, {"config": "a"})
    for kill in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * kill)
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = checkpoints.load("last")
        assert torch.equal(state["w"], torch.full((300_000,), float(state["step"])))
    remove_stale_temporaries(tmp_path)
    assert not list(tmp_path.glob(".tmp-*"))


def test_write_atomically_makes_folders_and_passes_other_errors_on(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b", b"x")
    assert (tmp_path / "a" / "b").read_bytes() == b"x"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"x")
