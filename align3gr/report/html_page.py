"""A page of HTML in one file. Whatever comes from data goes through `text`, `table` or a chart, which escape it."""

import html
from collections.abc import Iterable, Sequence

# Nothing may be fetched and nothing may run, whatever a title may hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 76rem; margin: 0 auto;
  padding: 1.5rem; }
h1 { margin: 0 0 .2em; } h2 { margin: 2.2em 0 .4em; border-bottom: 2px solid #332288; padding-bottom: .15em; }
h3 { margin: 1.6em 0 .3em; } nav { display: flex; flex-wrap: wrap; gap: 0 1em; } a { color: #332288; }
table { border-collapse: collapse; font-size: .86rem; display: block; overflow-x: auto; margin: .8em 0; }
th, td { padding: .22em .7em; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums; }
th { vertical-align: bottom; color: #444; } td:first-child { min-width: 11rem; }
.words td:first-child { min-width: 0; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
.words td { vertical-align: top; }
svg { display: block; width: 100%; max-width: 680px; height: auto; font-size: 11.5px; } svg text { fill: #333; }
.grid { stroke: #e4e4e4; fill: none; } .line { fill: none; stroke-width: 1.8; stroke-linejoin: round;
  stroke-linecap: round; } .dots { fill: none; stroke-width: 4; stroke-linecap: round; }
.legend { font-size: .82rem; max-width: 680px; margin: .3em 0 1em; } .legend span { margin-right: 1.1em; display:
  inline-block; } .legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; }
.missing { background: #fff4d6; padding: .5em .8em; border-left: 4px solid #ddaa33; } .note { color: #555; }
.hit { background: #d9f0d9; font-weight: 600; } .seen { color: #888; }
code, pre { font-size: .82rem; } pre { overflow-x: auto; background: #f6f6f6; padding: .6em; }
ol, ul { margin: .2em 0; padding-left: 1.6em; } .user { display: grid; gap: 1.2em;
  grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
"""


def text(value: object) -> str:
    """Anything as the text of an element or an attribute.

    >>> text('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(str(value), quote=True)


def paragraph(words: object, kind: str = "") -> str:
    """A paragraph of plain words; `kind` is `note` or `missing`."""
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def table(head: Sequence[object], rows: Iterable[Sequence[object]], words: bool = False) -> str:
    """A table; all cells are plain text. The first column stands left, the others right, or all left for `words`."""
    first = "".join(f"<th>{text(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    kind = ' class="words"' if words else ""
    return f"<table{kind}><thead><tr>{first}</tr></thead><tbody>{lines}</tbody></table>"


def from_markdown(lines: str) -> str:
    """A Markdown table, as `align3gr.evaluation` writes them, as HTML.

    >>> from_markdown("| | R@5 |\\n|---|---:|\\n| SFT | 0.1 |\\n").count("<td>")
    2
    """
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines.strip().splitlines()]
    return table(cells[0], cells[2:])


def folded(summary: object, content: str) -> str:
    """Preformatted plain text behind a line that opens it."""
    return f"<details><summary>{text(summary)}</summary><pre>{text(content)}</pre></details>"


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        title: plain text.
        lead: HTML below the title.
        sections: heading (plain text) and HTML of each.
    """
    links = "".join(f'<a href="#part-{number}">{text(name)}</a>' for number, (name, _) in enumerate(sections))
    body = "".join(
        f'<section><h2 id="part-{number}">{text(name)}</h2>\n{content}</section>\n'
        for number, (name, content) in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><h1>{text(title)}</h1>\n{lead}\n<nav>{links}</nav>\n{body}</body></html>\n"
    )
