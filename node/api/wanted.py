"""The filter language: which events somebody wants, as clients say it.

It is one for all who choose: reads of a store, those who follow it, on a WebSocket too, and
persistent subscriptions. An event is wanted if everything that is given fits:

    types           it has one of these types
    stream          it is of this stream
    stream_prefix   the name of its stream begins so
    where           all of these conditions on its data and metadata hold:

        {"path": "data.customer.country", "any_of": ["DE", "AT"]}
        {"path": ["metadata", "a.b", 0], "equals": 12}
        {"path": "data.sku", "prefix": "book-"}
        {"path": "data.coupon", "exists": false}

In a body that is the map `filter`. In a query it is `type`, repeated, `stream`, `stream_prefix`,
and `where`, the list as JSON. A path is `data` or `metadata` and keys, in a text with dots between
them, or as a list where a key has dots itself; the payload as a whole has no keys. Each condition
has one test. Bytes are compared with bytes: in JSON they stand under `equals_base64`,
`any_of_base64` and `prefix_base64`. What is equal to what, and what exists, stands in
`core.conditions`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import cbor2
import msgspec

from node.api.bodies import UNSET, ConditionBody, FilterBody
from node.api.limits import ApiLimits
from node.api.names import checked_name
from node.api.parameters import Parameter, Values, text
from node.api.routes import object_schema
from node.core import conditions as core
from node.core.conditions import Condition
from node.core.fields import NAME_BYTES_MAX
from node.core.filters import Filter
from node.core.subscription_commands import TYPES_MAX
from node.errors import InvalidRequest, PayloadTooLarge

_TESTS = ("equals", "any_of", "prefix", "exists")
_AS_BASE64 = ("equals_base64", "any_of_base64", "prefix_base64")

_decode_where = msgspec.json.Decoder(list[ConditionBody]).decode


def filter_parameters(limits: ApiLimits) -> tuple[Parameter, ...]:
    """What a reader or a follower of the store may ask for of its events."""
    return (
        text(
            "type",
            "Only events of this type; may be repeated.",
            repeats_max=limits.types_per_filter_max,
        ),
        text("stream", "Only events of this stream.", _stream),
        text("stream_prefix", "Only streams whose names begin so.", name_prefix, default=""),
        Parameter(
            "where",
            "Only events of which all these conditions hold.",
            {"$ref": "#/components/schemas/Where"},
            _where,
            (),
            as_json=True,
        ),
    )


def wanted(parameters: Values) -> Filter:
    """The filter that the values of `filter_parameters` ask for."""
    return Filter(
        tuple(dict.fromkeys(parameters["type"])),
        parameters["stream_prefix"],
        parameters["stream"],
        parameters["where"],
    )


def filter_of(body: FilterBody) -> Filter:
    """The filter that a body asks for, the same for the same wishes in another order.

    Raises `InvalidRequest`, `PayloadTooLarge`.
    """
    _check_size("filter.types", len(body.types), TYPES_MAX)
    if any(not 0 < len(one.encode()) <= NAME_BYTES_MAX for one in body.types):
        raise InvalidRequest("filter: types have 1 to 255 bytes", parameter="filter.types")
    if len(body.stream_prefix.encode()) > NAME_BYTES_MAX:
        raise InvalidRequest(
            "filter: stream_prefix has at most 255 bytes", parameter="filter.stream_prefix"
        )
    if body.stream is not None:
        checked_name(body.stream, "stream")
    where = _conditions(body.where, "filter.where")
    return Filter(tuple(sorted(set(body.types))), body.stream_prefix, body.stream, where)


def described(one: Filter) -> dict[str, Any]:
    """A filter as `FilterBody` has it; bytes in base64, in both encodings."""
    return {
        "types": list(one.types),
        "stream_prefix": one.stream_prefix,
        "stream": one.stream,
        "where": [_described(condition) for condition in one.where],
    }


def name_prefix(given: str) -> str:
    """What names may begin with. Raises `InvalidRequest`."""
    if len(given.encode()) > NAME_BYTES_MAX:
        raise InvalidRequest(f"names have at most {NAME_BYTES_MAX} bytes")
    return given


def _stream(given: str) -> str:
    return checked_name(given, "stream")


def _where(given: str) -> tuple[Condition, ...]:
    """The conditions of a query."""
    try:
        return _conditions(_decode_where(given), "where")
    except msgspec.ValidationError as error:
        words = str(error).replace("`", "'")
        raise InvalidRequest(f"where: {words}", parameter="where") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"where: malformed JSON: {error}", parameter="where") from None


def _conditions(given: Sequence[ConditionBody], where: str) -> tuple[Condition, ...]:
    """The conditions, each once, in the order of what they are encoded to."""
    _check_size(where, len(given), core.CONDITIONS_MAX)
    found = [_condition(one, f"{where}[{at}]") for at, one in enumerate(given)]
    by_bytes = {cbor2.dumps(core.described([one])): one for one in found}
    _check_size(f"{where} in bytes", sum(map(len, by_bytes)), core.CONDITIONS_BYTES_MAX)
    return tuple(one for _, one in sorted(by_bytes.items()))


def _condition(given: ConditionBody, place: str) -> Condition:
    path = _path(given.path, f"{place}.path")
    named = [name for name in (*_TESTS, *_AS_BASE64) if getattr(given, name) is not UNSET]
    tests = {name.removesuffix("_base64") for name in named}
    if len(tests) != 1 or (len(named) > 1 and "any_of" not in tests):
        words = f"{place}: a condition has one test, one of {', '.join(_TESTS)}"
        raise InvalidRequest(words, parameter=place)
    if given.exists is not UNSET:
        return Condition(path, core.EXISTS if given.exists else core.ABSENT)
    (test,) = tests
    place = f"{place}.{test}"
    plain = [one for name in named for one in _listed(getattr(given, name), test)]
    _check_size(place, len(plain), core.VALUES_MAX)
    values = dict.fromkeys(_value(one, place) for one in plain)
    if test == "prefix":
        if type(plain[0]) not in (str, bytes):
            raise InvalidRequest(f"{place}: must be text or bytes", parameter=place)
        return Condition(path, core.PREFIX, tuple(values))
    if not values:
        raise InvalidRequest(f"{place}: needs a value", parameter=place)
    return Condition(path, core.ANY_OF, tuple(sorted(values, key=_encoded)))


def _listed(given: Any, test: str) -> list[Any]:
    return given if test == "any_of" else [given]


def _encoded(value: core.Value) -> bytes:
    return cbor2.dumps(value[1])


def _path(given: str | list[str | int], place: str) -> tuple[str, ...]:
    keys = given.split(".") if isinstance(given, str) else [str(key) for key in given]
    if not keys or keys[0] not in core.ROOTS:
        raise InvalidRequest(f"{place}: must begin with data or metadata", parameter=place)
    _check_size(place, len(keys) - 1, core.KEYS_MAX)
    _check_size(f"{place}: a key", max(len(key.encode()) for key in keys), core.KEY_BYTES_MAX)
    return tuple(keys)


def _value(plain: Any, place: str) -> core.Value:
    value = core.value_of(plain)
    if value is None:
        words = (
            f"{place}: null, truth values, numbers, text and bytes can be compared, nothing else"
        )
        raise InvalidRequest(words, parameter=place)
    _check_size(f"{place}: a value", len(_encoded(value)), core.VALUE_BYTES_MAX)
    return value


def _check_size(what: str, actual: int, limit: int) -> None:
    if actual > limit:
        raise PayloadTooLarge(f"{what}: too large", limit=limit, actual=actual)


def _described(condition: Condition) -> dict[str, Any]:
    dotted = not any("." in key for key in condition.path)
    said: dict[str, Any] = {"path": ".".join(condition.path) if dotted else list(condition.path)}
    if condition.test in (core.EXISTS, core.ABSENT):
        return said | {"exists": condition.test == core.EXISTS}
    plain = [value for _, value in condition.values]
    other = [value for value in plain if type(value) is not bytes]
    octets = [b64encode(value).decode() for value in plain if type(value) is bytes]
    name = "prefix" if condition.test == core.PREFIX else "equals"
    if len(plain) == 1:
        return said | ({name: other[0]} if other else {f"{name}_base64": octets[0]})
    lists = {"any_of": other, "any_of_base64": octets}
    return said | {name: values for name, values in lists.items() if values}


_TEXT: dict[str, Any] = {"type": "string"}
_SCALAR: dict[str, Any] = {"type": ["null", "boolean", "number", "string"]}
_OCTETS: dict[str, Any] = {"type": "string", "contentEncoding": "base64"}
_ONE_TEST: list[dict[str, Any]] = [
    *({"required": [name]} for name in ("equals", "equals_base64", "prefix", "prefix_base64")),
    {"anyOf": [{"required": ["any_of"]}, {"required": ["any_of_base64"]}]},
    {"required": ["exists"]},
]
_PATH: dict[str, Any] = {
    "description": "`data` or `metadata`, and the keys that lead into it, with dots between them, "
    "or as a list. Keys are text; digits also name an integer key, or an index of an array.",
    "oneOf": [
        {"type": "string", "pattern": "^(data|metadata)(\\..*)?$"},
        {
            "type": "array",
            "prefixItems": [{"enum": list(core.ROOTS)}],
            "items": {"type": ["string", "integer"], "minimum": -(2**63), "maximum": 2**63 - 1},
            "minItems": 1,
            "maxItems": 1 + core.KEYS_MAX,
        },
    ],
}


def _values(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": core.VALUES_MAX}


FILTER_SCHEMAS: dict[str, dict[str, Any]] = {
    "Where": {
        "type": "array",
        "maxItems": core.CONDITIONS_MAX,
        "items": {"$ref": "#/components/schemas/Condition"},
    },
    "Condition": {
        **object_schema(
            {
                "path": _PATH,
                "equals": _SCALAR,
                "any_of": _values(_SCALAR),
                "prefix": _TEXT,
                "exists": {"type": "boolean"},
                "equals_base64": _OCTETS,
                "any_of_base64": _values(_OCTETS),
                "prefix_base64": _OCTETS,
            },
            ["path"],
        ),
        "oneOf": _ONE_TEST,
    },
    "Filter": object_schema(
        {
            "types": {"type": "array", "items": _TEXT, "maxItems": TYPES_MAX},
            "stream_prefix": _TEXT,
            "stream": {"anyOf": [_TEXT, {"type": "null"}]},
            "where": {"$ref": "#/components/schemas/Where"},
        }
    ),
}
