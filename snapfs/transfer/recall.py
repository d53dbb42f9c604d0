"""Lost objects, made again: the live tree and the neighbouring snapshots often still have what a damaged object held.

Nothing is believed here. Whatever comes out is compared with the proof of what is lost; what does not meet it is no
candidate and does no harm, so the live tree may be changed meanwhile, and guesses are welcome.

- `Chunks`: a chunk is read from the live file, at the place that points to it.
- `Siblings`: a page of a radix table or of inodes is put together from those of other snapshots at the same place: each
  of its slots is mostly that of the one before or after.
- `Present`: the whole live tree goes once more through the code that seals, against nothing, with a writer that writes
  nothing: pages whose proof is that of a stored object get its number, and those whose proof is wanted are found.
  It reads the files that differ from every readable snapshot, or whose map is lost.

Invariants:
1. Nothing is changed, neither in the store nor in the live tree.
2. Memory: the proofs of stored objects (`MAX_KNOWN` at most, the newest), the pages of what changed, what was found.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from itertools import product, zip_longest
from typing import Any, Final

from snapfs.blocks import CHUNK_SIZE, ChunkIndex, Ino, Number
from snapfs.errors import SnapfsError
from snapfs.live.backing import data_ranges
from snapfs.live.frozen import FrozenNamespace
from snapfs.live.records import Inode
from snapfs.live.tree import LiveTree
from snapfs.store import codec, inodes, radix
from snapfs.store.format import NULL, Kind, Pointer
from snapfs.store.mending import Content
from snapfs.store.reach import Role, Visit
from snapfs.store.records import SnapshotRecord
from snapfs.store.repository import Repository
from snapfs.store.snapshot import (
    DirEntry,
    InodeRecord,
    RootInfo,
    SnapshotTree,
    SnapshotWriter,
    decode_root,
    encode_root,
)
from snapfs.store.tables import ObjectReader
from snapfs.store.wanted import Wanted
from snapfs.transfer.hydrator import record_of

MAX_KNOWN: Final = 2_000_000
NEIGHBOURS: Final = 6
"""Snapshots around a damaged one whose pages are looked at."""
MAX_MIXTURES: Final = 4096
_FIRST_GUESS: Final = 1 << 63  # numbers for objects that nobody has stored
_NO_PARENT: Final = bytes(32)

Lost = dict[Number, Wanted]


class Trees:
    """The snapshots of a store that can be opened, as trees; the nearest first."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._records = repository.snapshots()
        self._trees: dict[int, SnapshotTree | None] = {}

    def near(self, record: SnapshotRecord | None = None) -> Iterator[SnapshotTree]:
        """Those around this one, or the newest."""
        wanted = record.number if record is not None else 1 << 62
        for each in sorted(self._records, key=lambda other: abs(other.number - wanted))[: NEIGHBOURS + 1]:
            tree = self._tree(each)
            if tree is not None:
                yield tree

    def _tree(self, record: SnapshotRecord) -> SnapshotTree | None:
        if record.number not in self._trees:
            self._trees[record.number] = None
            with contextlib.suppress(SnapfsError, OSError):
                self._trees[record.number] = SnapshotTree(self._repository, record.root)
        return self._trees[record.number]


class Chunks:
    """Chunks of lost files as the live tree has them."""

    def __init__(self, tree: LiveTree, trees: Trees, proof_of: Callable[[bytes], bytes]) -> None:
        self._tree, self._trees, self._proof_of = tree, trees, proof_of

    def find(self, lost: Wanted) -> bytes | None:
        """The content of a lost chunk, None if it is not there any more."""
        for visit, record in zip(lost.places, lost.records, strict=True):
            if visit.ino and visit.is_leaf:
                for plain in self._candidates(visit, record):
                    if self._proof_of(plain) == lost.pointer.proof:
                        return plain
        return None

    def _candidates(self, visit: Visit, record: SnapshotRecord) -> Iterator[bytes]:
        """What is there now, and as much of it as belonged to the file then."""
        try:
            plain = self._tree.read(visit.ino, visit.start * CHUNK_SIZE, CHUNK_SIZE) or b""
        except (SnapfsError, OSError):
            return
        yield plain
        for size in self._sizes(visit, record):
            length = min(max(size - visit.start * CHUNK_SIZE, 0), CHUNK_SIZE)
            yield plain[:length].ljust(length, b"\0")

    def _sizes(self, visit: Visit, record: SnapshotRecord) -> Iterator[int]:
        for tree in self._trees.near(record):
            with contextlib.suppress(SnapfsError, OSError):
                found = tree.inode(visit.ino)
                if found is not None:
                    yield found.size


