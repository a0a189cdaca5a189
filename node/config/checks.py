"""Rules between options: what must hold of a whole configuration, beyond each value's own limits.

A value can be fine by itself and still be wrong beside another one: a frame between nodes that is
smaller than a body that has to travel in it would only show once somebody sends such a body. So
these are checked before anything starts. A rule is a function that looks at the whole
configuration and yields what is wrong with it, as (option to blame, what it must be). A rule ends
where it needs an option that was not readable in the first place, so rules may trust the kinds of
values, and each is about one thing, so that it needs no option for another.

The rules about secrets keep one promise: whoever can reach a Raft port from another machine needs
a secret that this configuration was given.
"""

import os
import ssl
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any, cast

from node.config.options import MIB, Config, loopback_secret
from node.config.values import Address

SECRET_BYTES_MIN = 16
_AROUND_A_BODY_BYTES = 2 * MIB  # the rest of an entry, and what a message says about it

Complaint = tuple[str, str]
Rule = Callable[[Config], Iterator[Complaint]]


def at_least(large: str, small: str) -> Rule:
    """A rule: the one must not be smaller than the other."""

    def rule(config: Config) -> Iterator[Complaint]:
        least = getattr(config, small)
        if getattr(config, large) < least:
            yield large, f"at least {small}, which is {least}"

    return rule


def heartbeats(config: Config) -> Iterator[Complaint]:
    """A follower must miss several heartbeats before it doubts its leader."""
    if config.election_min_ms <= 2 * config.heartbeat_ms:
        yield "election_min_ms", f"more than twice heartbeat_ms, which is {config.heartbeat_ms}"


def elections(config: Config) -> Iterator[Complaint]:
    """Followers that stand after the same silence would share the votes for ever."""
    low = config.election_min_ms
    if config.election_max_ms <= low:
        yield "election_max_ms", f"more than election_min_ms, which is {low}"


def events(config: Config) -> Iterator[Complaint]:
    """An event comes in a body."""
    if config.event_bytes_max > config.body_bytes_max:
        yield "event_bytes_max", f"at most body_bytes_max, which is {config.body_bytes_max}"


def frames(config: Config) -> Iterator[Complaint]:
    """A body travels in a frame, with others and with what is said about it."""
    body = config.body_bytes_max
    if config.frame_bytes_max < body + _AROUND_A_BODY_BYTES:
        yield "frame_bytes_max", f"at least 2 MiB more than body_bytes_max, which is {body}"


def durability(config: Config) -> Iterator[Complaint]:
    """A node that writes nothing cannot promise a disk."""
    if config.default_durability == "persisted" and not config.persistence_enabled:
        yield "default_durability", "replicated, because persistence_enabled is false"


def places(config: Config) -> Iterator[Complaint]:
    """What stands in the data directory is moved with it."""
    if config.tail_dir is not None and config.tail_dir.absolute().is_relative_to(
        config.data_dir.absolute()
    ):
        yield "tail_dir", f"outside of data_dir, which is {config.data_dir}"


def ports(config: Config) -> Iterator[Complaint]:
    """Two listeners cannot share a port."""
    http, raft = config.http_address, config.raft_address
    if http.port == raft.port and (http.host == raft.host or http.is_wildcard or raft.is_wildcard):
        yield "raft_address", f"another port than http_address, which is {http}"


def members(config: Config) -> Iterator[Complaint]:
    """Two members cannot share an address."""
    seen: dict[Address, str] = {}
    for node_id, address in config.members.items():
        if other := seen.get(address):
            yield "peers", f"another address for {node_id}: {address} is {other}'s"
        seen[address] = node_id


def reachable(name: str) -> Rule:
    """A rule: an address that is told to others must be one that they can call."""

    def rule(config: Config) -> Iterator[Complaint]:
        address: Address = getattr(config, name)
        if config.peers and address.is_wildcard:
            yield name, f"given, because others cannot call {address}"

    return rule


