"""Rules between options: what must hold of a whole configuration, beyond each value's own limits.

A value can be fine by itself and still be wrong beside another one: a frame between nodes that is
smaller than a body that has to travel in it would only show once somebody sends such a body. So
these are checked before anything starts. A rule is a function that looks at the whole
configuration and yields what is wrong with it, as (option to blame, what it must be). A rule whose
options were not readable in the first place never runs, so rules may trust the kinds of values.

The rules about secrets keep one promise: whoever can reach a Raft port from another machine needs
a secret that this configuration was given.
"""

import os
import ssl
from collections.abc import Callable, Iterator

from node.config.options import MIB, Config, loopback_secret
from node.config.values import Address

SECRET_BYTES_MIN = 16
_ENVELOPE_BYTES = MIB

Complaint = tuple[str, str]
Rule = Callable[[Config], Iterator[Complaint]]


def elections(config: Config) -> Iterator[Complaint]:
    """A follower must miss several heartbeats before it doubts its leader."""
    beat, low, high = config.heartbeat_ms, config.election_min_ms, config.election_max_ms
    if low <= 2 * beat:
        yield "election_min_ms", f"more than twice heartbeat_ms, which is {beat}"
    if high <= low:
        yield "election_max_ms", f"more than election_min_ms, which is {low}"
    if config.leader_fallback_ms < low:
        yield "leader_fallback_ms", f"at least election_min_ms, which is {low}"


def sizes(config: Config) -> Iterator[Complaint]:
    """What one thing is carried in must be larger than the thing."""
    body, frame = config.body_bytes_max, config.frame_bytes_max
    if config.event_bytes_max > body:
        yield "event_bytes_max", f"at most body_bytes_max, which is {body}"
    if frame < body + _ENVELOPE_BYTES:
        yield "frame_bytes_max", f"at least 1 MiB more than body_bytes_max, which is {body}"
    if config.proposal_bytes_max < body:
        yield "proposal_bytes_max", f"at least body_bytes_max, which is {body}"
    if config.peer_queue_bytes_max < frame:
        yield "peer_queue_bytes_max", f"at least frame_bytes_max, which is {frame}"
    if config.unpersisted_bytes_max < body:
        yield "unpersisted_bytes_max", f"at least body_bytes_max, which is {body}"


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
    """Two listeners cannot share a port, and two members cannot share an address."""
    http, raft = config.http_address, config.raft_address
    if http.port == raft.port and (http.host == raft.host or http.is_wildcard or raft.is_wildcard):
        yield "raft_address", f"another port than http_address, which is {http}"
    seen: dict[Address, str] = {}
    for node_id, address in config.members.items():
        if other := seen.get(address):
            yield "peers", f"another address for {node_id}: {address} is {other}'s"
        seen[address] = node_id


def reachable(config: Config) -> Iterator[Complaint]:
    """An address that is told to others must be one that they can call."""
    if not config.peers:
        return
    for name in ("http_advertise_address", "raft_advertise_address"):
        address: Address = getattr(config, name)
        if address.is_wildcard:
            yield name, f"given, because others cannot call {address}"
    for peer in config.peers:
        if peer.address.is_wildcard:
            yield "peers", f"an address that can be called for {peer.node_id}"


def secret(config: Config) -> Iterator[Complaint]:
    """No Raft port that other machines can reach goes without a real secret.

    An empty one that was given, as by a file that nothing was written to yet, is none either: by
    now the one that everybody can work out stands in its place.
    """
    if "cluster_secret" in config.sources:
        known = config.cluster_secret == loopback_secret(config.store_id)
        if known or len(config.cluster_secret.encode()) < SECRET_BYTES_MIN:
            yield "cluster_secret", f"{SECRET_BYTES_MIN} bytes or more"
        return
    addresses = [config.raft_address, *config.members.values()]
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
    *(elections, sizes, durability, places),
    *(ports, reachable, secret, tls),
)


def complaints(config: Config) -> Iterator[Complaint]:
    """Everything that is wrong with the configuration as a whole, in the order of the rules."""
    for rule in RULES:
        yield from rule(config)
