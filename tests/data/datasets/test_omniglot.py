from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hypimg import _torchvision
from hypimg.data.datasets.omniglot import DRAWERS, Omniglot
from hypimg.data.resident import read_part
from hypimg.errors import UserError

MNIST = ([0.1307], [0.3081])


def omniglot(part: str = "evaluation", image_size: int = 28) -> Omniglot:
    return Omniglot(*MNIST, part=part, image_size=image_size)


@pytest.fixture(scope="session")
def arrays(shared_data):
    with np.load(shared_data / "omniglot.npz") as npz:
        return dict(npz)


def png(bits: np.ndarray) -> bytes:
    """One drawing as the authors publish it: 1 bit per pixel, ink 0."""
    buffer = io.BytesIO()
    Image.fromarray(np.unpackbits(bits, axis=1)[:, :105] == 0).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def drawings(arrays) -> dict[str, bytes]:
    """The evaluation part in the authors' layout: path → file."""
    files = {}
    for row in np.flatnonzero(~arrays["background"][arrays["labels"]]):
        label = arrays["labels"][row]
        name = f"{arrays['char_id'][label]:04d}_{arrays['drawer'][row]:02d}.png"
        files[f"images_evaluation/{arrays['chars'][label].decode()}/{name}"] = png(arrays["bits"][row])
    return files


def write_zip(folder: Path, members: dict[str, bytes], name: str = "images_evaluation.zip") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path, content in members.items():
            archive.writestr(path, content)
    return folder / name


@pytest.fixture(scope="session")
def official_zip(drawings, tmp_path_factory) -> Path:
    # The authors' zip also lists folders; order in a zip means nothing.
    members = {"images_evaluation/": b"", **dict(sorted(drawings.items(), reverse=True))}
    return write_zip(tmp_path_factory.mktemp("omniglot-py"), members)


@pytest.fixture(scope="session")
def store(shared_data, tmp_path_factory):
    return omniglot().open(shared_data, tmp_path_factory.mktemp("store"))


def test_the_evaluation_part_of_the_packed_form(store):
    assert store.official
    assert store.form == "packed npz"
    assert store.counts == {"evaluation": 13180}
    assert store.images.shape == (13180, 28, 28, 1)
    assert np.bincount(store.column("label")).tolist() == [20] * 659
    assert len(store.names("alphabet")) == 20
    assert store.digest.startswith("96f9267c1e82")  # golden: changes only with decoder_version


def test_ink_is_white_on_black_as_in_mnist(store):
    assert np.median(store.images) == 0
    assert store.images[:, 0, 0].mean() < 10
    assert store.images.max() == 255


def test_columns_belong_to_the_drawings(store):
    assert store.columns == ["label", "split", "drawer", "alphabet", "background"]
    assert store.column("drawer")[:21].tolist() == [*range(1, 21), 1]
    assert not store.column("background").any()
    for row in (0, 5000, 13179):
        alphabet = store.names("alphabet")[store.column("alphabet")[row]]
        assert store.classes[store.column("label")[row]].startswith(f"{alphabet}/character")


def reduced(arrays: dict[str, np.ndarray], index: int, size: int) -> np.ndarray:
    row = np.flatnonzero(~arrays["background"][arrays["labels"]])[index]
    ink = np.unpackbits(arrays["bits"][row], axis=1)[:, :105] * np.uint8(255)
    return np.asarray(Image.fromarray(ink).resize((size, size), Image.Resampling.BILINEAR))


def test_images_are_pillows_antialiased_reduction_of_the_ink(store, arrays):
    for index in (0, 1234, 13179):
        assert np.array_equal(store.image(index)[..., 0], reduced(arrays, index, 28))


def test_the_size_is_a_parameter_and_another_digest(shared_data, tmp_path, arrays, store):
    small = omniglot(image_size=14).open(shared_data, tmp_path)
    assert np.array_equal(small.image(1234)[..., 0], reduced(arrays, 1234, 14))
    assert small.digest != store.digest


def test_all_characters_and_both_splits(shared_data, tmp_path, arrays):
    store = omniglot("all").open(shared_data, tmp_path)
    assert store.official
    assert store.counts == {"background": 19280, "evaluation": 13180}
    assert store.classes == arrays["chars"].astype(str).tolist()
    assert np.array_equal(store.column("label"), arrays["labels"])
    assert np.array_equal(store.column("background"), arrays["background"][arrays["labels"]])


