"""The OpenAPI document: sound in itself, complete, and true of real answers."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pytest

from node.errors import ExesdbError
from tests.api.fakes import Answered, Node

ORDER = {
    **{"lineage": "one", "parent": "zero", "membership_version": 1},
    **{"voters": {"n1": "127.0.0.1:7101"}, "missing": ["n2"]},
}
STREAM = "/v1/stores/main/streams/s"
WORKERS = "/v1/stores/main/subscriptions/workers"
SNAPSHOT = "/v1/stores/main/snapshots/o-1/s/7"


async def document(node: Node) -> dict[str, Any]:
    answer = await node.ask("GET", "/openapi.json", headers={"Accept": "text/html"})
    assert answer.status == 200
    return answer.body


async def test_the_document_is_openapi_3_1(node: Node):
    found = await document(node)
    assert found["openapi"] == "3.1.0"
    assert found["info"]["title"] and found["info"]["version"] == "0.1.0"
    ids = [operation["operationId"] for _, _, operation in operations(found)]
    assert len(ids) == len(set(ids))
    for path, method, operation in operations(found):
        assert operation["summary"].endswith("."), path
        in_path = re.findall(r"{(\w+)}", path)
        described = [one["name"] for one in operation["parameters"] if one["in"] == "path"]
        assert in_path == described
        assert all(one["required"] for one in operation["parameters"] if one["in"] == "path")
        names = [(one["in"], one["name"]) for one in operation["parameters"]]
        assert len(names) == len(set(names)), (method, path)
        for status, response in operation["responses"].items():
            assert re.fullmatch("[1-5][0-9][0-9]", status)
            assert response["description"], (path, status)


async def test_the_official_validator_accepts_the_document(node: Node):
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(await document(node))


@pytest.mark.parametrize("name", ["a", "a/b $ü", "x" * 255, "", "$a", "a\x00", "\x85a", "x" * 256])
async def test_the_document_knows_which_names_are_taken(node: Node, name):
    found = await document(node)
    answer = await node.ask("GET", f"/v1/stores/main/streams/{quote(name, safe='')}/events")
    for part in found["paths"]["/v1/stores/{store}/streams/{stream}/events"]["get"]["parameters"]:
        if part["name"] == "stream":
            schema = part["schema"]
    fitting = schema["minLength"] <= len(name) <= schema["maxLength"]
    fitting = fitting and re.search(schema["pattern"], name) is not None
    assert (answer.status == 200) == fitting


async def test_every_reference_leads_somewhere_and_every_component_is_used(node: Node):
    found = await document(node)
    used = set(references(found["paths"]))
    todo = list(used)
    while todo:
        target = resolve(found, todo.pop())
        fresh = set(references(target)) - used
        used |= fresh
        todo += fresh
    kinds = found["components"].items()
    assert used == {f"#/components/{kind}/{name}" for kind, all_ in kinds for name in all_}


async def test_every_route_is_described_with_its_problems(node: Node):
    found = await document(node)
    described = {(method.upper(), path) for path, method, _ in operations(found)}
    assert described == {(route.method, route.path) for route in node.api.routes()}
    for route in node.api.routes():
        responses = found["paths"][route.path][route.method.lower()]["responses"]
        for error in (*route.problems, ExesdbError):
            assert f"`{error.code}`" in responses[str(error.status)]["description"], route.path
        for reply in route.replies:
            assert str(reply.status) in responses


async def test_real_answers_are_as_the_document_says(node: Node):
    found = await document(node)
    node.replica.peers = ["n2"]
    node.peer_results["n2"] = {
        "persisted_index": 1,
        "persisted_position": 1,
        "bytes": 0,
        "duration_ms": 0.5,
    }
    event = {"event_type": "A", "metadata": None, "data_base64": "AA=="}
    many = {"events": [{"stream": "s", **event}], "checkpoint": {"name": "c", "position": 1}}
    asked = [
        ("POST", f"{STREAM}/events", 201, {"events": [event], "expected_version": "any"}),
        ("POST", f"{STREAM}/events", 409, {"events": [event], "expected_version": 7}),
        ("POST", f"{STREAM}/events", 400, {"events": [{}]}),
        ("POST", f"{STREAM}/events?durability=persisted", 201, {"events": [event]}),
        ("POST", "/v1/stores/main/append", 201, many),
        ("GET", f"{STREAM}/events", 200, None),
        ("GET", "/v1/stores/main/events", 200, None),
        ("GET", "/v1/stores/main/events?limit=x", 400, None),
        ("GET", "/v1/stores/main/events?limit=99999", 413, None),
        ("GET", "/v1/stores/main/events?min_index=99&timeout_ms=1", 504, None),
        ("GET", "/v1/stores/main/streams", 200, None),
        ("GET", "/v1/stores/main/streams?deleted=true&until=1", 200, None),
        ("GET", STREAM, 200, None),
        ("GET", "/v1/stores/main/streams/none", 404, None),
        ("GET", "/v1/stores/main/subscribe?after=x", 400, None),
        ("GET", "/v1/stores/main/ws", 426, None),
        ("GET", "/v1/stores", 200, None),
        ("GET", "/v1/stores/main", 200, None),
        ("PUT", "/v1/stores/new", 201, None),
        ("PUT", "/v1/stores/new", 200, None),
        ("DELETE", "/v1/stores/new", 204, None),
        ("PUT", "/v1/stores/main/checkpoints/d", 200, {"position": 1}),
        ("PUT", "/v1/stores/main/checkpoints/d", 409, {"position": 1}),
        ("GET", "/v1/stores/main/checkpoints/d", 200, None),
        ("GET", "/v1/stores/main/checkpoints/none", 404, None),
        ("GET", "/v1/stores/main/checkpoints?limit=1", 200, None),
        ("PUT", WORKERS, 201, {"filter": {"stream": "s"}, "max_retries": 0}),
        ("PUT", WORKERS, 409, {"filter": {}}),
        ("POST", f"{WORKERS}/fetch", 200, {"consumer": "a", "max": 2}),
        ("POST", f"{WORKERS}/fetch", 413, {"consumer": "a", "max": 1001}),
        ("GET", WORKERS, 200, None),
        ("GET", "/v1/stores/main/subscriptions", 200, None),
        ("POST", f"{WORKERS}/ack", 200, {"delivery_ids": ["1-1-1"]}),
        ("POST", f"{WORKERS}/nack", 200, {"delivery_ids": [], "action": "park"}),
        ("GET", f"{WORKERS}/parked", 200, None),
        ("POST", f"{WORKERS}/parked/replay", 200, {"positions": [1]}),
        ("DELETE", WORKERS, 204, None),
        ("GET", WORKERS, 404, None),
        ("GET", f"{STREAM}/fold?source=o-1", 200, None),
        ("PUT", SNAPSHOT, 201, {"source_type": "Order", "data": {"total": 7}}),
        ("PUT", SNAPSHOT, 200, {"source_type": "Order", "data_base64": "AA==", "metadata": 1}),
        ("PUT", SNAPSHOT, 400, {"source_type": ""}),
        ("PUT", "/v1/stores/main", 200, {"snapshots_kept": 1}),
        ("PUT", "/v1/stores/main/snapshots/o-1/s/3", 409, {"source_type": "Order"}),
        ("GET", SNAPSHOT, 200, None),
        ("GET", "/v1/stores/main/snapshots/o-1/s", 200, None),
        ("GET", "/v1/stores/main/snapshots?limit=1", 200, None),
        ("DELETE", SNAPSHOT, 204, None),
        ("DELETE", SNAPSHOT, 404, None),
        ("GET", SNAPSHOT, 404, None),
        ("PUT", f"{STREAM}/metadata", 200, {"max_count": 5, "truncate_before": 1}),
        ("PUT", f"{STREAM}/metadata", 400, {"max_count": 0}),
        ("PUT", "/v1/stores/main/streams/none/metadata", 404, {}),
        ("GET", STREAM, 200, None),
        ("DELETE", f"{STREAM}?expected_version=99", 409, None),
        ("DELETE", f"{STREAM}?expected_version=x", 400, None),
        ("DELETE", STREAM, 204, None),
        ("DELETE", STREAM, 404, None),
        ("DELETE", f"{STREAM}?hard=true", 204, None),
        ("DELETE", STREAM, 410, None),
        ("PUT", f"{STREAM}/metadata", 410, {}),
        ("GET", STREAM, 410, None),
        ("GET", f"{STREAM}/events", 410, None),
        ("GET", f"{STREAM}/fold", 410, None),
        ("POST", f"{STREAM}/events", 410, {"events": [event]}),
        ("POST", "/v1/stores/main/append", 410, {"events": [{"stream": "s", **event}]}),
        ("POST", "/v1/stores/main/persistence/request", 202, None),
        ("POST", "/v1/stores/main/persistence/force", 200, None),
        ("POST", "/v1/persistence/force?scope=cluster", 200, None),
        ("GET", "/v1/persistence", 200, None),
        ("PUT", "/v1/persistence", 200, {"interval_ms": 1}),
        ("GET", "/v1/cluster", 200, None),
        ("POST", "/v1/cluster/leader", 200, {"to": "n2"}),
        ("POST", "/v1/cluster/members", 201, {"id": "n4", "raft_address": "127.0.0.1:7104"}),
        ("DELETE", "/v1/cluster/members/n4", 200, None),
        ("GET", "/v1/cluster/recovery", 200, None),
        ("POST", "/v1/cluster/recovery", 202, ORDER),
        ("GET", "/v1/info", 200, None),
        ("GET", "/health/live", 200, None),
        ("GET", "/health/ready", 200, None),
        ("GET", "/metrics", 200, None),
        ("GET", "/openapi.json", 200, None),
    ]
    seen = set()
    for method, target, status, body in asked:
        answer = await node.ask(method, target, json=body)
        assert answer.status == status, (method, target, answer.body)
        seen.add(conforms(found, method, target, answer, body))
    served = {(route.method, route.path) for route in node.api.routes() if route.replies}
    assert seen == served


def conforms(found: Any, method: str, target: str, answer: Answered, sent: Any) -> tuple[str, str]:
    """Hold one exchange against the document; which route it was."""
    path = template(found, target.partition("?")[0])
    operation = found["paths"][path][method.lower()]
    response = operation["responses"][str(answer.status)]
    for header in response["headers"]:
        optional = header == "Retry-After" or answer.status == 204
        assert header in answer.headers or optional, (target, header)
    if answer.raw:
        kind = answer.headers["Content-Type"].partition(";")[0]
        schema = response["content"][kind]["schema"]
        body = answer.raw.decode() if kind == "text/plain" else answer.body
        fit(found, schema, body, f"{method} {target}")
    if sent is not None and answer.status < 400:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        fit(found, schema, sent, f"body of {method} {target}")
    return method, path


def template(found: Any, path: str) -> str:
    """The path of the document that a real path is of; literal parts win."""
    fitting = [
        known
        for known in found["paths"]
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", known.replace(".", r"\.")), path)
    ]
    return min(fitting, key=lambda known: known.count("{"))


def operations(found: Any):
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(value: Any):
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def resolve(found: Any, reference: str) -> Any:
    assert reference.startswith("#/")
    for part in reference[2:].split("/"):
        found = found[part]
    return found


TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def fits(found: Any, schema: Any, value: Any) -> bool:
    try:
        fit(found, schema, value, "")
    except AssertionError:
        return False
    return True


def fit(found: Any, schema: Any, value: Any, at: str) -> None:
    """Assert that a value fits a schema: the part of JSON Schema that the document uses."""
    if "$ref" in schema:
        fit(found, resolve(found, schema["$ref"]), value, at)
    for part in schema.get("allOf", []):
        fit(found, part, value, at)
    if "anyOf" in schema:
        assert any(fits(found, part, value) for part in schema["anyOf"]), at
    if "oneOf" in schema:
        assert sum(fits(found, part, value) for part in schema["oneOf"]) == 1, at
    if "enum" in schema:
        assert value in schema["enum"], at
    if "const" in schema:
        assert value == schema["const"], at
    if "type" in schema:
        assert isinstance(value, TYPES[schema["type"]]), (at, value)
        assert not (isinstance(value, bool) and schema["type"] in ("integer", "number")), at
    if isinstance(value, dict):
        _fit_object(found, schema, value, at)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            fit(found, schema.get("items", {}), item, f"{at}[{index}]")
    elif isinstance(value, str) and "pattern" in schema:
        assert re.search(schema["pattern"], value), at
    elif isinstance(value, int) and "minimum" in schema:
        assert value >= schema["minimum"], at


def _fit_object(found: Any, schema: Any, value: dict[str, Any], at: str) -> None:
    for name in schema.get("required", []):
        assert name in value, f"{at}.{name} is missing"
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        known = schema.get("properties", {}).get(name)
        if known is not None:
            fit(found, known, item, f"{at}.{name}")
        else:
            assert others is not False, f"{at}.{name} is not described"
            fit(found, {} if others is True else others, item, f"{at}.{name}")