class Siblings:
    """Pages of radix tables and of inodes, put together from the slots that other snapshots have there."""

    def __init__(self, trees: Trees, proof_of: Callable[[bytes], bytes]) -> None:
        self._trees, self._proof_of = trees, proof_of

    def find(self, lost: Wanted) -> bytes | None:
        for visit, record in zip(lost.places, lost.records, strict=True):
            if visit.role is Role.INODES or (visit.role is Role.MAP and visit.level):
                found = self._mixed(lost, visit, record)
                if found is not None:
                    return found
        return None

    def _mixed(self, lost: Wanted, visit: Visit, record: SnapshotRecord) -> bytes | None:
        is_inodes = visit.role is Role.INODES and visit.level == 0
        empty: Any = inodes.EMPTY if is_inodes else NULL
        versions = [slots for tree in self._trees.near(record) if (slots := _slots_at(tree, visit))]
        choices: list[list[Any]] = [list(dict.fromkeys(column)) for column in zip_longest(*versions, fillvalue=empty)]
        count = 1
        for choice in choices:
            count *= len(choice)
        if not choices or count > MAX_MIXTURES:
            return None
        for mixture in product(*choices):
            slots = list(mixture)
            while slots and slots[-1] == empty:
                slots.pop()
            if slots:
                plain = inodes.encode_page(slots) if is_inodes else radix.encode_map(visit.level, slots)
                if self._proof_of(plain) == lost.pointer.proof:
                    return plain
        return None


def _slots_at(tree: SnapshotTree, visit: Visit) -> list[Any] | None:
    """The slots of the page at this place of another snapshot, None if there is none to be read."""
    try:
        if visit.role is Role.INODES:
            pointer, height = tree.root.table, tree.root.height
        else:
            record = tree.inode(visit.ino)
            if record is None or not stat.S_ISREG(record.mode):
                return None
            pointer, height = record.content, record.height
        for level in range(height, visit.level, -1):
            rows = radix.load_rows(tree.pages, pointer, level) if pointer.number else []
            slot = visit.start >> radix.BITS * (level - 1) & (radix.FANOUT - 1)
            pointer = rows[slot] if slot < len(rows) else NULL
        if not pointer.number or height < visit.level:
            return None
        return list(
            radix.load_rows(tree.pages, pointer, visit.level) if visit.level else inodes.load(tree.pages, pointer).slots
        )
    except (SnapfsError, OSError):
        return None


class Recaller:
    """An `ObjectWriter` that writes nothing: what is stored already gets its number, what is wanted is found."""

    def __init__(self, repository: Repository, lost: Lost) -> None:
        self._repository = repository
        self._proof_of = repository.objects.proof_of
        self._wanted: dict[bytes, list[Wanted]] = {}
        for each in lost.values():
            self._wanted.setdefault(each.pointer.proof, []).append(each)
        self._numbers = self._known_numbers()
        self._made: dict[Number, bytes] = {}
        self._next = _FIRST_GUESS
        self.found: dict[Number, Content] = {}

    def _known_numbers(self) -> dict[bytes, Number]:
        known: dict[bytes, Number] = {}
        for info in reversed(self._repository.index.segments()):
            with contextlib.suppress(SnapfsError, OSError):
                reader = self._repository.index.reader(info.first)
                for row in reader.rows() if reader is not None and len(known) < MAX_KNOWN else ():
                    known.setdefault(row.proof, row.number)
        return known

    def read(self, pointer: Pointer, /) -> bytes:
        made = self._made.get(pointer.number)
        return made if made is not None else self._repository.read(pointer)

    def put_page(self, kind: Kind, plain: bytes, base: Pointer | None, /) -> Pointer:
        proof = self._proof_of(plain)
        pointer = self._recall(kind, plain, proof)
        if pointer.number >= _FIRST_GUESS or pointer.number in self.found:
            self._made[pointer.number] = plain
        return pointer

    def chunk(self, plain: bytes) -> Pointer:
        """The pointer of a chunk with this content."""
        return NULL if codec.is_zero(plain) else self._recall(Kind.CHUNK, plain, self._proof_of(plain))

    def is_wanted(self, proof: bytes) -> list[Wanted]:
        return self._wanted.get(proof, [])

    def _recall(self, kind: Kind, plain: bytes, proof: bytes) -> Pointer:
        for lost in self.is_wanted(proof):
            self.found[lost.pointer.number] = Content(lost.kind, plain)
        wanted = self.is_wanted(proof)
        number = wanted[0].pointer.number if wanted else self._numbers.get(proof)
        if number is None:
            number, self._next = Number(self._next), self._next + 1
        return Pointer(number, proof)


