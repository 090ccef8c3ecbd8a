"""What of the data is there: one line per data set, and the store filled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hypimg.data.dataset import Found, ImageDataset
from hypimg.data.store import NAME_DIGITS, DamagedStore, ImageStore, store_path
from hypimg.errors import UserError


@dataclass(frozen=True)
class State:
    """How a data set stands.

    state: `ready` (in the store), `found` (not in the store), `missing`, or `error`.
    form, images, digest, official: in words; empty where nothing was found.  note: where it lies, or what to do.
    """

    name: str
    state: str
    form: str = ""
    images: str = ""
    digest: str = ""
    official: str = ""
    note: str = ""


def inspect(dataset: ImageDataset, data_dir: Path, store_dir: Path, fill: bool = True, download: bool = False) -> State:
    """Look for a data set; decode it into the store (`fill`), fetch it first if it is missing (`download`).

    Errors that a user can mend become a State, so one unusable data set does not hide the others.
    """
    try:
        found = dataset.find(data_dir)
        if found is None and not download:
            return State(dataset.name, "missing", note=f"{dataset.where} under {data_dir}{dataset.or_download}")
        store: ImageStore | None
        if fill or found is None:
            store = dataset.open(data_dir, store_dir, download)
            found = found or dataset.find(data_dir)
            assert found is not None
        else:
            store = _stored(dataset, found, store_dir)
    except UserError as error:
        return State(dataset.name, "error", note=str(error))
    counts = found.counts if store is None else store.counts  # fewer where unreadable images were skipped
    images = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    official = found.official if store is None else store.official
    says = {
        True: "yes",
        False: "no: not, or not provably, the authors' bytes",
        None: "not checked yet (fill=true does)",
    }[official]
    form = found.form if store is None else store.form
    state, note = ("found", "fill=true decodes it") if store is None else ("ready", str(store.path))
    return State(dataset.name, state, form, images, found.digest[:NAME_DIGITS], says, note)


def _stored(dataset: ImageDataset, found: Found, store_dir: Path) -> ImageStore | None:
    try:
        return ImageStore(store_path(store_dir, dataset.name, found.digest), found.digest)
    except (FileNotFoundError, DamagedStore):
        return None