@pytest.fixture(scope="module")
def fewshot(shared_data, store_dir):
    dataset = Omniglot([0.0], [1.0], part="all", class_split="omniglot_vinyals", rotations=4)
    return dataset, dataset.open(shared_data, store_dir)


@pytest.mark.parametrize(("part", "characters"), [("train", 1028), ("val", 172), ("test", 423)])
def test_the_few_shot_parts_have_the_published_number_of_classes(fewshot, part, characters):
    """4,112 / 688 / 1,692 with the turns, 20 drawings each."""
    dataset, store = fewshot
    images, labels, names = read_part(dataset, store, dataset.indices(store, part))
    assert images.shape == (4 * characters * DRAWERS, 28, 28, 1)
    found, sizes = np.unique(labels, return_counts=True)
    assert (len(found), set(sizes.tolist())) == (4 * characters, {DRAWERS})
    assert {names[label].split(",")[0] for label in found} == set(dataset.class_split.parts[part])


def test_turned_drawings_are_classes_of_their_own(fewshot):
    dataset, store = fewshot
    images, labels, _ = read_part(dataset, store, np.array([500]))
    own = int(store.column("label")[500])
    assert sorted(labels.tolist()) == [4 * own, 4 * own + 1, 4 * own + 2, 4 * own + 3]
    drawing = Image.fromarray(store.image(500)[..., 0])
    for image, label in zip(images, labels, strict=True):
        assert np.array_equal(image[..., 0], np.asarray(drawing.rotate(90 * int(label % 4))))
    assert dataset.num_classes == 4 * 1623


def test_split_and_turns_are_no_matter_of_the_store(fewshot, shared_data):
    assert fewshot[1].digest == omniglot("all").find(shared_data).digest


@pytest.mark.parametrize("rotations", [0, 2, True, "4"])
def test_turns_are_checked(rotations):
    with pytest.raises(UserError, match=r"dataset\.rotations=.*must be 1, or 4"):
        Omniglot([0.0], [1.0], part="all", rotations=rotations)


def test_the_data_set_knows_its_shape():
    for part, classes in {"background": 964, "evaluation": 659, "all": 1623}.items():
        assert omniglot(part, 32).num_classes == classes
        assert omniglot(part, 32).image_shape == (1, 32, 32)


def same_but_form(first, second) -> bool:
    return (
        np.array_equal(first.images, second.images)
        and all(np.array_equal(first.column(name), second.column(name)) for name in first.columns)
        and first.meta["names"] == second.meta["names"]
    )


def test_the_official_zip_gives_the_same_pixels(store, official_zip, tmp_path):
    from_zip = omniglot().open(official_zip.parent.parent, tmp_path)
    assert from_zip.official
    assert from_zip.form == "zip files"
    assert same_but_form(store, from_zip)


def test_the_unpacked_folder_gives_the_same_pixels(store, official_zip, tmp_path):
    zipfile.ZipFile(official_zip).extractall(tmp_path / "data/omniglot-py")
    unpacked = omniglot().open(tmp_path / "data", tmp_path / "store")
    assert unpacked.official
    assert unpacked.form == "unpacked folders"
    assert same_but_form(store, unpacked)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert omniglot().find(tmp_path / "elsewhere").digest == unpacked.digest


def test_altered_ink_is_accepted_and_said_so(drawings, tmp_path):
    members = dict(drawings)
    path = next(iter(members))
    blank = io.BytesIO()
    Image.new("1", (105, 105), 1).save(blank, "PNG")
    write_zip(tmp_path / "data", {**members, path: blank.getvalue()})
    store = omniglot().open(tmp_path / "data", tmp_path / "store")
    assert not store.official
    assert store.form == "zip files, unknown pixels"


def test_a_part_that_is_not_there_is_not_found(official_zip, tmp_path):
    assert omniglot("all").find(official_zip.parent) is None
    with pytest.raises(UserError, match=r"dataset=omniglot: not found under .*images_background\.zip"):
        omniglot("background").open(official_zip.parent, tmp_path)


