"""Messages to and from JSON. What cannot be decoded is a refusal, at either end."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from snapfs.store.protocol.refusals import STATUS, Problem, Refusal, RefusedError, refuse
from snapfs.store.protocol.wire import MAX_JSON_BYTES

_encode: Final = msgspec.json.Encoder().encode
Message = TypeVar("Message")


def encode(message: msgspec.Struct) -> bytes:
    return _encode(message)


def decode(data: bytes, kind: type[Message], limit: int = MAX_JSON_BYTES) -> Message:
    """The message in `data`. Raises RefusedError ("bad_request" or "too_large"), which names the field.

    Of an answer `limit` is MAX_ANSWER_BYTES.
    """
    if len(data) > limit:
        raise refuse(Refusal.TOO_LARGE, f"a message of {len(data)} bytes; at most {limit} are read")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise refuse(Refusal.BAD_REQUEST, f"not a {kind.__name__}: {error}") from None


def decode_problem(status: int, data: bytes) -> RefusedError:
    """The refusal in an answer that is no success, also when something between us and the mirror wrote it."""
    try:
        return RefusedError(msgspec.json.decode(data, type=Problem))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = next((refusal for refusal, known in STATUS.items() if known == status), Refusal.INTERNAL)
        return refuse(found, f"answer {status} without an explanation: is this a snapfs mirror?")
