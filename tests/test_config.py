from __future__ import annotations

import inspect

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from hypimg import config, launch
from hypimg.errors import UserError


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return config.compose(["experiment=mnist_hyperbolic"])


@pytest.mark.parametrize("experiment", config.members("experiment"))
@pytest.mark.parametrize("space", config.members("space"))
@pytest.mark.parametrize("variant", config.members("variant"))
def test_every_experiment_composes_and_binds_in_every_space(experiment: str, space: str, variant: str) -> None:
    cfg = config.compose([f"experiment={experiment}", f"space={space}", f"variant={variant}", "c=0.1", "dim=512"])
    assert cfg.name == experiment
    nodes = dict(config.targets(cfg))
    assert {"dataset", "backbone", "space", "head", "objective", "optimizer", "scheduler", "trainer"} <= nodes.keys()
    for path, node in nodes.items():
        given = {str(key): None for key in node if not str(key).startswith("_")}
        signature = inspect.signature(config.resolve_target(node["_target_"]))
        (signature.bind_partial if node.get("_partial_") else signature.bind)(**given), path


@pytest.mark.parametrize(
    "group", [group for group in config.groups() if group not in {"experiment", "variant", "sweep"}]
)
def test_every_group_member_composes(group: str) -> None:
    for member in config.members(group):
        word = f"{group}=[{member}]" if group == "evaluator" else f"{group}={member}"
        config.compose([word])


def _leaves(node: DictConfig, path: str = "") -> list[str]:
    found = []
    for key in node:
        where = f"{path}.{key}" if path else str(key)
        child = node[key]
        found += _leaves(child, where) if isinstance(child, DictConfig) else [where]
    return found


def test_each_leaf_of_a_keyed_group_moves_the_key(composed: DictConfig) -> None:
    before = config.run_key(composed)
    checked = 0
    for group in config.KEY_GROUPS:
        if group not in composed:
            continue
        for leaf in _leaves(composed[group], group):
            changed = composed.copy()
            value = OmegaConf.select(changed, leaf)
            other = (not value) if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else 7.25
            OmegaConf.update(changed, leaf, other)
            assert config.run_key(changed) != before, leaf
            checked += 1
    assert checked > 30
    with open_dict(composed):
        assert config.run_key(config.compose(["experiment=mnist_hyperbolic", "seed=1"])) != before


@pytest.mark.parametrize(
    "word",
    [
        *(
            "device=cpu",
            "threads=3",
            "data_dir=elsewhere",
            "store_dir=x",
            "runs_dir=y",
            "download=true",
            "compile=true",
        ),
        *("deterministic=true", "checkpoint_seconds=1", "logger=csv", "logger.project=p", "evaluator=[accuracy]"),
    ],
)
def test_what_does_not_change_the_result_stays_out_of_the_key(composed: DictConfig, word: str) -> None:
    assert config.run_key(config.compose(["experiment=mnist_hyperbolic", word])) == config.run_key(composed)


def test_the_key_of_a_committed_result_does_not_drift() -> None:
    words = ["experiment=mnist_hyperbolic", "space=euclidean", "dim=8", "seed=3", "trainer.epochs=10"]
    fields = config.key_fields(config.compose(words))
    assert config.digest({**fields, "new_option": None}) == config.digest(fields), (
        "an option left at null changes no key"
    )


def test_one_number_has_one_key() -> None:
    keys = {config.run_key(config.compose(["experiment=mnist_hyperbolic", word])) for word in ("c=1", "c=1.0", "c=1e0")}
    assert len(keys) == 1


def test_the_euclidean_arm_is_one_run_for_every_c_and_variant() -> None:
    arms = [["c=0.05"], ["c=1"], ["variant=official"], ["variant=paper"]]
    keys = {config.run_key(config.compose(["experiment=mnist_hyperbolic", "space=euclidean", *arm])) for arm in arms}
    assert len(keys) == 1


def test_a_variant_moves_the_key_of_a_ball() -> None:
    paper, official = (
        config.run_key(config.compose(["experiment=mnist_hyperbolic", f"variant={name}"]))
        for name in ("paper", "official")
    )
    assert paper != official


def test_the_order_of_overrides_does_not_matter() -> None:
    words = ["dim=8", "experiment=mnist_hyperbolic", "seed=2"]
    assert config.run_key(config.compose(words)) == config.run_key(config.compose(words[::-1]))


