"""What a record says: a table for the terminal, one for the README, pictures.

All figures come from the times in the record. A ratio is how many times as fast as the yardstick
a row is, and compares rows of one group.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engine.errors import ToolError
from ..files import write_text, writing

Record = Mapping[str, Any]
MARKERS = '<!-- benchmarks -->', '<!-- /benchmarks -->'
_NEEDED = ('task', 'title', 'yardstick', 'rows', 'machine', 'command', 'date')


def summarise(record: Record) -> list[dict[str, Any]]:
    """The rows of a record with what their times come to.

    Returns:
        Rows without ``times`` and with ``median`` (seconds), ``ratio`` (the yardstick's median in
        the row's ``group`` / the row's), ``spread`` (between the quartiles / the median) and
        ``share`` (operations a second / the rate of a matrix product of that type); None where
        there is nothing to compute it from.
    """
    medians = {
        row.get('group', ''): statistics.median(row['times'])
        for row in record['rows']
        if row['name'] == record['yardstick']
    }
    rates = record['machine'].get('matmul_gflops') or {}
    rows = []
    for row in record['rows']:
        row = dict(row)
        times = row.pop('times')
        median = statistics.median(times)
        yardstick, spread = medians.get(row.get('group', '')), None
        if len(times) > 1:
            low, _, high = statistics.quantiles(times, n=4, method='inclusive')
            spread = (high - low) / median
        rate, gmacs = rates.get(row.get('dtype', 'float32')), row.get('gmacs')
        rows.append(
            dict(
                row,
                group=row.get('group', ''),
                median=median,
                ratio=None if yardstick is None else yardstick / median,
                spread=spread,
                share=2 * gmacs * 1e9 / median / (rate * 1e9) if rate and gmacs else None,
            )
        )
    return rows


def _cell(form: str) -> Callable[[Any], str]:
    return lambda value: '' if value is None else format(value, form)


# key, head of the terminal's table, head of the README's (None: not there), its text
_COLUMNS: tuple[tuple[str, str, str | None, Callable[[Any], str]], ...] = (
    ('group', 'at', 'at', str),
    ('name', 'name', '', str),
    ('median', 'ms', None, lambda value: f'{value * 1e3:.2f}'),
    ('ratio', 'ratio', 'times as fast', _cell('.2f')),
    ('spread', 'spread', 'spread', _cell('.1%')),
    ('share', 'share', 'share of a matrix product', _cell('.0%')),
    ('gmacs', 'GMAC', None, _cell('.2f')),
    ('memory_mib', 'MiB', 'memory (MiB)', _cell('.0f')),
    ('difference', 'difference', None, _cell('.1e')),
    ('note', 'note', 'note', lambda value: value or ''),
)


def _table(record: Record, heads: int) -> list[list[str]]:
    """Head and rows; columns without any value are left out. ``heads`` is 1, or 2 for README."""
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
    rates = record['machine'].get('matmul_gflops') or {}
    if rates:
        listed = ', '.join(f'{kind} {rate:.0f}' for kind, rate in rates.items())
        lines.append(f'matrix product (1e9 operations/s): {listed}')
    lines.append(f'ratio: times as fast as {record["yardstick"]}, by medians; spread: of quartiles')
    lines += ['', *_aligned(_table(record, 1))]
    profile = record.get('profile')
    if profile:
        parts = list(dict.fromkeys(part for values in profile.values() for part in values))
        texts = [['ms of each part', *profile]]
        for part in parts:
            found = (values.get(part) for values in profile.values())
            texts.append([part, *('' if x is None else f'{x * 1e3:.2f}' for x in found)])
        lines += ['', *_aligned(texts)]
    notes = [*_bound(record), *(record.get('notes') or ())]
    lines += ['', *notes] if notes else []
    return '\n'.join(lines)


def _bound(record: Record) -> list[str]:
    """A line about what could be reached on the machine, where one group has a share of it."""
    yardstick = record['yardstick']
    shares = [row['share'] for row in summarise(record) if row['name'] == yardstick]
    if len(shares) != 1 or not shares[0]:
        return []
    return [
        "Direct convolutions at a matrix product's rate throughout, and nothing else, would be "
        f'{1 / shares[0]:.2f} times as fast as {yardstick}.'
    ]


def _machine(record: Record) -> str:
    machine = record['machine']
    where = machine.get('gpu') or machine.get('cpu', '')
    flags = ' '.join(machine.get('flags') or ())
    versions = machine.get('versions') or {}
    told = [where, flags, f'{machine.get("threads")} threads']
    told += [f'{name} {versions[name]}' for name in ('torch', 'mmdet', 'timm') if name in versions]
    return ', '.join(filter(None, told))


def _aligned(texts: list[list[str]]) -> list[str]:
    """Columns of figures to the right, those of words to the left."""
    columns = []
    for column in zip(*texts, strict=True):
        width = max(map(len, column))
        figures = all(text[:1].isdigit() or not text for text in column[1:])
        columns.append([text.rjust(width) if figures else text.ljust(width) for text in column])
    return ['  '.join(cells).rstrip() for cells in zip(*columns, strict=True)]


def readme_table(records: Sequence[Record]) -> str:
    """Markdown of records: for each what it is, where it was measured, and a table of ratios."""
    parts = []
    for record in records:
        head, *rows = _table(record, 2)
        yardstick = record['yardstick']
        head = [f'{text} as {yardstick}' if text == 'times as fast' else text for text in head]
        ruler = ['---' if text in ('', 'at', 'note') else '---:' for text in head]
        lines = [f'| {" | ".join(cells)} |' for cells in (head, ruler, *rows)]
        told = f'**{record["title"]}** ({_machine(record)}; {record["date"]})'
        if len(record.get('profile') or ()) > 1:
            types = {row['name']: row.get('dtype') for row in record['rows']}
            alike = [name for name in record['profile'] if types[name] == types[yardstick]]
            lines += ['', *_profile_table(record['profile'], yardstick, alike[-1])]
        lines += [line for bound in _bound(record) for line in ('', bound)]
        parts.append('\n'.join([told, '', *lines, '', f'`{record["command"]}`']))
    return '\n\n'.join(parts)


def _profile_table(
    profile: Mapping[str, Mapping[str, float]], yardstick: str, name: str
) -> list[str]:
    """Markdown: the shares of the yardstick's and of another one's time, and the ratio."""
    base, last = profile[yardstick], profile[name]
    heads = ['part', f'share of {yardstick}', f'share of {name}', f'times as fast as {yardstick}']
    lines = [heads, ['---', *['---:'] * (len(heads) - 1)]]
    for part in {**base, **last}:
        taken = base.get(part, 0), last.get(part, 0)
        shares = [t / sum(of.values()) for t, of in zip(taken, (base, last), strict=True)]
        ratio = f'{taken[0] / taken[1]:.2f}' if all(taken) else ''
        lines.append([part, *(f'{share:.0%}' for share in shares), ratio])
    return [f'| {" | ".join(cells)} |' for cells in lines]


def read_record(path: Path) -> dict[str, Any]:
    """A record from its file.

    Raises:
        ToolError: The file cannot be read or holds something else.
    """
    try:
        record = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ToolError(f'{path} cannot be read: {error}') from error
    missing = [key for key in _NEEDED if not isinstance(record, dict) or key not in record]
    if missing:
        raise ToolError(f'{path} is no record of a benchmark: it has no {missing[0]!r}')
    rows = record['rows']
    good = isinstance(rows, list) and rows and isinstance(record['machine'], dict)
    if not good or not all(isinstance(row, dict) and row.get('times') for row in rows):
        raise ToolError(f'{path} is no record of a benchmark: it has rows without times')
    if record['yardstick'] not in [row.get('name') for row in rows]:
        raise ToolError(f'{path} has no row of its yardstick, {record["yardstick"]}')
    return record


def write_readme(path: Path, table: str) -> None:
    """Puts a table between the markers of a file.

    Raises:
        ToolError: The file cannot be read, or does not have each marker once, in order.
    """
    try:
        with Path(path).open(encoding='utf-8', newline='') as file:  # ends of lines as they are
            text = file.read()
    except (OSError, ValueError) as error:
        raise ToolError(f'{path} cannot be read: {error}') from error
    start, end = MARKERS
    if [text.count(marker) for marker in MARKERS] != [1, 1] or text.index(start) > text.index(end):
        raise ToolError(f'{path} must have {start} and after it {end}, each once')
    newline = '\r\n' if '\r\n' in text else '\n'
    before, after = text.partition(start)[0], text.partition(end)[2]
    table = f'{start}\n{table}\n{end}'.replace('\n', newline)
    write_text(path, before + table + after)


def draw(record: Record, path: Path) -> None:
    """The picture of a record: lines where its rows are of several sizes or batches, else bars."""
    several = len({_place(row) for row in record['rows']} - {None}) > 1
    if several:
        draw_sweep([record], path)
    else:
        draw_bars(record, path)


def _place(row: Mapping[str, Any]) -> tuple | None:
    return (*row['size'], row['batch']) if 'size' in row else None


def draw_bars(record: Record, path: Path) -> None:
    """Draws how many times as fast as the yardstick each row is, with the quartiles' spread."""
    rows = summarise(record)
    figure, save = _figure(8, 1.4 + 0.35 * len(rows))
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
    save(path)


