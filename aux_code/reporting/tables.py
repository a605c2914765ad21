"""results/tables.md: our values beside the paper's. Cells are built here once, for Markdown and for the HTML report."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from aux_code.checkpoints import git_commit
from aux_code.pipeline.methods import ABLATION_TABLES, METHODS, TABLE_1, Method
from aux_code.pipeline.preparation import stage_seconds, worked_seconds
from aux_code.pipeline.status import STAGE_NAMES, clock
from aux_code.pipeline.tasks import Task
from aux_code.reporting import published
from aux_code.reporting.published import HEADLINE_METRIC, relative_change
from aux_code.reporting.results import Results

DATASET_LABELS = {"ucf_crime": "UCF-Crime", "xd_violence": "XD-Violence", "shanghaitech": "ShanghaiTech"}

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """A table as text cells."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    emphasised: frozenset[int] = field(default_factory=frozenset)
    """Rows to set apart (controls)."""
    is_text: bool = False
    """Words rather than numbers."""

    def markdown(self) -> str:
        """The table in Markdown, numbers right-aligned."""
        lines = [f"### {self.title}", "", _row(self.header), _row([":---", *["---:"] * (len(self.header) - 1)])]
        lines += [_row(cells) for cells in self.rows]
        return "\n".join([*lines, "", *(f"{note}\n" for note in self.notes)])


def main_table(results: Results) -> Table:
    """Table 8: leakage and detection of every method, each with its relative change against raw; then the controls."""
    header = ["Method", "VISPR cMAP ↓", "Leakage removed ↑"]
    header += [f"{DATASET_LABELS[d]} {_metric(d)} ↑" for d in results.datasets]
    rows = [_main_row(results, method) for method in results.methods(control=False)]
    controls = [_main_row(results, method) for method in results.methods(control=True)]
    chance = results.chance_cmap()
    if chance is not None:
        rows.append(("Chance", f"{100 * chance:.2f}", "100.0", *[MISSING] * len(results.datasets)))
    marked = frozenset(range(len(rows), len(rows) + len(controls)))
    names = [(f"Control: {label}", *cells) for label, *cells in controls]
    return Table("Table 8, measured here", tuple(header), (*rows, *names), _main_notes(results), marked)


def published_table(results: Results) -> Table:
    """The paper's Table 8 for the same rows: other data, other networks, for comparison of the pattern only."""
    sets = ("UCF-Crime AUC ↑", "XD-Violence AP ↑", "ShanghaiTech AUC ↑")
    header = ("Method", "VISPR cMAP ↓", "Leakage removed ↑", *sets)
    raw = published.TABLE_8["raw"]
    rows = []
    for name, row in published.TABLE_8.items():
        cells = [_with_change(value, base) for value, base in zip(row, raw, strict=True)]
        removed = 100 * (raw.vispr_cmap - row.vispr_cmap) / (raw.vispr_cmap - published.CHANCE_CMAP)
        rows.append((METHODS[name].label, cells[0], f"{removed:.1f}", *cells[1:]))
    rows.append(("Chance", f"{published.CHANCE_CMAP:.2f}", "100.0", *[MISSING] * 3))
    title = "Table 8, as published"
    if results.preset == "miniature":
        title += " (real data sets and full-size networks: other numbers than those above by nature)"
    return Table(title, header, tuple(rows))


def attribute_table(results: Results) -> Table:
    """Average precision per private attribute."""
    attributes = results.attributes()
    methods = [*results.methods(control=False), *results.methods(control=True)]
    rows = [(m.label, *(_percent(results, m.name, f"attribute:{a}") for a in attributes)) for m in methods]
    chances = next((r.leakage.chance_per_attribute for e in results.by_method.values() for r in e if r.leakage), {})
    rows.append(("Chance", *(_cell(chances.get(a)) for a in attributes)))
    return Table("Leakage per attribute, average precision", ("Method", *attributes), tuple(rows))


def attacker_table(results: Results) -> Table:
    """Every attacker of every method, with the interval over the test pictures: the strongest one counts above."""
    rows = []
    for entries in results.by_method.values():
        for result in entries:
            for leakage in result.attackers:
                low_high = MISSING
                if leakage.interval:
                    low_high = f"{100 * leakage.interval[0]:.1f} – {100 * leakage.interval[1]:.1f}"
                counts = "yes" if leakage is result.leakage else "no"
                cells = (result.method.label, str(result.seed), leakage.attacker.label, f"{100 * leakage.cmap:.2f}")
                rows.append((*cells, low_high, f"{100 * leakage.f1:.2f}", _plateau(leakage.raw_result), counts))
    header = ("Method", "Seed", "Attacker sees", "cMAP", "95 % interval", "F1", "Best epoch / last", "Counts")
    return Table("Attackers", header, tuple(rows))


