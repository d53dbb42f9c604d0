"""Receives all objects of a snapshot into a store here, for a standby and for `fetch`.

They go through the receiver for objects from elsewhere (store/ingest/receiver.py): level by level of the snapshot's
tree, so that what is here already is not requested, in parts that are durable and verified before the record is.

A crash leaves parts that the next attempt finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from snapfs.base.blocks import Generation, Number
from snapfs.base.errors import CorruptionError
from snapfs.store.ingest.receiver import Receiver
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Pointer
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol import object_stream
from snapfs.store.protocol.object_stream import Item
from snapfs.store.tables.reachability import Children, Role, Visit

BATCH_OBJECTS: Final = 512

Request = Callable[[list[Pointer]], dict[Number, Item]]
"""Returns those of the objects that a source has, by number. Raises OSError, SnapfsError."""


def receive_objects(receiver: Receiver, record: SnapshotRecord, request: Request, name: str) -> tuple[int, int]:
    """Put all that the snapshot needs into `receiver`, which can commit it then. Returns objects and bytes received.

    `name`: of the source. Raises CorruptionError if `request` does not return an object; OSError, SnapfsError.
    """
    count = size = 0
    children, seen = Children(receiver.objects), NumberSet()
    level = [Visit(record.root, Role.ROOT)]
    while level:
        lacking = [visit.pointer for visit in level if not receiver.has(*visit.pointer)]
        for start in range(0, len(lacking), BATCH_OBJECTS):
            came = _stage(receiver, lacking[start : start + BATCH_OBJECTS], request, name)
            count, size = count + len(came), size + sum(len(item.framed) for item in came)
        pages = [visit for visit in level if not visit.is_leaf and visit.pointer.number not in receiver.whole]
        level = [below for visit in pages for below in children.of(visit) if seen.add(below.pointer.number)]
    if list(receiver.lacks([(record.last_number, record.last_number)])):  # the copy of the record among the objects
        came = _stage(receiver, [Pointer(record.last_number, b"")], request, name)
        count, size = count + len(came), size + sum(len(item.framed) for item in came)
    return count, size


def _stage(receiver: Receiver, pointers: list[Pointer], request: Request, name: str) -> list[Item]:
    """Fetch these objects into parts: durable, verified."""
    found = request(pointers)
    missing = [pointer.number for pointer in pointers if pointer.number not in found]
    if missing:
        raise CorruptionError(f"object {missing[0]:#x}", name, "it is not there")
    by_generation: dict[Generation, list[Item]] = {}
    for number in sorted(found):
        by_generation.setdefault(fmt.generation_of(number), []).append(found[number])
    for generation, items in by_generation.items():
        _stage_part(receiver, generation, items)
    return list(found.values())


def _stage_part(receiver: Receiver, generation: Generation, items: list[Item]) -> None:
    part = receiver.part(generation, lambda: None)
    try:
        part.feed(object_stream.stream_header())
        for item in items:
            part.feed(item.content_hash + item.framed)
        part.feed(object_stream.stream_end(len(items)))
    except BaseException:
        part.abort()
        raise
    part.finish()
