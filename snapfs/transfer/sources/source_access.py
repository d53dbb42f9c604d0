"""What a host needs to read a source: tokens, certificates, the key of an encrypted volume, options of an object
store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from snapfs.base.mirror_access import MirrorAccess

if TYPE_CHECKING:
    from snapfs.base.settings.replication_settings import EncryptionSettings, TargetSettings
    from snapfs.store.crypto.keys import OwnersKey


class Access(MirrorAccess, frozen=True, omit_defaults=True):
    """Access to a source of any kind.

    `key_file` or `key_command`: the owner's key of a volume that is encrypted there (store/crypto/keys.py). `options`:
    of an object store, as obstore calls them; its `token_file` has a key's id and secret.
    """

    key_file: str | None = None
    key_command: str | None = None
    options: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def has_key(self) -> bool:
        return bool(self.key_file or self.key_command)

    @staticmethod
    def of(target: TargetSettings, encryption: EncryptionSettings | None = None) -> Access:
        """The access to a volume's own target. Raises UserError for a variable of the settings that is not set."""
        from snapfs.base.settings.replication_settings import expanded

        target, encryption = expanded(target), expanded(encryption) if encryption is not None else None
        given = (target.token_file, target.ca, target.certificate, target.key)
        token_file, ca, certificate, key = (value or None for value in given)
        key_file, key_command = (encryption.key_file, encryption.key_command) if encryption is not None else ("", "")
        return Access(token_file, ca, certificate, key, key_file or None, key_command or None, target.options)

    def owners_key(self) -> OwnersKey:
        """The key that decrypts. Raises UserError if it cannot be read."""
        from snapfs.store.crypto.keys import read_owners_key  # most mounts need no cipher, and all are to be quick

        return read_owners_key(self.key_file, self.key_command)
