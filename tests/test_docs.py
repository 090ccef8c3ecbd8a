"""What the documents say is so: snippets run, commands compose, files and targets exist, rendered tables are fresh."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import hypimg
from hypimg import config, launch, run
from hypimg.models import encoders
from hypimg.tables import manifest as manifests
from hypimg.tables import render, runner

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
MAKEFILE = (ROOT / "Makefile").read_text()
FOLDERS = "benchmarks|configs|docs|experiments|hypimg|results|scripts|tests"
IN_REPOSITORY = re.compile(rf"(?:{FOLDERS})/[\w./-]*|\w[\w-]*\.(?:py|toml|txt|md)")
NAMED_AS_WRONG = {"utils.py"}
EXAMPLE = "evaluator=worst_class"  # of CONTRIBUTING; the last tests put it in place
FILES_OF_A_RUN = {"config.yaml", "metrics.csv", "environment.json", "summary.json"}
FOLDERS_OF_A_RUN = {"checkpoints/", "evaluations/", "figures/"}
MEASURED = {"numerics", "speed"}  # sections of the README that benchmarks write, not tables
DOCUMENTED = ("geometry.gromov", "geometry.hyperplanes", "geometry.means", "geometry.poincare", "geometry.retrieval")


def _blocks(text: str, language: str) -> list[tuple[int, str]]:
    """(first line's number, content) of each fenced block of a language."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in found]


def _code_words(text: str) -> list[str]:
    """What stands between single backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def _commands(text: str) -> list[list[str]]:
    """The words of each command line: in `sh` blocks, in indented lines of a rendered table, between backticks."""
    lines = [line for _, block in _blocks(text, "sh") for line in block.splitlines()]
    lines += re.findall(r"^ {4}((?:make|python) .*)$", text, re.MULTILINE) + _code_words(text)
    return [words for line in lines if (words := _split(line))]


def _split(line: str) -> list[str]:
    with contextlib.suppress(ValueError):  # a formula's quotation mark
        return shlex.split(line, comments=True)
    return []


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


README = (ROOT / "README.md").read_text()
COMMANDS = {name: _commands((ROOT / name).read_text()) for name in TEXTS}


def test_the_readme_runs_as_written(quick: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    cfg = config.compose(quick)
    assert launch.run_task(cfg) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    blocks = _blocks(README, "python")
    for line, code in blocks:
        exec(compile("\n" * (line - 1) + code, "README.md", "exec"), {"__name__": "readme"})
    assert len(blocks) >= 3
    assert "tensor([1.0000, 4.0000])" in capsys.readouterr().out

    listed = set(re.findall(r"^\| `([\w./]+)` \|", README, re.MULTILINE))
    assert listed == FILES_OF_A_RUN | FOLDERS_OF_A_RUN
    for name in listed - {"figures/"}:  # `quick` has no evaluator that stores points
        assert (run.run_directory(cfg) / name).exists(), name


@pytest.mark.parametrize("name", TEXTS)
def test_every_make_target_and_setting_named_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", MAKEFILE, re.MULTILINE))
    settings = set(re.findall(r"^([A-Z]+) \?=", MAKEFILE, re.MULTILINE))
    made = [words for words in COMMANDS[name] if words[0] == "make"]
    assert made
    for words in made:
        assert {word for word in words[1:] if "=" not in word} <= targets, words
        assert {word.partition("=")[0] for word in words[1:] if "=" in word} <= settings, words
        for given in words[2:] if words[1] == "hyperbolicity" else ():
            _script("hyperbolicity").parse(shlex.split(given.removeprefix("ARGS=")))


def test_the_readme_names_every_target_that_reproduces_a_table_or_a_figure() -> None:
    targets = set(re.findall(r"^(reproduce-[a-z0-9-]+):", MAKEFILE, re.MULTILINE))
    assert targets == {words[1] for words in COMMANDS["README.md"] if words[:1] == ["make"] and "reproduce" in words[1]}


def test_the_readme_names_the_test_command_and_each_setting_of_a_table() -> None:
    assert ["make", "test"] in COMMANDS["README.md"]
    for setting in ("BUDGET", "SEEDS", "JOBS", "DEVICE", "ONLY", "FRESH", "ARGS"):
        assert re.search(rf"^\| `{setting}=.*` \|", README, re.MULTILINE), setting


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_linked_or_named_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    links = [link for link in re.findall(r"(?:\]\(|src=\")([^)\"]+)", text) if not re.match(r"[a-z]+:", link)]
    named = [word for word in _code_words(text) if IN_REPOSITORY.fullmatch(word)]
    named += [word for words in COMMANDS[name] for word in words[1:] if word.endswith(".py")]
    missing = {path for path in (*links, *named) if not (ROOT / path).exists()}
    assert missing <= NAMED_AS_WRONG


@pytest.mark.parametrize("name", TEXTS)
def test_every_python_command_is_one_that_its_program_takes(name: str) -> None:
    for words in COMMANDS[name]:
        if words[0].rpartition("/")[2] != "python" or len(words) < 2:
            continue
        program, arguments = words[1], words[2:]
        if program == "train.py" and "--help" not in arguments:
            _check_training(arguments)
        elif program == "scripts/evaluate.py" and EXAMPLE not in arguments:
            options, settings = _script("evaluate").parse(arguments)
            evaluator = config.compose_group("evaluator", options.get("evaluator", "accuracy"))
            assert all(OmegaConf.select(evaluator, word.partition("=")[0]) is not None for word in settings), words
        elif program == "scripts/hyperbolicity.py" and "--help" not in arguments:
            options = _script("hyperbolicity").parse(arguments)
            assert not options["dataset"] or config.compose_group("dataset", options["dataset"])
            assert not options["encoder"] or encoders._torchvision_weights(options["encoder"])
        elif program == "scripts/reproduce.py":
            manifests.load(_script("reproduce").parse(arguments)[0])


def _check_training(arguments: list[str]) -> None:
    if "-m" in arguments:
        jobs = launch.expand([word for word in arguments if word != "-m"])
        assert len(jobs) > 1
        arguments = jobs[-1]
    config.compose(arguments)


def test_every_override_named_in_the_readme_composes() -> None:
    words = {word for word in _code_words(README) if re.fullmatch(r"[a-z_.]+=(?!\.\.\.)\S+", word)}
    assert len(words) > 8
    by_key: dict[str, list[str]] = {}
    for word in sorted(words):
        by_key.setdefault(word.partition("=")[0], []).append(word)
    while together := [named.pop() for named in by_key.values() if named]:  # one word of each key at a time
        config.compose(together)


@pytest.mark.parametrize("section", sorted(set(re.findall(r"<!-- results:([^>]+) -->", README)) - MEASURED))
def test_the_readmes_tables_are_those_of_the_committed_results(section: str) -> None:
    name, _, budget = section.partition(" budget=")
    files = render.render(manifests.load(name), budget=budget or "paper")
    table = next(content for file, content in files.items() if file.endswith(".md"))
    fresh = render.readme_section(ROOT / "README.md", section, table, check=True)
    assert fresh, f"stale: python scripts/reproduce.py {section} render=1"


@pytest.fixture
def benchmark(monkeypatch) -> Callable[[str], ModuleType]:
    """A module of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_readmes_measurements_are_those_of_the_committed_lines(benchmark) -> None:
    speed, numerics = benchmark("speed_report"), benchmark("numerics_report")
    sections = {"speed": speed.markdown(*speed.read()), "numerics": numerics.errors(numerics.read()[1])}
    assert sections.keys() == MEASURED
    for name, text in sections.items():
        assert f"<!-- results:{name} -->" in README
        fresh = render.readme_section(ROOT / "README.md", name, text, check=True)
        assert fresh, f"stale: python benchmarks/{name}_report.py"
    assert (ROOT / "benchmarks" / "speed.md").read_text() == speed.page(*speed.read())


@pytest.mark.parametrize("sizes", [[[16, 16]], [[16, 30], [22, 17]]])
def test_the_step_on_augmented_images_takes_the_whole_path_of_an_episode(
    sizes: list, benchmark, tmp_path: Path, monkeypatch, capsys
) -> None:
    augment, drawn, named = benchmark("augment"), [], []
    sample, generator = augment.EpisodeSampler.sample, augment.generator
    monkeypatch.setattr(augment.EpisodeSampler, "sample", lambda *given: drawn.append(sample(*given)) or drawn[-1])
    monkeypatch.setattr(augment, "generator", lambda *name: named.append(name) or generator(*name))
    store = augment.stored(tmp_path, torch.tensor(sizes), classes=6, images=17)
    assert store.ragged == (len(sizes) > 1)
    augment.share_of_a_step("tiny", store, 16, 1, "cpu")
    line = json.loads(capsys.readouterr().out)
    assert line["images"] == 80 and drawn[0].shape == (1, 80)
    assert named[-2:] == [(0, "episodes", len(drawn) - 1), (0, "augmentation", len(drawn) - 1)]
    assert len(drawn) > 6, "every step on our data draws anew"
    assert "episodes of 80 images" in next(benchmark("speed_report").of_augment(line)).work


def test_a_table_of_speed_judges_goals_on_one_thread_and_says_what_is_missing(benchmark, tmp_path: Path) -> None:
    report = benchmark("speed_report")
    line = {"case": "cdist 9 x 9 x 2, forward + backward, auto", "peer": "geoopt broadcast", "goal": ">= 190"}
    line |= {"saved MB": 5.0, "saved goal": "<= 4.6", "geoopt saved MB": 540.5, "error": 2e-7, "torch": "2", "ms": 1.0}
    one, two = ({**line, "ratio": ratio, "threads": threads} for ratio, threads in ((189.9, 1), (191.0, 2)))
    lines = [{**two, "device": "CPU"}, {**one, "device": "CPU"}, {**one, "device": "NVIDIA H", "ratio": 900.0}]
    (tmp_path / "geometry.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    text = report.markdown(*report.read(tmp_path))
    assert "| work | peer | goal | 1 thread | 2 threads | NVIDIA H | goal met | besides |" in text
    kept = "5 MB kept for backward (≤ 4.6, **missed**, geoopt 540)"
    row = f"| cdist 9 × 9 × 2, auto | geoopt broadcast | ≥ 190 × | 189.9 × | 191 × | 900 × | **missed** | {kept} |"
    assert row in text and "0 of 2 met" in text
    assert "Not measured here: `python benchmarks/means.py`" in text
    (tmp_path / "geometry.jsonl").write_text(json.dumps({**one, "device": "CPU", "ratio": 190.0, "saved MB": 4.6}))
    assert "2 of 2 met" in report.markdown(*report.read(tmp_path))


def _public(name: str) -> list[tuple[str, str]]:
    """(name, docstring) of the functions and layers that a module defines for others."""
    module = importlib.import_module(f"hypimg.{name}")
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    kinds = [v for v in own if inspect.isfunction(v) or (inspect.isclass(v) and issubclass(v, nn.Module))]
    return [(v.__name__, inspect.cleandoc(v.__doc__ or "")) for v in kinds if not v.__name__.startswith("_")]


@pytest.mark.parametrize("name", [*DOCUMENTED, "nn.linear"])
def test_every_public_function_says_its_shapes_and_its_source(name: str) -> None:
    documented = _public(name)
    assert documented
    for function, text in documented:
        assert len(text.splitlines()) > 1, f"{function} has no docstring to speak of"
        assert re.search(r"\[[^\]]*\]", text), f"{function} names no shape"
        assert re.search("[Ss]ource", text), f"{function} names no source"
        if "Source: ours" not in text:
            assert re.search(r"[=≤→‖√]", text), f"{function} has no formula"


def test_the_citation_file_is_whole() -> None:
    citation = OmegaConf.to_container(OmegaConf.load(ROOT / "CITATION.cff"))
    assert isinstance(citation, dict) and citation["cff-version"] == "1.2.0" and citation["message"]
    assert citation["version"] == hypimg.__version__ and citation["license"] == "MIT"
    assert citation["authors"] == [{"name": "the hypimg authors"}]
    assert [entry["title"] for entry in citation["references"]] == ["Hyperbolic Image Embeddings", "Poincaré ResNet"]
    for entry in citation["references"]:
        assert entry["type"] == "conference-paper" and entry["conference"]["name"] and entry["year"]
        assert all(author["family-names"] in README for author in entry["authors"])


def test_the_changelog_has_the_current_version_and_the_meaning_of_its_results() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    latest = re.search(r"^## \[(.+?)\] - (.+)$", text, re.MULTILINE)
    assert latest and latest[1] == hypimg.__version__
    assert re.search(r"`RESULT_VERSION` (\d+)", text)[1] == str(config.RESULT_VERSION)  # type: ignore[index]
    assert f'version = "{hypimg.__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.fixture
def contributed(tmp_path: Path, monkeypatch) -> Path:
    """CONTRIBUTING's files in place: modules importable, YAMLs in a copy of the configs, the manifest, and the data."""
    shutil.copytree(config.CONFIG_DIR, tmp_path / "configs")
    (tmp_path / "experiments").mkdir()
    monkeypatch.setattr(config, "CONFIG_DIR", tmp_path / "configs")
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for line, code in _blocks(text, "python"):
        name = code.partition("\n")[0].removeprefix("# ").removesuffix(".py").replace("/", ".")
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile("\n" * (line - 1) + code, "CONTRIBUTING.md", "exec"), vars(module))
    for _, block in _blocks(text, "yaml"):
        first, _, rest = block.partition("\n")
        assert not (ROOT / first.removeprefix("# ")).exists(), "an example must not hide a real part"
        (tmp_path / first.removeprefix("# ")).write_text(rest)
    (tmp_path / "data").mkdir()
    labels = np.arange(300, dtype=np.uint8) % 2
    images = np.zeros((300, 16, 16), np.uint8)
    images[labels == 0, 4:12, 4:12] = 255
    images[labels == 1, 7:9, :] = images[labels == 1, :, 7:9] = 255
    np.savez(tmp_path / "data" / "shapes.npz", images=images, labels=labels)
    return tmp_path


def test_the_examples_of_contributing_make_a_table_together(contributed: Path) -> None:
    manifest = manifests.load("shapes_heads", contributed / "experiments")
    folders = [f"{name}_dir={contributed / name}" for name in ("data", "store", "runs")]
    results = contributed / "results"
    settings = [*folders, "logger=csv", "threads=1"]
    assert runner.reproduce(manifest, "cpu", [0], settings=settings, results=results) == 0
    rendered = (results / "shapes_heads" / "table_cpu.md").read_text()
    assert "not run" not in rendered and "undefined" not in rendered and "worst class" in rendered


@pytest.mark.parametrize("space", ["poincare", "euclidean"])
def test_the_example_parts_fit_every_space_and_refuse_what_is_wrong(contributed: Path, space: str) -> None:
    words = ["experiment=digits_disk", "dataset=shapes", "backbone=mlp", "head=prototypes", f"space={space}"]
    cfg = config.compose([*words, f"data_dir={contributed / 'data'}", f"store_dir={contributed / 'store'}"])
    dataset, data = run.open_data(cfg)
    assert data.store.classes == ["square", "cross"] and not data.store.official
    model = run.build_model(cfg, dataset)
    model(run.torch.rand(5, *dataset.image_shape)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    np.savez(contributed / "data" / "shapes.npz", images=np.zeros((3, 16, 16), np.uint8))
    with pytest.raises(hypimg.errors.UserError, match=r"shapes\.npz: does not hold"):
        run.open_data(cfg)
    with pytest.raises(hypimg.errors.UserError, match=r"backbone\.hidden"):
        run.build_model(config.compose([*words, "backbone.hidden=0"]), dataset)
