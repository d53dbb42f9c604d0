"""A volume on disk: its folders, its identity, its lock and its format version.

This file owns VOLUME/volume.toml and VOLUME/lock, and knows the names of all else; what is inside live/ and store/
belongs to those packages.

Invariants:
1. A folder is a volume exactly if it has a volume.toml. `create` writes that file last and durably, so a crash before
   it leaves a folder with nothing but our own empty names, which the next `create` takes over.
2. `create` never takes over a folder with anything else in it. A volume that lost its volume.toml is not made anew.
3. One daemon at a time: what changes a volume holds an exclusive flock on VOLUME/lock. The kernel drops it with the
   process, so no stale lock can exist; the text in the file only tells whom to ask.
4. The generation never falls. `bump_generation` returns when the new one is durable, and rewrites volume.toml in one
   step: after a crash it is the old file or the new one. The user's comments and settings stay as they are.
5. A format version above ours is refused before anything else of the file is looked at.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import tomlkit
from msgspec import Meta

from snapfs.blocks import Disk, Generation
from snapfs.config import Config, decode, override, parse_toml, read_toml, template
from snapfs.errors import BusyError, CorruptionError, UserError, VersionError

FORMAT_VERSION = 1
_LOCK_TRIES = 30
"""10 ms apart: a supervisor ends a moment after its daemon."""
_OWN_NAMES = {"live", "store", "lock", "volume.toml.new"}

_HEADER = """\
# A snapfs volume. The state is in live/, its history in store/; nothing in here is to be edited by hand
# but the settings below. They take effect at the next mount; `snapfs configcheck` checks them.

