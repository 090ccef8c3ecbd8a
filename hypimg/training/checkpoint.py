"""Files that are whole or absent: atomic writes, and checkpoints that prove what they are."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hypimg.errors import UserError

log = logging.getLogger(__name__)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, fsync, rename: after a kill or on a full disk the old file is still whole.

    Raises UserError when the disk (or a limit on the file's size) is full; other OSErrors pass through.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno in FULL:
            remedy = f"cannot be written ({error.strerror}); make room and run the same command again, nothing is lost"
            raise UserError("file", path, remedy) from error
        raise


def remove_stale_temporaries(directory: Path) -> None:
    """Delete what killed writers left behind. Call it under the run's lock."""
    for path in directory.rglob(".tmp-*"):
        path.unlink(missing_ok=True)


class Checkpoints:
    """`last.pt`, the one before it, and `best.pt` of one run.

    identity: what the weights are a function of (config digest, data digest); a checkpoint with another identity is
    refused by name.  Files load with `weights_only=True` and carry a digest of every tensor in them.
    """

    def __init__(self, directory: Path, identity: dict[str, str]):
        self.directory, self.identity = directory, identity

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.pt"

    def save(self, name: str, state: dict[str, Any]) -> Path:
        """Replace `<name>.pt` atomically; the former `last.pt` is kept as `previous.pt`."""
        content = io.BytesIO()
        torch.save({"identity": self.identity, "digest": tensor_digest(state), "state": state}, content)
        path = self.path(name)
        if name == "last" and path.exists():
            link = path.with_name(f".tmp-previous.pt-{os.getpid()}")
            link.unlink(missing_ok=True)
            os.link(path, link)
            os.replace(link, self.path("previous"))
        write_atomically(path, content.getvalue())
        return path

    def load(self, name: str) -> dict[str, Any]:
        """The state in `<name>.pt`.  Raises UserError if it is missing, damaged, or of another config or data set."""
        path = self.path(name)
        remedy = f"delete {self.directory.parent} to train again from the start"
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            identity, digest, state = content["identity"], content["digest"], content["state"]
        except FileNotFoundError as error:
            raise UserError("checkpoint", path, f"not found; {remedy}") from error
        except Exception as error:  # torch raises half a dozen types for a damaged file
            raise UserError("checkpoint", path, f"damaged ({type(error).__name__}); {remedy}") from error
        if digest != tensor_digest(state):
            raise UserError("checkpoint", path, f"damaged (its digest does not match its tensors); {remedy}")
        if identity != self.identity:
            other = [key for key in self.identity if identity.get(key) != self.identity[key]]
            raise UserError("checkpoint", path, f"comes from another {' and '.join(other) or 'run'}; {remedy}")
        return state

    def resume(self) -> dict[str, Any] | None:
        """The newest good state, or None where there is none yet; a damaged `last.pt` falls back to `previous.pt`."""
        if not self.path("last").exists() and not self.path("previous").exists():
            return None
        try:
            return self.load("last")
        except UserError as error:
            if not self.path("previous").exists() or "another" in error.remedy:
                raise
            log.warning("%s; falling back to %s", str(error).split(";")[0], self.path("previous").name)
            return self.load("previous")


def tensor_digest(state: Any) -> str:
    """SHA-256 over the paths, dtypes, shapes and bytes of all tensors in a nested state."""
    total = hashlib.sha256()
    for path, tensor in _tensors(state, ""):
        total.update(f"{path}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return total.hexdigest()


def _tensors(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{path}.{index}")
