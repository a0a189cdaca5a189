"""Configuration: every setting of a node, from all the places where one may be written.

    options   the table: each option once, with its default, unit, limits and help
    values    what a text means as an address, a number, a path, ...
    sources   what the command line, the environment and the TOML file say
    checks    what must hold between options

Precedence, the strongest first, and what each is for:

    1. command line              --persistence-interval 1000
    2. environment               EX_ESDB_PERSISTENCE_INTERVAL=1000
    3. the store's own table     [ex_esdb.stores.my_store]   where store_id is my_store
    4. the application's table   [my_app.ex_esdb]            where otp_app is my_app
    5. the global table          [ex_esdb]
    6. the default

in which 3 to 5 are tables of one TOML file, named by `--config` or `EX_ESDB_CONFIG`:

    [ex_esdb]
    persistence_interval = 10_000
    peers = ["n2=10.0.0.2:7101", "n3=10.0.0.3:7101"]
    cluster_secret_file = "/run/secrets/cluster"

    [my_app.ex_esdb]
    persistence_interval = 5_000

    [ex_esdb.stores.my_store]
    persistence_enabled = true

`otp_app` and `store_id` choose tables, so they are settled first: `otp_app` may stand in 1, 2
and 5, `store_id` also in 4, and `config` in 1 and 2.

Nothing at all means: a cluster of one on loopback, with its data under `./data`.

Whatever is wrong, in whichever place, is collected and reported at once. A name that is no option
is wrong too: a setting that is silently ignored is worse than a node that does not start. All
values are checked, also those that a stronger place overrides, because the override may be gone
tomorrow. The variables in `sources.SCRIPT_VARIABLES` belong to `scripts/` and are let through.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from node.config.checks import complaints
from node.config.options import OPTIONS, Config, Option
from node.config.sources import (
    File,
    Layer,
    Problem,
    from_command_line,
    from_environment,
    from_file,
    parser,
)
from node.config.values import Address, Peer, Peers, plain

__all__ = ["OPTIONS", "Address", "Config", "ConfigurationError", "Option", "Peer", "Peers",
           "Problem", "load", "load_or_exit"]  # fmt: skip

_UNREAD = ("command line", "config")
"""What is blamed where a whole place could not be read: nobody knows which options it has."""

_DESCRIPTION = "Run one node of a replicated event store."
_EPILOG = """\
Each option can also be given in the environment (--data-dir is EX_ESDB_DATA_DIR) or in a TOML file
(data_dir, in its table [ex_esdb]); the peers all together, as EX_ESDB_PEERS=n2=HOST:PORT,n3=... or
peers = ["n2=HOST:PORT", ...]. All nodes may be given the same list. Sizes may be written as 16MiB.
GET /v1/info shows what a running node goes by, and why.

examples:
  a cluster of one, on this machine only, with its data under ./data
    python -m node

  the first of three nodes on one machine
    python -m node --node-id n1 --data-dir data/n1 \\
        --http-address 127.0.0.1:8101 --raft-address 127.0.0.1:7101 \\
        --peer n2=127.0.0.1:7102 --peer n3=127.0.0.1:7103

  one of three machines; the secret is the same on all of them
    EX_ESDB_CLUSTER_SECRET_FILE=/run/secrets/cluster python -m node --node-id n1 \\
        --http-address 10.0.0.1:8101 --raft-address 10.0.0.1:7101 \\
        --peer n2=10.0.0.2:7101 --peer n3=10.0.0.3:7101

  settings from a file, one of them overridden
    python -m node --config node.toml --persistence-interval 1000
"""


class ConfigurationError(Exception):
    """The settings cannot be used. `problems` names everything that is wrong with them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def load_or_exit(version: str) -> Config:
    """The configuration of this process; on problems one line each on stderr, and exit 2."""
    try:
        return load(sys.argv[1:], os.environ, version)
    except ConfigurationError as error:
        print(f"The node does not start: {len(error.problems)} problem(s).", file=sys.stderr)
        print("\n".join(f"  {problem}" for problem in error.problems), file=sys.stderr)
        sys.exit(2)


