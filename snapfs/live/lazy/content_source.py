"""Where the bytes and names of what is absent come from: the store, as the live tree sees it."""

from __future__ import annotations

from typing import Protocol

from snapfs.base.blocks import Ino
from snapfs.live.database.namespace_rows import LoadedEntry


class ContentSource(Protocol):
    """The store's side of absent files. OSError if the store cannot deliver."""

    def read(self, ino: Ino, origin: bytes, offset: int, size: int) -> bytes:
        """Up to `size` bytes from byte `offset`, fewer only at the end of the file."""

    def fill(self, ino: Ino, origin: bytes, fd: int) -> None:
        """Write the whole content to `fd`, an empty file; holes may be left out."""

    def chunks(self, ino: Ino, origin: bytes, first: int, count: int, urgent: bool) -> list[tuple[int, bytes]]:
        """So many chunks from `first` on, each with its number and whole content. `urgent`: an application waits."""

    def names(self, listing: bytes, wanted: bool = False) -> list[LoadedEntry]:
        """All names of a directory. `wanted`: by an application, which may soon open some of its files."""


def chunks_of(
    source: ContentSource, ino: Ino, origin: bytes, wanted: list[int], urgent: bool
) -> list[tuple[int, bytes]]:
    """These chunks, ascending, each with its number and whole content, in one request a run of neighbours. OSError."""
    return [piece for run in runs(wanted) for piece in source.chunks(ino, origin, *run, urgent)]


def runs(chunks: list[int]) -> list[tuple[int, int]]:
    """(first, count) of each run of neighbours."""
    found: list[tuple[int, int]] = []
    for chunk in chunks:
        if found and chunk == sum(found[-1]):
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((chunk, 1))
    return found