[volume]
# Kept by snapfs itself. The seed is a secret of this volume: with it, contents could be made that pass for others.
format = {format}
id = "{id}"
seed = "{seed:016x}"
generation = {generation}
"""
_OPAQUE = "# What is kept here is ciphertext, pushed by a volume that is encrypted for its targets.\nopaque = true\n"


class _Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The [volume] table."""

    format: int
    id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    seed: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    generation: Annotated[int, Meta(ge=1, le=0xFFFF)]
    opaque: bool = False


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
        opaque: bool = False,
    ) -> Volume:
        """Make a new volume in the folder `path`, which is empty or does not exist.

        `seed` (64 bits) is given where the objects of another volume are to be shared, `volume_id` (32 hex digits)
        where it is to be the same volume at another place; `opaque` where it will hold ciphertext (the seed is 0 then).
        UserError if the folder cannot be used.
        """
        path = os.path.abspath(path)
        with explained(path, "create a volume there"):
            _claim_folder(path, disk)
            text = _HEADER.format(
                format=FORMAT_VERSION,
                id=uuid.uuid4().hex if volume_id is None else volume_id,
                seed=secrets.randbits(64) if seed is None else seed,
                generation=generation,
            )
            text += (_OPAQUE if opaque else "") + template()
            if settings:
                text = _with_settings(text, settings, path)
            disk.replace_file("volume:create", os.path.join(path, "volume.toml"), text.encode())
            disk.sync_dir("volume:create", os.path.dirname(path))
        return cls(path, disk)

    @classmethod
    def open(cls, path: str, disk: Disk) -> Volume:
        """The volume at `path`. UserError if it is none or cannot be read, VersionError if a later snapfs made it."""
        return cls(os.path.abspath(path), disk)

    @classmethod
    def exists(cls, path: str) -> bool:
        """Whether `path` is a volume. UserError if we may not look."""
        try:
            os.lstat(os.path.join(path, "volume.toml"))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _readable(path, "look into it", error) from None
        return True

    def _load(self) -> None:
        try:
            with open(self.toml_path, encoding="utf-8") as file:
                text = file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(_no_volume(self.path)) from None
        except UnicodeDecodeError as error:
            raise UserError(f"{self.toml_path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
        except OSError as error:
            raise _readable(self.path, "read it", error) from None
        tables = read_toml(text, self.toml_path)
        self._identity = _decode_identity(tables.pop("volume", None), self.toml_path)
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
        return os.path.join(self.path, "volume.toml")

    @property
    def lock_path(self) -> str:
        return os.path.join(self.path, "lock")

    @property
    def live_dir(self) -> str:
        return os.path.join(self.path, "live")

    @property
    def namespace_path(self) -> str:
        return os.path.join(self.live_dir, "namespace.db")

    @property
    def store_dir(self) -> str:
        return os.path.join(self.path, "store")

    @property
    def volume_id(self) -> str:
        """32 hex digits, unique for each volume; a clone has one of its own."""
        return self._identity.id

    @property
    def seed(self) -> int:
        """64 secret bits that the proofs of all objects depend on; a clone shares those of its origin."""
        return int(self._identity.seed, 16)

    @property
    def generation(self) -> Generation:
        return Generation(self._identity.generation)

    @property
    def opaque(self) -> bool:
        """Whether this is what a target has of an encrypted volume: ciphertext."""
        return self._identity.opaque

    def bump_generation(self, to: int | None = None) -> Generation:
        """Start the next generation (or `to`, a later one), durably, and return it. The volume is locked."""
        assert self._lock_fd >= 0, "only the holder of the lock may start a generation"
        new = self.generation + 1 if to is None else to
        assert new > self.generation
        if new > 0xFFFF:
            raise UserError(f"{self.path} has used all its 65,535 generations: clone it into a new volume")
        with explained(self.path, "change its generation"):
            with open(self.toml_path, encoding="utf-8") as file:
                document = parse_toml(file.read(), self.toml_path)
            document["volume"]["generation"] = new
            self._disk.replace_file("volume:generation", self.toml_path, tomlkit.dumps(document).encode())
        self._identity = msgspec.structs.replace(self._identity, generation=new)
        return self.generation

    def lock(self, purpose: str = "") -> None:
        """Become the only one to change this volume, until `unlock` or the end of the process.

        `purpose` is told to whoever comes too late, e.g. ``mounted at /srv/db``. BusyError names the holder.
        """
        assert self._lock_fd < 0, "locked already"
        with explained(self.path, "lock it"):
            fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _try_lock(fd):
            holder = os.pread(fd, 4096, 0).decode(errors="replace").strip()
            os.close(fd)
            raise BusyError(f"{self.path} is in use by {holder or 'another process'}")
        self._lock_fd = fd
        self._say_who(purpose)

    @property
    def lock_fd(self) -> int:
        """The descriptor that holds the lock, -1 if none does. Whoever inherits it holds the lock with us."""
        return self._lock_fd

    def take_lock(self, fd: int, purpose: str) -> None:
        """Hold the lock by a descriptor that we were given; `purpose` as for `lock`."""
        assert self._lock_fd < 0, "locked already"
        self._lock_fd = fd
        self._say_who(purpose)

    def _say_who(self, purpose: str) -> None:
        told = f"process {os.getpid()}{f', {purpose}' if purpose else ''}\n".encode()
        with contextlib.suppress(OSError):  # a full disk: it is the lock that counts
            os.pwrite(self._lock_fd, told, 0)
            os.ftruncate(self._lock_fd, len(told))

    def look_again(self) -> None:
        """Learn the identity anew, of which the generation may have changed; the settings stay as they are."""
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
    document = parse_toml(text, path)
    for section, table in settings.items():
        for name, value in table.items():
            document[section][name] = value
    return tomlkit.dumps(document)


def boot_id() -> str:
    """What tells this run of the machine from others: the page cache does not outlive it."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def lock_holder(path: str) -> str | None:
    """Who holds the lock of the volume at `path`, as told by the lock file; None if nobody does."""
    try:
        fd = os.open(os.path.join(path, "lock"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return os.pread(fd, 4096, 0).decode(errors="replace").strip()
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    """Lock `fd`, trying for a moment longer than `lock_holder` of another process takes to look."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01)
    return False


def _decode_identity(table: object, where: str) -> _Identity:
    if not isinstance(table, dict) or not isinstance(table.get("format"), int):
        raise UserError(f"{where}: the [volume] table with its format is missing; restore the file from a copy")
    if table["format"] > FORMAT_VERSION:
        raise VersionError(
            f"{where} has format {table['format']}, this snapfs knows up to {FORMAT_VERSION}: use a later snapfs"
        )
    try:
        return msgspec.convert(table, _Identity)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: [volume] is kept by snapfs and was changed: {error}") from None


def _claim_folder(path: str, disk: Disk) -> None:
    """Make `path` a folder with empty live/ and store/, or raise UserError and leave it as it is."""
    if not os.path.lexists(path):
        disk.mkdir("volume:create", path)
    if Volume.exists(path):
        raise UserError(f"{path} is a volume already")
    foreign = set(os.listdir(path)) - _OWN_NAMES
    leftovers = [name for name in ("live", "store") if os.path.isdir(os.path.join(path, name))]
    if foreign or any(os.listdir(os.path.join(path, name)) for name in leftovers):
        raise UserError(f"{path} is not empty and not a volume: name an empty folder, or one that does not exist yet")
    for name in ("live", "store"):
        if name not in leftovers:
            disk.mkdir("volume:create", os.path.join(path, name))
    os.close(os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _no_volume(path: str) -> str:
    if not os.path.lexists(path):
        return f"there is no volume at {path}: `snapfs mount {path} MOUNTPOINT` makes one"
    if not os.path.isdir(path):
        return f"{path} is not a volume, and not even a folder"
    return f"{path} is not a volume: it has no volume.toml"


def _readable(path: str, act: str, error: OSError) -> UserError:
    hint = {
        errno.EACCES: ": become its owner or root",
        errno.EROFS: ": mount that filesystem for writing",
        errno.ENOENT: ": make the folder above it first",
        errno.ENOSPC: ": make room on that filesystem",
    }.get(error.errno or 0, "")
    return UserError(f"{path}: cannot {act} ({os.strerror(error.errno or 0)}){hint}")


class explained:  # noqa: N801 - reads as a word of the sentence it stands in
    """Turn an OSError of the block into a UserError that says what could not be done to `path`."""

    def __init__(self, path: str, act: str) -> None:
        self._path, self._act = path, act

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise _readable(self._path, self._act, error) from None