def peers(config: Config) -> Iterator[Complaint]:
    """This node must be able to call the others."""
    for peer in config.peers:
        if peer.address.is_wildcard:
            yield "peers", f"an address that can be called for {peer.node_id}"


def secret(config: Config) -> Iterator[Complaint]:
    """No Raft port that other machines can reach goes without a real secret.

    An empty one that was given, as by a file that nothing was written to yet, is none either: by
    now the one that everybody can work out stands in its place.
    """
    secret = config.cluster_secret
    if "cluster_secret" in config.sources:
        short = len(secret.encode()) < SECRET_BYTES_MIN
        if short or secret == loopback_secret(config.store_id):
            yield "cluster_secret", f"{SECRET_BYTES_MIN} bytes or more"
        return
    addresses = [config.raft_address]
    if addresses[0].is_loopback:
        addresses += config.members.values()
    foreign = [str(address) for address in addresses if not address.is_loopback]
    if foreign:
        reason = f"because {foreign[0]} is not on loopback"
        yield "cluster_secret", f"given (or cluster_secret_file), {reason}"


def tls(config: Config) -> Iterator[Complaint]:
    """Nodes prove themselves to one another, so a certificate is of no use without its fellows."""
    names = ("tls_cert", "tls_key", "tls_ca")
    missing = [name for name in names if getattr(config, name) is None]
    if 0 < len(missing) < len(names):
        yield from ((name, "given together with " + " and ".join(set(names) - {name}))
                    for name in missing)  # fmt: skip
    paths = {name: getattr(config, name) for name in names}
    unread = [name for name, path in paths.items() if path and not os.access(path, os.R_OK)]
    yield from ((name, "a file that can be read") for name in unread)
    if missing or unread:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(config.tls_ca)
    except OSError as error:  # `ssl.SSLError` is one, and a directory gives another
        yield "tls_ca", f"an authority's certificate in PEM ({error})"
    try:
        # With a password, even an empty one, nobody is asked for it on a terminal.
        context.load_cert_chain(str(config.tls_cert), config.tls_key, password="")
    except OSError as error:
        yield "tls_cert", f"a certificate in PEM, the key of which is tls_key ({error})"


RULES: tuple[Rule, ...] = (
    *(heartbeats, elections, at_least("leader_fallback_ms", "election_min_ms")),
    *(events, frames, at_least("proposal_bytes_max", "body_bytes_max")),
    at_least("peer_queue_bytes_max", "frame_bytes_max"),
    at_least("unpersisted_bytes_max", "body_bytes_max"),
    *(durability, places, ports, members),
    *(reachable("http_advertise_address"), reachable("raft_advertise_address"), peers),
    *(secret, tls),
)

# What is made of others where it was not given itself: it is no better than they are.
_MADE_OF = {
    "http_advertise_address": {"http_address"},
    "raft_advertise_address": {"raft_address", "node_id", "peers"},
    "cluster_secret": {"cluster_secret_file"},
    "members": {"node_id", "raft_address", "raft_advertise_address", "peers"},
}


class _Unsound(Exception):
    """A rule needs an option that is wrong itself."""


class _Sound:
    """A configuration, of which a rule can read what is not wrong itself."""

    def __init__(self, config: Config, wrong: Collection[str]) -> None:
        made = {name for name, of in _MADE_OF.items()
                if name not in config.sources and not of.isdisjoint(wrong)}  # fmt: skip
        self._config = config
        self._hidden = made | set(wrong)

    def __getattr__(self, name: str) -> Any:
        if name in self._hidden:
            raise _Unsound
        return getattr(self._config, name)


def complaints(config: Config, wrong: Collection[str] = ()) -> Iterator[Complaint]:
    """Everything that is wrong with the configuration as a whole, in the order of the rules.

    The options that are `wrong` themselves have their defaults in `config`; no rule looks at them.
    """
    sound = cast(Config, _Sound(config, wrong))
    for rule in RULES:
        with suppress(_Unsound):
            yield from rule(sound)
