"""`scripts/hyperbolicity.py`: from images, a data set or a matrix to an answer; one line for all that is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from torch import nn

from hypimg.evaluation import features
from hypimg.figures import hyperbolicity as figure
from hypimg.models import encoders
from hypimg.models.encoders import Encoder, Preprocessing

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "hyperbolicity.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_hyperbolicity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, monkeypatch, tmp_path, capsys):
    """Call the script in a folder of its own, with an encoder that returns 8×8 pixels: (exit code, output, errors).

    The picture takes a second and is drawn where asked for.
    """
    how = Preprocessing(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    encoder = Encoder("pixels", nn.Flatten(), how, "last", "0" * 64)
    monkeypatch.setattr(encoders, "load", lambda name, download=False: encoder)
    monkeypatch.setattr(encoders, "default_name", lambda: "pixels")
    monkeypatch.chdir(tmp_path)

    real = figure.draw

    def call(*words: str, draw: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(figure, "draw", real if draw else lambda analysis, name, stem: [])
        code = script.main([*words, "device=cpu"])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture
def photos(tmp_path) -> Path:
    random = np.random.default_rng(0)
    for index in range(24):
        path = tmp_path / "photos" / f"class{index % 3}" / f"{index:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 12, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def test_a_plain_folder_of_images_gets_an_answer(run, photos):
    code, said, _ = run("images=photos", "samples=6", "repeats=4", draw=True)
    assert code == 0
    assert "photos-pixels: 24 images, 4 disjoint subsamples of 6" in said
    assert "192 features of pixels, before its last layer (last)" in said
    assert said.count("±") == 8 and "Gaussian cloud" in said and "by HIE's constant 0.144" in said
    report = json.loads(Path("hyperbolicity/photos-pixels/report.json").read_text())
    assert report["images"] == 24 and report["encoder"] == "pixels" and report["samples"] == 6
    mean = np.mean([part["delta_rel"] for part in report["subsamples"]])
    assert f"{mean:.3f} ±" in said and report["mean_and_std"]["delta_rel_data"][0] == pytest.approx(mean)
    assert all((Path("hyperbolicity/photos-pixels") / f"report.{end}").is_file() for end in ("png", "pdf", "txt"))


def test_the_feature_matrix_is_kept_and_gives_the_same_answer(run, photos):
    _, first, _ = run("images=photos", "samples=6", "repeats=4", "out=here")
    assert np.load("here/features.npy").shape == (24, 192)
    assert Path("here/files.txt").read_text().split() == sorted(
        str(path.relative_to(photos)) for path in photos.rglob("*.jpg")
    )
    _, second, _ = run("features=here/features.npy", "samples=6", "repeats=4", "out=there")
    numbers = [[line for line in said.splitlines() if "±" in line] for said in (first, second)]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 2
    assert not Path("there/features.npy").exists()


def test_no_more_images_are_encoded_than_the_subsamples_need(run, photos):
    run("images=photos", "samples=5", "repeats=2", "out=here")
    assert np.load("here/features.npy").shape == (10, 192)
    assert len(Path("here/files.txt").read_text().split()) == 10


def test_fewer_images_than_samples_are_all_used_and_it_says_so(run, photos):
    _, said, _ = run("images=photos", "repeats=3")
    assert "fewer than samples=1000, so all 24 images each time: ± is over base points alone" in said


def test_a_configured_data_set_is_analysed(run, tmp_path):
    code, said, _ = run("dataset=digits", "samples=40", "store_dir=store", "data_dir=data")
    assert code == 0 and "digits-pixels: 500 images, 10 disjoint subsamples of 40" in said
    report = json.loads(Path("hyperbolicity/digits-pixels/report.json").read_text())
    assert report["split"] == "test" and report["dataset"] == "digits" and len(report["digest"]) == 64
    code, said, _ = run("dataset=digits", "split=train", "samples=40", "store_dir=store", "repeats=2")
    assert code == 0 and "1,297 images" in said


def test_an_unreadable_image_stops_and_is_named_or_is_left_out_and_counted(run, photos):
    (photos / "class1" / "10.jpg").write_bytes(b"not a photo")
    code, _, error = run("images=photos", "samples=6", "repeats=4")
    assert code == 2 and "10.jpg" in error and "skip_unreadable=1" in error and len(error.splitlines()) == 1
    code, said, _ = run("images=photos", "samples=6", "repeats=3", "skip_unreadable=1", "seed=1")
    assert code == 0
    report = json.loads(Path("hyperbolicity/photos-pixels/report.json").read_text())
    (file, reason), *others = report["unreadable"].items()
    assert file.endswith("10.jpg") and reason and others == []
    assert "1 of 19 left out as unreadable; report.json says why" in said
    assert "3 disjoint subsamples of 6" in said  # another image has taken its place
    _, said, _ = run("images=photos", "samples=6", "repeats=4", "skip_unreadable=1")
    assert "1 of 24 left out" in said and "4 overlapping subsamples of 6" in said


def test_a_folder_of_unreadable_images_names_the_first(run, photos):
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"")
    code, _, error = run("images=photos", "skip_unreadable=1")
    assert code == 2 and "00.jpg: empty file" in error and "none of 24 files could be read" in error


def test_a_report_that_cannot_be_written_is_told_before_anything_is_encoded(run, photos, monkeypatch):
    monkeypatch.setattr(features, "of_files", lambda *args, **options: pytest.fail("encoded"))
    code, _, error = run("images=photos", "out=photos/class0/00.jpg/report")
    assert code == 2 and "cannot be written (Not a directory); pass another folder" in error


def test_kept_features_are_named_by_their_folder(run, tmp_path):
    (tmp_path / "birds").mkdir()
    np.save("birds/features.npy", np.random.default_rng(0).standard_normal((30, 5)))
    _, said, _ = run("features=birds/features.npy", "samples=10", "repeats=2")
    assert said.startswith("\nbirds: 30 images") and Path("hyperbolicity/birds/report.json").is_file()


def test_features_on_a_line_give_no_c(run, tmp_path):
    code, said, _ = run(matrix(tmp_path, np.random.default_rng(0).standard_normal((30, 1))), "samples=10")
    assert code == 0 and "Nothing to say" in said and "c from" not in said
    assert json.loads(Path("hyperbolicity/matrix/report.json").read_text())["c"] is None


def test_a_text_or_a_part_of_a_file_is_no_matrix_and_numpys_advice_is_not_repeated(run, tmp_path):
    whole = tmp_path / "whole.npy"
    np.save(whole, np.zeros((9, 9)))
    for content in (b"1.0 2.0\n3.0 4.0\n", b"", b"PK\x03\x04", whole.read_bytes()[:300]):
        (tmp_path / "part.npy").write_bytes(content)
        code, _, error = run("features=part.npy")
        assert code == 2 and "not a whole .npy file of numbers; write one by numpy.save" in error
        assert "pickle" not in error


def matrix(tmp_path: Path, rows: np.ndarray) -> str:
    np.save(tmp_path / "matrix.npy", rows, allow_pickle=True)
    return "features=matrix.npy"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros(9), "must be one matrix"),
        (np.zeros((3, 4, 5)), "must be one matrix"),
        (np.zeros((3, 4)), "give at least 4"),
        (np.ones((9, 4)), "all equal"),
        (np.array([[1.0, 2]] * 4 + [[np.nan, 1]]), "not finite"),
        (np.array([[{}]] * 9, object), "not a whole .npy file of numbers"),
        (np.array([["x"]] * 9), "must be a matrix of numbers"),
        (np.zeros((9, 2), complex), "must be a matrix of numbers"),
    ],
)
def test_a_wrong_matrix_ends_in_one_line(run, tmp_path, rows, message):
    code, _, error = run(matrix(tmp_path, rows))
    assert code == 2 and message in error and len(error.splitlines()) == 1


def test_whole_numbers_and_float16_are_matrices_too(run, tmp_path):
    rows = np.random.default_rng(0).integers(0, 9, (30, 5))
    for dtype in (np.uint8, np.int64, np.float16, np.float64):
        code, said, _ = run(matrix(tmp_path, rows.astype(dtype)), "samples=10", "repeats=2")
        assert code == 0 and "matrix: 30 images" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["samples=10"], "give one of images=, dataset= and features="),
        (["images=a", "dataset=b"], "give one of"),
        (["image=a"], "did you mean images"),
        (["photos"], "give key=value"),
        (["images=nowhere"], "no such folder"),
        (["features=nowhere.npy"], "no such file"),
        (["images=empty"], "holds no images"),
        (["images=photos", "samples=3"], "samples=3: must be a whole number ≥ 4"),
        (["images=photos", "repeats=1"], "must be a whole number ≥ 2"),
        (["images=photos", "samples=many"], "must be a whole number"),
        (["images=photos", "skip_unreadable=yes"], "must be 0 or 1"),
        (["images=photos/class0/00.jpg"], "no such folder"),
        (["dataset=cifar11"], "did you mean cifar10"),
        (["features=a.npy", "encoder=vgg19"], "has no meaning with features=, only with images= and dataset="),
        (["images=photos", "split=test"], "has no meaning with images=, only with dataset="),
        (["dataset=digits", "skip_unreadable=1"], "has no meaning with dataset=, only with images="),
        (["dataset=digits", "split=val", "store_dir=store"], "split=val"),
        (["images=photos", "repeats=2", "samples=6", "out=photos/class0/00.jpg"], "cannot be written"),
    ],
)
def test_what_is_wrong_ends_in_one_line(run, photos, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    code, _, error = run(*words)
    assert code == 2 and message in error and error.splitlines()[-1].startswith("error: ")


def test_three_images_are_too_few(run, photos):
    for path in sorted(photos.rglob("*.jpg"))[3:]:
        path.unlink()
    code, _, error = run("images=photos")
    assert code == 2 and "give at least 4" in error


def test_help_teaches_and_needs_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    for word in ("images=", "A low δ_rel alone proves nothing", "Gaussian cloud", "Which c", "skip_unreadable"):
        assert word in done.stdout


def test_without_weights_it_ends_with_both_remedies(photos, tmp_path):
    # Python finds no packages of the user's here, but the one that ships weights may be in the environment itself.
    code = (
        "import sys, runpy; from hypimg.models import encoders; encoders.LITE0_PACKAGE = 'no-such-package';"
        f"sys.argv = ['hyperbolicity.py', 'images=photos']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    env = {**os.environ, "TORCH_HOME": str(tmp_path / "nothing"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=env
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "resnet34-b627a593.pth" in last and "pip install no-such-package" in last and "Traceback" not in done.stderr
