from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from hypimg.data.archives import decode_image, open_zip, read_npz, read_pickle, read_pickled_dict, read_tar
from hypimg.errors import UserError


def zip_of(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_harmless_zip_opens(tmp_path):
    with open_zip(zip_of(tmp_path / "good.zip", {"a/b..c.txt": b"text"})) as archive:
        assert archive.read("a/b..c.txt") == b"text"


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "a\\..\\evil", "\\evil", "C:\\evil", "c:evil", "a/.."]
)
def test_a_member_that_leaves_the_folder_is_refused(tmp_path, name):
    path = zip_of(tmp_path / "evil.zip", {"good": b"", name: b""})
    with pytest.raises(UserError, match="leaves the folder") as caught, open_zip(path):
        pass
    assert str(path) in str(caught.value)


def test_too_many_members_are_refused(tmp_path):
    with (
        pytest.raises(UserError, match="more than 2 files"),
        open_zip(zip_of(tmp_path / "many.zip", dict.fromkeys("abc", b"")), max_members=2),
    ):
        pass


def test_a_zip_that_unpacks_to_too_much_is_refused(tmp_path):
    path = zip_of(tmp_path / "bomb.zip", {"zeros": bytes(5 << 20)})
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match="MiB"), open_zip(path, max_unpacked=4 << 20):
        pass


def test_a_member_longer_than_it_says_is_not_read_on(tmp_path):
    path = zip_of(tmp_path / "liar.zip", {"zeros": bytes(1 << 20)})
    raw = path.read_bytes()
    path.write_bytes(raw.replace((1 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(UserError, match="damaged"), open_zip(path) as archive:
        archive.read("zeros")


def test_an_encrypted_member_is_refused(tmp_path):
    path = zip_of(tmp_path / "secret.zip", {"a": b"text"})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="encrypted"), open_zip(path):
        pass


@pytest.mark.parametrize("keep", [0, 10, 100, -1])
def test_a_truncated_zip_is_named(tmp_path, keep):
    path = zip_of(tmp_path / "short.zip", {"a": os.urandom(300)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"short\.zip: damaged or cut short"), open_zip(path):
        pass


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_is_named(tmp_path, method):
    path = tmp_path / "flipped.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a", bytes(range(256)) * 4)
    raw = bytearray(path.read_bytes())
    raw[45:55] = bytes(byte ^ 255 for byte in raw[45:55])
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"flipped\.zip: (damaged|cannot be read)"), open_zip(path) as archive:
        archive.read("a")


def test_a_missing_zip_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.zip: cannot be read"), open_zip(tmp_path / "none.zip"):
        pass


def tar_of(path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_the_wanted_members_of_a_tar_are_read(tmp_path, mode):
    members = {"a": special("a", tarfile.DIRTYPE), "a/b..c": b"first", "./a/d": b"second", "a/e": b"third"}
    path = tar_of(tmp_path / "good.tar", members, mode)
    assert list(read_tar(path, {"a", "a/b..c", "a/d", "none"})) == [("a/b..c", b"first"), ("a/d", b"second")]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "a/.."])
