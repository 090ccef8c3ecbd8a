from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hypimg.data.preprocess import normalise, read_images, split_off, to_tensor
from hypimg.errors import UserError

GREY, COLOUR = (1, 8, 8), (3, 8, 8)


def test_to_tensor_moves_the_channels_forward():
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    tensor = to_tensor(images)
    assert tensor.shape == (4, 3, 5, 6)
    assert tensor.is_contiguous()
    assert tensor[2, 1, 3, 4] == images[2, 3, 4, 1]


def test_to_tensor_copies_so_a_map_is_never_written(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1, 2, 2, 1), np.uint8))
    tensor = to_tensor(np.load(tmp_path / "a.npy", mmap_mode="r"))
    tensor += 1
    assert np.load(tmp_path / "a.npy").max() == 0


def test_to_tensor_takes_only_stored_images():
    with pytest.raises(ValueError, match="uint8"):
        to_tensor(np.zeros((1, 2, 2, 1), np.float32))


def test_normalise_is_its_formula():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    shape = (1, 3, 1, 1)
    wanted = (images.double() / 255 - torch.tensor(mean).double().view(shape)) / torch.tensor(std).double().view(shape)
    got = normalise(images, mean, std)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-6)


def test_normalise_leaves_its_input_alone():
    images = torch.full((1, 1, 2, 2), 7, dtype=torch.uint8)
    normalise(images, [0.5], [0.5])
    assert (images == 7).all()


@pytest.mark.parametrize("images", [torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)])
def test_normalise_checks_type_and_channels(images):
    with pytest.raises(ValueError, match="uint8"):
        normalise(images, [0.5], [0.5])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 4), max_size=60), st.floats(0, 0.95), st.integers(0, 3))
def test_split_off_parts_every_class_by_the_fraction(labels, fraction, seed):
    labels = np.array(labels, np.int64)
    rest, held_out = split_off(labels, fraction, generator(seed))
    assert sorted([*rest, *held_out]) == list(range(len(labels)))
    assert (np.diff(rest) > 0).all() and (np.diff(held_out) > 0).all()
    for label in np.unique(labels):
        assert (labels[held_out] == label).sum() == round(fraction * (labels == label).sum())


def test_split_off_follows_its_generator_alone():
    labels = np.arange(100) % 10
    torch.manual_seed(1)
    first = split_off(labels, 0.2, generator(3))[1]
    torch.manual_seed(2)
    assert np.array_equal(first, split_off(labels, 0.2, generator(3))[1])
    assert not np.array_equal(first, split_off(labels, 0.2, generator(4))[1])
    assert first.dtype == np.int64


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_split_off_refuses_other_fractions(fraction):
    with pytest.raises(UserError, match="val_fraction"):
        split_off(np.zeros(3), fraction, generator())


def one(path, shape=GREY, invert="no") -> np.ndarray:
    images, kept, skipped = read_images([path], shape, invert)
    assert (kept, skipped) == ([path], [])
    assert images.dtype == torch.uint8
    assert images.shape == (1, *shape)
    return images[0].numpy()


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"]
)
@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_every_mode_is_read(tmp_path, mode, shape):
    path = tmp_path / "a.tiff"
    grey = Image.fromarray(np.uint8([[0, 255]]).repeat(4, 1).repeat(8, 0))
    source = {"PA": "LA", "HSV": "RGB", "LAB": "RGB"}.get(mode, mode)
    image = grey.convert("RGB").convert(source) if source in {"CMYK", "YCbCr"} else grey.convert(source)
    if mode == "I":
        image = Image.fromarray(np.asarray(grey, np.int32) * 257)
    try:
        image.save(path)
    except OSError:
        image.save(path := tmp_path / "a.png")
    pixels = one(path, shape)
    assert (pixels[..., :4] < 3).all()
    assert (pixels[..., 4:] > 252).all()


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    values = np.uint16([[0, 257 * 10], [257 * 128, 65535]])
    Image.fromarray(values).save(tmp_path / "a.png")
    assert one(tmp_path / "a.png", (1, 2, 2))[0].tolist() == [[0, 10], [128, 255]]


