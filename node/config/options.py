"""The table of options: each stands here once, and everything else is made from it.

A field of `Config` is an option. Its name gives the command-line option (`data_dir` is
`--data-dir`), the environment variable (`EX_ESDB_DATA_DIR`) and the key in a TOML table
(`data_dir`); its annotation gives the kind of value; `option()` gives the default, the unit, the
limits and the sentence that `--help` shows. To add an option, add a field; if its limit depends on
another option, add a rule to `checks.py` too.

Units stand last in a name. The exception is `persistence_interval` (milliseconds): users know it
under that name, so it keeps it.

What is not here is not configurable. In particular there is no option that nothing reads.
"""
# ruff: noqa: RUF009   (`option` only makes a dataclass field, as `field` does)

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from node.config.values import NODE_ID, READERS, Address, Peers, plain

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_SIZES = {"GiB": GIB, "MiB": MIB, "KiB": KIB, "": 1}
_STORE = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}")
_APPLICATION = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


class Limits(NamedTuple):
    """What one option may be, apart from its kind."""

    low: int | None = None
    high: int | None = None
    pattern: re.Pattern[str] | None = None
    choices: tuple[str, ...] = ()


class Facts(NamedTuple):
    """What the table says about one option."""

    group: str
    help: str
    unit: str
    limits: Limits
    flag: str | None
    secret: bool


def option(
    default: object,
    group: str,
    help: str,
    *,
    unit: str = "",
    low: int | None = None,
    high: int | None = None,
    pattern: re.Pattern[str] | None = None,
    choices: tuple[str, ...] = (),
    flag: str | None = None,
    secret: bool = False,
) -> Any:
    """A field of `Config`. A `flag` replaces the command-line name and may be given repeatedly."""
    limits = Limits(low, high, pattern, choices)
    facts = Facts(group, help, unit, limits, flag, secret)
    return field(default=default, repr=not secret, metadata={"facts": facts})


IDENTITY, NETWORK, PERSISTENCE = "who this is", "where it listens", "what it keeps on disk"
REQUESTS, RAFT, WATCHING = "limits of requests", "replication", "watching it"


