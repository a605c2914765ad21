"""README and documents are true: their length, links, files and every command that they show."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"}
DOCUMENTS = sorted(DOCUMENTS - {ROOT / "CHANGELOG.md"})
OF_A_READER = ("distance_head.py",)
"""Scripts of docs/extending.md that a reader, and test_extensions.py, writes."""

ASK_EACH = """
import contextlib, io, json, runpy, sys
answers = []
for script, module, words in json.loads(sys.argv[1]):
    sys.argv = [script, *words]
    out, status = io.StringIO(), 0
    with contextlib.redirect_stdout(out):
        try:
            run = runpy.run_module if module else runpy.run_path
            run(script, run_name="__main__")
        except SystemExit as error:
            status = error.code or 0
    answers.append([status, out.getvalue()])
print(json.dumps(answers))
"""
"""One process for all: each would spend seconds on importing PyTorch."""


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


def as_script(folder: str, command: str) -> tuple[str, bool, list[str]]:
    """(path or module, whether it is a module, arguments)."""
    words = [word for word in shlex.split(command) if word != "..."]
    if words[1] == "-m":
        return words[2], True, words[3:]
    at = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    assert at is not None, f"no script in: {command}"
    path = ROOT / folder / words[at]
    if not path.is_file():  # torchrun's examples name a script of the stage that the page is about
        path = next(iter(ROOT.glob(f"*/{words[at]}")), path)
    return str(path), False, words[at + 1 :]


COMMANDS = [command for path in DOCUMENTS for command in command_lines(path)]
SCRIPTS = [
    (document, *as_script(folder, command))
    for document, folder, command in COMMANDS
    if not command.startswith("make") and not any(name in command for name in OF_A_READER)
]


def ask(questions: list[tuple[str, bool, list[str]]], folder: Path) -> list[tuple[int, str]]:
    """(exit status, standard output) of each command, run at the root with artefacts elsewhere."""
    variables = {"TED_SPAD_ARTIFACT_ROOT": str(folder), "TED_SPAD_DATA_ROOT": str(folder / "data")}
    result = subprocess.run(
        [sys.executable, "-c", ASK_EACH, json.dumps(questions)],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


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
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (path.parent / link).exists(), f"{path.name} links to {link}"
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.py)`", prose):
        assert (ROOT / name).is_file() or Path(name).name in OF_A_READER, f"{path.name}: {name}"


def test_every_command_names_a_script_and_options_that_exist(tmp_path: Path):
    assert len(SCRIPTS) > 20
    scripts = sorted({(script, module) for _, script, module, _ in SCRIPTS})
    answers = ask([(script, module, ["--help"]) for script, module in scripts], tmp_path)
    texts = {}
    for (script, _), (status, text) in zip(scripts, answers, strict=True):
        assert status == 0, script
        texts[script] = re.sub(r"\x1b\[[0-9;]*m", "", text)
    for document, script, _, words in SCRIPTS:
        for word in words:
            option = word.split("=")[0]
            if option.startswith("--"):
                known = re.search(re.escape(option) + r"\b", texts[script])
                assert known, f"{document}: {Path(script).name} knows no {option}"
        if "--preset" in words:
            preset = words[words.index("--preset") + 1]
            assert re.search(rf"\b{preset}\b", texts[script]), f"{document}: {preset}"


def test_the_shown_calls_of_reproduce_plan_something(tmp_path: Path):
    calls = {tuple(words) for _, script, _, words in SCRIPTS if script.endswith("reproduce.py")}
    known = [words for words in sorted(calls) if "posterize" not in words]  # see test_extensions.py
    dry = [(str(ROOT / "reproduce.py"), False, [*words, "--dry_run"]) for words in known]
    for words, (status, text) in zip(known, ask(dry, tmp_path), strict=True):
        assert status == 0 and ("train_anonymizer.py" in text or "sbatch" in text), words
    assert not (tmp_path / "saved_models").exists()


def test_every_make_target_exists():
    targets = {command.split()[1] for _, _, command in COMMANDS if command.startswith("make")}
    assert {"setup", "reproduce", "test", "check", "benchmarks"} <= targets
    for target in targets:
        command = ["make", "-n", target, f"PYTHON={sys.executable}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
