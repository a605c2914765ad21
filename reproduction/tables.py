"""Every table of the report from one description: columns of measured and published values."""

import math
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch

from aux_code.checkpoints import git_commit
from aux_code.reporting import published
from aux_code.reporting.published import DATASET_LABELS, HEADLINE_METRIC, relative_change
from aux_code.reporting.table import MISSING, Table, percent
from aux_code.series import mean_and_deviation
from reproduction.methods import (
    ABLATION_TABLES,
    CONTROL_TABLE,
    DATASETS,
    LEARNED,
    METHODS,
    TABLE_1,
    UNLEARNED,
)
from reproduction.plan import STAGES, Step
from reproduction.results import Results
from reproduction.runner import Timings, clock

PROTOCOLS = {
    "validation": "epoch chosen on validation data, nothing chosen on test data",
    "last": "the last epoch of a detector; of an attacker the one that validation chose",
    "best_on_test": "epoch chosen on the test data, as in the paper, which flatters every row",
}


class Column(NamedTuple):
    """One measured quantity, with the paper's values beside it where it has some (percent)."""

    label: str
    metric: str  # as in `MethodResult.values`
    paper: Mapping[str, float] = {}  # by method
    paper_raw: float | None = None  # of raw video; None: nothing is compared with raw
    chance: float | None = None  # ours, in [0, 1]
    paper_chance: float | None = None


def main_columns(results: Results) -> list[Column]:
    """Of Table 8."""
    cmap = {name: row.vispr_cmap for name, row in published.TABLE_8.items()}
    chance = published.CHANCE_CMAP
    removed = {n: 100 * (cmap["raw"] - x) / (cmap["raw"] - chance) for n, x in cmap.items()}
    columns = [Column("VISPR cMAP ↓", "cmap", cmap, cmap["raw"], results.chance_cmap(), chance)]
    columns += [Column("Leakage removed ↑", "leakage_removed", removed, None, 1.0, 100.0)]
    for dataset, metric in HEADLINE_METRIC.items():
        paper = {n: getattr(row, f"{dataset}_{metric}") for n, row in published.TABLE_8.items()}
        label = f"{DATASET_LABELS[dataset]} {metric.upper()} ↑"
        columns.append(Column(label, f"{dataset}:{metric}", paper, paper["raw"]))
    return columns


def ablation_columns(number: str, preset: str) -> list[Column]:
    """Of Table 2, 3, 4, 5, 6, 9 or 10."""
    rows, (raw_cmap, raw_auc, *_) = published.ABLATIONS[number], published.TABLE_8["raw"]
    if number == "10" and preset == "miniature":  # its networks are others than the paper's
        rows = {"ted_spad": rows["ted_spad"]}
    cmap, auc = ({name: row[i] for name, row in rows.items()} for i in (0, 1))
    leaked = Column("VISPR cMAP ↓", "cmap", cmap, raw_cmap)
    return [leaked, Column("UCF-Crime AUC ↑", "ucf_crime:auc", auc, raw_auc)]


def paper_table(results: Results, number: str) -> Table:
    """One of the paper's tables, ours and the paper's values."""
    if number == "8":
        names, columns = [method.name for method in results.main_methods()], main_columns(results)
        left_out = [METHODS[n].label for n in published.TABLE_8 if n not in results.by_method]
        text = "Below a value: its change against raw. Leakage removed: (raw − x) / (raw − chance)."
        text += " Per method the strongest attacker counts. In brackets: 95 % interval of the "
        text += "difference to raw, in points, over other test items (paired); bold: without zero."
        absent = f"Not measured: {', '.join(left_out)}." if left_out else ""
        notes = [text, absent, _coverage(results)]
        return method_table("Table 8: privacy and utility", results, names, columns, notes)
    if number == "1":
        paper, chances = published.TABLE_1, (results.chance_cmap(), published.CHANCE_CMAP)
        columns = [Column("VISPR cMAP ↓", "feature_cmap", paper, paper["raw"], *chances)]
        note = "In the miniature f_T sees frames here, motion elsewhere: still clips have none."
        notes = [note] if results.preset == "miniature" else []
        return method_table("Table 1: Feature-level leakage", results, TABLE_1, columns, notes)
    if number == "controls":
        columns = [column._replace(paper={}) for column in main_columns(results)[:3]]
        notes = [unlearned_note(results, name) for name in LEARNED]
        return method_table("Controls", results, CONTROL_TABLE, columns, notes)
    columns = ablation_columns(number, results.preset)
    title = f"Table {number}: {published.ABLATION_TITLES[number]}"
    return method_table(title, results, ABLATION_TABLES[number], columns)


