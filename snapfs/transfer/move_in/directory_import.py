"""An import: a plain directory, which may be in use, becomes a volume.

The volume is built in `VOLUME.importing` and renamed when it is whole. The source is walked in passes: the first one
copies everything, each later one what changed since it was read, until one finds nothing. Then all copies are exactly
what was there at the instant when that last pass began: each file is the same before and after it. What does not come
to rest within the passes that are allowed cannot be such an instant, and is reported.

The steps: passes (file_copies.py, into the places that the files have in the volume; import_plan.py says what is
copied) - everything made durable - the copies read back - names and attributes put into the namespace in one
transaction - the rename, which is the commit point.

Invariants:
1. `VOLUME` does not exist, or is the whole volume. A kill leaves `VOLUME.importing`, with which the next import of the
   same directory goes on. The source is never changed.
2. One process imports: it holds the lock of the volume in the making.
3. A write to a mapped file that its time does not show yet is not missed: each pass first has the source's filesystem
   write out, so that the next store to any page changes the time.
4. The volume begins with everything new: its first snapshot has all of it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from snapfs.base.blocks import Disk, Ino
from snapfs.base.boot import boot_id
from snapfs.base.errors import CorruptionError, UserError, explained
from snapfs.base.volumes.volume import Volume
from snapfs.live.backing.backing import Backing
from snapfs.live.database.namespace_rows import Inode
from snapfs.live.handover import leave_in_order
from snapfs.live.namespace.namespace import Namespace
from snapfs.transfer.move_in import copied_content
from snapfs.transfer.move_in.file_copies import FileCopies, FileToCopy, Outcome, xattrs_of
from snapfs.transfer.move_in.import_plan import PLAN_FILE, CopiedPart, ImportPlan, PlannedState, Signature, discard_plan
from snapfs.transfer.move_in.source_walk import DIRECTORY, FoundDirectory, SourceWalk

STAGING = ".importing"
TICK_NS = 20_000_000
"""What two looks at a clock of file times may be apart without a difference; the kernel's ticks are up to 10 ms."""
EXAMPLES = 5
_COMMIT_S = 0.5
_CHECKS = 3
_GROUP = 64

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class PassReport:
    """What a pass found: paths of what was new, changed or gone (the first few), and how many."""

    changes: int = 0
    examples: list[bytes] = field(default_factory=list)
    files: int = 0
    directories: int = 0
    others: int = 0
    total_bytes: int = 0
    sockets: list[bytes] = field(default_factory=list)
    elsewhere: list[bytes] = field(default_factory=list)
    linked_outside: int = 0
    """Files that have names outside of the source, too."""

    def changed(self, path: bytes) -> None:
        self.changes += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(path or b".")


