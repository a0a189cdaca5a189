"""Everything that knows that there is more than one node.

A node knows its peers' addresses and nothing about how they came to run. This package starts them,
stops them, kills them, and asks them how they are, as an operator would: with a command line, with
signals, and over HTTP. It never imports `node`, so what works from here works from any machine.

`topology`    which nodes a local cluster has: ids, ports, directories, command lines
`supervisor`  real node processes: start, wait until ready, stop, kill, restart
`access`      a request to whichever node answers
`up`, `flush`, `status`   what stands behind `scripts/cluster`, `scripts/flush`, `scripts/status`
`__main__`, `cli`         the command line `exesdb`: those, and append, read, tail, subscribe, ...
`backup`                  a store into a file, and back
`demo`, `bench`           a year of real events through three nodes; figures
"""
