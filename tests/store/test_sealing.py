"""Sealing: there and back, whatever is changed is refused, no key meets a nonce twice; and the keys themselves."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import xxhash

from snapfs.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.errors import CorruptionError, SnapfsError, UserError
from snapfs.store import codec, keys, records, sealing
from snapfs.store import format as fmt
from snapfs.store.codec import Bases
from snapfs.store.format import FRAME_BYTES, Encoding, Kind, Pointer, Row
from snapfs.store.keys import Keyring, OwnersKey, WrappedKeys
from snapfs.store.records import SealStats, SnapshotRecord
from snapfs.store.sealing import Domain, Sealer
from snapfs.store.stream import Item

VOLUME = "ab" * 16
SEED = 0x1234567812345678
RING = Keyring.create(VOLUME, SEED)
PAGE = random.Random(1).randbytes(4096)
OWNER = OwnersKey(bytes(range(200, 232)), "the key")


def stored(number: int, plain: bytes, encoding: Encoding = Encoding.RAW, *, base: int = 0) -> tuple[Row, bytes]:
    """Row and frame as in a volume's own store."""
    if encoding == Encoding.SHIFT:
        payload, ordinal = codec.encode_shift(plain, Bases(PAGE, PAGE, PAGE), base - 1, base + 1).data, 1
    elif encoding == Encoding.DELTA:
        payload, ordinal = codec.encode_delta(plain, PAGE).data, 2
    else:
        payload, ordinal = plain, 0
    framed = fmt.pack_frame(number, base, Kind.CHUNK, encoding, ordinal, len(plain), payload) + payload
    proof = xxhash.xxh3_128_digest(plain, SEED)
    return Row(Number(number), 77, Kind.CHUNK, encoding, ordinal, len(payload), Number(base), proof), framed


OBJECTS = [
    stored(8, b""),
    stored(9, PAGE * 3),
    stored(10, PAGE[:1000], Encoding.DELTA, base=5),
    stored(1 << 49 | 3, PAGE[:1000] + b"x", Encoding.SHIFT, base=5),
]


def as_item(row: Row, framed: bytes) -> Item:
    return Item(row.proof, fmt.unpack_frame(framed), framed)


def record(number: int = 3, name: str | None = "payroll-2026") -> SnapshotRecord:
    root = Pointer(Number(900), b"\x07" * 16)
    stats = SealStats(files=12345, stored_bytes=67890)
    return SnapshotRecord(
        SnapshotNumber(number), name, Generation(2), SnapshotNumber(1), 5, 6, "control", root, Number(901), stats
    )


@pytest.mark.parametrize(("row", "framed"), OBJECTS)
def test_what_was_sealed_opens_as_it_was_and_is_sealed_alike_again(row: Row, framed: bytes) -> None:
    sealed_row, sealed = Sealer(RING).seal(row, framed)
    item = as_item(sealed_row, sealed)
    assert (item.frame.kind, item.frame.encoding, item.frame.base) == (Kind.SEALED, Encoding.SEALED, row.base)
    assert item.frame.plain == item.frame.stored == len(sealed) - FRAME_BYTES
    assert item.decode(None) == item.payload
    assert xxhash.xxh3_128_digest(item.payload, 0) == item.proof
    assert set(item.base_numbers()) == set(as_item(row, framed).base_numbers())
    opened = Sealer(RING).open(item, "there")
    assert opened == Item(row.proof, fmt.unpack_frame(framed), framed)
    assert Sealer(RING).seal(row, framed) == (sealed_row, sealed)
    assert len(sealed) == len(framed) + sealing.OVERHEAD + 8 * item.frame.ordinal
    assert PAGE[:100] not in sealed
    assert row.proof not in sealed


