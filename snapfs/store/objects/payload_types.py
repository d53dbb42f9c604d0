"""A payload, the contents that it is decoded with, and the error for one that cannot be decoded."""

from __future__ import annotations

from typing import NamedTuple

from snapfs.store.objects.format import Encoding


class Payload(NamedTuple):
    encoding: Encoding
    data: bytes


class DecodeError(ValueError):
    """A payload that is no payload of that encoding. Who knows the object's name makes it a CorruptionError."""


class Bases:
    """Plain contents of the full objects that an object refers to, in the order of `base_numbers`."""

    __slots__ = ("contents",)

    def __init__(self, *contents: bytes) -> None:
        self.contents = contents

    @property
    def base(self) -> bytes:
        return self.contents[0]

    @property
    def before(self) -> bytes:
        return self.contents[1] if len(self.contents) > 1 else b""

    @property
    def after(self) -> bytes:
        return self.contents[2] if len(self.contents) > 2 else b""
