"""README and documents are true: their length, links, files and every command that they show."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
