"""What a batch taken from the device holds: the pixels of the view, normalised, augmented by one generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from hypimg.data.augment import Augment
from hypimg.data.dataset import Found, ImageDataset
from hypimg.data.preprocess import normalise
from hypimg.data.resident import Part, ResidentImages, ResidentOriginals, fits, pack, read_part, rotated, rotated_names
from hypimg.data.store import Decoded, ImageStore, open_or_fill
from hypimg.errors import UserError

MEAN, STD = (0.2, 0.5, 0.7), (0.3, 0.25, 0.1)
AUGMENT = Augment(6, scale=(0.3, 1.0), brightness=0.4, contrast=0.4, saturation=0.4)


class Toy(ImageDataset):
    """A data set whose store is made here; `boxes`, if given, are its regions."""

    name, where, splits, num_classes, decoder_version = "toy", "nowhere", ("all",), 3, 1
    image_shape = (3, 8, 10)

    def __init__(self, rotations: int = 1, boxes: np.ndarray | None = None):
        super().__init__(MEAN, STD)
        self.rotations, self.boxes = rotations, boxes

    def regions(self, store: ImageStore, indices: np.ndarray) -> np.ndarray | None:
        return None if self.boxes is None else self.boxes[indices]

    def _locate(self, data_dir: Path) -> Found | None:
        return None

    def _decode(self, found: Found) -> Decoded:
        raise NotImplementedError


def _pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _store(folder: Path, images: np.ndarray | list[np.ndarray]) -> ImageStore:
    """In one array, or one after another where a list is given."""
    count = len(images)
    columns = {"label": np.arange(count) % 3, "split": np.zeros(count, np.int64)}
    given = images if isinstance(images, np.ndarray) else iter(images)
    decoded = Decoded(given, columns, {"label": ["a", "b", "c"], "split": ["all"]}, "generated", False)
    return open_or_fill(folder, "toy", "0" * 64, lambda: decoded)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _part(count: int = 7) -> Part:
    return Part(_pixels(count, 8, 10, 3), np.arange(count) % 3, ["a", "b", "c"])


def _standardised(pixels: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] in 0…255 → (p/255 − mean)/std, in float64."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels.double() / 255 - mean) / std


def test_a_batch_is_the_normalised_view_of_its_images(tmp_path: Path) -> None:
    dataset, store = Toy(), _store(tmp_path, _pixels(9, 8, 10, 3))
    wanted = np.array([7, 2, 5, 0])
    resident = ResidentImages(read_part(dataset, store, wanted), dataset.mean, dataset.std)
    assert len(resident) == 4 and resident.names == ["a", "b", "c"] and resident.device.type == "cpu"
    images, labels = resident.take(torch.tensor([3, 0, 0, 2]))
    source = torch.from_numpy(store.images[wanted[[3, 0, 0, 2]]]).permute(0, 3, 1, 2)
    assert labels.tolist() == [store.column("label")[i] for i in (0, 7, 7, 5)]
    assert images.dtype == torch.float32 and images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images.double(), _standardised(source), rtol=0, atol=2e-6)
    assert torch.equal(images, normalise(source, MEAN, STD)), "training and a predictor see the same numbers"


def test_rows_are_a_share_of_the_batch() -> None:
    resident, indices = ResidentImages(_part(), MEAN, STD), torch.tensor([6, 1, 4, 3, 0])
    images, labels = resident.take(indices)
    for rows in (slice(0, None, 2), slice(1, None, 2), slice(2, 4)):
        share, of_share = resident.take(indices, rows=rows)
        assert torch.equal(share, images[rows]) and torch.equal(of_share, labels[rows])


def test_augmentation_is_the_augments_own_drawn_for_the_whole_batch() -> None:
    part = _part()
    resident, indices = ResidentImages(part, MEAN, STD, augment=AUGMENT), torch.tensor([6, 1, 4, 3, 1])
    images, labels = resident.take(indices, _seeded(5))
    draws = AUGMENT.draw(torch.tensor([[8, 10]] * 5), _seeded(5))
    pixels = AUGMENT.apply(torch.from_numpy(part.images)[indices], draws)
    assert images.shape == (5, 3, 6, 6) and images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images.double(), _standardised(pixels), rtol=0, atol=1e-5)
    assert labels.tolist() == part.labels[indices].tolist()
    assert not torch.equal(images[1], images[4]), "an image taken twice is cut twice"
    assert torch.equal(images, resident.take(indices, _seeded(5))[0])
    assert not torch.equal(images, resident.take(indices, _seeded(6))[0])


@given(count=st.integers(1, 9), ranks=st.integers(1, 3), seed=st.integers(0, 99))
def test_ranks_get_the_rows_of_one_augmented_batch(count: int, ranks: int, seed: int) -> None:
    """Whatever their number: each draws for all images and cuts out its own."""
    resident = ResidentImages(_part(), MEAN, STD, augment=AUGMENT)
    indices = torch.randint(7, (count,), generator=_seeded(seed))
    whole, _ = resident.take(indices, _seeded(seed))
    for rank in range(min(ranks, count)):
        rows = slice(rank, None, ranks)
        torch.testing.assert_close(resident.take(indices, _seeded(seed), rows)[0], whole[rows], rtol=0, atol=1e-5)


def test_turned_images_are_further_classes_with_names(tmp_path: Path) -> None:
    images, labels = _pixels(3, 5, 5, 1), np.array([2, 0, 2])
    turned, numbers = rotated(images, 4), np.concatenate([labels * 4 + turn for turn in range(4)])
    assert turned.shape == (12, 5, 5, 1)
    found = {(int(number), image.tobytes()) for image, number in zip(turned, numbers, strict=True)}
    expected = {
        (int(label) * 4 + turn, np.ascontiguousarray(np.rot90(image, turn)).tobytes())
        for image, label in zip(images, labels, strict=True)
        for turn in range(4)
    }
    assert found == expected
    names = rotated_names(["a", "b", "c"], 4)
    assert len(names) == 12 and names[2 * 4 + 1] == "c, turned by 90°" and names[0] == "a, turned by 0°"
    assert np.array_equal(rotated(images, 1), images) and rotated_names(["a"], 1) == ["a"]
    dataset, store = Toy(rotations=4), _store(tmp_path, _pixels(3, 8, 8, 3))
    dataset.image_shape = (3, 8, 8)
    part = read_part(dataset, store, np.array([1]))
    assert part.labels.tolist() == [4, 5, 6, 7] and part.names[5] == "b, turned by 90°"
    assert np.array_equal(part.images[2], store.images[1][::-1, ::-1])


def test_originals_of_one_size_are_cut_as_resident_images_are(tmp_path: Path) -> None:
    pixels, wanted = _pixels(9, 8, 10, 3), np.array([8, 1, 4, 2, 5])
    plain = _store(tmp_path / "plain", pixels)
    in_a_row = _store(tmp_path / "row", list(pixels))
    indices = torch.tensor([4, 0, 3, 3, 1])
    fixed = ResidentImages(read_part(Toy(), plain, wanted), MEAN, STD, augment=AUGMENT)
    expected, labels = fixed.take(indices, _seeded(1))
    for store in (plain, in_a_row):
        originals = ResidentOriginals(Toy(), store, wanted, AUGMENT)
        images, mine = originals.take(indices, _seeded(1))
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
        assert torch.equal(mine, labels) and len(originals) == 5 and originals.names == ["a", "b", "c"]
        share, _ = originals.take(indices, _seeded(1), slice(1, None, 2))
        torch.testing.assert_close(share, images[1::2], rtol=0, atol=1e-5)
        assert images.is_contiguous(memory_format=torch.channels_last)


def _ragged() -> list[np.ndarray]:
    sizes = [(9, 14), (14, 9), (7, 7), (20, 6), (8, 31), (12, 12)]
    return [_pixels(*size, 3, seed=number) for number, size in enumerate(sizes)]


def test_originals_of_many_sizes_are_cut_each_by_its_own_draw(tmp_path: Path) -> None:
    photographs, wanted = _ragged(), np.array([5, 0, 3, 4])
    originals = ResidentOriginals(Toy(), _store(tmp_path, photographs), wanted, AUGMENT)
    indices = torch.tensor([2, 2, 0, 3, 1])
    images, labels = originals.take(indices, _seeded(2))
    chosen = [photographs[wanted[i]] for i in indices]
    draws = AUGMENT.draw(torch.tensor([image.shape[:2] for image in chosen]), _seeded(2))
    for row, image in enumerate(chosen):
        pixels = AUGMENT.apply(torch.from_numpy(image)[None], draws.rows(slice(row, row + 1)))
        torch.testing.assert_close(images[row].double(), _standardised(pixels)[0], rtol=0, atol=1e-4)
    assert labels.tolist() == [wanted[i] % 3 for i in indices]


def test_originals_on_the_cpu_are_the_stores_own_memory(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.set_warn_always(True)
    try:
        for images in (_pixels(6, 8, 10, 3), _ragged()):
            store = _store(tmp_path / type(images).__name__, images)
            originals = ResidentOriginals(Toy(), store, np.array([5, 0, 3]), AUGMENT)
            assert originals.flat.data_ptr() == store.flat[0].ctypes.data
            assert len(originals.flat) == len(store.flat[0])
    finally:
        torch.set_warn_always(False)
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


def test_a_part_packed_for_a_gpu_is_cut_alike(tmp_path: Path) -> None:
    """The bytes that a GPU would get, here taken on the CPU."""
    photographs, wanted = _ragged(), np.array([5, 0, 3, 4])
    store = _store(tmp_path, photographs)
    packed, starts = pack(store.flat[0], store.flat[1], wanted)
    assert packed.tobytes() == b"".join(photographs[i].tobytes() for i in wanted)
    assert starts.tolist() == np.cumsum([0, *(photographs[i].size for i in wanted[:-1])]).tolist()
    originals, indices = ResidentOriginals(Toy(), store, wanted, AUGMENT), torch.tensor([2, 2, 0, 3, 1])
    expected, _ = originals.take(indices, _seeded(2))
    originals.flat, originals._offsets = torch.from_numpy(packed), torch.from_numpy(starts)
    assert torch.equal(originals.take(indices, _seeded(2))[0], expected)


@pytest.mark.parametrize(("free", "where"), [(10_000, "cuda"), (2_000, "cpu")])
def test_a_gpu_keeps_what_leaves_room_for_the_step(free: int, where: str, tmp_path: Path, monkeypatch) -> None:
    """A device without memory (fake tensors) stands for it."""
    photographs, wanted = _ragged(), np.array([5, 0, 3, 4])  # 432 + 378 + 360 + 744 bytes
    store = _store(tmp_path, photographs)
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (free, 80 << 30))
    with FakeTensorMode(allow_non_fake_inputs=True):
        originals = ResidentOriginals(Toy(), store, wanted, AUGMENT, "cuda:1")
    assert asked == [torch.device("cuda:1")]
    assert originals.flat.device.type == where and originals.device == torch.device("cuda:1")
    assert len(originals.flat) == (1_914 if where == "cuda" else sum(image.size for image in photographs))
    assert [fits(size, "cuda:1") for size in (int(0.6 * free), int(0.6 * free) + 1)] == [True, False]
    assert not fits(1, "cpu")


def test_only_the_region_is_cropped(tmp_path: Path) -> None:
    """Black inside, white outside: no crop may see white."""
    boxes = np.array([[2, 3, 5, 8], [0, 0, 14, 4], [3, 1, 4, 6], [10, 2, 9, 4], [1, 20, 7, 10], [6, 6, 6, 6]])
    photographs = _ragged()
    for image, (top, left, height, width) in zip(photographs, boxes, strict=True):
        image[:] = 255
        image[top : top + height, left : left + width] = 0
    store, wanted = _store(tmp_path, photographs), np.array([4, 0, 1, 5, 3])
    augment = Augment(6, scale=(0.3, 1.0))
    indices = torch.arange(5).repeat(40)
    within, _ = ResidentOriginals(Toy(boxes=boxes), store, wanted, augment).take(indices, _seeded())
    black = _standardised(torch.zeros(1, 3, 6, 6))
    torch.testing.assert_close(within.double(), black.expand(200, 3, 6, 6), rtol=0, atol=1e-5)
    whole, _ = ResidentOriginals(Toy(), store, wanted, augment).take(indices, _seeded())
    assert not torch.allclose(whole.double(), black.expand(200, 3, 6, 6), atol=1e-2)


def test_images_of_varying_size_without_a_view_are_refused_in_one_line(tmp_path: Path) -> None:
    store = _store(tmp_path, _ragged())
    with pytest.raises(UserError, match=r"^dataset=toy: its images are of varying size, not 8×10×3$"):
        read_part(Toy(), store, store.indices())
