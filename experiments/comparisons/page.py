"""The comparison of runs as an HTML page that needs no other file."""

import textwrap
from html import escape
from typing import Any

from experiments.comparisons.lines import TITLES, Line
from experiments.reports.figures import (
    as_svg,
    can_draw,
    draw_range,
    encodable,
    label_epochs,
    label_logarithmic,
    legend_outside,
    line_styles,
    panels,
    wrapped,
)

TITLE = "<title>Comparison of runs</title>"
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{title}
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; }}
body {{ padding: 0 1rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; }}
th, td {{ padding: 0.3rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
svg {{ max-width: 100%; height: auto; cursor: zoom-in; }}
svg path {{ vector-effect: non-scaling-stroke; }}
</style>
</head>
<body>
<h1>Comparison of runs</h1>
<p>Perplexity. Training is that of the last epoch, regularizers on; validation and test are the
reported figures of a finished run (one stream, all N - 1 predictions); in brackets, the last
estimate of an unfinished one, or with --keep=best its best. Of several models, which differ in
their seed, the mean and the range; of averages, the mean and the standard deviation over sets of
models; of an ablation, validation is the estimate by which the rate was chosen.</p>
<div class="wide">{table}</div>
{curves}
{settings}
{runs}
</body>
</html>
"""
_RUNS = "<details><summary>Every run on its own</summary>\n<div class='wide'>{}</div></details>"
_ZOOM = """\
<p>A click zooms in on the curves, a click with Shift out, and a double click shows all.</p>
<script>
for (const svg of document.querySelectorAll("svg")) {
  const [left, top, width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  let scale = 1;
  const show = (event, wanted) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(
      svg.getScreenCTM().inverse());
    scale = Math.max(1, wanted);
    const view = scale == 1 ? [left, top, width, height]
      : [at.x - width / scale / 2, at.y - height / scale / 2, width / scale, height / scale];
    svg.setAttribute("viewBox", view.join(" "));
    for (const mark of svg.querySelectorAll("g[clip-path] > use")) {  // which keep their size
      const [x, y] = [mark.x.baseVal.value, mark.y.baseVal.value];
      mark.setAttribute("transform",
        `translate(${x} ${y}) scale(${1 / scale}) translate(${-x} ${-y})`);
    }
  };
  svg.addEventListener("click", (event) => show(event, event.shiftKey ? scale / 2 : scale * 2));
  svg.addEventListener("dblclick", (event) => show(event, 1));
}
</script>"""


def html_page(lines: list[Line], runs: list[Line]) -> str:
    """The page: the table, the curves if they can be drawn, and the settings.

    `runs` are those that a line has several of.
    """
    drawn = can_draw() and any(line.validation for line in lines)
    return _PAGE.format(
        title=TITLE,
        table=_table_of(lines),
        curves=as_svg(comparison_figure, lines) + _ZOOM if drawn else "",
        settings=_settings({line.name: line.settings for line in lines if line.settings}),
        runs=_RUNS.format(_table_of(runs)) if runs else "",
    )


def _table_of(lines: list[Line]) -> str:
    rows = [[line.cells.get(title, "") for title in TITLES] for line in lines]
    return _html_table([list(TITLES), *rows])


def _settings(settings: dict[str, dict[str, Any]]) -> str:
    """A column per line, and a row per setting: those that differ, or of one line all.

    A line whose record lacks a setting says nothing against the others.
    """
    names = dict.fromkeys(name for flat in settings.values() for name in flat)
    values = {name: {str(x[name]) for x in settings.values() if name in x} for name in names}
    shown = [name for name in names if len(values[name]) > 1 or len(settings) == 1]
    rows = [[name, *(str(flat.get(name, "")) for flat in settings.values())] for name in shown]
    title = "Settings" if len(settings) == 1 else "Settings that differ"
    table = _html_table([["setting", *settings], *rows])
    return f'<h2>{title}</h2>\n<div class="wide">{table}</div>' if rows else ""


def _html_table(rows: list[list[str]]) -> str:
    header, *body = [
        "".join(f"<{tag}>{escape(encodable(cell))}</{tag}>" for cell in row)
        for row, tag in zip(rows, ["th", *["td"] * (len(rows) - 1)], strict=True)
    ]
    lines = "\n".join(f"<tr>{row}</tr>" for row in body)
    return f"<table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"


def comparison_figure(lines: list[Line]) -> Any:
    """Validation and training perplexity over epochs: mean, and range over seeds."""
    lines = [line for line in lines if line.validation]
    labels = [wrapped(line.name) for line in lines]
    height = 0.19 * sum(len(label.splitlines()) for label in labels)
    figure, sides = panels(13, max(4.6, height), columns=2, sharey=True)
    styles = line_styles(len(lines), graded=all(line.graded for line in lines))
    for line, label, style in zip(lines, labels, styles, strict=True):
        # matplotlib leaves out a label that starts with _.
        style["label"] = textwrap.indent(label, " ")
        for axes, curves in zip(sides, (line.validation, line.training), strict=True):
            if curves:
                draw_range(axes, range(1, len(curves[0]) + 1), curves, **style)
    for axes, title in zip(
        sides, ("validation (estimate)", "training, any regularizers on"), strict=True
    ):
        axes.set_title(title)
        label_epochs(axes)
        label_logarithmic(axes)
    sides[0].set_ylabel("perplexity")
    legend_outside(figure, handlelength=3)
    return figure
