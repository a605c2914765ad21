"""A table of text cells and its form in Markdown."""

from dataclasses import dataclass, field

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """A table as text cells; further lines of a cell are set smaller."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=(), kw_only=True)
    """Notes that a reader should not miss: where ours is not the paper's order."""
    emphasised: frozenset[int] = field(default=frozenset(), kw_only=True)
    """Rows to set apart (controls)."""
    is_text: bool = field(default=False, kw_only=True)
    """Words rather than numbers."""

    def markdown(self) -> str:
        """The table in Markdown, numbers right-aligned."""
        alignment = (":---", *["---:"] * (len(self.header) - 1))
        lines = [f"| {' | '.join(cells)} |" for cells in (self.header, alignment, *self.rows)]
        table = "\n".join(line.replace("\n", "<br>") for line in lines)
        warnings = (f"**{warning}**" for warning in self.warnings)
        return "\n\n".join([f"### {self.title}", table, *warnings, *self.notes]) + "\n"


def percent(value: float | None, deviation: float | None = None, digits: int = 2) -> str:
    """A value in [0, 1], and its deviation where there is one, in percent; MISSING for None."""
    if value is None:
        return MISSING
    spread = "" if deviation is None else f" ± {100 * deviation:.{digits}f}"
    return f"{100 * value:.{digits}f}{spread}"
