"""Results as Markdown: a series with its strongest attacker, a run beside the paper's numbers."""

from collections import Counter
from pathlib import Path
from typing import Any

from aux_code.checkpoints import write_atomically
from aux_code.datasets.vispr import OFFICIAL_COUNTS, VISPR1
from aux_code.reporting import published
from aux_code.reporting.table import MISSING, Table, percent
from privacy_training.attack_series import PROTOCOLS

_COLUMNS = ("cMAP, epoch by validation", "cMAP, last epoch", "cMAP, best on test (paper)")
"""In the order of PROTOCOLS."""


def write_tables(path: Path, tables: list[Table]) -> None:
    """Writes a Markdown file."""
    text = "\n".join(table.markdown() for table in tables)
    write_atomically(path, lambda file: file.write(text.encode()))


def attacker_table(summary: dict[str, Any]) -> Table:
    """cMAP and F1 of every attacker of a series, strongest first, in percent."""
    attackers, first = summary["attackers"], PROTOCOLS[0]
    order = sorted(attackers, key=lambda name: -attackers[name]["protocols"][first]["cmap"]["mean"])
    rows = [_attacker_row(name, attackers[name]) for name in order]
    cmap, f1, always = (percent(summary["chance"][key]) for key in ("cmap", "f1", "f1_always_yes"))
    rows.append(("chance", cmap, cmap, cmap, MISSING, f"{f1} (always yes: {always})", MISSING))
    notes = [
        f"The strongest attacker on {summary['anonymizer']} is **{summary['strongest'][first]}** "
        "(epoch by validation): an anonymizer is as good as its worst case. The interval is over "
        "the test images, with the first seed."
    ]
    notes += [f"{run} failed and is missing here: {e}" for run, e in summary["failed"].items()]
    learning = [n for n in order if not all(run["reached"] for run in attackers[n]["plateau"])]
    if learning:
        notes.append(
            f"Still learning at the end, so that more epochs may read more: {', '.join(learning)} "
            "(the last quarter added over a point of validation cMAP; `plateau` in the results)."
        )
    n_seeds = max(len(entry["seeds"]) for entry in attackers.values())
    if n_seeds > 1:
        notes.append(f"Mean ± standard deviation over {n_seeds} seeds.")
    header = ("Attacker", *_COLUMNS, "95 % interval", "F1", "recovered images")
    title = f"Attackers on {summary['anonymizer']}, percent"
    return Table(title, header, tuple(rows), tuple(notes), emphasised=frozenset({0}))


def _attacker_row(name: str, entry: dict[str, Any]) -> tuple[str, ...]:
    scores, interval = entry["protocols"], entry["confidence_intervals"][0]
    recovered = entry["inversion"][0]["recovered"] if entry["inversion"] else None
    return (
        name,
        *(percent(*scores[protocol]["cmap"].values()) for protocol in PROTOCOLS),
        f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else MISSING,
        percent(*scores[PROTOCOLS[0]]["f1"].values()),
        f"{recovered['psnr']:.1f} dB, SSIM {recovered['ssim']:.3f}" if recovered else MISSING,
    )


def paper_table(results: list[dict[str, Any]]) -> Table:
    """Results files of one level beside the paper's cMAP in percent: Table 8, of features Table 1.

    The notes are about the first one.
    """
    features = results[0]["level"] == "feature"
    table_8 = {name: row.vispr_cmap for name, row in published.TABLE_8.items()}
    paper = published.TABLE_1 if features else table_8

    def published_cell(name: str) -> str:
        if name not in paper or name == "raw":
            return f"{paper[name]:.2f}" if name in paper else MISSING
        change = published.relative_change(paper[name], paper["raw"])
        return f"{paper[name]:.2f} ({change:+.1f} %)"

    rows = []
    same = Counter((result["anonymizer"], result["attacker"]) for result in results)
    for result in results:
        name, attacker = result["anonymizer"], result["attacker"]
        seed = f", seed {result['parameters']['seed']}" if same[name, attacker] > 1 else ""
        scores = [percent(result["protocols"][protocol]["cmap"]) for protocol in PROTOCOLS]
        label = ("MLP on features" if features else attacker) + seed
        chance = percent(result["chance"]["cmap"])
        rows.append((name, label, *scores, chance, published_cell(name)))
    labels, here = published.TABLE_8_LABELS, {result["anonymizer"] for result in results}
    rows += [(labels[n], *[MISSING] * 5, published_cell(n)) for n in paper if n not in here]
    header = ("Anonymizer", "Attacker", *_COLUMNS, "chance", "paper (change against raw)")
    number = "1, features of still clips" if features else "8"
    title = f"VISPR cMAP beside the paper's Table {number}, percent"
    return Table(title, header, tuple(rows), tuple(_differences(results[0])))


def _differences(result: dict[str, Any]) -> list[str]:
    """What keeps the first result from being compared with the paper's number."""
    notes = [
        "The paper reports the best test epoch of a ResNet-50 from random weights; its chance "
        f"level is {published.CHANCE_CMAP:.2f}."
    ]
    counts, n_left_out = result["n_pictures"], sum(map(len, result["unreadable"].values()))
    if any(abs(counts[split] - n) > n_left_out for split, n in OFFICIAL_COUNTS.items()):
        notes.append(
            f"**Not VISPR**: {counts['train']} training and {counts['test']} test images where "
            f"VISPR has {OFFICIAL_COUNTS['train']} and {OFFICIAL_COUNTS['test']}. On other data "
            "only the order of the rows can be compared, not their values."
        )
    if set(result["chance"]["per_attribute"]) != set(VISPR1):
        notes.append("**Other attributes** than the paper's seven (VISPR1): not to be compared.")
    if result["level"] == "image" and result["attacker"] != "r50":
        notes.append(f"The attacker here is {result['attacker']}, not the paper's r50.")
    if n_left_out:
        notes.append(f"{n_left_out} images do not decode, are left out and named in the results.")
    return notes
