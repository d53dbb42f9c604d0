"""How much has changed since the last cut: what policies and metrics read. All of it is O(1)."""

from __future__ import annotations

from snapfs.base.blocks import CHUNK_SIZE
from snapfs.live.content.content import Content
from snapfs.live.namespace.namespace import Namespace

NAME_BYTES = 256
"""Rough bytes that a change of the namespace adds to a snapshot."""


class ChangeCounters:
    """For the owner thread."""

    def __init__(self, names: Namespace, content: Content, max_dirty_files: int, max_dirty_chunks: int) -> None:
        self._names, self._content = names, content
        self._max_dirty_files, self._max_dirty_chunks = max_dirty_files, max_dirty_chunks

    @property
    def dirty_files(self) -> int:
        """Files that have changed since the last cut, new ones included."""
        current = self._content.current
        return len(current.files) + self._names.new_files(current.new_from)

    @property
    def dirty_bytes(self) -> int:
        """An upper bound for what changed of files that are not new, in bytes."""
        return self._content.dirty_chunks() * CHUNK_SIZE

    @property
    def written_bytes(self) -> int:
        """Bytes written in this life, at least as much as has changed, with `NAME_BYTES` for each transaction."""
        native = self._content.core.written if self._content.core is not None else 0
        return self._content.written + native + NAME_BYTES * self._names.transactions

    def has_changes(self) -> bool:
        """Whether a snapshot made now would differ from the last one."""
        return bool(self._content.current.files) or self._names.has_changes()

    def pressure(self) -> bool:
        """Whether memory for dirty maps runs short, so that a cut should be made soon."""
        changed = len(self._content.current.files)  # new ones take no memory
        return changed > self._max_dirty_files or self._content.dirty_chunks() > self._max_dirty_chunks