class DirectoryImport:
    """One import. One thread, which also closes it. Errors of the host are OSErrors."""

    def __init__(self, source: str, volume: str, disk: Disk, *, threads: int = 4, sharing: bool = True) -> None:
        """Begin, or go on with what a killed import of `source` left. UserError, BusyError, VersionError."""
        self.path, self._disk, self._threads, self._sharing = os.path.abspath(volume), disk, threads, sharing
        self.staging = f"{self.path}{STAGING}"
        self.copied_bytes = self.shared_files = 0
        self._parts = contextlib.ExitStack()
        try:
            self._open(os.path.realpath(source))
        except BaseException:
            self.close()
            raise

    def _open(self, source: str) -> None:
        with explained(source, "read it"):
            self.root = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._parts.callback(os.close, self.root)
        place = self.path if Volume.exists(self.path) else self.staging
        self.was_begun = Volume.exists(place)
        self.volume = Volume.open(place, self._disk) if self.was_begun else Volume.create(place, self._disk)
        self.volume.lock(f"importing {source}")
        self._parts.callback(self.volume.unlock)
        device = os.fstat(self.root).st_dev
        self._plan = ImportPlan(os.path.join(place, PLAN_FILE), os.fsencode(source), device)
        self._parts.callback(self._plan.close)
        if self._plan.source != os.fsencode(source):
            was = os.fsdecode(self._plan.source)
            raise UserError(f"{place} was begun by an import of {was}: finish that, or remove it")
        self._backing = Backing(self.volume.live_dir, self._disk, 1)
        self._parts.callback(self._backing.close)
        self._backing.make_folders()

    @property
    def passes(self) -> int:
        """How often the source was walked, by all imports that worked on this one."""
        return self._plan.passes

    # -- passes

    def copy(self, passes: int, advance: Callable[[int], None]) -> PassReport:
        """Walk and copy until a pass finds nothing changed, or there were so many; the last one's report."""
        report = PassReport()
        for _ in range(passes):
            report = self._pass(advance)
            if not report.changes:
                break
        return report

    def _pass(self, advance: Callable[[int], None]) -> PassReport:
        at_ns = time.time_ns() - TICK_NS
        self._disk.sync_filesystem("import:source", self.root)

        def copied(size: int) -> None:
            self.copied_bytes += size
            advance(size)

        copies = FileCopies(
            self._backing.path,
            self._backing.limits,
            self._threads,
            at_ns=at_ns,
            sharing=self._sharing,
            advance=copied,
        )
        one = _Pass(self._plan, self.root, copies, self._backing)
        try:
            report = one.run()
            self.shared_files += one.shared
            return report
        finally:
            copies.close()
            self._plan.commit()

    # -- what was copied is there

    def check(self, progress: Progress) -> int:
        """Make all copies durable and read them back; how many files. What is not as it was read is copied anew.

        CorruptionError if that does not help. Files whose bytes are shared with the source are not read.
        """
        for _ in range(_CHECKS):
            self.settle()
            bad, files = self._check(progress)
            if not bad:
                return files
            for src in bad:
                self._plan.drop_parts(src)
            self._pass(lambda done: None)
        raise CorruptionError(os.fsdecode(self._plan.a_name(bad[0])), self.staging, "it is not what was copied")

    def settle(self) -> None:
        """Forget what is gone from the source, and make all copies durable."""
        self._plan.forget_unseen()
        fd = os.open(self._backing.root, DIRECTORY)
        try:
            self._disk.sync_filesystem("import:sync", fd)
        finally:
            os.close(fd)

    def _check(self, progress: Progress) -> tuple[list[int], int]:
        files = [(src, ino, size) for src, ino, size, shared in self._plan.copies() if not shared]
        done, total = 0, sum(size for *_, size in files)
        bad: list[int] = []
        groups = [files[first : first + _GROUP] for first in range(0, len(files), _GROUP)]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="check") as pool:
            for first in range(0, len(groups), self._threads * 4):
                some = groups[first : first + self._threads * 4]
                parts = [[self._plan.parts(src) for src, *_ in group] for group in some]
                for verdicts in pool.map(self._bad_of, some, parts):
                    bad += verdicts
                done += sum(size for group in some for *_, size in group)
                progress(done, total)
        return bad, len(files)

    def _bad_of(self, files: list[tuple[int, Ino, int]], parts: list[list[CopiedPart]]) -> list[int]:
        pairs = zip(files, parts, strict=True)
        return [src for (src, ino, size), its in pairs if not self._is_copied(ino, size, its)]

    def _is_copied(self, ino: Ino, size: int, parts: list[CopiedPart]) -> bool:
        if len(parts) != copied_content.part_count(size):
            return False
        try:
            # The access time of a backing file is where a ctime is kept.
            fd = os.open(self._backing.path(ino), os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
        except FileNotFoundError:
            return False
        try:
            return os.fstat(fd).st_size == size and all(
                copied_content.check(fd, part.number, size, part.ranges, part.hash) for part in parts
            )
        finally:
            os.close(fd)

    # -- the volume

    def publish(self, *, keep_plan: bool = False) -> int:
        """Make the volume of what was copied, and put it in its place; how many times had to be clamped.

        `keep_plan`: for `changes_since`; `forget_plan` ends that.
        """
        self._remove_strays()
        clamped = self._fill_names()
        self._plan.close()
        if not keep_plan:
            forget_plan(self.staging, self._disk)
        self._disk.rename("import:publish", self.staging, self.path)
        self._disk.sync_dir("import:publish", os.path.dirname(self.path))
        return clamped

    def _remove_strays(self) -> None:
        """Remove the copies of what is gone from the source."""
        wanted = {ino for _, ino, *_ in self._plan.copies()}
        for ino, path in self._backing.scan():
            if ino not in wanted:
                self._disk.unlink("import:stray", path)

    def _fill_names(self) -> int:
        live = self.volume.live_dir
        for folder, kept in ((live, ("data", "staging")), (self.volume.store_dir, ())):
            for name in os.listdir(folder):  # an earlier attempt's
                path = os.path.join(folder, name)
                if name not in kept and os.path.isdir(path):
                    self._disk.remove_tree("import:leftover", path)
                elif name not in kept:
                    self._disk.unlink("import:leftover", path)
        names = Namespace(self.volume.namespace_path, self._disk)
        try:
            clamped = self._put_all(names)
            names.sync()
            leave_in_order(live, names, self._disk, boot_id())
        finally:
            names.close()
        return clamped

    def _put_all(self, names: Namespace) -> int:
        links, below, xattrs = self._plan.link_counts(), self._plan.subdirectories(), self._plan.xattrs()
        clamp, clamped = self._backing.limits.clamp_time, 0
        with names.bulk(sealed=False) as bulk:
            for each in self._plan.inodes():
                is_directory = stat.S_ISDIR(each.mode)
                nlink = 2 + below.get(each.src, 0) if is_directory else links.get(each.src, 1)
                times = each.atime_ns, each.mtime_ns, each.ctime_ns
                held = (clamp(times[0]), clamp(times[1]), clamp(times[2]))
                clamped += held != times
                inode = Inode(each.ino, each.mode, each.uid, each.gid, each.rdev, nlink, *held, each.target)
                bulk.put_inode(inode, xattrs.get(each.src, ()))
            for parent, name, ino in self._plan.entries():
                bulk.put_entry(parent, name, ino)
        return clamped

    def close(self) -> None:
        """Release everything. What is not published stays for the next import."""
        self._parts.close()


def changes_since(source: str, volume: str, disk: Disk) -> PassReport:
    """What of `source` is not as it was when the import that made `volume` copied it, and kept its plan."""
    root = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk.sync_filesystem("import:source", root)
        plan = ImportPlan(os.path.join(volume, PLAN_FILE), os.fsencode(source), os.fstat(root).st_dev)
        try:
            return _Pass(plan, root).run()
        finally:
            plan.close()
    finally:
        os.close(root)


def forget_plan(folder: str, disk: Disk) -> None:
    """The import is over: nothing of its plan is needed any more."""
    discard_plan(os.path.join(folder, PLAN_FILE), disk)


class _Pass:
    """One walk over the source. Without `copies` and `backing` nothing is copied, and nothing noted."""

    def __init__(
        self, plan: ImportPlan, root: int, copies: FileCopies | None = None, backing: Backing | None = None
    ) -> None:
        self._plan, self._copies, self._backing = plan, copies, backing
        self._walk, self._device = SourceWalk(root), os.fstat(root).st_dev
        self._report = PassReport()
        self._linked: dict[int, int] = {}  # files with several names, and how many of these were seen
        self._next_commit_s = 0.0
        self.shared = 0

    def run(self) -> PassReport:
        if self._copies is not None:
            self._plan.begin_pass()
        for directory in self._walk.directories():
            self._visit(directory)
            self._take_outcomes(wait=False)
        self._take_outcomes(wait=True)
        report = self._report
        report.changes += self._walk.gone
        report.elsewhere = self._walk.elsewhere
        return report

    def _visit(self, directory: FoundDirectory) -> None:
        self._report.directories += 1
        names: dict[bytes, int] = {}
        for name, facts in directory.entries:
            path = directory.path + b"/" + name if directory.path else name
            if facts.st_dev != self._device:
                continue
            if stat.S_ISSOCK(facts.st_mode):
                self._report.sockets.append(path)
                continue
            names[name] = facts.st_ino
            if stat.S_ISREG(facts.st_mode):
                self._take_file(directory.fd, name, path, facts)
            elif not stat.S_ISDIR(facts.st_mode):
                self._take_other(directory.fd, name, path, facts)
        if self._copies is not None:
            self._copies.flush(directory.fd)
        self._take_directory(directory, names)

    def _look_up(self, facts: os.stat_result) -> tuple[PlannedState | None, bool, bool]:
        """The inode as it is known; whether it was copied as it is, if perhaps too soon after its last change to be
        sure; whether that is sure."""
        known = self._plan.known(facts.st_ino)
        had = known is not None and known.copied_at_ns > 0 and known.signature == Signature.of(facts)
        return known, had, had and known is not None and known.is_settled

    def _due(self, path: bytes, facts: os.stat_result) -> tuple[PlannedState | None, bool] | None:
        """What is known of an inode that is to be copied now, and whether it was copied as it is; None if it is not."""
        known, had, is_settled = self._look_up(facts)
        if not had:
            self._report.changed(path)
        return None if is_settled or self._copies is None else (known, had)

    # -- regular files

    def _take_file(self, directory: int, name: bytes, path: bytes, facts: os.stat_result) -> None:
        src = facts.st_ino
        if facts.st_nlink > 1:
            seen = self._linked.get(src, 0)
            self._linked[src] = seen + 1
            self._report.linked_outside += (not seen) - (seen + 1 == facts.st_nlink)
            if seen:
                return
        self._report.files += 1
        self._report.total_bytes += facts.st_size
        if (due := self._due(path, facts)) is None:
            return
        known, had = due
        ino = self._plan.put(src, facts, known)
        file = FileToCopy(name, path, src, ino, Signature.of(facts))
        if known is not None:
            self._remember(file, had)
        assert self._copies is not None
        self._copies.add(directory, file)

    def _remember(self, file: FileToCopy, had: bool) -> None:
        """What an earlier pass, or an earlier import, has of the file."""
        parts = self._plan.parts(file.src)
        if had:
            file.hashes = {part.number: part.hash for part in parts}
        elif parts and self._backing is not None and os.path.exists(self._backing.path(file.ino)):
            file.parts = {part.number: part for part in parts if part.at_ns > file.signature.ctime_ns}

    def _take_outcomes(self, *, wait: bool) -> None:
        if self._copies is None:
            return
        for outcome in self._copies.outcomes(wait=wait):
            self._take_outcome(outcome)
        if time.monotonic() > self._next_commit_s:
            self._plan.commit()
            self._next_commit_s = time.monotonic() + _COMMIT_S

    def _take_outcome(self, outcome: Outcome) -> None:
        file, facts = outcome.file, outcome.facts
        if facts is None:
            self._report.changed(file.path)
            self._plan.drop_parts(file.src)
            return
        for part in outcome.parts:
            self._plan.put_part(file.src, part)
        if not outcome.is_whole:
            return
        if file.signature != Signature.of(facts):  # it changed between the walk and the copy
            self._report.changed(file.path)
            self._plan.put(file.src, facts, self._plan.known(file.src))
            for part in outcome.parts:
                self._plan.put_part(file.src, part)
        elif file.hashes is not None and file.hashes != {part.number: part.hash for part in self._plan.parts(file.src)}:
            self._report.changed(file.path)
        self.shared += outcome.shared
        self._plan.copied(file.src, self._at(facts), outcome.xattrs, b"", outcome.shared)

    def _at(self, facts: os.stat_result) -> int:
        """When it was copied; of what was changed in the future, whose clock is not ours, its times alone count."""
        assert self._copies is not None
        return facts.st_ctime_ns + 1 if facts.st_ctime_ns > time.time_ns() else self._copies.at_ns

    # -- everything else

    def _take_other(self, directory: int, name: bytes, path: bytes, facts: os.stat_result) -> None:
        if facts.st_ino in self._linked:
            return
        if facts.st_nlink > 1:
            self._linked[facts.st_ino] = 1
        self._report.others += 1
        if (due := self._due(path, facts)) is None:
            return
        known, _ = due
        self._plan.put(facts.st_ino, facts, known)
        place = os.fsdecode(b"/proc/self/fd/%d/%s" % (directory, name))
        try:
            target = os.readlink(os.fsencode(place)) if stat.S_ISLNK(facts.st_mode) else b""
            xattrs, after = xattrs_of(place, follow=False), os.lstat(place)
        except FileNotFoundError:
            self._report.changed(path)
            return
        if Signature.of(after) == Signature.of(facts):
            self._plan.copied(facts.st_ino, self._at(facts), xattrs, target, False)
        else:
            self._report.changed(path)

    def _take_directory(self, directory: FoundDirectory, names: dict[bytes, int]) -> None:
        own = directory.own
        known, had, is_settled = self._look_up(own)
        if self._copies is None:
            if not had or self._plan.names(own.st_ino) != names:
                self._report.changed(directory.path)
            return
        if not is_settled:
            self._plan.put(own.st_ino, own, known, is_root=not directory.path)
        changed = self._plan.list_names(own.st_ino, names)
        xattrs, after = xattrs_of(directory.fd), os.fstat(directory.fd)
        if Signature.of(after) != Signature.of(own):
            changed = True
        elif not is_settled:
            self._plan.copied(own.st_ino, self._at(own), xattrs, b"", False)
        if changed or not had:
            self._report.changed(directory.path)
