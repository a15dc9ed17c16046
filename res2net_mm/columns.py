"""Long tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def side_by_side(lines: Sequence[str], rows: int = 20, width: int = 100) -> list[str]:
    """The lines of a table, in several columns if there are many.

    Args:
        lines: The header, which each column gets, and the rows.
        rows: Tables of no more rows stay as they are.
        width: Characters that all columns share.
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