def category_table(results: Results, dataset: str = "ucf_crime") -> Table | None:
    """AUC per category of anomaly (the paper's Figs. 6 and 7), mean over seeds; None without categories."""
    categories: list[str] = []
    for entries in results.by_method.values():
        for result in entries:
            if dataset in result.detection:
                categories += [c for c in result.detection[dataset].per_category if c not in categories]
    if not categories:
        return None
    methods = [*results.methods(control=False), *results.methods(control=True)]
    rows = [(m.label, *(_cell(category_auc(results, m, dataset, c)) for c in categories)) for m in methods]
    return Table(f"{DATASET_LABELS[dataset]}: frame AUC per category", ("Method", *categories), tuple(rows))


def category_auc(results: Results, method: Method, dataset: str, category: str) -> float | None:
    """Mean over the seeds of one category's AUC in [0, 1]."""
    values = []
    for result in results.by_method.get(method.name, ()):
        entry = result.detection[dataset].per_category.get(category) if dataset in result.detection else None
        value = entry.get("auc") if isinstance(entry, dict) else entry
        if value is not None:
            values.append(value)
    return sum(values) / len(values) if values else None


def ablation_table(results: Results, number: str) -> Table:
    """One of Tables 2 to 6, 9 and 10: ours and the paper's, and whether the order agrees."""
    rows = []
    for name in ABLATION_TABLES[number]:
        paper = published.ABLATIONS[number][name]
        ours = (_compared(results, name, "cmap"), _compared(results, name, "ucf_crime:auc"))
        label = METHODS[name].label_in(results.preset)
        rows.append((label, *ours, f"{paper.vispr_cmap:.2f}", f"{paper.ucf_crime_auc:.2f}"))
    header = ("Variant", "VISPR cMAP ↓, ours", "UCF-Crime AUC ↑, ours", "VISPR cMAP ↓, paper", "UCF-Crime AUC ↑, paper")
    title = f"Table {number}: {published.ABLATION_TITLES[number]}"
    return Table(title, header, tuple(rows), _order_notes(results, number))


def feature_table(results: Results) -> Table:
    """Table 1: what an attacker reads from f_T's features of still clips; ours and the paper's."""
    rows = []
    for name in TABLE_1:
        value, paper = results.mean(name, "feature_cmap"), published.TABLE_1[name]
        ours = _percent(results, name, "feature_cmap")
        raw = results.mean("raw", "feature_cmap")
        if value is not None and raw is not None and name != "raw":
            ours += f" ({relative_change(value, raw):+.2f} %)"
        rows.append((METHODS[name].label, ours, _with_change(paper, published.TABLE_1["raw"])))
    chance = results.chance_cmap()
    rows.append(("Chance", _cell(chance), f"{published.CHANCE_CMAP:.2f}"))
    measured = {name: results.mean(name, "feature_cmap") for name in TABLE_1}
    notes = _order_note("cMAP", measured, published.TABLE_1, results)
    if results.preset == "miniature":
        notes += (
            " Here f_T sees the frames themselves; the miniature's usual one sees motion, and a still clip has none."
        )
    return Table("Table 1: Feature-level leakage, VISPR cMAP", ("Method", "ours ↓", "paper ↓"), tuple(rows), (notes,))


def any_table(results: Results, number: str) -> Table:
    """The table of a number other than 8."""
    return feature_table(results) if number == "1" else ablation_table(results, number)


def headline(results: Results) -> str:
    """The result in a sentence or two."""
    sentences = []
    for name in ("ted_spad", "ted_spad_plus", "spact"):
        removed, auc = results.mean(name, "leakage_removed"), results.mean(name, "ucf_crime:auc")
        raw_auc = results.mean("raw", "ucf_crime:auc")
        if removed is None or auc is None or raw_auc is None:
            continue
        change = relative_change(auc, raw_auc)
        gain = f"{abs(change):.1f} % {'lower' if change < 0 else 'higher'}"
        sentences.append(
            f"{METHODS[name].label} removes {100 * removed:.0f} % of the leakage that can be removed, at a UCF-Crime "
            f"AUC {gain} than on raw video ({100 * auc:.1f} against {100 * raw_auc:.1f})."
        )
    if results.preset == "miniature":
        sentences.append(
            "Measured on the embedded miniature benchmark: drawn scenes, small networks, real file formats. It shows "
            "that every stage works and how the methods compare here; it says nothing about real footage."
        )
    return " ".join(sentences) or "Nothing has been measured yet."


def settings_table(results: Results, tasks: Sequence[Task]) -> Table:
    """What was run, and where."""
    commit = git_commit()
    rows = [
        ("Preset", results.preset),
        ("Seeds", ", ".join(map(str, results.seeds))),
        ("Protocol", f"{results.protocol}: {_PROTOCOLS[results.protocol]}"),
        ("Machine", f"{platform.machine()}, {os.cpu_count()} CPU cores, {_gpu()}"),
        ("Software", f"Python {platform.python_version()}, PyTorch {torch.__version__}"),
        ("Code", commit or "not under version control"),
        ("Commands", f"{len(tasks)}; printed by reproduce.py --dry_run with the same options"),
    ]
    return Table("Settings", ("", ""), tuple(rows), is_text=True)


