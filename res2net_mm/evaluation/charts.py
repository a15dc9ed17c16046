"""Charts, tables and pictures for a page in one HTML file, which loads nothing from elsewhere.

Every text is escaped: names of classes and files come from data.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..colours import class_colour, class_colours
from ..files import write_text

_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDTH, _HEIGHT = 44, 412, 8, 200, 420, 232  # px of a chart
_COLOURS = [*TABLEAU_COLORS.values()]  # of lines
_MOST_POINTS = 400  # of a line
_MOST_SIDE = 480  # of a picture, px
_MOST_TEXTS = 12  # on a picture: more would hide it


class Shape(NamedTuple):
    """A box on a picture."""

    box: Sequence[float]  # x, y, width, height in px
    kind: str  # found, lost or false of the style sheet; else a CSS colour
    text: str = ''  # drawn at it, unless there are many
    told: str = ''  # shown at the pointer
    outlines: Sequence[np.ndarray] = ()  # polygons (N, 2) to draw in place of the box


def write_page(out: Path, title: str, parts: Iterable[str]) -> Path:
    """Writes a page, whole or not at all."""
    write_text(
        out,
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f'<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n'
        f'<main>\n<h1>{escape(title)}</h1>\n{"".join(parts)}</main>\n'
        f'<script>{_SCRIPT}</script>\n</html>\n',
    )
    return out


def section(title: str, *parts: str) -> str:
    """A part of the page under a heading."""
    return f'<section><h2>{escape(title)}</h2>{"".join(parts)}</section>\n'


def note(text: str) -> str:
    """A paragraph."""
    return f'<p>{escape(text)}</p>'


def grid(*figures: str) -> str:
    """Figures beside each other where there is room."""
    return f'<div class="grid">{"".join(figures)}</div>'


def listing(text: str, title: str = '') -> str:
    """Text as it is; with a title, hidden until that is clicked."""
    block = f'<pre>{escape(text)}</pre>'
    return f'<details><summary>{escape(title)}</summary>{block}</details>' if title else block


def lines(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    limits: tuple[float, float] | None = None,
    top: float | None = None,
) -> str:
    """A chart of lines that shows its values at the pointer; '' without a finite point.

    The line of the first ``series`` is bold. ``x`` is the name of the x axis, which has these
    ``limits``, or else those of the points. The y axis is from 0, or less, to ``top`` or the most.
    """
    kept = {n: sorted(p for p in ps if all(map(math.isfinite, p))) for n, ps in series.items()}
    kept = {name: _thinned(np.array(points, float)) for name, points in kept.items() if points}
    if not kept:
        return ''
    xs, ys = np.concatenate([*kept.values()]).T
    low, high = limits or (xs.min(), xs.max())
    floor, top = min(0, ys.min()), top or ys.max()
    high, top = (high if high > low else low + 1), (top if top > floor else floor + 1)
    scale = (_RIGHT - _LEFT) / (high - low), (_TOP - _BOTTOM) / (top - floor)
    marks, legend = [], []
    for value in _ticks(floor, top):
        y = _BOTTOM + (value - floor) * scale[1]
        marks.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        marks.append(f'<text x="{_LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in _ticks(low, high):
        at = f'x="{_LEFT + (value - low) * scale[0]:.1f}" y="{_BOTTOM + 14}"'
        marks.append(f'<text {at} text-anchor="middle">{value:g}</text>')
    for i, (name, points) in enumerate(kept.items()):
        style = f'style="--c:{_COLOURS[i % len(_COLOURS)]}"{" class=bold" * (not i)}'
        places = ((points - (low, floor)) * scale + (_LEFT, _BOTTOM)).round(1).tolist()
        path = ' '.join(f'{px},{py}' for px, py in places)
        marks.append(f'<g {style}><polyline points="{path}"/>')
        if len(places) < 25:  # a line through one point cannot be seen
            marks += [f'<circle cx="{px}" cy="{py}" r="2.5"/>' for px, py in places]
        marks.append('</g>')
        legend.append(f'<li><i {style}></i>{escape(name)} <output></output></li>')
    data = dict(x=x, limits=[low, high], series=[points.T.tolist() for points in kept.values()])
    at = f'x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 2}"'
    axis = f'<path class="at" d=""/><text class="x" {at} text-anchor="middle">{escape(x)}</text>'
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}"'
    inner = f'<svg {box}>{"".join(marks)}{axis}</svg><ul>{"".join(legend)}</ul>'
    return frame(title, inner, f'data-chart="{escape(json.dumps(data))}"')


def bars(title: str, rows: Mapping[str, tuple[float, str]]) -> str:
    """A chart of bars: value, 0 to 1, and text by name; other values have none."""
    cells = []
    for name, (value, text) in rows.items():
        bar = f'<td class="bar"><i style="width:{value if 0 <= value <= 1 else 0:.1%}"></i></td>'
        cells.append((name, f'{bar}<td>{escape(text)}</td>'))
    return frame(title, _table((), cells, 'bars')) if rows else ''


def table(title: str, head: Sequence[str], rows: Collection[Sequence[Any]]) -> str:
    """A table; the first cell of a row is its name."""
    cells = [''.join(f'<td>{escape(_short(cell))}</td>' for cell in row[1:]) for row in rows]
    return frame(title, _table(head, zip((row[0] for row in rows), cells, strict=True)))


def matrix(title: str, names: Sequence[str], counts: np.ndarray, totals: np.ndarray) -> str:
    """A square matrix; a cell's shade is its share of the row's total. Columns go by number."""
    shares, rows = counts / np.maximum(totals, 1)[:, None], []
    for i, name in enumerate(names):
        cells = ''
        for other, count, share in zip(names, counts[i], shares[i], strict=True):
            told = escape(f'{name} as {other}: {count:,.0f} ({share:.1%})')
            text = f'{share:.0%}' if count else ''
            cells += f'<td style="--share:{share:.3f}" title="{told}">{text}</td>'
        rows.append((f'{i + 1} {name}', cells))
    head = ['', *map(str, range(1, len(names) + 1))]
    return frame(title, _table(head, rows, 'matrix'))


def pair(title: str, pixels: np.ndarray, views: Mapping[str, Sequence[Shape] | np.ndarray]) -> str:
    """The same :func:`picture` several times, each by its name with something else on it."""
    shown = ''.join(
        f'<div>{picture(pixels, view)}<small>{escape(name)}</small></div>'
        for name, view in views.items()
    )
    return frame(title, f'<div class="pair">{shown}</div>')


def frame(title: str, inner: str, attributes: str = '') -> str:
    """A figure under its title."""
    return f'<figure {attributes}><figcaption>{escape(title)}</figcaption>{inner}</figure>\n'


def picture(pixels: np.ndarray, over: Sequence[Shape] | np.ndarray = ()) -> str:
    """A picture (H, W, 3), RGB, under shapes or a label map (H, W), clear from 255 on."""
    height, width = pixels.shape[:2]
    size = max(height, width) / 32  # of letters
    parts = [_image(pixels, height, width, 'JPEG')]
    if isinstance(over, np.ndarray):
        colours = np.array([[*rgb, 150] for rgb in class_colours(255)] + [[0] * 4], np.uint8)
        parts.append(_image(colours[np.minimum(over, 255)], height, width, 'PNG'))
        over = ()
    for shape in over:
        left, top, across, down = (round(float(v), 1) for v in shape.box)
        named = shape.kind.isalpha()
        style = f'class="{shape.kind}"' if named else f'style="--mark:{escape(shape.kind)}"'
        drawn = f'<rect x="{left}" y="{top}" width="{across}" height="{down}"/>'
        if len(shape.outlines):
            drawn = ''.join(
                f'<polygon points="{" ".join(f"{x:g},{y:g}" for x, y in points)}"/>'
                for points in shape.outlines
            )
        at = f'x="{max(left, 0)}" y="{max(top - size / 5, size):.1f}"'
        told = f'<title>{escape(shape.told or shape.text)}</title>'
        text = f'<text {at}>{escape(shape.text)}</text>' if len(over) <= _MOST_TEXTS else ''
        parts.append(f'<g {style}>{told}{drawn}{text}</g>')
    box = f'viewBox="0 0 {width} {height}" font-size="{size:.1f}"'
    return f'<svg class="picture" {box}>{"".join(parts)}</svg>'


def key(names: Sequence[str]) -> str:
    """The colours of classes."""
    items = (f'<li><i style="--c:{colour(k)}"></i>{escape(n)}</li>' for k, n in enumerate(names))
    return f'<ul>{"".join(items)}</ul>'


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The outer edges of a mask (H, W) as polygons, each (N, 2)."""
    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
    return [points[:, 0] for points in found if len(points) > 2]


