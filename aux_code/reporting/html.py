"""One HTML file without scripts or references to anything outside it, readable on screen and on paper."""

import base64
import html
from pathlib import Path

from aux_code.reporting.tables import Table

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 "Source Sans 3", "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1c1f24;
  background: #fff; max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid #e5e7eb; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0; }
p.lead { font-size: 1.08rem; max-width: 52rem; }
p.note, figcaption { color: #5b6370; font-size: .88rem; max-width: 52rem; }
figure { margin: 1.2rem 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { margin-top: .35rem; }
figure.pictures img { max-width: 44rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .3rem 0;
  width: 100%; }
th { text-align: right; font-weight: 600; vertical-align: bottom; border-bottom: 1.5px solid #1c1f24;
  padding: .3rem .55rem; }
td { text-align: right; border-bottom: 1px solid #e5e7eb; padding: .28rem .55rem; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.control td { color: #5b6370; font-style: italic; }
table.text td { text-align: left; white-space: normal; vertical-align: top; }
table.text th { text-align: left; }
.published table { color: #5b6370; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  h2 { break-after: avoid; } figure, table, tr { break-inside: avoid; }
  .scroll { overflow: visible; } table { font-size: 8.5pt; } td { white-space: normal; }
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
    """The document."""
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *blocks[:1], _HOW_TO_READ, *blocks[1:]])
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
    image_tag = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f'<figure class="{css_class}">{image_tag}<figcaption>{text}</figcaption></figure>'


def table_block(table: Table, css_class: str = "") -> str:
    """A table with its title above and its notes below."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    rows = []
    for number, cells in enumerate(table.rows):
        css = ' class="control"' if number in table.emphasised else ""
        rows.append(f"<tr{css}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    kind = ' class="text"' if table.is_text else ""
    return (
        f'<section class="{css_class}"><h3>{html.escape(table.title)}</h3><div class="scroll"><table{kind}>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{notes}</section>"
    )
