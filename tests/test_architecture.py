"""The design's rules, checked on the source: imports, names, preambles, sizes, parameters."""

import ast
import dataclasses
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aux_code.parameters import CommonParams

ROOT = Path(__file__).resolve().parent.parent
STAGES = (
    "anonymization_training", "privacy_training", "feature_extraction", "anomaly_detection_mgfn",
)  # fmt: skip
TOP_FOLDERS = (*STAGES, "visualization", "reproduction", "aux_code", "benchmarks", "tests")
SHADOWING = {"datasets", "utils", "models", "config", "test"}
PREAMBLE = """if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))"""


def sources(*folders: str) -> list[Path]:
    """Python files below the folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


SHIPPED = [ROOT / "reproduce.py", *sources("aux_code", *STAGES, "visualization", "reproduction")]
ALL = [*SHIPPED, *sources("benchmarks", "tests")]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in ALL}


def entry_scripts() -> list[str]:
    """Stage, visualization and root scripts that run as a program, relative to the root."""
    paths = [ROOT / "reproduce.py", *sources(*STAGES, "visualization")]
    programs = [path for path in paths if "run_script(main" in path.read_text()]
    return [path.relative_to(ROOT).as_posix() for path in programs]


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Names of imported modules, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nobody_imports_a_stage_but_the_stage_itself_and_the_main_job(path: Path):
    own = path.relative_to(ROOT).parts[0]
    imported = {name.split(".")[0] for name in imported_modules(TREES[path])}
    foreign = imported & {*STAGES, "visualization", "reproduction"} - {own}
    allowed = {"reproduce.py": {"reproduction"}, "reproduction": {*STAGES}}.get(own, set())
    assert foreign <= allowed, f"{path.relative_to(ROOT)} imports {', '.join(sorted(foreign))}"


def test_the_main_job_imports_what_tells_parameters_and_what_stands_there():
    trees = [TREES[path] for path in sources("reproduction")]
    imported = {
        f"{node.module}.{alias.name}"
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in STAGES
        for alias in node.names
    }
    others = {name for name in imported if not name.split(".")[1].startswith("params_")}
    assert len(imported) == 5 and others == {"feature_extraction.manifest"}


def test_no_stage_file_shadows_a_module():
    imported = {name.split(".")[0] for tree in TREES.values() for name in imported_modules(tree)}
    for path in sources(*STAGES, "visualization"):
        shadowed = path.stem in SHADOWING | imported - set(TOP_FOLDERS)
        assert not shadowed, f"{path} comes before a module of its name"


def test_entry_scripts_and_nobody_else_change_the_module_path():
    scripts = set(entry_scripts())
    names = ("anonymizer", "utility", "privacy")
    assert {f"anonymization_training/init_{name}.py" for name in names} <= scripts
    for path in SHIPPED:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        if name in scripts and name != "reproduce.py":
            guards = [ast.unparse(node) for node in TREES[path].body if isinstance(node, ast.If)]
            once = guards.count(PREAMBLE) == 1 and text.count("sys.path.insert") == 1
            assert once, f"{name}: one guarded preamble"
        elif name != "reproduce.py":
            assert "sys.path.insert" not in text and "sys.path.append" not in text, name


def test_every_script_answers_help_from_three_folders_without_cuda_dali_or_data(tmp_path: Path):
    scripts = entry_scripts()
    variables = {"TED_SPAD_DATA_ROOT": str(tmp_path / "none"), "CUDA_VISIBLE_DEVICES": ""}
    environment, foreign = {**os.environ, **variables}, tmp_path / "elsewhere"
    foreign.mkdir()
    command = [sys.executable, str(ROOT / "tests" / "help_probe.py"), str(ROOT), str(foreign)]
    command += scripts
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout)
    assert len(answers) == 3 * len(scripts) - 1 >= 26, "reproduce.py's own folder is the root"
    assert {key: complaint for key, complaint in answers.items() if complaint} == {}
    assert list(foreign.iterdir()) == [], "--help writes nothing"


def test_a_script_says_what_exists_when_an_option_or_preset_does_not():
    script = ROOT / "privacy_training" / "train_privacy.py"
    for words, expected in (("--preset huge", "miniature"), ("--anonymiser x", "--anonymizer")):
        command = [sys.executable, str(script), *words.split()]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 2
        assert expected in result.stderr + result.stdout
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_forbidden_constructs(path: Path):
    in_aux_code = path.relative_to(ROOT).parts[0] == "aux_code"
    for node in ast.walk(TREES[path]):
        line = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{line}: bare except"
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{line}: imports are absolute from the root"
            assert all(alias.name != "*" for alias in node.names), f"{line}: star import"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec"), f"{line}: {called}"
            assert not (in_aux_code and called == "print"), f"{line}: print"
            forbidden = called.endswith((".cuda", "pickle.load", "pickle.loads"))
            assert not forbidden, f"{line}: {called}"
            if called == "torch.load":
                safe = "weights_only=True" in ast.unparse(node)
                assert safe and path.name == "checkpoints.py", line


def functions() -> list[tuple[str, ast.FunctionDef]]:
    """(place, function) of everything that is shipped."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node)
        for path in SHIPPED
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_functions_are_short_and_take_few_arguments():
    lengths = {}
    for place, node in functions():
        lengths[place] = node.end_lineno - node.lineno + 1
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        n_arguments = len([a for a in arguments if a.arg not in ("self", "cls")])
        assert n_arguments <= 8, f"{place} takes {n_arguments} arguments"
    too_long = {place: n for place, n in lengths.items() if n > 80}
    assert not too_long, too_long
    assert sum(n < 40 for n in lengths.values()) >= 0.9 * len(lengths)


