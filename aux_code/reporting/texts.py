"""The result in words, and results/tables.md."""

import time
from collections.abc import Sequence

from aux_code.reporting.detail_tables import attacker_table, attribute_table, category_tables
from aux_code.reporting.published import relative_change
from aux_code.reporting.results import Results
from aux_code.reporting.tables import PROTOCOLS, any_table, main_table
from reproduction.methods import METHODS
from reproduction.status import clock


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


def state_line(results: Results) -> str:
    """Preset, seeds, protocol and day, in a line."""
    seeds = ", ".join(map(str, results.seeds))
    many = "s" if len(results.seeds) > 1 else ""
    day = time.strftime("%Y-%m-%d")
    return f"Preset {results.preset}, seed{many} {seeds}; {PROTOCOLS[results.protocol]}; written on {day}."


def write_markdown(results: Results, numbers: Sequence[str] = ("8",)) -> str:
    """The whole of results/tables.md: the tables of these numbers, then the details behind them."""
    work = f"{clock(results.seconds)} of work. Values in percent; in brackets the relative change against raw."
    lines = ["# Results", "", f"{state_line(results)} {work}", "", headline(results), ""]
    tables = [main_table(results)] if "8" in numbers else []
    tables += [any_table(results, number) for number in numbers if number != "8"]
    if results.attributes():
        tables += [attribute_table(results), attacker_table(results)]
    tables += [table for table, _ in category_tables(results)]
    return "\n".join([*lines, *(table.markdown() for table in tables)])
