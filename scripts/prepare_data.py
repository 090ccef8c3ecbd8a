"""Show which data sets are there, which are missing and where to get them; decode those found into the store.

    python scripts/prepare_data.py [key=value ...]

    data_dir=DIR      where the data sets lie, in any layout   (default: $HYPIMG_DATA, else data)
    store_dir=DIR     where decoded images are kept            (default: $HYPIMG_STORE, else data/.store)
    dataset=A,B       only these                               (default: all of configs/dataset)
    fill=false        look, decode nothing                     (default: true)
    download=true     fetch what is missing from its authors   (default: false)

Exit code 0; 2 where a data set cannot be used (damaged, no space, no network), or one asked for by name is missing.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hypimg.config import compose_group, members
from hypimg.data.prepare import State, inspect
from hypimg.errors import UserError, nearest


def main(words: Sequence[str]) -> int:
    if {"--help", "-h"} & set(words):
        print(__doc__)
        return 0
    try:
        options = parse(words)
        names = options["dataset"].split(",") if options["dataset"] else members("dataset")
        nodes = [compose_group("dataset", name) for name in names]
        fill, download = (truth(key, options[key]) for key in ("fill", "download"))
        from hypimg.run import instantiate  # imports the training loop: 2 s

        folders = Path(options["data_dir"]), Path(options["store_dir"])
        states = [inspect(instantiate(node), *folders, fill=fill, download=download) for node in nodes]
        states = [replace(state, name=name) for name, state in zip(names, states, strict=True)]  # some share a set
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    show(states)
    bad = {"error", "missing"} if options["dataset"] else {"error"}
    return 2 if any(state.state in bad for state in states) else 0


def parse(words: Sequence[str]) -> dict[str, str]:
    options = {
        "data_dir": os.environ.get("HYPIMG_DATA", "data"),
        "store_dir": os.environ.get("HYPIMG_STORE", "data/.store"),
        "dataset": "",
        "fill": "true",
        "download": "false",
    }
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in options:
            raise UserError("argument", word, f"must be key=value; {nearest(key, options)}")
        options[key] = value
    return options


def truth(key: str, value: str) -> bool:
    if value.lower() not in {"true", "false"}:
        raise UserError(key, value, "must be true or false")
    return value.lower() == "true"


def show(states: list[State]) -> None:
    if not sys.stdout.isatty():
        for state in states:
            facts = [state.form, state.images, f"digest {state.digest}", f"official: {state.official}"]
            print("; ".join([f"{state.name}: {state.state}", *(facts if state.digest else []), state.note]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("data set", "state", "form", "official", "images", "digest", show_lines=True)
    for column in (0, 1, 5):
        table.columns[column].no_wrap = True
    colours = {"ready": "green", "found": "yellow", "missing": "yellow", "error": "red"}
    for state in states:
        words = (state.form, state.official, state.images, state.digest)
        table.add_row(state.name, Text(state.state, colours[state.state]), *map(Text, words))
    console = Console()
    console.print(table)
    for state in states:
        console.print(Text(f"{state.name}: {state.note}"), soft_wrap=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(main(sys.argv[1:]))
