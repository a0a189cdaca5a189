"""Sources of settings: what each place says, before anybody asks whether it makes sense.

Three places, and each is read completely even if another one is broken, so that one start names
every mistake in all of them:

  the command line    `--data-dir DIR`
  the environment     `EX_ESDB_DATA_DIR`; a variable that is set but empty counts as not set
  one TOML file       `[ex_esdb]` for all, `[APP.ex_esdb]` for an application,
                      `[ex_esdb.stores.STORE]` for one store

A source becomes a `Layer`: where it is, and the raw values by option name. What it says under a
name that is no option is a problem, with the nearest name as a suggestion. Values are not looked
at here.
"""

import argparse
import difflib
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from node.config.options import OPTIONS, Option

SCRIPT_VARIABLES = ("EX_ESDB_URL", "EX_ESDB_VENV")
"""Variables of ours that only `scripts/` read; a node leaves them alone."""

SELECTING = ("config", "otp_app", "store_id")
"""Options that decide which tables are read, and so cannot stand in every table themselves."""


class Problem(NamedTuple):
    """One thing that is wrong: which option, what it was given, by whom, and what is allowed."""

    option: str
    value: str
    source: str
    allowed: str

    def __str__(self) -> str:
        value = f" is {self.value}" if self.value else ""
        return f"{self.option}{value} ({self.source}): must be {self.allowed}"


class Layer(NamedTuple):
    """What one place says. `source` names it, or `named` does for a single option."""

    source: str
    values: dict[str, Any]
    named: Callable[[Option], str] | None = None

    def source_of(self, option: Option) -> str:
        """The place, as an operator would look for it."""
        return self.named(option) if self.named else self.source


def unknown(name: str, source: str, known: Collection[str]) -> Problem:
    """A name that is no option, with the option that was probably meant."""
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return Problem(name, "", source, f"an option; did you mean {near[0]}?" if near else "an option")


# The command line ---------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are kept, so that they can stand beside all others."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.complaint: str | None = None

    def error(self, message: str) -> NoReturn:
        self.complaint = message
        raise _Unparsable


class _Unparsable(Exception):
    """The command line cannot be split into options and values."""


def parser(description: str, epilog: str, version: str) -> _Parser:
    """The command line made from the table; `--help` shows groups, limits and defaults."""
    made = _Parser(
        prog="python -m node",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        usage="python -m node [OPTION VALUE]...",
    )
    made.add_argument("--version", action="version", version=version)
    groups: dict[str, Any] = {}
    for option in OPTIONS.values():
        if option.group not in groups:
            groups[option.group] = made.add_argument_group(option.group)
        _add(groups[option.group], option)
    return made


def _add(group: Any, option: Option) -> None:
    text = "; ".join(part for part in (option.help, option.allowed, _default(option)) if part)
    settings: dict[str, Any] = {"dest": option.name, "help": text.replace("%", "%%")}
    settings["metavar"] = option.unit.upper() if option.unit else "VALUE"
    if option.repeatable:
        settings |= {"action": "append", "metavar": "ID=HOST:PORT"}
    if option.kind is bool:
        settings |= {"nargs": "?", "const": "true", "metavar": "true|false"}
    group.add_argument(option.flag, **settings)


def _default(option: Option) -> str:
    return "" if option.default in (None, "", ()) else f"default {option.spelled(option.default)}"


def from_command_line(made: _Parser, argv: list[str], problems: list[Problem]) -> Layer:
    """The options of the command line; leaves the program for `--help` and `--version`."""
    try:
        namespace, rest = made.parse_known_args(argv)
    except _Unparsable:
        problems.append(Problem("command line", "", str(made.complaint), "OPTION VALUE pairs"))
        return Layer("command line", {})
    flags = [option.flag for option in OPTIONS.values()]
    problems += [unknown(argument, "command line", flags) for argument in _strays(rest)]
    return Layer("command line", vars(namespace))


def _strays(rest: list[str]) -> Iterable[str]:
    """What is left over, but for the words behind unknown options, which are their values."""
    pairs = zip(["", *rest], rest, strict=False)
    strays = (word for before, word in pairs if word[:1] == "-" or before[:1] != "-")
    return (word.partition("=")[0] for word in strays)


# The environment ----------------------------------------------------------------------------


def from_environment(environ: Mapping[str, str], problems: list[Problem]) -> Layer:
    """The options of the environment."""
    variables = {option.variable: option.name for option in OPTIONS.values()}
    ours = {name: value for name, value in environ.items() if name.startswith("EX_ESDB_") and value}
    strange = sorted(set(ours) - set(variables) - set(SCRIPT_VARIABLES))
    problems += [unknown(name, "environment", variables) for name in strange]
    values = {variables[name]: value for name, value in ours.items() if name in variables}
    return Layer("environment", values, lambda option: f"environment {option.variable}")


# The TOML file ------------------------------------------------------------------------------


class File(NamedTuple):
    """A TOML file that was read: its tables, checked for names only."""

    path: Path
    tables: dict[str, dict[str, Any]]

    def layer(self, table: str) -> Layer:
        """One table as a source; without the table, a source that says nothing."""
        return Layer(f"{self.path} [{table}]", self.tables.get(table, {}))


def from_file(path: Path, problems: list[Problem]) -> File:
    """The tables of the file, by their names; problems for what cannot be read or is unknown."""
    try:
        text = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        problems.append(Problem("config", str(path), str(error), "a TOML file that can be read"))
        return File(path, {})
    file = File(path, dict(_tables(path, text, problems)))
    for table, values in file.tables.items():
        _check_names(f"{path} [{table}]", table, values, problems)
    return file


def _tables(
    path: Path, text: dict[str, Any], problems: list[Problem]
) -> Iterable[tuple[str, dict[str, Any]]]:
    """Each table of ours. A top-level table without one of ours in it is most likely a typo."""
    for name, content in text.items():
        if name == "ex_esdb" and isinstance(content, dict):
            stores = content.pop("stores", {})
            yield name, content
            yield from _store_tables(path, stores, problems)
        elif isinstance(content, dict) and isinstance(content.get("ex_esdb"), dict):
            yield f"{name}.ex_esdb", content["ex_esdb"]
        else:
            allowed = "[ex_esdb], [APP.ex_esdb] or [ex_esdb.stores.STORE]"
            problems.append(Problem(name, "", str(path), f"in one of the tables {allowed}"))


def _store_tables(
    path: Path, stores: Any, problems: list[Problem]
) -> Iterable[tuple[str, dict[str, Any]]]:
    whole = isinstance(stores, dict) and all(isinstance(table, dict) for table in stores.values())
    if not whole:
        problems.append(Problem("stores", "", str(path), "tables named [ex_esdb.stores.STORE]"))
        return
    yield from ((f"ex_esdb.stores.{store}", table) for store, table in stores.items())


def _check_names(source: str, table: str, values: dict[str, Any], problems: list[Problem]) -> None:
    """Keys must be options, and a table must not choose what chose it."""
    known = [name for name in OPTIONS if name not in _forbidden(table)]
    for name in values:
        if name in OPTIONS and name not in known:
            problems.append(Problem(name, "", source, "given in a place read before this table"))
        elif name not in known:
            problems.append(unknown(name, source, known))


def _forbidden(table: str) -> tuple[str, ...]:
    if table == "ex_esdb":
        return SELECTING[:1]
    return SELECTING if table.startswith("ex_esdb.stores.") else SELECTING[:2]
