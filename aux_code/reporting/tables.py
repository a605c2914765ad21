"""The paper's tables, ours beside the paper's values. Cells are built once, for Markdown and for
the HTML report."""

from dataclasses import dataclass, field

from aux_code.reporting import published
from aux_code.reporting.orders import ablation_order_notes, feature_order_notes, main_order_notes
from aux_code.reporting.published import DATASET_LABELS, HEADLINE_METRIC, relative_change
from aux_code.reporting.results import Results
from reproduction.methods import ABLATION_TABLES, METHODS, TABLE_1, Method

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """A table as text cells. A cell's second line, if it has one, is the paper's value."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """Notes that a reader should not miss: where ours is not the paper's order."""
    emphasised: frozenset[int] = field(default_factory=frozenset)
    """Rows to set apart (controls)."""
    is_text: bool = False
    """Words rather than numbers."""

    def markdown(self) -> str:
        """The table in Markdown, numbers right-aligned."""
        lines = [
            f"### {self.title}",
            "",
            _row(self.header),
            _row([":---", *["---:"] * (len(self.header) - 1)]),
        ]
        lines += [_row([cell.replace("\n", "<br>") for cell in cells]) for cells in self.rows]
        warnings = [f"**{warning}**\n" for warning in self.warnings]
        return "\n".join([*lines, "", *warnings, *(f"{note}\n" for note in self.notes)])


def main_table(results: Results) -> Table:
    """Table 8: leakage and detection of every method, each with its relative change against raw and
    the paper's value below; then the controls."""
    header = ["Method", "VISPR cMAP ↓", "Leakage removed ↑"]
    header += [f"{DATASET_LABELS[d]} {_metric(d)} ↑" for d in results.datasets]
    rows = [_main_row(results, method) for method in results.main_methods(control=False)]
    controls = [_main_row(results, method) for method in results.main_methods(control=True)]
    chance = results.chance_cmap()
    if chance is not None:
        cells = (f"{100 * chance:.2f}\npaper {published.CHANCE_CMAP:.2f}", "100.0")
        rows.append(("Chance", *cells, *[MISSING] * len(results.datasets)))
    marked = frozenset(range(len(rows), len(rows) + len(controls)))
    names = [(f"Control: {label}", *cells) for label, *cells in controls]
    agreeing, differing = main_order_notes(results)
    notes = (*_main_notes(results), *agreeing)
    title = "Table 8: privacy and utility; ours above, the paper's value below"
    return Table(title, tuple(header), (*rows, *names), notes, differing, marked)


def ablation_table(results: Results, number: str) -> Table:
    """One of Tables 2 to 6, 9 and 10: ours and the paper's, each against raw, and whether the order
    agrees."""
    raw = published.TABLE_8["raw"]
    base = published.Ablation(raw.vispr_cmap, raw.ucf_crime_auc)
    rows = []
    for name in ABLATION_TABLES[number]:
        cells = []
        paper = published.ABLATIONS[number][name]
        for metric, value, raw_value in zip(("cmap", "ucf_crime:auc"), paper, base, strict=True):
            cells += [_compared(results, name, metric), _with_change(value, raw_value)]
        rows.append((METHODS[name].label_in(results.preset), *cells))
    header = ("Variant", "VISPR cMAP ↓, ours", "paper", "UCF-Crime AUC ↑, ours", "paper")
    title = f"Table {number}: {published.ABLATION_TITLES[number]}"
    agreeing, differing = ablation_order_notes(results, number)
    return Table(title, header, tuple(rows), (*agreeing, measurement_note(results)), differing)


def feature_table(results: Results) -> Table:
    """Table 1: what an attacker reads from f_T's features of still clips; ours and the paper's."""
    rows = []
    for name in TABLE_1:
        ours = _compared(results, name, "feature_cmap")
        rows.append(
            (
                METHODS[name].label,
                ours,
                _with_change(published.TABLE_1[name], published.TABLE_1["raw"]),
            )
        )
    chance = results.chance_cmap()
    rows.append(("Chance", cell(chance), f"{published.CHANCE_CMAP:.2f}"))
    agreeing, differing = feature_order_notes(results)
    notes = (*agreeing, measurement_note(results))
    if results.preset == "miniature":
        notes += (
            "Here f_T sees the frames themselves; the miniature's usual one sees motion, and a still clip has none.",
        )
    return Table(
        "Table 1: Feature-level leakage",
        ("Method", "VISPR cMAP ↓, ours", "paper"),
        tuple(rows),
        notes,
        differing,
    )


