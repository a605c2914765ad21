"""Runs the benchmarks, keeps what they measured in results/ and writes the table of README.md.

    python benchmarks/report.py                       all, each with the command of its last run
    python benchmarks/report.py mgfn -- --scale 0.05  one, with options of its own
    python benchmarks/report.py --defaults            all at the sizes of their --help: hours

Only what stands between the two markers of the README is written anew.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aux_code.checkpoints import git_commit, read_json, write_atomically, write_json
from benchmarks.machine import describe_machine

FOLDER = Path(__file__).resolve().parent
BEGIN, END = "<!-- written by report.py -->", "<!-- end of what report.py writes -->"


def benchmark_names(folder: Path) -> list[str]:
    """Files with a `main` of their own that end with a line of JSON."""
    scripts = [path for path in sorted(folder.glob("*.py")) if path.stem != "report"]
    texts = {path.stem: path.read_text(encoding="utf-8") for path in scripts}
    return [name for name, text in texts.items() if "json_line(" in text and "def main(" in text]


def run_benchmark(name: str, options: list[str]) -> dict[str, Any]:
    """Runs it in a process of its own, shows its output and returns what it measured.

    Raises:
        SystemExit: it failed, or its last line is not that of `machine.json_line`.
    """
    command = [sys.executable, str(FOLDER / f"{name}.py"), *options]
    lines, start = [], time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            sys.stdout.write(line)
            lines.append(line.strip())
    if process.returncode:
        raise SystemExit(f"{name} ended with status {process.returncode}")
    try:
        content = json.loads(lines[-1])
        measured = {key: content[key] for key in ("ratios", "figures")}
    except (IndexError, ValueError, KeyError) as error:
        raise SystemExit(f"{name} did not end with its line of JSON") from error
    return {
        "benchmark": name, "command": shlex.join(["python", f"benchmarks/{name}.py", *options]),
        "machine": lines[0] if "cores" in lines[0] else describe_machine(),
        "date": time.strftime("%Y-%m-%d"), "commit": (git_commit() or "unknown")[:12],
        "seconds": round(time.monotonic() - start), **measured,
    }  # fmt: skip


def keep(measured: dict[str, Any], path: Path) -> None:
    """Writes a measurement; the ratios of the one before it go to `earlier`."""
    earlier = []
    if path.is_file():
        before = read_json(path)
        kept = {key: before[key] for key in ("date", "commit", "command", "ratios")}
        earlier = [*before.get("earlier", []), kept]
    write_json(path, {**measured, "earlier": earlier})


def written_part(results: dict[str, dict[str, Any]]) -> str:
    """The table of aims.json, missed ones in bold, and the command of every benchmark."""
    lines = ["| compared | aim | measured |", "|---|---:|---:|"]
    for aim in read_json(FOLDER / "aims.json"):
        known, at_most, bound = results.get(aim["benchmark"], {}), "at_most" in aim, aim["bound"]
        value = {**known.get("figures", {}), **known.get("ratios", {})}.get(aim["key"])
        text = "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
        if value is not None and (value > bound if at_most else value < bound):
            text = f"**{text}**"
        lines.append(f"| {aim['label']} | {'at most ' if at_most else ''}{bound:g} | {text} |")
    known = [result["seconds"] for result in results.values() if result["seconds"]]
    took = f"{len(known)} of {len(results)} say how long they took, {_minutes(sum(known))}:"
    lines += ["", took, ""]
    for result in results.values():
        took = f", {_minutes(result['seconds'])}" if result["seconds"] else ""
        lines.append(f"- `{result['command']}`: {result['date']}, commit {result['commit']}{took}")
    machines = {", ".join(result["machine"].split(", ")[:2]) for result in results.values()}
    return "\n".join([*lines, "", f"Machine: {'; '.join(sorted(machines))}."])


def _minutes(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d} minutes"


def with_part(text: str, part: str) -> str:
    """The document with what report.py writes replaced, or added at the end."""
    block = f"{BEGIN}\n{part}\n{END}"
    pattern = re.compile(re.escape(BEGIN) + r".*?" + re.escape(END), re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: block, text)
    return f"{text.rstrip()}\n\n{block}\n"


def main(argv: list[str] | None = None) -> int:
    """Runs what was asked for; a benchmark's result is written as soon as it is there."""
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    known = benchmark_names(FOLDER)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(known)}")
    parser.add_argument("--defaults", action="store_true", help="not as the last time, but in full")
    parser.add_argument("--output", type=Path, default=FOLDER / "README.md", help="the document")
    chosen = parser.parse_args(words[:split])
    unknown = [name for name in chosen.names if name not in known]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; they are: {', '.join(known)}")
    folder = chosen.output.parent / "results"
    for name in chosen.names or known:
        print(f"== {name}", flush=True)
        path, options = folder / f"{name}.json", words[split + 1 :]
        if path.is_file() and not options and not chosen.defaults:
            options = shlex.split(read_json(path)["command"])[2:]
        keep(run_benchmark(name, options), path)
        results = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
        document = chosen.output
        text = document.read_text(encoding="utf-8") if document.is_file() else "# Benchmarks\n"
        changed = with_part(text, written_part(results)).encode()
        write_atomically(document, lambda file, changed=changed: file.write(changed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
