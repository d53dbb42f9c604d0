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

from snapfs.base.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError, UserError, VersionError
from snapfs.store.crypto import encryption, keys
from snapfs.store.crypto.encryption import Domain, Encryptor
from snapfs.store.crypto.keys import Keyring, OwnersKey, WrappedKeys
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import AskedBy, SealStats, SnapshotRecord
from snapfs.store.objects import codec
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, Encoding, ObjectKind, Pointer, Row
from snapfs.store.objects.payload_types import Bases
from snapfs.store.protocol.object_stream import Item

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
    framed = fmt.pack_frame(number, base, ObjectKind.CHUNK, encoding, ordinal, len(plain), payload) + payload
    content_hash = xxhash.xxh3_128_digest(plain, SEED)
    return Row(
        Number(number), 77, ObjectKind.CHUNK, encoding, ordinal, len(payload), Number(base), content_hash
    ), framed


OBJECTS = [
    stored(8, b""),
    stored(9, PAGE * 3),
    stored(10, PAGE[:1000], Encoding.DELTA, base=5),
    stored(1 << 49 | 3, PAGE[:1000] + b"x", Encoding.SHIFT, base=5),
]


def as_item(row: Row, framed: bytes) -> Item:
    return Item(row.content_hash, fmt.unpack_frame(framed), framed)


def record(number: int = 3, name: str | None = "payroll-2026") -> SnapshotRecord:
    root = Pointer(Number(900), b"\x07" * 16)
    stats = SealStats(files=12345, stored_bytes=67890)
    return SnapshotRecord(
        SnapshotNumber(number), name, Generation(2), SnapshotNumber(1), 5, 6, "control", root, Number(901), stats
    )


@pytest.mark.parametrize(("row", "framed"), OBJECTS)
def test_what_was_sealed_opens_as_it_was_and_is_sealed_alike_again(row: Row, framed: bytes) -> None:
    encrypted_row, ciphertext = Encryptor(RING).encrypt(row, framed)
    item = as_item(encrypted_row, ciphertext)
    assert (item.frame.kind, item.frame.encoding, item.frame.base) == (
        ObjectKind.ENCRYPTED,
        Encoding.ENCRYPTED,
        row.base,
    )
    assert item.frame.plain == item.frame.stored == len(ciphertext) - FRAME_BYTES
    assert item.decode(None) == item.payload
    assert xxhash.xxh3_128_digest(item.payload, 0) == item.content_hash
    assert set(item.base_numbers()) == set(as_item(row, framed).base_numbers())
    opened = Encryptor(RING).decrypt(item, "there")
    assert opened == Item(row.content_hash, fmt.unpack_frame(framed), framed)
    assert Encryptor(RING).encrypt(row, framed) == (encrypted_row, ciphertext)
    assert len(ciphertext) == len(framed) + encryption.OVERHEAD + 8 * item.frame.ordinal
    assert PAGE[:100] not in ciphertext
    assert row.content_hash not in ciphertext


@pytest.mark.parametrize(("row", "framed"), OBJECTS)
def test_whatever_is_changed_does_not_open(row: Row, framed: bytes) -> None:
    encryptor = Encryptor(RING)
    _, ciphertext = encryptor.encrypt(row, framed)
    frame, payload = fmt.unpack_frame(ciphertext), ciphertext[FRAME_BYTES:]

    def changed(number: int, base: int, ordinal: int, payload: bytes) -> Item:
        packed = (
            fmt.pack_frame(number, base, ObjectKind.ENCRYPTED, Encoding.ENCRYPTED, ordinal, len(payload), payload)
            + payload
        )
        return Item(xxhash.xxh3_128_digest(payload, 0), fmt.unpack_frame(packed), packed)

    assert (
        encryptor.decrypt(changed(frame.number, frame.base, frame.ordinal, payload), "there").content_hash
        == row.content_hash
    )
    forged = [
        changed(frame.number + 1, frame.base, frame.ordinal, payload),
        changed(frame.number, frame.base + 1, frame.ordinal, payload),
        changed(frame.number, frame.base, frame.ordinal, payload[:-1]),
        changed(frame.number, frame.base, frame.ordinal, payload + b"\0"),
        changed(frame.number, frame.base, frame.ordinal, b""),
        as_item(row, framed),
    ]
    places = {*range(min(len(payload), 130)), *range(len(payload) - 20, len(payload))}
    for at in places:
        if payload[at : at + 1]:
            if at == 8 * frame.ordinal:  # the version: below
                continue
            broken = bytearray(payload)
            broken[at] ^= 1 << at % 8
            forged.append(changed(frame.number, frame.base, frame.ordinal, bytes(broken)))
    for item in forged:
        with pytest.raises(CorruptionError, match=f"{item.frame.number:#x}"):
            encryptor.decrypt(item, "there")
    moved = changed(frame.number, frame.base, (frame.ordinal + 1) % 3, payload)  # a base may lie where the version does
    with pytest.raises((CorruptionError, VersionError), match=f"{frame.number:#x}"):
        encryptor.decrypt(moved, "there")
    for version in (2, 99, 255):
        later = bytearray(payload)
        later[8 * frame.ordinal] = version
        with pytest.raises(VersionError, match=f"{frame.number:#x} in there has encryption format {version}.*newer"):
            encryptor.decrypt(changed(frame.number, frame.base, frame.ordinal, bytes(later)), "there")


