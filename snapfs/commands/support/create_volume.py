"""A volume that `mount` makes on first use: who may make one, and what goes again if the mount then fails.

Invariants:
1. Nothing is created where the caller requires an existing volume (`existing`): a typing error, or a disk that is not
   mounted yet, is an error and not a new, empty volume.
2. A volume that this process created is removed if its mount fails, as long as it is as it was made: no other process
   holds its lock, its settings are untouched, and neither its live tree nor its history has anything in it.
3. A folder that was there before stays; only what is ours in it goes.
"""

from __future__ import annotations

import contextlib
import os

from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_files import DAEMON_LOG, SUPERVISOR_FILE, VOLUME_LOCK, VOLUME_TOML
from snapfs.commands.support.remarks import remark

OF_FROM = ["token_file", "ca", "certificate", "certificate_key", "store_options", "key_file", "key_command"]
"""The parameters of `mount` that mean something with --from alone."""


def check_partners(given: dict[str, object], *, sources: bool, standby: bool) -> None:
    """Refuse options of `mount` whose partner is missing. click.UsageError names it.

    `given`: the parameters by name; `sources`: whether there is a --from; `standby`: whether VOLUME is a standby, which
    knows its sources.
    """
    import click  # the process of a mount in the background has no use for it

    for name in OF_FROM:
        if given.get(name) and not sources:
            raise click.UsageError(f"--{_option(name)} belongs to --from: name where the volume is to come from.")
    if given.get("at") and not sources:
        raise click.UsageError("--at belongs to --from: a mount shows its own snapshots in .snapfs/snapshots.")
    if given.get("writable") and not given.get("at"):
        raise click.UsageError("--writable belongs to --at: name the snapshot that the new volume begins with.")
    if given.get("require") and (not sources or given.get("at")):
        raise click.UsageError("--require belongs to --from, and not to --at, which names a snapshot already.")
    if given.get("force") and not (sources or standby):
        raise click.UsageError("--force belongs to --from, or to a VOLUME that is a standby: this is neither.")
    check_access(given)


def check_access(given: dict[str, object]) -> None:
    """Refuse what contradicts itself among the options of how a place is reached. click.UsageError."""
    import click

    if given.get("certificate_key") and not given.get("certificate"):
        raise click.UsageError("--certificate-key belongs to --certificate: name that as well.")
    if given.get("key_file") and given.get("key_command"):
        raise click.UsageError("--key-file and --key-command exclude each other.")


def _option(name: str) -> str:
    return {"store_options": "store-option"}.get(name, name.replace("_", "-"))


class NewVolume:
    """A volume that may have to be made. Use in a ``with`` around all that mounts it; call `stays` when it answers."""

    def __init__(self, path: str, *, existing: bool, because: str = "--existing") -> None:
        """`existing`: there has to be a volume; `because` is the option that demands it."""
        self.path, self._existing, self._because = path, existing, because
        self._created: Volume | None = None
        self._text = b""
        self._made_folder = False
        self._pid = os.getpid()

    def open(self) -> Volume:
        """The volume, which exists. UserError, VersionError."""
        return self._created or Volume.open(self.path, Disk())

    def create(self) -> bool:
        """Make the volume unless there is one; whether this process made it. UserError, BusyError."""
        if Volume.exists(self.path):
            return False
        self.check()
        made_folder = not os.path.lexists(self.path)
        try:
            self._created = Volume.create(self.path, Disk())
        except UserError:
            if Volume.exists(self.path):  # another mount made it meanwhile
                return False
            raise
        self._made_folder = made_folder
        self._text = self._settings()
        return True

    def check(self) -> None:
        """UserError if there has to be a volume, and is none."""
        if self._existing and not Volume.exists(self.path):
            raise UserError(
                f"there is no volume at {self.path}, and {self._because} creates none: is its disk mounted, and the "
                f"name right? (On first use, mount it without {self._because}, or with -o create.)"
            )

    def stays(self) -> None:
        """The mount answers: the volume is its user's."""
        self._created = None

    def __enter__(self) -> NewVolume:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and self._created is not None and os.getpid() == self._pid:
            try:
                self._take_back(self._created)
            except Exception as failure:  # the first failure is the one to report
                remark(f"{self.path}: the new volume could not be removed again ({failure})")

    def _settings(self) -> bytes:
        with open(os.path.join(self.path, VOLUME_TOML), "rb") as file:
            return file.read()

    def _take_back(self, volume: Volume) -> None:
        if volume.lock_fd < 0:  # of a supervisor that ends: it holds the lock still
            volume.lock("removing it: its first mount failed")
        try:
            if self._settings() == self._text and _is_empty(volume):
                self._remove()
        finally:
            volume.unlock()

    def _remove(self) -> None:
        disk = Disk()
        disk.unlink("volume:undo", os.path.join(self.path, VOLUME_TOML))
        for name in ("live", "store"):
            disk.remove_tree("volume:undo", os.path.join(self.path, name))
        for name in (DAEMON_LOG, SUPERVISOR_FILE, VOLUME_LOCK):
            with contextlib.suppress(FileNotFoundError):
                disk.unlink("volume:undo", os.path.join(self.path, name))
        if self._made_folder:
            disk.rmdir("volume:undo", self.path)


def _is_empty(volume: Volume) -> bool:
    """Whether nothing was ever put into the volume, whose lock we hold."""
    from snapfs.store.repository.repository import Repository, StoreIdentity

    for _, _, files in os.walk(os.path.join(volume.live_dir, "data")):
        if files:
            return False
    if _names(volume.namespace_path):
        return False
    if not os.listdir(volume.store_dir):
        return True
    identity = StoreIdentity(volume.volume_id, volume.seed)
    with contextlib.closing(Repository.open(volume.store_dir, identity, Disk(), readonly=True)) as repository:
        return not repository.catalog


def _names(path: str) -> int:
    """How many names a namespace.db that no process has open holds; read in a copy, as its disk may be full."""
    import shutil
    import sqlite3
    import tempfile

    with tempfile.TemporaryDirectory(prefix="snapfs-") as folder:
        copy = os.path.join(folder, "names.db")
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        with contextlib.closing(sqlite3.connect(copy)) as database:
            if not database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'entry'").fetchone()[0]:
                return 0
            found: int = database.execute("SELECT count(*) FROM entry").fetchone()[0]
            return found
