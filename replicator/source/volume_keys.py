"""The keys of an encrypted volume on the host that writes it: VOLUME/keys.json, brought into line with its targets.

Invariants:
1. `agree` comes before anything is sealed for a target. After it the keyring here holds all data keys of the target's;
   the caller puts ours there, before what they seal, if they differ.
2. A keyring is made only where there is none, neither here nor there; another volume's, or another ring's, is refused.
3. Who reads, decides and writes keys.json holds a lock on the volume's folder: feeders of several targets, and the
   commands that rotate keys, take turns.
"""

from __future__ import annotations

import os

from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError
from snapfs.base.file_lock import locked_folder
from snapfs.base.settings.replication_settings import EncryptionSettings, expanded
from snapfs.base.volumes.volume_files import KEYS_FILE
from snapfs.store.crypto.encryption import Encryptor
from snapfs.store.crypto.keys import Keyring, OwnersKey, WrappedKeys, read_keys, read_owners_key, write_keys
from snapfs.store.objects.format import Row


def owners_key(settings: EncryptionSettings) -> OwnersKey:
    """Raises UserError."""
    settings = expanded(settings)
    return read_owners_key(settings.key_file or None, settings.key_command or None)


class VolumeKeys:
    """The keys by which one volume is encrypted for one target. Used by one thread at a time."""

    def __init__(self, path: str, settings: EncryptionSettings, volume_id: str, seed: int, disk: Disk) -> None:
        """Reads nothing yet."""
        self._path, self._settings, self._disk = path, settings, disk
        self._volume_id, self._seed = volume_id, seed
        self._encryptor: Encryptor | None = None

    @property
    def encryptor(self) -> Encryptor:
        assert self._encryptor is not None, "agree comes first"
        return self._encryptor

    def stage(self, row: Row, framed: bytes) -> tuple[Row, bytes]:
        """An object as targets see it (replicator/source/volume_source.py)."""
        return self.encryptor.encrypt(row, framed)

    def agree(self, there: bytes, where: str, *, is_empty: bool) -> bytes:
        """Bring the keys here and those of a target (b"": none) into line; what to put there, b"" if that is the same.

        Raises UserError, CorruptionError, VersionError, OSError.
        """
        owner = owners_key(self._settings)
        theirs = WrappedKeys.decode(there, where) if there else None
        with locked_folder(self._path):
            own = read_keys(self._path)
            if own is None:
                own = self._begun(owner, theirs, where, is_empty)
            keyring = owner.unwrap(own, os.path.join(self._path, KEYS_FILE))
            if theirs is not None and theirs != own:
                keyring, own = self._merged(owner, keyring, own, theirs, where)
        self._check(keyring, where)
        self._encryptor = Encryptor(keyring)
        return own.encode() if own != theirs else b""

    def _begun(self, owner: OwnersKey, theirs: WrappedKeys | None, where: str, is_empty: bool) -> WrappedKeys:
        if theirs is not None:
            self._check(owner.unwrap(theirs, where), where)
            own = theirs
        elif not is_empty:
            raise UserError(
                f"the keys of the snapshots at {where} are neither there nor in {self._path}/{KEYS_FILE}: put that "
                "file back from another target, or give the target another name"
            )
        else:
            own = owner.wrap(Keyring.create(self._volume_id, self._seed))
        write_keys(self._path, own, self._disk)
        return own

    def _merged(
        self, owner: OwnersKey, keyring: Keyring, own: WrappedKeys, theirs: WrappedKeys, where: str
    ) -> tuple[Keyring, WrappedKeys]:
        if theirs.ring != own.ring:
            raise UserError(
                f"{where} is encrypted with another keyring ({theirs.ring}) than {self._path}/{KEYS_FILE} holds "
                f"({own.ring}): put the right file there, or give the target another name"
            )
        if theirs.serial < own.serial:
            return keyring, own
        other = owner.unwrap(theirs, where)
        merged = keyring.merged(other)
        if merged == keyring:
            return keyring, own
        own = theirs if merged == other else owner.wrap(merged)
        write_keys(self._path, own, self._disk)
        return merged, own

    def _check(self, keyring: Keyring, where: str) -> None:
        if (keyring.volume_id, keyring.seed_number) != (self._volume_id, self._seed):
            raise UserError(f"the keys of {where} are those of another volume ({keyring.volume_id})")
