"""Renders what the other scripts of this folder measured: speed.md and the README's tables.

python benchmarks/speed_report.py

Reads geometry*.jsonl and the like beside this file, so that lines of another machine may lie in a file of their own
(geometry_gpu.jsonl). Of two lines for the same case, threads and device the later one counts. A goal is judged by the
line of the fewest threads on the machine of the first line; the others are shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypimg.tables.render import readme_section

FOLDER = Path(__file__).resolve().parent
README = FOLDER.parent / "README.md"

Line = dict[str, Any]
Setting = tuple[str, int]  # device, threads

# The goals of gromov.py's lines, as (set, key of the ratio): at least.
DELTA_GOALS = {
    "δ N=1000": {"numba_vs_float64": ("", 20.0), "torch_vs_float64": ("", 5.0)},
    "δ N=3000": {"numba_vs_float32": ("features", 145.0)},
}


@dataclass(frozen=True)
class Extra:
    """A number beside the ratio.  text: with {} for the number.  goal: "<= 4.6", or empty.  peer: the peer's number."""

    value: float
    text: str
    goal: str = ""
    peer: str = ""


@dataclass(frozen=True)
class Case:
    """One comparison in one setting.  ratio: the peer's time over ours.  goal: ">= 230", or empty."""

    work: str
    peer: str
    ratio: float
    goal: str
    extras: tuple[Extra, ...] = ()
    facts: tuple[str, ...] = ()  # for speed.md alone
    setting: Setting = ("", 1)


@dataclass
class Group:
    """The cases of one benchmark, by work, then by setting."""

    title: str
    command: str
    cases: dict[str, dict[Setting, Case]] = field(default_factory=dict)


def met(value: float, goal: str) -> bool:
    """Whether a number keeps a goal such as ">= 230"."""
    sign, bound = goal.split()
    return value >= float(bound) if sign == ">=" else value <= float(bound)


