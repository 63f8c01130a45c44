"""One HTML page that works from a file, without network: style, tables that can be sorted, pictures, charts."""

import html
from collections.abc import Iterable, Sequence

STYLE = """
:root{--back:#fff;--text:#1b1f24;--faint:#5b6570;--line:#d5dae0;--card:#f6f8fa;--good:#176f2c;--bad:#b3261e;
color-scheme:light dark}@media (prefers-color-scheme:dark){:root{--back:#14171b;--text:#e6e9ed;--faint:#a0a9b4;--line:#3a424c;
--card:#1d2228;--good:#6fd08c;--bad:#ff8a80}}*{box-sizing:border-box}body{margin:0 auto;max-width:1180px;padding:16px;
background:var(--back);color:var(--text);font:16px/1.45 system-ui,sans-serif}h1{font-size:1.6rem}h2{font-size:1.25rem;
margin:2rem 0 .5rem;border-bottom:1px solid var(--line)}h3{font-size:1rem;margin:.6rem 0}p,li{overflow-wrap:anywhere}
.faint{color:var(--faint)}.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem}th,td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}th button{all:unset;cursor:pointer;font-weight:600}
th button:focus-visible,svg:focus-visible,.scroll:focus-visible{outline:2px solid #4c8bf5}
th[aria-sort=ascending] button::after{content:" \\25B2"}th[aria-sort=descending] button::after{content:" \\25BC"}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr));gap:14px}figure{margin:0;
background:var(--card);padding:10px;border-radius:6px}figure svg{width:100%;height:auto;display:block}.panels{display:inline-flex;
vertical-align:top;flex-wrap:wrap;gap:10px;margin:0 4px 10px 0}
.panels figure{width:276px;max-width:100%}.panels img{width:100%;height:auto;display:block}
.pictures{display:grid;gap:14px;margin-bottom:14px;
grid-template-columns:repeat(auto-fill,minmax(min(520px,100%),1fr));align-items:start}.pictures img{max-width:100%;height:auto;
display:block;margin:auto}
.tables{display:grid;gap:6px 28px;align-items:start;
grid-template-columns:repeat(auto-fill,minmax(min(430px,100%),1fr))}.tables>div{min-width:0}caption{text-align:left;padding:2px 10px}
.scroll{margin-bottom:14px}
figcaption{font-size:.85rem}ul.key{list-style:none;margin:4px 0;padding:0;display:flex;flex-wrap:wrap;gap:2px 14px;
font-size:.82rem}ul.key i{display:inline-block;width:20px;margin-right:5px;vertical-align:middle}pre{overflow-x:auto}
details{margin:.4rem 0}@media(max-width:600px){.panels{display:flex;margin-right:0}.panels figure{width:calc(50% - 5px)}}
svg text{fill:var(--text);font:11px system-ui,sans-serif}.axis{stroke:var(--line)}
"""
SCRIPT = """
document.querySelectorAll("table.sortable th button").forEach(function(button){button.addEventListener("click",function(){
var head=button.closest("th"),table=head.closest("table"),body=table.tBodies[0],column=head.cellIndex;
var down=head.getAttribute("aria-sort")!=="descending";
table.querySelectorAll("th").forEach(function(other){other.removeAttribute("aria-sort")});
head.setAttribute("aria-sort",down?"descending":"ascending");
Array.from(body.rows).sort(function(a,b){var x=a.cells[column].dataset.value,y=b.cells[column].dataset.value;
if(x===""||y==="")return (x==="")-(y==="");
var order=isNaN(x)||isNaN(y)?x.localeCompare(y):x-y;return down?-order:order}).forEach(function(row){body.appendChild(row)})})});
"""


class Cell(str):
    """HTML that is written as it is; every other text is escaped."""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document. parts: HTML, in order."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        f"<main><h1>{text(title)}</h1>\n{body}\n</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def text(value: object) -> str:
    """Escaped, unless it is a `Cell`."""
    return value if isinstance(value, Cell) else html.escape(str(value))


def section(title: str, *parts: str) -> str:
    """A heading and what is below it; empty where nothing is."""
    inner = "\n".join(part for part in parts if part)
    return f"<section><h2>{text(title)}</h2>\n{inner}</section>" if inner else ""


def table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[tuple[str, float | None] | str]]) -> str:
    """A table whose columns are sorted by a click or the enter key on their heading; empty without rows.

    rows: cells, each a text, or (text, the number by which it is sorted).
    """
    if not rows:
        return ""
    head = "".join(f'<th scope="col"><button type="button">{text(heading)}</button></th>' for heading in headings)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table class="sortable"><caption class="faint">'
        f"{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: tuple[str, float | None] | str) -> str:
    if isinstance(cell, tuple):
        shown, value = cell
        return f'<td class="n" data-value="{"" if value is None else value}">{text(shown)}</td>'
    return f'<td data-value="{html.escape(str(cell))}">{text(cell)}</td>'
