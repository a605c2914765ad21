"""The design's rules, checked on the source: imports, names, preambles, sizes, parameters."""

import ast
import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

from aux_code.parameters import CommonParams
from tests.commands import ROOT, python

STAGES = (
    "anonymization_training", "privacy_training", "feature_extraction", "anomaly_detection_mgfn",
)  # fmt: skip
TOP_FOLDERS = (*STAGES, "visualization", "reproduction", "aux_code", "benchmarks", "tests")
SHADOWING = {"datasets", "utils", "models", "config", "test"}
PREAMBLE = """if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))"""


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


SHIPPED = [ROOT / "reproduce.py", *sources("aux_code", *STAGES, "visualization", "reproduction")]
ALL = [*SHIPPED, *sources("benchmarks", "tests")]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in ALL}


def entry_scripts() -> list[str]:
    """Stage, visualization and root scripts that run as a program, relative to the root."""
    paths = [ROOT / "reproduce.py", *sources(*STAGES, "visualization")]
    programs = [path for path in paths if "run_script(main" in path.read_text()]
    return [path.relative_to(ROOT).as_posix() for path in programs]


def nodes(paths: list[Path], kind: type) -> list[tuple[str, ast.AST]]:
    """(place, node) of a kind, wherever in the files."""
    found = [(p, n) for p in paths for n in ast.walk(TREES[p]) if isinstance(n, kind)]
    return [(f"{path.relative_to(ROOT)}:{node.lineno}", node) for path, node in found]


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_nobody_imports_a_stage_but_the_stage_itself_and_the_main_job():
    for path in SHIPPED:
        own = path.relative_to(ROOT).parts[0]
        imported = {name.split(".")[0] for name in imported_modules(TREES[path])}
        foreign = imported & {*STAGES, "visualization", "reproduction"} - {own}
        allowed = {"reproduce.py": {"reproduction"}, "reproduction": {*STAGES}}.get(own, set())
        assert foreign <= allowed, f"{path.relative_to(ROOT)} imports {', '.join(sorted(foreign))}"


def test_the_main_job_imports_what_tells_parameters_and_what_stands_there():
    froms = [node for _, node in nodes(sources("reproduction"), ast.ImportFrom)]
    imported = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    imported = {name for name in imported if name.split(".")[0] in STAGES}
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
    for path in SHIPPED[1:]:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        guards = [ast.unparse(node) for node in TREES[path].body if isinstance(node, ast.If)]
        expected = name in scripts
        assert guards.count(PREAMBLE) == text.count("sys.path.insert") == expected, name
        assert "sys.path.append" not in text, name


def test_every_script_answers_help_from_three_folders_without_cuda_dali_or_data(tmp_path: Path):
    scripts = entry_scripts()
    variables = {"TED_SPAD_DATA_ROOT": tmp_path / "none", "CUDA_VISIBLE_DEVICES": ""}
    foreign = tmp_path / "elsewhere"
    foreign.mkdir()
    result = python(ROOT / "tests" / "help_probe.py", ROOT, foreign, *scripts, **variables)
    answers = json.loads(result.stdout)
    assert len(answers) == 3 * len(scripts) - 1 >= 26, "reproduce.py's own folder is the root"
    assert {key: complaint for key, complaint in answers.items() if complaint} == {}
    assert list(foreign.iterdir()) == [], "--help writes nothing"


def test_forbidden_constructs():
    """Besides those that ruff finds: bare except, import *, eval, print, many arguments."""
    for place, node in nodes(SHIPPED, ast.ImportFrom):
        assert node.level == 0, f"{place}: imports are absolute from the root"
    for place, node in nodes(SHIPPED, ast.Call):
        called = ast.unparse(node.func)
        forbidden = called == "exec" or called.endswith((".cuda", "pickle.load", "pickle.loads"))
        assert not forbidden, f"{place}: {called}"
        if called == "torch.load":
            assert "checkpoints.py" in place and "weights_only=True" in ast.unparse(node), place


def test_functions_are_short():
    functions = nodes(SHIPPED, ast.FunctionDef | ast.AsyncFunctionDef)
    lengths = {place: node.end_lineno - node.lineno + 1 for place, node in functions}
    too_long = {place: n for place, n in lengths.items() if n > 80}
    assert not too_long, too_long
    assert sum(n < 40 for n in lengths.values()) >= 0.9 * len(lengths)


def test_public_names_have_docstrings():
    """Every module and its public functions and classes; a script's text documents its main."""
    missing = [path for path in SHIPPED if TREES[path].body and not ast.get_docstring(TREES[path])]
    for path in SHIPPED:
        for node in TREES[path].body:
            is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
            if is_public and node.name != "main" and not ast.get_docstring(node):
                missing.append(f"{path}:{node.lineno} {node.name}")
    assert not missing, missing


def parameter_classes() -> list[tuple[str, type]]:
    """(stage, dataclass) of every params_*.py."""
    paths = [path for path in sources(*STAGES) if path.name.startswith("params_")]
    modules = [importlib.import_module(f"{path.parent.name}.{path.stem}") for path in paths]
    classes = [(m.__name__, item) for m in modules for item in vars(m).values()]
    own = [(name, c) for name, c in classes if getattr(c, "__module__", "") == name]
    own = [(name, c) for name, c in own if inspect.isclass(c) and issubclass(c, CommonParams)]
    return [(name.split(".")[0], item) for name, item in own]


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


def test_every_parameter_is_documented_and_what_decides_a_result_has_a_source():
    """Inputs and what changes no result are declared by calls: by_content(...), free(...)."""
    for place, node in nodes([*sources(*STAGES), ROOT / "reproduce.py"], ast.ClassDef):
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and node.name.endswith("Params"):
                text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                where = f"{place}: {node.name}.{field.target.id}"
                assert text, f"{where} has no docstring"
                decides = "params_" in str(place) and not isinstance(field.value, ast.Call)
                stated = re.search("paper|release|ours", after.value.value, re.I)
                assert stated or not decides, f"{where} states no source"


def test_nothing_names_a_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(?:home|root|Users|mnt)/\w+")
    for path in (*ALL, ROOT / "Makefile", ROOT / "pyproject.toml"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not pattern.search(line) or "pattern" in line, f"{path}:{number}: {line.strip()}"
