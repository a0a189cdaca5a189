"""Measuring the event store: what stands behind `scripts/bench`.

Rule: a figure never stands alone. It comes with the machine, the versions and the settings it was
taken with, with its spread over repetitions, and, where there is a peer, with the peer's figure
from the same minutes. What cannot be measured here is skipped with the reason and not estimated.

    machine     processor, memory, versions; resident bytes of a process
    report      series with their spread; tables and verdicts
    wrk         load over HTTP, from C
    pipelining  load over one WebSocket, from Python, in a process of its own
    followers   followers over server-sent events, in a process of its own
    loads       running such a process, and what it and the system spent
    etcd, nats  the peers and their load
    ports       ports that are free
    nodes       our cluster, on free ports with data in a temporary directory
    filling     an exact number of events as a start for a measurement
    appending, websockets, following, flushing, memory  the measurements, and
    returning, removing  those of nodes that come back, and of what goes
    __main__    the command line
"""
