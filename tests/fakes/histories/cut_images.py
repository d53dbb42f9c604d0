"""Images of files as of cuts, made in the one way a sealer may make them: the last image, its dirty chunks read anew.

So a dirty bit that is missing shows as old bytes in an image.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Ino
from snapfs.live.cut import Cut


class CutImages:
    """The files of the newest cut that was sealed; `sealed` and `failed` count."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        """`pool` reads the chunks."""
        self._pool = pool
        self._last: dict[Ino, bytes] = {}
        self.sealed = self.failed = 0

    def image(self, cut: Cut) -> dict[Ino, bytes]:
        """All files as of the cut."""
        image = dict(self._last)
        for ino in sorted({*cut.changed_files(), *(ino for ino, _ in cut.names.changed())} - {ROOT_INO}):
            image[ino] = self._read(cut, ino)
        return image

    def finish(self, cut: Cut, image: dict[Ino, bytes], sealed: bool) -> None:
        """End the cut: with `sealed` the next images build on this one, else on the one before."""
        if sealed:
            self._last, self.sealed = image, self.sealed + 1
        else:
            self.failed += 1
        cut.finish(sealed)

    def _read(self, cut: Cut, ino: Ino) -> bytes:
        file = cut.open_file(ino)
        assert file is not None
        try:
            data = bytearray((b"" if file.whole else self._last[ino])[: file.size].ljust(file.size, b"\0"))
            chunks = [chunk for chunk, _ in file.dirty_chunks()]
            for chunk, fresh in zip(chunks, self._pool.map(file.read_chunk, chunks), strict=True):
                data[chunk * CHUNK_SIZE : chunk * CHUNK_SIZE + len(fresh)] = fresh
            return bytes(data)
        finally:
            file.close()
