"""What all pages of this package share: one HTML file that loads nothing and runs no script, its tables and its cells.

Every text that came from a config, a file or a log is escaped. Cells are HTML already. A number out of metrics.json
says where it stands there: `data-of="17:value:figure"` is field `value` of row 17 (from 0), written as FORMATS says;
one from elsewhere names the file, as `data-from="events.jsonl"`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape, unescape
from importlib.resources import files
from typing import Any, NamedTuple

from funnelrank.evaluate.pictures import Picture, printable, shortened

MANY = 0.5               # a share that deserves a second look
MOST_NAME = 60           # characters of a name out of a log or a config


def frame(title: str, head: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page. `head` and the sections' texts are HTML; titles are not."""
    ids = {title: title.lower().replace(" ", "-") for title, _ in sections}
    links = " ".join(f'<a href="#{ids[name]}">{name}</a>' for name in ids)
    body = "\n".join(f'<section id="{ids[name]}"><h2>{name}</h2>\n{text}\n</section>' for name, text in sections)
    css = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n'
            f"<title>{h(title)} - funnelrank</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
            f"<header><h1>{h(title)}</h1>\n{head}\n<nav>{links}</nav></header>\n"
            f"<main>\n{body}\n</main>\n</body>\n</html>\n")


def figures(pictures: Sequence[Picture], otherwise: str, lead: str = "") -> str:
    if not pictures:
        return nothing(otherwise)
    drawn = []
    for p in pictures:
        note = f"<p>{h(p.note)}</p>" if p.note else ""
        svg = p.svg.replace("<svg ", f'<svg aria-label="{name_of(p.title)}" ', 1)
        drawn.append(f"<figure><figcaption><b>{name_of(p.title)}</b>{note}</figcaption>{svg}</figure>")
    return (f'<p class="note">{lead}</p>' if lead else "") + f'<div class="pictures">{"".join(drawn)}</div>'


# ---- cells

def table_of(head: Sequence[str], body: Iterable[Sequence[str]], texts: int, last_is_text: bool = False,
             meanings: Mapping[str, str] | None = None) -> str:
    """A table of cells that are already HTML; `head` is not. The first `texts` columns are texts, others numbers.
    `meanings`: of titles, shown when they are pointed at."""
    def kind(i: int) -> str:
        return ' class="t"' if i < texts or (last_is_text and i == len(head) - 1) else ""

    def title(name: str) -> str:
        text = h(name).replace("_", "_<wbr>")
        return f'<abbr title="{h(meanings[name])}">{text}</abbr>' if meanings and name in meanings else text

    titles = "".join(f"<th{kind(i)}>{title(name)}</th>" for i, name in enumerate(head))
    lines = "\n".join("<tr>" + "".join(f"<td{kind(i)}>{cell}</td>" for i, cell in enumerate(line)) + "</tr>"
                      for line in body)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'


class Number(NamedTuple):
    """One number of a row of metrics.json; a row has its place there as `at`."""

    row: Mapping[str, Any]
    field: str = "value"
    how: str = "figure"

    def html(self) -> str:
        at, text = self.row.get("at"), FORMATS[self.how](self.row, self.field)
        return text if at is None else f'<span data-of="{at}:{self.field}:{self.how}">{text}</span>'

    def plain(self) -> str:
        return unescape(FORMATS[self.how](self.row, self.field))


Sentence = Sequence["str | Number"]


def html_of(said: Sentence) -> str:
    return "".join(part.html() if isinstance(part, Number) else h(part) for part in said)


def plain_of(said: Sentence) -> str:
    return "".join(part.plain() if isinstance(part, Number) else printable(part) for part in said)


def elsewhere(text: str, file: str) -> str:
    """A number, or some, out of another file of the run."""
    return f'<span data-from="{file}">{text}</span>'


def h(value: Any) -> str:
    return escape(printable(value))


def name_of(value: Any) -> str:
    return escape(shortened(value, MOST_NAME))


def nothing(sentence: str) -> str:
    return f'<p class="note">{sentence}</p>'


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def figure(value: Any) -> str:
    if not is_number(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def integer(value: Any) -> str | None:
    return f"{value:,.0f}" if is_number(value) else "-" if value is None else h(value)


def part_of(part: Any, whole: Any) -> str:
    return f"{integer(part)} <small>of {integer(whole)}</small>" if is_number(part) and is_number(whole) else "-"


def share(part: Any, whole: Any, digits: int = 1) -> str:
    if not is_number(part) or not is_number(whole) or not whole:
        return "-"
    percent, least = 100 * part / whole, 10**-digits
    return f"&lt;{least} %" if 0 < percent < least / 2 else f"{percent:.{digits}f} %"


def counted(part: Any, whole: Any) -> str:
    if not is_number(part):
        return "" if part is None else h(part)
    if not part or not is_number(whole) or not whole:
        return integer(part)
    text = f"{integer(part)} <small>{share(part, whole)}</small>"
    return f"<mark>{text}</mark>" if part > MANY * whole else text


def duration(seconds: Any) -> str | None:
    if not is_number(seconds):
        return None
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def per_row(value: Any, rows: Any) -> str:
    return f"{value / rows:,.1f} per row" if is_number(value) and is_number(rows) and rows else "-"


def _half(row: Mapping[str, Any]) -> Any:
    return (row["high"] - row["low"]) / 2 if is_number(row.get("low")) and is_number(row.get("high")) else None


FORMATS: dict[str, Callable[[Mapping[str, Any], str], str]] = {
    "figure": lambda row, field: figure(row.get(field)),
    "short": lambda row, field: f"{row[field]:.2f}" if is_number(row.get(field)) else "-",
    "integer": lambda row, field: integer(row.get(field)),
    "percent": lambda row, field: share(row.get(field), 1),
    "rate": lambda row, field: share(row.get(field), 1, digits=2),
    "hundredths": lambda row, field: f"{100 * row[field]:.0f}" if is_number(row.get(field)) else "-",
    "half": lambda row, field: figure(_half(row)),
    "of": lambda row, field: share(row.get(field), row.get("of")),
    "of_rows": lambda row, field: share(row.get("rows"), row.get("of")),
    "per_row": lambda row, field: per_row(row.get(field), row.get("rows")),
}
