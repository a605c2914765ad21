"""The three lists of requirements agree, and each is one that its installer can read."""

import ast
import sys

import yaml
from packaging.requirements import Requirement

from tests.commands import ROOT

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
