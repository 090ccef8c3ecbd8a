"""What `python train.py --help` teaches; made from the configs themselves."""

from __future__ import annotations

from omegaconf import OmegaConf

from hypimg import config

USAGE = """\
Train and evaluate one run:      python train.py [experiment=NAME] [GROUP=MEMBER] [KEY=VALUE] ...
A sweep, one run per combination: python train.py -m experiment=mnist_hyperbolic c=0.05,0.1,1 dim=2,8,16,32
                                  python train.py -m experiment=mnist_hyperbolic sweep=curvature
Several at once on one machine:   add hydra/launcher=joblib hydra.launcher.n_jobs=2
On SLURM:                         add hydra/launcher=submitit_slurm hydra.launcher.partition=...
See a config without running it:  python train.py experiment=mnist_hyperbolic --cfg job
A table of a paper:               make help

A run's result is a function of its config and seed, and lies in runs/<experiment>/<key>. The same command again prints
it if it is finished and goes on with it if it is not; a sweep skips what is done.
"""

# The scalars at the top of configs/train.yaml, in the order in which they are worth reading.
AXES = ("c", "dim", "seed")
MACHINE = ("device", "devices", "threads", "data_dir", "store_dir", "runs_dir", "download", "compile", "deterministic")
SWITCHES = (
    "rescale_gradient",
    "ball",
    "inverted_lambda",
    "residual_axis",
    "layer_margin",
    "head_init",
    "head_logits",
    "checkpoint_seconds",
)


def text() -> str:
    """The whole help, as printed."""
    notes = _notes()
    lines = [
        USAGE,
        "Swept axes (c=0.1, or with -m c=0.05,0.1,1):",
        *_scalars(AXES, notes),
        "",
        "Experiments (experiment=):",
    ]
    lines += [f"  {name:<22} {first_comment('experiment', name)}" for name in config.members("experiment")]
    lines += ["", "Groups (GROUP=MEMBER); `--cfg job` shows the keys of a member, each can be overridden:"]
    for group in config.groups():
        if group != "experiment":
            lines.append(f"  {group:<12} {', '.join(config.members(group))}")
    lines += ["", "Switches and this machine:", *_scalars((*SWITCHES, *MACHINE), notes), ""]
    lines.append(
        "Exit codes: 0 done, 2 something you can mend (one line says what), 3 not finite, 128+n signal n after saving."
    )
    return "\n".join(lines)


def first_comment(group: str, name: str) -> str:
    """The first comment of a member's file that is not a Hydra directive."""
    for line in (config.CONFIG_DIR / group / f"{name}.yaml").read_text().splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ")
    return ""


def _notes() -> dict[str, str]:
    """Comment behind each top-level scalar of train.yaml."""
    notes = {}
    for line in (config.CONFIG_DIR / "train.yaml").read_text().splitlines():
        key, colon, rest = line.partition(":")
        if colon and key.isidentifier():
            notes[key] = rest.partition("#")[2].strip()
    return notes


def _scalars(keys: tuple[str, ...], notes: dict[str, str]) -> list[str]:
    defaults = OmegaConf.load(config.CONFIG_DIR / "train.yaml")
    shown = {key: OmegaConf.to_container(defaults, resolve=False)[key] for key in keys}  # type: ignore[index,call-overload]
    return [
        f"  {key:<18} {'null' if value is None else value!s:<28} {notes.get(key, '')}" for key, value in shown.items()
    ]
