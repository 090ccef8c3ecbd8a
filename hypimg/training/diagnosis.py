"""When training goes wrong: which parameter or layer, which operation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hypimg.errors import NonFiniteError, UserError


def non_finite_error(
    model: nn.Module, images: Tensor | None, run: Callable[[Tensor], object] | None = None
) -> NonFiniteError:
    """The error that names the first parameter or layer concerned."""
    culprit = first_non_finite(model, images, run) or "the loss"
    remedy = "is not finite; the last good checkpoint is kept. Try a lower optimizer.lr or trainer.gradient_clip=1"
    return NonFiniteError(culprit, None, remedy)


def first_non_finite(
    model: nn.Module, images: Tensor | None, run: Callable[[Tensor], object] | None = None
) -> str | None:
    """The first parameter that is not finite, else (given images) the first module whose output is not, or None.

    images: a normalised batch [N, C, H, W].  run: how the model is called on them, where model(images) will not do.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"parameter {name}"
    if images is None:
        return None
    if not bool(torch.isfinite(images).all()):
        return "the input images"
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [t for t in (output if isinstance(output, tuple) else (output,)) if isinstance(t, Tensor)]
            if any(not bool(torch.isfinite(t).all()) for t in tensors):
                found.append(f"the output of layer {name or 'model'} ({type(module).__name__})")

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        (run or model)(images)
    for handle in hooks:
        handle.remove()
    return found[0] if found else None


@contextlib.contextmanager
def explain_nondeterminism(wanted: bool) -> Iterator[None]:
    """Torch names the operation that has no deterministic form on this device; bring that to one line."""
    try:
        yield
    except RuntimeError as error:
        if not wanted or "deterministic" not in str(error):
            raise
        raise UserError("deterministic", True, f"{str(error).split('. ')[0]}; use deterministic=false") from error
