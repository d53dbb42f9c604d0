"""Snapshots of a changing state: each equals the state it was made of, now and after all that follows."""

from __future__ import annotations

import random
import stat
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.base.blocks import CHUNK_SIZE, ChunkIndex, Ino, Number
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.store.objects.format import NULL, ObjectKind, Pointer
from snapfs.store.tables import inode_table, radix
from snapfs.store.tables.snapshot import (
    DirEntry,
    InodeRecord,
    Root,
    RootInfo,
    SnapshotTree,
    SnapshotWriter,
    decode_root,
    encode_root,
)
from snapfs.store.tables.snapshot_invariants import check_tree
from snapfs.store.tables.table_pages import Pages
from tests.fakes.histories.objects import MemoryObjects
from tests.fakes.histories.state_model import State


def history(objects: MemoryObjects, seed: int, versions: int, steps: int) -> list[tuple[SnapshotTree, State]]:
    rng = random.Random(seed)
    state, tree, before, made = State(), None, None, []
    for _ in range(versions):
        state.change(rng, rng.randrange(steps))
        tree = SnapshotTree(objects, state.seal(objects, tree, before), cache_bytes=30_000)
        before = state.copy()
        made.append((tree, before))
    return made


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_every_snapshot_stays_what_it_was(seed: int) -> None:
    for tree, state in history(MemoryObjects(), seed, 6, 60):
        state.assert_equals(tree)
        check_tree(tree)
        assert tree.root.cut_time_ns == state.clock
        assert tree.root.next_ino == state.next_ino


def file_record(ino: int = 2, **fields: object) -> InodeRecord:
    defaults = {"mode": stat.S_IFREG | 0o644, "uid": 0, "gid": 0, "nlink": 1, "rdev": 0, "size": 0}
    times = {"atime_ns": 1, "mtime_ns": 2, "ctime_ns": 3}
    return InodeRecord(Ino(ino), **{**defaults, **times, **fields})  # type: ignore[arg-type]


def sealed(objects: MemoryObjects, tree: SnapshotTree | None, *records: InodeRecord) -> SnapshotTree:
    changes = [(record.ino, record) for record in records]
    return SnapshotTree(objects, SnapshotWriter(objects, tree).finish(changes, extra=RootInfo(7)))


@pytest.mark.parametrize("ino", [1, 31, 32, 2047, 2048, 1 << 20, (1 << 35) - 1, 1 << 40])
def test_inode_numbers_of_any_size(ino: int) -> None:
    objects = MemoryObjects()
    first = sealed(objects, None, file_record(5))
    tree = sealed(objects, first, file_record(ino, rdev=77, uid=4_000_000_000, atime_ns=-5))
    assert [record.ino for record in tree.inodes()] == sorted({5, ino})
    assert tree.inode(Ino(ino)) == file_record(ino, rdev=77, uid=4_000_000_000, atime_ns=-5)
    assert tree.inode(Ino(ino + 1)) is None
    assert [record.ino for record in tree.inodes(Ino(6))] == ([ino] if ino > 5 else [])


def test_what_a_hot_file_writes_is_one_page_a_level() -> None:
    objects = MemoryObjects()
    tree = sealed(objects, None, *[file_record(ino) for ino in range(1, 5000)])
    before = len(objects.plain)
    sealed(objects, tree, file_record(2222, mtime_ns=99))
    new = [number for number in objects.plain if number > before]
    assert [objects.kinds[number] for number in new] == [ObjectKind.INODE_PAGE] * 3 + [ObjectKind.ROOT]
    assert all(objects.bases[number] is not None for number in new)
    page = objects.plain[new[0]]
    base = objects.bases[new[0]]
    assert base is not None
    differing = [at for at, (x, y) in enumerate(zip(page, objects.plain[base.number], strict=True)) if x != y]
    assert differing == [8 + (2222 % 32) * 88 + 48]


def test_nothing_changed_writes_only_a_root() -> None:
    objects = MemoryObjects()
    tree = sealed(objects, None, *[file_record(ino) for ino in range(1, 100)])
    before = len(objects.plain)
    again = sealed(objects, tree, file_record(50))
    assert len(objects.plain) == before + 1
    assert again.root.table == tree.root.table


def test_roots_are_chained() -> None:
    objects = MemoryObjects()
    first = sealed(objects, None, file_record())
    second = sealed(objects, first)
    assert first.root.parent_sha256 == bytes(32)
    assert second.root.parent_sha256 == first.sha256
    assert decode_root(second.pointer, encode_root(second.root)) == second.root


@pytest.mark.parametrize("size", [0, 1, 240, 241, 255, 256, 65_536])
def test_attributes_of_any_size_survive(size: int) -> None:
    objects = MemoryObjects()
    xattrs = ((b"a" * 255, b"\0" * size), (b"user.b", b"value"))
    tree = sealed(objects, None, file_record(xattrs=xattrs))
    again = sealed(objects, tree, file_record(xattrs=xattrs, size=1))
    for each in (tree, again):
        record = each.inode(Ino(2))
        assert record is not None
        assert record.xattrs == xattrs


