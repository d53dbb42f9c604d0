"""What an encrypted volume lets its targets see: objects, records and hot lists as ciphertext, and the way back.

A target of an encrypted volume is an *encrypted store*: identity and numbers are the volume's, the seed is 0, and every
object is ENCRYPTED (format.py). The copies of the snapshots' records are the exception: they are records whose name and
content are encrypted in a field. Cipher: AES-256-GCM. Each ciphertext names its *data key* (keys.py) by the key's id.

PAYLOAD of an ENCRYPTED object               PLAINTEXT of its ciphertext
    -  more bases  8 each, ordinal of them       0  content hash     16  of the plain content, under the volume's seed
    0  version     1  1                         16  kind       1  as in the volume's own store
    1  zero        3                            17  encoding   1  with the ordinal, as in a frame
    4  key id      4                            18  zero       2
    8  nonce      12                            20  plain      4  length decoded
   20  ciphertext, tag (16)                     24  payload       as in the volume's own store

BLOB (a record, a hot list): version 1 (1), domain (1), zero (2), key id (4), number (8), nonce (12), ciphertext, tag.

Invariants:
1. A key and a nonce meet once. Each number in each domain has an AES key of its own, HMAC-SHA256 of the data key over
   both; under it the nonce is the first 12 bytes of HMAC-SHA256, by another key, over all that is encrypted and
   authenticated. So the same object encrypted again (a resumed push, any target, any process) gives the same bytes;
   what a number stands for a second time (an object that was repaired is stored in full, a fenced writer's snapshot, a
   newer hot list) gets another nonce; and nothing has to be remembered or counted.
2. All that stays readable is authenticated: volume, number, bases, key id, domain. What is moved, exchanged or changed
   does not open (CorruptionError). A whole snapshot that is an older one is recognised by generations and records.
3. What was decrypted is checked once more by the reader: content against the content hash, which is the pointer's.
4. A target learns numbers, bases, sizes (of compressed payloads) and times; of records also generation, parent, the
   root's and the last number, and whether there is a name. It does not learn the seed, nor any content hash of plain
   content.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Mapping
from dataclasses import replace
from enum import IntEnum
from functools import lru_cache
from typing import Final, Protocol

import msgspec
import xxhash
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from snapfs.base.blocks import Number
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import CutFacts, SealStats, SnapshotRecord
from snapfs.store.objects import codec, payload_types
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, MORE_BASES, Encoding, ObjectKind, Pointer, Row
from snapfs.store.protocol.object_stream import Item

VERSION: Final = 1
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
_HEAD: Final = struct.Struct("<B3x4s")
_INNER: Final = struct.Struct("<16sBB2xI")
_BLOB: Final = struct.Struct("<BB2x4sQ")
_BOUND: Final = struct.Struct("<16sQQB")
_NUMBER: Final = struct.Struct("<BQ")
OVERHEAD: Final = _HEAD.size + NONCE_BYTES + _INNER.size + TAG_BYTES
"""Bytes that encrypting adds to a payload, besides 8 for each further base."""
NAMED: Final = "sealed-"
_NO_RECORD: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError, msgspec.MsgspecError)


class Domain(IntEnum):
    """What is encrypted; kept apart also where numbers are equal."""

    OBJECT = 1
    RECORD = 2
    HOT = 3
    MASK = 4
    NONCE = 5


class UnknownKeyError(CorruptionError):
    """Encrypted with a data key that is not in the keyring: perhaps in one that is newer."""


class DataKeys(Protocol):
    """What a keyring has for encrypting. `mask`: a secret of the volume that is never changed."""

    @property
    def volume_id(self) -> str: ...
    @property
    def seed_number(self) -> int: ...
    @property
    def mask_key(self) -> bytes: ...
    @property
    def current_id(self) -> bytes: ...
    @property
    def data_keys(self) -> Mapping[bytes, bytes]: ...


@lru_cache(maxsize=64)
def _nonce_mac(data_key: bytes) -> hmac.HMAC:
    """To be copied, then updated with what is encrypted."""
    return hmac.new(hmac.digest(data_key, bytes([Domain.NONCE]), "sha256"), digestmod="sha256")


def _key_of(data_key: bytes, domain: Domain, number: int) -> bytes:
    return hmac.digest(data_key, _NUMBER.pack(domain, number), "sha256")


class Encryptor:
    """Encrypts and decrypts by one keyring. Thread-safe: it only reads."""

    def __init__(self, keys: DataKeys) -> None:
        self._volume = bytes.fromhex(keys.volume_id)
        self._seed, self._mask_key = keys.seed_number, keys.mask_key
        self._current, self._data_keys = keys.current_id, dict(keys.data_keys)

    # -- objects

    def encrypt(self, row: Row, framed: bytes) -> tuple[Row, bytes]:
        """Row and frame of the volume's own store, as a target gets them."""
        if row.kind == ObjectKind.RECORD:
            return self._encrypt_record_object(row, framed)
        frame, payload = fmt.unpack_frame(framed), memoryview(framed)[FRAME_BYTES:]
        head = _INNER.pack(row.content_hash, row.kind, row.ordinal << 4 | row.encoding, frame.plain)
        inner = b"".join((head, payload))
        more = self._more_bases(row, bytes(payload[: fmt.BASES_HEAD_BYTES]))
        ciphertext = self._encrypt_bytes(Domain.OBJECT, row.number, self._bound(row.number, row.base, more), inner)
        ciphertext = _numbers(more) + ciphertext if more else ciphertext
        return _stored(row.number, row.base, ObjectKind.ENCRYPTED, Encoding.ENCRYPTED, len(more), ciphertext)

    def decrypt(self, item: Item, where: str) -> Item:
        """An object as the volume's own store has it. Raises CorruptionError, VersionError, naming `where`."""
        frame = item.frame
        if frame.kind == ObjectKind.RECORD and frame.encoding == Encoding.RAW:
            return self._decrypt_record_object(item, where)
        if frame.encoding != Encoding.ENCRYPTED:
            raise _damaged(frame.number, where, "it is not encrypted, as all of this volume's objects are there")
        try:
            more = codec.encrypted_bases(item.payload, frame.ordinal)
        except payload_types.DecodeError as error:
            raise _damaged(frame.number, where, str(error)) from None
        ciphertext = item.payload[len(more) * MORE_BASES.size :]
        inner = self._decrypt_bytes(
            Domain.OBJECT, frame.number, self._bound(frame.number, frame.base, more), ciphertext, where
        )
        if len(inner) < _INNER.size:
            raise _damaged(frame.number, where, "it is too short")
        content_hash, kind, encoding, plain = _INNER.unpack_from(inner)
        payload = inner[_INNER.size :]
        packed = fmt.pack_frame(frame.number, frame.base, kind, encoding & 15, encoding >> 4, plain, payload)
        return Item(content_hash, fmt.unpack_frame(packed), packed + payload)

    @staticmethod
    def _more_bases(row: Row, payload: bytes) -> tuple[Number, ...]:
        numbers = codec.base_numbers(row.encoding, row.ordinal, row.base, payload)
        return tuple(number for number in dict.fromkeys(numbers) if number and number != row.base)

    def _bound(self, number: int, base: int, more: tuple[Number, ...]) -> bytes:
        return _BOUND.pack(self._volume, number, base, len(more)) + _numbers(more)

    def _encrypt_bytes(self, domain: Domain, number: int, bound: bytes, plain: bytes) -> bytes:
        data_key = self._data_keys[self._current]
        head = _HEAD.pack(VERSION, self._current)
        bound = bound + head
        mac = _nonce_mac(data_key).copy()
        mac.update(bytes([domain]) + bound)
        mac.update(plain)
        nonce = mac.digest()[:NONCE_BYTES]
        return b"".join((head, nonce, AESGCM(_key_of(data_key, domain, number)).encrypt(nonce, plain, bound)))

    def _decrypt_bytes(self, domain: Domain, number: int, bound: bytes, ciphertext: bytes, where: str) -> bytes:
        if len(ciphertext) < _HEAD.size + NONCE_BYTES + TAG_BYTES:
            raise _damaged(number, where, "it is too short")
        version, key_id = _HEAD.unpack_from(ciphertext)
        _refuse_later(f"object {number:#x}", where, version, ciphertext[1:4])
        if version != VERSION:
            raise _damaged(number, where, f"there is no version {version} of encryption")
        data_key = self._data_keys.get(key_id)
        if data_key is None:
            why = f"it is encrypted with data key {key_id.hex()}, which is not in the keyring"
            raise UnknownKeyError(f"object {number:#x}", where, why)
        at = _HEAD.size + NONCE_BYTES
        cipher = AESGCM(_key_of(data_key, domain, number))
        try:
            return cipher.decrypt(ciphertext[_HEAD.size : at], ciphertext[at:], bound + ciphertext[: _HEAD.size])
        except InvalidTag:
            raise _damaged(number, where, "it does not open with its data key: it was changed there") from None

    # -- records

    def encrypt_record(self, record: SnapshotRecord) -> SnapshotRecord:
        """The record as a target gets it: what reveals nothing stays, the whole of it is encrypted in a field."""
        whole = msgspec.json.encode(snapshot_records.to_fields(record))
        return self._masked(record, whole)

    def decrypt_record(self, record: SnapshotRecord, where: str) -> SnapshotRecord:
        """The inverse, in the state that the target reports. Raises CorruptionError, VersionError."""
        opened = self._decrypted_record(record, where)
        return snapshot_records.from_fields(msgspec.json.decode(opened)).with_state(record.state)

    def _masked(self, record: SnapshotRecord, whole: bytes) -> SnapshotRecord:
        ciphertext = self.encrypt_blob(Domain.RECORD, record.number, whole).hex()
        name, root = self._masks(record)
        return replace(
            record,
            name=name,
            trigger="",
            root=root,
            stats=SealStats(),
            ciphertext=ciphertext,
            cut=CutFacts(),
            log_head="",
            by=None,
        )

    def _masks(self, record: SnapshotRecord) -> tuple[str | None, Pointer]:
        """The record's name and root as a target sees them: each masked by a keyed hash."""
        name = None if record.name is None else NAMED + self._mask(record.name.encode("utf-8", "surrogateescape")).hex()
        number, content_hash = record.root
        return name, Pointer(number, self._mask(number.to_bytes(8, "little") + content_hash))

    def _decrypted_record(self, record: SnapshotRecord, where: str) -> bytes:
        what = f"the record of snapshot {record.number}"
        try:
            whole = self.decrypt_blob(Domain.RECORD, bytes.fromhex(record.ciphertext), where, record.number)
            found = snapshot_records.from_fields(msgspec.json.decode(whole))
        except _NO_RECORD as error:
            raise CorruptionError(what, where, str(error)) from None
        seen = record.number, record.name, record.root, record.generation, record.parent, record.last_number
        if (found.number, *self._masks(found), found.generation, found.parent, found.last_number) != seen:
            raise CorruptionError(what, where, "it does not agree with what is encrypted in it")
        return whole

    def _encrypt_record_object(self, row: Row, framed: bytes) -> tuple[Row, bytes]:
        frame = fmt.unpack_frame(framed)
        plain = codec.decode(row.encoding, framed[FRAME_BYTES:], frame.plain, None)
        record = snapshot_records.from_fields(msgspec.json.decode(plain))
        content = msgspec.json.encode(snapshot_records.to_fields(self._masked(record, plain)))
        return _stored(row.number, Number(0), ObjectKind.RECORD, Encoding.RAW, 0, content)

    def _decrypt_record_object(self, item: Item, where: str) -> Item:
        number = item.frame.number
        try:
            record = snapshot_records.from_fields(msgspec.json.decode(item.payload))
        except _NO_RECORD as error:
            raise _damaged(number, where, f"it is no record: {error}") from None
        plain = self._decrypted_record(record, where)
        framed = fmt.pack_frame(number, 0, ObjectKind.RECORD, Encoding.RAW, 0, len(plain), plain) + plain
        content_hash = xxhash.xxh3_128_digest(plain, self._seed)
        return Item(content_hash, fmt.unpack_frame(framed), framed)

    def _mask(self, data: bytes) -> bytes:
        """16 bytes that stand for `data` and do not reveal it; always the same."""
        return hmac.digest(self._mask_key, bytes([Domain.MASK]) + data, "sha256")[:16]

    # -- blobs

    def encrypt_blob(self, domain: Domain, number: int, plain: bytes) -> bytes:
        head = _BLOB.pack(VERSION, domain, self._current, number)
        ciphertext = self._encrypt_bytes(domain, number, self._volume + head, plain)
        return head + ciphertext[_HEAD.size :]

    def decrypt_blob(self, domain: Domain, blob: bytes, where: str, number: int | None = None) -> bytes:
        """The plaintext; `number` if it has to be that one's. Raises CorruptionError, VersionError."""
        if len(blob) < _BLOB.size:
            raise CorruptionError(domain.name.lower(), where, "it is too short")
        version, named, key_id, of = _BLOB.unpack_from(blob)
        _refuse_later(f"the {domain.name.lower()} blob", where, version, blob[2:4])
        if named != domain or (number is not None and of != number):
            raise CorruptionError(domain.name.lower(), where, "it is something else's")
        ciphertext = _HEAD.pack(version, key_id) + blob[_BLOB.size :]
        return self._decrypt_bytes(domain, of, self._volume + blob[: _BLOB.size], ciphertext, where)


def _numbers(numbers: tuple[Number, ...]) -> bytes:
    return b"".join(MORE_BASES.pack(number) for number in numbers)


def _stored(
    number: Number, base: Number, kind: ObjectKind, encoding: Encoding, ordinal: int, payload: bytes
) -> tuple[Row, bytes]:
    """Row and frame of an encrypted store, to which the payload is the content."""
    framed = fmt.pack_frame(number, base, kind, encoding, ordinal, len(payload), payload) + payload
    content_hash = xxhash.xxh3_128_digest(payload, 0)
    return Row(number, 0, kind, encoding, ordinal, len(payload), base, content_hash), framed


def _refuse_later(what: str, where: str, version: int, zeros: bytes) -> None:
    """The version lies first in all ciphertext, and the same bytes behind it are zero, also in later versions."""
    if version > VERSION and not any(zeros):
        words = f"{what} in {where} has encryption format {version}; this snapfs reads up to {VERSION}"
        raise VersionError(f"{words}: use a newer snapfs")


def _damaged(number: int, where: str, why: str) -> CorruptionError:
    return CorruptionError(f"object {number:#x}", where, why)