@pytest.mark.parametrize(
    ("word", "named", "remedy"),
    [
        ("exprimnt=x", "exprimnt", "experiment"),
        ("experiment=mnist_hyperbolc", "experiment=mnist_hyperbolc", "mnist_hyperbolic"),
        ("dataset=omniglt", "dataset=omniglt", "omniglot"),
        ("head=mrl", "head=mrl", "mlr"),
        ("optimizer.lrr=1", "optimizer.lrr", "optimizer.lr"),
        ("seeed=1", "seeed", "seed"),
        ("lr=1", "lr", "optimizer.lr"),
        ("c=-1", "c=-1", "space=euclidean"),
        ("c=0", "c=0", "space=euclidean"),
        ("c=abc", "c=abc", "number > 0"),
        ("c=.nan", "c=", "number > 0"),
        ("dim=0", "dim=0", "≥ 1"),
        ("dim=2.5", "dim=2.5", "≥ 1"),
        ("seed=-1", "seed=-1", "≥ 0"),
        ("threads=0", "threads=0", "from 1 to 1024"),
        ("download=abc", "download=abc", "true or false"),
        ("runs_dir=null", "runs_dir", "missing"),
        ("show=5", "show=5", "list"),
        ("threads=100000000", "threads=100000000", "1024"),
        ("~logger", "logger", "auto"),
        ("name=../../x", "name=../../x", "letters"),
        ("+space.curvature=1", "space.curvature=1", "unknown argument"),
        ("c=[1", "config", "viable"),
        ("space=null", "config=space=null", "string"),
        ("~head", "head", "missing"),
    ],
)
def test_bad_words_end_in_one_line_that_names_thing_value_and_remedy(word: str, named: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        config.compose([word])
    line = str(caught.value)
    assert line.startswith(named) and remedy in line and "\n" not in line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "experiment=birds2010_1shot objective.qery=3",
            "objective.qery: unknown config key; did you mean objective.query or objective.val_query?",
        ),
        ("objective.qery=3", "objective.qery: unknown config key; objective has batch_size, drop_last"),
        ("space=angular space.clip_features=1", "space.clip_features: unknown config key; space has c, margin"),
        (
            "space=angular experiment=cub_1shot evaluator.fewshot.shots=2",
            "evaluator.fewshot.shots: unknown config key; did you mean evaluator.fewshot.shot?",
        ),
        ("experiment=cub_1shot head=proto objective.qery=3", "head=proto: not in configs/head; did you mean protonet"),
    ],
)
def test_a_wrong_key_is_told_the_keys_of_the_groups_that_were_chosen(words: str, line: str) -> None:
    for compose in (config.compose, launch.expand):
        with pytest.raises(UserError) as caught:
            compose(words.split())
        assert str(caught.value).startswith(line)


def test_a_key_is_explained_by_the_default_run_where_the_words_do_not_compose() -> None:
    error = HydraException("Could not override 'optimizer.lrr'")
    with config.hydra_session():
        line = str(config.explain(error, ["experiment=nothing", "optimizer.lrr=1"]))
    assert line == "optimizer.lrr: unknown config key; did you mean optimizer.lr?"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "torch.load",
        "webbrowser.open",
        "urllib.request.urlopen",
        "torch.nn.modules.module.torch.load",
        "torch.optim.adam.torch.load",
        "hypimg.config.importlib.import_module",
        "hypimg.run.os.system",
        "hypimg.config.CONFIG_DIR",
        "hypimg.rundir.set_aside",
        "hypimg.nothing.Here",
        "geoopt.optim.radam.torch.load",
        "geoopt.manifolds.Lorentz",
        "",
        None,
        7,
    ],
)
def test_a_target_outside_the_allowed_modules_is_refused(target: object) -> None:
    with pytest.raises(UserError, match=r"optimizer\._target_"):
        config.check_targets(OmegaConf.create({"optimizer": {"_target_": target}}))


def test_a_target_is_checked_where_it_hides() -> None:
    nested = OmegaConf.create(
        {"evaluator": {"x": {"_target_": "hypimg.evaluation.ood.OutOfDistribution", "split": "test"}}}
    )
    config.check_targets(nested)
    nested.evaluator.x.outliers = [{"deep": {"_target_": "os.system", "command": "true"}}]
    with pytest.raises(UserError, match=r"evaluator\.x\.outliers\.0\.deep"):
        config.check_targets(nested)


def test_canonical_json_has_one_form() -> None:
    assert config.canonical({"b": 1.0, "a": [2, None, True]}) == '{"a":[2,null,true],"b":1}'
    assert config.canonical({"a": None}) == config.canonical({})
    assert config.canonical({"a": 0.1}) != config.canonical({"a": 0.2})
