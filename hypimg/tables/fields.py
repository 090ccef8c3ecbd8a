"""The plain values of a manifest's YAML, checked one by one; each mistake is named with its place and its value."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hypimg.errors import UserError, nearest


def read(path: Path, where: str) -> object:
    """The plain values of a YAML file, as the configs' own reader sees them (1e-3 is a number, keys are unique)."""
    import yaml  # type: ignore[import-untyped]
    from omegaconf import OmegaConf

    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(where, None, f"cannot be read as YAML: {error}") from error


def keys(node: object, allowed: set[str] | None, where: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """A mapping's copy, its keys checked."""
    if not isinstance(node, dict):
        raise UserError(where, node, "must be a mapping of keys to values")
    for key in node:
        if allowed is not None and key not in allowed:
            raise UserError(where, key, f"unknown key; {nearest(str(key), allowed)}")
    for key in required:
        if node.get(key) is None:
            raise UserError(where, None, f"lacks the key {key}")
    return dict(node)


def named(node: object, where: str, known: Collection[str] | None = None) -> dict[str, Any]:
    """A mapping from names to anything; names are text without the signs that `only=` gives a meaning."""
    if not isinstance(node, dict) or (not node and known is None):
        raise UserError(where, node, "must be a mapping of names")
    result = {str(key): value for key, value in node.items()}
    for key in result:
        if known is not None and key not in known:
            raise UserError(where, key, f"no such column; {nearest(key, known)}")
        if known is None and (not key or set(key) & set("/,*?[]")):
            raise UserError(where, key, "a name is not empty and has none of / , * ? [ ]; put such text into `label`")
    return result


def text(value: object, where: str) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value).strip()
    raise UserError(where, value, "must be text")


def number(value: object, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise UserError(where, value, "must be a finite number")


def flag(node: dict[str, Any], key: str, where: str) -> bool:
    value = node.get(key, False)
    if isinstance(value, bool):
        return value
    raise UserError(f"{where}.{key}", value, "must be true or false")


def strings(node: object, where: str) -> tuple[str, ...]:
    items = [] if node is None else [node] if isinstance(node, str) else node
    if not isinstance(items, list) or not all(isinstance(item, str) and item.strip() for item in items):
        raise UserError(where, node, "must be a list of texts")
    return tuple(item.strip() for item in items)
