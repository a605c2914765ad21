"""One HTML file without scripts or references to anything outside it, readable on screen and on
paper."""

import base64
import html
from pathlib import Path

from aux_code.reporting.tables import Table

MOST_ROWS_KEPT_TOGETHER = 12
"""A longer table may be broken over two pages of paper."""

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 "Source Sans 3", "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1c1f24;
  background: #fff; max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .6rem; padding-top: .9rem; border-top: 1px solid #e5e7eb; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0; }
p.lead { font-size: 1.1rem; max-width: 52rem; }
p.state, p.note, figcaption { color: #5b6370; font-size: .88rem; max-width: 52rem; }
p.differs { font-size: .88rem; max-width: 52rem; border-left: 3px solid #d98a00; padding-left: .6rem; }
figure { margin: 1.2rem 0; }
figure img { width: 100%; min-width: 38rem; height: auto; display: block; }
figcaption { margin-top: .35rem; }
figure.pictures img { max-width: 44rem; }
.scroll { overflow-x: auto; background: /* a shadow at the edge behind which there is more */
  linear-gradient(to right, #fff 1rem, #fff0), linear-gradient(to left, #fff 1rem, #fff0) right,
  linear-gradient(to right, #0002, #0000), linear-gradient(to left, #0002, #0000) right;
  background-size: 2rem 100%, 2rem 100%, .6rem 100%, .6rem 100%; background-repeat: no-repeat;
  background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .3rem 0;
  width: 100%; }
th { text-align: right; font-weight: 600; vertical-align: bottom; border-bottom: 1.5px solid #1c1f24;
  padding: .3rem .55rem; }
td { text-align: right; border-bottom: 1px solid #e5e7eb; padding: .28rem .55rem; white-space: nowrap;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td span { display: block; color: #6b7280; font-size: .85em; line-height: 1.3; }
tr.control td { color: #5b6370; font-style: italic; }
table.text { width: auto; }
table.text td { text-align: left; white-space: normal; }
table.text td:first-child { color: #5b6370; padding-right: 1.5rem; }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; } td:first-child { white-space: normal; min-width: 6.5rem; }
}
@page { size: A4; margin: 14mm 13mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt; line-height: 1.4; }
  h1 { font-size: 18pt; } h2 { font-size: 13pt; margin-top: 12pt; } h3 { font-size: 10pt; }
  p.lead { font-size: 11pt; } p.state, p.note, p.differs, figcaption { font-size: 8.5pt; }
  h2, h3 { break-after: avoid; } figure, tr, p { break-inside: avoid; } section.short { break-inside: avoid; }
  thead { display: table-header-group; }
  figure img { min-width: 0; } figure.pictures img { max-width: 100%; max-height: 235mm; object-fit: contain; }
  .scroll { overflow: visible; background: none; } table { font-size: 7.8pt; } th, td { padding: .2rem .3rem; }
  td { white-space: normal; } p, p.lead, p.note, p.differs, figcaption { max-width: none; }
}
"""

_HOW_TO_READ = """
<p>Surveillance video passes through an anonymizer before anything else sees it. Two questions decide whether that is
worth it. <b>Privacy:</b> a fresh network, the attacker, is trained on anonymized pictures to read seven private
attributes of people; its mean average precision (cMAP) is what leaks. <b>Utility:</b> a detector is trained on
anonymized video to find anomalous events, and is scored frame by frame (area under the ROC curve, or under the
precision-recall curve).</p>
<p><b>Leakage removed</b> puts the first on a fair scale: 0&nbsp;% is what raw video gives away, 100&nbsp;% is an
attacker that can only guess. Since leakage cannot fall below chance, the relative drop of cMAP alone looks smaller
than it is.</p>
"""


def page(title: str, blocks: list[str]) -> str:
    """The document; the first two blocks come before the explanation of how to read it."""
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *blocks[:2], _HOW_TO_READ, *blocks[2:]])
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def paragraph(text: str, css_class: str = "") -> str:
    """Plain text as a paragraph."""
    attribute = f' class="{css_class}"' if css_class else ""
    return f"<p{attribute}>{html.escape(text)}</p>"


def figure_block(image: Path, caption: str, css_class: str = "") -> str:
    """A PNG, embedded, with its caption (which is also its alternative text)."""
    data = base64.b64encode(image.read_bytes()).decode()
    text = html.escape(caption)
    image_tag = f'<div class="scroll"><img alt="{text}" src="data:image/png;base64,{data}"></div>'
    return f'<figure class="{css_class}">{image_tag}<figcaption>{text}</figcaption></figure>'


def table_block(table: Table) -> str:
    """A table with its title above and its notes below."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in table.header)
    rows = []
    for number, cells in enumerate(table.rows):
        css = ' class="control"' if number in table.emphasised else ""
        rows.append(f"<tr{css}>" + "".join(f"<td>{_lines(text)}</td>" for text in cells) + "</tr>")
    notes = [paragraph(text, "differs") for text in table.warnings]
    notes += [paragraph(" ".join(table.notes), "note")] if table.notes else []
    kind = ' class="text"' if table.is_text else ""
    top = f"<thead><tr>{head}</tr></thead>" if any(table.header) else ""
    short = ' class="short"' if len(table.rows) <= MOST_ROWS_KEPT_TOGETHER else ""
    return (
        f'<section{short}><h3>{html.escape(table.title)}</h3><div class="scroll"><table{kind}>'
        f"{top}<tbody>{''.join(rows)}</tbody></table></div>{''.join(notes)}</section>"
    )


def _lines(text: str) -> str:
    """A cell; its further lines are set smaller."""
    first, *others = text.split("\n")
    return html.escape(first) + "".join(f"<span>{html.escape(line)}</span>" for line in others)
