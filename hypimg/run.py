"""One run: a config in, a folder with a result out. The only place where configs become objects."""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from hypimg import config, rundir
from hypimg.data.dataset import ImageDataset
from hypimg.data.opened import OpenedData, RunData
from hypimg.data.preprocess import split_off
from hypimg.data.resident import ResidentImages, resident
from hypimg.errors import UserError
from hypimg.evaluation.predictor import Predictor
from hypimg.models.classifier import Classifier
from hypimg.nn.poincare import freeze
from hypimg.rundir import Evaluation
from hypimg.training.checkpoint import FULL, Checkpoints, write_atomically
from hypimg.training.devices import Machine, device_of_rank, is_leader
from hypimg.training.loggers import MetricsFile, Progress, WandbLog, read_metrics, wandb_wanted
from hypimg.training.preemption import StopRequest
from hypimg.training.seeding import derive_seed, generator

log = logging.getLogger(__name__)

ALL_CLIPPED = 0.995  # share of embeddings on the clip sphere from which a summary says that it is all of them


def instantiate(node: DictConfig, *args: Any, **kwargs: Any) -> Any:
    """Build what a config node names, after checking what it names; partial nodes get `args` and `kwargs` at once."""
    from hydra.errors import HydraException
    from hydra.utils import instantiate as hydra_instantiate

    config.check_targets(node)
    try:
        built = hydra_instantiate(node)
        return built(*args, **kwargs) if node.get("_partial_", False) else built
    except HydraException as error:
        cause = error.__cause__ or error
    except (ArithmeticError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        cause = error
    if isinstance(cause, UserError):
        raise cause
    given = {key: value for key, value in OmegaConf.to_container(node).items() if not str(key).startswith("_")}  # type: ignore[union-attr]
    raise UserError(str(node["_target_"]).rpartition(".")[2], given, f"{type(cause).__name__}: {cause}") from cause


def run_directory(cfg: DictConfig) -> Path:
    return Path(cfg.runs_dir) / cfg.name / config.run_key(cfg)


def pick_device(name: str) -> str:
    """`auto` → cuda where there is one.  Raises UserError for a device that this machine lacks."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError("device", name, "no such device; use auto, cpu, cuda or cuda:1") from error
    if device.type not in {"cpu", "cuda"} or (device.type == "cuda" and not torch.cuda.is_available()):
        raise UserError("device", name, "this machine has none that torch can use; use device=auto")
    return name


def build_model(cfg: DictConfig, dataset: ImageDataset) -> Classifier:
    """Space, backbone and head; the initial weights are a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(cfg.seed, "weights"))
        space = instantiate(cfg.space)
        # A backbone whose layers work in the ball shares it with the head: a learnable c exists once.
        shared = {"ball": space} if config.takes(cfg.backbone, "ball") else {}
        backbone = instantiate(cfg.backbone, dataset.image_shape, **shared)
        head = instantiate(cfg.head, space, backbone.out_features, dataset.num_classes)
    # The store holds channels last, and convolutions and pooling are faster on it (1.4 × for LeNet on one CPU thread).
    return Classifier(backbone, space, head).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def open_data(cfg: DictConfig) -> tuple[ImageDataset, RunData]:
    dataset = instantiate(cfg.dataset)
    data_dir, store_dir = Path(cfg.data_dir), Path(cfg.store_dir)
    store = dataset.open(data_dir, store_dir, cfg.download)
    return dataset, RunData(data_dir, store_dir, cfg.download, dataset=dataset, store=store)


def checkpoints_of(directory: Path, cfg: DictConfig, data_digest: str) -> Checkpoints:
    fields = {key: value for key, value in config.key_fields(cfg).items() if key != "result_version"}
    return Checkpoints(directory / "checkpoints", {"config": config.digest(fields), "data set": data_digest})