@dataclass(frozen=True)
class Config:
    """Every setting of one node, read and checked. Nothing changes it while the node runs.

    `load` makes one from all sources. A `Config(...)` made in place takes the defaults for what it
    does not name and is not checked: that is meant for tests.
    """

    node_id: str = option(
        "n1", IDENTITY, "name of this node, unique in the cluster", pattern=NODE_ID
    )
    store_id: str = option("my_store", IDENTITY, "store that exists from the start", pattern=_STORE)
    otp_app: str = option(
        "", IDENTITY, "application whose table [APP.ex_esdb] is read", pattern=_APPLICATION
    )
    config: Path | None = option(None, IDENTITY, "TOML file with further settings")

    http_address: Address = option(
        Address("127.0.0.1", 8101), NETWORK, "where the HTTP API listens"
    )
    http_advertise_address: Address = option(
        None, NETWORK, "where clients reach it, if that is not http_address"
    )
    raft_address: Address = option(
        Address("127.0.0.1", 7101), NETWORK, "where the other nodes' connections are taken"
    )
    raft_advertise_address: Address = option(
        None, NETWORK, "where the other nodes reach it, if that is not raft_address"
    )
    peers: Peers = option(
        (), NETWORK, "another node and its Raft port; once for each", flag="--peer"
    )
    join: bool = option(
        False, NETWORK, "this node is new: the peers are members to ask, who must add it"
    )
    cluster_secret: str = option(
        "", NETWORK, "what all nodes of a cluster know and nobody else; 16 bytes or more; "
        "`ps` shows a command line, so better give the file", secret=True
    )  # fmt: skip
    cluster_secret_file: Path | None = option(None, NETWORK, "file that holds the cluster secret")
    tls_cert: Path | None = option(None, NETWORK, "certificate (PEM) for the Raft port")
    tls_key: Path | None = option(None, NETWORK, "its private key (PEM)")
    tls_ca: Path | None = option(
        None, NETWORK, "authority (PEM) that signs the nodes' certificates"
    )

    data_dir: Path = option(Path("data"), PERSISTENCE, "directory of this node's files, its alone")
    persistence_enabled: bool = option(
        True, PERSISTENCE, "whether events are written to disk at all"
    )
    persistence_interval: int = option(
        5000, PERSISTENCE, "time between two persistence cycles", unit="ms", low=1, high=86_400_000
    )
    unpersisted_bytes_max: int = option(
        GIB, PERSISTENCE, "events in memory that are not on disk yet; past it appends get 503",
        unit="bytes", low=MIB, high=1 << 40
    )  # fmt: skip

    default_durability: str = option(
        "replicated", PERSISTENCE, "what an append waits for if neither it nor its store says so: "
        "a majority's memory, or (persisted) its disks",
        choices=("replicated", "persisted")
    )  # fmt: skip
    tail_enabled: bool = option(
        True, PERSISTENCE, "whether the log behind the last cycle survives a killed process"
    )
    tail_bytes_max: int = option(
        256 * MIB, PERSISTENCE, "what that may take; past it a killed process has forgotten",
        unit="bytes", low=16 * MIB, high=1 << 40
    )  # fmt: skip
    tail_dir: Path | None = option(
        None, PERSISTENCE, "where that stands while the node runs, if not in data_dir: a directory "
        "in memory (/dev/shm), so that no append waits for a frozen file system"
    )  # fmt: skip

    body_bytes_max: int = option(
        16 * MIB, REQUESTS, "the body of a request", unit="bytes", low=KIB, high=256 * MIB
    )
    event_bytes_max: int = option(
        MIB, REQUESTS, "one event as it is stored", unit="bytes", low=KIB, high=256 * MIB
    )
    append_events_max: int = option(
        10_000, REQUESTS, "events in one append", unit="events", low=1, high=1_000_000
    )
    page_events_max: int = option(
        10_000, REQUESTS, "events in one page of a read", unit="events", low=1, high=1_000_000
    )

    heartbeat_ms: int = option(
        50, RAFT, "time between two messages of an idle leader", unit="ms", low=5, high=10_000
    )
    election_min_ms: int = option(
        400, RAFT, "a follower asks for votes after this silence", unit="ms", low=20, high=60_000
    )
    election_max_ms: int = option(
        900, RAFT, "or up to this one, chosen at random", unit="ms", low=30, high=120_000
    )
    leader_fallback_ms: int = option(
        1000, RAFT, "a leader that reached no majority for so long steps down",
        unit="ms", low=30, high=120_000
    )  # fmt: skip
    proposals_max: int = option(
        10_000, RAFT, "appends waiting for the log; past it they get 503", unit="appends",
        low=1, high=1_000_000
    )  # fmt: skip
    proposal_bytes_max: int = option(
        64 * MIB, RAFT, "bytes of the appends waiting for the log; past it they get 503",
        unit="bytes", low=KIB, high=16 * GIB
    )  # fmt: skip
    log_tail_entries_max: int = option(
        10_000, RAFT, "log entries kept in memory that are on disk, for peers that were away",
        unit="entries", low=100, high=10_000_000
    )  # fmt: skip
    log_tail_bytes_max: int = option(
        64 * MIB, RAFT, "and their bytes; who lacks more is filled from the stores",
        unit="bytes", low=KIB, high=16 * GIB
    )  # fmt: skip
    peer_queue_bytes_max: int = option(
        64 * MIB, RAFT, "messages waiting for one peer; past it further ones are dropped",
        unit="bytes", low=KIB, high=16 * GIB
    )  # fmt: skip
    frame_bytes_max: int = option(
        64 * MIB, RAFT, "one message between nodes", unit="bytes", low=KIB, high=2 * GIB
    )

    log_level: str = option(
        "info", WATCHING, "the least that is logged", choices=("debug", "info", "warning", "error")
    )
    log_format: str = option(
        "auto", WATCHING, "auto is text on a terminal and JSON lines elsewhere",
        choices=("auto", "text", "json")
    )  # fmt: skip
    strict_checks: bool = option(
        False, WATCHING, "check every invariant after every step; slow, for tests"
    )

    sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Fill in the defaults that follow from other options."""
        if self.http_advertise_address is None:
            object.__setattr__(self, "http_advertise_address", self.http_address)
        if self.raft_advertise_address is None:
            object.__setattr__(self, "raft_advertise_address", self.raft_address)
        if not self.cluster_secret:
            object.__setattr__(self, "cluster_secret", loopback_secret(self.store_id))

    @property
    def members(self) -> dict[str, Address]:
        """Where each member's Raft port is reached, this node included, by node id."""
        return {self.node_id: self.raft_advertise_address, **dict(self.peers)}

    def described(self) -> dict[str, dict[str, object]]:
        """Each option's value, unit and source in terms of JSON; secrets are not shown."""
        return {name: self._described(name) for name in OPTIONS}

    def _described(self, name: str) -> dict[str, object]:
        option = OPTIONS[name]
        value = "(hidden)" if option.secret else plain(getattr(self, name))
        entry: dict[str, object] = {"value": value, "source": self.sources.get(name, "default")}
        return entry | ({"unit": option.unit} if option.unit else {})


