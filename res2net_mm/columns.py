"""Tables as lines of text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: columns with figures below their head to the right, others left."""
    columns = []
    for head, *cells in zip(*rows, strict=True):
        width = max(map(len, (head, *cells)))
        figures = any(cell[:1].isdigit() for cell in cells)
        columns.append([f'{cell:{">" if figures else "<"}{width}}' for cell in (head, *cells)])
    return ['  '.join(cells).rstrip() for cells in zip(*columns, strict=True)]


def side_by_side(lines: Sequence[str], rows: int = 20, width: int = 100) -> list[str]:
    """The lines of a table, in columns within ``width`` characters if there are over ``rows``.

    Each column repeats the first line, the header.
    """
    header, *rest = lines
    if len(rest) <= rows:
        return list(lines)
    longest = max(map(len, lines))
    columns = max(1, (width + 3) // (longest + 3))
    height = -(-len(rest) // columns)
    parts = [[header, *rest[i : i + height]] for i in range(0, len(rest), height)]
    return [
        '   '.join(f'{part[i]:{longest}}' for part in parts if i < len(part)).rstrip()
        for i in range(height + 1)
    ]
