"""PySyncObj's side of the transport: the few messages that it still makes itself become ours.

The library knows its peers through a `Transport`. This one has no sockets: what the library says
is translated and put into an outbox, what the guard lets through is delivered. A kind of message
that the library must not send (its snapshots, its forwarding) is refused here.
"""

from __future__ import annotations

from typing import Any, Protocol

from pysyncobj.node import Node
from pysyncobj.transport import Transport

from node.raft.messages import Message, RequestVote, TimeoutNow, Vote


class Outbox(Protocol):
    """Where the engine puts what it wants said. `send` is False where the message was dropped."""

    def send(self, peer: str, message: Message) -> bool:
        """Queue a message for a peer."""


class NoPoller:
    """The library polls sockets at the end of a tick; ours are the event loop's."""

    def poll(self, timeout: float) -> None:
        """Nothing to poll."""


class Bridge(Transport):  # type: ignore[misc]
    """The library's side of the transport: its few remaining own messages become ours."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(None, None, None)
        self._outbox = outbox

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        """The library's own word. Raises `AssertionError` for what it must never say."""
        kind = message["type"]
        if kind == "request_vote":
            translated: Message = RequestVote(
                message["term"], message["last_log_index"], message["last_log_term"]
            )
        elif kind == "response_vote":
            translated = Vote(message["term"])
        elif kind == "timeout_now":
            translated = TimeoutNow(message["term"])
        else:
            raise AssertionError(f"the library must not send {kind}")
        return self._outbox.send(node.id, translated)

    def connected(self, peer: str) -> None:
        """Tell the library of a session."""
        self._onNodeConnected(Node(peer))

    def disconnected(self, peer: str) -> None:
        """Tell the library of its end."""
        self._onNodeDisconnected(Node(peer))

    def deliver(self, peer: str, message: dict[str, Any]) -> None:
        """Give the library a message; `library` makes it, from one that the guard let through."""
        self._onMessageReceived(Node(peer), message)
