"""What a comparison of two snapshots says of paths that the later one was made without."""

from __future__ import annotations

import stat

from snapfs.base.settings.exclusion import compiled
from snapfs.store.tables.diff import PathChange


class LeftOut:
    """Separates what was removed from what is excluded now. Changes come in the order of their paths."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        """The patterns that the later one was made with; UserError for what are none."""
        self._exclusion = compiled(patterns)
        self._above = b""

    def kind_of(self, change: PathChange) -> str:
        """The kind of the change, or "excluded" for what the later snapshot says nothing of."""
        if change.kind != "removed" or not self._exclusion.patterns:
            return change.kind
        if self._above and change.path.startswith(self._above):
            return "excluded"
        is_directory = stat.S_ISDIR(change.mode)
        if not self._exclusion.leaves_out(change.path, is_directory=is_directory):
            return change.kind
        if is_directory:
            self._above = change.path + b"/"
        return "excluded"
