"""What Schemathesis must know of this API to get past the first 404, and rules of its own.

Names are drawn at random, so hardly two requests would meet in one stream. Three of four valid
names become the same few; the others stay what they are. Waits are shortened: a request may ask the
node to wait for minutes, and the node does.
"""

from __future__ import annotations

import os
import re
import zlib
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response

STORE = os.environ["CONTRACT_STORE"]
WAIT_MS = 50
LONGEST_MS = {"timeout_ms": 300_000, "wait_ms": 60_000}  # more is refused, and stays what it is

_KNOWN = {"store": STORE, "stream": "s", "name": "c"}
_PLAIN = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}").fullmatch
_REMOVES_STORE = ("DELETE", "/v1/stores/{store}")


@schemathesis.hook
def map_path_parameters(context: HookContext, path_parameters: Any) -> Any:
    """Lead most requests to one store, one stream, one checkpoint."""
    for name, known in _KNOWN.items():
        given = (path_parameters or {}).get(name)
        if isinstance(given, str) and _PLAIN(given) and zlib.crc32(given.encode()) % 4:
            path_parameters[name] = known
    return path_parameters


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Keep the store, and no answer waiting: valid waits become short ones."""
    if (case.method.upper(), case.path) == _REMOVES_STORE and _of(case, "store") == STORE:
        case.path_parameters["store"] = "another"
    if not isinstance(case.query, dict):
        return
    for name, longest_ms in LONGEST_MS.items():
        given = str(case.query.get(name, ""))
        if given.isdecimal() and WAIT_MS < int(given) <= longest_ms:
            case.query[name] = WAIT_MS
    if any(parameter.name == "timeout_ms" for parameter in case.operation.query):
        case.query.setdefault("timeout_ms", WAIT_MS)


@schemathesis.check
def an_unavailable_node_says_when_to_try_again(
    ctx: CheckContext, response: Response, case: Case
) -> None:
    """503 has stored nothing, and names the pause after which the request may succeed."""
    if response.status_code == 503:
        assert response.headers.get("retry-after"), "503 without Retry-After"
        assert response.json()["stored"] == "no"


@schemathesis.check
def a_problem_says_its_status(ctx: CheckContext, response: Response, case: Case) -> None:
    """The body of a problem repeats the status, and its type is the code's."""
    if "application/problem+json" in response.headers.get("content-type", [""])[0]:
        problem = response.json()
        assert problem["status"] == response.status_code, problem
        assert problem["type"].endswith(":" + problem["code"]), problem


def _of(case: Case, name: str) -> Any:
    return (case.path_parameters or {}).get(name)
