"""What a mirror answers to readers: streams of objects, piece by piece. Generators, run in threads.

Invariants:
1. Only frames whose checksum is right are sent; of any other, and of what is not there, an absent item is sent (of one
   that lay in a run, nothing). The reader checks the content hash.
2. With `bases` a difference comes after the full objects that it needs, so that one answer is enough to decode it.
3. An answer ends at its limit, and marks that; at least one object is in it, however small the limit.
4. Memory is one object and the numbers of the answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from snapfs.base.blocks import ROOT_INO, Number
from snapfs.base.errors import CorruptionError, SnapfsError
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects import codec
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, Encoding, ObjectKind, Pointer, Row
from snapfs.store.protocol import number_runs, object_stream, wire
from snapfs.store.protocol.read_objects import ReadObjects
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.reachability import Children, Role, Visit, bases_of_all
from snapfs.store.tables.snapshot import decode_root

_FULL: Final = (Encoding.RAW, Encoding.ZSTD)
_RAW: Final = 1 << Encoding.RAW


class _Answer:
    """A stream in the making: each object once, after its bases, up to a limit."""

    def __init__(
        self, repository: Repository, limit_bytes: int, encodings: int = 0xFFFF, bases: bool = True,
        have: Iterable[int] = (),
    ) -> None:  # fmt: skip
        self._repository, self._limit = repository, limit_bytes
        self._encodings, self._with_bases = encodings, bases
        self._sent = set(have)
        self._count = 0
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return self._bytes >= self._limit

    def object(self, number: Number, *, report_absent: bool = True) -> Iterator[bytes]:
        """The item of an object, and of its bases before it."""
        if number in self._sent:
            return
        try:
            source, row = self._repository.index.locate(number)
            found = list(self._framed(row, source.frame(row)))
        except (CorruptionError, OSError) as error:
            if report_absent:
                yield self._item(number, object_stream.absent_item(number, str(error)))
            return
        for each, framed in found:
            yield self._item(each.number, object_stream.item_bytes(each, framed))

    def end(self, *, cut: bool) -> bytes:
        return object_stream.stream_end(self._count, cut=cut)

    def _item(self, number: Number, data: bytes) -> bytes:
        self._sent.add(number)
        self._count += 1
        self._bytes += len(data)
        return data

    def _framed(self, row: Row, framed: bytes) -> Iterator[tuple[Row, bytes]]:
        if len(framed) < FRAME_BYTES or not fmt.frame_is_good(framed):
            raise CorruptionError(f"object {row.number:#x}", "the mirror", "wrong checksum")
        if not self._encodings >> row.encoding & 1 and row.encoding != Encoding.ENCRYPTED:
            yield self._encoded_anew(row)
            return
        if self._with_bases and row.encoding not in _FULL:
            for base in self._repository.objects.bases_of(row.number):
                if base not in self._sent:
                    source, found = self._repository.index.locate(base)
                    yield from self._framed(found, source.frame(found))
        yield row, framed

    def _encoded_anew(self, row: Row) -> tuple[Row, bytes]:
        """As a full object, in an encoding that the reader knows."""
        _, plain = self._repository.objects.read_uncached(row.number)
        encoding, payload = codec.encode_full(plain)
        if not self._encodings >> encoding & 1:
            encoding, payload = Encoding.RAW, plain
        framed = fmt.pack_frame(row.number, 0, row.kind, encoding, 0, len(plain), payload) + payload
        return Row(row.number, 0, row.kind, encoding, 0, len(payload), Number(0), row.content_hash), framed


def objects(repository: Repository, wanted: ReadObjects) -> Iterator[bytes]:
    """The stream that answers OBJECTS. Raises RefusedError, before anything is given out, for too many numbers."""
    if not wanted.known & (_RAW | 1 << Encoding.ZSTD):
        raise refuse(Refusal.UNSUPPORTED, "a reader decodes at least one encoding of full objects")
    if sum(last - first + 1 for first, last in wanted.runs) > wire.MAX_LACKS_NUMBERS:
        raise refuse(Refusal.TOO_LARGE, f"runs of more than {wire.MAX_LACKS_NUMBERS} numbers")
    return _objects(repository, wanted)


def _objects(repository: Repository, wanted: ReadObjects) -> Iterator[bytes]:
    answer = _Answer(repository, wanted.limit_bytes, wanted.known, wanted.bases, wanted.have)
    named = set(wanted.numbers)
    cut = False
    yield object_stream.stream_header(object_stream.STREAM_VERSION if wanted.known >> Encoding.MOSAIC & 1 else 1)
    for number in sorted(named | set(_of_runs(repository, wanted.runs))):
        if answer.is_full:
            cut = True
            break
        yield from answer.object(Number(number), report_absent=number in named)
    yield answer.end(cut=cut)


def _of_runs(repository: Repository, runs: Iterable[tuple[int, int]]) -> Iterator[Number]:
    for first, last in runs:
        for number in range(first, last + 1):
            if repository.index.peek(Number(number)) is not None:
                yield Number(number)


def bases(repository: Repository, runs: Sequence[number_runs.Run]) -> bytes:
    """The answer to BASES. Raises RefusedError for too many numbers."""
    if sum(last - first + 1 for first, last in runs) > wire.MAX_LACKS_NUMBERS:
        raise refuse(Refusal.TOO_LARGE, f"more than {wire.MAX_LACKS_NUMBERS} numbers in one request")
    numbers = (number for first, last in runs for number in range(first, last + 1))
    return number_runs.pack_runs(number_runs.runs_of(bases_of_all(repository.index, repository.objects, numbers)))


def first_objects(repository: Repository, numbers: Iterable[Number], limit_bytes: int) -> Iterator[bytes]:
    """The answer to TABLES of an encrypted volume: what its writer listed that a mount reads first."""
    return _numbered(repository, numbers, limit_bytes)


def in_order(repository: Repository, record: SnapshotRecord) -> Iterator[Number]:
    """The pages of a snapshot, what a mount needs first coming first."""
    children = Children(repository)
    return _after(repository, children, list(_way_to_the_root_directory(repository, children, record.root)))


def _after(repository: Repository, children: Children, way: list[Visit]) -> Iterator[Number]:
    pending, seen = deque(way), {visit.pointer.number for visit in way}
    yield from (visit.pointer.number for visit in way)
    while pending:
        for child in _pages_below(repository, children, pending.popleft()):
            if child.pointer.number not in seen:
                seen.add(child.pointer.number)
                pending.append(child)
                yield child.pointer.number


def tables(repository: Repository, record: SnapshotRecord, limit_bytes: int) -> Iterator[bytes]:
    """The stream that answers TABLES: the pages of a snapshot, what a mount needs first coming first."""
    children = Children(repository)
    way = list(_way_to_the_root_directory(repository, children, record.root))
    return _numbered(repository, _after(repository, children, way), limit_bytes, at_least=len(way))


def _numbered(
    repository: Repository, numbers: Iterable[Number], limit_bytes: int, *, at_least: int = 1
) -> Iterator[bytes]:
    """These objects, in this order, as far as the limit lets, but `at_least` so many."""
    answer = _Answer(repository, limit_bytes)
    cut = False
    yield object_stream.stream_header()
    for count, number in enumerate(numbers):
        if answer.is_full and count >= at_least:
            cut = True
            break
        yield from answer.object(number)
    yield answer.end(cut=cut)


def _way_to_the_root_directory(repository: Repository, children: Children, root: Pointer) -> Iterator[Visit]:
    """The root page, the first page of each level of the inode table, the top page of the root directory."""
    visit = Visit(root, Role.ROOT)
    yield visit
    try:
        decode_root(root, repository.read(root))
        while (found := children.of(visit)) and (found[0].role is Role.INODES or found[0].ino == ROOT_INO):
            visit = found[0]
            yield visit
            if visit.role is Role.DIRECTORY:
                return
    except (SnapfsError, OSError):
        return


def _pages_below(repository: Repository, children: Children, visit: Visit) -> list[Visit]:
    """What a page points to, and is no chunk of a file; the pieces of long attributes belong to the tables."""
    try:
        found = children.of(visit)
    except (SnapfsError, OSError):
        return []  # the reader finds the page damaged, or absent, itself
    return [child for child in found if not (child.is_leaf and _is_chunk(repository, child))]


def _is_chunk(repository: Repository, leaf: Visit) -> bool:
    row = repository.index.peek(leaf.pointer.number)
    return row is None or row.kind == ObjectKind.CHUNK
