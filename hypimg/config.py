"""Config in, plain values out: composing, checking, hashing. Nothing is built here."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import inspect
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hypimg.errors import UserError, nearest

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"

# Bumped when the same config comes to mean another result.
RESULT_VERSION = 1

# What a run is a function of, beside its seed. All else (device, paths, loggers, evaluators) stays out of the key.
KEY_GROUPS = (
    "dataset",
    "augment",
    "backbone",
    "space",
    "head",
    "objective",
    "optimizer",
    "scheduler",
    "trainer",
)

# Configs are code: only these may be called from one.
ALLOWED_MODULES = ("hypimg.", "torch.optim.", "geoopt.optim.")
# Classes alone: a config has no business calling the functions that write or move files.


@contextlib.contextmanager
def hydra_session(overrides: Sequence[str] = ()) -> Iterator[None]:
    """Hydra initialised on our configs, and every error of the user's brought to one line.

    overrides: the words that are composed in it; a wrong key among them is compared with those that they lead to.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    if not CONFIG_DIR.is_dir():
        raise UserError("configs", CONFIG_DIR, "not found; run from a checkout of hypimg (pip install -e .)")
    initialised = GlobalHydra.instance().is_initialized()
    session = contextlib.nullcontext() if initialised else initialize_config_dir(str(CONFIG_DIR), "hypimg", "1.3")
    with session:
        try:
            yield
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error, overrides) from error


def compose(overrides: list[str]) -> DictConfig:
    """The config of one run, checked.

    overrides: Hydra's `key=value` words.  Raises UserError for an unknown key, group member or experiment (with the
    nearest right names), a value out of range, or a `_target_` that configs may not call.
    """
    from hydra import compose as hydra_compose

    with hydra_session(overrides):
        try:
            cfg = hydra_compose("train", overrides)
        except ValueError as error:  # Hydra's own for a group set to something that is no name
            raise UserError("config", " ".join(overrides), str(error)) from error
        check(cfg)
    return cfg


def compose_group(group: str, name: str) -> DictConfig:
    """One member of a config group by itself, e.g. ("evaluator", "ood_omniglot")."""
    if name not in members(group):
        raise UserError(group, name, f"not in configs/{group}; {nearest(name, members(group))}")
    cfg = OmegaConf.load(CONFIG_DIR / group / f"{name}.yaml")
    assert isinstance(cfg, DictConfig)
    check_targets(cfg, group)
    return cfg


