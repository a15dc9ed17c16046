"""Presents a record: a table for the terminal, a page in markdown, pictures.

All figures come from the times in the record. A ratio says how many times as fast as the yardstick
a row is, and compares rows of one group.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from res2net_mm.columns import aligned
from res2net_mm.engine.errors import ToolError
from res2net_mm.files import write_text, writing

Record = Mapping[str, Any]
_NEEDED = ('task', 'title', 'yardstick', 'rows', 'machine', 'command', 'date')
PAGE = """# Benchmarks

    python tools/benchmark.py tables {records} --out {out}

makes this page from its records. The command below each table writes its record.

All rows of a table do the same work with the same number of threads, and in the same precision
unless a row's name or note says otherwise. In `end to end` of `deploy`, files have a fixed size,
while PyTorch keeps the proportions of an image, which may leave it fewer pixels. The contenders
take turns in one run. Before anything is timed, the outputs of all rows that have a difference are
compared; those of int8 and bfloat16 and of the backbones of `deploy` are not, and among the latter
are other networks, for scale. Ratios are of medians. *Kept memory* means a process that keeps freed
memory, as our tools do on a CPU. Profiles show where the time of short calls goes; to compare
times, use the table above them.
"""


def summarise(record: Record) -> list[dict[str, Any]]:
    """The rows of a record with figures computed from their times.

    Returns:
        Rows without ``times`` and with ``median`` (seconds), ``ratio`` (the yardstick's median in
        the row's ``group`` / the row's) and ``spread`` (between the quartiles / the median); None
        if there is nothing to compute it from.
    """
    medians = {
        row.get('group', ''): statistics.median(row['times'])
        for row in record['rows']
        if row['name'] == record['yardstick']
    }
    rows = []
    for row in record['rows']:
        row = {'group': '', **row}
        times = row.pop('times')
        median, spread = statistics.median(times), None
        if len(times) > 1:
            low, _, high = statistics.quantiles(times, n=4, method='inclusive')
            spread = (high - low) / median
        yardstick = medians.get(row['group'])
        ratio = yardstick and yardstick / median
        rows.append({**row, 'median': median, 'ratio': ratio, 'spread': spread})
    return rows


def _cell(form: str) -> Callable[[Any], str]:
    return lambda value: '' if value is None else format(value, form)


# key, head on the terminal, head in markdown (None: not there), its text
_COLUMNS: tuple[tuple[str, str, str | None, Callable[[Any], str]], ...] = (
    ('group', 'at', 'at', str),
    ('name', 'name', '', str),
    ('median', 'ms', None, lambda value: f'{value * 1e3:.2f}'),
    ('ratio', 'ratio', 'times as fast', _cell('.2f')),
    ('spread', 'spread', 'spread', _cell('.1%')),
    ('memory_mib', 'MiB', 'memory (MiB)', _cell('.0f')),
    ('difference', 'difference', None, _cell('.1e')),
    ('note', 'note', 'note', lambda value: value or ''),
)


def _table(record: Record, heads: int) -> list[list[str]]:
    """Head and rows, without empty columns. ``heads`` is 1 for the terminal, 2 for markdown."""
    rows = summarise(record)
    columns = []
    for column in _COLUMNS:
        texts = [column[3](row.get(column[0])) for row in rows]
        if column[heads] is not None and any(texts):
            columns.append([column[heads], *texts])
    return [list(cells) for cells in zip(*columns, strict=True)]


def format_record(record: Record) -> str:
    """A record for the terminal: what and where, the table, the profile, notes."""
    lines = [record['title'], _machine(record)]
    lines.append(f'ratio: times as fast as {record["yardstick"]}, by medians; spread: of quartiles')
    lines += ['', *aligned(_table(record, 1))]
    profile = record.get('profile')
    if profile:
        texts = [['ms of each part', *profile]]
        for part in dict.fromkeys(part for values in profile.values() for part in values):
            found = (values.get(part) for values in profile.values())
            texts.append([part, *('' if x is None else f'{x * 1e3:.2f}' for x in found)])
        lines += ['', *aligned(texts)]
    notes = record.get('notes') or ()
    return '\n'.join([*lines, '', *notes] if notes else lines)


def _machine(record: Record) -> str:
    machine = record['machine']
    versions = machine.get('versions') or {}
    where = [machine.get('gpu') or machine.get('cpu', ''), ' '.join(machine.get('flags') or ())]
    where.append(f'{machine.get("threads")} threads')
    where += [f'{name} {versions[name]}' for name in ('torch', 'mmdet', 'timm') if name in versions]
    return ', '.join(filter(None, where))


def _markdown_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table with words aligned to the left and figures to the right."""
    ruler = ['---' if head in ('', 'at', 'note', 'part') else '---:' for head in rows[0]]
    return [f'| {" | ".join(cells)} |' for cells in (rows[0], ruler, *rows[1:])]