def test_many_large_attributes_are_stored_once() -> None:
    objects = MemoryObjects()
    xattrs = tuple((b"user.%02d" % number, random.Random(number).randbytes(65_536)) for number in range(80))
    tree = sealed(objects, None, file_record(xattrs=xattrs))
    before = len(objects.plain)
    tree = sealed(objects, tree, file_record(xattrs=xattrs, mtime_ns=9))
    assert [objects.kinds[number] for number in range(before + 1, len(objects.plain) + 1)] == [
        ObjectKind.INODE_PAGE, ObjectKind.ROOT,
    ]  # fmt: skip
    record = tree.inode(Ino(2))
    assert record is not None
    assert record.xattrs == xattrs
    shrunk = sealed(objects, tree, file_record(xattrs=xattrs[:1])).inode(Ino(2))
    assert shrunk is not None
    assert shrunk.xattrs == xattrs[:1]


def test_a_target_of_any_length_survives() -> None:
    for length in (1, 253, 254, 4095):
        tree = sealed(MemoryObjects(), None, file_record(mode=stat.S_IFLNK | 0o777, target=b"t" * length))
        record = tree.inode(Ino(2))
        assert record is not None
        assert record.target == b"t" * length


def test_disorder_and_misfits_are_refused() -> None:
    for changes in (
        [(Ino(3), file_record(3)), (Ino(2), file_record(2))],
        [(Ino(3), None), (Ino(3), None)],
        [(Ino(3), file_record(4))],
        [(Ino(0), None)],
        [(Ino(3), file_record(3, mode=0))],
        [(Ino(3), file_record(3, xattrs=((b"b", b""), (b"a", b""))))],
    ):
        with pytest.raises(ValueError):
            SnapshotWriter(MemoryObjects(), None).finish(changes, extra=RootInfo(7))


def sparse_file(objects: MemoryObjects, size: int, chunks: dict[int, bytes]) -> tuple[SnapshotTree, InodeRecord]:
    writer = SnapshotWriter(objects, None)
    pointers = [(ChunkIndex(index), objects.put_chunk(plain)) for index, plain in sorted(chunks.items())]
    content, height = writer.update_map(None, size, pointers)
    tree = sealed(objects, None, file_record(size=size, content=content, height=height))
    record = tree.inode(Ino(2))
    assert record is not None
    return tree, record


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.integers(0, 70), st.binary(min_size=1, max_size=CHUNK_SIZE), max_size=6),
    st.integers(0, 71 * CHUNK_SIZE),
    st.integers(0, 72 * CHUNK_SIZE),
    st.integers(0, 3 * CHUNK_SIZE),
)
def test_reading_fills_holes_and_stops_at_the_end(
    chunks: dict[int, bytes], size: int, offset: int, length: int
) -> None:
    objects = MemoryObjects()
    tree, record = sparse_file(objects, size, chunks)
    whole = bytearray(72 * CHUNK_SIZE)
    for index, plain in chunks.items():
        whole[index * CHUNK_SIZE : index * CHUNK_SIZE + len(plain)] = plain
    assert tree.read(record, offset, length) == whole[:size][offset : offset + length]


def test_holes_and_data_are_found_in_a_file_of_many_tebibytes() -> None:
    objects = MemoryObjects()
    far = 1 << 28  # chunks: 16 TiB
    tree, record = sparse_file(objects, far * CHUNK_SIZE + 10, {1: b"x" * CHUNK_SIZE, 2: b"y", far: b"0123456789"})
    assert tree.next_data(record, 0) == CHUNK_SIZE
    assert tree.next_data(record, CHUNK_SIZE + 5) == CHUNK_SIZE + 5
    assert tree.next_hole(record, 0) == 0
    assert tree.next_hole(record, CHUNK_SIZE + 5) == 3 * CHUNK_SIZE
    assert tree.next_data(record, 3 * CHUNK_SIZE) == far * CHUNK_SIZE
    assert tree.next_hole(record, far * CHUNK_SIZE) == far * CHUNK_SIZE + 10
    assert tree.next_data(record, far * CHUNK_SIZE + 10) is None
    assert tree.read(record, far * CHUNK_SIZE - 2, 100) == b"\0\0" + b"0123456789"
    assert len(objects.plain) < 20


def test_a_page_is_read_once_while_it_is_hot() -> None:
    objects = MemoryObjects()
    tree = sealed(objects, None, *[file_record(ino) for ino in range(1, 200)])
    tree.inode(Ino(7))
    objects.reads.clear()
    for ino in range(1, 32):
        tree.inode(Ino(ino))
    assert objects.reads == []


def test_threads_may_read_one_tree() -> None:
    objects = MemoryObjects()
    tree, state = history(objects, 5, 3, 200)[-1]
    small = SnapshotTree(objects, tree.pointer, cache_bytes=5_000)
    failures: list[BaseException] = []

    def read() -> None:
        try:
            state.assert_equals(small)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    small.pages.check_invariants()


