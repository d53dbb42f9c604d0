"""Writes tests/golden/store-v1: run once, when format version 1 was new. It shows what the files hold.

    python tests/golden/make_store_v1.py DIRECTORY

The store holds three snapshots with every kind of encoding. Later versions of snapfs must read it for ever, so it is
never made anew; a new format version gets a new directory beside it.
"""

from __future__ import annotations

import itertools
import random
import sys

from snapfs.base.blocks import CHUNK_SIZE, Disk, Generation, SnapshotNumber
from snapfs.store.objects.format import ObjectKind, Pointer
from snapfs.store.repository.repository import Repository, StoreIdentity

IDENTITY = StoreIdentity("0123456789abcdef0123456789abcdef", 0xFEDC_BA98_7654_3210)


def words(seed: int, length: int) -> bytes:
    """Text that compresses well and can be made again anywhere."""
    source = random.Random(seed)
    return b" ".join(b"%d" % source.randrange(50) for _ in range(length))[:length]


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def contents() -> list[list[tuple[str, bytes]]]:
    """For each snapshot the (place, content) of what it stores; content at a known place is a new version."""
    text, blob = words(1, CHUNK_SIZE), noise(2, 9000)
    page, before, after = words(3, 3000), words(5, CHUNK_SIZE), words(6, CHUNK_SIZE)
    edited_text, edited_blob = text[:5000] + b"EDIT" + text[5004:], blob[:50] + b"EDIT" + blob[54:]
    return [
        [("text", text), ("before", before), ("after", after), ("blob", blob), ("page", page)],
        [("text", edited_text), ("blob", edited_blob), ("page", b"ROW " + page)],
        [("text", before[-3000:] + text[:-3000]), ("blob", blob[:4100])],
    ]


def make(store_dir: str) -> list[dict[str, Pointer]]:
    """Create the store and return, for each snapshot, the pointers to what was stored in it."""
    clock = itertools.count(1_700_000_000_000_000_000, 1_000_000_000)
    repository = Repository.create(store_dir, IDENTITY, Disk(), clock=lambda: next(clock))
    places: dict[str, Pointer] = {}
    made = []
    for index, changes in enumerate(contents()):
        transaction = repository.begin(Generation(1 + index // 2))
        for place, plain in changes:
            if place == "page":
                places[place] = transaction.put_page(ObjectKind.DIR_PAGE, plain, places.get(place))
            else:
                around = (places.get("before"), places.get("after")) if place == "text" else (None, None)
                places[place] = transaction.append(transaction.encode_chunk(plain, places.get(place), *around))
        root = transaction.put_page(ObjectKind.ROOT, b"root %d" % index, None)
        transaction.commit(
            root,
            parent=SnapshotNumber(index) if index else None,
            name=f"golden-{index}",
            cut_time_ns=1_700_000_000_000_000_000 + index,
            trigger="manual",
            files=len(changes),
        )
        made.append({**places, "root": root})
    repository.record_event("mounted", at="/mnt")
    repository.drop(SnapshotNumber(2))
    repository.close()
    return made


if __name__ == "__main__":
    make(sys.argv[1])
