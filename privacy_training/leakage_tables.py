"""Results as Markdown: the attackers of a series with the strongest, and the run beside the paper's
numbers."""

from collections import Counter
from pathlib import Path
from typing import Any

from aux_code.checkpoints import write_atomically
from aux_code.datasets.vispr import OFFICIAL_COUNTS, VISPR1
from aux_code.reporting import published
from aux_code.reporting.table import MISSING, Table
from privacy_training.attack_series import PROTOCOLS

_LABELS = {
    "validation": "epoch by validation",
    "last": "last epoch",
    "best_on_test": "best on test (paper)",
}


def write_tables(path: Path, tables: list[Table]) -> None:
    """Writes a Markdown file."""
    text = "\n".join(table.markdown() for table in tables)
    write_atomically(path, lambda file: file.write(text.encode()))


def attacker_table(summary: dict[str, Any]) -> Table:
    """cMAP and F1 of every attacker of a series, strongest first, in percent."""
    attackers, first = summary["attackers"], PROTOCOLS[0]
    order = sorted(attackers, key=lambda name: -attackers[name]["protocols"][first]["cmap"]["mean"])
    rows = [_attacker_row(name, attackers[name]) for name in order]
    chance = _percent(summary["chance"]["cmap"])
    f1 = f"{_percent(summary['chance']['f1'])} (always yes: {_percent(summary['chance']['f1_always_yes'])})"
    rows.append(("chance", *[chance] * len(PROTOCOLS), MISSING, f1, MISSING))
    columns = (
        *(f"cMAP, {_LABELS[protocol]}" for protocol in PROTOCOLS),
        "95 % interval",
        "F1",
        "recovered pictures",
    )
    notes = [
        f"The strongest attacker on {summary['anonymizer']} is **{summary['strongest'][first]}** ({_LABELS[first]}): "
        "an anonymizer is as good as its worst case. The interval is over the test pictures, with the first seed.",
        *(
            f"{run_id} failed and is missing here: {error}"
            for run_id, error in summary["failed"].items()
        ),
    ]
    learning = [
        name for name in order if not all(run["reached"] for run in attackers[name]["plateau"])
    ]
    if learning:
        notes.append(
            f"Still learning at the end, so that more epochs may read more: {', '.join(learning)} (the last quarter "
            "of the epochs added more than a point of validation cMAP; `plateau` in the results)."
        )
    n_seeds = max(len(entry["seeds"]) for entry in attackers.values())
    if n_seeds > 1:
        notes.append(f"Mean ± standard deviation over {n_seeds} seeds.")
    title = f"Attackers on {summary['anonymizer']}, percent"
    return Table(title, ("Attacker", *columns), tuple(rows), tuple(notes))


def paper_table(results: list[dict[str, Any]]) -> Table:
    """Results of single attacks beside the paper's cMAP: Table 8 at image level, Table 1 at feature
    level; percent.

    Args:
        results: contents of results files of one level; the notes are about the first one.
    """
    level = results[0]["level"]
    paper = (
        published.TABLE_1
        if level == "feature"
        else {n: row.vispr_cmap for n, row in published.TABLE_8.items()}
    )
    rows = []
    same = Counter((result["anonymizer"], result["attacker"]) for result in results)
    for result in results:
        seed = (
            f", seed {result['parameters']['seed']}"
            if same[result["anonymizer"], result["attacker"]] > 1
            else ""
        )
        scores = [_percent(result["protocols"][protocol]["cmap"]) for protocol in PROTOCOLS]
        chance = _percent(result["chance"]["cmap"])
        rows.append(
            (
                result["anonymizer"],
                _attacker(result) + seed,
                *scores,
                chance,
                _paper(paper, result["anonymizer"]),
            )
        )
    named = {result["anonymizer"] for result in results}
    empty = [MISSING] * (2 + len(PROTOCOLS))
    rows += [
        (published.TABLE_8_LABELS[name], *empty, _paper(paper, name))
        for name in paper
        if name not in named
    ]
    columns = (
        *(f"cMAP, {_LABELS[protocol]}" for protocol in PROTOCOLS),
        "chance",
        "paper (change against raw)",
    )
    number = "1, features of still clips" if level == "feature" else "8"
    title = f"VISPR cMAP beside the paper's Table {number}, percent"
    return Table(
        title, ("Anonymizer", "Attacker", *columns), tuple(rows), tuple(_differences(results[0]))
    )


def _differences(result: dict[str, Any]) -> list[str]:
    """What keeps the first result from being compared with the paper's number."""
    notes = [
        "The paper reports the best test epoch of a ResNet-50 from random weights; its chance level is "
        f"{published.CHANCE_CMAP:.2f}."
    ]
    n_train, n_test = (result["n_pictures"][split] for split in ("train", "test"))
    official = tuple(OFFICIAL_COUNTS[split] for split in ("train", "test"))
    n_left_out = sum(map(len, result["unreadable"].values()))
    if abs(n_train - official[0]) > n_left_out or abs(n_test - official[1]) > n_left_out:
        notes.append(
            f"**Not VISPR**: {n_train} training and {n_test} test pictures where VISPR has {official[0]} and "
            f"{official[1]}. On other data only the order of the rows can be compared, not their values."
        )
    if set(result["chance"]["per_attribute"]) != set(VISPR1):
        notes.append(
            "**Other attributes** than the paper's seven (VISPR1): the values cannot be compared."
        )
    if result["level"] == "image" and result["attacker"] != "r50":
        notes.append(f"The attacker here is {result['attacker']}, not the paper's r50.")
    if n_left_out:
        notes.append(
            f"{n_left_out} pictures do not decode and are left out; the results file names them."
        )
    return notes


def _attacker_row(name: str, entry: dict[str, Any]) -> tuple[str, ...]:
    scores = entry["protocols"]
    interval = entry["confidence_intervals"][0]
    recovered = entry["inversion"][0]["recovered"] if entry["inversion"] else None
    return (
        name,
        *(_spread(scores[protocol]["cmap"]) for protocol in PROTOCOLS),
        f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else MISSING,
        _spread(scores[PROTOCOLS[0]]["f1"]),
        f"{recovered['psnr']:.1f} dB, SSIM {recovered['ssim']:.3f}" if recovered else MISSING,
    )


def _attacker(result: dict[str, Any]) -> str:
    return "MLP on features" if result["level"] == "feature" else result["attacker"]


def _paper(paper: dict[str, float], name: str) -> str:
    if name not in paper:
        return MISSING
    change = (
        "" if name == "raw" else f" ({published.relative_change(paper[name], paper['raw']):+.1f} %)"
    )
    return f"{paper[name]:.2f}{change}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _spread(values: dict[str, float | None]) -> str:
    deviation = "" if values["deviation"] is None else f" ± {100 * values['deviation']:.2f}"
    return _percent(values["mean"]) + deviation
