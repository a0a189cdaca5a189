"""Real nodes under real faults, recording clients, and a judgement of what they recorded.

Read in this order:

    history    what clients write down: every append with its outcome, every read with its answer
    checker    what that must have been like, given what the nodes hold in the end; pure
    links      the connections between nodes, which can be cut, silenced in one direction, slowed
    ground     the nodes, their disks and links, and who of them is up
    rules      which faults may coincide, so that an acknowledged event must survive them all
    faults     what is done to the nodes, drawn from a seed
    clients    who appends and reads meanwhile
    keepers    who records and reads snapshots, and the judge of that
    removers   who has streams from which events are removed
    removals   the judge of what is shown of these; pure
    consumers_beside   consumers of a persistent subscription beside all this; see below
    watch      memory, pauses and progress, and what the nodes' logs tell afterwards
    final      what each node holds in the end, through HTTP and in its files
    trial      one run, from the first start to the last stop
    report     what came out, for people and for programs
    failover   another question: how long until appends go on after the leader was killed

A third question, what becomes of a persistent subscription when nodes and consumers die:

    deliveries         the judge of what its consumers wrote down; pure
    consumers          who handles events, refuses some, and may be killed
    consumers_killed   a run of its own: consumers and nodes are killed, nothing else is done

Nothing here imports `node`: nodes get a command line and are talked to over HTTP.
"""