def number(value: float, goal: str = "") -> str:
    """Three digits, or four where three would round it across the goal."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 4 if goal and met(float(f"{value:.3g}"), goal) != met(value, goal) else 3
    return f"{value:.{digits}g}"


def verdict(value: float, goal: str) -> str:
    return "" if not goal else "met" if met(value, goal) else "**missed**"


def of_geometry(line: Line) -> Iterator[Case]:
    work = line["case"].replace(" x ", " × ").replace(", forward + backward", "")
    extras = []
    if "time / nn.Linear" in line:
        extras.append(Extra(line["time / nn.Linear"], "{} × the time of nn.Linear", line["time goal"]))
    for key, words in (
        ("saved MB", "{} MB kept for backward"),
        ("saved MB over the inputs", "{} MB kept beside the inputs"),
        ("peak MB over the output", "{} MB at most beside the output"),
    ):
        if key in line:
            theirs = f"geoopt {number(line[f'geoopt {key}'])}" if f"geoopt {key}" in line else ""
            extras.append(Extra(line[key], words, line.get("saved goal") or line["peak goal"], theirs))
    facts = [f"{number(line['ms'])} ms"]
    facts += [f"{number(line[key])} × {key.removeprefix('ratio to ')}" for key in line if key.startswith("ratio to ")]
    facts += [f"copying in and out {number(line[key])} ms" for key in ("ms of copying in and out",) if key in line]
    facts += [f"largest error {line['error']:.1e}"] if "error" in line else []
    yield Case(work, line["peer"], line["ratio"], line["goal"], tuple(extras), tuple(facts))


def of_means(line: Line) -> Iterator[Case]:
    goal = ">= 7" if "100 ×" in line["case"] else ""
    extras = (
        Extra(line["iterations"], "{} iterations", "<= 4"),
        Extra(line["hypll_float32_with_gradient"], "{} × with gradient"),
    )
    capped = ", at its cap of 1000 iterations" if line["hypll_float32_at_its_cap"] else ""
    facts = (
        f"{number(line['ms'])} ms",
        f"midpoint {number(line['ms_midpoint'])} ms",
        f"residual {line['residual']:.0e}, HypLL's {line['hypll_float32_residual']:.0e}",
        f"{number(line['hypll_float64'])} × HypLL in float64 (residual {line['hypll_float64_residual']:.0e})",
    )
    work = line["case"].removeprefix("Fréchet mean of ")
    yield Case(work, f"HypLL float32{capped}", line["hypll_float32"], goal, extras, facts)


def of_gromov(line: Line) -> Iterator[Case]:
    for key, value in line.items():
        found = re.fullmatch(r"(numba|torch)_vs_(float\d+)", key)
        if not found or (key not in DELTA_GOALS[line["case"]]):
            continue
        only, least = DELTA_GOALS[line["case"]][key]
        goal = f">= {least:g}" if only in ("", line["set"]) else ""
        work = f"{line['case'].replace('=', ' = ')}, {line['set']}, {found[1]}"
        facts = [f"{number(line[f'{found[1]}_ms'])} ms"] + ([f"peer {line['numpy']}"] if "numpy" in line else [])
        yield Case(work, f"numpy, {found[2]}", value, goal, (), tuple(facts))


def of_augment(line: Line) -> Iterator[Case]:
    what, _, size = line["case"].removeprefix("augmentation: ").rpartition(", ")
    if "pil_ms" in line:
        peer = f"image by image {what.removeprefix('image by image ').removesuffix(' / ours')}"
        yield Case(size, peer, line["ratio"], line["goal"], (), (f"{number(line['ours_ms'])} ms",))
        return
    # The goal bounds our time, 1.1 × that of the step alone; the table shows the other's time over ours.
    share = f"drawing and augmenting alone take {100 * line['data_by_step']:.1f} % of a step's time"
    peer = f"the step on a fixed batch ({number(line['step_ms'])} ms)"
    yield Case(
        f"4-Conv step on episodes of {line['images']} images, {size}", peer, 1 / line["ratio"], ">= 0.909", (), (share,)
    )


def of_poincare_resnet(line: Line) -> Iterator[Case]:
    work = line["case"].replace("ResNet-20 ", "").replace("widths ", "")
    if "peak MB" in line:  # of a GPU
        facts = [f"{key.removesuffix(' ms')} {number(line[key])} ms" for key in line if key.endswith(" ms")]
        yield Case(work, line["peer"], line["ratio"], "", (Extra(line["peak MB"], "{} MB at most"),), tuple(facts))
    elif "plain ratio" in line:
        yield from _of_steps(work, line)
    elif "hypll frechet share" in line:
        plain, hypll = (f"{100 * line[f'{form} frechet share']:.0f} %" for form in ("plain", "hypll"))
        share = f"batch norm is {{}} % of the pass (without a compiler {plain}, of HypLL's {hypll}, in PR 77 %)"
        yield Case(work, line["peer"], line["ratio"], "", (Extra(100 * line["native frechet share"], share),))
    else:
        # The goals bound our time, 1.3 × that without; the table shows the other's time over ours.
        facts = (f"{number(line['ms'])} ms", f"without a compiler {number(line['plain time / without'])} × the time")
        extra = Extra(line["time / without"], "{} × the time")
        yield Case(work, line["peer"], line["ratio"], line["goal"], (extra,), facts)


def _of_steps(work: str, line: Line) -> Iterator[Case]:
    """The step with native kernels and without."""
    extras = [
        Extra(line["time / Euclidean"], "{} × the Euclidean network's time", line["time goal"]),
        Extra(line["HypLL saved MB / ours"], "keeps 1/{} of HypLL's memory", line["saved goal"]),
    ]
    if "float64 outputs" in line:
        of_outputs, of_gradients = line["float64 goals"]
        theirs = f"HypLL {line['hypll float32 error']:.1g}"
        extras += [
            Extra(line["float64 outputs"], "{} off HypLL in float64", of_outputs),
            Extra(line["float64 gradients"], "its gradients {}", of_gradients),
            Extra(line["float32 error"], "float32 error {}", line["float32 goal"], theirs),
        ]
    if "compile goal" in line:
        less = 100 * (1 - line["saved MB"] / line["plain saved MB"])
        extras.append(Extra(less, "{} % less than autograd's gradients keep (PR: 30 %)"))
        extras.append(Extra(line["compiler's CPU s, cold"], "compiled once, in {} s of CPU", line["compile goal"]))
    facts = [f"{number(line['ms'])} ms", f"keeps {number(line['saved MB'])} MB"]
    facts += [f"{key.removesuffix(' ms')} {number(line[key])} ms" for key in line if key.endswith(" ms")]
    kept = (key for key in line if key.endswith(" saved MB"))
    facts += [f"{key.removesuffix(' saved MB')} keeps {number(line[key])} MB" for key in kept]
    yield Case(work, line["peer"], line["ratio"], line["goal"], tuple(extras), tuple(facts))
    more = [Extra(line["plain time / Euclidean"], "{} × the Euclidean network's time")]
    if "float64 plain outputs" in line:
        more.append(Extra(line["float64 plain outputs"], "{} off HypLL in float64", line["float64 goals"][0]))
        more.append(Extra(line["float64 plain gradients"], "its gradients {}", line["float64 goals"][1]))
        more.append(Extra(line["plain float32 error"], "float32 error {}", line["float32 goal"]))
    plain = f"{number(line['plain ms'])} ms", f"keeps {number(line['plain saved MB'])} MB"
    yield Case(f"{work}, without a compiler", line["peer"], line["plain ratio"], line["plain goal"], tuple(more), plain)


# File: title, command that writes it, cases of a line.
SOURCES: dict[str, tuple[str, str, Callable[[Line], Iterator[Case]]]] = {
    "geometry": (
        "Distances, retrieval (forward), logits and maps",
        "python benchmarks/geometry.py > benchmarks/geometry.jsonl",
        of_geometry,
    ),
    "means": ("Fréchet mean (forward), in float64 inside, to 1e-10", "python benchmarks/means.py", of_means),
    "gromov": (
        "δ-hyperbolicity, against the published formula taken row by row",
        "python benchmarks/gromov.py > benchmarks/gromov.jsonl",
        of_gromov,
    ),
    "fewshot": ("Few-shot tests: 10,000 episodes, 5-way 5-shot", "python benchmarks/fewshot.py", of_geometry),
    "augment": (
        "Augmentation in batch, 100 images (random resized crop, jitter, flip)",
        "python benchmarks/augment.py > benchmarks/augment.jsonl",
        of_augment,
    ),
    "poincare_resnet": (
        "Poincaré ResNet-20, training steps on images of 32 × 32",
        "python benchmarks/poincare_resnet.py",
        of_poincare_resnet,
    ),
}


def read(folder: Path = FOLDER) -> tuple[list[Group], list[Line]]:
    """The cases of each benchmark, and all lines."""
    groups, lines = [], []
    for name, (title, command, cases_of) in SOURCES.items():
        group = Group(title, command)
        for path in sorted(folder.glob(f"{name}*.jsonl")):
            here = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text.strip()]
            lines += here
            for line in here:
                setting = (line["device"], line["threads"])
                for case in cases_of(line):
                    group.cases.setdefault(case.work, {})[setting] = case
        groups.append(group)
    return groups, lines


def settings_of(groups: list[Group]) -> list[Setting]:
    """All settings, the one by which goals are judged first."""
    found = list(dict.fromkeys(setting for group in groups for cases in group.cases.values() for setting in cases))
    return sorted(found, key=lambda setting: (setting[0] != found[0][0], setting[0], setting[1]))


def heading(setting: Setting, home: str) -> str:
    device, threads = setting
    count = f"{threads} thread{'s' if threads > 1 else ''}"
    return count if device == home else device if "NVIDIA" in device else f"{device}, {count}"


def table(group: Group, settings: list[Setting], full: bool) -> list[str]:
    """A group's lines of Markdown.  full: with the column that only speed.md has."""
    home = settings[0][0]
    heads = ["work", "peer", "goal", *(heading(setting, home) for setting in settings), "goal met", "besides"]
    heads += ["measured"] if full else []
    rows = [heads, ["---"] * 2 + ["---:"] * (1 + len(settings)) + ["---"] * (len(heads) - 3 - len(settings))]
    for work, cases in group.cases.items():
        judged = cases.get(settings[0])
        any_case = judged or next(iter(cases.values()))
        ratios = [f"{number(cases[at].ratio, cases[at].goal)} ×" if at in cases else "–" for at in settings]
        told = verdict(judged.ratio, judged.goal) if judged else ""
        goal = any_case.goal.replace(">=", "≥") + " ×" if any_case.goal else ""
        besides = "; ".join(said(extra, judged is not None) for extra in any_case.extras)
        rows.append([work, any_case.peer, goal, *ratios, told, besides])
        if full:
            rows[-1].append("; ".join(any_case.facts))
    return ["| " + " | ".join(row) + " |" for row in rows]


