from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from hypimg.data.datasets.digits import Digits
from hypimg.data.datasets.mnist import Mnist
from hypimg.data.datasets.omniglot import Omniglot
from hypimg.data.prepare import inspect

ROOT = Path(__file__).parents[2]
MNIST = ([0.1307], [0.3081])


def test_a_data_set_that_is_there_is_decoded(tmp_path):
    state = inspect(Digits([0.3], [0.4]), tmp_path, tmp_path / "store")
    assert (state.state, state.images, state.official) == ("ready", "train 1,297, test 500", "yes")
    assert state.note == str(tmp_path / "store" / f"digits-{state.digest}")
    assert (Path(state.note) / "meta.json").is_file()


def test_looking_decodes_nothing_and_knows_what_was_decoded(shared_data, tmp_path):
    omniglot = Omniglot(*MNIST, part="evaluation", image_size=28)
    looked = inspect(omniglot, shared_data, tmp_path / "store", fill=False)
    assert (looked.state, looked.official) == ("found", "not checked yet (fill=true does)")
    assert not (tmp_path / "store").exists()
    filled = inspect(omniglot, shared_data, tmp_path / "store")
    assert inspect(omniglot, shared_data, tmp_path / "store", fill=False) == filled
    assert filled.digest == looked.digest


def test_a_missing_data_set_says_where_to_get_it(tmp_path):
    state = inspect(Mnist(*MNIST), tmp_path, tmp_path / "store")
    assert (state.state, state.digest) == ("missing", "")
    assert state.note.endswith(f"in MNIST/raw under {tmp_path}, or pass download=true")


def test_a_damaged_data_set_names_the_file(tmp_path):
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(b"")
    state = inspect(Mnist(*MNIST), tmp_path, tmp_path / "store")
    assert state.state == "error"
    assert str(tmp_path / "train-images-idx3-ubyte") in state.note


def prepare(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/prepare_data.py", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.fixture(scope="module")
def main():
    """The command's own function, where a process of its own would show no more."""
    return runpy.run_path(str(ROOT / "scripts/prepare_data.py"))["main"]


@pytest.fixture(scope="module")
def shown(shared_data, store_dir):
    return prepare(f"data_dir={shared_data}", f"store_dir={store_dir}")


def test_the_command_has_a_line_for_each_data_set_of_the_configs(shown):
    assert shown.returncode == 0, shown.stderr
    names = [line.split(":")[0] for line in shown.stdout.splitlines()]
    assert names == sorted(path.stem for path in (ROOT / "configs/dataset").glob("*.yaml"))


def test_the_command_says_form_counts_digest_and_origin(shown):
    assert "mnist: ready; idx files; train 60,000, test 10,000; digest 1d503e0388d1; official: yes; " in shown.stdout


def test_the_command_finds_cifar_and_says_that_it_was_recompressed(shown):
    for name in ("cifar10", "cifar100"):
        line = next(line for line in shown.stdout.splitlines() if line.startswith(f"{name}: "))
        assert line.startswith(f"{name}: ready; packed npz, train recompressed as JPEG, test ")
        assert "train 50,000, test 10,000" in line
        assert "official: no: not, or not provably, the authors' bytes" in line


def test_the_command_says_how_to_get_what_is_missing(shown):
    lines = dict(line.split(": ", 1) for line in shown.stdout.splitlines())
    assert lines["cub"].startswith("missing; unpack CUB_200_2011.tgz (doi.org/10.22002/D1.20098, 1.2 GB, MD5 97ec")
    assert lines["miniimagenet"].startswith("missing; put miniimagenet/train.csv, val.csv, test.csv of Ravi and")
    assert "download=true" not in lines["cub"] + lines["miniimagenet"]


def test_a_data_set_asked_for_by_name_must_be_there(main, tmp_path, capsys):
    assert main([f"data_dir={tmp_path}", f"store_dir={tmp_path}/store", "dataset=mnist,omniglot"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(";")[0] for line in lines] == ["mnist: missing", "omniglot: missing"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("dataset=mnits", "error: dataset=mnits: .*did you mean mnist"),
        ("fil=true", "error: argument=fil=true: must be key=value; did you mean fill"),
        ("fill=perhaps", "error: fill=perhaps: must be true or false"),
        ("mnist", "error: argument=mnist: must be key=value"),
    ],
)
def test_a_wrong_word_ends_in_one_line(main, capsys, word, message):
    assert main([word]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(message + ".*\n", err)


def test_help_teaches_every_key(main, capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{key}=" in shown for key in ("data_dir", "store_dir", "dataset", "fill", "download"))
