"""The machine under a training: devices, precision, and what ranks have to agree on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypimg.errors import UserError

# Asking the other ranks waits for the device, so on GPUs it is done now and then.
STEPS_BETWEEN_AGREEMENTS = {"cpu": 1, "cuda": 20}


@dataclass(frozen=True)
class Machine:
    """Where and how fast a run is computed; none of it is meant to change the result."""

    device: str = "cpu"
    compile: bool = False
    deterministic: bool = False
    checkpoint_seconds: float = 60.0
    devices: int = 1


def is_leader() -> bool:
    """Whether this process speaks for the run: all but the further ranks that Fabric (or torchrun) started."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def open_fabric(machine: Machine, precision: str) -> Any:
    """Fabric on the machine's devices; with several, the other ranks are started here (the same command again)."""
    from lightning_fabric import Fabric

    device = torch.device(machine.device)
    if machine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    several = machine.devices > 1
    if several and machine.compile:
        raise UserError("compile", True, "is for one device; use devices=1, or compile=false")
    count: Any = machine.devices if several else ([device.index or 0] if device.type == "cuda" else 1)
    strategy = "ddp" if several else "auto"
    try:
        fabric = Fabric(accelerator=device.type, devices=count, strategy=strategy, precision=precision)  # type: ignore[arg-type]
    except (ImportError, ValueError) as error:
        raise UserError("trainer.precision", precision, str(error)) from error
    fabric.launch()
    return fabric


def any_rank(fabric: Any, step: int, signal: int | None, due: bool) -> tuple[int | None, bool]:
    """The signal that any rank was sent, and whether rank 0 finds a checkpoint due: known to all ranks alike."""
    if fabric.world_size == 1:
        return signal, due
    if step % STEPS_BETWEEN_AGREEMENTS.get(fabric.device.type, 20):
        return None, False
    flags = torch.tensor([signal or 0, int(due and fabric.global_rank == 0)], device=fabric.device)
    asked, wanted = fabric.all_reduce(flags, reduce_op="max").tolist()
    return asked or None, bool(wanted)


def sum_over_ranks(fabric: Any, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums of 0-dim float64 tensors over all ranks, each with the same names or none."""
    if fabric.world_size == 1:
        return sums
    names = sorted(set().union(*fabric_gathered(sums)))
    zero = torch.zeros((), dtype=torch.float64, device=fabric.device)
    values = torch.stack([sums.get(name, zero).double() for name in names]) if names else zero
    reduced = fabric.all_reduce(values, reduce_op="sum")
    return dict(zip(names, reduced, strict=False)) if names else {}


def fabric_gathered(sums: dict[str, Tensor]) -> list[set[str]]:
    """The names of each rank's sums: one that resumed has none, the leader has them all."""
    names: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(names, list(sums))
    return [set(found) for found in names]
