"""The values that an event may hold, and how each survives the way from JSON or CBOR and back.

Data and metadata are stored as one CBOR item each. So that every reader can have every event in
either encoding, they hold plain values only:

    CBOR                        in a JSON answer
    null, false, true           the same
    integer of any size up to   the same digits; never rounded
      INTEGER_BITS_MAX bits
    float                       a number; NaN and infinities become `null`, JSON has none
    text                        the same
    byte string                 base64 text; a value that is bytes as a whole comes back under
                                `data_base64` / `metadata_base64` instead
    array                       an array
    map with text and integer   an object; integer keys become their digits
      keys

Refused with 413: more than `nesting_max` arrays and maps inside one another, more than
`integer_keys_max` integers as keys of one map (see `walking`). Refused with 400: every tag except
the big integers (2 and 3), `undefined` and other simple values, other kinds of keys, more than
`BIG_KEYS_MAX` keys beyond 64 bits in a body (see `core.items`), two keys of a map that are one in
JSON (1 and "1"). JSON is decoded to the same values: whole numbers keep every digit, up to the same
bound, other numbers become 64-bit floats and are refused where they do not fit. A repeated key of a
JSON object counts with its last value, as most readers of JSON have it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import Any, NoReturn

import cbor2
import msgspec

from node.api.not_plain import NotPlain, TooDeep, UnusualKeys
from node.api.walking import check_keys
from node.core.items import (
    BIG_KEYS_MAX,
    INTEGER_BITS_MAX,
    REFUSED_TAGS,
    Decoders,
    TooManyBigKeys,
    big_integers,
)

_SCALARS = frozenset((str, float, bool, bytes, type(None)))
_KEYS = frozenset((str, int))
# All bytes that cannot be the head of an array or a map.
_NOT_CONTAINER = bytes(octet for octet in range(256) if not 0x80 <= octet <= 0xBF)


def _refuse_tag(*_: object) -> NoReturn:
    raise NotPlain("tags are not allowed in a body, except big integers (2 and 3)")


# Dates, regular expressions, shared references (which can build a value that holds itself).
_REFUSED_TAGS: Decoders = dict.fromkeys(REFUSED_TAGS, _refuse_tag)
_WITHOUT_BIG_KEYS = _REFUSED_TAGS | big_integers(0)

# What cbor2 says, from its first word on: behind that may stand words of the client.
_TOO_DEEP = "maximum container nesting depth"
_UNUSUAL_KEY = "error decoding map: map key must be a text string or byte string"

_SEAL_VALUE = os.urandom(16)
_SEAL = cbor2.dumps(_SEAL_VALUE)

# An encoder that knows only plain values, and among them no integer beyond 64 bits. Told to write
# keys in order, it takes only text for keys. What it writes is of no interest.
_encode_plain = partial(msgspec.msgpack.encode, order="deterministic")


async def decode_cbor(body: bytes, nesting_max: int) -> Any:
    """Decode a request's body: exactly one item, no tags, no map with one key twice.

    Others get turns only where keys are integers. Raises `NotPlain` with words for the client.
    """
    try:
        return _decoded(body, nesting_max, _WITHOUT_BIG_KEYS, texts_only=True)
    except (UnusualKeys, TooManyBigKeys):  # most have none, and need not be walked over
        pass
    await check_keys(body)
    try:
        return _decoded(body, nesting_max, _WITHOUT_BIG_KEYS)
    except TooManyBigKeys:  # nor does a count of big ones cost most anything
        return _decoded(body, nesting_max, _REFUSED_TAGS | big_integers(BIG_KEYS_MAX))


def _decoded(body: bytes, nesting_max: int, decoders: Decoders, texts_only: bool = False) -> Any:
    """`texts_only`: raise `UnusualKeys` where a key of a map is neither text nor bytes."""
    decoder = cbor2.CBORDecoder(
        BytesIO(body),
        tag_hook=_refuse_tag,
        semantic_decoders=decoders,
        max_depth=nesting_max,
        allow_duplicate_keys=False,
        strict_hashable_types=texts_only,
    )
    try:
        value = decoder.decode()
    except Exception as error:  # cbor2 has its own errors, and lets some of Python's through
        if decoders is _WITHOUT_BIG_KEYS and isinstance(error.__cause__, TooManyBigKeys):
            raise error.__cause__ from None
        if texts_only and str(error).startswith(_UNUSUAL_KEY):
            raise UnusualKeys from None
        if str(error).startswith(_TOO_DEEP):
            raise TooDeep(f"malformed CBOR: {error}") from None
        raise NotPlain(f"malformed CBOR: {_root(error)}") from None
    try:
        decoder.read(1)
    except cbor2.CBORDecodeEOF:
        return value
    raise NotPlain("malformed CBOR: bytes after the end of the item")


def _root(error: BaseException) -> str:
    cause = error.__cause__
    return str(error) if cause is None else f"{error}: {cause}"


def are_plain_items(items: Sequence[bytes], nesting_max: int) -> bool:
    """Whether each is exactly one encoded item of plain values: False also where that takes longer
    to tell, as of integers beyond 64 bits and of keys that are integers.

    All are decoded in one call, as an array in which a seal that no client knows stands behind each
    of them: an item that is cut short takes a piece of its seal, one with something behind its end
    moves the seal. Then an encoder that knows only plain values goes through what came out. Both
    are done in C, half a microsecond an item beside the decoding itself.
    """
    sealed = b"\x9a%b%b%b" % ((2 * len(items)).to_bytes(4, "big"), _SEAL.join(items), _SEAL)
    try:
        found = cbor2.loads(
            sealed,
            tag_hook=_refuse_tag,
            semantic_decoders=_WITHOUT_BIG_KEYS,
            max_depth=nesting_max + 1,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
        _encode_plain(found)
    except Exception:  # whatever it is, the slow way has the words for it
        return False
    return bool(found[1::2].count(_SEAL_VALUE) == len(items))


def are_plain_values(values: Sequence[Any]) -> bool:
    """The same of what was decoded from CBOR already: one call for all."""
    try:
        _encode_plain(values)
    except Exception:  # as above
        return False
    return True


def check_plain(value: Any) -> None:
    """Raise `NotPlain` unless a value decoded from CBOR consists of what the table above allows."""
    kind = type(value)
    if kind in _SCALARS:
        return
    if kind is int:
        if value.bit_length() > INTEGER_BITS_MAX:
            raise NotPlain(f"an integer has more than {INTEGER_BITS_MAX} bits")
    elif kind is dict:
        _check_keys(value)
        for item in value.values():
            if type(item) not in _SCALARS:
                check_plain(item)
    elif kind is list:
        for item in value:
            if type(item) not in _SCALARS:
                check_plain(item)
    else:
        raise NotPlain(f"a value of the kind {kind.__name__!r} is not allowed")


def _check_keys(value: Mapping[Any, Any]) -> None:
    numbers = False
    for key in value:
        if type(key) is not str:
            if type(key) not in _KEYS:
                raise NotPlain("the keys of a map must be text or integers")
            numbers = True
    if numbers:
        check_plain(max(key for key in value if type(key) is int))
        check_plain(min(key for key in value if type(key) is int))
        if len({str(key) for key in value}) != len(value):
            raise NotPlain("two keys of a map are the same in JSON")


def nests_too_deeply(item: bytes, nesting_max: int) -> bool:
    """Whether an encoded item has more than `nesting_max` arrays and maps inside one another.

    An empty one at the bottom is not counted, which is how cbor2 counts.

    Each array and map has a head from 0x80 to 0xbf. Where there are not more such bytes than may
    nest, the answer costs half a microsecond; otherwise decoding tells.
    """
    if len(item) <= nesting_max or len(item.translate(None, _NOT_CONTAINER)) <= nesting_max:
        return False
    try:
        cbor2.loads(item, max_depth=nesting_max)
    except cbor2.CBORDecodeError:
        return True
    return False