def detail_tables(results: Results) -> dict[str, Table]:
    """What lies behind the main ones: attributes, detection, categories_DATASET, attackers."""
    names = [method.name for method in results.methods()]
    chosen = ["False alarms, categories and curves: of the epoch that validation chose."]

    def table(title: str, columns: list[Column], notes: Sequence[str] = chosen) -> Table:
        return method_table(title, results, names, columns, notes)

    columns = []
    for kind, note in (("per_attribute", ""), ("held_out", " (held out: not in the cMAP)")):
        for name, share in results.chance_per_attribute(kind).items():
            columns.append(Column(name + note, f"attribute:{name}", chance=share))
    tables = {"attributes": table("Leakage per attribute, average precision", columns, ())}
    columns = []
    for dataset in (name for name in DATASETS if any(name in r.detection for r in results)):
        for label, metric in (("AUC", "auc"), ("AP", "ap"), ("false alarms", "false_alarm_rate")):
            columns.append(Column(f"{DATASET_LABELS[dataset]} {label}", f"{dataset}:{metric}"))
    tables["detection"] = table("Detection", columns)
    for dataset, label in DATASET_LABELS.items():
        kinds = [Column(n, f"{dataset}:auc:{n}") for n in results.categories(dataset)]
        if len(kinds) > 1:
            tables[f"categories_{dataset}"] = table(f"{label}: frame AUC per category", kinds)
    tables["attackers"] = attacker_table(results)
    tables["training"] = training_table(results)
    return {key: table for key, table in tables.items() if table.rows}


def attacker_table(results: Results) -> Table:
    """Every attacker of every method; the strongest one counts in the other tables."""
    rows = []
    for result, attack in ((r, attack) for r in results for attack in r.attacks):
        interval = attack.content.get("confidence_interval") or ()
        limits = " – ".join(f"{100 * x:.1f}" for x in interval) or MISSING
        plateau = attack.content.get("plateau")
        epochs = f"{plateau['best_epoch']} / {plateau['last_epoch']}" if plateau else MISSING
        cmap, f1 = percent(attack.scores["cmap"]), percent(attack.scores["f1"])
        cells = (result.method.label_in(results.preset), str(result.seed), attack.attacker.label)
        cells += (attack.start, cmap, limits, f1, epochs)
        rows.append((*cells, "yes" if attack is result.attacks[0] else "no"))
    header = ("Method", "Seed", "Attacker sees", "Begins with", "cMAP", "95 % interval", "F1")
    return Table("Attackers", (*header, "Best epoch / last", "Counts"), tuple(rows))


def training_table(results: Results) -> Table:
    """How long f_T learned in every row: all its steps, and all clips that it saw in them."""
    rows = []
    for result in results:
        counts = [result.training.get(key) for key in ("ft_steps", "ft_clips")]
        if None not in counts:
            label = result.method.label_in(results.preset)
            rows.append((label, str(result.seed), *(f"{count:,.0f}" for count in counts)))
    return Table("Training of f_T", ("Method", "Seed", "Steps", "Clips"), tuple(rows))