def load(argv: list[str], environ: Mapping[str, str], version: str = "") -> Config:
    """The configuration that these arguments and this environment make.

    Raises ConfigurationError with all problems. Leaves by SystemExit for `--help`, `--version`.
    """
    problems: list[Problem] = []
    made = parser(_DESCRIPTION, _EPILOG, f"ex-esdb {version}")
    command_line = from_command_line(made, argv, problems)
    environment = from_environment(environ, problems)
    layers = _layers(command_line, environment, problems)
    values, sources = _settle(layers, problems)
    _take_secret_from_file(values, sources, problems)
    config = _config(values, sources)
    wrong = {problem.option for problem in problems}
    if wrong.isdisjoint(_UNREAD):
        found = complaints(config, wrong)
        problems += [_complaint(config, name, allowed) for name, allowed in found]
    if problems:
        raise ConfigurationError(problems)
    return config


def _layers(command_line: Layer, environment: Layer, problems: list[Problem]) -> list[Layer]:
    """All sources, the strongest first."""
    direct = [command_line, environment]
    try:
        path = OPTIONS["config"].read(_first(direct, "config"))
    except ValueError:
        return direct  # it is not given, or `_settle` says what is wrong with it
    file = from_file(path, problems)
    globally = file.layer("ex_esdb")
    application = file.layer(f"{_first([*direct, globally], 'otp_app')}.ex_esdb")
    store = _first([*direct, application, globally], "store_id")
    return [*direct, _store_layer(file, store), application, globally]


def _store_layer(file: File, store: object) -> Layer:
    return file.layer(f"ex_esdb.stores.{store or OPTIONS['store_id'].default}")


def _first(layers: list[Layer], name: str) -> Any:
    """The strongest word on an option, unread; None if nobody mentions it."""
    return next((layer.values[name] for layer in layers if name in layer.values), None)


def _settle(layers: list[Layer], problems: list[Problem]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read all values and let the strongest of each option win, with where it came from."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in reversed(layers):
        for name in OPTIONS:
            if name not in layer.values:
                continue
            option, raw = OPTIONS[name], layer.values[name]
            source = layer.source_of(option)
            try:
                values[name], sources[name] = option.read(_joined(raw, layer)), source
            except ValueError as error:
                shown = "(hidden)" if option.secret else repr(raw)
                problems += [Problem(name, shown, source, allowed) for allowed in error.args]
    return values, sources


def _joined(raw: Any, layer: Layer) -> Any:
    """A repeated `--peer` may itself be a list with commas, as the environment's is."""
    return ",".join(raw) if layer.source == "command line" and isinstance(raw, list) else raw


def _take_secret_from_file(
    values: dict[str, Any], sources: dict[str, str], problems: list[Problem]
) -> None:
    """A secret's file takes the place of the secret; white space around it is an editor's."""
    path: Path | None = values.get("cluster_secret_file")
    if path is None:
        return
    source = sources["cluster_secret_file"]
    if "cluster_secret" in values:
        allowed = f"left out: cluster_secret is given too ({sources['cluster_secret']})"
        problems.append(Problem("cluster_secret_file", str(path), source, allowed))
        return
    try:
        values["cluster_secret"] = path.read_text("utf-8").strip()
        sources["cluster_secret"] = f"file {path}"
    except (OSError, ValueError) as error:
        reason = f"a file that can be read ({error})"
        problems.append(Problem("cluster_secret_file", str(path), source, reason))


def _config(values: dict[str, Any], sources: dict[str, str]) -> Config:
    """The configuration. A node that finds itself among its peers takes its own address from there.

    So all nodes of a cluster can be given one and the same list.
    """
    node_id = values.get("node_id", OPTIONS["node_id"].default)
    peers: Peers = values.get("peers", ())
    own = [peer.address for peer in peers if peer.node_id == node_id]
    if own and "raft_advertise_address" not in values:
        values["raft_advertise_address"] = own[0]
        sources["raft_advertise_address"] = sources["peers"]
    values["peers"] = tuple(peer for peer in peers if peer.node_id != node_id)
    return Config(**values, sources=sources)


def _complaint(config: Config, name: str, allowed: str) -> Problem:
    hidden = OPTIONS[name].secret and name in config.sources
    value = "(hidden)" if hidden else "" if OPTIONS[name].secret else _shown(getattr(config, name))
    return Problem(name, value, config.sources.get(name, "default"), allowed)


def _shown(value: object) -> str:
    value = plain(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