def members(group: str) -> list[str]:
    """The names that a config group holds."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def groups() -> list[str]:
    return sorted(path.name for path in CONFIG_DIR.iterdir() if any(path.glob("*.yaml")))


def check(cfg: DictConfig) -> None:
    """Raise UserError for what can be seen to be wrong before anything is built or read."""
    name = OmegaConf.select(cfg, "name", throw_on_missing=False)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError("name", name, "the run's folder: letters, digits, _ and - only; experiments set it")
    if not _is_number(cfg.c) or not cfg.c > 0:
        raise UserError("c", cfg.c, "must be a number > 0; for c = 0 use space=euclidean")
    for key, lowest in (("dim", 1), ("seed", 0)):
        if not isinstance(cfg[key], int) or isinstance(cfg[key], bool) or cfg[key] < lowest:
            raise UserError(key, cfg[key], f"must be a whole number ≥ {lowest}")
    threads = cfg.get("threads")
    if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= 1024):
        raise UserError("threads", threads, "must be a whole number from 1 to 1024, or null for all cores")
    if not isinstance(cfg.get("devices"), int) or isinstance(cfg.devices, bool) or cfg.devices < 1:
        raise UserError("devices", cfg.get("devices"), "must be a whole number ≥ 1")
    for key in ("download", "compile", "deterministic"):
        if not isinstance(cfg.get(key), bool):
            raise UserError(key, cfg.get(key), "must be true or false")
    if not _is_number(cfg.get("checkpoint_seconds")) or cfg.checkpoint_seconds < 0:
        raise UserError("checkpoint_seconds", cfg.get("checkpoint_seconds"), "must be a number of seconds ≥ 0")
    for key in ("data_dir", "store_dir", "runs_dir", "device"):
        if cfg.get(key) in (None, ""):
            raise UserError(key, cfg.get(key), "missing")
        cfg[key] = str(cfg[key])  # a folder named 2024 is a number to YAML
    if not isinstance(cfg.get("logger"), DictConfig):
        raise UserError("logger", None, f"missing; one of {', '.join(members('logger'))}")
    for key, kind in (("show", ListConfig), ("caption", str)):
        if cfg.get(key) is not None and not isinstance(cfg[key], kind):
            raise UserError(key, cfg[key], "must be a list of metric names" if key == "show" else "must be a text")
    for group in KEY_GROUPS:
        if group != "augment" and "_target_" not in (cfg.get(group) or {}):  # images may be taken as they are
            raise UserError(group, None, f"missing; a run needs one of {', '.join(members(group))}")
    check_targets(cfg)
    OmegaConf.to_container(cfg, resolve=True)


def evaluators(cfg: DictConfig) -> dict[str, DictConfig]:
    """The evaluators chosen, by name; an experiment's options for one that was not chosen are no evaluator."""
    return {name: node for name, node in (cfg.get("evaluator") or {}).items() if "_target_" in node}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def targets(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Each node with a `_target_`, with its path in the config."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        keys: Iterator[Any] = iter(node)
    elif isinstance(node, ListConfig):
        keys = iter(range(len(node)))
    else:
        return
    for key in keys:
        if OmegaConf.is_missing(node, key):
            continue
        yield from targets(node[key], f"{path}.{key}" if path else str(key))


def check_targets(cfg: Any, path: str = "") -> None:
    """Raise UserError unless each `_target_` names a class or function of an allowed module, with known arguments."""
    for where, node in targets(cfg, path):
        target = resolve_target(node["_target_"], f"{where}._target_" if where else "_target_")
        arguments = {str(key) for key in node if not str(key).startswith("_")}
        known = inspect.signature(target).parameters
        if any(p.kind is p.VAR_KEYWORD for p in known.values()):
            continue
        for unknown in sorted(arguments - known.keys()):
            raise UserError(
                f"{where}.{unknown}", node[unknown], f"unknown argument of {target.__name__}; {nearest(unknown, known)}"
            )


def takes(node: DictConfig, argument: str) -> bool:
    """Whether what a node names has an argument of this name."""
    return argument in inspect.signature(resolve_target(node["_target_"])).parameters


def resolve_target(target: object, where: str = "_target_") -> Any:
    """The class or function that a `_target_` names; the object itself is checked, not only its dotted name.

    `torch.nn.modules.module.torch.load` begins like a torch module and is none: what counts is where the object that
    the name leads to was defined.
    """
    refused = UserError(where, target, f"configs may only name classes of {', '.join(ALLOWED_MODULES)}")
    if not isinstance(target, str) or not target.startswith(ALLOWED_MODULES):
        raise refused
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name is None or not f"{'.'.join(parts[:cut])}.".startswith(f"{error.name}."):
                raise  # an allowed module that lacks one of its own dependencies
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        break
    else:
        found = None
    if found is None:
        raise UserError(where, target, "no such class or function")
    module = f"{getattr(found, '__module__', '')}."
    if not inspect.isclass(found) or not module.startswith(ALLOWED_MODULES):
        raise refused
    return found


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, one form for each number (1 and 1.0 alike), options left at null absent."""
    if isinstance(value, DictConfig | ListConfig):
        value = OmegaConf.to_container(value, resolve=True)
    try:
        return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except ValueError as error:
        raise UserError("config", value, "holds a number that is not finite") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def digest(value: Any) -> str:
    """First 10 hex digits of SHA-256 over the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:10]


def key_fields(cfg: DictConfig) -> dict[str, Any]:
    """What enters a run's key: the resolved groups, the seed, and the version of the code's meaning."""
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    fields: dict[str, Any] = {group: resolved[group] for group in KEY_GROUPS if resolved.get(group)}
    return {**fields, "seed": resolved["seed"], "result_version": RESULT_VERSION}


def run_key(cfg: DictConfig) -> str:
    """The name of the run's folder: 10 hex digits that move exactly when the result may."""
    return digest(key_fields(cfg))


def explain(error: Exception, overrides: Sequence[str] = ()) -> UserError:
    """Hydra's or OmegaConf's error as one line with the nearest right names, among those of a run of these words."""
    text = " ".join(str(error).split())
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing:
        group, _, member = missing[1].rpartition("/")
        if group in groups():
            return UserError(group, member, f"not in configs/{group}; {nearest(member, members(group))}")
    override = re.search(r"Could not override '([^']+)'", text)
    if override:
        key = override[1].split("@")[0]
        known = sorted({*_all_keys(overrides), *groups()} - {key})
        parent, _, leaf = key.rpartition(".")
        beside = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
        close = [beside[name] for name in difflib.get_close_matches(leaf, beside, n=2, cutoff=0.6)]
        close = close or [k for k in known if k.rpartition(".")[2] == leaf]
        if close:
            remedy = f"did you mean {' or '.join(close)}?"
        else:
            remedy = f"{parent} has {', '.join(beside)}" if parent and beside else nearest(key, known)
        return UserError(key, None, f"unknown config key; {remedy}")
    return UserError("config", None, text)


def _all_keys(overrides: Sequence[str]) -> list[str]:
    """The keys of a run of those words that choose a group's member; without these where they do not compose."""
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException

    def walk(node: Any, path: str) -> Iterator[str]:
        if path:
            yield path
        if isinstance(node, dict):
            for key, item in node.items():
                if not str(key).startswith("_"):  # _target_, _partial_
                    yield from walk(item, f"{path}.{key}" if path else str(key))

    choices = [word for word in overrides if word.partition("=")[0].lstrip("+~").split("@")[0] in groups()]
    try:
        cfg = hydra_compose("train", choices)
    except (HydraException, OmegaConfBaseException, ValueError):
        cfg = hydra_compose("train")
    return list(walk(OmegaConf.to_container(cfg, resolve=False), ""))