def any_table(results: Results, number: str) -> Table:
    """The table of a number other than 8 (`main_table`)."""
    return feature_table(results) if number == "1" else ablation_table(results, number)


def _main_row(results: Results, method: Method) -> tuple[str, ...]:
    paper, raw = published.TABLE_8.get(method.name), published.TABLE_8["raw"]
    metrics = ("cmap", *(f"{d}:{HEADLINE_METRIC[d]}" for d in results.datasets))
    cells = [_compared(results, method.name, metric) for metric in metrics]
    cells.insert(1, percent(results, method.name, "leakage_removed", digits=1))
    if paper:
        removed = (
            100 * (raw.vispr_cmap - paper.vispr_cmap) / (raw.vispr_cmap - published.CHANCE_CMAP)
        )
        theirs = [_with_change(value, base) for value, base in zip(paper, raw, strict=True)]
        theirs.insert(1, f"{removed:.1f}")
        cells = [f"{ours}\npaper {value}" for ours, value in zip(cells, theirs, strict=True)]
    return (method.label, *cells)


def _main_notes(results: Results) -> tuple[str, ...]:
    notes = [
        "In brackets: relative change against raw.",
        "Leakage removed: (raw − x) / (raw − chance), the share of what can be removed at all that is gone.",
        "Per method the strongest attacker counts.",
    ]
    if results.preset == "miniature":
        notes.append(
            "The paper's values are of real data sets and full-size networks, ours of drawn scenes and small ones: "
            "compare the pattern, not the numbers, which say nothing about real footage."
        )
    left_out = [METHODS[name].label for name in published.TABLE_8 if name not in results.by_method]
    if left_out:
        notes.append(f"Not measured: {', '.join(left_out)}.")
    return " ".join(notes), measurement_note(results)


def measurement_note(results: Results) -> str:
    """Seeds and protocol, and which rows have fewer seeds than were asked for."""
    if len(results.seeds) > 1:
        text = f"Mean ± standard deviation over the seeds {', '.join(map(str, results.seeds))}."
        short = [
            METHODS[m].label
            for m, entries in results.by_method.items()
            if len(entries) < len(results.seeds)
        ]
        text += f" Fewer seeds: {', '.join(short)}." if short else ""
    else:
        text = f"One seed ({results.seeds[0]}): there is no deviation, and small differences may be chance."
    text += f" Protocol: {PROTOCOLS[results.protocol]} ({results.protocol})."
    return text + (" This flatters every row." if results.protocol == "best_on_test" else "")


def _compared(results: Results, name: str, metric: str) -> str:
    text, value, raw = (
        percent(results, name, metric),
        results.mean(name, metric),
        results.mean("raw", metric),
    )
    if value is None or raw is None or name == "raw":
        return text
    return f"{text} ({relative_change(value, raw):+.2f} %)"


def _with_change(value: float, raw: float) -> str:
    return f"{value:.2f}" if value == raw else f"{value:.2f} ({relative_change(value, raw):+.2f} %)"


def percent(results: Results, name: str, metric: str, digits: int = 2) -> str:
    """Mean, and deviation where there are several seeds, in percent."""
    mean, deviation = results.mean(name, metric), results.deviation(name, metric)
    if mean is None:
        return MISSING
    return f"{100 * mean:.{digits}f}" + (
        f" ± {100 * deviation:.{digits}f}" if deviation is not None else ""
    )


def cell(value: float | None) -> str:
    """A value in [0, 1] in percent."""
    return MISSING if value is None else f"{100 * value:.2f}"


def _metric(dataset: str) -> str:
    return HEADLINE_METRIC[dataset].upper()


PROTOCOLS = {
    "validation": "epoch chosen on validation data, nothing chosen on test data",
    "last": "the last epoch",
    "best_on_test": "epoch chosen on the test data, as in the paper",
}


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
