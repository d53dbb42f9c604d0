"""One reader and one writer for every small persistent JSON file: kind, format version, checksum.

A file is one JSON object on one line:

    {"snapfs":"<kind>", <the fields, with "format": N>, "checksum":"<XXH3-128, 32 hex digits>"}\n

The checksum is that of all bytes before `,"checksum":`. Files of the time before (no "snapfs", no "checksum") are read
as they are; they get a checksum when they are next written. A snapfs of that time reads the new form, too, since it
passes over fields that it does not know.

Invariants:
1. A file is accepted only if it checks out: no flipped, lost or torn byte of the new form is taken for other facts, nor
   for a file of the old form (that one has neither the beginning nor the end of the new one).
2. A format above ours is a VersionError and nothing is touched, whichever form the file has.
3. What is written is replaced in one durable step: after a crash it is the old or the new file.
4. "There is no such file" is None, and nothing else is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, get_origin

import msgspec
import xxhash

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, VersionError

MAX_BYTES: Final = 16 << 20
_KEY: Final = b'{"snapfs":'
_TAIL: Final = re.compile(rb',"checksum":"([0-9a-f]{32})"\}\n')
_TAIL_BYTES: Final = len(b',"checksum":""}\n') + 32
_BAD: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError, ValueError)

T = TypeVar("T")


@dataclass(frozen=True)
class JsonFile(Generic[T]):
    """A kind of file. Any thread may use it.

    `kind` names it in the file and in messages; `type` is what it decodes to, a msgspec Struct or `dict[str, Any]`.
    `advice` is for the error of a damaged one; `check` raises ValueError, TypeError or KeyError for impossible facts;
    `old` decodes what was written before there was this form, if that was no JSON.
    """

    kind: str
    type: type[T]
    version: int = 1
    advice: str = ""
    check: Callable[[T], object] | None = None
    old: Callable[[bytes], T] | None = None

    def encode(self, value: T) -> bytes:
        """The whole file."""
        body = msgspec.json.encode(value)
        begin = _KEY + msgspec.json.encode(self.kind)
        if b'"format":' not in body:  # a dict, or a Struct that leaves defaults out
            begin += b',"format":%d' % self.version
        summed = begin + (b"," if len(body) > 2 else b"") + body[1:-1]
        return summed + b',"checksum":"%s"}\n' % xxhash.xxh3_128_hexdigest(summed).encode()

    def decode(self, data: bytes, where: str) -> T:
        """Raises VersionError for a later format and CorruptionError for anything else, naming `where`."""
        tail = _TAIL.fullmatch(data[-_TAIL_BYTES:])
        is_new = tail is not None or data.startswith(_KEY)
        if tail is not None and xxhash.xxh3_128_hexdigest(data[:-_TAIL_BYTES]).encode() != tail[1]:
            raise self._damaged(where, "wrong checksum")
        try:
            if self.old is not None and not is_new:
                return self._checked(self.old(data))
            raw = msgspec.json.decode(data, type=dict[str, Any])
            self._check_format(raw, where)
            if is_new and tail is None:
                raise self._damaged(where, "its end, with the checksum, is missing")
            if is_new and raw.get("snapfs") != self.kind:
                raise self._damaged(where, f"it is a file of another kind ({raw.get('snapfs')})")
            if get_origin(self.type) is dict:
                return self._checked(raw)  # type: ignore[arg-type]
            return self._checked(msgspec.json.decode(data, type=self.type))
        except _BAD as error:
            raise self._damaged(where, " ".join(str(error).split()) or type(error).__name__) from None

    def read(self, path: str) -> T | None:
        """The file at `path`, None if there is none. Raises as `decode`, and OSError."""
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_BYTES)
        except FileNotFoundError:
            return None
        return self.decode(data, path)

    def write(self, label: str, path: str, value: T, disk: Disk) -> None:
        """Durable on return, in one step. Raises OSError; the file is then as before."""
        disk.replace_file(label, path, self.encode(value))

    def _check_format(self, raw: dict[str, Any], where: str) -> None:
        found = raw.get("format", 1)
        if type(found) is not int or found < 1:
            raise ValueError(f"format {found!r}")
        if found > self.version:
            raise VersionError(
                f"{where} has format version {found}; this snapfs reads up to {self.version}: use a newer snapfs"
            )

    def _checked(self, value: T) -> T:
        if self.check is not None:
            self.check(value)
        return value

    def _damaged(self, where: str, why: str) -> CorruptionError:
        return CorruptionError(f"the {self.kind}", where, f"{why}{f'; {self.advice}' if self.advice else ''}")
