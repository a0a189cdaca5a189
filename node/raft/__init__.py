"""Replication: PySyncObj's Raft, guarded, driven by the node's event loop.

PySyncObj decides who leads and what is committed. Everything around it is ours, because what it
brings is not safe (see "What the library gets wrong" in ARCHITECTURE): transport, codec, log,
durable promises, replication to a peer, group commit, forwarding, recovery. Read in this order:

* `ports`      what this package needs from the node around it, and the port to its peers
* `plain`      the CBOR that is spoken: nothing that costs more than its bytes
* `messages`   what nodes say to one another, with a limit on everything
* `lineage`    which history a node follows, and whom it may therefore speak with
* `session`    one authenticated connection to a peer
* `grievances` why there is no session, in the log
* `door`       the listening port where TLS comes first, with room for so many strangers
* `transport`  one live session a peer, dialling, bounded queues
* `membership` who belongs to the cluster, and in which steps that may change
* `membership_log` which membership counts on this node now
* `membership_change` who may change it, when, and in which steps
* `journal`    the Raft log in memory, and the promises that must be durable
* `window`     how much may be under way to a peer
* `bridge`     the library's side of the transport
* `library`    the only module that reaches into PySyncObj and its mangled names
* `pinned`     the one version of PySyncObj that it may reach into
* `guard`      what may reach the library, and what it may say
* `attention`  how silence is measured by a node that was itself not run for a while
* `election`   when to stand for election: only after a majority would agree (PreVote)
* `recovery`   how a node that may have forgotten promises comes back
* `entries`    the content of a log entry: the commands of one group commit, or a membership
* `announcement` when followers are told that the commit index has moved
* `proposals`  from a command to its outcome: queue, group commit, forwarding, deadlines
* `requests`   questions between nodes that want an answer
* `fill_source`, `fill_offer`, `fill_digests`, `fill_snapshots`, `fill_subscriptions`, `fill_lives`,
  `fill_checkpoints`, `fill_receiver`, `filling`
  how a node that is further behind than the log reaches is brought up: who has it, who lacks it,
  and when
* `retention`  when events are too old: the leader's clock
* `waiting`    until this node has applied far enough
* `members`    what is known here of every member
* `reads`      barriers for reads
* `handover`   giving leadership away
* `flush`      asking the peers' persistence workers
* `durability` waiting until a majority has something on disk
* `replica`    the whole, as the rest of the node sees it
"""
