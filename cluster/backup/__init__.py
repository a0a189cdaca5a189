"""Backups: a whole store in one SQLite file, taken while it is in use, and brought back.

**Consistent.** A position never changes what it holds. So a backup asks once how far the store is,
through the log (`consistency=linearizable`), and then reads up to there, from whichever node
answers, while others append. What it has in the end is the store as of that moment.

**Verified.** Over all events in order runs one chain of SHA-256 (`digest`): first over what the
nodes sent, then over what the finished file gives back, after a restore over what the new store
answers. The three must be equal. Positions must be gapless, and numbers in each stream.

**Interrupted.** A file that is not finished has the ending `.partial` and says how far it is; the
same command goes on with it, up to the same position. A restore goes on where the store ends, after
it has compared what is there.

`digest`    an event as it counts, and the chain
`file`      the SQLite file: written, finished, checked, read
`door`      requests to whichever node answers, in CBOR
`taking`    store -> file
`restoring` file -> store

What a backup does not hold: the aggregate snapshots and the subscriptions of the store, and those
of its checkpoints that were not named, because the API has no list of them. What a restore cannot
bring back: the time of each event, which is chosen by the node that takes an append. The file keeps
it (`created_us`).
"""


class BackupFailed(Exception):
    """A backup or a restore cannot be made, or came out other than it must."""
