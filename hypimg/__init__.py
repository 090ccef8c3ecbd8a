"""hypimg: hyperbolic image embeddings, exact, fast and reproducible."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypimg.run import load as load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> object:
    # `import hypimg` costs what `import torch` costs: the parts that need Hydra or Pillow load when asked for.
    if name == "load":
        from hypimg.run import load

        return load
    raise AttributeError(f"module 'hypimg' has no attribute {name!r}")