class Present:
    """The live tree as a snapshot would have it."""

    def __init__(self, tree: LiveTree, repository: Repository, lost: Lost, trees: Trees) -> None:
        self._tree, self._repository, self._lost, self._trees = tree, repository, lost, trees
        self._recaller = Recaller(repository, lost)
        self._writer = SnapshotWriter(self._recaller, None)
        self._mapless = {visit.ino for each in lost.values() for visit in each.places if visit.role is Role.MAP}

    def find(self) -> dict[Number, Content]:
        """What was found of the lost pages. Raises OSError if the live tree cannot be read."""
        self._tree.sync_soon()  # times that are only in memory
        with self._tree.names.view() as names:
            root = self._writer.finish(self._records(names), extra=RootInfo(0))
        self._find_roots(root)
        return self._recaller.found

    def _records(self, names: FrozenNamespace) -> Iterator[tuple[Ino, InodeRecord]]:
        for ino in names.all_inodes():
            inode = names.inode(ino)
            assert inode is not None
            yield ino, self._record(names, inode)

    def _record(self, names: FrozenNamespace, inode: Inode) -> InodeRecord:
        size, mtime_ns, ctime_ns, content, height = 0, inode.mtime_ns, inode.ctime_ns, NULL, 0
        if stat.S_ISDIR(inode.mode):
            entries = ((name, DirEntry(name, child, mode >> 12)) for name, child, mode in names.entries(inode.ino))
            content = self._writer.update_directory(None, entries)
        elif stat.S_ISREG(inode.mode):
            size, mtime_ns, file_ctime_ns, content, height = self._file(names, inode.ino)
            ctime_ns = max(ctime_ns, file_ctime_ns)
        return InodeRecord(
            inode.ino, inode.mode, inode.uid, inode.gid, inode.nlink, inode.rdev, size, inode.atime_ns, mtime_ns,
            ctime_ns, inode.target, names.xattrs(inode.ino), content, height,
        )  # fmt: skip

    def _file(self, names: FrozenNamespace, ino: Ino) -> tuple[int, int, int, Pointer, int]:
        """Size, mtime, ctime and block map of a regular file."""
        try:
            with self._tree.borrow_backing(ino) as fd:
                facts = os.fstat(fd)
                known = self._unchanged(ino, facts.st_size, facts.st_mtime_ns)
                content, height = known or self._map(ino, fd, facts.st_size)
                return facts.st_size, facts.st_mtime_ns, facts.st_atime_ns, content, height
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODATA):  # absent, or not all here
                raise
            absent = names.absent(ino)
            if absent is None:
                return 0, 0, 0, NULL, 0
            record = record_of(ino, absent.origin)
            return absent.size, absent.mtime_ns, absent.ctime_ns, record.content, record.height

    def _unchanged(self, ino: Ino, size: int, mtime_ns: int) -> tuple[Pointer, int] | None:
        """The block map that a snapshot has of a file of this size and time; a guess like all else."""
        for record in self._stored(ino) if ino not in self._mapless else ():
            if (record.size, record.mtime_ns) == (size, mtime_ns):
                return record.content, record.height
        return None

    def _stored(self, ino: Ino) -> Iterator[InodeRecord]:
        for tree in self._trees.near():
            with contextlib.suppress(SnapfsError, OSError):
                record = tree.inode(ino)
                if record is not None:
                    yield record

    def _map(self, ino: Ino, fd: int, size: int) -> tuple[Pointer, int]:
        return self._writer.update_map(None, size, self._chunks(ino, fd, size))

    def _chunks(self, ino: Ino, fd: int, size: int) -> Iterator[tuple[ChunkIndex, Pointer]]:
        last = -1
        for start, end in data_ranges(fd, 0, size):
            for index in range(max(start // CHUNK_SIZE, last + 1), -(-end // CHUNK_SIZE)):
                plain = os.pread(fd, min(CHUNK_SIZE, size - index * CHUNK_SIZE), index * CHUNK_SIZE)
                last = index
                yield ChunkIndex(index), self._recaller.chunk(plain)

    def _find_roots(self, made: Pointer) -> None:
        """A root says more than the tree: its time and parent are in the log, the rest is what the tree gives."""
        root = decode_root(made, self._recaller.read(made))
        for lost in self._lost.values():
            for record in lost.records if lost.kind == Kind.ROOT else ():
                for next_ino in {root.next_ino, *(tree.root.next_ino for tree in self._trees.near(record))}:
                    plain = encode_root(
                        type(root)(
                            root.table, root.height, next_ino, root.inodes, root.total_bytes, record.cut_time_ns,
                            self._parent_sha256(record),
                        )
                    )  # fmt: skip
                    if self._repository.objects.proof_of(plain) == lost.pointer.proof:
                        self._recaller.found[lost.pointer.number] = Content(Kind.ROOT, plain)

    def _parent_sha256(self, record: SnapshotRecord) -> bytes:
        for each in self._repository.snapshots():
            if each.number == record.parent:
                with contextlib.suppress(SnapfsError, OSError):
                    return hashlib.sha256(_reader(self._repository).read(each.root)).digest()
        return _NO_PARENT


def _reader(repository: Repository) -> ObjectReader:
    return repository
