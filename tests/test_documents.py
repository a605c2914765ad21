"""README, documents and lists of requirements are true: each link, file and shown command."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.commands import ROOT, answers

DOCUMENTS = {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"}
DOCUMENTS = sorted(DOCUMENTS - {ROOT / "CHANGELOG.md"})
OF_A_READER = ("distance_head.py",)
"""Scripts of docs/extending.md that a reader, and test_extensions.py, writes."""


def command_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """(document, folder that the block has changed to, command) of every shown command."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n([\s\S]*?)^```$|((?:^ {4,}\S.*\n)+)", text, re.M)
    for fenced, indented in blocks:
        folder, lines = ".", [line.split(" #")[0] for line in (fenced or indented).splitlines()]
        for command in (part for line in lines for part in re.split(r"&&|;", line)):
            words = command.split()
            if words[:1] == ["cd"]:
                folder = os.path.normpath(os.path.join(folder, words[1]))
            elif words[:1] in (["python"], ["torchrun"], ["make"]):
                yield str(path.relative_to(ROOT)), folder, command.strip()


def as_script(folder: str, command: str) -> tuple[str, list[str]]:
    """(path, or -m and a module; arguments)."""
    words = [word for word in shlex.split(command) if word != "..."]
    if words[1] == "-m":
        return f"-m {words[2]}", words[3:]
    at = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    assert at is not None, f"no script in: {command}"
    path = ROOT / folder / words[at]
    if not path.is_file():  # torchrun's examples name a script of the stage that the page is about
        path = next(iter(ROOT.glob(f"*/{words[at]}")), path)
    return str(path), words[at + 1 :]


COMMANDS = [command for path in DOCUMENTS for command in command_lines(path)]
SCRIPTS = [
    (document, *as_script(folder, command))
    for document, folder, command in COMMANDS
    if not command.startswith("make") and not any(name in command for name in OF_A_READER)
]


def test_readme_is_short_and_comes_to_real_data_early():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1500
    lines = text.splitlines()
    assert next(i for i, line in enumerate(lines) if "aux_code.datasets.check" in line) < 60
    listed = text[text.index("## Read these seven files") : text.index("## Layout")]
    files = re.findall(r"`(\S+\.py)`", listed)
    assert len(files) == 7 and all((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_files_exist(path: Path):
    text = path.read_text(encoding="utf-8")
    assert not re.search("^(<<<<<<<|>>>>>>>) ", text, re.M), "an unresolved merge"
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (path.parent / link).exists(), f"{path.name} links to {link}"
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.py)`", prose):
        assert (ROOT / name).is_file() or Path(name).name in OF_A_READER, f"{path.name}: {name}"


def test_every_command_names_a_script_and_options_that_exist_and_plans_something(tmp_path):
    assert len(SCRIPTS) > 20
    scripts = sorted({script for _, script, _ in SCRIPTS})
    calls = {tuple(words) for _, script, words in SCRIPTS if script.endswith("reproduce.py")}
    plans = [words for words in sorted(calls) if "posterize" not in words]  # see test_extensions.py
    questions = [(script, ["--help"]) for script in scripts]
    questions += [(str(ROOT / "reproduce.py"), [*words, "--dry_run"]) for words in plans]
    roots = {"TED_SPAD_ARTIFACT_ROOT": tmp_path, "TED_SPAD_DATA_ROOT": tmp_path / "data"}
    given, _ = answers(questions, **roots)
    assert not any(status for status, _ in given), list(zip(questions, given))
    shown = [re.sub(r"\x1b\[[0-9;]*m", "", text) for _, text in given]
    texts = dict(zip(scripts, shown))
    for document, script, words in SCRIPTS:
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            known = re.search(re.escape(option) + r"\b", texts[script])
            assert known, f"{document}: {Path(script).name} knows no {option}"
        if "--preset" in words:
            preset = words[words.index("--preset") + 1]
            assert re.search(rf"\b{preset}\b", texts[script]), f"{document}: {preset}"
    for words, text in zip(plans, shown[len(scripts) :], strict=True):
        assert "train_anonymizer.py" in text or "sbatch" in text, words
    assert not (tmp_path / "saved_models").exists()


def test_every_make_target_exists():
    targets = {command.split()[1] for _, _, command in COMMANDS if command.startswith("make")}
    assert {"setup", "reproduce", "test", "check", "benchmarks"} <= targets
    for target in targets:
        command = ["make", "-n", target, f"PYTHON={sys.executable}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr


CONDA_NAME = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
CONDA_NAME["nvidia-dali-cuda130"] = "nvidia-dali-python"


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text().splitlines()
    return [line for line in text if line.strip() and not line.startswith("#")]


def pip_requirements() -> dict[str, Requirement]:
    *packages, last = lines("pip_requirements.txt")
    assert last == "-e ."
    return {requirement.name: requirement for requirement in map(Requirement, packages)}


def test_conda_has_the_pins_of_pip():
    requirements = list(map(Requirement, lines("conda_requirements.txt")))
    assert not any(r.marker or r.extras or r.url for r in requirements), "unknown to conda"
    conda = {requirement.name: requirement.specifier for requirement in requirements}
    assert len(conda) == len(requirements), "each name once"
    expected = {CONDA_NAME.get(name, name): r.specifier for name, r in pip_requirements().items()}
    assert {name: conda.get(name) for name in expected} == expected
    assert set(conda) - set(expected) == {"python", "pip"}


def test_the_conda_environment_takes_pips_list():
    environment = yaml.safe_load((ROOT / "ted_spad.yml").read_text())
    assert environment["name"] == "ted_spad" and environment["channels"] == ["conda-forge"]
    assert environment["dependencies"][-1] == {"pip": ["-r pip_requirements.txt"]}
    assert "pip" in environment["dependencies"]


def test_torch_and_torchvision_are_pinned_to_each_other():
    pins = pip_requirements()
    torch, vision = (next(iter(pins[name].specifier)) for name in ("torch", "torchvision"))
    assert torch.operator == vision.operator == "=="
    major, minor = map(int, torch.version.split(".")[:2])
    assert major == 2
    assert vision.version.startswith(f"0.{minor + 15}."), "torchvision 0.(n + 15) belongs to 2.n"


def test_every_import_is_a_requirement():
    of_package = {"scikit-learn": "sklearn", "pillow": "PIL"}
    known = {of_package.get(name, name.replace("-", "_")) for name in pip_requirements()}
    known |= {"nvidia", "jinja2", "packaging", "yaml"}  # torch needs jinja2
    own = {path.name for path in ROOT.iterdir() if path.is_dir()} | {"reproduce"}
    known |= own | set(sys.stdlib_module_names)
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        if any(part[0] == "." for part in parts) or parts[0] == "benchmarks":  # optional baselines
            continue
        local = {sibling.stem for sibling in path.parent.glob("*.py")}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= known | local, path
