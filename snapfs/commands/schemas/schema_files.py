"""The JSON Schemas (draft 2020-12) beside this file: one for each output, and `common.json`, which they refer to.

They are strict: what a schema does not name is not there. So a field that is added is added here as well
(tests/commands/test_schemas.py); a reader of a later version's output ignores fields it does not know.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

import msgspec

from snapfs.base.errors import UserError

_FOLDER: Final = os.path.dirname(os.path.abspath(__file__))
_COMMON: Final = "common"
_REFERENCE: Final = re.compile(rb'"common\.json(#/\$defs/([a-z_]+))"')


def names() -> list[str]:
    """Of all outputs that have a schema."""
    return sorted(
        each.removesuffix(".json") for each in os.listdir(_FOLDER) if each.endswith(".json") and each[:-5] != _COMMON
    )


def title(name: str) -> str:
    """What has this form."""
    return str(msgspec.json.decode(_content(name))["title"])


def schema(name: str) -> dict[str, Any]:
    """One schema with all that it refers to in it. Raises UserError if there is none of this name."""
    if name not in names():
        raise UserError(f"there is no schema {name!r}: `snapfs schema` lists those there are")
    found, needed = _inlined(_content(name))
    every = msgspec.json.decode(_content(_COMMON), type=dict[str, Any])["$defs"]
    defs: dict[str, Any] = {}
    while needed:
        each = needed.pop()
        if each not in defs:
            defs[each], more = _inlined(msgspec.json.encode(every[each]))
            needed |= more
    return found | ({"$defs": {each: defs[each] for each in sorted(defs)}} if defs else {})


def _inlined(content: bytes) -> tuple[dict[str, Any], set[str]]:
    """With references into itself; and which definitions it refers to."""
    needed = {each[1].decode() for each in _REFERENCE.findall(content)}
    return msgspec.json.decode(_REFERENCE.sub(rb'"\1"', content)), needed


def _content(name: str) -> bytes:
    with open(os.path.join(_FOLDER, f"{name}.json"), "rb") as file:
        return file.read()
