"""Adoption: a directory is imported, and the mount of the volume takes its place; the original is kept beside it.

The steps, and what a crash after each leaves:

1. The import, as `snapfs import` makes it (directory_import.py).                the directory; VOLUME.importing
2. adoption.json (`prepared`) is written, and the volume published.             the directory; VOLUME
3. An empty directory is made beside: DIR.original.                             the directory, as in all until 6
4. The volume is mounted there, by a daemon for which DIR is the mountpoint.
5. A look whether the directory changed since it was copied, or is in use.
6. The exchange of the two (path_exchange.py): THE COMMIT POINT. DIR is the mount on the empty directory, and
   DIR.original the directory. Both at one instant.                             the mount; after a reboot its mountpoint
7. adoption.json says `adopted`, and the import's plan goes.                    the mount

Where no namespace can be made (path_exchange.py) the order is 3, 5, 6, 4: DIR is for the time of a mount an empty
directory that only its owner may enter, and is exchanged back if the mount fails.

`undo` is the same in the other direction: `undoing`, the exchange, the unmount, the empty directory removed, the file
removed. `forget`: `forgetting`, the original removed, the file removed. Each goes on where it was interrupted.

Invariants:
1. The path DIR means a directory at every instant: the original or the mount (or its mountpoint).
2. The original is not changed, and not removed but by `forget`.
3. What is not where adoption.json says is a UserError, and nothing is touched.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from snapfs.base.blocks import Disk
from snapfs.base.errors import BusyError, UserError, explained
from snapfs.base.mountinfo import mount_at, resolved
from snapfs.commands.mounting.daemon_start import DaemonStart
from snapfs.commands.mounting.mount_options import parse_options
from snapfs.commands.mounting.mount_preparation import check_extensions, prepare
from snapfs.commands.mounting.mount_users import users_of
from snapfs.commands.mounting.unmounting import unmount_and_wait
from snapfs.commands.moving.path_exchange import Exchange
from snapfs.commands.support import output
from snapfs.commands.support.create_volume import NewVolume
from snapfs.commands.support.locate import mount_entries
from snapfs.transfer.move_in.adoption_file import ADOPTION, ADOPTION_FILE, AdoptionFile, State, read_adoption

if TYPE_CHECKING:
    from snapfs.transfer.move_in.directory_import import PassReport

ORIGINAL = ".original"


class Adoption:
    """One directory and its volume. One thread. Errors are SnapfsError, and OSError of the host."""

    def __init__(self, directory: str, volume: str, disk: Disk, options: tuple[str, ...] = ()) -> None:
        self.directory, self.volume = resolved(directory), os.path.abspath(volume)
        self.original = f"{self.directory}{ORIGINAL}"
        self.disk, self._options = disk, options

    # -- where things are

    def facts(self) -> AdoptionFile | None:
        """What adoption.json says; None if there is none. UserError if it is about another directory."""
        found = read_adoption(self.volume)
        if found is not None and found.directory != self.directory:
            raise UserError(f"{self.volume} was adopted from {found.directory}, not from {self.directory}")
        return found

    def mounted_at(self) -> str | None:
        """Where the volume is mounted, seen by mountinfo."""
        return next((entry.mountpoint for entry in reversed(mount_entries()) if entry.is_of(self.volume)), None)

    def is_exchanged(self, facts: AdoptionFile) -> bool:
        """Whether the original is beside the path. UserError if it is in neither place."""
        if facts.is_beside():
            return True
        if facts.is_in_place():
            return False
        raise UserError(
            f"the original of {self.directory} is neither there nor at {self.original}: find it, and put it back"
        )

    def _note(self, state: State, inode: int | None = None, folder: str = "") -> None:
        if inode is None:
            known = self.facts()
            assert known is not None
            inode = known.inode
        path = os.path.join(folder or self.volume, ADOPTION_FILE)
        ADOPTION.write("adopt:state", path, AdoptionFile(state, self.directory, self.original, inode), self.disk)

    # -- adopt

    def check(self) -> None:
        """UserError, BusyError unless the directory can be adopted now."""
        if mount_at(self.directory) is not None:
            raise UserError(f"{self.directory} is a mountpoint: import it, and mount the volume in its place")
        if os.path.lexists(self.original) and not self._is_own_mountpoint():
            raise UserError(f"{self.original} exists, and is where the original is to be kept: rename it first")
        folder = os.path.dirname(self.directory)
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder} cannot be changed by you: become its owner or root")
        self.check_unused(self.directory)

    def check_unused(self, place: str) -> None:
        """BusyError while a process has something of it open: it would go on with what is put away."""
        if users := users_of(place):
            raise BusyError(f"{place} is in use by {', '.join(users)}: stop it first")

    def _is_own_mountpoint(self) -> bool:
        """Whether an earlier attempt made the directory beside."""
        facts = os.lstat(self.original)
        own = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and stat.S_IMODE(facts.st_mode) == 0o700
        return mount_at(self.original) is not None or (own and not os.listdir(self.original))

    def prepare(self, staging: str) -> None:
        """Step 2, before the volume is published from the folder `staging`."""
        self._note("prepared", os.stat(self.directory).st_ino, staging)

    def take_back(self, staging: str) -> None:
        """The directory changed after step 2: let the import go on with what it had."""
        self._end_mount(self.original)
        self.disk.rename("adopt:back", self.volume, staging)
        self.disk.sync_dir("adopt:back", os.path.dirname(self.volume))

    def changes(self) -> PassReport:
        """Step 5: what changed in the directory since it was copied."""
        from snapfs.transfer.move_in.directory_import import changes_since

        return changes_since(self.directory, self.volume, self.disk)

    def exchange(self) -> list[str]:
        """Steps 3 to 6; what the mount had to recover. When it fails, the directory is in its place."""
        self._end_mount(self.original)
        with contextlib.suppress(FileExistsError):
            self.disk.mkdir("adopt:mountpoint", self.original)
        process = Exchange.begin(self.directory, self.original)
        try:
            if process is None:
                return self._exchange_and_mount()
            with process:
                recovered = self._mount(self.original)
                self._check_same()
                process.make()
        except BaseException:
            self._clear_mountpoint()
            raise
        self.disk.sync_dir("adopt:exchange", os.path.dirname(self.directory))
        return recovered

    def _exchange_and_mount(self) -> list[str]:
        """The same without a namespace of our own."""
        output.remark(f"no mount namespace can be made here: {self.directory} will be empty for a moment")
        self._check_same()
        self.disk.exchange("adopt:exchange", self.directory, self.original)
        try:
            return self._mount()
        except BaseException:
            self.disk.exchange("adopt:exchange", self.directory, self.original)
            raise

    def _check_same(self) -> None:
        self.check_unused(self.directory)
        if (found := self.changes()).changes:
            first = output.printable(os.fsdecode(found.examples[0] if found.examples else b"."))
            raise BusyError(
                f"{self.directory} changed while it was adopted ({first}): stop what writes there, and try again"
            )

    def finish(self) -> list[str]:
        """Step 7, and the mount if it is not there any more, as after a reboot."""
        from snapfs.transfer.move_in.directory_import import forget_plan

        recovered = self._mount() if self.mounted_at() is None else []
        self._note("adopted")
        forget_plan(self.volume, self.disk)
        return recovered

    def _mount(self, first_at: str = "") -> list[str]:
        """Mount the volume for the path of the directory, at first at `first_at`; what was recovered."""
        wanted = parse_options(self._options)
        check_extensions(self.volume, wanted)
        new = NewVolume(self.volume, existing=True)
        real = os.path.realpath(self.volume)
        with new, DaemonStart(real, self.directory, self._options, False, first_at=first_at) as starting:
            prepare(new, first_at or self.directory, wanted)
            recovered = starting.go()
            new.stays()
        return recovered

    def _end_mount(self, place: str) -> None:
        if self.mounted_at() == place:
            unmount_and_wait(place, lazy=False)

    def _clear_mountpoint(self) -> None:
        """After a failure before the exchange: nothing is left beside the directory."""
        facts = read_adoption(self.volume)
        if facts is not None and not facts.is_beside():
            self._end_mount(self.original)
            with contextlib.suppress(OSError):
                self.disk.rmdir("adopt:mountpoint", self.original)

    # -- undo

    def undo(self, differs: Callable[[str, str], str | None], *, force: bool) -> None:
        """Put the original back. The volume stays as it is, unmounted.

        `differs(mount, original)` names a path that is not the same in both; without `force` that is a UserError.
        """
        facts = self._of("adopted", "undoing", "prepared")
        if self.is_exchanged(facts):
            mounted = self.mounted_at()
            self._check_undo(mounted, differs, force)
            self._note("undoing")
            self._exchange_back(mounted)
        elif facts.state != "undoing":
            raise UserError(f"{self.directory} is the original still: there is nothing to undo")
        self._end_mount(self.original)
        with explained(self.original, "remove it"), contextlib.suppress(FileNotFoundError):
            self.disk.rmdir("adopt:mountpoint", self.original)
        self._forget_file()

    def _check_undo(self, mounted: str | None, differs: Callable[[str, str], str | None], force: bool) -> None:
        if mounted is not None:
            self.check_unused(mounted)
        if force:
            return
        if mounted is None:
            raise UserError(
                f"{self.volume} is not mounted, so it is unknown what was written to it: mount it, or use --force"
            )
        if (path := differs(mounted, self.original)) is not None:
            raise UserError(
                f"{output.printable(path)} is not as in the original: what was written since is in {self.volume} "
                "alone. `snapfs export` writes it to a directory; --force puts the original back without it"
            )

    def _exchange_back(self, mounted: str | None) -> None:
        process = Exchange.begin(self.directory, self.original, mounted or "")
        if process is not None:
            with process:
                process.make()
        else:
            self._end_mount(self.directory)
            self.disk.exchange("adopt:exchange", self.directory, self.original)
        self.disk.sync_dir("adopt:exchange", os.path.dirname(self.directory))

    # -- forget

    def forget(self) -> None:
        """Remove the original. The volume is all there is then."""
        facts = self._of("adopted", "forgetting")
        if facts.state == "adopted":
            if self.mounted_at() != self.directory:
                raise UserError(
                    f"{self.volume} is not mounted at {self.directory}: mount it first, and see that it works"
                )
            if not self.is_exchanged(facts):
                raise UserError(f"{self.directory} is the original still")
            self._note("forgetting")
        if facts.is_beside():
            self.disk.remove_tree("adopt:forget", self.original)
        self._forget_file()

    def _of(self, *states: State) -> AdoptionFile:
        facts = self.facts()
        if facts is None:
            raise UserError(f"{self.volume} is not adopted from {self.directory}, or the original was removed")
        if facts.state not in states:
            raise UserError(f"the adoption of {self.directory} is {facts.state}: go on with that first")
        return facts

    def _forget_file(self) -> None:
        self.disk.unlink("adopt:done", os.path.join(self.volume, ADOPTION_FILE))
        self.disk.sync_dir("adopt:done", self.volume)
