"""Runs the benchmarks and writes benchmarks/README.md: machine, date, command, baseline and figures
of each.

    python benchmarks/report.py                          all of them, each with the command that its section names
    python benchmarks/report.py mgfn -- --scale 0.05     one, with options of its own
    python benchmarks/report.py --defaults               all of them at the sizes of their --help: hours

What stands between two markers of a benchmark is written anew when it has run; the rest of the file
is kept.
"""

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

if (
    str(Path(__file__).resolve().parent.parent) not in sys.path
):  # an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aux_code.checkpoints import git_commit, write_atomically
from benchmarks.machine import describe_machine

FOLDER = Path(__file__).resolve().parent
README = FOLDER / "README.md"
TOTAL = ("<!-- time of all: written by report.py -->", "<!-- end of the time of all -->")


class Measured(NamedTuple):
    """What one benchmark said."""

    command: str
    machine: str
    """Its first line of output."""
    ratios: dict[str, float]
    """Times faster (or smaller) than the plain version."""
    figures: dict[str, float]
    seconds: float
    """Wall time of the whole command."""


def benchmark_names(folder: Path = FOLDER) -> list[str]:
    """Files with a `main` of their own that end with a line of JSON."""
    scripts = [path for path in sorted(folder.glob("*.py")) if path.name != Path(__file__).name]
    return [
        path.stem
        for path in scripts
        if "json_line(" in path.read_text() and "def main(" in path.read_text()
    ]


def run_benchmark(name: str, options: list[str], folder: Path = FOLDER) -> Measured:
    """Runs it in a process of its own and shows its output.

    Raises:
        SystemExit: it failed, or its last line is not that of `machine.json_line`.
    """
    command = [sys.executable, str(folder / f"{name}.py"), *options]
    lines, start = [], time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            sys.stdout.write(line)
            lines.append(line.strip())
    try:
        content = json.loads(lines[-1])
        words = shlex.join(["python", f"benchmarks/{name}.py", *options])
        measured = Measured(
            words, lines[0], content["ratios"], content["figures"], time.monotonic() - start
        )
    except (IndexError, ValueError, KeyError) as error:
        raise SystemExit(
            f"{name} did not end with its line of JSON (status {process.returncode})"
        ) from error
    if process.returncode:
        raise SystemExit(f"{name} ended with status {process.returncode}")
    return measured


def section(name: str, measured: Measured, folder: Path = FOLDER) -> str:
    """The text between a benchmark's markers."""
    text = ast.get_docstring(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))) or ""
    machine = measured.machine if "cores" in measured.machine else describe_machine()
    state = f"{time.strftime('%Y-%m-%d')}, commit {(git_commit() or 'unknown')[:12]}"
    lines = [
        text,
        "",
        f"`{measured.command}`",
        "",
        f"{machine}; {state}; took {_minutes(measured.seconds)}.",
        "",
    ]
    if measured.ratios:
        lines += ["| compared | times better than the plain version |", "|---|---:|"]
        lines += [f"| {key} | {value:.2f} |" for key, value in measured.ratios.items()]
        lines.append("")
    if measured.figures:
        lines += ["| figure | value |", "|---|---:|"]
        lines += [f"| {key} | {_number(value)} |" for key, value in measured.figures.items()]
    return "\n".join(lines).rstrip()


def _minutes(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d} minutes"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def with_section(text: str, name: str, content: str) -> str:
    """The document with a benchmark's section replaced, or added at the end; everything else stays
    as it is."""
    begin, end = f"<!-- {name}: written by report.py -->", f"<!-- end of {name} -->"
    block = f"{begin}\n{content}\n{end}"
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: block, text)
    return f"{text.rstrip()}\n\n## {name}\n\n{block}\n"


def options_of_section(text: str, name: str) -> list[str]:
    """The options of the command in a benchmark's section, so that its figures are renewed like for
    like."""
    found = re.search(rf"^`python benchmarks/{re.escape(name)}\.py(.*)`$", text, re.MULTILINE)
    return shlex.split(found[1]) if found else []


def with_total(text: str) -> str:
    """The document with the time that all sections together took, after its first paragraph."""
    times = re.findall(r"; took (\d+):(\d\d) minutes\.$", text, re.MULTILINE)
    n_sections = len(re.findall(r"^<!-- end of \w+ -->$", text, re.MULTILINE))
    seconds = sum(60 * int(minutes) + int(rest) for minutes, rest in times)
    line = f"All of it took {_minutes(seconds)} ({len(times)} of {n_sections} sections say how long they took)."
    block = f"{TOTAL[0]}\n{line}\n{TOTAL[1]}"
    pattern = re.compile(re.escape(TOTAL[0]) + r".*?" + re.escape(TOTAL[1]), re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: block, text)
    head, *rest = text.split("\n\n", 2)
    return "\n\n".join([head, *rest[:1], block, *rest[1:]])


def main(argv: list[str] | None = None) -> int:
    """Runs what was asked for; a benchmark's result is written as soon as it is there."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, options = (
        (words[: words.index("--")], words[words.index("--") + 1 :])
        if "--" in words
        else (words, [])
    )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = benchmark_names()
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of: {', '.join(known)}; none: all"
    )
    parser.add_argument(
        "--defaults", action="store_true", help="not the sizes of the document, but the full ones"
    )
    parser.add_argument("--output", type=Path, default=README, help="the document to write")
    chosen = parser.parse_args(own)
    unknown = [name for name in chosen.names if name not in known]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; they are: {', '.join(known)}")
    for name in chosen.names or known:
        print(f"== {name}", flush=True)
        text = (
            chosen.output.read_text(encoding="utf-8")
            if chosen.output.is_file()
            else "# Benchmarks\n"
        )
        usual = [] if chosen.defaults else options_of_section(text, name)
        content = section(name, run_benchmark(name, options or usual))
        changed = with_total(with_section(text, name, content)).encode()
        write_atomically(chosen.output, lambda file, changed=changed: file.write(changed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
