"""A disk that can be told to fail: real SQLite files behind connections that raise on demand."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from node.persistence import schema


class Crash(BaseException):
    """The process ends here: nothing of ours may handle it."""


class FailingDisk:
    """`connect` takes the place of `schema.connect`; while a rule fits, statements raise.

    A rule is a part of the file's name and a prefix of the statement. With `after` the statement is
    carried out first, as when an fsync fails behind a write: what the file holds is then unknown
    to the program.
    """

    def __init__(self) -> None:
        self._rules: list[tuple[str, str, bool, BaseException]] = []
        self.refused = 0
        self.opened: list[str] = []

    def fail(
        self,
        name: str,
        statement: str = "BEGIN",
        after: bool = False,
        error: BaseException | None = None,
    ) -> None:
        self._rules.append((name, statement, after, error or io_error()))

    def repair(self) -> None:
        self._rules.clear()

    def connect(self, path: Path) -> sqlite3.Connection:
        self.opened.append(path.name)
        connection = sqlite3.connect(path, isolation_level=None, factory=_Connection)
        connection.disk, connection.name = self, path.name
        return schema.configured(connection)

    def error_for(self, name: str, statement: str, after: bool) -> BaseException | None:
        for part, prefix, is_after, error in self._rules:
            if part in name and statement.startswith(prefix) and after == is_after:
                self.refused += 1
                return error
        return None


def io_error() -> sqlite3.OperationalError:
    """What SQLite raises where the system refuses to read, write or sync."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    return error


def corruption() -> sqlite3.DatabaseError:
    """What SQLite raises where a page of the file makes no sense."""
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


class _Connection(sqlite3.Connection):
    disk: FailingDisk
    name: str

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        error = self.disk.error_for(self.name, sql, after=False)
        if error is not None:
            raise error
        cursor = super().execute(sql, parameters)
        error = self.disk.error_for(self.name, sql, after=True)
        if error is not None:
            raise error
        return cursor
