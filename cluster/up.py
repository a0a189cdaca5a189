"""Up: a local cluster in the foreground. Behind `scripts/cluster`.

It starts the nodes, waits until all are ready, says where they are and what to try first, and then
watches. What the nodes log appears on stderr, each line with its node's id; the banner is on
stdout.

A node that dies is reported and started again after `RESTART_S`, long enough to see the other two
go on without it; `--no-restart` leaves it dead. One that dies again and again is started ever more
slowly, up to `RESTART_S_MAX`. Ctrl-C or SIGTERM stops all nodes and waits for their last flush; a
second one kills them.

Exit codes: 0 all stopped cleanly; 1 a node did not start, or had to be killed to stop; 2 a port is
in use; 64 wrong options.
"""

import argparse
import asyncio
import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from cluster.access import DEFAULT_URLS
from cluster.cli.ending import WRONG_USAGE, Failure, ended, shown
from cluster.cli.options import Parser
from cluster.supervisor import PROJECT, NodeFailed, NodeProcess, PortBusy, Supervisor, how_it_ended
from cluster.topology import NODES_MAX, LocalNode, Topology, local

PROG = "scripts/cluster"

RESTART_S = 3.0
RESTART_S_MAX = 60.0
_STEADY_S = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_BUSY = 2
_PORT_HINT = (
    "Another cluster may be running here: stop it, or choose other ports with --http-port and"
    " --raft-port"
)
_DESCRIPTION = "Run a cluster of the event store on this machine, in the foreground."
_EPILOG = """\
examples:
  {prog}
  {prog} --nodes 5 --data-dir /tmp/trial --persistence-interval 1000
  {prog} -- --log-level debug        what stands behind -- goes to every node

Ctrl-C stops all nodes; each writes what is not on disk yet, so nothing is lost. A node that dies is
reported and started again after 3 s; --no-restart leaves it dead.

exit codes: 0 all stopped cleanly, 1 a node did not start or had to be killed, 2 a port is in use,
64 wrong options
"""


def parse(argv: list[str], prog: str = PROG) -> argparse.Namespace:
    """The options; leaves with exit 64 on wrong ones."""
    parser = Parser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EPILOG.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--nodes", type=int, default=3, metavar="N", help=f"1..{NODES_MAX}, default 3")
    add("--data-dir", type=Path, default=Path("data"), metavar="DIR",
        help="each node keeps its files in DIR/<node id>; default ./data")  # fmt: skip
    add("--http-port", type=int, default=8101, metavar="PORT",
        help="of the first node, the others follow; default 8101")  # fmt: skip
    add("--raft-port", type=int, default=7101, metavar="PORT",
        help="of the first node, the others follow; default 7101")  # fmt: skip
    add("--store-id", default="my_store", metavar="STORE",
        help="store that exists from the start; default my_store")  # fmt: skip
    add("--persistence-interval", type=int, metavar="MS", help="default 5000")
    add("--no-restart", action="store_true", help="leave a node that died dead")
    add("--json", action="store_true",
        help="on stdout only one line of JSON: the nodes, once they are ready")  # fmt: skip
    add("node_options", nargs="*", metavar="-- OPTION", help="further options of every node")
    return parser.parse_args(argv)


def topology_of(options: argparse.Namespace) -> Topology:
    """The cluster that the options ask for. Raises ValueError."""
    words = ["--store-id", options.store_id, "--log-format", "text"]
    if options.persistence_interval is not None:
        words += ["--persistence-interval", str(options.persistence_interval)]
    return local(
        count=options.nodes,
        data_dir=options.data_dir.absolute(),
        http_port=options.http_port,
        raft_port=options.raft_port,
        options=(*words, *options.node_options),
    )


def main(argv: list[str], prog: str = PROG) -> int:
    """Run the cluster until told to stop; the exit code."""
    options = parse(argv, prog)
    try:
        up = Up(
            topology_of(options),
            options.store_id,
            restart=not options.no_restart,
            prog=prog,
            as_json=options.json,
        )
        return shown(prog, up.run(), options.json)
    except ValueError as error:
        return ended(options, Failure(str(error), WRONG_USAGE, "wrong_usage"))
    except PortBusy as error:
        return ended(options, Failure(f"{error}. {_PORT_HINT}", _BUSY, "port_in_use"))


