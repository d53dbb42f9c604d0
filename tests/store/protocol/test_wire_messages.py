"""Messages and streams of the mirror's protocol: there and back, and whatever comes, either understood or refused."""

from __future__ import annotations

import base64
import contextlib
import random
import re
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from snapfs.base.blocks import CHUNK_SIZE, ChunkIndex, Generation, Ino, Number, SnapshotNumber
from snapfs.store.log.snapshot_records import SealStats, SnapshotRecord
from snapfs.store.objects import codec
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Encoding, ObjectKind, Pointer, Row
from snapfs.store.objects.payload_types import Bases
from snapfs.store.protocol import (
    hot_codec,
    message_codec,
    messages,
    number_runs,
    object_stream,
    read_objects,
    refusals,
    wire,
    wire_fields,
)
from snapfs.store.protocol.object_stream import StreamParser
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.transfer.lazy.background_hydration import chunks_within

SEED = 42
PAGE = random.Random(1).randbytes(4096)


def record(number: int = 3, last: int = 900) -> SnapshotRecord:
    return SnapshotRecord(
        SnapshotNumber(number), "before", Generation(2), None, 5, 6, "control",
        Pointer(Number(last - 1), b"\x07" * 16), Number(last), SealStats(files=1),
    )  # fmt: skip


def item_of(number: int, plain: bytes) -> bytes:
    encoding, payload = codec.encode_full(plain)
    framed = fmt.pack_frame(number, 0, ObjectKind.CHUNK, encoding, 0, len(plain), payload) + payload
    content_hash = xxhash.xxh3_128_digest(plain, SEED)
    return object_stream.item_bytes(
        Row(Number(number), 0, ObjectKind.CHUNK, encoding, 0, len(payload), Number(0), content_hash), framed
    )


def stream_of(plains: Sequence[bytes], *, cut: bool = False) -> bytes:
    items = [item_of(number, plain) for number, plain in enumerate(plains, 1)]
    return b"".join((object_stream.stream_header(), *items, object_stream.stream_end(len(items), cut=cut)))


def parse(data: bytes, step: int = 1 << 30) -> tuple[StreamParser, list[object_stream.Item]]:
    parser = StreamParser()
    return parser, [item for at in range(0, len(data), step) for item in parser.feed(data[at : at + step])]


@pytest.mark.parametrize("step", [1, 7, 100, 1 << 20])
def test_a_stream_comes_out_as_it_went_in_however_it_is_cut_up(step: int) -> None:
    plains = [b"", b"abc" * 50, PAGE, bytes(3)]
    parser, items = parse(stream_of(plains, cut=True), step)
    assert (parser.ended, parser.cut, parser.count) == (True, True, 4)
    assert [item.decode(None) for item in items] == plains
    assert all(object_stream.content_hash_matches(item, item.decode(None), SEED) for item in items)
    assert [item.row().number for item in items] == [1, 2, 3, 4]
    assert not parser.buffered_bytes


def test_an_absent_object_says_why() -> None:
    _, (item,) = parse(object_stream.stream_header() + object_stream.absent_item(Number(9), "no segment holds it"))
    assert item.is_absent
    assert item.payload == b"no segment holds it"
    with pytest.raises(RefusedError):
        list(
            StreamParser(allow_absent=False).feed(
                object_stream.stream_header() + object_stream.absent_item(Number(9), "")
            )
        )


def test_a_difference_names_its_bases() -> None:
    plain = PAGE[:2000] + b"x" + PAGE[2001:]
    patch = codec.encode_shift(plain, Bases(PAGE, PAGE, PAGE), 5, 6).data
    framed = fmt.pack_frame(8, 4, ObjectKind.CHUNK, Encoding.SHIFT, 1, len(plain), patch) + patch
    row = Row(Number(8), 0, ObjectKind.CHUNK, Encoding.SHIFT, 1, len(patch), Number(4), bytes(16))
    _, (item,) = parse(object_stream.stream_header() + object_stream.item_bytes(row, framed))
    assert item.base_numbers() == (4, 5, 6)
    assert item.decode(Bases(PAGE, PAGE, PAGE)) == plain


@pytest.mark.parametrize(
    ("field", "value", "refusal"),
    [
        ("base", 9, Refusal.BAD_REQUEST),  # a full object has none
        ("kind", 200, Refusal.BAD_REQUEST),
        ("encoding", 9, Refusal.BAD_REQUEST),
        ("ordinal", 9, Refusal.BAD_REQUEST),
    ],
)
def test_impossible_objects_are_refused(field: str, value: int, refusal: Refusal) -> None:
    fields = {"number": 8, "base": 0, "kind": 0, "encoding": 0, "ordinal": 0, "plain": 1} | {field: value}
    framed = fmt.pack_frame(**fields, payload=b"x") + b"x"
    with pytest.raises(RefusedError) as caught:
        parse(object_stream.stream_header() + bytes(16) + framed)
    assert caught.value.refusal == refusal


