"""Layouts, field by field; and that a later version is refused and a damaged byte noticed, whichever it is."""

from __future__ import annotations

import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from snapfs.base.blocks import Generation, Number
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Encoding, Header, ObjectKind, Row, Trailer

HEADER = Header("00112233445566778899aabbccddeeff", Generation(3), fmt.make_number(Generation(3), 7))
TRAILER = Trailer(1000, 2, HEADER.first, Number(HEADER.first + 1), bytes(range(32)))
ROWS = st.builds(
    Row,
    st.integers(1000, 1000 + fmt.MAX_DELTA).map(Number),
    st.integers(0, (1 << 48) - 1),
    st.sampled_from(ObjectKind).map(int),
    st.sampled_from(Encoding).map(int),
    st.integers(0, fmt.MAX_ORDINAL),
    st.integers(0, fmt.MAX_OBJECT_BYTES),
    st.integers(0, (1 << 64) - 1).map(Number),
    st.binary(min_size=16, max_size=16),
)


def resummed(packed: bytes, at: int, value: bytes) -> bytes:
    """`packed` with other bytes at one place and a checksum that fits."""
    changed = packed[:at] + value + packed[at + len(value) : -8]
    return changed + struct.pack("<Q", xxhash.xxh3_64_intdigest(changed))


def test_sizes_are_those_of_the_description() -> None:
    assert (fmt.HEADER_BYTES, fmt.TRAILER_BYTES, fmt.FRAME_BYTES, fmt.ROW_BYTES) == (64, 96, 32, 40)


def test_header_fields_lie_where_the_description_says() -> None:
    packed = fmt.pack_header(HEADER)
    assert packed[:12] == b"snapSEGM" + b"\2\0" + b"\3\0"
    assert packed[16:32].hex() == HEADER.volume_id
    assert int.from_bytes(packed[32:40], "little") == 3 << 48 | 7
    assert fmt.unpack_header(packed, "here") == HEADER


def test_trailer_fields_lie_where_the_description_says() -> None:
    packed = fmt.pack_trailer(TRAILER)
    assert packed[:10] == b"snapTAIL" + b"\2\0"
    assert struct.unpack_from("<QQQQ", packed, 16) == TRAILER[:4]
    assert packed[48:80] == TRAILER.table_hash
    assert fmt.unpack_trailer(packed, "here") == TRAILER


def test_frame_fields_lie_where_the_description_says() -> None:
    payload = b"payload"
    packed = fmt.pack_frame(5, 4, ObjectKind.DIR_PAGE, Encoding.DELTA, 8, 300, payload)
    assert struct.unpack_from("<QQ", packed) == (5, 4)
    assert packed[16] == ObjectKind.DIR_PAGE
    assert int.from_bytes(packed[17:20], "little") == 300
    assert packed[20] == 8 << 4 | Encoding.DELTA
    assert int.from_bytes(packed[21:24], "little") == len(payload)
    assert int.from_bytes(packed[24:], "little") == xxhash.xxh3_64_intdigest(packed[:24] + payload)
    assert fmt.frame_is_good(packed + payload)


@given(ROWS)
def test_rows_round_trip(row: Row) -> None:
    packed = fmt.pack_row(1000, row)
    assert fmt.unpack_row(1000, packed) == row
    assert fmt.row_delta(packed, 0) == row.number - 1000


@given(st.integers(0, fmt.HEADER_BYTES - 1), st.integers(1, 255))
def test_a_damaged_header_is_noticed(at: int, flip: int) -> None:
    packed = bytearray(fmt.pack_header(HEADER))
    packed[at] ^= flip
    with pytest.raises((CorruptionError, VersionError)):
        fmt.unpack_header(bytes(packed), "here")


@given(st.integers(0, fmt.TRAILER_BYTES - 1), st.integers(1, 255))
def test_a_damaged_trailer_is_noticed(at: int, flip: int) -> None:
    packed = bytearray(fmt.pack_trailer(TRAILER))
    packed[at] ^= flip
    with pytest.raises((CorruptionError, VersionError)):
        fmt.unpack_trailer(bytes(packed), "here")


@given(st.binary(max_size=60), st.data())
def test_a_damaged_frame_is_noticed(payload: bytes, data: st.DataObject) -> None:
    packed = bytearray(fmt.pack_frame(5, 0, ObjectKind.CHUNK, Encoding.RAW, 0, len(payload), payload) + payload)
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    assert not fmt.frame_is_good(bytes(packed))


def test_a_later_version_is_refused_with_both_versions_named() -> None:
    later = fmt.SEGMENT_VERSION + 1
    for packed, unpack in (
        (fmt.pack_header(HEADER), fmt.unpack_header),
        (fmt.pack_trailer(TRAILER), fmt.unpack_trailer),
    ):
        with pytest.raises(
            VersionError, match=f"here has format version {later}; this snapfs reads up to {fmt.SEGMENT_VERSION}"
        ):
            unpack(resummed(packed, 8, struct.pack("<H", later)), "here")


def test_an_object_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="the longest has"):
        fmt.pack_frame(1, 0, ObjectKind.CHUNK, Encoding.RAW, 0, fmt.MAX_OBJECT_BYTES + 1, b"")


def test_numbers_are_generation_and_counter() -> None:
    number = fmt.make_number(Generation(65535), 1)
    assert fmt.generation_of(number) == 65535
    assert fmt.segment_name(number) == "ffff000000000001.seg"