def test_float_images_are_scaled_by_their_own_range(tmp_path):
    Image.fromarray(np.float32([[-1, 0], [0.5, 1]])).save(tmp_path / "a.tiff")
    assert one(tmp_path / "a.tiff", (1, 2, 2))[0].tolist() == [[0, 128], [191, 255]]
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    assert one(tmp_path / "nan.tiff", (1, 2, 2)).max() == 0


def test_what_is_transparent_lies_on_white(tmp_path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[2:6, 2:6, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(rgba).quantize(4).save(tmp_path / "palette.gif", transparency=0)
    pixels = one(tmp_path / "a.png")[0]
    assert (pixels[0, 0], pixels[4, 4]) == (255, 0)


def test_a_transparent_palette_entry_lies_on_white(tmp_path):
    image = Image.fromarray(np.eye(8, dtype=np.uint8))
    image.putpalette([200, 0, 0, 0, 0, 0])
    image.save(tmp_path / "a.gif", transparency=0)
    pixels = one(tmp_path / "a.gif", COLOUR)
    assert pixels[:, 0, 1].tolist() == [255, 255, 255]
    assert pixels[:, 0, 0].tolist() == [0, 0, 0]


def test_exif_turns_are_applied(tmp_path):
    image = Image.fromarray(np.uint8([[0, 255], [0, 255]]).repeat(8, 0).repeat(8, 1))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90° clockwise to view
    image.save(tmp_path / "a.png", exif=exif)
    pixels = one(tmp_path / "a.png", (1, 16, 16))[0]
    assert pixels[:8].max() == 0 and pixels[8:].min() == 255


def test_the_first_frame_of_a_film_counts(tmp_path):
    frames = [Image.new("L", (8, 8), grey) for grey in (40, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert abs(int(one(tmp_path / "a.gif").mean()) - 40) <= 1


def test_images_are_resized_with_antialiasing(tmp_path):
    checks = np.indices((80, 80)).sum(0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "a.png")
    assert np.abs(one(tmp_path / "a.png").astype(int) - 127).max() <= 2


def test_a_wrong_ending_does_not_matter(tmp_path):
    Image.new("RGB", (9, 9), (10, 20, 30)).save(tmp_path / "a.png", format="BMP")
    assert one(tmp_path / "a.png", COLOUR)[:, 3, 3].tolist() == [10, 20, 30]


def test_auto_inverts_dark_ink_on_light_paper_for_grey_models(tmp_path):
    pixels = np.full((8, 8), 250, np.uint8)
    pixels[3:5, 3:5] = 10
    Image.fromarray(pixels).save(tmp_path / "paper.png")
    Image.fromarray(255 - pixels).save(tmp_path / "mnist.png")
    assert np.array_equal(one(tmp_path / "paper.png", invert="auto"), one(tmp_path / "mnist.png", invert="auto"))
    assert one(tmp_path / "paper.png", invert="auto")[0, 4, 4] == 245
    assert one(tmp_path / "paper.png", COLOUR, invert="auto")[0, 0, 0] == 250
    assert one(tmp_path / "mnist.png", invert="yes")[0, 0, 0] == 250


def test_unreadable_files_are_named_and_the_others_kept(tmp_path):
    good, empty, text, short, none = (tmp_path / name for name in ("g.png", "e.png", "t.png", "s.jpg", "n.png"))
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (64, 64), dtype=np.uint8)).save(good)
    empty.write_bytes(b"")
    text.write_text("hello")
    Image.open(good).save(short)
    short.write_bytes(short.read_bytes()[:900])
    images, kept, skipped = read_images([empty, good, text, short, none, tmp_path], GREY)
    assert images.shape == (1, 1, 8, 8)
    assert kept == [good]
    assert [path for path, _ in skipped] == [empty, text, short, none, tmp_path]
    reasons = [reason for _, reason in skipped]
    assert reasons[:2] == ["empty file", "not an image"]
    assert "damaged image" in reasons[2] and "No such file" in reasons[3]


def test_an_oversized_image_is_skipped_by_name(tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    images, kept, skipped = read_images([tmp_path / "bomb.png"], COLOUR)
    assert images.shape == (0, 3, 8, 8)
    assert kept == []
    assert skipped == [(tmp_path / "bomb.png", "more than 89478485 pixels")]


def test_an_unknown_invert_is_refused():
    with pytest.raises(UserError, match="invert=maybe"):
        read_images([], GREY, invert="maybe")