def colour(k: int) -> str:
    """The CSS colour of a class."""
    return f'#{bytes(class_colour(k)).hex()}'


def _image(pixels: np.ndarray, height: int, width: int, form: str) -> str:
    image, stream = Image.fromarray(pixels), io.BytesIO()
    how = Image.Resampling.NEAREST if form == 'PNG' else Image.Resampling.BOX
    image.thumbnail((_MOST_SIDE, _MOST_SIDE), how)
    image.save(stream, form, quality=80)
    source = f'data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}'
    return f'<image width="{width}" height="{height}" href="{source}" preserveAspectRatio="none"/>'


def _thinned(points: np.ndarray) -> np.ndarray:
    """Some of the points (N, 2), the last among them."""
    step = -(-len(points) // _MOST_POINTS)
    return np.concatenate([points[:-1:step], points[-1:]])


def _ticks(low: float, high: float) -> list[float]:
    ticks, slack = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high), (high - low) * 1e-9
    return [tick for tick in ticks if low - slack <= tick <= high + slack]


def _table(head: Sequence[str], rows: Iterable[tuple[str, str]], kind: str = '') -> str:
    top = ''.join(f'<th>{escape(cell)}</th>' for cell in head)
    body = ''.join(f'<tr><th>{escape(str(name))}</th>{cells}</tr>' for name, cells in rows)
    inner = f'<thead><tr>{top}</tr></thead><tbody>{body}</tbody>'
    return f'<div class="scroll"><table class="{kind}">{inner}</table></div>'