@pytest.mark.parametrize(("row", "framed"), OBJECTS)
def test_whatever_is_changed_does_not_open(row: Row, framed: bytes) -> None:
    sealer = Sealer(RING)
    _, sealed = sealer.seal(row, framed)
    frame, payload = fmt.unpack_frame(sealed), sealed[FRAME_BYTES:]

    def changed(number: int, base: int, ordinal: int, payload: bytes) -> Item:
        packed = fmt.pack_frame(number, base, Kind.SEALED, Encoding.SEALED, ordinal, len(payload), payload) + payload
        return Item(xxhash.xxh3_128_digest(payload, 0), fmt.unpack_frame(packed), packed)

    assert sealer.open(changed(frame.number, frame.base, frame.ordinal, payload), "there").proof == row.proof
    forged = [
        changed(frame.number + 1, frame.base, frame.ordinal, payload),
        changed(frame.number, frame.base + 1, frame.ordinal, payload),
        changed(frame.number, frame.base, (frame.ordinal + 1) % 3, payload),
        changed(frame.number, frame.base, frame.ordinal, payload[:-1]),
        changed(frame.number, frame.base, frame.ordinal, payload + b"\0"),
        changed(frame.number, frame.base, frame.ordinal, b""),
        as_item(row, framed),
    ]
    places = {*range(min(len(payload), 130)), *range(len(payload) - 20, len(payload))}
    for at in places:
        if payload[at : at + 1]:
            broken = bytearray(payload)
            broken[at] ^= 1 << at % 8
            forged.append(changed(frame.number, frame.base, frame.ordinal, bytes(broken)))
    for item in forged:
        with pytest.raises(CorruptionError, match=f"{item.frame.number:#x}"):
            sealer.open(item, "there")


def test_no_key_meets_a_nonce_twice() -> None:
    """Objects of all numbers, of one number in several encodings, under both data keys; records and hot lists."""
    rotated = RING.rotated()
    seen: dict[tuple[bytes, bytes], bytes] = {}

    def note(domain: Domain, number: int, sealed: bytes) -> None:
        key_id, nonce, rest = sealed[4:8], sealed[8:20], sealed[20:]
        key = sealing._key_of(rotated.data_keys[key_id], domain, number)
        assert seen.setdefault((key, nonce), rest) == rest

    for ring in (RING, rotated, RING):
        sealer = Sealer(ring)
        for number in range(2, 300):
            for plain in (b"", b"same", PAGE[:number], PAGE[: number + 1]):
                _, framed = sealer.seal(*stored(number, plain))
                note(Domain.OBJECT, number, framed[FRAME_BYTES:])
            for text in (b"one list", b"another list"):
                for domain in (Domain.RECORD, Domain.HOT):
                    blob = sealer.seal_blob(domain, number, text)
                    note(domain, number, blob[:8] + blob[16:])
    assert len(seen) == 2 * 298 * (4 + 4)


def test_another_volume_and_another_key_do_not_open_it() -> None:
    item = as_item(*Sealer(RING).seal(*OBJECTS[1]))
    other = msgspec.structs.replace(RING, volume="cd" * 16)
    with pytest.raises(CorruptionError, match="was changed there"):
        Sealer(other).open(item, "there")
    with pytest.raises(CorruptionError, match="not in the keyring"):
        Sealer(Keyring.create(VOLUME, SEED)).open(item, "there")
    same_id = msgspec.structs.replace(RING, keys={RING.current: "00" * 32})
    with pytest.raises(CorruptionError, match="was changed there"):
        Sealer(same_id).open(item, "there")


def test_a_rotated_keyring_opens_what_the_old_one_sealed() -> None:
    rotated = RING.rotated()
    old, new = Sealer(RING), Sealer(rotated)
    for row, framed in OBJECTS:
        assert new.open(as_item(*old.seal(row, framed)), "there").framed == framed
        assert new.seal(row, framed) != old.seal(row, framed)
        with pytest.raises(CorruptionError, match="not in the keyring"):
            old.open(as_item(*new.seal(row, framed)), "there")
    masked = old.seal_record(record()), new.seal_record(record())
    assert masked[0].root == masked[1].root
    assert masked[0].name == masked[1].name
    assert new.open_record(masked[0], "there") == record()


