"""Charts, tables and pictures for a page in one HTML file, which loads nothing from elsewhere.

Every text is escaped: names of classes and files come from data.
"""

from __future__ import annotations

import base64
import colorsys
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ..files import write_text

_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDTH, _HEIGHT = 44, 412, 8, 200, 420, 232
_SERIES = 10  # colours of the style sheet
_MOST_POINTS = 400  # of a line
_MOST_SIDE = 480  # of a picture, px

Points = Sequence[tuple[float, float]]


class Shape(NamedTuple):
    """A box on a picture.

    Attributes:
        box: x, y, width, height in pixels of the picture.
        kind: A class of the style sheet: ``found``, ``lost`` or ``false``; else a CSS colour.
        text: What is written at it.
        told: What the pointer shows.
        outlines: Polygons to draw in place of the box, each (N, 2).
    """

    box: Sequence[float]
    kind: str
    text: str = ''
    told: str = ''
    outlines: Sequence[np.ndarray] = ()


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
    """A part of the page under a heading; parts that are empty are left out."""
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
    series: Mapping[str, Points],
    x: str,
    limits: tuple[float, float] | None = None,
    top: float | None = None,
) -> str:
    """A chart of lines that shows its values at the pointer; '' without a finite point.

    Args:
        title: Above it.
        series: Points by name; the first line is drawn bold.
        x: Name of the x axis.
        limits: Of the x axis; None: those of the points.
        top: Of the y axis, which starts at 0; None: the largest value.
    """
    kept = {n: sorted(p for p in ps if all(map(math.isfinite, p))) for n, ps in series.items()}
    kept = {name: _thinned(points) for name, points in kept.items() if points}
    if not kept:
        return ''
    xs, ys = zip(*(point for points in kept.values() for point in points), strict=True)
    low, high = limits or (min(xs), max(xs))
    floor, top = min(0, *ys), top or max(ys)
    high, top = (high if high > low else low + 1), (top if top > floor else floor + 1)

    def place(px: float, py: float) -> tuple[float, float]:
        across, up = (px - low) / (high - low), (py - floor) / (top - floor)
        x, y = _LEFT + across * (_RIGHT - _LEFT), _BOTTOM - up * (_BOTTOM - _TOP)
        return round(x, 1), round(y, 1)

    marks, legend = [], []
    for value in _ticks(floor, top):
        y = place(low, value)[1]
        marks.append(f'<path class="rule" d="M{_LEFT} {y}H{_RIGHT}"/>')
        marks.append(f'<text x="{_LEFT - 4}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in _ticks(low, high):
        at = f'x="{place(value, floor)[0]}" y="{_BOTTOM + 14}"'
        marks.append(f'<text {at} text-anchor="middle">{value:g}</text>')
    for i, (name, points) in enumerate(kept.items()):
        style = f'class="c{i % _SERIES}{" bold" * (not i)}"'
        places = [place(*point) for point in points]
        path = ' '.join(f'{px},{py}' for px, py in places)
        marks.append(f'<polyline {style} points="{path}"/>')
        if len(places) < 25:  # a line through one point cannot be seen
            marks += [f'<circle {style} cx="{px}" cy="{py}" r="2.5"/>' for px, py in places]
        legend.append(f'<li><i {style}></i>{escape(name)} <output></output></li>')
    data = dict(x=x, limits=[low, high], series=[[*zip(*p, strict=True)] for p in kept.values()])
    at = f'x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 2}"'
    axis = f'<path class="at" d=""/><text class="x" {at} text-anchor="middle">{escape(x)}</text>'
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}"'
    inner = f'<svg {box}>{"".join(marks)}{axis}</svg><ul>{"".join(legend)}</ul>'
    return frame(title, inner, f'data-chart="{escape(json.dumps(data))}"')