def execute(cfg: DictConfig) -> dict[str, Any]:
    """Bring one run to its end, from wherever it stands, and return its summary.

    Finished → nothing is trained; unfinished → resumed; held by another living process → UserError.
    """
    directory = run_directory(cfg)
    if not is_leader(cfg.devices):  # a further rank of a run that rank 0 holds, reports and writes
        _fit(cfg, directory, *open_data(cfg), loggers=[])
        return {}
    with rundir.hold(directory):
        summary = rundir.read_summary(directory)
        try:
            dataset, data = open_data(cfg)
        except UserError:
            if summary is None:
                raise
            log.warning("the data of this finished run is not here now, so it could not be compared with what it saw")
            return summary | {"earlier": True}
        seen = (summary or {}).get("data", {}).get("digest") or _data_seen(directory)
        if seen not in (None, data.identity["digest"]):
            aside = rundir.set_aside(directory, seen[:10])
            log.warning(
                "this run saw other data (%s) than is there now; set aside in %s, training anew", seen[:12], aside
            )
            summary = None
        if summary is not None:
            return _with_evaluators(cfg, directory, summary, data) | {"earlier": True}
        return _train_and_evaluate(cfg, directory, dataset, data)


def _with_evaluators(cfg: DictConfig, directory: Path, summary: dict[str, Any], data: RunData) -> dict[str, Any]:
    """The summary of a finished run with what evaluators found that it had not, or not with these options, so far."""
    stored, _ = read_run(directory)
    known = config.evaluators(stored)
    asked = {name: node for name, node in config.evaluators(cfg).items() if not _equal(node, known.get(name))}
    if not asked:
        return summary
    log.info("finished earlier; evaluated now, without training: %s", ", ".join(asked))
    data.device = pick_device(cfg.device)
    use_threads(cfg)
    predictor = _load(stored, summary, directory, data.device)
    metrics = {name: value for name, value in summary["metrics"].items() if name.partition("/")[0] not in asked}
    for name, node in asked.items():
        _check(node, cfg, data)
        found = _evaluate([predictor], [directory], node, data).metrics
        metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
    summary = summary | {"metrics": metrics}
    chosen = run_config(stored)
    chosen.evaluator = {**known, **asked}
    write_atomically(directory / "config.yaml", OmegaConf.to_yaml(chosen, resolve=True).encode())
    rundir.write_json(directory / "summary.json", summary)
    return summary


def _equal(node: DictConfig, other: DictConfig | None) -> bool:
    return other is not None and config.canonical(node) == config.canonical(other)


def _check(node: DictConfig, cfg: DictConfig, data: RunData) -> None:
    """Let an evaluator refuse what it will not be able to do, before hours of training."""
    built = instantiate(node)
    if hasattr(built, "check"):
        built.check(build_model(cfg, data.dataset), data)


