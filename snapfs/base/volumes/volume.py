"""A volume on disk: its folders, its settings, its generation and its lock.

This file owns VOLUME/volume.toml and VOLUME/lock, and knows the names of all else; the contents of live/ and store/
belong to those packages. The [volume] table is volume_identity's, the claim of a new folder volume_folder's.

Invariants:
1. A folder is a volume exactly if it has a volume.toml. `create` writes that file last and durably: a crash before it
   leaves a folder with nothing but our own empty names, which the next `create` takes over.
2. `create` never takes over a folder with anything else in it. A volume that lost its volume.toml is not made anew.
3. One daemon at a time: a process that changes a volume holds an exclusive flock on VOLUME/lock (volume_lock).
4. The generation never falls. `bump_generation` returns when the new one is durable, and replaces volume.toml in one
   step: after a crash it is the old file or the new one. The user's comments and settings stay as they are.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from snapfs.base.blocks import MAX_GENERATION, Disk, Generation
from snapfs.base.errors import BusyError, CorruptionError, UserError, explained, readable
from snapfs.base.file_lock import try_lock
from snapfs.base.settings.config import Config, decode, override
from snapfs.base.settings.settings_template import template
from snapfs.base.settings.toml_text import parse_toml, read_toml
from snapfs.base.staged_folder import is_at
from snapfs.base.volumes.volume_files import NAMESPACE_DB, VOLUME_LOCK, VOLUME_TOML
from snapfs.base.volumes.volume_folder import claimed_folder, is_volume, no_volume
from snapfs.base.volumes.volume_identity import (
    CIPHERTEXT_LINES,
    FORMAT_VERSION,
    HEADER,
    VolumeIdentity,
    decode_identity,
    identity_table,
)
from snapfs.base.volumes.volume_lock import LOCK_TRIES


class Volume:
    """An existing volume. `lock` it before changing anything in it."""

    def __init__(self, path: str, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        self._lock_fd = -1
        self._load()

    @classmethod
    def create(
        cls,
        path: str,
        disk: Disk,
        *,
        seed: int | None = None,
        generation: int = 1,
        settings: Mapping[str, Any] | None = None,
        volume_id: str | None = None,
        holds_ciphertext: bool = False,
        text: str | None = None,
    ) -> Volume:
        """Make a new volume in the folder `path`, which is empty or does not exist.

        `seed` (64 bits) is given where the objects of another volume are to be shared, `volume_id` (32 hex digits)
        where it is to be the same volume at another place; `holds_ciphertext` for a server-blind copy (its seed is 0);
        `text`: the settings as they are to stand in the file, in the place of all with their reasons.
        UserError if the folder cannot be used.
        """
        path = os.path.abspath(path)
        with explained(path, "create a volume there"), claimed_folder(path, disk):
            seed = secrets.randbits(64) if seed is None else seed
            made = VolumeIdentity(
                FORMAT_VERSION, volume_id or uuid.uuid4().hex, f"{seed:016x}", generation, holds_ciphertext
            )
            head = HEADER.format(
                format=made.format, id=made.id, seed=made.seed, generation=generation, checksum=made.sum()
            )
            head += CIPHERTEXT_LINES if holds_ciphertext else ""
            text = f"{head}{template() if text is None else text}"
            if settings:
                text = _with_settings(text, settings, path)
            disk.replace_file("volume:create", os.path.join(path, VOLUME_TOML), text.encode())
            disk.sync_dir("volume:create", os.path.dirname(path))
        return cls(path, disk)

    @classmethod
    def open(cls, path: str, disk: Disk) -> Volume:
        """The volume at `path`. UserError if it is none or cannot be read, VersionError if a later snapfs made it."""
        return cls(os.path.abspath(path), disk)

    @classmethod
    def exists(cls, path: str) -> bool:
        """Whether `path` is a volume. UserError if it cannot be looked into."""
        return is_volume(path)

    def _load(self) -> None:
        try:
            with open(self.toml_path, encoding="utf-8") as file:
                text = file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(no_volume(self.path)) from None
        except UnicodeDecodeError as error:
            why = f"not UTF-8 text ({error.reason} at byte {error.start})"
            raise CorruptionError("the volume's identity or settings", self.toml_path, why) from None
        except OSError as error:
            raise readable(self.path, "read it", error) from None
        try:
            tables = read_toml(text, self.toml_path)
        except UserError:
            decode_identity(identity_table(text), self.toml_path)  # else the settings are wrong: a person's doing
            raise
        self._identity = decode_identity(tables.pop("volume", None), self.toml_path)
        self.config: Config = decode(tables, self.toml_path)

    def check_folders(self) -> None:
        """CorruptionError if what `create` made is not there any more."""
        for folder in (self.live_dir, self.store_dir):
            if not os.path.isdir(folder):
                raise CorruptionError("the volume", self.path, f"its folder {os.path.basename(folder)}/ is missing")

    def configure(self, settings: Mapping[str, str]) -> None:
        """Replace settings for this run only, each named ``section.name``. UserError for one that does not exist."""
        self.config = override(self.config, settings)

    @property
    def toml_path(self) -> str:
        return os.path.join(self.path, VOLUME_TOML)

    @property
    def lock_path(self) -> str:
        return os.path.join(self.path, VOLUME_LOCK)

    @property
    def live_dir(self) -> str:
        return os.path.join(self.path, "live")

    @property
    def namespace_path(self) -> str:
        return os.path.join(self.live_dir, NAMESPACE_DB)

    @property
    def store_dir(self) -> str:
        return os.path.join(self.path, "store")

    @property
    def volume_id(self) -> str:
        """32 hex digits, unique for each volume; a clone has one of its own."""
        return self._identity.id

    @property
    def seed(self) -> int:
        """64 secret bits that the content hashes of all objects depend on; a clone shares those of its origin."""
        return int(self._identity.seed, 16)

    @property
    def generation(self) -> Generation:
        return Generation(self._identity.generation)

    @property
    def holds_ciphertext(self) -> bool:
        """Whether this is the server-blind copy that a target has of an encrypted volume."""
        return self._identity.holds_ciphertext

    def bump_generation(self, to: int | None = None) -> Generation:
        """Start the next generation (or `to`, a later one), durably, and return it. The volume is locked."""
        assert self._lock_fd >= 0, "only the holder of the lock may start a generation"
        new = self.generation + 1 if to is None else to
        assert new > self.generation
        if new > MAX_GENERATION:
            raise UserError(f"{self.path} has used all its {MAX_GENERATION:,} generations: clone it into a new volume")
        import tomlkit  # long to import, and a mount has no use for it

        with explained(self.path, "change its generation"):
            with open(self.toml_path, encoding="utf-8") as file:
                document = parse_toml(file.read(), self.toml_path)
            identity = msgspec.structs.replace(self._identity, generation=new)
            document["volume"]["generation"] = new
            document["volume"]["checksum"] = identity.sum()
            self._disk.replace_file("volume:generation", self.toml_path, tomlkit.dumps(document).encode())
        self._identity = msgspec.structs.replace(identity, checksum=identity.sum())
        return self.generation

    def lock(self, purpose: str = "") -> None:
        """Become the only one to change this volume, until `unlock` or the end of the process.

        `purpose` is written into the lock file for the error of others, e.g. ``mounted at /srv/db``. BusyError names
        the holder.
        """
        assert self._lock_fd < 0, "locked already"
        with explained(self.path, "lock it"):
            fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not try_lock(fd, LOCK_TRIES):
            holder = os.pread(fd, 4096, 0).decode(errors="replace").strip()
            os.close(fd)
            raise BusyError(f"{self.path} is in use by {holder or 'another process'}")
        if not is_at(fd, self.lock_path):
            os.close(fd)
            raise BusyError(f"{self.path} was removed at this moment by another process, whose mount of it failed")
        self._lock_fd = fd
        self._write_holder(purpose)

    @property
    def lock_fd(self) -> int:
        """The descriptor that holds the lock, -1 if none does. A process that inherits it shares the lock."""
        return self._lock_fd

    def take_lock(self, fd: int, purpose: str | None) -> None:
        """Take over the lock with the inherited descriptor `fd`; `purpose` as for `lock`, None: its holder stays."""
        assert self._lock_fd < 0, "locked already"
        self._lock_fd = fd
        if purpose is not None:
            self._write_holder(purpose)

    def _write_holder(self, purpose: str) -> None:
        holder = f"process {os.getpid()}{f', {purpose}' if purpose else ''}\n".encode()
        with contextlib.suppress(OSError):  # a full disk: it is the lock that counts
            os.pwrite(self._lock_fd, holder, 0)
            os.ftruncate(self._lock_fd, len(holder))

    def reload_identity(self) -> None:
        """Read the identity again, in which the generation may have changed; the settings stay as they are."""
        config = self.config
        self._load()
        self.config = config

    def unlock(self) -> None:
        """Let others change the volume. Does nothing if it is not locked."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def check_invariants(self) -> None:
        """Assert that what is in memory is what is on disk."""
        again = Volume(self.path, self._disk)
        assert again._identity == self._identity
        assert os.path.isdir(self.live_dir)
        assert os.path.isdir(self.store_dir)


def _with_settings(text: str, settings: Mapping[str, Any], path: str) -> str:
    """A volume.toml with these settings in the place of the defaults."""
    import tomlkit

    document = parse_toml(text, path)
    for section, table in settings.items():
        if section not in document:
            document.add(section, tomlkit.table())
        for name, value in table.items():
            document[section][name] = value
    return tomlkit.dumps(document)