def test_public_names_have_docstrings():
    """Every module and its public functions and classes; a script's text documents its main."""
    missing = []
    for path in SHIPPED:
        tree, name = TREES[path], path.relative_to(ROOT)
        if tree.body and not ast.get_docstring(tree):
            missing.append(f"{name}")
        for node in tree.body:
            is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
            if is_public and node.name != "main" and not ast.get_docstring(node):
                missing.append(f"{name}:{node.lineno} {node.name}")
    assert not missing, missing


def parameter_classes() -> list[tuple[str, type]]:
    """(stage, dataclass) of every params_*.py."""
    found = []
    for path in sources(*STAGES):
        if path.name.startswith("params_"):
            module = importlib.import_module(f"{path.parent.name}.{path.stem}")
            classes = [item for _, item in inspect.getmembers(module, inspect.isclass)]
            own = [item for item in classes if item.__module__ == module.__name__]
            found += [(path.parent.name, item) for item in own if issubclass(item, CommonParams)]
    return found


ACTS_BY_ITSELF = {"feature_extraction": {"resume"}}
"""Extraction goes on from the complete videos of its folder whether or not --resume is given."""


def names_read(tree: ast.AST, is_declaration: bool) -> Iterator[str]:
    """Attributes that are read: `params.NAME`, getattr(params, "NAME"), fields of copied parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Tuple | ast.List | ast.Dict) and not is_declaration:
            items = node.keys if isinstance(node, ast.Dict) else node.elts
            constants = [item.value for item in items if isinstance(item, ast.Constant)]
            yield from (value for value in constants if isinstance(value, str))
        elif isinstance(node, ast.AnnAssign) and not is_declaration:
            yield getattr(node.target, "id", "")


def test_every_parameter_is_read_by_its_stage():
    """Reference notes, 6: the release carries twenty-odd parameters that do nothing."""
    classes = parameter_classes()
    assert {stage for stage, _ in classes} == set(STAGES)
    for stage, parameters in classes:
        shared = [ROOT / "aux_code" / name for name in ("runs.py", "training_state.py")]
        read = set()
        for path in (*sources(stage), *shared):
            read.update(names_read(TREES[path], path.name.startswith("params_")))
        unused = {field.name for field in dataclasses.fields(parameters)} - read
        unused -= ACTS_BY_ITSELF.get(stage, set()) | {"preset"}
        assert not unused, f"{parameters.__name__}: nothing reads {', '.join(sorted(unused))}"


def test_every_parameter_is_documented():
    for path in [*sources(*STAGES), ROOT / "reproduce.py"]:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Params"):
                for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                    if isinstance(field, ast.AnnAssign):
                        text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                        assert text, f"{path.name}: {node.name}.{field.target.id} has no docstring"


def test_nothing_names_a_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(?:home|root|Users|mnt)/\w+")
    for path in (*ALL, ROOT / "Makefile", ROOT / "pyproject.toml"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not pattern.search(line) or "pattern" in line, f"{path}:{number}: {line.strip()}"
