"""Which parameters an optimizer gets, and how."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters; those that a module lists in `no_weight_decay()` (a learnable curvature) undecayed."""
    exempt = {id(p) for part in model.modules() for p in getattr(part, "no_weight_decay", list)()}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for p in trained if id(p) not in exempt]}]
    if exempt:
        groups.append({"params": [p for p in trained if id(p) in exempt], "weight_decay": 0.0})
    return groups
