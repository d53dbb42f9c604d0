"""What an encrypted volume's writer listed as live, for as long as the lock of the mirror is.

A mirror of ciphertext cannot find out what a snapshot needs: its writer names what lives, and the rest is freed. Under
a lock that is not enough, for a writer that lies would free what a locked snapshot needs. So an object is freed only
when it has been named dead for the whole length of the lock: whatever snapshot was here when it was named dead, or
earlier, is unlocked by then.

The file `store/lives` has a frame (required_objects.py) for each collection by the writer: its time, ns since 1970 by
this mirror's clock, in the place of the snapshot's number, and the numbers that live. Frames that are close together
are merged, so that there are never more than about twice KEPT of them.

Invariants:
1. What a frame names is not freed until its collection is older than the lock, and a later one is, too.
2. When the writer changes all frames are void: the time begins anew.
3. Without the file (it was lost, it is damaged) the time begins anew, too.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from snapfs.base.blocks import Disk
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.repository.required_objects import packed_frame, read_frames

FILE: Final = "lives"
KEPT: Final = 8


class Lives:
    """The file of one volume. The caller holds the receiver's locks."""

    def __init__(self, store_dir: str, disk: Disk) -> None:
        self._path, self._disk = os.path.join(store_dir, FILE), disk

    def void(self) -> None:
        """Another writer: the lists so far do not count. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink("lives:void", self._path)

    def record(self, live: NumberSet, lock_s: float, now_ns: int) -> NumberSet | None:
        """The writer names what lives; what is not to be freed then, None if nothing at all is. Raises OSError.

        `live` has what came since the last collection, too: it has not been known to be dead for so long.
        """
        frames = _with(self._frames(now_ns), now_ns, live, int(lock_s * 1e9 / KEPT))
        due = [at for at, (recorded_ns, _) in enumerate(frames) if recorded_ns + lock_s * 1e9 <= now_ns]
        frames = frames[due[-1] :] if due else frames
        self._disk.replace_file("lives:record", self._path, b"".join(packed_frame(at, found) for at, found in frames))
        if not due:
            return None
        kept = NumberSet()
        for _, found in frames:
            for number in found:
                kept.add(number)
        return kept

    def _frames(self, now_ns: int) -> list[tuple[int, NumberSet]]:
        """None later than now: a clock that was put back begins anew."""
        found = []
        for _, _, recorded_ns, runs in read_frames(self._path):
            numbers = NumberSet()
            for first, last in runs:
                for number in range(first, last + 1):
                    numbers.add(number)
            found.append((recorded_ns, numbers))
        return [] if any(recorded_ns > now_ns for recorded_ns, _ in found) else found


def _with(
    frames: list[tuple[int, NumberSet]], now_ns: int, live: NumberSet, apart_ns: int
) -> list[tuple[int, NumberSet]]:
    """With one more; it is one with the last, of the later time, if that began less than `apart_ns` ago."""
    if len(frames) < 2 or now_ns - frames[-2][0] >= apart_ns:
        return [*frames, (now_ns, live)]
    merged = NumberSet()
    for number in (*frames[-1][1], *live):
        merged.add(number)
    return [*frames[:-1], (now_ns, merged)]
