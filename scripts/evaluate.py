"""Evaluate a finished run again, or predict on a folder of images; nothing is trained.

    python scripts/evaluate.py run=runs/mnist_hyperbolic/<key>                       all evaluators of the run again
    python scripts/evaluate.py run=... evaluator=ood_omniglot                      another evaluator (configs/evaluator)
    python scripts/evaluate.py run=... evaluator=ood_omniglot outliers.part=background   ... with other settings or data
    python scripts/evaluate.py run=... images=photos/ out=predictions.csv            class, probability, distance to 0

Several runs at once (where an evaluator fuses them): run=A,B.  Also: data_dir= store_dir= device=.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from hypimg.errors import UserError, nearest

KEYS = ("run", "evaluator", "images", "out", "data_dir", "store_dir", "device")


def main(words: list[str]) -> int:
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        options, settings = parse(words)
        if "images" in options:
            predict(Path(options["run"]), Path(options["images"]), options.get("out"), options.get("device", "auto"))
        else:
            evaluate(options, settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """`key=value` words → our options, and the rest as settings of the evaluator."""
    options, settings = {}, []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError("argument", word, "give key=value; --help shows the keys")
        if key in KEYS:
            options[key] = value
        elif any(other.startswith("evaluator=") for other in words):
            settings.append(word)
        else:
            raise UserError(key, value, f"unknown; {nearest(key, KEYS)}")
    if "run" not in options:
        raise UserError("run", None, "give run=runs/<name>/<key>, the folder of a finished run")
    return options, settings


def evaluate(options: dict[str, str], settings: list[str]) -> None:
    from omegaconf import OmegaConf

    from hypimg import config, run

    folders = [Path(folder) for folder in options["run"].split(",")]
    if "evaluator" in options:
        node = config.compose_group("evaluator", options["evaluator"])
        for word in settings:
            key, _, value = word.partition("=")
            if OmegaConf.select(node, key) is None and "." not in key:
                raise UserError(key, value, f"not a setting of this evaluator; {nearest(key, map(str, node))}")
            OmegaConf.update(node, key, OmegaConf.create(f"x: {value}").x)
        config.check_targets(node, options["evaluator"])
        nodes = {options["evaluator"]: node}
    else:
        nodes = config.evaluators(run.read_run(folders[0])[0])
    where = {key: options[key] for key in ("data_dir", "store_dir", "device") if key in options}
    for name, evaluator in nodes.items():
        evaluation = run.evaluate(folders, evaluator, **where)
        width = max(map(len, evaluation.metrics))
        print(f"{name}")
        for metric, number in evaluation.metrics.items():
            print(f"  {metric:<{width}}  {number:.4f}")
        print(f"  stored: {evaluation.scores}")


def predict(folder: Path, images: Path, out: str | None, device: str) -> None:
    """CSV with one line per image: file, class, probability, distance to the origin."""
    from hypimg import run
    from hypimg.data.folder import image_files

    rows, failed = run.load(folder, device).predict_files(image_files(images))
    for path, reason in failed:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if not rows:
        raise UserError("images", images, f"none of {len(failed)} files could be read")
    with open(out, "w", newline="") if out else sys.stdout as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if out:
        print(f"{len(rows)} predictions in {out}" + (f", {len(failed)} files skipped" if failed else ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