ROOT = encode_root(Root(NULL, 0, Ino(3), 2, 5, 7, bytes(32)))
SLOT = inode_table.encode_slot(
    Pages(MemoryObjects()), MemoryObjects(), file_record(xattrs=((b"a", b"b"),)), inode_table.EMPTY
)
PAGE = inode_table.encode_page([inode_table.EMPTY, SLOT])
P = Pointer(Number(5), bytes(16))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(PAGE[:-1], id="short"),
        pytest.param(PAGE + b"\0", id="long"),
        pytest.param(PAGE[:4] + b"\xff\xff\xff\xff" + PAGE[8:], id="with a huge count"),
        pytest.param(PAGE[:4] + bytes(4), id="without records"),
        pytest.param(PAGE[:12] + b"\1" + PAGE[13:], id="with a record that has no mode"),
        pytest.param(PAGE[: 8 + 88 + 24] + b"\xff" + PAGE[8 + 88 + 25 :], id="with a height beyond measure"),
        pytest.param(PAGE[: 8 + 88 + 31] + b"\xff" + PAGE[8 + 88 + 32 :], id="with a tail beyond measure"),
    ],
)
def test_a_damaged_inode_page_is_named(page: bytes) -> None:
    with pytest.raises(CorruptionError, match="0000000000000005"):
        inode_table.decode_page(P, page)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from([ROOT, PAGE]), st.integers(0, 220), st.binary(min_size=1, max_size=8), st.binary(max_size=200))
def test_any_bytes_are_a_page_or_damaged(good: bytes, position: int, patch: bytes, tail: bytes) -> None:
    objects = MemoryObjects()
    for plain in (tail or b"x", good[:8] + tail, good[:position] + patch + good[position + len(patch) :]):
        root = objects.put_page(ObjectKind.ROOT, plain, None)
        table = objects.put_page(ObjectKind.INODE_PAGE, plain, None)
        over = objects.put_page(ObjectKind.ROOT, encode_root(Root(table, 0, Ino(3), 2, 5, 7, bytes(32))), None)
        for pointer in (root, over):
            try:
                list(SnapshotTree(objects, pointer).inodes())
            except (CorruptionError, VersionError):
                continue


def test_a_tail_with_a_missing_piece_is_damaged() -> None:
    objects = MemoryObjects()
    tree = sealed(objects, None, file_record(xattrs=((b"user.a", bytes(range(1, 256)) * 800),)))
    piece = next(number for number, kind in objects.kinds.items() if kind == ObjectKind.XATTRS)
    del objects.plain[piece]
    with pytest.raises(CorruptionError):
        SnapshotTree(objects, tree.pointer).inode(Ino(2))


def test_height_is_that_of_the_last_chunk_not_of_the_size() -> None:
    objects = MemoryObjects()
    _, record = sparse_file(objects, 1 << 60, {0: b"x"})
    assert record.height == 0
    assert radix.MAX_HEIGHT * radix.BITS + 16 >= 64


class Sink:
    """Takes pages and forgets them."""

    def __init__(self) -> None:
        self.pages = 0
        self.largest = 0

    def put_page(self, kind: ObjectKind, plain: bytes, base: Pointer | None, /) -> Pointer:
        self.pages += 1
        self.largest = max(self.largest, len(plain))
        return Pointer(Number(self.pages), bytes(16))

    def read(self, pointer: Pointer, /) -> bytes:
        raise AssertionError("nothing that was just written is read again")


def test_writing_takes_a_few_pages_of_memory_whatever_the_size() -> None:
    sink = Sink()
    writer = SnapshotWriter(sink, None)

    def changes() -> Iterator[tuple[Ino, InodeRecord | None]]:
        names = (b"%07d" % number for number in range(30_000))
        listing = writer.update_directory(None, ((name, DirEntry(name, Ino(9), 8)) for name in names))
        yield Ino(1), file_record(1, mode=stat.S_IFDIR | 0o755, content=listing)
        size = 50_000 * CHUNK_SIZE
        chunks = ((ChunkIndex(index), Pointer(Number(index + 1), bytes(16))) for index in range(50_000))
        content, height = writer.update_map(None, size, chunks)
        yield Ino(2), file_record(2, content=content, height=height, size=size)
        yield from ((Ino(ino), file_record(ino)) for ino in range(3, 20_000))

    tracemalloc.start()
    try:
        writer.finish(changes(), extra=RootInfo(7))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sink.pages > 1700
    assert sink.largest < 16_384
    assert peak < 500_000


def test_trees_can_share_their_pages() -> None:
    objects = MemoryObjects()
    first = sealed(objects, None, *[file_record(ino) for ino in range(1, 200)])
    first.inode(Ino(7))
    second_root = sealed(objects, first, file_record(150, size=1)).pointer
    objects.reads.clear()
    second = SnapshotTree(objects, second_root, pages=first.pages)
    assert second.inode(Ino(7)) == first.inode(Ino(7))
    assert len(objects.reads) == 2  # the root, and the top of the inode table