@pytest.mark.parametrize("name", ["payroll-2026", None])
def test_a_record_tells_a_target_little(name: str | None) -> None:
    sealer, whole = Sealer(RING), record(name=name)
    masked = sealer.seal_record(whole)
    told = msgspec.json.encode(records.to_fields(masked))
    for secret in (b"payroll", b"control", b"12345", b"67890", whole.root.proof.hex().encode()):
        assert secret not in told
    assert (masked.name is None) == (name is None)
    assert sealer.open_record(records.from_fields(msgspec.json.decode(told)), "there") == whole
    assert sealer.open_record(masked.with_state("damaged"), "there") == whole.with_state("damaged")
    later = {"number": SnapshotNumber(4), "generation": Generation(3), "last_number": Number(7), "name": "x"}
    for field, value in (*later.items(), ("root", Pointer(Number(1), bytes(16))), ("sealed", "zz"), ("sealed", "")):
        with pytest.raises(CorruptionError):
            sealer.open_record(replace(masked, **{field: value}), "there")  # type: ignore[arg-type]


def test_the_copy_of_a_record_among_the_objects_says_no_more_than_the_record() -> None:
    plain = msgspec.json.encode(records.to_fields(record()))
    framed = fmt.pack_frame(901, 0, Kind.RECORD, Encoding.RAW, 0, len(plain), plain) + plain
    row = Row(Number(901), 0, Kind.RECORD, Encoding.RAW, 0, len(plain), Number(0), xxhash.xxh3_128_digest(plain, SEED))
    sealer = Sealer(RING)
    sealed_row, sealed = sealer.seal(row, framed)
    assert b"payroll" not in sealed
    told = records.from_fields(msgspec.json.decode(sealed[FRAME_BYTES:]))
    assert replace(told, sealed="") == replace(sealer.seal_record(record()), sealed="")
    assert sealer.open(as_item(sealed_row, sealed), "there") == Item(row.proof, fmt.unpack_frame(framed), framed)


def test_a_hot_list_is_that_of_its_volume_and_nothing_else() -> None:
    sealer = Sealer(RING)
    blob = sealer.seal_blob(Domain.HOT, 5, b"list")
    assert sealer.open_blob(Domain.HOT, blob, "there") == b"list"
    for other in (sealer.seal_blob(Domain.RECORD, 5, b"list"), blob[:-1], blob[:7], b"", blob[:8] + b"\1" + blob[9:]):
        with pytest.raises(CorruptionError):
            sealer.open_blob(Domain.HOT, other, "there")


# -- keys


def test_wrapped_keys_open_by_their_own_key_only() -> None:
    wrapped = WrappedKeys.decode(OWNER.wrap(RING).encode(), "there")
    assert OWNER.unwrap(wrapped, "there") == RING
    other = OwnersKey(bytes(32), "/etc/other")
    assert (OWNER.opens(wrapped), other.opens(wrapped)) == (True, False)
    with pytest.raises(UserError, match=r"/etc/other is not the key of there"):
        other.unwrap(wrapped, "there")
    told = wrapped.encode()
    for secret in (RING.seed, RING.mask, *RING.keys.values()):
        assert secret.encode() not in told


@pytest.mark.parametrize("field", ["volume", "ring", "serial", "salt", "wrapped", "key"])
def test_wrapped_keys_that_were_changed_do_not_open(field: str) -> None:
    wrapped = OWNER.wrap(RING)
    old = getattr(wrapped, field)
    changed = old + 1 if isinstance(old, int) else f"{'B' if old[0] != 'B' else 'C'}{old[1:]}"
    with pytest.raises(SnapfsError):
        OWNER.unwrap(msgspec.structs.replace(wrapped, **{field: changed}), "there")


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"format": 1}', b"\xff"])
def test_what_is_no_keys_json_is_damaged(data: bytes) -> None:
    with pytest.raises(CorruptionError, match=r"wrapped keys in there"):
        WrappedKeys.decode(data, "there")


def test_the_forms_of_an_owners_key() -> None:
    raw = bytes(range(100, 132))
    salts = bytes(16), bytes(15) + b"\1"
    assert OwnersKey(raw, "").key(salts[0]) == raw == OwnersKey(raw.hex().encode() + b"\n", "").key(salts[1])
    phrase = OwnersKey(b"correct horse battery\n", "")
    assert phrase.key(salts[0]) == OwnersKey(b" correct horse battery", "").key(salts[0])
    assert phrase.key(salts[0]) != phrase.key(salts[1])
    assert len(phrase.key(salts[0])) == 32
    printable = OwnersKey(b"a passphrase of thirty-two bytes", "")
    assert printable.key(salts[0]) != printable.material
    for bad in (b"", b"short", b"\xff" * 40, b"x" * 2000):
        with pytest.raises(UserError, match="holds no key"):
            OwnersKey(bad, "it").key(salts[0])


