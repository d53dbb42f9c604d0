"""The small files as the present version writes them: each golden is read, a later format refused, damage borne.

`tests/store/test_small_files.py` has the form of the time before there were checksums. A row of CASES is a file of
tests/golden/small-v2, or of small-v3, what grew since: what reads its bytes, what it holds, the same file of a later
format, and what damage may do.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash

from replicator.mirror.tokens import TOKENS, Tokens
from replicator.source.known_targets import TARGETS
from snapfs.base.binary_file import BinaryFile
from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.base.json_file import JsonFile
from snapfs.base.volumes.volume import Volume
from snapfs.daemon.supervision import supervisor_state, supervisor_status
from snapfs.store.bucket import catalog_pages, head_object, tombstones
from snapfs.store.crypto.keys import KEYS
from snapfs.store.log import log_end
from snapfs.store.log.holds import HOLD, Holds
from snapfs.store.log.locks import LOCK
from snapfs.store.log.replica_state import REPLICATION
from snapfs.store.log.target_id import TARGET
from snapfs.store.objects.segment_list import MANIFEST
from snapfs.store.protocol.hint_files import FIRST, HOT
from snapfs.store.protocol.hot_codec import unpack_hot
from snapfs.store.repair.scrub import SCRUB
from snapfs.store.repair.suspects import SUSPECTS_FILE
from snapfs.store.repository.required_objects import read_frames
from snapfs.transfer.failover.fence_file import FENCE_JSON
from snapfs.transfer.failover.standby_file import STANDBY
from snapfs.transfer.lazy.origin_file import ORIGIN
from snapfs.transfer.move_in.adoption_file import ADOPTION
from snapfs.transfer.seal.seal_attempts import NOTE
from snapfs.transfer.seal.snapshot_failures import FAILED
from tests.golden import make_small_v1 as v1
from tests.golden import make_small_v2 as golden
from tests.golden import make_small_v3 as v3

GOLDEN = Path(__file__).parent.parent / "golden" / "small-v2"
V3 = "../small-v3"
REFUSED = (CorruptionError, VersionError)


@dataclass(frozen=True)
class Case:
    """`read(path)` raises or returns; `later(data)` is the file of a later format. `may_be`: what it may be taken for
    after damage besides being refused; None: nothing."""

    read: Callable[[str], Any]
    expected: Any
    later: Callable[[bytes], bytes]
    encode: Callable[[Any], bytes] | None = None
    may_be: Callable[[Any], bool] | None = None


def of_json(kind: JsonFile[Any], expected: Any = None) -> Case:
    def later(data: bytes) -> bytes:
        fields = {key: value for key, value in json.loads(data).items() if key not in ("snapfs", "checksum")}
        return JsonFile(kind.kind, dict[str, Any]).encode(fields | {"format": 99})

    return Case(kind.read, expected, later, kind.encode)


def of_binary(kind: BinaryFile, content: bytes) -> Case:
    """With a flipped magic it is taken for a file of the time before, whose first entry is wrong then: it is a hint."""

    def later(data: bytes) -> bytes:
        head = data[:8] + struct.pack("<HH", 99, 0)
        return head + struct.pack("<I", zlib.crc32(data[16:], zlib.crc32(head))) + data[16:]

    return Case(kind.read, content, later, kind.encode, may_be=lambda found: found != content)


def of_frames(expected: list[tuple[int, list[tuple[int, int]]]]) -> Case:
    """Whole frames up to the first that is none, as after a torn append."""

    def later(data: bytes) -> bytes:
        word, snapshot = struct.unpack_from("<IQ", data)
        head, content = struct.pack("<IQ", word | 1 << 30, snapshot), data[20 : 20 + word]
        return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head + content)) + data[20:]

    def read(path: str) -> list[tuple[int, list[tuple[int, int]]]]:
        return [(snapshot, list(runs)) for _, _, snapshot, runs in read_frames(path)]

    return Case(read, expected, later, may_be=lambda found: found == expected[: len(found)])


def later_end(data: bytes) -> bytes:
    head = data[:8] + struct.pack("<H", 99) + data[10:88]
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head))


def later_checked(data: bytes) -> bytes:
    body = b'{"something":"new"}'
    return msgspec.json.encode({"format": 99, "check": hashlib.sha256(body).hexdigest(), "body": json.loads(body)})


def bytes_of(path: str) -> bytes:
    return Path(path).read_bytes()


CASES: dict[str, Case] = {
    "fenced.json": of_json(FENCE_JSON, v1.FENCED),
    "origin.json": of_json(ORIGIN, v1.ORIGIN),
    "standby.json": of_json(STANDBY, v1.STANDBY),
    "adoption.json": of_json(ADOPTION, golden.ADOPTED),
    "keys.json": of_json(KEYS),
    "replication.json": of_json(REPLICATION, v1.REPLICATION),
    f"{V3}/replication.json": of_json(REPLICATION, v3.REPLICATION),
    "targets.json": of_json(TARGETS, golden.KNOWN),
    "target.json": of_json(TARGET, golden.TargetFile("cd" * 16)),
    "lock.json": of_json(LOCK, golden.LOCKED),
    "tokens.json": of_json(TOKENS, golden.TokensFile([golden.TOKEN])),
    "supervisor.json": of_json(supervisor_status.STATUS),
    "supervisor.state": of_json(supervisor_state.STATE),
    "seal-attempt.json": of_json(NOTE, golden.SEAL_ATTEMPT),
    "snapshot-failed.json": of_json(FAILED, golden.SNAPSHOT_FAILED),
    "store/suspects": of_json(SUSPECTS_FILE),
    "store/scrub.json": of_json(SCRUB, golden.SCRUBBED),
    "store/segments.list": of_json(MANIFEST, golden.SEGMENT_LIST),
    "store/holds/host-b.json": of_json(HOLD),
    "store/holds/host-c.brief": of_json(HOLD),
    "hot": of_binary(HOT, golden.pack_hot(golden.HOT_LIST)),
    "store/first": of_binary(FIRST, struct.pack("<2Q", *golden.FIRST_NUMBERS)),
    "store/needed": of_frames([(1, [(5, 7), (20, 20)]), (2, [(30, 31)])]),
    "store/lives": of_frames([(10**18, [(5, 6), (31, 31)])]),
    "store/snapshots.end": Case(
        lambda path: log_end.read(path.removesuffix(".end") + ".log"), golden.END, later_end,
        may_be=lambda end: end is None,
    ),
    "bucket/head.json": Case(
        lambda path: head_object.decode_head(bytes_of(path)), golden.HEAD, later_checked, head_object.encode_head
    ),
    "bucket/tombstone": Case(
        lambda path: tombstones.decode_tombstone(bytes_of(path), "garbage/x"),
        golden.TOMBSTONE,
        later_checked,
        tombstones.encode_tombstone,
    ),
}  # fmt: skip


def flips(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        for bit in range(8):
            yield data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_golden_file_has_a_row() -> None:
    volumes = {f"{name}/{each}" for name in ("volume", "opaque") for each in ("lock", "volume.toml")}
    before = {"before/hot", "before/first", "before/tokens.json"}
    grown = {f"{V3}/{name}" for name in everything(GOLDEN / V3)}
    assert {*everything(GOLDEN), *grown} == {*CASES, *volumes, *before, "bucket/page.zst"}


@pytest.mark.parametrize("name", CASES)
def test_a_golden_file_is_read_and_written_again_byte_by_byte(name: str) -> None:
    case, path = CASES[name], GOLDEN / name
    found = case.read(str(path))
    if case.expected is not None:
        assert found == case.expected
    if case.encode is not None and not isinstance(found, dict):
        assert case.encode(found) == path.read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_a_later_format_is_refused_and_nothing_touched(name: str, tmp_path: Path) -> None:
    case, place = CASES[name], tmp_path / Path(name).name
    place.write_bytes(case.later((GOLDEN / name).read_bytes()))
    before = everything(tmp_path)
    with pytest.raises(VersionError, match="use a newer snapfs") as refused:
        case.read(str(place))
    assert refused.value.exit_code == 6
    assert "\n" not in str(refused.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", CASES)
def test_every_flip_and_truncation_is_refused_or_harmless(name: str, tmp_path: Path) -> None:
    case, place, data = CASES[name], tmp_path / Path(name).name, (GOLDEN / name).read_bytes()
    tried: Iterable[bytes] = (*flips(data), *(data[:size] for size in range(len(data))), b"\0" * len(data))
    for bad in tried:
        place.write_bytes(bad)
        try:
            found = case.read(str(place))
        except REFUSED:
            continue
        else:
            assert case.may_be is not None, bad
            assert case.may_be(found), bad


def test_what_the_others_hold(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "small")
    folder = tmp_path / "small"
    wrapped = KEYS.read(str(folder / "keys.json"))
    assert wrapped is not None
    assert golden.OWNER.unwrap(wrapped, "there").seed_number == golden.SEED
    status, state = supervisor_status.STATUS.read(str(folder / "supervisor.json")), supervisor_state.STATE.read(
        str(folder / "supervisor.state")
    )  # fmt: skip
    assert {name: value for name, value in (status or {}).items() if name in golden.STATUS} == golden.STATUS
    assert {name: value for name, value in (state or {}).items() if name in golden.STATE} == golden.STATE
    suspects = SUSPECTS_FILE.read(str(folder / "store" / "suspects"))
    assert suspects is not None
    assert suspects.numbers == ["1000000000007", "1000000000009"]
    assert Holds(str(folder / "store"), Disk(), lambda: 10**18).held() == {3, 5, 6}
    volume, blind = (Volume.open(str(folder / name), Disk()) for name in ("volume", "opaque"))
    assert {volume.volume_id, blind.volume_id} == {golden.VOLUME_ID}
    assert (volume.seed, volume.generation, volume.holds_ciphertext) == (golden.SEED, 3, False)
    assert (blind.seed, blind.generation, blind.holds_ciphertext) == (0, 1, True)


def test_a_page_of_a_catalog_is_known_by_its_name() -> None:
    data = (GOLDEN / "bucket" / "page.zst").read_bytes()
    key = catalog_pages.page_key(msgspec.json.encode(golden.PAGE))
    assert catalog_pages.decode_page(data, key) == golden.PAGE
    for bad in (*flips(data), *(data[:size] for size in range(len(data)))):
        try:
            assert catalog_pages.decode_page(bad, key) == golden.PAGE
        except CorruptionError:
            continue


def test_what_had_no_version_before_is_read(tmp_path: Path) -> None:
    before = GOLDEN / "before"
    assert unpack_hot(HOT.read(str(before / "hot")) or b"") == golden.HOT_LIST
    assert FIRST.read(str(before / "first")) == struct.pack("<2Q", *golden.FIRST_NUMBERS)
    shutil.copy(before / "tokens.json", tmp_path / "tokens.json")
    tokens = Tokens(str(tmp_path / "tokens.json"))
    assert list(tokens.all().values()) == [golden.TOKEN]
    tokens.create({"pg": "read"})
    written = json.loads((tmp_path / "tokens.json").read_bytes())
    assert (written["snapfs"], written["format"], len(written["tokens"])) == ("tokens of a mirror", 1, 2)
    for absent in (b'{"tokens": []}', b'{"format": 1, "tokens": []}'):
        assert TOKENS.decode(absent, "here").tokens == []


@pytest.mark.parametrize("name", ["volume", "opaque"])
def test_a_later_volume_is_refused_and_nothing_touched(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / name, tmp_path / name)
    toml = tmp_path / name / "volume.toml"
    toml.write_text(toml.read_text().replace("format = 1", "format = 99", 1))
    before = everything(tmp_path)
    with pytest.raises(VersionError):
        Volume.open(str(tmp_path / name), Disk())
    assert everything(tmp_path) == before