def test_a_tar_member_that_leaves_the_folder_is_refused(tmp_path, name):
    path = tar_of(tmp_path / "evil.tar.gz", {"good": b"", name: b"x"})
    with pytest.raises(UserError, match=r"evil\.tar\.gz: refused: its member .* leaves the folder"):
        list(read_tar(path, {"none"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_a_tar_is_refused(tmp_path, kind):
    path = tar_of(tmp_path / "evil.tar.gz", {"a": special("a", kind, "/etc/passwd")})
    with pytest.raises(UserError, match="'a' is a link or a device"):
        list(read_tar(path, {"a"}))


def test_a_tar_beyond_the_limits_is_refused(tmp_path):
    path = tar_of(tmp_path / "bomb.tar.gz", {"zeros": bytes(5 << 20)})
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match=r"more than .* 4 MiB unpacked"):
        list(read_tar(path, {"zeros"}, max_unpacked=4 << 20))
    with pytest.raises(UserError, match="more than 2 files"):
        list(read_tar(tar_of(tmp_path / "many.tar.gz", dict.fromkeys("abc", b"")), set(), max_members=2))


@pytest.mark.parametrize("keep", [0, 10, 200, 5000])
@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_a_truncated_tar_is_named(tmp_path, mode, keep):
    path = tar_of(tmp_path / "short.tar", {"a": os.urandom(9000)}, mode)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"short\.tar: damaged or cut short"):
        list(read_tar(path, {"a"}))


def test_a_missing_tar_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.tar: cannot be read"):
        list(read_tar(tmp_path / "none.tar", set()))


def test_read_npz_returns_every_array(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(6).reshape(2, 3), y=np.array([b"text"]))
    arrays = read_npz(tmp_path / "a.npz")
    assert arrays["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["y"].tolist() == [b"text"]


def test_read_npz_runs_no_pickle(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([Attack(tmp_path / "run")], dtype=object))
    with pytest.raises(UserError, match="damaged: Object arrays cannot be loaded"):
        read_npz(tmp_path / "a.npz")
    assert not (tmp_path / "run").exists()


def test_read_npz_of_a_shape_beyond_the_bytes_is_damage(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 50,)})
    with pytest.raises(UserError, match="damaged"):
        read_npz(zip_of(tmp_path / "a.npz", {"x.npy": header.getvalue() + b"few"}))


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_is_refused_before_it_runs(tmp_path, protocol):
    (tmp_path / "evil").write_bytes(pickle.dumps({"data": Attack(tmp_path / "run")}, protocol))
    with pytest.raises(UserError, match=r"refused: not a pickle of plain arrays .*system"):
        read_pickle(tmp_path / "evil")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(V1\ntR.",
        b"cnumpy\nload\n(V/etc/passwd\ntR.",
        b"cnumpy\nndarray.__init__.__globals__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.",
        b"cnumpy._core.multiarray\nfromfile\n(V/etc/passwd\ntR.",
    ],
)
def test_a_pickle_that_asks_for_other_names_is_refused(tmp_path, code):
    (tmp_path / "evil").write_bytes(code)
    with pytest.raises(UserError, match="refused"):
        read_pickle(tmp_path / "evil")


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_arrays_loads(tmp_path, protocol):
    batch = {b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"labels": [1, 2, 3], "mean": np.float64(0.5)}
    (tmp_path / "batch").write_bytes(pickle.dumps(batch, protocol))
    loaded = read_pickle(tmp_path / "batch")
    assert np.array_equal(loaded[b"data"], batch[b"data"])
    assert loaded[b"labels"] == [1, 2, 3]


def test_strings_of_a_python_2_pickle_come_as_bytes(tmp_path):
    (tmp_path / "batch").write_bytes(b"(dp0\nS'labels'\np1\n(lp2\nI6\nas.")
    assert read_pickle(tmp_path / "batch") == {b"labels": [6]}


def test_a_pickle_in_an_archive_is_read_from_its_bytes_under_the_same_rules(tmp_path):
    name = tmp_path / "a.tar.gz/batch"
    assert read_pickle(name, pickle.dumps([1, 2])) == [1, 2]
    with pytest.raises(UserError, match=r"a\.tar\.gz/batch: refused: .*system"):
        read_pickle(name, pickle.dumps(Attack(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_keys_of_a_pickled_dictionary_come_as_text(tmp_path):
    assert read_pickled_dict(tmp_path / "a", pickle.dumps({b"data": b"bytes", "labels": 3})) == {
        "data": b"bytes",
        "labels": 3,
    }
    with pytest.raises(UserError, match="holds a list, not a dictionary"):
        read_pickled_dict(tmp_path / "a", pickle.dumps([1]))


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"garbage", b"(dp0\nS'lab"])
def test_a_damaged_pickle_is_named(tmp_path, content):
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(UserError, match=r"batch: (damaged|refused)"):
        read_pickle(tmp_path / "batch")


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 10_000)])
def test_an_image_above_the_pixel_limit_is_refused(tmp_path, size):
    Image.new("1", size).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(ValueError, match="more than 89478485 pixels"):
        decode_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"])
def test_what_is_no_image_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match="not an image"):
        decode_image(tmp_path / "a.png")


def test_a_truncated_image_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    with pytest.raises(ValueError, match="damaged image"):
        decode_image(io.BytesIO(buffer.getvalue()[:1000]))
