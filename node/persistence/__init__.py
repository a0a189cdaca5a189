"""The files: everything of ours that outlives the process, and nobody else touches.

An append is acknowledged from memory; this package writes behind the answer. The rule it keeps:
what is on disk is always a *prefix of the replicated history, over all stores together*. A node
that starts again stands exactly where it stood at some raft index, the cut, and replays from there.

Read in this order:

* `faults`      what can be wrong with the files, as exceptions that say what to do
* `directory`   the layout under the data directory, its lock, and how files are set aside
* `state_file`  who the node is and what it promised: term and vote, fsynced before a word leaves
* `tail_format`, `tail_files`, `tail`   raft log entries that are not in the database yet, kept
                for a process that is killed
* `checksums`   rolling checksums, so that a flipped bit is found at load
* `blocks`      how events stand in a store's file
* `statements`  inserting many rows without holding up the event loop
* `wal`         whether SQLite's write-ahead log is on the disk, and says all that it once said
* `schema`      the tables, and how a connection is opened
* `snapshot_rows` snapshots of aggregates: which row counts at which mark
* `subscription_rows` persistent subscriptions: a row for each state that a cycle saw
* `life_rows`   how streams were limited and deleted: a row for each change that a cycle saw
* `store_file`  one store's database: roll back to a mark, append what is new, read it all
* `node_file`   the node's database: the cut, and which store files belong to it
* `folding`     WALs folded into their files, and what of that is synced at once
* `places`      what is out of the way before a file is made, and durable before it counts
* `database`    all of them together, in the one thread that may use SQLite: one cycle, start to end
* `breaker`     when to stop trying for a while
* `ledger`      what is pending, what is persisted, what it cost: the books, kept on the event loop
* `sweeper`     giving memory and disk back for events that were removed
* `report`      what a force reached
* `worker`      the loop that decides when a cycle runs, and who waits for it
* `loader`      from files to a state, before the node takes part in anything

It imports `node.core` and `node.errors`, and knows nothing of Raft or HTTP.
"""
