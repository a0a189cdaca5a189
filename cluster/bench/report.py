"""What a measurement came to and how it is shown: always with its spread, never one number."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from cluster.tables import whole

QUIET_CORES = 0.15
"""What others may take before the figures are in doubt."""


@dataclass
class Series:
    """The repetitions of one figure, in the order in which they were taken."""

    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.values.append(value)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        """Show `median [min..max]`."""
        return f"{_number(self.median)} [{_number(min(self.values))}..{_number(max(self.values))}]"


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ratio(numerator: Series, denominator: Series) -> float:
    """Return the ratio of the medians."""
    return numerator.median / denominator.median


class Report:
    """Prints a measurement's settings first, its table when it is done, and what it shows."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def heading(self, title: str, settings: str) -> None:
        self.console.print(f"\n[bold]{title}[/bold]")
        self.console.print(settings, highlight=False, style="dim")

    def progress(self, line: str) -> None:
        self.console.print(f"  {line}", highlight=False, style="dim")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        self.console.print(whole(table, self.console))

    def verdict(self, what: str, value: str, target: str, met: bool) -> None:
        """Say what came out beside what was asked for."""
        colour = "green" if met else "red"
        self.console.print(
            f"{what}: [bold {colour}]{value}[/] (asked for: {target})", highlight=False
        )

    def neighbours(self, cores: float) -> None:
        """Say whether the machine was ours while we measured."""
        style = "dim" if cores < QUIET_CORES else "bold yellow"
        self.console.print(
            f"other processes took {cores:.2f} cores meanwhile", highlight=False, style=style
        )

    def skipped(self, what: str, reason: str) -> None:
        self.console.print(f"[yellow]{what} skipped:[/] {reason}", highlight=False)

    def failed(self, what: str, reason: str) -> None:
        self.console.print(f"[red]{what} failed:[/] {reason}", highlight=False)


class JsonReport(Report):
    """The same for a program: an object a line on stdout, and progress on stderr."""

    def __init__(self) -> None:
        super().__init__(Console(file=sys.stderr))
        self._title = ""

    def heading(self, title: str, settings: str) -> None:
        self._title = title
        _say(heading=title, settings=settings)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        _say(table=self._title, rows=named)

    def verdict(self, what: str, value: str, target: str, met: bool) -> None:
        _say(verdict=what, value=value, target=target, met=met)

    def neighbours(self, cores: float) -> None:
        _say(other_processes_cores=round(cores, 2))

    def skipped(self, what: str, reason: str) -> None:
        _say(skipped=what, reason=reason)

    def failed(self, what: str, reason: str) -> None:
        _say(failed=what, reason=reason)


def _say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)
