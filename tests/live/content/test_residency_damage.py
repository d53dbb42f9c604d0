"""Damage of live/presence: no bit of it that is lost, torn or another is taken for "it was never there"."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, Disk
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.residency.residency import Residency
from snapfs.live.residency.residency_pages import HEADER_V1, MAGIC, PAGE_BYTES, VERSION, Layout, read
from tests.live.content.test_partly_present import CHUNKS, FILE, SIZE, Bench, content_with_holes, make_bench  # noqa: F401

HERE = 0b1011_0000_0000_0000_0000_0000_0101
SAVED = 0b0001_0000_0000_0000_0000_0000_0101
ABSENT = AbsentFile(SIZE, 1, 2, b"where")


def staged(folder: Path) -> Path:
    path = folder / "46"
    Residency.stage(str(path), ABSENT, Disk(), "boot", HERE, SAVED)
    return path


def read_bits(data: bytes, boot: str = "boot") -> tuple[int, int, int]:
    """Chunks that are here, that are sure, and of which that is not known."""
    found = read("/live/presence/46", data, Layout(CHUNKS), boot)
    return found.present | found.durable, found.durable, found.unknown_present | found.unknown_durable


def test_every_flip_of_a_bit_is_healed_from_the_other_copy(tmp_path: Path) -> None:
    """Exhaustive. On the same boot and on another, in turns."""
    whole = staged(tmp_path).read_bytes()
    layout = Layout(CHUNKS)
    used = layout.pages * PAGE_BYTES
    for at in [*range(used), *range(layout.second_area, layout.second_area + used)]:
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            boot, present = ("boot", HERE) if (at + bit) & 1 else ("another", SAVED)
            assert read_bits(bytes(damaged), boot) == (present, SAVED, 0), (at, bit)


def test_every_truncation_leaves_what_is_known_or_unknown(tmp_path: Path) -> None:
    """Exhaustive."""
    whole = staged(tmp_path).read_bytes()
    for size in range(len(whole)):
        for boot, expected in (("boot", HERE), ("another", SAVED)):
            present, durable, unknown = read_bits(whole[:size], boot)
            assert present | unknown == expected | unknown, (size, boot)
            assert not present & ~expected
            assert not durable & ~SAVED


@pytest.mark.parametrize("torn", [False, True])
def test_a_page_that_a_power_cut_tore_in_one_copy_is_read_from_the_other(tmp_path: Path, torn: bool) -> None:
    """A power cut between both copies of new bits, or in the middle of one: the old bits or the new ones."""
    path = staged(tmp_path)
    old = path.read_bytes()
    Residency.stage(str(path), ABSENT, Disk(), "boot", HERE | 2, SAVED | 2)
    new = path.read_bytes()
    middle = Layout(CHUNKS).second_area - (20 if torn else 0)
    for mixed in (new[:middle] + old[middle:], old[:middle] + new[middle:]):
        assert read_bits(mixed) == (HERE | 2, SAVED | 2, 0)


def test_a_later_format_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = staged(tmp_path)
    later = bytearray(path.read_bytes())
    for area in (0, Layout(CHUNKS).second_area):
        later[area + 8] = VERSION + 1
    path.write_bytes(later)
    with pytest.raises(VersionError, match="46"):
        Residency.load(str(path), ABSENT, Disk(), "boot")
    assert path.read_bytes() == later
    with pytest.raises(VersionError, match="46"):
        read_bits(MAGIC + bytes([9, 0]) + os.urandom(3000))


def damage(path: str, kind: str) -> None:
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if kind == "empty":
            file.truncate(0)
        elif kind == "short":
            file.truncate(PAGE_BYTES)
        elif kind == "zeros":
            file.write(bytes(size))
        else:
            for at in range(0, size, 100):
                file.seek(at)
                file.write(b"\xa5")


@pytest.mark.parametrize("kind", ["empty", "short", "zeros", "garbage"])
@pytest.mark.parametrize("power_cut", [False, True])
def test_what_no_copy_records_is_compared_with_the_store_and_never_zeros(
    make_bench: Callable[[bytes], Bench],  # noqa: F811
    kind: str,
    power_cut: bool,
) -> None:
    """Two fsynced overwrites stay, and what was not here is not zeros. The times stay, and a line reports it."""
    chance = random.Random(3)
    bench = make_bench(content_with_holes(chance))
    model = bytearray(bench.source.data)
    changes = (5 * CHUNK_SIZE + 77, b"over" * 999), (9 * CHUNK_SIZE, bytes(CHUNK_SIZE)), (SIZE - 5, b"tail")
    for offset, data in changes:
        bench.tree.prepare_write(FILE, offset, len(data))
        bench.tree.write(FILE, offset, data)
        model[offset : offset + len(data)] = data
    bench.tree.hydrate(FILE, 4)
    bench.tree.fsync(FILE)
    mtime_ns = bench.tree.getattr(FILE).mtime_ns
    damage(bench.residency().path, kind)
    bench.reopen(power_cut=power_cut)
    assert bench.content() == model
    assert bench.tree.getattr(FILE).mtime_ns == mtime_ns
    assert any("presence/46" in line for line in bench.tree.recovered)
    assert bench.tree._content.current.files[FILE].dirty.whole, "the next snapshot compares it in full"
    bench.reopen(power_cut=True)
    assert bench.tree.recovered == [line for line in bench.tree.recovered if "presence" not in line], (
        "repaired for good"
    )
    bench.source.fails = True
    assert bench.content() == model, "all of it is here by now"


def test_without_the_store_nothing_is_guessed(make_bench: Callable[[bytes], Bench]) -> None:  # noqa: F811
    bench = make_bench(os.urandom(SIZE))
    bench.tree.hydrate(FILE, 3)
    damage(path := bench.residency().path, "short")
    before = Path(path).read_bytes()
    bench.source.fails = True
    with pytest.raises(CorruptionError, match=r"presence/46 .*the store is not there"):
        bench.reopen()
    assert Path(path.replace("life-0", "life-1")).read_bytes() == before
    bench.source.fails = False


def as_version_1(path: str, *, cut_off: int = 0) -> None:
    """What a snapfs of version 1 had written in the place of this presence."""
    import struct
    import zlib

    residency = Residency.load(path, ABSENT, Disk(), "boot-0")
    present, durable = (each.to_bytes(-(-CHUNKS // 8), "little") for each in residency.bits)
    boot = b"boot-0".ljust(36, b"\0")
    checksum = zlib.crc32(struct.pack("<Q36s", CHUNKS, boot))
    packed = HEADER_V1.pack(MAGIC, 1, checksum, CHUNKS, boot).ljust(4096, b"\0") + present + durable
    Path(path).write_bytes(packed[: len(packed) - cut_off])


@pytest.mark.parametrize("cut_off", [0, 1, 5, 7, 10, 4000, 4105])
def test_version_1_is_read_and_replaced(make_bench: Callable[[bytes], Bench], cut_off: int) -> None:  # noqa: F811
    bench = make_bench(os.urandom(SIZE))
    model = bytearray(bench.source.data)
    bench.tree.prepare_write(FILE, 30 * CHUNK_SIZE + 5, 3)
    bench.tree.write(FILE, 30 * CHUNK_SIZE + 5, b"new")
    model[30 * CHUNK_SIZE + 5 : 30 * CHUNK_SIZE + 8] = b"new"
    bench.tree.hydrate(FILE, 3)
    bench.tree.fsync(FILE)
    as_version_1(bench.residency().path, cut_off=cut_off)
    bench.reopen()
    assert bench.content() == model
    assert Path(bench.residency().path).read_bytes()[8] == VERSION
    if not cut_off:
        assert bench.residency().missing == CHUNKS - 4
    bench.reopen(power_cut=True)
    assert bench.content() == model
