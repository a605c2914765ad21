"""The tables behind the main ones: every attribute, every attacker, every category of anomaly."""

from aux_code.reporting.published import DATASET_LABELS
from aux_code.reporting.results import Results
from aux_code.reporting.tables import MISSING, Table, cell, percent
from reproduction.methods import Method


def attribute_table(results: Results) -> Table:
    """Average precision per private attribute."""
    attributes = results.attributes()
    methods = [*results.methods(control=False), *results.methods(control=True)]
    methods = [m for m in methods if results.mean(m.name, "cmap") is not None]
    preset = results.preset
    rows = [
        (m.label_in(preset), *(percent(results, m.name, f"attribute:{a}") for a in attributes))
        for m in methods
    ]
    chances = next(
        (
            r.leakage.chance_per_attribute
            for e in results.by_method.values()
            for r in e
            if r.leakage
        ),
        {},
    )
    rows.append(("Chance", *(cell(chances.get(a)) for a in attributes)))
    return Table("Leakage per attribute, average precision", ("Method", *attributes), tuple(rows))


def attacker_table(results: Results) -> Table:
    """Every attacker of every method, with the interval over the test pictures: the strongest one
    counts above."""
    rows = []
    for entries in results.by_method.values():
        for result in entries:
            for leakage in result.attackers:
                low_high = MISSING
                if leakage.interval:
                    low_high = f"{100 * leakage.interval[0]:.1f} – {100 * leakage.interval[1]:.1f}"
                counts = "yes" if leakage is result.leakage else "no"
                cells = (
                    result.method.label_in(results.preset),
                    str(result.seed),
                    leakage.attacker.label,
                )
                scores = (f"{100 * leakage.cmap:.2f}", low_high, f"{100 * leakage.f1:.2f}")
                rows.append((*cells, *scores, _plateau(leakage.raw_result), counts))
    header = (
        "Method",
        "Seed",
        "Attacker sees",
        "cMAP",
        "95 % interval",
        "F1",
        "Best epoch / last",
        "Counts",
    )
    return Table("Attackers", header, tuple(rows))


def category_tables(results: Results) -> list[tuple[Table, str]]:
    """AUC per category of anomaly (the paper's Figs. 6 and 7), mean over seeds: (table, data set)
    for each data set that has several categories."""
    tables = []
    for dataset in results.datasets:
        names = categories(results, dataset)
        rows = []
        for method in [*results.methods(control=False), *results.methods(control=True)]:
            values = [category_auc(results, method, dataset, name) for name in names]
            if values.count(None) < len(values):
                rows.append((method.label_in(results.preset), *map(cell, values)))
        if len(names) > 1:
            table = Table(
                f"{DATASET_LABELS[dataset]}: frame AUC per category",
                ("Method", *names),
                tuple(rows),
            )
            tables.append((table, dataset))
    return tables


def categories(results: Results, dataset: str) -> list[str]:
    """The categories of anomaly of a data set, in the order of the result files."""
    found = [
        r.detection[dataset].per_category
        for e in results.by_method.values()
        for r in e
        if dataset in r.detection
    ]
    return list(dict.fromkeys(category for entry in found for category in entry))


def category_auc(results: Results, method: Method, dataset: str, category: str) -> float | None:
    """Mean over the seeds of one category's AUC in [0, 1]."""
    values = []
    for result in results.by_method.get(method.name, ()):
        entry = (
            result.detection[dataset].per_category.get(category)
            if dataset in result.detection
            else None
        )
        value = entry.get("auc") if isinstance(entry, dict) else entry
        if value is not None:
            values.append(value)
    return sum(values) / len(values) if values else None


def _plateau(content: dict) -> str:
    plateau = content.get("plateau")
    return f"{plateau['best_epoch']} / {plateau['last_epoch']}" if plateau else MISSING
