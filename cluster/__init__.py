"""Everything that knows that there is more than one node.

A node knows its peers' addresses and nothing about how they came to run. This package starts them,
stops them, kills them, and asks them how they are, as an operator would: with a command line, with
signals, and over HTTP. It never imports `node`, so what works from here works from any machine.

`topology`    which nodes a local cluster has: ids, ports, directories, command lines
`supervisor`  real node processes: start, wait until ready, stop, kill, restart
`access`      a request to whichever node answers
`tables`      tables that a narrow screen does not cut
`up`, `flush`, `status`, `member`   what stands behind `scripts/cluster` and those of their names
`recover_plan`, `recover`           going on without members that are gone for good
`client_errors`, `client_values`, `client_events`   what the client for programs takes and tells
`client_lineage`, `client_routing`   which history it follows, and which node it asks
`client_answers`, `client_asking`    what an answer says, and how often it asks
`client`, `client_streams`, `client_snapshots`, `client_subscriptions`, `client_consumer`   what it
  can do
`client_loop`, `client_sync_consumer`, `client_sync`   the same without `await`
`client_ws`   one pipelined connection to one node
`__main__`, `cli`   the command line `exesdb`: those, and append, read, tail, subscribe, ...
`demo_flights`, `demo_transfer`, `demo`   a year of real events through three nodes
`backup`      a store into a file, and back
`bench`       figures
`chaos`       real nodes under real faults, and a judgement
"""
