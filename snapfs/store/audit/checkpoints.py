"""Signed checkpoints of snapshots.log: Ed25519 over how long the log is and what its last line is.

A line of kind "checkpoint" has `lines` and `head` (the SHA-256 of the line before it), `key` (the first 16 hex digits
of the SHA-256 of the public key) and `signature` (hex), which is of MESSAGE with the volume's id. Without the private
key no log can be made that has a valid one, so the past up to a checkpoint cannot be rewritten on a host that has lost
its key since.

Keys are PEM files as `openssl genpkey -algorithm ed25519` makes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from snapfs.base.errors import UserError, readable
from snapfs.store.log.log_lines import Line

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KIND: Final = "checkpoint"
_MESSAGE: Final = "snapfs checkpoint 1\n{volume}\n{lines}\n{head}\n"


def message(volume_id: str, lines: int, head: str) -> bytes:
    """What is signed."""
    return _MESSAGE.format(volume=volume_id, lines=lines, head=head).encode()


def _pem(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 16)
    except OSError as error:
        raise readable(path, "read the key", error) from None


def private_key(path: str) -> Ed25519PrivateKey:
    """UserError if the file cannot be read or holds no such key."""
    from cryptography.hazmat.primitives import serialization  # only where checkpoints are signed
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data = _pem(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: no private key in PEM without a password ({str(error).splitlines()[0]})") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: not an Ed25519 key: `openssl genpkey -algorithm ed25519` makes one")
    return key


def public_key(path: str) -> Ed25519PublicKey:
    """The public key of a PEM file, or that of the private key in it. UserError."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    data = _pem(path)
    if b"PRIVATE KEY" in data:
        return private_key(path).public_key()
    try:
        key = serialization.load_pem_public_key(data)
    except ValueError as error:
        raise UserError(f"{path}: no public key in PEM ({str(error).splitlines()[0]})") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path}: not an Ed25519 key: `openssl pkey -pubout` makes it of the private one")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """Which key it is."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def signed(key: Ed25519PrivateKey, volume_id: str, lines: int, head: str) -> dict[str, Any]:
    """The fields of a checkpoint that follows `lines` lines, the last of which has the SHA-256 `head`."""
    signature = key.sign(message(volume_id, lines, head))
    return {"lines": lines, "head": head, "key": key_id(key.public_key()), "signature": signature.hex()}


@dataclass(slots=True)
class Checkpoints:
    """What the checkpoints of a log prove. `through`: the last line that a valid one is behind."""

    volume_id: str
    key: Ed25519PublicKey
    found: int = 0
    through: int = 0
    through_ns: int = 0

    def findings(self, number: int, line: Line) -> Iterator[str]:
        """What is wrong with line `number`, if it is a checkpoint; to be called for each line in its order."""
        if line.kind != KIND:
            return
        self.found += 1
        why = self._why_not(number, line)
        if why:
            yield f"line {number}: the checkpoint {why}"
        else:
            self.through, self.through_ns = number, line.time_ns

    def _why_not(self, number: int, line: Line) -> str:
        from cryptography.exceptions import InvalidSignature

        fields = line.event.fields
        if (fields.get("lines"), fields.get("head")) != (number - 1, line.prev):
            return "is not of the log before it"
        if fields.get("key") != key_id(self.key):
            return f"is signed with another key ({fields.get('key')})"
        try:
            self.key.verify(bytes.fromhex(str(fields.get("signature"))), message(self.volume_id, number - 1, line.prev))
        except (InvalidSignature, ValueError):
            return "has a wrong signature"
        return ""
