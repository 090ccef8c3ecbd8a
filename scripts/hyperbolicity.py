"""How hyperbolic is this data set, and which curvature c suits it?

    python scripts/hyperbolicity.py images=photos/                   any folder of images, subfolders too
    python scripts/hyperbolicity.py dataset=cifar10 split=test       a data set of configs/dataset
    python scripts/hyperbolicity.py features=features.npy            a matrix of your own, one row per image

  encoder=             resnet34, inception_v3, vgg19 (those of HIE), any classification network of torchvision
                       (resnet50, resnet50:IMAGENET1K_V1, vit_b_16, …) or efficientnet_lite0, without its last layer
                       (default: resnet34 if its weights are here, else efficientnet_lite0 if its package is)
  samples=1000         images in a subsample          repeats=10    subsamples (and Gaussian clouds)
  seed=0               of the subsamples              device=auto   auto, cpu, cuda, cuda:1
  batch_size=          images encoded at once (default: 4 on a CPU, 256 on a GPU)
  out=                 folder of the report (default: hyperbolicity/<name>; features.npy is named by its folder)
  skip_unreadable=0    1: take others for files that cannot be read, and say how many; 0: stop at the first
  download=0           1: fetch missing weights or data
  data_dir=, store_dir=   as for train.py, with dataset=

What is measured. δ is Gromov's: how far four points are, at worst, from lying on a tree. δ_rel = 2δ / diameter is 0 for
a tree and at most 1. As in HIE's Table 2, distances are Euclidean between features of a network trained on ImageNet,
δ is that of one base point, and ± is the standard deviation over subsamples.

How to read it. A low δ_rel alone proves nothing: points without any structure have a low one too in high dimension
(0.11 for 300 points of a round Gaussian in dimension 1280). So compare with the line "Gaussian cloud": as many points,
with the same covariance as the features, without structure. Only values far below those are a sign of a tree: features
of pictures of pure noise are an eighth to a third below, too, and clusters without a hierarchy give the sign as a tree
does. δ_rel also falls when a few far-out images stretch the diameter; 2δ over the mean distance then does not. δ_rel
grows with the number of images in a subsample: compare only values of equally many. It describes the data as this
encoder sees them, not as a model trained on them would.

Which c. c = (k / δ_rel)², with two values of k: HIE's 0.144, which divides by the radius of its clipped disk and takes
the δ of thin triangles; and 0.0568, of the same disk by the definitions used here (four points, diameter). No result of
HIE uses its formula; its few-shot runs have c by hand, 0.05 at most. Take both as points of a sweep, not as an answer.

Written: features.npy (use it again: features=…), files.txt (its rows), report.json, report.png, .pdf and .txt.
Exit codes: 0 done, 2 something that you can mend.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from zipfile import BadZipFile

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout works without having been installed

import numpy as np  # noqa: E402

from hypimg.errors import UserError, nearest  # noqa: E402

OPTIONS = {
    "images": "",
    "dataset": "",
    "features": "",
    "split": "",
    "encoder": "",
    "samples": "1000",
    "repeats": "10",
    "seed": "0",
    "device": "auto",
    "batch_size": "",
    "out": "",
    "skip_unreadable": "0",
    "download": "0",
    "data_dir": os.environ.get("HYPIMG_DATA", "data"),
    "store_dir": os.environ.get("HYPIMG_STORE", "data/.store"),
}
SOURCES = ("images", "dataset", "features")
# The sources with which an option has a meaning, where it is not all.
MEANT_FOR: dict[str, tuple[str, ...]] = {"skip_unreadable": ("images",)}
MEANT_FOR |= dict.fromkeys(("split", "data_dir", "store_dir"), ("dataset",))
MEANT_FOR |= dict.fromkeys(("encoder", "batch_size", "download"), ("images", "dataset"))


@dataclass
class Source:
    """Rows to analyse and where they come from. total: images there were; rows are those that may be drawn."""

    name: str
    out: Path
    rows: np.ndarray
    total: int
    facts: dict[str, Any]
    files: list[str] = field(default_factory=list)
    note: str = ""


def main(words: list[str]) -> int:
    if not words or {"--help", "-h", "help"} & set(words):
        print(__doc__)
        return 0
    try:
        report(parse(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def parse(words: list[str]) -> dict[str, str]:
    options = dict(OPTIONS)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError("argument", word, "give key=value, for instance images=photos/; --help shows the keys")
        if key not in options:
            raise UserError(key, value, f"unknown; {nearest(key, options)}")
        options[key] = value or options[key]
    given = [key for key in SOURCES if options[key]]
    if len(given) != 1:
        raise UserError("source", " and ".join(given) or None, "give one of images=, dataset= and features=")
    for key, sources in MEANT_FOR.items():
        if options[key] != OPTIONS[key] and given[0] not in sources:
            meant = " and ".join(f"{source}=" for source in sources)
            raise UserError(key, options[key], f"has no meaning with {given[0]}=, only with {meant}")
    return options


def report(options: dict[str, str]) -> None:
    from hypimg.evaluation import hyperbolicity
    from hypimg.run import pick_device

    samples = whole("samples", options["samples"], 4)
    repeats, seed = whole("repeats", options["repeats"], 2), whole("seed", options["seed"], 0)
    device = pick_device(options["device"])
    began = time.monotonic()
    source = read_source(options, samples, repeats, seed, device)
    encoded = time.monotonic()
    keep_features(source)
    analysis = hyperbolicity.analyse(source.rows, samples, repeats, seed, device, announce(repeats))
    seconds = {"features": round(encoded - began, 1), "analysis": round(time.monotonic() - encoded, 1)}
    show(source, analysis, samples, seconds)
    write_report(source, analysis, options, seconds)


def read_source(options: dict[str, str], samples: int, repeats: int, seed: int, device: str) -> Source:
    """The feature matrix of what was named, computed for no more images than the subsamples need."""
    if options["features"]:
        path = Path(options["features"])
        rows = load_matrix(path)
        name = path.resolve().parent.name if path.stem == "features" else path.stem
        return Source(name, make_out(options, name), rows, len(rows), {"features": str(path)})

    from hypimg.evaluation import features
    from hypimg.evaluation.hyperbolicity import pool, spares
    from hypimg.models import encoders

    download = switch("download", options["download"])
    batch_size = whole("batch_size", options["batch_size"], 1) if options["batch_size"] else None
    skip = switch("skip_unreadable", options["skip_unreadable"])
    if options["images"]:
        from hypimg.data.folder import image_files

        folder = Path(options["images"])
        paths = image_files(folder)
        enough(len(paths), f"images in {folder}")
        encoder = encoders.load(options["encoder"] or encoders.default_name(), download)
        name = f"{folder.resolve().name or 'images'}-{encoder.name.replace(':', '-')}"
        out = make_out(options, name)
        chosen, others = ([paths[row] for row in drawn(len(paths), samples, repeats, seed)] for drawn in (pool, spares))
        rows, kept, skipped = features.of_files(
            chosen, encoder, device=device, batch_size=batch_size, skip_unreadable=skip, spares=others
        )
        files = [str(path.relative_to(folder)) for path in kept]
        unreadable = {str(error.value): error.remedy for error in skipped}
        facts: dict[str, Any] = {"folder": str(folder), "unreadable": unreadable}
        source = Source(name, out, rows, len(paths), facts, files)
        if skip:
            tried = len(kept) + len(skipped)
            source.note = f"{len(skipped)} of {tried} left out as unreadable" + "; report.json says why" * bool(skipped)
    else:
        store, split, indices = open_store(options, download)
        enough(len(indices), f"images in {store.name}")
        encoder = encoders.load(options["encoder"] or encoders.default_name(), download)
        name = f"{store.name}-{encoder.name.replace(':', '-')}"
        out, total = make_out(options, name), len(indices)
        indices = indices[pool(total, samples, repeats, seed)]
        rows = features.of_store(store, indices, encoder, device=device, batch_size=batch_size)
        facts = {"dataset": store.name, "split": split}
        facts |= {"form": store.form, "official": store.official, "digest": store.digest}
        source = Source(name, out, rows, total, facts, [str(index) for index in indices])
    source.facts |= {"encoder": encoder.name, "layer": encoder.layer, "weights": encoder.weights}
    return source


def open_store(options: dict[str, str], download: bool) -> tuple[Any, str | None, np.ndarray]:
    """The decoded data set, the split (test where there is one and none is named), its images."""
    from hypimg.config import compose_group
    from hypimg.run import instantiate

    dataset = instantiate(compose_group("dataset", options["dataset"]))
    store = dataset.open(Path(options["data_dir"]), Path(options["store_dir"]), download)
    split = options["split"] or ("test" if "test" in store.splits else None)
    return store, split, store.indices(split)


def load_matrix(path: Path) -> np.ndarray:
    """A matrix in a .npy file, read without pickles and only where it is used."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError("features", path, "no such file") from None
    except OSError as error:
        raise UserError("features", path, f"cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError, BadZipFile) as error:
        # numpy's own words advise allow_pickle, which would run code from the file.
        raise UserError("features", path, "not a whole .npy file of numbers; write one by numpy.save") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2:
        shape = getattr(rows, "shape", "an archive of several arrays")
        raise UserError("features", path, f"holds {shape}; it must be one matrix, a row per image")
    enough(len(rows), f"rows in {path}")
    return rows


def enough(count: int, what: str) -> None:
    if count < 4:
        raise UserError(what, count, "δ is a property of four points; give at least 4, better 1000 (as HIE)")


def announce(repeats: int) -> Any:
    """A line where the analysis is long: progress(done) after each subsample."""
    began = last = time.monotonic()

    def progress(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 10:
            last = now
            left = (now - began) / done * (repeats - done)
            print(f"subsample {done} of {repeats}, {left:.0f} s left", file=sys.stderr, flush=True)

    return progress


def show(source: Source, analysis: Any, samples: int, seconds: dict[str, float]) -> None:
    """The answer in a few lines."""
    from textwrap import fill

    from hypimg.evaluation.hyperbolicity import BASE_POINTS, verdict

    of = " of {encoder}, before its last layer ({layer})".format(**source.facts) if "encoder" in source.facts else ""
    print(f"\n{source.name}: {source.total:,} images, {subsamples(analysis, samples)}")
    print(f"{analysis.dim} features{of}, of effective dimension {analysis.effective_dimension:.1f}")
    if source.note:
        print(source.note)
    columns = {
        "δ_rel": "delta_rel",
        f"max of {BASE_POINTS} bases": "delta_rel_max",
        "2δ/mean dist.": "delta_over_mean",
        "diam./mean dist.": "diameter_over_mean",
    }
    print("\n" + " " * 16 + "".join(f"{title:>18}" for title in columns))
    for side, label in (("data", "this data"), ("null", "Gaussian cloud")):
        cells = ["{:.3f} ± {:.3f}".format(*analysis.mean_and_std(side, name)) for name in columns.values()]
        print(f"{label:<16}" + "".join(f"{cell:>18}" for cell in cells))
    print("\n" + fill(verdict(analysis)[1], 100))
    if analysis.suggests_c:
        paper, plane = (analysis.curvature(constant) for constant in ("paper", "hyperbolic_plane"))
        print(f"\nc from δ_rel: {paper:.3g} by HIE's constant 0.144; {plane:.3g} by the hyperbolic plane's own, 0.0568")
    print(f"features {seconds['features']:.0f} s, analysis {seconds['analysis']:.0f} s")


def subsamples(analysis: Any, samples: int) -> str:
    repeats = len(analysis.data)
    if analysis.samples == analysis.count:
        asked = f"fewer than samples={samples}, so " if samples > analysis.count else ""
        return f"{asked}all {analysis.count} images each time: ± is over base points alone"
    kind = "disjoint" if analysis.disjoint else "overlapping"
    return f"{repeats} {kind} subsamples of {analysis.samples}"


def make_out(options: dict[str, str], name: str) -> Path:
    """The report's folder, seen to be writable before the features are computed, which takes long."""
    out = Path(options["out"] or Path("hyperbolicity") / name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()
    except OSError as error:
        raise UserError("out", out, f"cannot be written ({error.strerror}); pass another folder") from error
    return out


def keep_features(source: Source) -> None:
    """features.npy and files.txt, before the analysis: the features are what took long."""
    from io import BytesIO

    if "encoder" not in source.facts:
        return
    content = BytesIO()
    np.save(content, source.rows)
    write(source.out / "features.npy", content.getvalue())
    write(source.out / "files.txt", "".join(f"{name}\n" for name in source.files).encode())


def write_report(source: Source, analysis: Any, options: dict[str, str], seconds: dict[str, float]) -> None:
    import json

    from hypimg.evaluation.hyperbolicity import summary
    from hypimg.figures import hyperbolicity as figure

    said = {"name": source.name, "images": source.total, **source.facts, "seed": int(options["seed"])}
    said |= {**summary(analysis), "seconds": seconds}
    write(source.out / "report.json", (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())
    for path in figure.draw(analysis, source.name, source.out / "report"):
        if path.suffix == ".png":
            print(f"report: {path}")


def write(path: Path, content: bytes) -> None:
    from hypimg.training.checkpoint import write_atomically

    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError("out", path.parent, f"cannot be written ({error.strerror}); pass another folder") from error


def whole(name: str, text: str, lowest: int) -> int:
    if text.isdecimal() and int(text) >= lowest:
        return int(text)
    raise UserError(name, text, f"must be a whole number ≥ {lowest}")


def switch(name: str, text: str) -> bool:
    if text.lower() in ("0", "1", "true", "false"):
        return text.lower() in ("1", "true")
    raise UserError(name, text, "must be 0 or 1")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("hypimg").setLevel(logging.INFO)  # the root would let matplotlib's fonts speak
    sys.exit(main(sys.argv[1:]))