def test_a_key_file_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(bytes(range(32)))
    for mode, good in ((0o600, True), (0o400, True), (0o640, True), (0o644, False), (0o660, False), (0o604, False)):
        os.chmod(file, mode)
        if good:
            assert keys.read_owners_key(str(file), None).material == bytes(range(32))
        else:
            with pytest.raises(UserError, match="chmod 600"):
                keys.read_owners_key(str(file), None)
    with pytest.raises(UserError, match="cannot be read"):
        keys.read_owners_key(str(tmp_path / "none"), None)
    with pytest.raises(UserError, match="not both"):
        keys.read_owners_key(str(file), "true")


def test_a_key_command_is_run_without_a_shell(tmp_path: Path) -> None:
    assert keys.read_owners_key(None, "echo 'a passphrase; $HOME'").material == b"a passphrase; $HOME\n"
    for command, why in (("false", "exit code 1"), ("/does/not/exist", "fails"), ("'", "fails")):
        with pytest.raises(UserError, match=why):
            keys.read_owners_key(None, command)


def test_keys_lie_in_a_file_of_their_owner(tmp_path: Path) -> None:
    assert keys.read_keys(str(tmp_path)) is None
    wrapped = OWNER.wrap(RING)
    keys.write_keys(str(tmp_path), wrapped, Disk())
    assert keys.read_keys(str(tmp_path)) == wrapped
    assert os.stat(tmp_path / keys.KEYS_FILE).st_mode & 0o777 == 0o600


def test_keyrings_that_were_rotated_on_two_hosts_become_one() -> None:
    here, there = RING.rotated(), RING.rotated().rotated()
    merged = here.merged(there)
    assert set(merged.keys) == set(here.keys) | set(there.keys)
    assert merged.current == there.current
    assert merged.serial > max(here.serial, there.serial)
    assert merged.keys == there.merged(here).keys
    assert RING.merged(RING.rotated().rotated()).serial == RING.serial + 2
    assert len({ring.ring for ring in (RING, here, there, merged)}) == 1
    assert Keyring.create(VOLUME, SEED).ring != RING.ring


def test_what_was_sealed_once_opens_for_ever_and_is_sealed_alike() -> None:
    """The bytes of version 1: a resumed push of a later version has to send the same."""
    golden = json.loads((Path(__file__).parent.parent / "golden" / "sealed-v1.json").read_text())
    ring = msgspec.convert(golden["keyring"], Keyring)
    for material, name in (
        (bytes.fromhex(golden["owner"]), "keys.json"),
        (golden["passphrase"].encode(), "keys.json of the passphrase"),
    ):
        wrapped = WrappedKeys.decode(golden[name].encode(), "there")
        assert OwnersKey(material, "").unwrap(wrapped, "there") == ring
    sealer, told = Sealer(ring), golden["object"]
    framed, sealed = bytes.fromhex(told["framed"]), bytes.fromhex(told["sealed"])
    frame = fmt.unpack_frame(framed)
    row = Row(
        frame.number, 0, frame.kind, frame.encoding, frame.ordinal, frame.stored, frame.base,
        bytes.fromhex(told["proof"]),
    )  # fmt: skip
    assert sealer.seal(row, framed)[1] == sealed
    item = Item(xxhash.xxh3_128_digest(sealed[FRAME_BYTES:], 0), fmt.unpack_frame(sealed), sealed)
    assert sealer.open(item, "there") == Item(row.proof, frame, framed)
    hot = bytes.fromhex(golden["hot"]["sealed"])
    assert sealer.open_blob(Domain.HOT, hot, "there").hex() == golden["hot"]["plain"]
    assert sealer.seal_blob(Domain.HOT, 7, b"golden") == hot
    masked = records.from_fields(golden["record"])
    assert sealer.open_record(masked, "there") == record()
    assert sealer.seal_record(record()) == masked
