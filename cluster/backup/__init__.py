"""Backups: a whole store in one SQLite file, taken while it is in use, and brought back.

**Consistent.** A position never changes what it holds. So a backup asks once how far the store is,
through the log (`consistency=linearizable`), and then reads up to there, from whichever node
answers, while others append. The events that it has in the end are those of that one moment.

What stands beside them (settings, checkpoints, subscriptions, snapshots) is read before that
moment: each as it was at some moment since the backup began, and none ahead of the events. So a
snapshot is never of events that the file lacks, and a reader who goes on from a checkpoint or a
subscription misses nothing and may see some events once more. Two snapshots, or a snapshot and a
subscription, may be of different moments.

**Verified.** Over all events in order runs one chain of SHA-256 (`digest`): first over what the
nodes sent, then over what the finished file gives back, after a restore over what the new store
answers. The three must be equal. Positions must be gapless, and numbers in each stream. What stands
beside the events has a digest that is compared in the same three places.

**Interrupted.** A file that is not finished has the ending `.partial` and says how far it is; the
same command goes on with it, up to the same position. A restore goes on where the store ends, after
it has compared what is there.

`digest`    an event as it counts, and the chain
`columns`   values in the columns of the file
`beside`    what stands beside the events, and its tables in the file
`file`      the SQLite file: written, finished, checked, read
`door`      requests to whichever node answers, in CBOR
`carrying`  what stands beside the events: store -> file -> store
`taking`    store -> file
`restoring` file -> store: the events

What a restore cannot bring back: times, which are chosen by the node that takes a request, and that
an event was parked. The file keeps both (`created_us`; `parked_events`).
"""


class BackupFailed(Exception):
    """A backup or a restore cannot be made, or came out other than it must."""
