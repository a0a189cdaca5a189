"""Query parameters: each route lists those it knows, with their type, bounds and default.

One list drives the parsing, the refusals and the OpenAPI document. What is not on a route's list
is refused, and so is a second value where only one makes sense: a misspelt `min_postion` must not
silently read stale data. Escapes are decoded as in HTML forms: `+` is a space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from node.api.limits import ApiLimits
from node.api.names import NUMBER_MAX, decoded
from node.errors import InvalidRequest, PayloadTooLarge, RequestError

_INTEGER = re.compile(r"-?[0-9]{1,19}", re.ASCII).fullmatch

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One query parameter. `parse` gets the decoded text and raises a `RequestError`.

    `as_json` tells that the text is JSON, of which `schema` speaks. `problems` are the errors that
    its values may meet beside `InvalidRequest` and those that its route names.
    """

    name: str
    description: str
    schema: Mapping[str, Any]
    parse: Callable[[str], Any]
    default: Any = None
    repeats_max: int = 1
    as_json: bool = False
    problems: tuple[type[RequestError], ...] = ()


def parse_query(query: str, known: Mapping[str, Parameter], defaults: Values) -> Values:
    """The values of a route's parameters, with the defaults of those that are not given.

    Raises `InvalidRequest` for unknown and duplicated parameters, and what each parameter's own
    `parse` raises.
    """
    values = dict(defaults)
    seen: set[str] = set()
    for part in query.split("&"):
        if not part:
            continue
        raw_name, _, raw_value = part.partition("=")
        name = decoded(raw_name.replace("+", " "), "query parameter")
        parameter = known.get(name)
        if parameter is None:
            raise InvalidRequest(f"unknown query parameter {name!r}", parameter=name)
        value = parameter.parse(decoded(raw_value.replace("+", " "), name))
        if parameter.repeats_max > 1:
            _add(values, parameter, value, first=name not in seen)
        elif name in seen:
            raise InvalidRequest(f"query parameter {name!r} may be given once", parameter=name)
        else:
            values[name] = value
        seen.add(name)
    return values


def _add(values: dict[str, Any], parameter: Parameter, value: Any, first: bool) -> None:
    taken = () if first else values[parameter.name]
    if len(taken) >= parameter.repeats_max:
        raise PayloadTooLarge(
            f"{parameter.name}: too many values",
            limit=parameter.repeats_max,
            actual=len(taken) + 1,
        )
    values[parameter.name] = (*taken, value)


def integer(
    name: str,
    description: str,
    *,
    default: int | None = None,
    minimum: int = 0,
    maximum: int = NUMBER_MAX,
    error: type[RequestError] = InvalidRequest,
    too_large: type[RequestError] | None = None,
) -> Parameter:
    """A whole number in a range. Above `maximum` it raises `too_large` with limit and actual."""

    def parse(text: str) -> int:
        if _INTEGER(text) is None:
            raise error(f"{name}: must be a whole number, not {text[:40]!r}", parameter=name)
        value = int(text)
        if too_large is not None and value > maximum:
            raise too_large(f"{name}: at most {maximum}", limit=maximum, actual=value)
        if not minimum <= value <= maximum:
            raise error(f"{name}: must be from {minimum} to {maximum}", parameter=name)
        return value

    schema: dict[str, Any] = {"type": "integer", "minimum": minimum, "maximum": maximum}
    if default is not None:
        schema["default"] = default
    problems = () if too_large is None else (too_large,)
    return Parameter(name, description, schema, parse, default, problems=problems)


def page_limit(limits: ApiLimits, error: type[RequestError], default: int = 100) -> Parameter:
    """`limit`: how many items a page may hold."""
    return integer(
        "limit",
        "How many items the answer holds at most.",
        default=min(default, limits.events_per_page_max),
        minimum=1,
        maximum=limits.events_per_page_max,
        error=error,
        too_large=PayloadTooLarge,
    )


def choice(
    name: str, description: str, options: tuple[str, ...], has_default: bool = True
) -> Parameter:
    """One of a few words; the first is the default, or (`has_default` is false) there is none."""

    def parse(text: str) -> str:
        if text not in options:
            raise InvalidRequest(f"{name}: must be one of {', '.join(options)}", parameter=name)
        return text

    schema: dict[str, Any] = {"type": "string", "enum": list(options)}
    if not has_default:
        return Parameter(name, description, schema, parse, None)
    return Parameter(name, description, {**schema, "default": options[0]}, parse, options[0])


def text(
    name: str,
    description: str,
    check: Callable[[str], str] = str,
    *,
    default: Any = None,
    repeats_max: int = 1,
) -> Parameter:
    """Any text that `check` lets through; it returns the value or raises a `RequestError`."""
    schema: dict[str, Any] = {"type": "string"}
    if repeats_max == 1:
        return Parameter(name, description, schema, check, default)
    schema = {"type": "array", "items": schema, "maxItems": repeats_max}
    problems = (PayloadTooLarge,)
    return Parameter(name, description, schema, check, (), repeats_max, problems=problems)


def flag(name: str, description: str) -> Parameter:
    """`true` or `false`; false by default."""

    def parse(given: str) -> bool:
        if given not in ("true", "false"):
            raise InvalidRequest(f"{name}: must be true or false", parameter=name)
        return given == "true"

    return Parameter(name, description, {"type": "boolean", "default": False}, parse, False)


def timeout(limits: ApiLimits, default_ms: int = 5_000) -> Parameter:
    """`timeout_ms`: how long the request may wait for the cluster."""
    return integer(
        "timeout_ms",
        "How long the node may wait for the cluster, in milliseconds.",
        default=min(default_ms, limits.timeout_ms_max),
        minimum=1,
        maximum=limits.timeout_ms_max,
        too_large=PayloadTooLarge,
    )
