"""Values of options: what a text from outside means, or why it means nothing.

Texts come from three kinds of places. A command line and the environment know only strings; a TOML
file has types of its own. So each kind of value has one reader here that takes either, and answers
with the value or raises `ValueError` with a sentence that says what is allowed. The sentence goes
to the operator as it stands: it must make sense behind "PLACE says VALUE, but ... must be".

Nothing here knows which options there are; `options.py` does.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
_LOOPBACK = re.compile(r"127(\.[0-9]{1,3}){1,3}")
_SIZE = re.compile(r"([0-9]+) ?(B|KiB|MiB|GiB)?")
_FACTORS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_BOOLS = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


class Address(NamedTuple):
    """A host (name or IP address, no brackets) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it, judged by its text: no name is looked up."""
        return self.host in ("localhost", "::1") or _LOOPBACK.fullmatch(self.host) is not None

    @property
    def is_wildcard(self) -> bool:
        """Whether it means "every interface": one can listen on it, but nobody can call it."""
        return self.host in ("0.0.0.0", "::")


class Peer(NamedTuple):
    """Another member of the cluster: its node id and where its Raft port is reached."""

    node_id: str
    address: Address

    def __str__(self) -> str:
        return f"{self.node_id}={self.address}"


Peers = tuple[Peer, ...]


def read_address(raw: object) -> Address:
    """`host:port`, with an IPv6 host in brackets: `127.0.0.1:8101`, `db1:8101`, `[::1]:8101`."""
    host, _, port = raw.rpartition(":") if isinstance(raw, str) else ("", "", "")
    bracketed = host.startswith("[") and host.endswith("]")
    well_formed = ":" in host if bracketed else _HOST.fullmatch(host)
    if not well_formed or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("host:port with a port of 1..65535, as in 127.0.0.1:8101 or [::1]:8101")
    return Address(host[1:-1] if bracketed else host, int(port))


def read_peers(raw: object) -> Peers:
    """`id=host:port` for each peer: a list of those, or one text with commas between them.

    Raises ValueError with a sentence for each that is none.
    """
    texts = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a list of id=host:port, as in n2=127.0.0.1:7102")
    peers, wrong = [], []
    for text in filter(None, map(str.strip, texts)):
        try:
            peers.append(_read_peer(text))
        except ValueError as error:
            wrong.append(f"{error}; {text!r} is not")
    ids = [peer.node_id for peer in peers]
    if twice := sorted({node_id for node_id in ids if ids.count(node_id) > 1}):
        wrong.append(f"one id=host:port for each peer; named twice: {', '.join(twice)}")
    if wrong:
        raise ValueError(*wrong)
    return tuple(peers)


def _read_peer(text: str) -> Peer:
    node_id, _, address = text.partition("=")
    if not NODE_ID.fullmatch(node_id):
        raise ValueError("id=host:port for each peer, as in n2=127.0.0.1:7102")
    try:
        return Peer(node_id, read_address(address))
    except ValueError:
        allowed = "a port of 1..65535, as in n2=127.0.0.1:7102 or n2=[::1]:7102"
        raise ValueError(f"id=host:port for each peer, with {allowed}") from None


def read_bool(raw: object) -> bool:
    """A TOML boolean, or one of the usual words for it in any case."""
    if isinstance(raw, bool):
        return raw
    value = _BOOLS.get(raw.strip().lower()) if isinstance(raw, str) else None
    if value is None:
        raise ValueError("true or false")
    return value


def read_int(raw: object) -> int:
    """A whole number; as text also a size such as `16MiB`, which is what operators think in."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    match = _SIZE.fullmatch(raw.strip()) if isinstance(raw, str) else None
    if match is None:
        raise ValueError("a whole number")
    return int(match[1]) * _FACTORS[match[2]]


def read_text(raw: object) -> str:
    """A text of one line without control characters."""
    if not isinstance(raw, str) or not raw.isprintable():
        raise ValueError("a text without control characters")
    return raw


def read_path(raw: object) -> Path:
    """A path; `~` is the home directory. Whether it exists is not asked here."""
    if not isinstance(raw, str) or not raw.isprintable() or not raw:
        raise ValueError("a path")
    try:
        return Path(raw).expanduser()
    except RuntimeError:
        raise ValueError("a path; nobody knows whose home directory that is") from None


READERS: dict[Any, Callable[[object], Any]] = {
    Address: read_address,
    Peers: read_peers,
    bool: read_bool,
    int: read_int,
    str: read_text,
    Path: read_path,
}


def plain(value: object) -> object:
    """The same value in terms of JSON, for `GET /v1/info`."""
    if isinstance(value, Address | Path):
        return str(value)
    if isinstance(value, tuple):
        return [str(peer) for peer in value]
    return value
