"""What a record says: a table for the terminal, a page in markdown, pictures.

All figures come from the times in the record. A ratio is how many times as fast as the yardstick
a row is, and compares rows of one group.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from res2net_mm.engine.errors import ToolError

Record = Mapping[str, Any]
_NEEDED = ('task', 'title', 'yardstick', 'rows', 'machine', 'command', 'date')
PAGE = """# Benchmarks

    python tools/benchmark.py tables {records} --out {out}

makes this page from its records. A record is what the command below its table writes.

In a table the work and the threads are the same for all rows, and so is the precision where nothing
else is named. Contenders take turns within one run, and what they compute is compared before
anything is timed. Ratios are of medians. *Kept memory* means a process that keeps freed memory, as
our tools do on a CPU. Shares of a matrix product count the multiplications of direct convolutions.
Profiles show where the time of short calls goes; to compare times, use the table above them.
"""


def summarise(record: Record) -> list[dict[str, Any]]:
    """The rows of a record with figures computed from their times.

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
        row = dict(group='', **row) if 'group' not in row else dict(row)
        times = row.pop('times')
        median, spread = statistics.median(times), None
        if len(times) > 1:
            low, _, high = statistics.quantiles(times, n=4, method='inclusive')
            spread = (high - low) / median
        yardstick = medians.get(row['group'])
        rate, gmacs = rates.get(row.get('dtype', 'float32')), row.get('gmacs')
        row.update(median=median, ratio=yardstick and yardstick / median, spread=spread)
        rows.append(dict(row, share=2 * gmacs / median / rate if rate and gmacs else None))
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
    ('share', 'share', 'share of a matrix product', _cell('.0%')),
    ('gmacs', 'GMAC', None, _cell('.2f')),
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
    rates = record['machine'].get('matmul_gflops') or {}
    if rates:
        listed = ', '.join(f'{kind} {rate:.0f}' for kind, rate in rates.items())
        lines.append(f'matrix product (1e9 operations/s): {listed}')
    lines.append(f'ratio: times as fast as {record["yardstick"]}, by medians; spread: of quartiles')
    lines += ['', *_aligned(_table(record, 1))]
    profile = record.get('profile')
    if profile:
        texts = [['ms of each part', *profile]]
        for part in dict.fromkeys(part for values in profile.values() for part in values):
            found = (values.get(part) for values in profile.values())
            texts.append([part, *('' if x is None else f'{x * 1e3:.2f}' for x in found)])
        lines += ['', *_aligned(texts)]
    notes = [*_bound(record), *(record.get('notes') or ())]
    return '\n'.join([*lines, '', *notes] if notes else lines)


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
    versions = machine.get('versions') or {}
    where = [machine.get('gpu') or machine.get('cpu', ''), ' '.join(machine.get('flags') or ())]
    where.append(f'{machine.get("threads")} threads')
    where += [f'{name} {versions[name]}' for name in ('torch', 'mmdet', 'timm') if name in versions]
    return ', '.join(filter(None, where))


def _aligned(texts: list[list[str]]) -> list[str]:
    """Columns of figures to the right, those of words to the left."""
    columns = []
    for column in zip(*texts, strict=True):
        width = max(map(len, column))
        figures = all(text[:1].isdigit() or not text for text in column[1:])
        columns.append([text.rjust(width) if figures else text.ljust(width) for text in column])
    return ['  '.join(cells).rstrip() for cells in zip(*columns, strict=True)]


def _markdown_rows(rows: Sequence[Sequence[str]], left: Sequence[str]) -> list[str]:
    """A table; columns with these heads are aligned to the left, figures to the right."""
    ruler = ['---' if text in left else '---:' for text in rows[0]]
    return [f'| {" | ".join(cells)} |' for cells in (rows[0], ruler, *rows[1:])]