def _short(cell: Any) -> str:
    if isinstance(cell, float):
        return f'{cell:.3f}' if math.isfinite(cell) else '-'
    return f'{cell:,}' if isinstance(cell, int) else str(cell)


# colours of the page follow the browser's light or dark mode
_STYLE = """
:root{color-scheme:light dark;font:15px/1.5 system-ui,sans-serif;--rule:rgb(128 128 128/.35);
--dim:rgb(128 128 128);--shade:60 130 246;--found:#1a9850;--lost:#e08700;--false:#d1242f}
main{max-width:1180px;margin:auto;padding:0 8px 60px}h1,p,li,figcaption{overflow-wrap:anywhere}
h2{font-size:1.2em;border-bottom:1px solid var(--rule)}p{max-width:46em}small{color:var(--dim)}
.grid,.pair{display:grid;gap:0 12px;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),
1fr))}.pair{grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr))}
figure{margin:12px 0 0;padding:10px;background:rgb(128 128 128/.1);border-radius:8px;min-width:0}
figcaption{font-weight:600}svg{width:100%;height:auto;display:block;touch-action:pan-y}
svg text{fill:var(--dim);font-size:11px}.rule{stroke:var(--rule)}.at{stroke:var(--dim)}
polyline{fill:none;stroke:var(--c);stroke-width:1.4}.bold polyline{stroke-width:2.4}
circle{fill:var(--c)}ul{list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;margin:4px 0;
padding:0;font-size:13px}details{overflow:hidden}
li i{display:inline-block;width:10px;height:10px;margin-right:5px;
background:var(--c)}output{font-weight:600}.scroll,pre{overflow:auto;font-size:13px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}tbody tr+tr{border-top:1px solid
var(--rule)}th{text-align:left;font-weight:500}thead th{color:var(--dim);white-space:nowrap}
td,thead th+th{text-align:right;padding:2px 8px}.bars{width:100%;table-layout:fixed}
.bar i{display:block;height:12px;background:rgb(var(--shade))}.matrix th{white-space:nowrap}
.matrix td{min-width:38px;text-align:center;background:rgb(var(--shade)/calc(var(--share)*.75))}
.picture{max-height:480px}.picture g{--mark:var(--found)}.picture .lost{--mark:var(--lost)}
.picture .false{--mark:var(--false)}rect,polygon{fill:none;stroke:var(--mark);stroke-width:2;
vector-effect:non-scaling-stroke}polygon{fill:var(--mark);fill-opacity:.35}
.picture text{font-size:inherit;fill:#fff;stroke:var(--mark);paint-order:stroke;stroke-width:.15em;
stroke-linejoin:round;font-weight:600}
"""

_SCRIPT = f"""
for (const figure of document.querySelectorAll('figure[data-chart]')) {{
  const chart = JSON.parse(figure.dataset.chart), [low, high] = chart.limits;
  const [svg, axis, rule] = ['svg', '.x', '.at'].map(name => figure.querySelector(name));
  const outputs = figure.querySelectorAll('output'), short = (v, n) => Number(v.toPrecision(n));
  svg.onpointermove = svg.onpointerdown = event => {{
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width * {_WIDTH} - {_LEFT}) / {_RIGHT - _LEFT};
    const far = x => Math.abs(x - low - at * (high - low));
    const nearest = xs => xs.reduce((best, x) => far(x) < far(best) ? x : best);
    const xs = chart.series.map(series => nearest(series[0])), x = nearest(xs);
    chart.series.forEach(([places, values], i) => {{
      const where = xs[i] === x ? '' : ` (at ${{short(xs[i], 6)}})`;
      outputs[i].textContent = short(values[places.indexOf(xs[i])], 4) + where;
    }});
    const px = {_LEFT} + (x - low) / (high - low) * {_RIGHT - _LEFT};
    rule.setAttribute('d', `M${{px}} {_TOP}V{_BOTTOM}`);
    axis.textContent = `${{chart.x}} ${{short(x, 6)}}`;
  }};
}}
"""