def _data_seen(directory: Path) -> str | None:
    """Digest of the data that an unfinished run began with."""
    try:
        return json.loads((directory / "environment.json").read_text())["data"]["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # written anew; the checkpoint has the digest too


def _train_and_evaluate(cfg: DictConfig, directory: Path, dataset: ImageDataset, data: RunData) -> dict[str, Any]:
    env = rundir.environment(pick_device(cfg.device), use_threads(cfg), data.identity)
    for node in config.evaluators(cfg).values():
        _check(node, cfg, data)
    write_atomically(directory / "config.yaml", OmegaConf.to_yaml(run_config(cfg), resolve=True).encode())
    rundir.write_json(directory / "environment.json", env)

    metrics_file = MetricsFile(directory / "metrics.csv")
    tracker = None
    if wandb_wanted(cfg.logger.wandb):
        tracker = WandbLog(cfg.logger.project, cfg.name, config.run_key(cfg), config.key_fields(cfg), directory)
    try:
        best = _fit(cfg, directory, dataset, data, [metrics_file, *([tracker] if tracker else [])])
        checkpoints = checkpoints_of(directory, cfg, data.identity["digest"])
        predictor = _predictor(cfg, dataset, data.store.classes, checkpoints, cfg.trainer.select, data.device)
        summary = _summary(cfg, directory, predictor, data, best["epoch"], env)
        if tracker:
            pictures = [directory / path for path in summary["pictures"] if path.endswith(".png")]
            tracker.summary(summary["metrics"], pictures)
        rundir.write_json(directory / "summary.json", summary)
    finally:
        if tracker:
            tracker.close()
    return summary


def _fit(cfg: DictConfig, directory: Path, dataset: ImageDataset, data: RunData, loggers: list[Any]) -> dict[str, Any]:
    """Train, in this process and, with `devices`, in those that it starts; the epoch selected and its value."""
    use_threads(cfg)
    data.device = device_of_rank(pick_device(cfg.device), cfg.devices)
    machine = Machine(data.device, cfg.compile, cfg.deterministic, cfg.checkpoint_seconds, cfg.devices)
    if cfg.compile and data.device == "cpu" and config.takes(cfg.backbone, "ball"):
        log.warning(
            "compile=true switches the native kernels of Poincaré layers off; on a CPU compile=false is the fast way"
        )
    trainer = instantiate(cfg.trainer, seed=cfg.seed, machine=machine)
    train, val = _train_and_val(cfg, dataset, data, trainer.val_fraction)
    title = f"{cfg.name}/{directory.name}"
    with StopRequest() as stop:
        best: dict[str, Any] = trainer.fit(
            model=build_model(cfg, dataset).to(data.device),
            train=train,
            val=val,
            objective=instantiate(cfg.objective),
            make_optimizer=lambda parameters: instantiate(cfg.optimizer, parameters),
            make_scheduler=lambda optimizer: instantiate(cfg.scheduler, optimizer),
            checkpoints=checkpoints_of(directory, cfg, data.identity["digest"]),
            loggers=loggers,
            make_progress=lambda epochs, steps, done: Progress(title, epochs, steps, done),
            stop=stop,
        )
    return best


def use_threads(cfg: DictConfig) -> int:
    """Give torch the threads that the config names, or all cores; how many."""
    threads = cfg.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    return threads


def _train_and_val(
    cfg: DictConfig, dataset: ImageDataset, data: RunData, val_fraction: float | None
) -> tuple[ResidentImages, ResidentImages | None]:
    """The training images on the device, and those to choose a model by; None: there are none."""
    store, train = data.store, dataset.indices(data.store, "train")
    val = dataset.indices(store, "val") if val_fraction is None else None
    if val_fraction:
        labels = store.column("label")[train]
        kept, held_out = split_off(labels, val_fraction, generator(cfg.seed, "validation split"))
        if not len(held_out):
            raise UserError("trainer.val_fraction", val_fraction, "holds out no image; take a larger share")
        train, val = train[kept], train[held_out]
    augment = instantiate(cfg.augment) if cfg.get("augment") else None
    images = resident(dataset, store, train, data.device, augment)
    return images, None if val is None else resident(dataset, store, val, data.device)


def _summary(
    cfg: DictConfig, directory: Path, predictor: Predictor, data: RunData, epoch: int, env: dict[str, Any]
) -> dict[str, Any]:
    """What summary.json says of a trained run: the epoch chosen, its evaluators' metrics, and their pictures drawn."""
    rows = read_metrics(directory / "metrics.csv")
    chosen = next((row for row in rows if row["epoch"] == epoch), {})
    metrics = {name: value for name, value in chosen.items() if name.startswith("val/")}
    pictures = []
    for name, node in config.evaluators(cfg).items():
        evaluation = _evaluate([predictor], [directory], node, data)
        metrics |= {f"{name}/{metric}": value for metric, value in evaluation.metrics.items()}
        pictures += _draw(evaluation, directory)
    return {
        "name": cfg.name,
        "key": config.run_key(cfg),
        "seed": cfg.seed,
        "result_version": config.RESULT_VERSION,
        "metrics": metrics,
        "epochs": len(rows),
        "selected_epoch": epoch,
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "data": data.identity,
        "classes": data.store.classes,
        "device": env["device"],
        "threads": env["threads"],
        "commit": env["commit"],
        "pictures": [str(path.relative_to(directory)) for path in pictures],
        "warnings": _warnings(chosen),
    }


def _warnings(row: dict[str, Any]) -> list[str]:
    """What the epoch chosen says against the run."""
    clipped = row.get("val/clipped", row.get("train/clipped", 0.0))
    if not clipped >= ALL_CLIPPED:
        return []
    remedy = "distances to the origin mean nothing and c is a temperature; try a smaller c or space.clip_features"
    return [f"{100 * clipped:.1f} % of the embeddings lie on the clip sphere: {remedy}"]


def run_config(cfg: DictConfig) -> DictConfig:
    """What a run's config.yaml holds: the groups and axes, without this machine's folders (they may hold secrets)."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    hidden = {"data_dir", "store_dir", "runs_dir", "download", "hydra"}
    return OmegaConf.create({key: value for key, value in plain.items() if key not in hidden})


def _predictor(
    cfg: DictConfig, dataset: ImageDataset, classes: list[str], checkpoints: Checkpoints, select: str, device: str
) -> Predictor:
    model = build_model(cfg, dataset)
    model.load_state_dict(checkpoints.load(select)["model"])
    model.eval().to(device).requires_grad_(False)
    freeze(model)
    name = f"{cfg.name}/{checkpoints.directory.parent.name}"
    return Predictor(name, model, dataset.image_shape, dataset.mean, dataset.std, classes)


def _draw(evaluation: Evaluation, directory: Path) -> list[Path]:
    """The picture of the disk, where the evaluation stored points of the plane and others to tell them from."""
    with np.load(evaluation.scores) as arrays:
        if not {"points", "outliers"} <= set(arrays.files) or arrays["points"].shape[1] != 2:
            return []
    from hypimg.figures import disk

    try:
        return disk.draw(evaluation.scores, directory / "figures")
    except OSError as error:
        if error.errno not in FULL:
            raise
        remedy = f"cannot be written ({error.strerror}); make room and run the same command again, nothing is lost"
        raise UserError("file", directory / "figures", remedy) from error


def load(run_dir: str | Path, device: str = "cpu") -> Predictor:
    """The trained model of a finished run, with its preprocessing and class names.

    Raises UserError if the folder holds no finished run, or its checkpoint is damaged or of another config.
    """
    cfg, summary = read_run(Path(run_dir))
    return _load(cfg, summary, Path(run_dir), pick_device(device))


def read_run(directory: Path) -> tuple[DictConfig, dict[str, Any]]:
    """Config and summary of a finished run."""
    summary = rundir.read_summary(directory)
    if summary is None or not (directory / "config.yaml").is_file():
        raise UserError("run", directory, "no finished run here; give a folder runs/<name>/<key> with a summary.json")
    try:
        cfg = OmegaConf.load(directory / "config.yaml")
        assert isinstance(cfg, DictConfig) and all(group in cfg for group in ("dataset", "backbone", "space", "head"))
    except Exception as error:  # YAML's, OmegaConf's and Unicode's errors have no common base
        raise UserError("config", directory / "config.yaml", f"damaged; delete {directory} to train again") from error
    return cfg, summary


def _load(cfg: DictConfig, summary: dict[str, Any], directory: Path, device: str) -> Predictor:
    checkpoints = checkpoints_of(directory, cfg, summary["data"]["digest"])
    dataset = instantiate(cfg.dataset)
    return _predictor(cfg, dataset, summary["classes"], checkpoints, cfg.trainer.select, device)


def evaluate(
    run_dirs: list[Path],
    evaluator: DictConfig,
    data_dir: str | Path | None = None,
    store_dir: str | Path | None = None,
    device: str = "auto",
) -> Evaluation:
    """Evaluate finished runs together, or return what an equal evaluation stored before. Nothing is trained.

    The result is kept under the first run: evaluations/<key>.json and .npz, key over (runs, evaluator, data).
    """
    runs = [read_run(Path(directory)) for directory in run_dirs]
    defaults = config.compose([])  # data_dir and store_dir of the command line's defaults
    folder, stores = Path(data_dir or defaults.data_dir), Path(store_dir or defaults.store_dir)
    where = pick_device(device)
    cfg = runs[0][0]
    dataset = instantiate(cfg.dataset)
    data = RunData(folder, stores, device=where, dataset=dataset, store=dataset.open(folder, stores))
    predictors = [_load(c, s, Path(d), where) for (c, s), d in zip(runs, run_dirs, strict=True)]
    return _evaluate(predictors, [Path(d) for d in run_dirs], evaluator, data)


def evaluate_alone(
    evaluator: DictConfig, machine: DictConfig, folder: Path | None = None, fresh: bool = False
) -> Evaluation:
    """What an evaluator finds without any run, from its options and its seed; what an equal one stored before.

    machine: a config with data_dir, store_dir, runs_dir, download, device and threads.  The result is kept under
    `folder`, by default <runs_dir>/evaluations, as <key>.json and .npz, key over (evaluator, data, RESULT_VERSION).
    fresh: make it again.  The evaluator is called with no predictor, and with data that can only `open`.
    """
    device, threads = pick_device(machine.device), use_threads(machine)
    data = OpenedData(Path(machine.data_dir), Path(machine.store_dir), machine.download, device)
    built = instantiate(evaluator)
    _open_parts(evaluator, data)
    fields = {"evaluator": OmegaConf.to_container(evaluator, resolve=True), "result_version": config.RESULT_VERSION}
    env = rundir.environment(device, threads, {})
    made = {name: env[name] for name in ("commit", "device", "threads")}
    folder = folder or Path(machine.runs_dir) / "evaluations"
    return rundir.evaluation(folder, fields, data.opened, lambda: built([], data), made, fresh)


def _evaluate(predictors: list[Predictor], run_dirs: list[Path], node: DictConfig, data: RunData) -> Evaluation:
    built = instantiate(node)
    _open_parts(node, data)
    names = [directory.name for directory in run_dirs]
    fields = {"runs": names, "evaluator": OmegaConf.to_container(node, resolve=True)}
    seen = {"own": data.identity, **data.opened}
    return rundir.evaluation(run_dirs[0] / "evaluations", fields, seen, lambda: built(predictors, data))


def _open_parts(node: DictConfig, data: OpenedData) -> None:
    """Open the data sets that an evaluator's config names, so that their digests are known before it is called."""
    for _, part in config.targets(node):
        if str(part["_target_"]).startswith("hypimg.data.datasets."):
            data.open(instantiate(part))


def report(cfg: DictConfig, summary: dict[str, Any]) -> None:
    """The final table on standard output, the picture's path last."""
    if not summary:
        return
    directory = run_directory(cfg)
    if summary.get("earlier"):
        print(f"finished earlier, nothing was trained: {directory} (delete the folder to train again)")
    shown = [name for name in cfg.show or summary["metrics"] if name in summary["metrics"]]
    width = max(map(len, shown), default=0)
    print(f"\n{cfg.name}: {summary['epochs']} epochs, {summary['seconds']:.0f} s on {summary['device']}")
    for name in shown:
        print(f"  {name:<{width}}  {summary['metrics'][name]:.4f}")
    if cfg.caption:
        print(textwrap.fill(cfg.caption, width=100))
    for warning in summary.get("warnings", []):
        print(textwrap.fill(f"note: {warning}", width=100))
    print(f"run: {directory}")
    for path in summary.get("pictures", []):
        if path.endswith(".png"):
            print(f"picture: {directory / path}")
    sys.stdout.flush()