def test_no_key_meets_a_nonce_twice() -> None:
    """Objects of all numbers, of one number in several encodings, under both data keys; records and hot lists."""
    rotated = RING.rotated()
    seen: dict[tuple[bytes, bytes], bytes] = {}

    def note(domain: Domain, number: int, ciphertext: bytes) -> None:
        key_id, nonce, rest = ciphertext[4:8], ciphertext[8:20], ciphertext[20:]
        key = encryption._key_of(rotated.data_keys[key_id], domain, number)
        assert seen.setdefault((key, nonce), rest) == rest

    for ring in (RING, rotated, RING):
        encryptor = Encryptor(ring)
        for number in range(2, 300):
            for plain in (b"", b"same", PAGE[:number], PAGE[: number + 1]):
                _, framed = encryptor.encrypt(*stored(number, plain))
                note(Domain.OBJECT, number, framed[FRAME_BYTES:])
            for text in (b"one list", b"another list"):
                for domain in (Domain.RECORD, Domain.HOT):
                    blob = encryptor.encrypt_blob(domain, number, text)
                    note(domain, number, blob[:8] + blob[16:])
    assert len(seen) == 2 * 298 * (4 + 4)


def test_another_volume_and_another_key_do_not_open_it() -> None:
    item = as_item(*Encryptor(RING).encrypt(*OBJECTS[1]))
    other = msgspec.structs.replace(RING, volume="cd" * 16)
    with pytest.raises(CorruptionError, match="was changed there"):
        Encryptor(other).decrypt(item, "there")
    with pytest.raises(CorruptionError, match="not in the keyring"):
        Encryptor(Keyring.create(VOLUME, SEED)).decrypt(item, "there")
    same_id = msgspec.structs.replace(RING, keys={RING.current: "00" * 32})
    with pytest.raises(CorruptionError, match="was changed there"):
        Encryptor(same_id).decrypt(item, "there")


def test_a_rotated_keyring_decrypts_what_the_old_one_encrypted() -> None:
    rotated = RING.rotated()
    old, new = Encryptor(RING), Encryptor(rotated)
    for row, framed in OBJECTS:
        assert new.decrypt(as_item(*old.encrypt(row, framed)), "there").framed == framed
        assert new.encrypt(row, framed) != old.encrypt(row, framed)
        with pytest.raises(CorruptionError, match="not in the keyring"):
            old.decrypt(as_item(*new.encrypt(row, framed)), "there")
    masked = old.encrypt_record(record()), new.encrypt_record(record())
    assert masked[0].root == masked[1].root
    assert masked[0].name == masked[1].name
    assert new.decrypt_record(masked[0], "there") == record()


@pytest.mark.parametrize("name", ["payroll-2026", None])
def test_a_record_shows_a_target_little(name: str | None) -> None:
    encryptor, whole = Encryptor(RING), replace(record(name=name), by=AskedBy(54321, 100, 7))
    masked = encryptor.encrypt_record(whole)
    encoded = msgspec.json.encode(snapshot_records.to_fields(masked))
    for secret in (b"payroll", b"control", b"12345", b"67890", b"54321", whole.root.content_hash.hex().encode()):
        assert secret not in encoded
    assert (masked.name is None) == (name is None)
    opened = encryptor.decrypt_record(snapshot_records.from_fields(msgspec.json.decode(encoded)), "there")
    assert (opened, opened.by) == (whole, whole.by)
    assert encryptor.decrypt_record(masked.with_state("damaged"), "there") == whole.with_state("damaged")
    later = {"number": SnapshotNumber(4), "generation": Generation(3), "last_number": Number(7), "name": "x"}
    for field, value in (
        *later.items(),
        ("root", Pointer(Number(1), bytes(16))),
        ("ciphertext", "zz"),
        ("ciphertext", ""),
    ):
        with pytest.raises(CorruptionError):
            encryptor.decrypt_record(replace(masked, **{field: value}), "there")  # type: ignore[arg-type]


