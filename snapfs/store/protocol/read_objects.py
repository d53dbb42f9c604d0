"""The request for objects (OBJECTS): which, with or without bases, and in which encodings the reader takes them."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from snapfs.store.objects.format import Encoding
from snapfs.store.protocol.wire import MAX_READ_BYTES, MAX_READ_NUMBERS
from snapfs.store.protocol.wire_fields import NumberField, check_numbers

ENCODINGS: Final = sum(1 << encoding for encoding in Encoding)
"""What this version decodes."""
_ANY: Final = 0xFFFF
_OF_VERSION_1: Final = 0x3F


class ReadObjects(msgspec.Struct, frozen=True):
    """The objects `numbers` and those of `runs` ([first, last]) that exist, in ascending order, each once.

    `bases`: a difference is preceded by the full objects it needs. `encodings` is a mask of 1 << Encoding that the
    reader can decode; others are sent as full objects (0xFFFF is sent by the first version, which knows the first
    six). `have` names bases that need not be sent. A single number that
    is not there is answered by an absent item, one of a run is passed over.
    """

    numbers: Annotated[list[NumberField], Meta(max_length=MAX_READ_NUMBERS)] = []
    runs: Annotated[list[tuple[NumberField, NumberField]], Meta(max_length=MAX_READ_NUMBERS)] = []
    bases: bool = True
    encodings: Annotated[int, Meta(ge=1, le=0xFFFF)] = ENCODINGS
    have: Annotated[list[NumberField], Meta(max_length=MAX_READ_NUMBERS)] = []
    limit_bytes: Annotated[int, Meta(ge=1, le=MAX_READ_BYTES)] = MAX_READ_BYTES

    @property
    def known(self) -> int:
        """The encodings that the reader knows."""
        return _OF_VERSION_1 if self.encodings == _ANY else self.encodings

    def __post_init__(self) -> None:
        check_numbers(*self.numbers, *self.have, *(number for run in self.runs for number in run))
        if any(first > last for first, last in self.runs):
            raise ValueError("a run is its first and its last number")