def bars(title: str, rows: Mapping[str, tuple[float, str]]) -> str:
    """A chart of bars: value, 0 to 1, and text by name; other values have none."""
    cells = ''
    for name, (value, text) in rows.items():
        bar = f'<td class="bar"><i style="width:{value if 0 <= value <= 1 else 0:.1%}"></i></td>'
        cells += f'<tr><th>{escape(name)}</th>{bar}<td>{escape(text)}</td></tr>'
    return frame(title, f'<table class="bars">{cells}</table>') if rows else ''


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; the first cell of a row is its name."""
    body = ''
    for name, *cells in rows:
        shown = ''.join(f'<td>{escape(_short(cell))}</td>' for cell in cells)
        body += f'<tr><th>{escape(str(name))}</th>{shown}</tr>'
    return frame(title, _table(head, body))


def matrix(title: str, names: Sequence[str], counts: np.ndarray, totals: np.ndarray) -> str:
    """A square matrix; a cell's shade is its share of the row's total. Columns go by number."""
    shares, body = counts / np.maximum(totals, 1)[:, None], ''
    for i, name in enumerate(names):
        body += f'<tr><th>{i + 1} {escape(name)}</th>'
        for other, count, share in zip(names, counts[i], shares[i], strict=True):
            told = escape(f'{name} as {other}: {count:,.0f} ({share:.1%})')
            text = f'{share:.0%}' if count else ''
            body += f'<td style="--share:{share:.3f}" title="{told}">{text}</td>'
        body += '</tr>'
    head = ['', *map(str, range(1, len(names) + 1))]
    return frame(title, _table(head, body, 'matrix'), 'class="wide"')


def pair(title: str, pixels: np.ndarray, views: Mapping[str, Sequence[Shape] | np.ndarray]) -> str:
    """The same picture several times, each with boxes or with a label map on it.

    Args:
        title: Above them.
        pixels: (H, W, 3), RGB.
        views: By name, the shapes, or label maps (H, W) in which 255 and more is clear.
    """
    shown = ''.join(
        f'<div>{picture(pixels, view)}<small>{escape(name)}</small></div>'
        for name, view in views.items()
    )
    return frame(title, f'<div class="pair">{shown}</div>', 'class="wide"')


def frame(title: str, inner: str, attributes: str = '') -> str:
    """A figure under its title."""
    return f'<figure {attributes}><figcaption>{escape(title)}</figcaption>{inner}</figure>\n'


def picture(pixels: np.ndarray, over: Sequence[Shape] | np.ndarray = (), extra: str = '') -> str:
    """A picture with boxes, or with a label map as for :func:`pair`; ``extra`` is drawn last."""
    height, width = pixels.shape[:2]
    size = max(height, width) / 32
    parts = [_image(Image.fromarray(pixels), width, height, 'JPEG')]
    if isinstance(over, np.ndarray):
        ids = np.minimum(over, 255)
        colours = np.array([[*_rgb(k), 150] for k in range(255)] + [[0] * 4], np.uint8)
        parts.append(_image(Image.fromarray(colours[ids]), width, height, 'PNG'))
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
        text = escape(shape.text)
        at = f'x="{max(left, 0)}" y="{max(top - size / 5, size):.1f}"'
        told = f'<title>{escape(shape.told or shape.text)}</title>'
        parts.append(f'<g {style}>{told}{drawn}<text {at}>{text}</text></g>')
    box = f'viewBox="0 0 {width} {height}" font-size="{size:.1f}"'
    return f'<svg class="picture" {box}>{"".join(parts)}{extra}</svg>'


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
    """The CSS colour of a class; neighbours differ."""
    return f'#{bytes(_rgb(k)).hex()}'


def _rgb(k: int) -> tuple[int, ...]:
    hue, light = k * 0.618034 % 1, (0.5, 0.62, 0.4)[k // 8 % 3]
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, light, 0.8))


def _image(image: Image.Image, width: int, height: int, form: str) -> str:
    scale = min(1, _MOST_SIDE / max(image.size))
    if scale < 1:
        how = Image.Resampling.NEAREST if form == 'PNG' else Image.Resampling.BOX
        image = image.resize([max(1, round(side * scale)) for side in image.size], how)
    stream = io.BytesIO()
    image.save(stream, form, quality=80)
    data = base64.b64encode(stream.getvalue()).decode()
    source = f'data:image/{form.lower()};base64,{data}'
    return f'<image width="{width}" height="{height}" href="{source}" preserveAspectRatio="none"/>'


def _thinned(points: Points) -> Points:
    """Some of the points, the last among them."""
    step = -(-len(points) // _MOST_POINTS)
    return [*points[:-1:step], points[-1]]


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / most))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (high - low) / s <= most + 0.01)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _table(head: Sequence[str], body: str, kind: str = '') -> str:
    top = ''.join(f'<th>{escape(cell)}</th>' for cell in head)
    inner = f'<thead><tr>{top}</tr></thead><tbody>{body}</tbody>'
    return f'<div class="scroll"><table class="{kind}">{inner}</table></div>'


def _short(cell: Any) -> str:
    if isinstance(cell, float):
        return f'{cell:.3f}' if math.isfinite(cell) else '-'
    return f'{cell:,}' if isinstance(cell, int) else str(cell)


_STYLE = """
:root{color-scheme:light dark;--page:#fff;--text:#1c2128;--dim:#59636e;--rule:#d5dae0;
--card:#f5f7f9;--shade:31 111 235;--found:#1a9850;--lost:#e08700;--false:#d1242f}
.c0{--c:#1f6feb}.c1{--c:#d1570a}.c2{--c:#1a8f4a}.c3{--c:#a3369b}.c4{--c:#b88a00}
.c5{--c:#0a8ea0}.c6{--c:#c2255c}.c7{--c:#6f5bd6}.c8{--c:#7a6248}.c9{--c:#68737f}
@media(prefers-color-scheme:dark){:root{--page:#0f1318;--text:#e3e8ee;--dim:#97a1ad;--rule:#323a44;
--card:#181e25;--shade:76 141 255}.c0{--c:#5c9dff}.c1{--c:#ff9650}.c2{--c:#4cc47c}.c3{--c:#de7fd6}
.c4{--c:#e3b733}.c5{--c:#43c3d4}.c6{--c:#ff7ba3}.c7{--c:#a99bff}.c8{--c:#bfa382}.c9{--c:#a4afbb}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,sans-serif;overflow-wrap:break-word}
main{max-width:1180px;margin:auto;padding:12px 16px 60px}
h1{font-size:1.5em;margin:.4em 0;overflow-wrap:anywhere}h2{font-size:1.15em;margin:1.8em 0 .5em;
border-bottom:1px solid var(--rule)}p{max-width:46em;margin:.4em 0;overflow-wrap:anywhere}
.grid{display:grid;gap:12px;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr))}
figure{margin:0;padding:10px;background:var(--card);border-radius:8px;min-width:0}
.wide{margin-top:12px}figcaption{font-weight:600;margin-bottom:4px;overflow-wrap:anywhere}
figure svg{width:100%;height:auto;display:block;touch-action:pan-y}
figure svg text{fill:var(--dim);font-size:11px}.rule{stroke:var(--rule)}.at{stroke:var(--dim)}
polyline{fill:none;stroke:var(--c);stroke-width:1.4}polyline.bold{stroke-width:2.4}
circle{fill:var(--c)}ul{list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;margin:4px 0 0;
padding:0;font-size:13px}li{overflow-wrap:anywhere}li i{display:inline-block;width:10px;height:10px;
border-radius:2px;background:var(--c);margin-right:5px}output{font-variant-numeric:tabular-nums;
font-weight:600}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:500;padding:2px 8px 2px 0;min-width:4em}
td{text-align:right;padding:2px 8px}thead th{color:var(--dim);text-align:right;min-width:0;
white-space:nowrap}
thead th:first-child{text-align:left}tbody tr+tr>*{border-top:1px solid var(--rule)}
.scroll{overflow-x:auto}.bars{width:100%;table-layout:fixed}.bars .bar{width:26%;padding:0}
.bars th{width:32%}
.bar i{display:block;height:12px;border-radius:2px;background:rgb(var(--shade))}
.matrix td{background:rgb(var(--shade)/calc(var(--share)*.75));
min-width:38px;text-align:center}
.matrix th{white-space:nowrap}.matrix thead th{text-align:center}pre{overflow:auto;
background:var(--card);padding:10px;border-radius:8px;font-size:12.5px}
.pair{display:grid;gap:8px;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr))}
small{color:var(--dim)}.picture{max-height:480px}.picture g{--mark:var(--found)}
.picture .lost{--mark:var(--lost)}.picture .false{--mark:var(--false)}
.picture rect,.picture polygon{fill:none;stroke:var(--mark);stroke-width:2;
vector-effect:non-scaling-stroke}.picture polygon{fill:var(--mark);fill-opacity:.35}
.picture .padding{fill:url(#padding);stroke:none}
figure .picture text{font-size:inherit;fill:#fff;stroke:var(--mark);paint-order:stroke;
stroke-width:.15em;stroke-linejoin:round;font-weight:600}summary{cursor:pointer}
"""

_SCRIPT = f"""
for (const figure of document.querySelectorAll('figure[data-chart]')) {{
  const chart = JSON.parse(figure.dataset.chart), [low, high] = chart.limits;
  const [svg, axis, rule] = ['svg', '.x', '.at'].map(name => figure.querySelector(name));
  const outputs = figure.querySelectorAll('output');
  svg.onpointermove = svg.onpointerdown = event => {{
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width * {_WIDTH} - {_LEFT}) / {_RIGHT - _LEFT};
    const far = value => Math.abs(value - low - at * (high - low));
    const near = chart.series.map(([xs]) => xs.reduce((k, x, i) => far(x) < far(xs[k]) ? i : k, 0));
    const xs = near.map((k, i) => chart.series[i][0][k]);
    const x = xs.reduce((best, other) => far(other) < far(best) ? other : best);
    near.forEach((k, i) => {{
      const value = Number(chart.series[i][1][k].toPrecision(4));
      const where = xs[i] === x ? "" : ` (at ${{Number(xs[i].toPrecision(6))}})`;
      outputs[i].textContent = `${{value}}${{where}}`;
    }});
    const px = {_LEFT} + (x - low) / (high - low) * {_RIGHT - _LEFT};
    rule.setAttribute("d", `M${{px}} {_TOP}V{_BOTTOM}`);
    axis.textContent = `${{chart.x}} ${{Number(x.toPrecision(6))}}`;
  }};
}}
"""
