"""Routes: what the contract offers, where it leads, and how a path finds it.

Each family of routes (`appends`, `reads`, ...) gives a list of `Route`. One list is everything:
the tree that requests are matched against, the `Allow` header of a wrong method, the parameters
that are parsed and refused, and the OpenAPI document. So what is documented cannot differ from what
is there.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from node.api import names
from node.api.answers import Answer
from node.api.parameters import Parameter, Values, parse_query
from node.errors import ExesdbError, InvalidRequest, MethodNotAllowed, RouteMissing

Handler = Callable[..., Awaitable[Answer]]

REMEMBERED_MAX = 4_096
REMEMBERED_LENGTH_MAX = 1_024

# What the parts of a path in braces are, by their names.
_SEGMENTS: dict[str, Callable[[str], Any]] = {
    "store": names.store_name,
    "stream": names.stream_name,
    "name": names.plain_name,
    "source": names.source_name,
    "version": names.snapshot_version,
    "id": names.member_id,
}


BOTH = ("application/json", "application/cbor")

_ORIGIN = re.compile("https?://[^/?#]*", re.IGNORECASE).match


@dataclass(frozen=True, slots=True)
class Reply:
    """One good answer of a route; `schema` names a component of the OpenAPI document."""

    status: int
    description: str
    schema: str | None = None
    types: tuple[str, ...] = BOTH


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One method of one path.

    `handler` is called with the request and the decoded parts of the path. `body` names the schema
    of the request's body; `problems` are the errors that it may answer beside those that any
    request may meet.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    replies: tuple[Reply, ...]
    parameters: tuple[Parameter, ...] = ()
    body: str | None = None
    body_required: bool = True
    problems: tuple[type[ExesdbError], ...] = ()
    decoders: tuple[Callable[[str], Any], ...] = field(init=False)
    in_store: bool = field(init=False)
    known: dict[str, Parameter] = field(init=False)
    defaults: Values = field(init=False)

    def __post_init__(self) -> None:
        parts = [part[1:-1] for part in self.path.split("/") if part.startswith("{")]
        object.__setattr__(self, "decoders", tuple(_SEGMENTS[part] for part in parts))
        object.__setattr__(self, "in_store", "store" in parts)
        known = {parameter.name: parameter for parameter in self.parameters}
        object.__setattr__(self, "known", known)
        defaults = {name: parameter.default for name, parameter in known.items()}
        object.__setattr__(self, "defaults", defaults)

    @property
    def negotiates(self) -> bool:
        """Whether `Accept` chooses between JSON and CBOR, and nothing else will do."""
        return self.replies[0].types == BOTH

    def values(self, query: str) -> Values:
        """The values of the query parameters. Raises `RequestError`."""
        if not query:
            return self.defaults
        return parse_query(query, self.known, self.defaults)


class Found:
    """Where a path leads: its route, and what stands in it where the route has braces."""

    __slots__ = ("_names", "_parts", "route")

    def __init__(self, route: Route, parts: list[str]) -> None:
        self.route = route
        self._parts = parts
        self._names: list[Any] | None = None

    def names(self) -> list[Any]:
        """The decoded parts. Raises `InvalidRequest`."""
        if self._names is None:
            pairs = zip(self.route.decoders, self._parts, strict=True)
            self._names = [decode(part) for decode, part in pairs]
        return self._names


class _Place:
    """A point in the tree of paths: what may follow, and which methods end here."""

    __slots__ = ("any", "methods", "named")

    def __init__(self) -> None:
        self.named: dict[str, _Place] = {}
        self.any: _Place | None = None
        self.methods: dict[str, Route] = {}


class Router:
    """Finds the route of a method and path, in one step a segment.

    What was found lately is remembered, because the same paths come again and again. At
    `REMEMBERED_MAX` all are forgotten and found anew.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = list(routes)
        self._root = _Place()
        self._remembered: dict[tuple[str, str], Found] = {}
        for route in self.routes:
            self._add(route)

    def find(self, method: str, path: str) -> Found:
        """The route, with the parts of the path that stand where it has braces.

        Raises `RouteMissing`, `MethodNotAllowed` (field `allow`), or `InvalidRequest` for a target
        that is not a path.
        """
        found = self._remembered.get((method, path))
        if found is None:
            found = self._found(method, path)
            if len(path) <= REMEMBERED_LENGTH_MAX:
                if len(self._remembered) >= REMEMBERED_MAX:
                    self._remembered.clear()
                self._remembered[method, path] = found
        return found

    def _found(self, method: str, path: str) -> Found:
        if not path.startswith("/") or "#" in path:
            raise InvalidRequest("the request target must be a path; encode '#' as %23")
        place: _Place | None = self._root
        parts: list[str] = []
        for segment in path[1:].split("/"):
            assert place is not None
            step = place.named.get(segment)
            if step is None:
                parts.append(segment)
                step = place.any
                if step is None:
                    raise RouteMissing(f"no route {path[:200]!r}")
            place = step
        assert place is not None
        return Found(self._by_method(place, method, path), parts)

    def _by_method(self, place: _Place, method: str, path: str) -> Route:
        route = place.methods.get("GET" if method == "HEAD" else method)
        if route is not None:
            return route
        if not place.methods:
            raise RouteMissing(f"no route {path[:200]!r}")
        allow = sorted(place.methods) + (["HEAD"] if "GET" in place.methods else [])
        raise MethodNotAllowed(f"{method[:40]} is not allowed here", allow=allow)

    def _add(self, route: Route) -> None:
        place = self._root
        for segment in route.path[1:].split("/"):
            if segment.startswith("{"):
                place.any = place.any or _Place()
                place = place.any
            else:
                place = place.named.setdefault(segment, _Place())
        assert route.method not in place.methods, f"{route.method} {route.path} stands twice"
        place.methods[route.method] = route


def origin_form(target: str) -> str:
    """Path and query of a request target, which may be a whole URL (RFC 9112, 3.2.2)."""
    origin = None if target.startswith("/") else _ORIGIN(target)
    if origin is None:
        return target
    rest = target[origin.end() :]
    return rest if rest.startswith("/") else "/" + rest


def object_schema(properties: dict[str, Any], required: Iterable[str] = ()) -> dict[str, Any]:
    """A JSON schema of an object that has these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
