"""Objects of an object store that carry a format and a checksum of their body (bucket_layout.py: HEAD, TOMBSTONE)."""

from __future__ import annotations

import hashlib

import msgspec

from snapfs.base.errors import VersionError


class _Format(msgspec.Struct):
    format: int


class _Checked(msgspec.Struct):
    """What is checked, and its checksum."""

    format: int
    check: str
    body: msgspec.Raw


def with_checksum(form: int, body: bytes) -> bytes:
    return msgspec.json.encode(_Checked(form, hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))


def checked_body_of(data: bytes) -> bytes:
    """Raises ValueError."""
    found = msgspec.json.decode(data, type=_Checked)
    if found.format < 1 or hashlib.sha256(found.body).hexdigest() != found.check:
        raise ValueError("its checksum is wrong")
    return bytes(found.body)


def check_format(data: bytes, what: str, latest: int) -> int:
    found = msgspec.json.decode(data, type=_Format).format
    if found > latest:
        raise VersionError(f"{what} there has format {found}; this snapfs reads up to {latest}: use a newer snapfs")
    return found