def test_the_copy_of_a_record_among_the_objects_says_no_more_than_the_record() -> None:
    plain = msgspec.json.encode(snapshot_records.to_fields(record()))
    framed = fmt.pack_frame(901, 0, ObjectKind.RECORD, Encoding.RAW, 0, len(plain), plain) + plain
    row = Row(
        Number(901), 0, ObjectKind.RECORD, Encoding.RAW, 0, len(plain), Number(0), xxhash.xxh3_128_digest(plain, SEED)
    )
    encryptor = Encryptor(RING)
    encrypted_row, ciphertext = encryptor.encrypt(row, framed)
    assert b"payroll" not in ciphertext
    decoded = snapshot_records.from_fields(msgspec.json.decode(ciphertext[FRAME_BYTES:]))
    assert replace(decoded, ciphertext="") == replace(encryptor.encrypt_record(record()), ciphertext="")
    assert encryptor.decrypt(as_item(encrypted_row, ciphertext), "there") == Item(
        row.content_hash, fmt.unpack_frame(framed), framed
    )


def test_a_hot_list_is_that_of_its_volume_and_nothing_else() -> None:
    encryptor = Encryptor(RING)
    blob = encryptor.encrypt_blob(Domain.HOT, 5, b"list")
    assert encryptor.decrypt_blob(Domain.HOT, blob, "there") == b"list"
    for other in (
        encryptor.encrypt_blob(Domain.RECORD, 5, b"list"),
        blob[:-1],
        blob[:7],
        b"",
        blob[:8] + b"\1" + blob[9:],
    ):
        with pytest.raises(CorruptionError):
            encryptor.decrypt_blob(Domain.HOT, other, "there")
    with pytest.raises(CorruptionError):
        encryptor.decrypt_blob(Domain.HOT, b"\0" + blob[1:], "there")
    with pytest.raises(VersionError, match="hot blob in there has encryption format 2.*use a newer snapfs"):
        encryptor.decrypt_blob(Domain.HOT, b"\2" + blob[1:], "there")


# -- keys


def test_wrapped_keys_open_by_their_own_key_only() -> None:
    wrapped = WrappedKeys.decode(OWNER.wrap(RING).encode(), "there")
    assert OWNER.unwrap(wrapped, "there") == RING
    other = OwnersKey(bytes(32), "/etc/other")
    assert (OWNER.opens(wrapped), other.opens(wrapped)) == (True, False)
    with pytest.raises(UserError, match=r"/etc/other is not the key of there"):
        other.unwrap(wrapped, "there")
    encoded = wrapped.encode()
    for secret in (RING.seed, RING.mask, *RING.keys.values()):
        assert secret.encode() not in encoded


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
    golden = json.loads((Path(__file__).parent.parent.parent / "golden" / "sealed-v1.json").read_text())
    ring = msgspec.convert(golden["keyring"], Keyring)
    for material, name in (
        (bytes.fromhex(golden["owner"]), "keys.json"),
        (golden["passphrase"].encode(), "keys.json of the passphrase"),
    ):
        wrapped = WrappedKeys.decode(golden[name].encode(), "there")
        assert OwnersKey(material, "").unwrap(wrapped, "there") == ring
    encryptor, example = Encryptor(ring), golden["object"]
    framed, ciphertext = bytes.fromhex(example["framed"]), bytes.fromhex(example["sealed"])
    frame = fmt.unpack_frame(framed)
    row = Row(
        frame.number, 0, frame.kind, frame.encoding, frame.ordinal, frame.stored, frame.base,
        bytes.fromhex(example["proof"]),
    )  # fmt: skip
    assert encryptor.encrypt(row, framed)[1] == ciphertext
    item = Item(xxhash.xxh3_128_digest(ciphertext[FRAME_BYTES:], 0), fmt.unpack_frame(ciphertext), ciphertext)
    assert encryptor.decrypt(item, "there") == Item(row.content_hash, frame, framed)
    hot = bytes.fromhex(golden["hot"]["sealed"])
    assert encryptor.decrypt_blob(Domain.HOT, hot, "there").hex() == golden["hot"]["plain"]
    assert encryptor.encrypt_blob(Domain.HOT, 7, b"golden") == hot
    masked = snapshot_records.from_fields(golden["record"])
    assert encryptor.decrypt_record(masked, "there") == record()
    assert encryptor.encrypt_record(record()) == masked
