"""One reader and one writer for small binary files: a head with magic, format version and checksum, then the content.

    magic (8) | version (2) | zero (2) | CRC-32 of the 12 bytes before and of the content (4) | content

Files of the time before are the content alone, which counts as version 1.

Invariants:
1. What has the magic is accepted only if its checksum is right. A file without it is taken for one of the time before:
   the content's own reader has to bear any bytes, so only hints are kept in this form.
2. A version above ours is a VersionError, and the file is left as it is.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from snapfs.base.errors import CorruptionError, VersionError

_HEAD: Final = struct.Struct("<8sHxxI")
_SUMMED_BYTES: Final = 12


@dataclass(frozen=True)
class BinaryFile:
    """A kind of file. Any thread may use it. `kind` names it in messages; `most_bytes` of content are read at most."""

    kind: str
    magic: bytes
    most_bytes: int
    version: int = 1

    def encode(self, content: bytes) -> bytes:
        """The whole file."""
        head = _HEAD.pack(self.magic, self.version, 0)
        return _HEAD.pack(self.magic, self.version, zlib.crc32(content, zlib.crc32(head[:_SUMMED_BYTES]))) + content

    def decode(self, data: bytes, where: str) -> bytes:
        """The content. Raises VersionError for a later format, CorruptionError for damage; both name `where`."""
        if not data.startswith(self.magic):
            return data
        if len(data) < _HEAD.size:
            raise CorruptionError(f"the {self.kind}", where, "it is cut off")
        _, version, checksum = _HEAD.unpack_from(data)
        content = data[_HEAD.size :]
        if zlib.crc32(content, zlib.crc32(data[:_SUMMED_BYTES])) != checksum:
            raise CorruptionError(f"the {self.kind}", where, "wrong checksum")
        if version > self.version:
            raise VersionError(
                f"{where} has format version {version}; this snapfs reads up to {self.version}: use a newer snapfs"
            )
        return content

    def read(self, path: str) -> bytes | None:
        """The content of the file at `path`, None if there is none. Raises as `decode`, and OSError."""
        try:
            with open(path, "rb") as file:
                data = file.read(_HEAD.size + self.most_bytes)
        except FileNotFoundError:
            return None
        return self.decode(data, path)