def markdown(record: Record) -> str:
    """A record in markdown: what it is, where it was measured, ratios and never a time."""
    yardstick, profile = record['yardstick'], record.get('profile') or {}
    head, *rows = _table(record, 2)
    head = [f'{text} as {yardstick}' if text == 'times as fast' else text for text in head]
    lines = [f'**{record["title"]}** ({_machine(record)}; {record["date"]})', '']
    lines += _markdown_rows([head, *rows], ('', 'at', 'note'))
    if len(profile) > 1:
        types = {row['name']: row.get('dtype') for row in record['rows']}
        last = [name for name in profile if types[name] == types[yardstick]][-1]
        both = profile[yardstick], profile[last]
        heads = (f'share of {yardstick}', f'share of {last}', f'times as fast as {yardstick}')
        rows = [['part', *heads]]
        for part in {**both[0], **both[1]}:
            taken = [values.get(part, 0) for values in both]
            shares = [t / sum(of.values()) for t, of in zip(taken, both, strict=True)]
            ratio = f'{taken[0] / taken[1]:.2f}' if all(taken) else ''
            rows.append([part, *(f'{share:.0%}' for share in shares), ratio])
        lines += ['', *_markdown_rows(rows, ('part',))]
    lines += [line for bound in _bound(record) for line in ('', bound)]
    return '\n'.join([*lines, '', f'`{record["command"]}`'])


def write_page(out: Path, records: Mapping[Path, Record]) -> None:
    """Writes a page of records by file, with the pictures that have the names of the files."""
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
        raise ToolError(f'{path} is no record of a benchmark: it has no {missing[0]!r}')
    rows = record['rows']
    good = isinstance(rows, list) and rows and isinstance(record['machine'], dict)
    if not good or not all(isinstance(row, dict) and row.get('times') for row in rows):
        raise ToolError(f'{path} is no record of a benchmark: it has rows without times')
    if record['yardstick'] not in [row.get('name') for row in rows]:
        raise ToolError(f'{path} has no row of its yardstick, {record["yardstick"]}')
    return record


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write instead of ``path``, which then is replaced by it, or stays as it was."""
    path = path.resolve()  # a link stays one
    partial = path.with_name(f'.{path.name}.partial')
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding='utf-8')


def draw(record: Record, path: Path) -> None:
    """The picture of a record: lines where its rows are of several sizes or batches, else bars."""
    rows = summarise(record)
    several = len({(*row['size'], row['batch']) for row in rows if 'size' in row}) > 1
    figure = lines_of(record, rows) if several else bars_of(record, rows)
    with whole(path) as partial:
        figure.savefig(partial, dpi=120, format='png')


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
    """Time over the size of the image and over the batch, all axes logarithmic."""
    from matplotlib.figure import Figure

    def batch(row: Mapping[str, Any]) -> str:
        return f'batch {row["batch"]}'

    def size(row: Mapping[str, Any]) -> str:
        return 'x'.join(map(str, row['size']))

    names = [*dict.fromkeys(row['name'] for row in rows)]
    figure = Figure(figsize=(12, 4.5), layout='constrained')
    figure.suptitle(record['title'])
    panels = (
        ('megapixels of an image', lambda row: math.prod(row['size']) / 1e6, batch),
        ('images in a batch', lambda row: row['batch'], size),
    )
    for axes, (label, place, line_of) in zip(figure.subplots(1, 2), panels, strict=True):
        kinds = [*dict.fromkeys(map(line_of, rows))]
        lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for row in rows:
            line = lines.setdefault((row['name'], line_of(row)), [])
            line.append((place(row), row['median'] * 1e3))
        for (name, kind), line in lines.items():
            style = ('-', '--', ':', '-.')[kinds.index(kind) % 4]
            color = f'C{names.index(name) % 10}'
            points = zip(*sorted(line), strict=True)
            axes.plot(*points, style, color=color, marker='.', label=f'{name}, {kind}')
        axes.set(xscale='log', yscale='log', xlabel=label, ylabel='ms')
        places = sorted({place(row) for row in rows})
        axes.set_xticks(places, [f'{value:.2g}' for value in places])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3, which='both')
        axes.legend(fontsize=7)
    return figure
