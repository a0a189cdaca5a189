"""One node of the event store: everything that one process is.

A node takes requests over HTTP, replicates what they ask through Raft to the memory of the other
nodes, applies it to its own in-memory store, answers, and writes it to disk behind the answer.
Each of those has one home, and imports point one way only:

    __main__ -> service -> {api, raft, persistence} -> core

`core`         what an event store means. Pure: no IO, no clock, no randomness.
`raft`         the replicated log. The only place that imports pysyncobj.
`persistence`  the files. The only place that imports sqlite3.
`api`          the HTTP contract. The only place that imports aiohttp's server side.
`identity`     who this node is and what it has promised, across restarts.
`override`     what an operator may have it do when members are gone for good.
`service`      wires those together; the only place that names their concrete classes.
`config` and `errors` may be imported by all of them except by `core`; `logs` says how what they log
is written, which only `__main__` needs to know.

`tests/test_architecture.py` holds this to be true. To read the program, begin with `core/store.py`
and go up from there.
"""

__version__ = "0.1.0"
