"""The HTTP API of a node: the only package that imports aiohttp's server side.

`server.ApiServer` is the way in: it listens, finds the route of each request, and turns errors into
problems. What it needs from the rest of the node stands in `ports`. Read in this order:

* `server`     the way of one request
* `routes`     how a path finds its handler; one list that serves and documents
* `appends`    the hot path: body -> frames -> command -> answer (`bodies`, `framing`,
  `values`, `event_ids`)
* `gathering`  the appends of a turn of the event loop become one command
* `wanted`     the filter language, for all who choose events
* `reads`      pages of events (`levels`, `filters`, `records`, `arrivals`)
* `snapshots`  snapshots of aggregates (`snapshot_records`)
* `lives`      how streams end, and what they keep
* `folds`      a stream folded from its latest snapshot on
* `following`  a store from a position on, for as long as a client listens (`courses`, `crowds`,
  `streamed`)
* `talks`      the WebSocket: `socket_messages` says what is spoken, `conversation` speaks it
  (`sockets`, `socket_appends`, `socket_feeds`, `socket_consumers`, `socket_records`)
* `subscriptions`, `deliveries`   persistent subscriptions: as a whole, and what consumers do
  (`desks`, where they wait; `settlements`; `subscription_schemas`)
* `stores`, `checkpoints`, `persistence`, `cluster`, `members`, `recovery`, `metrics`   the other
  families
* `openapi`, `schemas`   the document, made from the routes
* `media`, `names`, `parameters`, `problems`, `refusals`, `limits`   the rules that all share
* `walking`, `not_plain`   items walked over before they are decoded; what is said of bad ones
* `pacing`     a turn for others in a long computation
* `wire`       the seam to aiohttp (`known_heads`: requests whose header lines came before;
  `answers`: what is said to a client; `outbox`: answers of one turn, written together)
"""
