"""Tables on a console that may be too narrow for them: a figure is never cut.

A table whose cells all fit is shown as it is, with headings of several lines where that helps. One
that does not fit is shown row by row instead, each figure on a line of its own behind its heading.

Cells and titles are markup: what comes from elsewhere has to be escaped, or an address such as
`[fd00::1]:8101` loses what stands in its brackets.
"""

from __future__ import annotations

from collections.abc import Collection

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

_BORDER = 3  # of a column: its left line and a blank on either side


def whole(table: Table, console: Console, prose: Collection[str] = ()) -> RenderableType:
    """The table, or its rows below one another where the console is too narrow for it.

    Columns whose headings are in `prose` hold sentences, which may be broken between words.
    """
    least = [_least(column, _heading(column) in prose) for column in table.columns]
    if sum(least) + _BORDER * len(least) + 1 > console.width:
        return _rows(table)
    most = [max(map(cell_len, (_heading(each), *map(_text, each.cells)))) for each in table.columns]
    tight = sum(most) + _BORDER * len(most) + 1 > console.width
    for column, width in zip(table.columns, least, strict=True):
        column.min_width = width
        if tight and _heading(column) not in prose:
            column.width = width  # rich would shrink all in proportion, and cut what is then left
    return table


def _least(column: Column, is_prose: bool) -> int:
    """How wide a column must be so that nothing of it is cut."""
    cells = list(map(_text, column.cells))
    words = [word for cell in cells for word in cell.split()] if is_prose else cells
    return max(map(cell_len, (*words, *_heading(column).split())), default=0)


def _rows(table: Table) -> RenderableType:
    headings = list(map(_heading, table.columns))
    width = max(map(cell_len, headings))
    cells = [[_text(cell) for cell in column.cells] for column in table.columns]
    blocks = [
        "\n".join(f"  {name:<{width}}  {cell}" for name, cell in zip(headings, row, strict=True))
        for row in zip(*cells, strict=True)
    ]
    title = [_text(table.title)] if table.title else []
    lines = "\n\n".join(("\n".join((*title, *blocks[:1])), *blocks[1:]))
    return Text(lines, no_wrap=True, overflow="ignore")


def _heading(column: Column) -> str:
    return _text(column.header)


def _text(cell: RenderableType) -> str:
    """What is to be read in a cell, without its colours."""
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
