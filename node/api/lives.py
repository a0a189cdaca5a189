"""The life of streams: deleting one, and saying what it keeps.

    DELETE /v1/stores/{store}/streams/{stream}           all its events are removed
    PUT    /v1/stores/{store}/streams/{stream}/metadata  so many, so long, from which number on

What removes which events is said in `core.lives`. A removed event is in no read any more, its
position is passed by. A stream that was deleted reads as absent; whoever appends to it begins it
anew, with the number behind its last one. After `hard=true` all that names it is answered 410.
"""

from __future__ import annotations

from typing import Any

from node.api.answers import Answer
from node.api.appends import expected_code, refused
from node.api.bodies import BodyReader, Decoder, StreamMetadataBody
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.parameters import Parameter, flag, timeout
from node.api.ports import Replica
from node.api.refusals import refusal
from node.api.routes import Reply, Route
from node.api.stores import CHANGE_PROBLEMS
from node.api.wire import Request
from node.core import life_commands
from node.core.outcomes import MetadataSet, StreamRemoved
from node.core.stream import Limits
from node.errors import (
    InvalidExpectedVersion,
    StoreMissing,
    StreamDeleted,
    StreamMissing,
    WrongExpectedVersion,
)

ALIVE, DELETED, DELETED_FOR_EVER = LIVES = ("alive", "deleted", "deleted_for_ever")
"""What an answer says of the life of a stream."""

_PATH = "/v1/stores/{store}/streams/{stream}"
_DIGITS_MAX = 40  # of an expected version in a query
_PROBLEMS = (*CHANGE_PROBLEMS, StoreMissing, StreamMissing, StreamDeleted)


class LifeRoutes:
    """The routes by which events are removed."""

    def __init__(self, replica: Replica, bodies: BodyReader, limits: ApiLimits) -> None:
        self._replica = replica
        self._bodies = bodies
        self._timeout = timeout(limits)
        self._decode = Decoder(StreamMetadataBody, limits)

    def routes(self) -> list[Route]:
        """What this family offers."""
        return [
            Route(
                "DELETE",
                _PATH,
                self.delete,
                "Delete a stream.",
                (Reply(204, "Its events are removed."),),
                (
                    _expected_version(),
                    flag("hard", "For ever: nobody can append to the stream any more."),
                    self._timeout,
                ),
                problems=(*_PROBLEMS, WrongExpectedVersion, InvalidExpectedVersion),
            ),
            Route(
                "PUT",
                _PATH + "/metadata",
                self.put_metadata,
                "Set what a stream keeps, all of it at once.",
                (Reply(200, "It is in force.", "StreamMetadata"),),
                (self._timeout,),
                body="StreamMetadataBody",
                problems=_PROBLEMS,
            ),
        ]

    async def delete(self, request: Request, store: str, stream: str) -> Answer:
        """`DELETE /v1/stores/{store}/streams/{stream}`."""
        given = request.parameters
        expected = given["expected_version"]
        code = expected_code(expected)
        command = life_commands.delete_stream(store, stream, code, given["hard"])
        outcome, _ = await self._replica.propose(command, given["timeout_ms"])
        if not isinstance(outcome, StreamRemoved):
            raise refused(outcome, [(stream, code, expected)])
        return Answer(204)

    async def put_metadata(self, request: Request, store: str, stream: str) -> Answer:
        """`PUT /v1/stores/{store}/streams/{stream}/metadata`."""
        body = await self._decode(await self._bodies.read(request), sent(request.message.headers))
        limits = Limits(body.max_count, body.max_age_ms, body.truncate_before)
        command = life_commands.set_metadata(store, stream, limits)
        outcome, _ = await self._replica.propose(command, request.parameters["timeout_ms"])
        if not isinstance(outcome, MetadataSet):
            raise refusal(outcome)
        said = {
            "stream": stream,
            "first_event_number": outcome.first,
            "metadata": metadata(limits._replace(truncate_before=outcome.truncate_before)),
        }
        media = request.wants
        return Answer(200, media.encode(said), media.type)


def metadata(limits: Limits) -> dict[str, Any]:
    """A stream's metadata in an answer: those limits that there are."""
    return {name: limit for name, limit in limits._asdict().items() if limit is not None}


def _expected_version() -> Parameter:
    def parse(given: str) -> int | str:
        digits = given.removeprefix("-")
        is_number = digits.isascii() and digits.isdecimal() and len(digits) <= _DIGITS_MAX
        return int(given) if is_number else given

    return Parameter(
        "expected_version",
        "Delete it only where it is at this version, or as `any`, `no_stream` or `stream_exists` "
        "say.",
        {
            "oneOf": [
                {"type": "integer", "minimum": -1},
                {"enum": ["any", "no_stream", "stream_exists"]},
            ],
            "default": "any",
        },
        parse,
        "any",
    )