def markdown(record: Record) -> str:
    """A record in markdown: what it is, where it was measured, ratios and never a time."""
    yardstick, profile = record['yardstick'], record.get('profile') or {}
    head, *rows = _table(record, 2)
    head = [f'{text} as {yardstick}' if text == 'times as fast' else text for text in head]
    lines = [f'**{record["title"]}** ({_machine(record)}; {record["date"]})', '']
    lines += _markdown_rows([head, *rows])
    if len(profile) > 1:
        types = {row['name']: row.get('dtype') for row in record['rows']}
        last = [name for name in profile if types[name] == types[yardstick]][-1]
        one, other = profile[yardstick], profile[last]
        rows = [
            ['part', *(f'share of {n}' for n in (yardstick, last)), f'times as fast as {yardstick}']
        ]
        for part in {**one, **other}:
            shares = [of.get(part, 0) / sum(of.values()) for of in (one, other)]
            ratio = f'{one[part] / other[part]:.2f}' if all(shares) else ''
            rows.append([part, *(f'{share:.0%}' for share in shares), ratio])
        lines += ['', *_markdown_rows(rows)]
    return '\n'.join([*lines, '', f'`{record["command"]}`'])


def write_page(out: Path, records: Mapping[Path, Record]) -> None:
    """Writes a page of records by file, each with the picture that has the name of its file."""
    files = dict.fromkeys(f'{path.parent.as_posix()}/*.json' for path in records)
    parts = [PAGE.format(records=' '.join(files), out=out.as_posix())]
    for path, record in records.items():
        parts.append(f'{markdown(record)}\n')
        picture = path.with_suffix('.png')
        if picture.exists():
            link = Path(os.path.relpath(picture, out.parent)).as_posix()
            parts.append(f'![{record["title"]}]({link})\n')
    write_text(out, '\n'.join(parts))


def read_record(path: Path) -> dict[str, Any]:
    """A record from its file.

    Raises:
        ToolError: The file cannot be read or holds something else.
    """
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ToolError(f'{path} cannot be read: {error}') from error
    missing = [key for key in _NEEDED if not isinstance(record, dict) or key not in record]
    if missing:
        raise ToolError(f'{path} is not a record of a benchmark: it has no {missing[0]!r}')
    if not record['rows'] or not all(row.get('times') for row in record['rows']):
        raise ToolError(f'{path} is not a record of a benchmark: it has rows without times')
    if record['yardstick'] not in [row.get('name') for row in record['rows']]:
        raise ToolError(f'{path} has no row of its yardstick, {record["yardstick"]}')
    return record


def draw(record: Record, path: Path) -> None:
    """The picture of a record: lines if its rows have several sizes or batches, else bars."""
    rows = summarise(record)
    several = len({(*row['size'], row['batch']) for row in rows if 'size' in row}) > 1
    figure = lines_of(record, rows) if several else bars_of(record, rows)
    with writing(path, durable=False) as partial:
        figure.savefig(partial, dpi=120)


def bars_of(record: Record, rows: Sequence[Mapping[str, Any]]) -> Any:
    """How many times as fast as the yardstick each row is, with the spread of the quartiles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.35 * len(rows)), layout='constrained')
    axes = figure.subplots()
    ratios = [row['ratio'] or 0 for row in rows]
    errors = [r * (row['spread'] or 0) / 2 for r, row in zip(ratios, rows, strict=True)]
    colors = ['tab:orange' if row['name'].startswith('ours') else 'tab:gray' for row in rows]
    bars = axes.barh(range(len(rows)), ratios, xerr=errors, color=colors)
    axes.bar_label(bars, [f'{ratio:.2f}' for ratio in ratios], padding=4)
    labels = [': '.join(filter(None, (row['group'], row['name']))) for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.axvline(1, color='black', linewidth=0.8)
    axes.margins(x=0.15)
    axes.set(title=record['title'], xlabel=f'times as fast as {record["yardstick"]}')
    return figure


def lines_of(record: Record, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Time over the size of the image, a line for each contender and batch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.subplots()
    lines: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows:
        point = math.prod(row['size']) / 1e6, row['median'] * 1e3
        lines.setdefault((row['name'], row['batch']), []).append(point)
    names, batches = ([*dict.fromkeys(part)] for part in zip(*lines, strict=True))
    for (name, batch), points in lines.items():
        style = ('-', '--', ':', '-.')[batches.index(batch) % 4] + f'C{names.index(name) % 10}'
        label = f'{name}, batch {batch}'
        axes.plot(*zip(*sorted(points), strict=True), style, marker='.', label=label)
    axes.set(title=record['title'], xscale='log', yscale='log')
    axes.set(xlabel='megapixels of an image', ylabel='ms')
    places = sorted({place for points in lines.values() for place, _ in points})
    axes.set_xticks(places, [f'{value:.2g}' for value in places])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3, which='both')
    axes.legend(fontsize=7)
    return figure
