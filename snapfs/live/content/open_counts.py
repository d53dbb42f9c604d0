"""How often each file is open, and how often for writing. Any thread.

The native data path keeps these counts where its threads reach them (native_content.py).
"""

from __future__ import annotations

from collections import Counter

from snapfs.base.blocks import Ino


class Opens:
    def __init__(self) -> None:
        self._opens: Counter[Ino] = Counter()
        self._writers: Counter[Ino] = Counter()

    def opened(self, ino: Ino, writing: bool) -> None:
        self._opens[ino] += 1
        if writing:
            self._writers[ino] += 1

    def released(self, ino: Ino, writing: bool) -> bool:
        """Whether the file is open no more."""
        for counter in (self._opens, self._writers) if writing else (self._opens,):
            counter[ino] -= 1
            if counter[ino] <= 0:
                del counter[ino]
        return ino not in self._opens

    def is_open(self, ino: Ino) -> bool:
        return ino in self._opens

    def is_written(self, ino: Ino) -> bool:
        """Whether it is open for writing."""
        return ino in self._writers

    def are_unknown(self) -> None:
        """Files may be open, for writing too, that are not counted here."""

    def files(self) -> list[Ino]:
        """All that are open, ascending."""
        return sorted(self._opens)

    def writers(self) -> list[Ino]:
        """All that are open for writing, ascending."""
        return sorted(self._writers)