def test_every_flipped_byte_of_a_stream_is_noticed() -> None:
    """By the parser, or, of a content hash, by who checks the content."""
    data = stream_of([b"hello" * 9, b"world" * 5])
    good = parse(data)[1]
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << at % 8
        try:
            parser, items = parse(bytes(broken))
        except RefusedError:
            continue
        means_nothing = at in range(12, 16) or at in range(
            len(data) - 48, len(data) - 32
        )  # reserved; the end's content hash
        assert means_nothing or not parser.ended or items != good, f"byte {at}"
        believed = [item for item in items if object_stream.content_hash_matches(item, item.decode(None), SEED)]
        assert all(item in good for item in believed), f"byte {at}"


@given(st.binary(max_size=400), st.integers(0, 300), st.integers(1, 50))
def test_whatever_comes_is_parsed_or_refused(noise: bytes, at: int, step: int) -> None:
    data = stream_of([b"hello" * 9, PAGE[:200]])
    for candidate in (noise, object_stream.stream_header() + noise, data[:at] + noise, data[:at] + noise + data[at:]):
        parser = StreamParser()
        try:
            for start in range(0, len(candidate), step):
                for item in parser.feed(candidate[start : start + step]):
                    assert fmt.frame_is_good(item.framed)
        except RefusedError:
            pass
        assert parser.buffered_bytes <= len(candidate)


def test_a_length_above_the_limit_is_refused_before_it_is_gathered() -> None:
    frame = fmt.pack_frame(1, 0, 0, 0, 0, 5000, bytes(5000))
    parser = StreamParser(max_object_bytes=4096)
    with pytest.raises(RefusedError) as caught:
        list(parser.feed(object_stream.stream_header() + bytes(16) + frame))
    assert caught.value.refusal == Refusal.TOO_LARGE


@given(st.lists(st.integers(1, 500), unique=True).map(sorted))
def test_runs_there_and_back(numbers: list[int]) -> None:
    runs = list(number_runs.runs_of(numbers))
    assert [number for first, last in runs for number in range(first, last + 1)] == numbers
    assert all(second[0] > first[1] + 1 for first, second in pairwise(runs))
    assert number_runs.unpack_runs(number_runs.pack_runs(runs)) == runs