def failing(data_dir: Path, tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        omniglot().open(data_dir, tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


def few(drawings: dict[str, bytes], count: int = 40) -> dict[str, bytes]:
    return dict(list(drawings.items())[:count])


def test_missing_drawings_are_counted(drawings, tmp_path):
    write_zip(tmp_path / "data", few(drawings))
    failing(
        tmp_path / "data",
        tmp_path,
        r"images_evaluation\.zip: the evaluation part has 2 characters, 40 drawings, not 659",
    )


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "data/images_evaluation").mkdir(parents=True)
    failing(tmp_path / "data", tmp_path, "images_evaluation: the evaluation part has 0 characters")


def test_a_truncated_zip_is_named(official_zip, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/images_evaluation.zip").write_bytes(official_zip.read_bytes()[:1_000_000])
    failing(tmp_path / "data", tmp_path, r"file=.*images_evaluation\.zip: damaged or cut short")


def test_a_zip_with_hostile_names_is_refused(drawings, tmp_path):
    write_zip(tmp_path / "data", {**few(drawings), "../../evil.png": b"x"})
    failing(tmp_path / "data", tmp_path, "refused: its member '../../evil.png' leaves the folder")


def test_a_drawing_of_another_size_is_named(drawings, tmp_path):
    other = io.BytesIO()
    Image.new("1", (28, 28)).save(other, "PNG")
    members = few(drawings)
    members[next(iter(members))] = other.getvalue()
    write_zip(tmp_path / "data", members)
    failing(tmp_path / "data", tmp_path, "is 28×28, not 105×105")


@pytest.mark.parametrize("content", [b"", b"text", "cut"])
def test_a_damaged_drawing_is_named(drawings, tmp_path, content):
    members = few(drawings)
    path = next(iter(members))
    members[path] = members[path][:80] if content == "cut" else content
    write_zip(tmp_path / "data", members)
    failing(tmp_path / "data", tmp_path, f"file=.*{Path(path).name}: (not an|damaged) image")


def test_a_bomb_among_the_drawings_is_named(drawings, tmp_path):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, "PNG")
    members = few(drawings)
    members[next(iter(members))] = bomb.getvalue()
    write_zip(tmp_path / "data", members)
    failing(tmp_path / "data", tmp_path, "more than 89478485 pixels")


def test_a_damaged_npz_is_named(shared_data, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/omniglot.npz").write_bytes((shared_data / "omniglot.npz").read_bytes()[:-1000])
    failing(tmp_path / "data", tmp_path, r"file=.*omniglot\.npz: damaged")


def test_an_npz_of_another_kind_is_named(arrays, tmp_path):
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/omniglot.npz", images=np.zeros(3))
    failing(tmp_path / "data", tmp_path, "not Omniglot in the packed form .*bits")
    np.savez(tmp_path / "data/omniglot.npz", **{**arrays, "labels": arrays["labels"] + 1})
    failing(tmp_path / "data", tmp_path, "not Omniglot in the packed form")


def test_an_npz_stored_again_is_official_by_its_pixels(arrays, tmp_path):
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/omniglot.npz", **arrays)
    assert omniglot().open(tmp_path / "data", tmp_path / "store").official


@pytest.mark.parametrize(
    ("part", "size", "message"),
    [
        ("test", 28, "dataset.part=test: must be one of background, evaluation, all"),
        ("all", 0, "dataset.image_size=0"),
        ("all", 28.5, "dataset.image_size=28.5"),
        ("all", True, "dataset.image_size=True"),
    ],
)
def test_parameters_are_checked(part, size, message):
    with pytest.raises(UserError, match=message):
        omniglot(part, size)


def test_download_fetches_the_parts_that_are_needed(shared_data, tmp_path, monkeypatch):
    fetched = []

    def fetch(root: str, background: bool, download: bool) -> None:
        fetched.append(background)
        shutil.copy(shared_data / "omniglot.npz", root)

    monkeypatch.setattr(_torchvision, "load", lambda: SimpleNamespace(datasets=SimpleNamespace(Omniglot=fetch)))
    assert omniglot().open(tmp_path / "data", tmp_path / "store", download=True).official
    assert fetched == [False]
