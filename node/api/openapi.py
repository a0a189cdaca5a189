"""`GET /openapi.json`: the OpenAPI 3.1 document, made from the routes themselves.

Paths, parameters, bodies, good answers and problems come from the same `Route` objects that serve
the requests; the shapes of bodies are in `schemas`. The document is made once, when the server is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from node.api.answers import Answer
from node.api.media import CBOR, JSON
from node.api.parameters import Parameter
from node.api.routes import Reply, Route
from node.api.schemas import PATH_PARTS, PREAMBLE, SCHEMAS
from node.api.wire import Request
from node.errors import (
    ExesdbError,
    InvalidRequest,
    NotAcceptable,
    PayloadTooLarge,
    UnsupportedMediaType,
)

_ANY_REQUEST: tuple[type[ExesdbError], ...] = (InvalidRequest, NotAcceptable, ExesdbError)
_ANY_BODY: tuple[type[ExesdbError], ...] = (PayloadTooLarge, UnsupportedMediaType)
_PART = re.compile(r"{(\w+)}")


class Document:
    """The document. It describes itself too, so its route exists before its content does."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._encoded = b"{}"

    def routes(self) -> list[Route]:
        """What this family offers."""
        reply = Reply(200, "The OpenAPI 3.1 document.", None, (JSON.type,))
        return [Route("GET", "/openapi.json", self.get, "This document.", (reply,))]

    async def get(self, request: Request) -> Answer:
        """`GET /openapi.json`."""
        return Answer(200, self._encoded, JSON.type)

    def describe(self, routes: Iterable[Route]) -> None:
        """Make the document of all routes."""
        paths: dict[str, dict[str, Any]] = {}
        for route in routes:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
        document = {
            "openapi": "3.1.0",
            "info": {
                "title": "Event store",
                "version": self._version,
                "description": PREAMBLE,
            },
            "paths": paths,
            "components": {"schemas": SCHEMAS, "headers": _HEADERS},
        }
        self._encoded = msgspec.json.encode(document)


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "tags": [_tag(route)],
        "parameters": [
            *(_path_parameter(name) for name in _PART.findall(route.path)),
            *(_query_parameter(parameter) for parameter in route.parameters),
        ],
        "responses": _responses(route),
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": route.body_required,
            "content": _content((JSON.type, CBOR.type), route.body),
        }
    return operation


def _operation_id(route: Route) -> str:
    words = [word.strip("{}.") for word in route.path.split("/") if word and word != "v1"]
    return "_".join([route.method.lower(), *words]).replace(".", "_")


def _tag(route: Route) -> str:
    parts = route.path.split("/")
    named = [part for part in parts[2:] if part and not part.startswith("{")]
    return named[-1] if named else parts[1]


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, **PATH_PARTS[name]}


def _query_parameter(parameter: Parameter) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": parameter.name,
        "in": "query",
        "required": False,
        "description": parameter.description,
    }
    if parameter.as_json:
        return described | {"content": {JSON.type: {"schema": parameter.schema}}}
    described["schema"] = parameter.schema
    if parameter.repeats_max > 1:
        described |= {"style": "form", "explode": True}
    return described


def _responses(route: Route) -> dict[str, Any]:
    responses = {str(reply.status): _reply(route, reply) for reply in route.replies}
    kinds = [*_ANY_REQUEST, *(_ANY_BODY if route.body else ()), *route.problems]
    kinds += (kind for parameter in route.parameters for kind in parameter.problems)
    by_status: dict[int, dict[str, type[ExesdbError]]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, {})[kind.code] = kind
    for status, errors in sorted(by_status.items()):
        responses[str(status)] = _problem(route, errors)
    return responses


def _reply(route: Route, reply: Reply) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": reply.description,
        "headers": _headers(route),
    }
    if reply.schema is not None:
        described["content"] = _content(reply.types, reply.schema)
    elif len(reply.types) == 1:
        kind = "object" if reply.types[0] == JSON.type else "string"
        described["content"] = {reply.types[0]: {"schema": {"type": kind}}}
    return described


def _problem(route: Route, errors: Mapping[str, type[ExesdbError]]) -> dict[str, Any]:
    codes = sorted(errors)
    words = "; ".join(f"`{code}`: {_first_line(errors[code])}" for code in codes)
    headers = _headers(route)
    if any(error.retry_after_s is not None for error in errors.values()):
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    schema = {
        "allOf": [
            {"$ref": "#/components/schemas/Problem"},
            {"properties": {"code": {"enum": codes}}},
        ]
    }
    types = (JSON.problem_type, CBOR.problem_type)
    return {
        "description": words,
        "headers": headers,
        "content": {kind: {"schema": schema} for kind in types},
    }


def _first_line(error: type[ExesdbError]) -> str:
    return (error.__doc__ or error.title).strip().partition("\n")[0]


def _content(types: Iterable[str], schema: str) -> dict[str, Any]:
    assert schema in SCHEMAS, f"no schema {schema}"
    return {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}} for kind in types}


def _headers(route: Route) -> dict[str, Any]:
    names = ["X-Served-By"]
    if route.in_store:
        names += ["X-Position", "X-Applied-Index"]
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


_HEADERS = {
    "X-Served-By": {
        "description": "The id of the node that answered.",
        "required": True,
        "schema": {"type": "string"},
    },
    "X-Position": {
        "description": "The last position applied on this node in the store, if it is known here.",
        "schema": {"type": "integer"},
    },
    "X-Applied-Index": {
        "description": "The Raft index that this node has applied.",
        "required": True,
        "schema": {"type": "integer"},
    },
    "Retry-After": {
        "description": "Seconds after which the same request may succeed.",
        "schema": {"type": "integer"},
    },
}