@pytest.mark.parametrize(
    "data", [b"x", number_runs.pack_runs([(5, 4)]), number_runs.pack_runs([(1, 5), (5, 6)]), bytes(16)]
)
def test_what_is_no_list_of_runs(data: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        number_runs.unpack_runs(data)
    assert caught.value.status == 400


def test_too_many_runs() -> None:
    with pytest.raises(RefusedError) as caught:
        number_runs.unpack_runs(bytes(number_runs.RUN_BYTES * (wire.MAX_RUNS + 1)))
    assert caught.value.status == 413


@given(st.sets(st.integers(1, 400)), st.integers(1, 90), st.integers(1, 30))
def test_many_numbers_are_asked_for_in_requests_that_a_mirror_takes(numbers: set[int], most: int, runs: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(number_runs, "MAX_RUNS", runs)
        batches = list(number_runs.in_requests(number_runs.runs_of(sorted(numbers)), most))
    assert all(len(batch) <= runs for batch in batches)
    assert all(sum(last - first + 1 for first, last in batch) <= most for batch in batches)
    requested = [number for batch in batches for first, last in batch for number in range(first, last + 1)]
    assert requested == sorted(numbers)


def test_an_answer_may_be_longer_than_a_request() -> None:
    listing = message_codec.encode(messages.SnapshotList(1, 1, "x" * (5 << 20), []))
    with pytest.raises(RefusedError):
        message_codec.decode(listing, messages.SnapshotList)
    assert message_codec.decode(listing, messages.SnapshotList, wire.MAX_ANSWER_BYTES).revision == 1


def test_runs_that_go_backwards_would_outweigh_any_number_of_others() -> None:
    body = b'{"runs": [[18446744073709551615, 1], [1, 9223372036854775807]]}'
    with pytest.raises(RefusedError, match="a run is its first and its last number"):
        message_codec.decode(body, read_objects.ReadObjects)


def test_a_hot_list_there_and_back() -> None:
    entries = hot_codec.unpack_hot(hot_codec.pack_hot([(Ino(7), ChunkIndex(3), 5)]))
    assert entries == [(7, 3, 5)]


def test_every_flip_and_truncation_of_a_hot_list_is_refused_or_a_hint_that_can_be_asked_for() -> None:
    """Bit 63 of an inode number ended the task that brings the state here with an OverflowError, in each life."""
    whole = hot_codec.pack_hot([(Ino(7), ChunkIndex(3), 5), (Ino(9), ChunkIndex(0), 1)])
    refused = 0
    damaged = [bytearray(whole[:size]) for size in range(len(whole))]
    for bit in range(8 * len(whole)):
        damaged.append(bytearray(whole))
        damaged[-1][bit // 8] ^= 1 << bit % 8
    for data in damaged:
        try:
            found = hot_codec.unpack_hot(bytes(data))
        except RefusedError:
            refused += 1
            continue
        for ino, first, count in found:
            assert 0 < ino < 1 << 63
            assert len(chunks_within(9 * CHUNK_SIZE, first, count)) <= 9
    assert 16 < refused < len(damaged)


def test_a_record_there_and_back() -> None:
    fields = msgspec.json.decode(msgspec.json.encode(wire_fields.encode_record(record())))
    assert wire_fields.decode_record(fields) == record()
    assert messages.Snapshot(fields, state="damaged").decoded().state == "damaged"


@pytest.mark.parametrize(
    "change",
    [
        {"root": [901, "07" * 16]}, {"root": [5]}, {"root": ["5", "00" * 16]}, {"number": 0}, {"number": "1"},
        {"generation": 70000}, {"name": 5}, {"parent": -1}, {"stats": []}, {"last_number": 1 << 64}, {"trigger": None},
    ],
)  # fmt: skip
def test_a_record_that_is_none(change: dict[str, object]) -> None:
    with pytest.raises(RefusedError) as caught:
        wire_fields.decode_record({**wire_fields.encode_record(record()), **change})
    assert caught.value.refusal == Refusal.BAD_REQUEST


@given(st.binary(max_size=200))
def test_any_bytes_as_a_message(data: bytes) -> None:
    kinds = (
        messages.CreateVolume,
        messages.Claim,
        messages.Commit,
        messages.Drop,
        messages.HoldMessage,
        messages.BranchMessage,
        read_objects.ReadObjects,
    )
    for kind in (*kinds, messages.VolumeState, messages.SnapshotList):
        with contextlib.suppress(RefusedError):  # and nothing else; a message of which all is optional may be {}
            assert isinstance(message_codec.decode(data, kind), kind)
    assert message_codec.decode_problem(409, data).refusal is not None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "A", "a.b", "-a", "a" * 64, "a\n", "ä", "a b", "a\0"])
def test_names_that_are_no_volume(name: str) -> None:
    with pytest.raises(RefusedError):
        wire.volume_path(name)


def test_paths_and_refusals() -> None:
    assert wire.volume_path("pg-1", "claim") == "/v1/volumes/pg-1/claim"
    assert wire.parse_number(wire.number_text(Number(77))) == 77
    for bad in ("77", "g" * 16, "0" * 17, "0" * 15 + "\n"):
        with pytest.raises(RefusedError):
            wire.parse_number(bad)
    assert set(refusals.STATUS) == set(Refusal)
    assert all(re.fullmatch("[a-z_]+", refusal) for refusal in Refusal)
    again = message_codec.decode_problem(
        409, message_codec.encode(refusals.Problem(Refusal.FENCED, "no", generation=4))
    )
    assert (again.refusal, again.problem.generation, again.status) == (Refusal.FENCED, 4, 409)
    assert message_codec.decode_problem(507, b"<html>").refusal == Refusal.DISK_FULL
    assert message_codec.decode_problem(418, b"<html>").refusal == Refusal.INTERNAL


@given(st.lists(st.integers(1, 5000), max_size=300, unique=True))
def test_numbers_that_are_needed_come_out_as_they_went_in(numbers: list[int]) -> None:
    runs = list(number_runs.runs_of(sorted(numbers)))
    assert number_runs.unpack_needs(number_runs.pack_needs(runs)) == runs
    assert number_runs.fits(sorted(numbers))


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode()))
def test_whatever_is_said_to_be_needed_is_understood_or_refused(text: str) -> None:
    with contextlib.suppress(RefusedError):
        assert all(first <= last for first, last in number_runs.unpack_needs(text))


def test_a_list_of_numbers_that_grows_without_end_is_refused() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(wire.MAX_NEEDS_RUNS * number_runs.RUN_BYTES + 16))
    with pytest.raises(RefusedError, match="more than"):
        number_runs.unpack_needs(base64.b64encode(bomb).decode())
    with pytest.raises(RefusedError, match="more than"):
        number_runs.unpack_needs("A" * (wire.MAX_NEEDS_BYTES + 4))