def draw_sweep(records: Sequence[Record], path: Path) -> None:
    """Draws time over the size of the image and over the batch, both axes logarithmic.

    Args:
        records: Of the task ``sweep``; rows have ``size`` and ``batch``.
        path: The picture.

    Raises:
        ToolError: No row has a size.
    """
    rows = [row for record in records for row in summarise(record) if 'size' in row]
    if not rows:
        raise ToolError('a picture over sizes needs rows of several sizes, as sweep gives them')
    names = list(dict.fromkeys(row['name'] for row in rows))
    figure, save = _figure(12, 4.5)
    figure.suptitle(records[0]['title'])
    panels = (
        ('megapixels of an image', _megapixels, _batch, 'batch '),
        ('images in a batch', _batch, lambda row: 'x'.join(map(str, row['size'])), ''),
    )
    for axes, (label, place, line_of, what) in zip(figure.subplots(1, 2), panels, strict=True):
        kinds = list(dict.fromkeys(map(line_of, rows)))
        for name in names:
            for kind in kinds:
                points = [
                    (place(row), row['median'] * 1e3)
                    for row in rows
                    if row['name'] == name and line_of(row) == kind
                ]
                axes.plot(
                    *zip(*sorted(points), strict=True),
                    label=f'{name}, {what}{kind}',
                    color=f'C{names.index(name) % 10}',
                    linestyle=('-', '--', ':', '-.')[kinds.index(kind) % 4],
                    marker='.',
                )
        axes.set(xscale='log', yscale='log', xlabel=label, ylabel='ms')
        places = sorted({place(row) for row in rows})
        axes.set_xticks(places, [f'{value:.2g}' for value in places])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3, which='both')
        axes.legend(fontsize=7)
    save(path)


def _megapixels(row: Mapping[str, Any]) -> float:
    return row['size'][0] * row['size'][1] / 1e6


def _batch(row: Mapping[str, Any]) -> int:
    return row['batch']


def _figure(width: float, height: float) -> tuple[Any, Callable[[Path], None]]:
    """A figure, and what saves it whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)

    def save(path: Path) -> None:
        with writing(path) as partial:
            figure.savefig(partial, dpi=120, format='png')

    return figure, save