class Up:
    """A cluster from its start to its stop, with what a person sees of it."""

    def __init__(
        self,
        topology: Topology,
        store: str,
        restart: bool = True,
        restart_s: float = RESTART_S,
        console: Console | None = None,
        prog: str = PROG,
        as_json: bool = False,
    ) -> None:
        self._supervisor = Supervisor(topology)
        self._store = store
        self._restart = restart
        self._restart_s = restart_s
        self._console = console or Console(highlight=False, soft_wrap=True, stderr=as_json)
        self._as_json = as_json
        self._prog = prog
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Start, watch, stop. Raises PortBusy before anything is started."""
        self._listen_to_signals(self._stop.set)
        self._console.print(f"Starting {', '.join(self._supervisor.nodes)} ...")
        try:
            if not await self._unless_stopped(self._supervisor.start()):
                return await self._shut_down()
        except NodeFailed as error:
            print(f"{self._prog}: {error}", file=sys.stderr)
            await self._shut_down()
            return 1
        self._say_ready()
        watchers = [asyncio.create_task(self._watch(each)) for each in self._processes]
        await self._stop.wait()
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        return await self._shut_down()

    def _say_ready(self) -> None:
        topology = self._supervisor.topology
        if self._as_json:
            print(json.dumps(ready_line(topology, self._store)), flush=True)
        else:
            self._console.print(banner(topology, self._store, self._prog))

    @property
    def _processes(self) -> list[NodeProcess]:
        return list(self._supervisor.nodes.values())

    def _listen_to_signals(self, react: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, react)

    async def _unless_stopped(self, starting: Coroutine[Any, Any, None]) -> bool:
        """Whether the start came to its end before somebody asked to stop."""
        task = asyncio.ensure_future(starting)
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return False

    async def _watch(self, process: NodeProcess) -> None:
        """Report each death of the node, and start it again unless told otherwise."""
        clock = asyncio.get_running_loop().time
        name, deaths, started = process.node.node_id, 0, clock()
        while True:
            exit_code = await process.wait_exit()
            # In one piece: the nodes write to the same terminal.
            ended = f"[yellow]{name} {how_it_ended(exit_code)}.[/]"
            if not self._restart:
                again = f"To start it again:\n  {escape(command_line(process.node))}"
                self._console.print(f"{ended} {again}")
                return
            deaths = 1 if clock() - started > _STEADY_S else deaths + 1
            pause_s = min(self._restart_s * 2 ** (deaths - 1), RESTART_S_MAX)
            self._console.print(f"{ended} It starts again in {pause_s:g} s.")
            await asyncio.sleep(pause_s)
            started = clock()
            await process.start()
            with contextlib.suppress(NodeFailed):
                await process.wait_ready()
                self._console.print(f"[green]{name} is ready again.[/]")

    async def _shut_down(self) -> int:
        """Stop all nodes; a second signal kills them."""
        running = [process.node.node_id for process in self._processes if process.running]
        self._console.print(f"\nStopping {', '.join(running) or 'nothing'} ...")
        kills: set[asyncio.Task[None]] = set()
        self._listen_to_signals(lambda: kills.add(asyncio.create_task(self._supervisor.kill())))
        codes = await self._supervisor.stop()
        # One that knows the signal ends with a code; one it kills had not begun to start yet.
        unclean = [name for name in running if codes[name] not in (0, -signal.SIGTERM)]
        for name in unclean:
            self._console.print(f"[red]{name} {how_it_ended(codes[name])}.[/]")
        if not unclean:
            self._console.print("All stopped cleanly.")
        return 1 if unclean else 0


def command_line(node: LocalNode) -> str:
    """A node's command line as one would type it, from any directory."""
    return f"cd {shlex.quote(str(PROJECT))} && {shlex.join(node.argv)}"


def ready_line(topology: Topology, store: str) -> dict[str, Any]:
    """What a program learns when the cluster is ready."""
    nodes = [
        {"id": node.node_id, "url": node.url, "data_dir": str(node.data_dir)}
        for node in topology.nodes
    ]
    return {"event": "ready", "store": store, "nodes": nodes}


def banner(topology: Topology, store: str, prog: str = PROG) -> str:
    """What a person reads when the cluster is ready: where it is, and what to try first."""
    url = topology.nodes[0].url
    stream = f"{url}/v1/stores/{store}/streams/greetings/events"
    event = '{"events": [{"event_type": "greeted", "data": {"hello": "world"}}]}'
    nodes = "\n".join(
        f"  {each.node_id}  {each.url}   {escape(str(each.data_dir))}" for each in topology.nodes
    )
    count = len(topology.nodes)
    tools = "scripts/" if prog == PROG else "exesdb "
    urls = ",".join(each.url for each in topology.nodes)
    found = ". " if url in DEFAULT_URLS else f", which find it by\n  export EX_ESDB_URL={urls}\n"
    title = f"The cluster is ready: {count} node{'s' if count > 1 else ''}, store {store}"
    return f"""
[bold green]{title}[/]
{nodes}

Append an event, and read it from another node:
  curl {stream} \\
       -H 'content-type: application/json' \\
       -d '{event}'
  curl {stream.replace(url, topology.nodes[-1].url)}

Then {tools}status and {tools}flush{found}Ctrl-C stops all nodes cleanly.
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
