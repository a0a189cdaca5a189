"""Backups: a whole store in one SQLite file, taken while it is in use, and brought back.

**Consistent.** A position never changes what it holds. So a backup asks once how far the store is,
through the log (`consistency=linearizable`), and then reads up to there, from whichever node
answers, while others append. The events that it has in the end are those of that one moment, but
for what was removed before all had been read.

What stands beside them (settings, checkpoints, subscriptions, snapshots) is read before that
moment: each as it was at some moment since the backup began, and none ahead of the events. So a
snapshot is never of events that the file lacks, and a reader who goes on from a checkpoint or a
subscription misses nothing and may see some events once more. Two snapshots, or a snapshot and a
subscription, may be of different moments.

**What was removed** stays removed, and all else where it was. How that stands in the file is told
in `file`, how a removal meanwhile is dealt with in `lives`, and how a restore gets by in `history`.

**Verified.** Over all events in order runs one chain of SHA-256 (`digest`): first over what the
nodes sent, then over what the finished file gives back, after a restore over what the new store
answers. The three must be equal. Positions must be gapless, and numbers in each stream, but for
what the lives of streams say was removed: no more and no less. What stands beside the events has a
digest that is compared in the same three places.

**Interrupted.** A file that is not finished has the ending `.partial` and says how far it is; the
same command goes on with it, up to the same position. A restore goes on where the store ends, after
it has compared what is there.

`digest`    an event as it counts, and the chain
`columns`   values in the columns of the file
`beside`    what stands beside the events, and its tables in the file
`history`   a history with what stands in for removed events
`file`      the SQLite file: checked, read
`writing`   the same: written, finished
`threads`   work in a thread, whose end is waited for
`door`      requests to whichever node answers, in CBOR
`carrying`  what stands beside the events: store -> file -> store
`lives`     what streams keep, and which are deleted: store -> file -> store
`taking`    store -> file
`restoring` file -> store: the events

What a restore cannot bring back: times, which are chosen by the node that takes a request, and that
an event was parked. The file keeps both (`created_us`; `parked_events`). The ids of removed events
are nowhere: who repeats such an append behind a restore appends once more.
"""


class BackupFailed(Exception):
    """A backup or a restore cannot be made, or came out other than it must."""
