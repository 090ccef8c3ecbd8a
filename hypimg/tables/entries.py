"""The entries of a manifest: what is measured, the paper's numbers, evaluators, runs, budgets, seeds, pairs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from hypimg.errors import UserError, nearest
from hypimg.tables.fields import flag, keys, named, number, strings, text

Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Measure:
    """What the numbers of a cell are: the metric's flat name, and how it is shown."""

    name: str | None = None
    description: str = ""
    unit: str = ""
    scale: float = 1.0  # ours × scale is in the paper's unit: 100 where metrics are shares and the paper prints percent
    digits: int = 3
    higher_is_better: bool | None = None
    interval: str = ""  # what the paper's ± means; empty: the paper prints none
    comparable: bool = True  # false: the paper's number stands beside ours undiscussed (times of another machine)
    spread: str = "interval"  # what stands after our ±: the 95 % interval of the mean, or "std" of a single value
    within: str = ""  # the metric that holds half the interval of one seed's value, over what it was measured on
    within_interval: str = ""  # what that interval is over
    paper_n: int = 1  # of how many values, each as one of our seeds gives, the paper's number is the mean


@dataclass(frozen=True)
class Paper:
    """The number that a paper prints, and what stands after its ±."""

    value: float
    half_width: float | None = None


@dataclass(frozen=True)
class Evaluator:
    """A member of the config group `evaluator`, with the options that this table changes."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()


_MEASURE = {field.name for field in fields(Measure)}


def parse_seeds(value: object, where: str = "seeds") -> tuple[int, ...]:
    """Seeds 0 … n − 1 from a count n, or the seeds of a list."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return tuple(range(value))
    if isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value):
        return tuple(dict.fromkeys(value))
    raise UserError(where, value, "must be a count ≥ 1 or a list of seeds ≥ 0")


def measure(base: Measure, node: object, where: str) -> Measure:
    """`base` with what `node` says; `{}` in a name stands for the name so far."""
    if node is None:
        return base
    words = keys({"name": node} if isinstance(node, str) else node, _MEASURE, where)
    if "name" in words:
        name = text(words["name"], f"{where}.name")
        if "{}" in name and base.name is None:
            raise UserError(f"{where}.name", name, "nothing to fill {} with; name a metric in the table or the column")
        words["name"] = name.replace("{}", base.name or "")
    for key in ("description", "unit", "interval", "within", "within_interval"):
        if key in words:
            words[key] = text(words[key], f"{where}.{key}")
    if "scale" in words:
        words["scale"] = number(words["scale"], f"{where}.scale")
    if "digits" in words and (type(words["digits"]) is not int or not 0 <= words["digits"] <= 10):
        raise UserError(f"{where}.digits", words["digits"], "must be a whole number from 0 to 10")
    if words.get("spread", "interval") not in ("interval", "std"):
        raise UserError(f"{where}.spread", words["spread"], "must be interval or std")
    if type(words.get("paper_n", 1)) is not int or words.get("paper_n", 1) < 1:
        raise UserError(f"{where}.paper_n", words["paper_n"], "must be a whole number ≥ 1")
    for key in ("higher_is_better", "comparable"):
        if words.get(key) is not None:
            flag(words, key, where)
    return replace(base, **words)


def papers(node: object, columns: list[str], where: str) -> dict[str, Paper | None]:
    """The paper's numbers of one row, by column."""
    if node is None:
        return {}
    if isinstance(node, list):
        if len(node) != len(columns):
            raise UserError(where, node, f"needs one value per column ({len(columns)}): {', '.join(columns)}")
        node = dict(zip(columns, node, strict=True))
    values = named(node, where, columns)
    return {column: paper(value, f"{where}.{column}") for column, value in values.items()}


def paper(node: object, where: str) -> Paper | None:
    """A number, [number, ±], or null."""
    if node is None:
        return None
    value, half_width = node if isinstance(node, list) and len(node) == 2 else (node, None)
    if isinstance(node, list) and half_width is None:
        raise UserError(where, node, "must be a number, [number, ±] or null")
    return Paper(number(value, where), None if half_width is None else number(half_width, where))


def evaluator(base: Evaluator | None, node: object, where: str) -> Evaluator | None:
    """The evaluator after one more layer has spoken: the same one with further options, another, or none (null)."""
    if node is None:
        return None
    words = {"name": node} if isinstance(node, str) else keys(node, None, where)
    if words.get("name") is None and base is None:
        raise UserError(where, None, "lacks the key name, and no evaluator was named before it")
    name = text(words.pop("name", base and base.name), f"{where}.name")
    if base is not None and base.name == name:
        words = {**dict(base.options), **words}
    return Evaluator(name, tuple(sorted(words.items())))


def runs(node: object, where: str) -> list[Overrides]:
    """The override list of each run; [] where an evaluator alone makes the cell."""
    if not isinstance(node, list) or not all(isinstance(run, list) for run in node):
        raise UserError(where, node, "must be a list of override lists, one per run; [] for an evaluator alone")
    return [strings(run, where) for run in node]


def budgets(node: object, where: str) -> dict[str, Overrides]:
    """The overrides of each budget, by name."""
    words = named({"paper": []} if node is None else node, where)
    if "paper" not in words:
        raise UserError(where, ", ".join(words), "needs a budget `paper`: the paper's schedule")
    return {name: strings(overrides, f"{where}.{name}") for name, overrides in words.items()}


def pairs(node: object, rows: list[str], columns: list[str], where: str) -> tuple[tuple[str, str], ...]:
    """Pairs of names that are both rows or both columns."""
    pairs = []
    for pair in [] if node is None else node if isinstance(node, list) else [node]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(where, pair, "must be a pair of names: [a, b]")
        a, b = (str(item) for item in pair)
        for name in (a, b):
            if name not in rows and name not in columns:
                raise UserError(where, name, f"no such row or column; {nearest(name, [*rows, *columns])}")
        if a == b or ((a in rows) != (b in rows) and (a in columns) != (b in columns)):
            raise UserError(where, pair, "must be two different rows or two different columns")
        pairs.append((a, b))
    return tuple(pairs)
