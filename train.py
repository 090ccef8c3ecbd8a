"""Train and evaluate one run, or a sweep of runs: python train.py experiment=mnist_hyperbolic c=0.1 dim=8 seed=3."""

from __future__ import annotations

import sys
from pathlib import Path

from hypimg import config, launch
from hypimg.errors import UserError

HYDRA_ONLY = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "--shell-completion", "-sc", "--resolve")


def main(words: list[str]) -> int:
    if "--help" in words or "-h" in words:
        from hypimg.help import text

        print(text())
        return 0
    if any(word.split("=")[0] in HYDRA_ONLY for word in words):
        return show_with_hydra()
    try:
        if {"-m", "--multirun"} & set(words):
            return sweep([word for word in words if word not in {"-m", "--multirun"}])
        if any(word.startswith("sweep=") for word in words):
            raise UserError("sweep", None, "a sweep is several runs: add -m")
        return launch.run_task(config.compose(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def sweep(words: list[str]) -> int:
    """Check every job, then run them; the exit code is the worst of theirs."""
    launcher = [word for word in words if word.startswith(("hydra/", "hydra."))]
    jobs = launch.expand(words)
    for job in jobs:
        config.compose(job)
    codes = launch.launch(jobs, launcher)
    if failed := [" ".join(job) for job, code in zip(jobs, codes, strict=True) if code]:
        print(f"\n{len(failed)} of {len(jobs)} jobs did not finish:\n  " + "\n  ".join(failed), file=sys.stderr)
    return max(codes)


def show_with_hydra() -> int:
    """Hydra's own commands (--cfg job, --info, shell completion)."""
    import hydra

    hydra.main(version_base="1.3", config_path=str(Path(config.CONFIG_DIR)), config_name="train")(launch.run_task)()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
