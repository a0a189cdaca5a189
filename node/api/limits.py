"""Every bound of the HTTP API, with its unit, in one place.

A client that breaks one of the published limits gets 413 `payload_too_large` with `limit` and
`actual`; one that keeps the node waiting is disconnected; what would make the node hold too much
at once is refused with 503 `overloaded`. `GET /v1/info` shows the published ones under the names
that they have here.

`check` holds the limits against one another, so that a bad combination stops the start instead of
surfacing as a strange refusal later.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from node.core.snapshots import KEPT_MAX, SERIES_BYTES_MAX

INTEGER_KEYS_MAX = 256
"""How many keys of one map in CBOR may be integers. Published."""


@dataclass(frozen=True, slots=True)
class ApiLimits:
    """The bounds of one node's API; the defaults are the contract's."""

    # What one request may ask for. Published.
    body_bytes_max: int = 16 * 1024 * 1024
    event_bytes_max: int = 1024 * 1024  # data and metadata of one event, as stored
    events_per_append_max: int = 10_000
    events_per_page_max: int = 10_000
    page_bytes_max: int = 16 * 1024 * 1024  # a page ends early here, but holds at least one event
    # Arrays and maps inside one another, the outermost counted, an empty innermost one not.
    nesting_max: int = 64
    types_per_filter_max: int = 64
    positions_per_scan_max: int = 200_000  # a filtered page ends early here, with `next` to go on
    # A page or a look of a follower whose filter has conditions ends early here, too.
    decoded_bytes_per_scan_max: int = 16 * 1024 * 1024
    wait_ms_max: int = 60_000
    timeout_ms_max: int = 300_000

    # What the node holds for all clients together. Past these it answers 503 `overloaded`.
    connections_max: int = 4_096
    waiting_reads_max: int = 1_000
    followers_max: int = 1_000  # clients that follow, each subscription of a WebSocket counted
    settlements_waiting_max: int = 100_000  # delivery ids that wait to be settled
    sockets_max: int = 1_000
    appends_waiting_max: int = 10_000  # without an outcome; the option `proposals_max`
    arriving_bytes_max: int = 256 * 1024 * 1024  # parts of bodies that are not complete yet

    # What one WebSocket may have under way. At the first two, nothing more is read from it.
    socket_requests_max: int = 4_096
    socket_reads_max: int = 4  # pages that are made and sent at a time; further reads wait
    socket_feeds_max: int = 64  # subscriptions; a further one is refused

    # How long a client may keep the node waiting, in seconds.
    idle_s: float = 75.0  # between requests, and from the first byte of a head to its last
    body_s: float = 60.0  # from the head of a request to the end of its body
    # For taking an answer that does not fit into the socket's buffer, or the end of a stream.
    write_s: float = 60.0
    slow_client_s: float = 10.0  # for taking most of what waits in the buffer of a stream
    ping_s: float = 15.0  # of silence, until a WebSocket's client is pinged, and again; then cut
    eof_s: float = 10.0  # for each answer, once the client has ended its side of the connection
    linger_s: float = 2.0  # for sending the rest of a body that was refused
    stop_s: float = 10.0  # for running requests when the node stops

    stream_buffer_bytes_max: int = 1024 * 1024  # what waits for one client of a stream
    head_line_bytes_max: int = 16 * 1024  # the request line, and each header

    def published(self) -> dict[str, int]:
        """What `GET /v1/info` shows: the limits that a client can break with one request, and
        those that are the same on all nodes.
        """
        own = {name: getattr(self, name) for name in _PUBLISHED}
        of_all = {
            "integer_keys_max": INTEGER_KEYS_MAX,
            "snapshots_kept_max": KEPT_MAX,
            "snapshot_series_bytes_max": SERIES_BYTES_MAX,
        }
        return own | of_all

    def check(self) -> list[str]:
        """What is wrong with these limits, in words; empty where all is well."""
        problems = [
            f"{field.name} must be greater than 0"
            for field in fields(self)
            if getattr(self, field.name) <= 0
        ]
        if self.event_bytes_max > self.body_bytes_max:
            problems.append("event_bytes_max must not be greater than body_bytes_max")
        if self.body_bytes_max > self.arriving_bytes_max:
            problems.append("body_bytes_max must not be greater than arriving_bytes_max")
        if self.nesting_max > 256:
            problems.append("nesting_max must not be greater than 256")
        return problems


_PUBLISHED = (
    "body_bytes_max",
    "event_bytes_max",
    "events_per_append_max",
    "events_per_page_max",
    "page_bytes_max",
    "nesting_max",
    "types_per_filter_max",
    "positions_per_scan_max",
    "decoded_bytes_per_scan_max",
    "wait_ms_max",
    "timeout_ms_max",
    "connections_max",
    "waiting_reads_max",
    "followers_max",
    "sockets_max",
    "socket_requests_max",
    "socket_feeds_max",
)
