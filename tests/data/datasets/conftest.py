"""CIFAR as its authors publish it, in small: all forms of one of the two sets, and Python 2's pickles."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from hypimg.data.datasets import cifar
from hypimg.data.datasets.cifar import Cifar, Cifar10, Cifar100

Pack = Callable[..., dict[str, np.ndarray]]
HALF = [0.5, 0.5, 0.5]
TINY = {"train": 50, "test": 10}


class Python2:
    """Pickles as Python 2's cPickle wrote the authors' batches, byte for byte (protocol 2)."""

    def __init__(self) -> None:
        self.memo = 0

    def put(self) -> bytes:
        self.memo += 1
        return b"q" + bytes([self.memo]) if self.memo < 256 else b"r" + struct.pack("<I", self.memo)

    def string(self, text: bytes) -> bytes:
        return (b"U" + bytes([len(text)]) if len(text) < 256 else b"T" + struct.pack("<I", len(text))) + text

    def number(self, value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    def sequence(self, items: list[bytes] | list[int]) -> bytes:
        out = [b"]", self.put()]
        for start in range(0, len(items), 1000):
            out.append(b"(")
            for item in items[start : start + 1000]:
                out.append(self.string(item) + self.put() if isinstance(item, bytes) else self.number(item))
            out.append(b"e")
        return b"".join(out)

    def array(self, values: np.ndarray) -> bytes:
        out = b"cnumpy.core.multiarray\n_reconstruct\n" + self.put() + b"cnumpy\nndarray\n" + self.put()
        out += self.number(0) + b"\x85" + self.string(b"b") + b"\x87R" + self.put()
        out += b"(" + self.number(1) + b"".join(b"M" + struct.pack("<H", size) for size in values.shape) + b"\x86"
        out += b"cnumpy\ndtype\n" + self.put() + self.string(b"u1") + self.number(0) + self.number(1) + b"\x87R"
        out += self.put() + b"(" + self.number(3) + self.string(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
        return out + self.number(0) + b"tb\x89" + self.string(values.tobytes()) + b"tb"

    def dictionary(self, items: dict[bytes, bytes | np.ndarray | list]) -> bytes:
        out = [b"\x80\x02}", self.put(), b"("]
        for key, value in items.items():
            out += [self.string(key), self.put()]
            if isinstance(value, bytes):
                out += [self.string(value), self.put()]
            else:
                out.append(self.array(value) if isinstance(value, np.ndarray) else self.sequence(value))
        return b"".join([*out, b"u."])


def in_rows(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 32, 32, 3] → [N, 3072], channel by channel."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


class Tiny:
    """Fifty and ten random images in all forms of one of the two sets, which take them for official.

    Five of a class in a row; sorted by name alone the classes would come in the opposite order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pack: Pack, dataset: type[Cifar]):
        random = np.random.default_rng(0)
        self.dataset, self.pack, facts = dataset, pack, dataset.facts
        self.images = {split: random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for split, n in TINY.items()}
        self.names = {split: [f"{99 - i // 5}_{i % 5}".encode() for i in range(n)] for split, n in TINY.items()}
        self.labels = {column: {split: np.arange(n) // 5 for split, n in TINY.items()} for column in facts.columns}
        digests = {}
        for split in TINY:
            labels = b"".join(self.labels[column][split].astype(np.uint8).tobytes() for column in facts.columns)
            pixels = self.images[split].tobytes()
            digests[split] = (hashlib.sha256(pixels).hexdigest(), hashlib.sha256(labels).hexdigest())
        self.facts = dataclasses.replace(facts, digests=digests)
        monkeypatch.setattr(dataset, "facts", self.facts)
        monkeypatch.setattr(cifar, "COUNTS", TINY)

    def make(self) -> Cifar:
        return self.dataset(HALF, HALF)

    def batch(self, split: str, rows: Iterable[int]) -> dict[bytes, bytes | np.ndarray | list]:
        rows = list(rows)
        values: dict[bytes, bytes | np.ndarray | list] = {
            b"filenames": [self.names[split][row] + b".png" for row in rows],
            b"batch_label": b"a batch",
            b"data": in_rows(self.images[split][rows]),
        }
        for column, facts in self.facts.columns.items():
            values[facts.pickled[0].encode()] = self.labels[column][split][rows].tolist()
        return values

    def meta(self) -> dict[bytes, list[bytes]]:
        return {
            facts.pickled[1].encode(): [f"{column}_{i}".encode() for i in range(facts.classes)]
            for column, facts in self.facts.columns.items()
        }

    def batches(self) -> dict[str, dict]:
        """Pickle's name → what it holds."""
        values = {}
        for split, names in self.facts.batches.items():
            each = TINY[split] // len(names)
            values |= {name: self.batch(split, range(i * each, (i + 1) * each)) for i, name in enumerate(names)}
        return values | {self.facts.meta: self.meta()}

    def pickles(self) -> dict[str, bytes]:
        return {name: Python2().dictionary(values) for name, values in self.batches().items()}

    def write_folder(self, data_dir: Path, pickles: dict[str, bytes] | None = None) -> Path:
        folder = data_dir / self.facts.folder
        folder.mkdir(parents=True)
        for name, content in (self.pickles() if pickles is None else pickles).items():
            (folder / name).write_bytes(content)
        return data_dir

    def write_archive(self, data_dir: Path, members: dict[str, bytes] | None = None) -> Path:
        data_dir.mkdir()
        source = data_dir / ".members"
        source.mkdir()
        if members is None:
            members = {f"{self.facts.folder}/{name}": content for name, content in self.pickles().items()}
        with tarfile.open(data_dir / self.facts.archive, "w:gz") as archive:
            for number, (name, content) in enumerate(members.items()):
                (source / str(number)).write_bytes(content)
                archive.add(source / str(number), name)
        return data_dir

    def arrays(self, split: str) -> dict[str, np.ndarray]:
        """The packed form without loss."""
        arrays = self.pack(self.images[split], 4)
        arrays["names"] = np.array(self.names[split])
        for column, facts in self.facts.columns.items():
            arrays[facts.packed[0]] = self.labels[column][split].astype(np.uint8)
            arrays[facts.packed[1]] = np.array(self.meta()[facts.pickled[1].encode()])
        return arrays

    def write_npz(self, data_dir: Path, **changes: np.ndarray) -> Path:
        """changes: of the test file's arrays."""
        data_dir.mkdir()
        np.savez(data_dir / f"{self.dataset.name}_train.npz", **self.arrays("train"))
        np.savez(data_dir / f"{self.dataset.name}_test.npz", **self.arrays("test") | changes)
        return data_dir


@pytest.fixture(scope="session")
def python2() -> Callable[[dict], bytes]:
    """A dictionary as Python 2 pickled it."""
    return lambda values: Python2().dictionary(values)


@pytest.fixture(params=[Cifar10, Cifar100])
def tiny(monkeypatch, pack, request) -> Tiny:
    return Tiny(monkeypatch, pack, request.param)


@pytest.fixture
def tiny10(monkeypatch, pack) -> Tiny:
    return Tiny(monkeypatch, pack, Cifar10)


@pytest.fixture
def tiny100(monkeypatch, pack) -> Tiny:
    return Tiny(monkeypatch, pack, Cifar100)