def said(extra: Extra, judged: bool) -> str:
    goal = extra.goal.replace("<=", "≤").replace(">=", "≥")
    told = ", ".join(filter(None, (goal, verdict(extra.value, extra.goal) if judged else "", extra.peer)))
    return extra.text.format(number(extra.value, extra.goal)) + (f" ({told})" if told else "")


def judgements(groups: list[Group], settings: list[Setting]) -> list[tuple[str, bool]]:
    """Every goal that was judged: what it is about, and whether it is met."""
    found = []
    for case in (cases[settings[0]] for group in groups for cases in group.cases.values() if settings[0] in cases):
        if case.goal:
            found.append((f"{case.work}: {number(case.ratio, case.goal)} × ({case.goal})", met(case.ratio, case.goal)))
        found += [(f"{case.work}: {said(e, False)}", met(e.value, e.goal)) for e in case.extras if e.goal]
    return found


def markdown(groups: list[Group], lines: list[Line], full: bool = False) -> str:
    """The tables, what is missing, and what it ran on."""
    settings = settings_of(groups)
    text = []
    if settings:
        versions = ", ".join(dict.fromkeys(line["torch"] for line in lines))
        goals = judgements(groups, settings)
        text += [
            f"How many times as fast as the peer (below 1: slower), forward and backward unless it says otherwise, "
            "float32; medians of turns taken in one process. Goals are judged on "
            f"{heading(settings[0], settings[0][0])} of {settings[0][0]}: {sum(ok for _, ok in goals)} of {len(goals)} "
            f"met. torch {versions}, geoopt 0.5.1, HypLL 0.1.1.",
            "",
        ]
    for group in groups:
        text += [f"**{group.title}**", ""]
        text += table(group, settings, full) if group.cases else [f"Not measured here: `{group.command}`"]
        text += [""]
    return "\n".join(text)


def page(groups: list[Group], lines: list[Line]) -> str:
    """speed.md: the README's tables with more columns."""
    head = "# Speed and memory against the peers\n\nWritten by `python benchmarks/speed_report.py`.\n\n"
    return head + markdown(groups, lines, full=True)


def main() -> None:
    """Write speed.md and the README's section; say which goals are missed."""
    groups, lines = read()
    (FOLDER / "speed.md").write_text(page(groups, lines), encoding="utf-8")
    readme_section(README, "speed", markdown(groups, lines))
    for work, ok in judgements(groups, settings_of(groups)) if lines else []:
        if not ok:
            print(f"missed: {work}")


if __name__ == "__main__":
    main()