def timing_table(tasks: Sequence[Task]) -> Table:
    """Time per stage, added up over its processes, and the wall-clock time of all."""
    rows = [
        (STAGE_NAMES.get(stage, stage), str(count), clock(seconds), f"{seconds / count:.0f} s")
        for stage, (count, seconds) in stage_seconds(list(tasks)).items()
    ]
    rows.append(("Wall clock", "", clock(worked_seconds(list(tasks))), ""))
    return Table("Time", ("Stage", "Runs", "Together", "Each"), tuple(rows))


def write_markdown(results: Results, ablations: tuple[str, ...] = ()) -> str:
    """The whole of results/tables.md."""
    seeds = ", ".join(map(str, results.seeds))
    lines = [
        "# Results",
        "",
        f"Preset {results.preset}, seeds {seeds}, protocol {results.protocol}, {clock(results.seconds)} of work. "
        "Values in percent; in brackets the relative change against raw.",
        "",
    ]
    tables = [main_table(results), published_table(results), attribute_table(results), attacker_table(results)]
    tables += [table for table in [category_table(results)] if table]
    tables += [any_table(results, number) for number in ablations]
    return "\n".join([*lines, *(table.markdown() for table in tables)])


def _main_row(results: Results, method: Method) -> tuple[str, ...]:
    removed = _percent(results, method.name, "leakage_removed", digits=1)
    cells = [_compared(results, method.name, f"{d}:{HEADLINE_METRIC[d]}") for d in results.datasets]
    return (method.label, _compared(results, method.name, "cmap"), removed, *cells)


def _main_notes(results: Results) -> tuple[str, ...]:
    notes = [
        "Leakage removed: (raw − x) / (raw − chance), the share of what can be removed at all that is gone.",
        "Per method the strongest attacker counts.",
    ]
    if results.preset == "miniature":
        notes.append("Drawn scenes and small networks: these numbers say nothing about real footage.")
    if len(results.seeds) > 1:
        notes.append(f"Mean ± standard deviation over {len(results.seeds)} seeds.")
    if results.protocol == "best_on_test":
        notes.append("The best epoch was chosen on the test data, as in the paper; this flatters every row.")
    return (" ".join(notes),)


def _order_notes(results: Results, number: str) -> tuple[str, ...]:
    if number == "10" and results.preset == "miniature":
        return ("Other networks than the paper's, made for small pictures: there is no order to compare.",)
    notes = []
    for field_name, metric, label in (("vispr_cmap", "cmap", "cMAP"), ("ucf_crime_auc", "ucf_crime:auc", "AUC")):
        paper = {name: getattr(row, field_name) for name, row in published.ABLATIONS[number].items()}
        ours = {name: results.mean(name, metric) for name in ABLATION_TABLES[number]}
        notes.append(_order_note(label, ours, paper, results))
    return (" ".join(notes),)


def _order_note(label: str, ours: dict[str, float | None], paper: dict[str, float], results: Results) -> str:
    """Whether our values rise from row to row in the paper's order, and if not, which both orders are."""
    if any(value is None for value in ours.values()):
        return f"{label}: not every row was measured."
    orders = [sorted(ours, key=values.__getitem__) for values in (ours, paper)]
    if orders[0] == orders[1]:
        return f"{label}: the rows come out in the paper's order."
    here, there = (" < ".join(METHODS[name].label_in(results.preset) for name in order) for order in orders)
    return f"{label}: the rows come out in another order than in the paper; here {here}, there {there}."


def _compared(results: Results, name: str, metric: str) -> str:
    text, value, raw = _percent(results, name, metric), results.mean(name, metric), results.mean("raw", metric)
    if value is None or raw is None or name == "raw":
        return text
    return f"{text} ({relative_change(value, raw):+.2f} %)"


def _with_change(value: float, raw: float) -> str:
    return f"{value:.2f}" if value == raw else f"{value:.2f} ({relative_change(value, raw):+.2f} %)"


def _percent(results: Results, name: str, metric: str, digits: int = 2) -> str:
    mean, deviation = results.mean(name, metric), results.deviation(name, metric)
    if mean is None:
        return MISSING
    return f"{100 * mean:.{digits}f}" + (f" ± {100 * deviation:.{digits}f}" if deviation is not None else "")


def _cell(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f}"


def _plateau(content: dict) -> str:
    plateau = content.get("plateau")
    return f"{plateau['best_epoch']} / {plateau['last_epoch']}" if plateau else MISSING


def _metric(dataset: str) -> str:
    return HEADLINE_METRIC[dataset].upper()


_PROTOCOLS = {
    "validation": "epoch chosen on validation data, nothing chosen on test data",
    "last": "the last epoch",
    "best_on_test": "epoch chosen on the test data, as in the paper",
}


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
