"""Inserting many rows by few statements, which decides whether the event loop stalls.

`executemany` gives the interpreter lock away and takes it back for each row, and beside a busy loop
each taking costs up to the switch interval (5 ms): measured, 2,400 rows a second. One statement
with many rows works through all of them without the lock: 200,000 rows a second beside the same
busy loop. What remains under the lock is binding, about 0.05 ms for `_ROWS_A_STATEMENT[0]` rows.
For a value of type `bytes` Python's sqlite3 looks for an adapter each time, which costs as much as
all else of a row together; for a `bytearray` it does not, so bytes are bound as such.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

# Rows of one statement: the largest that fits is used. Each is a multiple of the next.
_ROWS_A_STATEMENT = (128, 32, 8, 1)
# Binding copies bytes under the interpreter lock; 512 KiB take about 0.1 ms.
_BYTES_MAX = 512 * 1024


def insert(
    connection: sqlite3.Connection,
    table: str,
    rows: Iterable[Sequence[Any]],
    how: str = "INSERT",
) -> None:
    """Insert rows into `table`, or into some of its columns: `table (one, other)`."""
    rows = iter(rows)
    while taken := list(islice(rows, _ROWS_A_STATEMENT[0])):
        for part in _parts(taken):
            row = f"({', '.join('?' * len(part[0]))})"
            # One of a few texts, so that SQLite's compiled statements are found again.
            sql = f"{how} INTO {table} VALUES {', '.join([row] * len(part))}"
            connection.execute(sql, list(map(_bound, chain.from_iterable(part))))


def _parts(rows: list[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    at = 0
    while at < len(rows):
        parts = (rows[at : at + size] for size in _ROWS_A_STATEMENT if at + size <= len(rows))
        part = next(one for one in parts if len(one) == 1 or _bytes_of(one) <= _BYTES_MAX)
        yield part
        at += len(part)


def _bytes_of(rows: Iterable[Sequence[Any]]) -> int:
    return sum(len(value) for value in chain.from_iterable(rows) if type(value) is bytes)


def _bound(value: Any) -> Any:
    return bytearray(value) if type(value) is bytes else value
