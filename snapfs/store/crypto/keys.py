"""The keys of an encrypted volume: a keyring of data keys, wrapped by a key that only its owner has.

The owner's key comes from a file or a command, and is never written anywhere. What wraps nothing but this is small, so
the wrapped keyring lies in VOLUME/keys.json and at each target: a new host needs only the owner's key.

THE OWNER'S KEY is 32 bytes (any), 64 hex digits, or a passphrase: any other UTF-8 text of 12 to 1024 bytes, from which
scrypt (N 32768, r 8, p 1, 16 bytes of salt) makes the key. Space and line ends around text do not count. 32 bytes that
are all printable ASCII are a passphrase.

KEYS.JSON: {"format": 1, "volume", "ring", "serial", "key", "salt", "wrapped"}. `wrapped`: nonce (12) and AES-256-GCM of
the Keyring as JSON, in base64; all other fields are authenticated with it. `ring` names the keyring without revealing
anything of it, `key` the owner's key that opens it. `serial` grows with each change: of two, the higher is the newer.

Invariants:
1. A data key, once in a keyring, stays in it: what was encrypted with it can be decrypted for as long as it lies
   somewhere.
2. `mask` and the seed never change. A keyring of another `ring` is another one, and never takes a keyring's place.
3. Nothing is encrypted with a data key that is not durably in VOLUME/keys.json, and at the target before what it
   encrypts.
4. The owner's key file must not be readable by others, nor writable by its group; keys.json has mode 0600.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import shlex
import stat
import subprocess
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, UserError
from snapfs.base.json_file import JsonFile
from snapfs.base.volumes.volume_files import KEYS_FILE
from snapfs.store.crypto.encryption import NONCE_BYTES

KEY_BYTES: Final = 32
MAX_KEYS_BYTES: Final = 1 << 20
COMMAND_SECONDS: Final = 60.0
_PASSPHRASE: Final = range(12, 1025)
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 15, 8, 1


class Keyring(msgspec.Struct, frozen=True):
    """What is wrapped. `keys`: data keys by id, in hex; `current` seals."""

    volume: str
    seed: str
    mask: str
    current: str
    keys: dict[str, str]
    serial: int = 1

    @staticmethod
    def create(volume_id: str, seed: int) -> Keyring:
        key_id = secrets.token_hex(4)
        keys = {key_id: secrets.token_hex(KEY_BYTES)}
        return Keyring(volume_id, f"{seed:016x}", secrets.token_hex(KEY_BYTES), key_id, keys)

    def rotated(self) -> Keyring:
        """With a new data key, which seals from now on."""
        key_id = secrets.token_hex(4)
        while key_id in self.keys:
            key_id = secrets.token_hex(4)
        keys = {**self.keys, key_id: secrets.token_hex(KEY_BYTES)}
        return msgspec.structs.replace(self, current=key_id, keys=keys, serial=self.serial + 1)

    def merged(self, other: Keyring) -> Keyring:
        """With the data keys of both, which are the same keyring's on two hosts; the newer one's seals."""
        assert self.ring == other.ring
        newer = max(self, other, key=lambda each: (each.serial, each.current))
        keys = {**self.keys, **other.keys}
        serial = newer.serial + (keys != newer.keys)
        return msgspec.structs.replace(newer, keys=keys, serial=serial)

    @property
    def ring(self) -> str:
        """Names the keyring; the same for ever."""
        return hmac.digest(self.mask_key, b"ring" + self.volume.encode(), "sha256").hex()[:16]

    # what encryption.py uses

    @property
    def volume_id(self) -> str:
        return self.volume

    @property
    def seed_number(self) -> int:
        return int(self.seed, 16)

    @property
    def mask_key(self) -> bytes:
        return bytes.fromhex(self.mask)

    @property
    def current_id(self) -> bytes:
        return bytes.fromhex(self.current)

    @property
    def data_keys(self) -> dict[bytes, bytes]:
        return {bytes.fromhex(key_id): bytes.fromhex(key) for key_id, key in self.keys.items()}


class WrappedKeys(msgspec.Struct, frozen=True):
    """keys.json."""

    format: int
    volume: str
    ring: str
    serial: int
    key: str
    salt: str
    wrapped: str

    @staticmethod
    def decode(data: bytes, where: str) -> WrappedKeys:
        """Raises CorruptionError, VersionError, naming `where`."""
        return KEYS.decode(data, where)

    def encode(self) -> bytes:
        """The file. In the form of the time before checksums: mirrors and object stores keep it, too, and all that is
        in it is authenticated by the owner's key."""
        return msgspec.json.encode(self) + b"\n"

    def check(self) -> None:
        """Raises ValueError if it cannot be what its fields state."""
        base64.b64decode(self.wrapped, validate=True)
        for text, length in ((self.volume, 32), (self.ring, 16), (self.key, 16), (self.salt, 32)):
            if len(bytes.fromhex(text)) * 2 != length:
                raise ValueError(f"{text!r} does not have {length} hex digits")
        if self.serial < 1:
            raise ValueError(f"serial {self.serial}")

    def bound(self) -> bytes:
        return msgspec.json.encode([self.format, self.volume, self.ring, self.serial, self.key, self.salt])


