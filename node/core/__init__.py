"""The event store as a pure state machine: what every node computes alike.

Nothing here does IO, reads a clock, draws a random number, logs or awaits. Whatever varies from
node to node (time, ids) enters as data inside a command. Read in this order:

* `frames`    how one event is encoded, once, for the log, memory, disk and CBOR readers
* `husks`     what is left of a frame whose event was removed
* `items`     how bytes are taken apart, alike wherever that is done
* `fields`    what the fields of a command may hold
* `versions`  what a writer may say about where a stream stands
* `commands`  what can be asked of the replicated state, encoded where the request enters
* `outcomes`  what the state answers; refusals are values, never exceptions
* `stream`    one stream: the positions of its events, and which of them are kept
* `ids`       event ids as texts and as bytes
* `recent`    which event ids are remembered, so that a retry gets its original answer
* `folding`   what events come to, key by key
* `snapshots` what was folded of streams, kept by source, stream and version
* `columns`   how the events of a store stand in memory
* `life_commands`, `lives`
              how streams are truncated, limited and deleted
* `store`     one store: events in position order, streams, checkpoints, snapshots
* `filters`   which events somebody wants (`conditions`: by what is in them)
* `subscription_commands`, `subscription`, `subscription_state`, `subscriptions`
              who was handed which event, and what became of it; its commands, and it as bytes
* `appending` several appends in one command, each for itself
* `state`     all stores, and `apply`, the one door through which anything changes
* `portion`   a store in parts that vouch for themselves, for a node that is filled
"""
