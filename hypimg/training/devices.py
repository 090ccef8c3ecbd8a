"""The machine under a training: devices, precision, and what ranks have to agree on."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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


def is_leader(devices: int) -> bool:
    """Whether this process speaks for a run: all but the further ranks that Fabric (or torchrun) started."""
    return devices == 1 or os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def device_of_rank(device: str, devices: int) -> str:
    """Where this process computes: with several GPUs each rank has its own.  Raises UserError for too few."""
    if devices > 1 and device.startswith("cuda") and (there := torch.cuda.device_count()) < devices:
        raise UserError("devices", devices, f"this machine has {there} GPU(s); take as many, or device=cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if devices > 1 and device.startswith("cuda") else device


def open_fabric(machine: Machine, precision: str) -> Any:
    """Fabric on the machine's devices; with several, the other ranks are started here (the same command again)."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    device = torch.device(machine.device)
    if machine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    several = machine.devices > 1
    if several and machine.compile:
        raise UserError("compile", True, "is for one device; use devices=1, or compile=false")
    count: Any = machine.devices if several else ([device.index or 0] if device.type == "cuda" else 1)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its heir is missing in older releases
    # Without broadcasts of buffers rank 0 can validate by itself; `average_buffers` makes them one.
    strategy: Any = DDPStrategy(broadcast_buffers=False) if several else "auto"
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


def any_flag(fabric: Any, flag: Tensor) -> bool:
    """Whether a 0-dim bool is true on any rank: known to all ranks alike, so that they stop together."""
    return bool(flag if fabric.world_size == 1 else fabric.all_reduce(flag.int(), reduce_op="max"))


def average_buffers(fabric: Any, model: nn.Module) -> None:
    """Batch norm's running statistics, of which each rank has seen its own share, become their mean."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point() and buffer.numel():
                buffer.copy_(fabric.all_reduce(buffer, reduce_op="mean"))


def sum_over_ranks(fabric: Any, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums of 0-dim float64 tensors over all ranks, each with the same names or none."""
    if fabric.world_size == 1:
        return sums
    found: list[Any] = [None] * fabric.world_size  # one that resumed has none, the leader has them all
    torch.distributed.all_gather_object(found, list(sums))
    names = list(dict.fromkeys(name for each in found for name in each))
    if not names:
        return {}
    zero = torch.zeros((), dtype=torch.float64, device=fabric.device)
    values = torch.stack([sums.get(name, zero).double() for name in names])
    return dict(zip(names, fabric.all_reduce(values, reduce_op="sum"), strict=True))