KEYS: Final = JsonFile(
    "wrapped keys", WrappedKeys, check=WrappedKeys.check,
    advice="put it back from another target, or remove it: the agent takes the copy of its first target",
)  # fmt: skip


@dataclass(frozen=True)
class OwnersKey:
    """What a key file or command gave. `where` names it in messages."""

    material: bytes
    where: str

    @cached_property
    def _text(self) -> bytes | None:
        """The text of a passphrase or of hex digits; None for 32 bytes that are no text."""
        if len(self.material) == KEY_BYTES and not all(32 <= byte < 127 for byte in self.material):
            return None
        return self.material.strip()

    def key(self, salt: bytes) -> bytes:
        """32 bytes. Raises UserError for what is no key."""
        text = self._text
        if text is None:
            return self.material
        if len(text) == 2 * KEY_BYTES:
            try:
                return bytes.fromhex(text.decode("ascii"))
            except ValueError:
                pass
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            text = b""
        if len(text) not in _PASSPHRASE:
            raise UserError(
                f"{self.where} holds no key: it has to be 32 bytes, 64 hex digits, or a passphrase of "
                f"{_PASSPHRASE.start} to {_PASSPHRASE.stop - 1} bytes"
            )
        return hashlib.scrypt(text, salt=salt, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P, maxmem=64 << 20, dklen=KEY_BYTES)

    def wrap(self, keyring: Keyring) -> WrappedKeys:
        salt = secrets.token_bytes(16)
        key = self.key(salt)
        made = WrappedKeys(1, keyring.volume, keyring.ring, keyring.serial, _name_of(key), salt.hex(), "")
        nonce = secrets.token_bytes(NONCE_BYTES)
        ciphertext = AESGCM(key).encrypt(nonce, msgspec.json.encode(keyring), made.bound())
        return msgspec.structs.replace(made, wrapped=base64.b64encode(nonce + ciphertext).decode())

    def opens(self, wrapped: WrappedKeys) -> bool:
        return _name_of(self.key(bytes.fromhex(wrapped.salt))) == wrapped.key

    def unwrap(self, wrapped: WrappedKeys, where: str) -> Keyring:
        """Raises UserError if it is another key's, CorruptionError if it was changed; both name `where`."""
        key = self.key(bytes.fromhex(wrapped.salt))
        if _name_of(key) != wrapped.key:
            raise UserError(
                f"{self.where} is not the key of {where}, which is {wrapped.key}'s (this one is {_name_of(key)}): "
                "name the key that the volume was encrypted with"
            )
        data = base64.b64decode(wrapped.wrapped)
        try:
            plain = AESGCM(key).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], wrapped.bound())
            found = msgspec.json.decode(plain, type=Keyring)
        except (InvalidTag, ValueError, msgspec.MsgspecError):
            raise CorruptionError("the wrapped keys", where, "they do not open: they were changed") from None
        if (found.volume, found.ring, found.serial) != (wrapped.volume, wrapped.ring, wrapped.serial):
            raise CorruptionError("the wrapped keys", where, "they do not match their own fields")
        return found


def _name_of(key: bytes) -> str:
    """What an owner's key is called: it distinguishes keys and does not help to find one."""
    return hmac.digest(key, b"snapfs owner's key", "sha256").hex()[:16]


def read_owners_key(file: str | None, command: str | None) -> OwnersKey:
    """The key in `file`, or what `command` (words, as in a shell; no shell runs) prints. Raises UserError."""
    if bool(file) == bool(command):
        raise UserError("name a key file or a key command, and not both" if file else "name a key file or a command")
    return _from_file(os.path.expanduser(file)) if file else _from_command(command or "")


def _from_file(path: str) -> OwnersKey:
    try:
        with open(path, "rb") as opened:
            found = os.fstat(opened.fileno())
            if stat.S_ISREG(found.st_mode) and found.st_mode & 0o027:
                raise UserError(f"{path}: others may read this key, or its group change it: `chmod 600 {path}` first")
            return OwnersKey(opened.read(4096), path)
    except OSError as error:
        raise UserError(f"{path}: the key cannot be read: {error.strerror}; name a file that you may read") from None


def _from_command(command: str) -> OwnersKey:
    try:
        words = shlex.split(command)
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_SECONDS, check=False
        )
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        raise UserError(f"the key command `{command}` fails: {error}") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else "without a message"
        raise UserError(f"the key command `{command}` fails with exit code {done.returncode}: {why}")
    return OwnersKey(done.stdout[:4096], f"what `{command}` prints")


# -- VOLUME/keys.json


def read_keys(folder: str) -> WrappedKeys | None:
    """The wrapped keys in a volume's (or an encrypted store's) folder; None if there are none. Raises as `decode`."""
    return KEYS.read(os.path.join(folder, KEYS_FILE))


def write_keys(folder: str, wrapped: WrappedKeys, disk: Disk) -> None:
    """Durably, in one step. Raises OSError."""
    KEYS.write("keys:write", os.path.join(folder, KEYS_FILE), wrapped, disk)