def method_table(
    title: str, results: Results, names: Sequence[str], columns: list[Column],
    notes: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Rows of methods, chance, controls; the paper's values in columns of their own where any."""
    width = 2 if any(column.paper for column in columns) else 1
    paper = "paper, real data" if results.preset == "miniature" else "paper"
    header = [cell for column in columns for cell in (column.label, paper)[:width]]
    rows: dict[bool, list[tuple[str, ...]]] = {False: [], True: []}
    for method in (METHODS[name] for name in names):
        cells = [c for column in columns for c in _cells(results, method.name, column)[:width]]
        if set(cells) - {MISSING}:
            label = "Control: " * method.control + method.label_in(results.preset)
            rows[method.control].append((label, *cells))
    if rows[False] and any(column.chance is not None for column in columns):
        cells = [(percent(c.chance), _published(c.paper_chance))[:width] for c in columns]
        rows[False].append(("Chance", *sum(cells, ())))
    orders = [order_note(results, column) for column in columns if column.paper_raw]
    agreeing = [text for text, agrees in orders if agrees]
    measured = measurement_note(results) if width == 2 else ""
    n_rows, n_controls = len(rows[False]), len(rows[True])
    return Table(
        title, ("Method", *header), (*rows[False], *rows[True]),
        tuple(note for note in (*notes, *agreeing, measured) if note),
        warnings=tuple(text for text, agrees in orders if not agrees),
        emphasised=frozenset(range(n_rows, n_rows + n_controls)),
    )  # fmt: skip


def _cells(results: Results, name: str, column: Column) -> tuple[str, str]:
    """Ours and the paper's, each with its change against raw on a second line."""
    ours, theirs = results.mean(name, column.metric), column.paper.get(name)
    raw = results.mean("raw", column.metric) if column.paper_raw else None
    measured, interval = percent(*results.spread(name, column.metric)), ""
    if raw is not None and name != "raw" and (limits := results.difference(name, column.metric)):
        low, high = (100 * limit for limit in limits)
        interval = f"\n[{low:+.1f}, {high:+.1f}]"
        measured = f"**{measured}**" if low > 0 or high < 0 else measured
    measured += _change(ours, raw) + interval
    return measured, _published(theirs) + _change(theirs, column.paper_raw)


def _published(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _change(value: float | None, raw: float | None) -> str:
    known = value is not None and raw is not None and value != raw
    return f"\n{relative_change(value, raw):+.2f} %" if known else ""


def order_note(results: Results, column: Column) -> tuple[str, bool]:
    """A sentence or nothing on the pairs of rows that differ in the paper; whether all agree."""
    paper, ours = column.paper, {name: results.mean(name, column.metric) for name in column.paper}
    known = sorted((name for name in paper if ours[name] is not None), key=paper.__getitem__)
    pairs = [(low, high) for low, high in combinations(known, 2) if paper[low] < paper[high]]
    differing = [(low, high) for low, high in pairs if ours[low] >= ours[high]]
    label = column.label[:-2]
    if not differing:
        return f"{label}: rows in the paper's order." if pairs else "", True
    labels = [[METHODS[name].label_in(results.preset) for name in pair] for pair in differing]
    text = f"{label}: {len(pairs) - len(differing)} of {len(pairs)} pairs of rows are in the "
    text += f"paper's order; not so: {', '.join(f'{low} < {high}' for low, high in labels)}"
    if len(results.seeds) > 1:
        n_small = sum(_within_deviation(results, column.metric, *pair) for pair in differing)
        text += f"; {n_small} of these {len(differing)} differ by less than the seeds do"
    return text + ".", False


def _within_deviation(results: Results, metric: str, low: str, high: str) -> bool:
    """Whether the difference of two rows, seed by seed, has a mean below its deviation."""
    first, second = results.by_seed(low, metric), results.by_seed(high, metric)
    values = mean_and_deviation(second[seed] - first[seed] for seed in first if seed in second)
    return values["deviation"] is not None and abs(values["mean"]) < values["deviation"]


def unlearned_note(results: Results, name: str) -> str:
    """A sentence on where a row stands to the curve of those that learn nothing, or nothing."""
    auc, cmap = (results.mean(name, metric) for metric in ("ucf_crime:auc", "cmap"))
    values = {
        METHODS[other].label: (results.mean(other, "ucf_crime:auc"), results.mean(other, "cmap"))
        for other in UNLEARNED
    }
    known = {label: own for label, own in values.items() if None not in own}
    if None in (auc, cmap) or not known:
        return ""
    as_good = {label: leaked for label, (found, leaked) in known.items() if found >= auc}
    less = [label for label, leaked in as_good.items() if leaked <= cmap]
    text = f"{METHODS[name].label}, of {len(known)} unlearned rows: {len(as_good)} detect as much"
    return f"{text}, {len(less)} of these leak no more{': ' * bool(less)}{', '.join(less)}."


def measurement_note(results: Results) -> str:
    """Seeds and protocol, and which rows have fewer seeds than were asked for."""
    n_seeds = len(results.seeds)
    text = f"One seed ({results.seeds[0]}): small differences may be chance."
    if n_seeds > 1:
        text = f"Mean ± standard deviation over the seeds {', '.join(map(str, results.seeds))}."
        short = [METHODS[m].label for m, e in results.by_method.items() if len(e) < n_seeds]
        text += f" Fewer seeds: {', '.join(short)}." if short else ""
        if results.render_seed is not None:
            text += f" One rendering ({results.render_seed}): a deviation is that of training."
        elif results.preset == "miniature":
            text += " Each seed has its own rendering: a deviation is that of both."
    return f"{text} Protocol: {PROTOCOLS[results.protocol]} ({results.protocol})."


def _coverage(results: Results) -> str:
    """How many test images and videos the values are of, where the results know it: videos that
    all rows have."""
    texts = {}
    for result in results:
        for content in (attack.content for attack in result.attacks):
            if "n_pictures" in content:
                n, lost = content["n_pictures"]["test"], len(content["unreadable"]["test"])
                texts["vispr"] = f"{n} of {n + lost} test images of VISPR"
        for dataset, content in result.detection.items():
            n, listed = len(content["videos"]), content.get("n_test_videos")
            number = f"{n} of {listed}" if listed else str(n)
            texts[dataset] = f"{number} test videos of {DATASET_LABELS[dataset]}"
    return f"Measured on {', '.join(texts.values())}." if texts else ""


def headline(results: Results) -> str:
    """The result in a few sentences."""
    sentences = []
    for name in ("raw", "ted_spad", "ted_spad_plus", "spact"):
        spreads = (results.spread(name, metric) for metric in ("leakage_removed", "ucf_crime:auc"))
        removed, auc = (percent(*spread, digits=1) for spread in spreads)
        if MISSING not in (removed, auc):
            label = METHODS[name].label
            sentences.append(f"{label}: {removed} % of the leakage removed, UCF-Crime AUC {auc} %.")
    if results.preset == "miniature":
        text = "Measured on the embedded miniature benchmark: drawn scenes, small networks, real "
        text += "file formats. It shows that every stage works and says nothing about real footage."
        sentences.append(text)
    return " ".join(sentences) if results.by_method else "Nothing has been measured yet."


def write_markdown(results: Results, numbers: Sequence[str] = ("8",)) -> str:
    """The whole of results/tables.md: the tables of these numbers, then the details behind them."""
    state = f"Preset {results.preset}; {clock(results.seconds)} of work. Values in percent."
    tables = [paper_table(results, number) for number in numbers]
    tables += detail_tables(results).values()
    texts = ["# Results", f"{state} {measurement_note(results)}", headline(results)]
    return "\n\n".join([*texts, *(table.markdown() for table in tables)])


def settings_table(results: Results, n_steps: int, timings: Timings) -> Table:
    """What was run, where, and by which code: finished work is kept when the code goes on."""
    commits = Counter(str(t.get("commit") or "no version control")[:12] for t in timings.values())
    code = ", ".join(f"{commit} ({n} steps)" for commit, n in commits.most_common())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    rows = (
        ("Preset", results.preset),
        ("Seeds", ", ".join(map(str, results.seeds))),
        ("Protocol", f"{results.protocol}: {PROTOCOLS[results.protocol]}"),
        ("Machine", f"{platform.machine()}, {os.cpu_count()} CPU cores, {gpu}"),
        ("Software", f"Python {platform.python_version()}, PyTorch {torch.__version__}"),
        ("Code", code or git_commit()[:12] or "not under version control"),
        ("Commands", f"{n_steps}; reproduce.py --dry_run with the same options prints them"),
    )
    return Table("Settings", ("", ""), rows, is_text=True)


def timing_table(steps: Sequence[Step], timings: Timings) -> Table:
    """Wall time and CPU time per stage, added up over the steps that ran, and of all."""
    rows = []
    ran = [step for step in steps if step.name in timings]
    for stage in [*dict.fromkeys(step.stage for step in ran), ""]:
        own = [timings[step.name] for step in ran if stage in (step.stage, "")]
        wall, cpus = sum(t["seconds"] for t in own), [t.get("cpu_seconds") for t in own]
        cpu = MISSING if None in cpus else clock(sum(cpus))
        label = STAGES[stage].title if stage else "All"
        rows.append((label, str(len(own)), clock(wall), f"{wall / max(1, len(own)):.0f} s", cpu))
    rows.append(("Wall clock", "", clock(worked_seconds(timings)), "", ""))
    note = "Together: wall time of the steps, some of which ran side by side. CPU time: all cores."
    header = ("Stage", "Steps", "Together", "Each", "CPU time")
    return Table("Time", header, tuple(rows), (note,))


def worked_seconds(timings: Timings) -> float:
    """Wall-clock seconds in which any step ran, over all calls that did a part of the work."""
    total, end = 0.0, -math.inf
    for started, finished in sorted((t["started"], t["finished"]) for t in timings.values()):
        total += max(0.0, finished - max(started, end))
        end = max(end, finished)
    return total
