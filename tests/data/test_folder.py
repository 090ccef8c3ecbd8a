from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hypimg.data.folder import form_skipping, image_files, read_image, unreadable
from hypimg.errors import UserError

RED = np.zeros((4, 6, 3), np.uint8)
RED[..., 0] = 200


def test_image_files_are_sorted_and_deep_and_hidden_or_other_files_left_out(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("c.png", "a.JPG", "b/d.webp", "notes.txt", ".e.png", ".hidden/f.png"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.png").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in image_files(tmp_path)] == ["a.JPG", "b/d.webp", "c.png"]


def test_a_missing_folder_or_one_without_images_is_named(tmp_path):
    with pytest.raises(UserError, match=r"images=.*none: no such folder"):
        image_files(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"holds no images .*\.png"):
        image_files(tmp_path)


def test_colour_is_read_as_it_is(tmp_path):
    Image.fromarray(RED).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image.dtype, image.shape) == (np.uint8, (4, 6, 3))
    assert np.array_equal(image, RED)


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.repeat(grey[..., None], 3, axis=2))


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_what_is_transparent_lies_on_white(tmp_path):
    pixels = np.dstack([RED, np.full((4, 6), 255, np.uint8)])
    pixels[:2, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image[:2] == 255).all()
    assert np.array_equal(image[2:], RED[2:])


def test_cmyk_and_palettes_become_rgb(tmp_path):
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).convert("CMYK").save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").max() <= 2
    Image.fromarray(RED).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.gif")
    assert np.array_equal(read_image(tmp_path / "a.gif"), RED)


def test_exif_turns_are_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # orientation: to be turned by 90° clockwise
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (6, 4, 3)
    assert (image[:, -1] == 255).all() and image[:, :-1].max() == 0


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def cut_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()[:1000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"text", "not an image"),
        (cut_jpeg(), "damaged image"),
        (bomb(), "more than 89478485 pixels"),
        (None, r"cannot be read \(No such file or directory\)"),
    ],
    ids=["empty", "text", "cut", "bomb", "missing"],
)
def test_an_unreadable_image_is_named_in_one_line(tmp_path, content, message):
    file = tmp_path / "a.jpg"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"image=.*a\.jpg: {message}") as caught:
        read_image(file)
    assert caught.value.value == file
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_found_and_logged(tmp_path, caplog):
    for name in "abc":
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"")
    files = sorted(tmp_path.iterdir())
    assert unreadable(files) == {tmp_path / "b.png"}
    assert [record.message for record in caplog.records] == [
        f"skipping image={tmp_path / 'b.png'}: empty file; replace it or leave it out"
    ]
    assert form_skipping("a folder", 1) == "a folder, 1 unreadable skipped"
    assert form_skipping("a folder", 0) == "a folder"
