"""Writes tests/golden/store-v2: run once, when version 2 of segments was new: chunks written at random, as mosaics.

    python tests/golden/make_store_v2.py DIRECTORY

Later versions of snapfs must read it for ever, so it is never made anew.
"""

from __future__ import annotations

import itertools
import sys

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, Disk, Generation, SnapshotNumber
from snapfs.store.objects.format import ObjectKind, Pointer
from snapfs.store.repository.repository import Repository
from tests.golden.make_store_v1 import IDENTITY, noise

VERSIONS = 5


def contents() -> list[bytes]:
    """The versions of one chunk: a block of each is new, the last one is shorter."""
    plain, made = bytearray(noise(1, CHUNK_SIZE)), []
    for version in range(VERSIONS):
        if version:
            start = 3 * version * BLOCK_SIZE
            plain[start : start + BLOCK_SIZE] = noise(100 + version, BLOCK_SIZE)
        made.append(bytes(plain) if version < VERSIONS - 1 else bytes(plain[: 14 * BLOCK_SIZE + 100]))
    return made


def make(store_dir: str) -> list[Pointer]:
    """Create the store and return the pointers to the versions."""
    clock = itertools.count(1_800_000_000_000_000_000, 1_000_000_000)
    repository = Repository.create(store_dir, IDENTITY, Disk(), clock=lambda: next(clock))
    made: list[Pointer] = []
    for index, plain in enumerate(contents()):
        transaction = repository.begin(Generation(1))
        made.append(transaction.append(transaction.encode_chunk(plain, made[-1] if made else None)))
        root = transaction.put_page(ObjectKind.ROOT, b"root %d" % index, None)
        transaction.commit(
            root, parent=SnapshotNumber(index) if index else None, name=f"golden-{index}",
            cut_time_ns=1_800_000_000_000_000_000 + index, trigger="manual", files=1,
        )  # fmt: skip
    repository.close()
    return made


if __name__ == "__main__":
    make(sys.argv[1])