def loopback_secret(store_id: str) -> str:
    """The secret of a cluster that was given none; `checks` allows that on loopback only.

    It is no secret: everybody can work it out. It keeps clusters of different stores on one
    machine from talking to each other by mistake. Whoever may run programs on this machine could
    join; that is the price of starting without any set-up, and why other addresses need a real one.
    """
    return f"loopback-only-and-no-secret:{store_id}"


class Option(NamedTuple):
    """One row of the table, in the terms of all three kinds of source."""

    name: str
    default: Any
    kind: Any
    group: str
    help: str
    unit: str
    limits: Limits
    flag: str
    repeatable: bool
    secret: bool

    @property
    def variable(self) -> str:
        """The environment variable of this option."""
        return "EX_ESDB_" + self.name.upper()

    @property
    def allowed(self) -> str:
        """What its value may be, as a phrase; for kinds whose reader says it, the empty one."""
        low, high, pattern, choices = self.limits
        if choices:
            return "one of " + ", ".join(choices)
        if pattern is not None:
            return f"a name that matches {pattern.pattern}"
        if low is None or high is None:
            return ""
        return f"a whole number of {self.unit}, {self.spelled(low)}..{self.spelled(high)}"

    def spelled(self, value: object) -> str:
        """A value of this option as an operator would write it: `16MiB`, `true`, `400`."""
        if isinstance(value, bool):
            return str(value).lower()
        if self.unit != "bytes" or not isinstance(value, int):
            return str(value)
        return next(f"{value // size}{name}" for name, size in _SIZES.items() if value % size == 0)

    def read(self, raw: object) -> Any:
        """The value that `raw` means. Raises ValueError; its `args` say what is allowed."""
        try:
            value = READERS[self.kind](raw)
        except ValueError as error:
            raise ValueError(*([self.allowed] if self.allowed else error.args)) from None
        if not self._within(value):
            raise ValueError(self.allowed)
        return value

    def _within(self, value: Any) -> bool:
        low, high, pattern, choices = self.limits
        if choices:
            return value in choices
        if pattern is not None:
            return pattern.fullmatch(value) is not None
        return low is None or high is None or low <= value <= high


def _table() -> dict[str, Option]:
    kinds = get_type_hints(Config)
    rows = [member for member in fields(Config) if "facts" in member.metadata]
    return {row.name: _option(row.name, row.default, kinds[row.name], row.metadata["facts"])
            for row in rows}  # fmt: skip


def _option(name: str, default: object, kind: Any, facts: Facts) -> Option:
    """A path that may be absent is read as a path: absence is never written down."""
    kind = Path if kind == Path | None else kind
    flag = facts.flag or "--" + name.replace("_", "-")
    group, help, unit, limits, repeated, secret = facts
    return Option(
        name, default, kind, group, help, unit, limits, flag, repeated is not None, secret
    )


OPTIONS: dict[str, Option] = _table()
"""The table, by name, in the order in which `--help` shows it."""
