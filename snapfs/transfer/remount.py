"""Remount: a volume that begins on this host from what another one left at a source, and fetches as it goes.

The volume is built in `VOLUME.partial` and renamed when it can be mounted: a store with the log of one snapshot and no
objects but those of its root directory, a namespace in which only the root is loaded, and `origin.json`, which says
where the rest is. That file goes when everything is here: then it is a volume like any other.

Invariants:
1. `VOLUME` does not exist, or can be mounted. A crash leaves `VOLUME.partial`, which the next attempt removes: nothing
   in it is anybody's.
2. The snapshot that is taken over is the newest whose root, root inode and root listing could be read and checked; what
   was passed over is said, with the age of what was taken.
3. It is the same volume (id and seed) in a new generation, claimed at every source that knows claims before the volume
   can be mounted. Object numbers, inode numbers and snapshot numbers go on from those of the snapshot. What the last
   writer brought between our first look and the claim counts: it was acknowledged, and after the claim no more comes.
4. Time and bytes do not depend on the size of the state.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from snapfs.blocks import ROOT_INO, Disk, Generation, SnapshotNumber
from snapfs.errors import BusyError, CorruptionError, SnapfsError, UserError
from snapfs.live.handover import leave_in_order
from snapfs.live.namespace import Namespace
from snapfs.store import records
from snapfs.store.fetched import Fetched
from snapfs.store.holds import Holds
from snapfs.store.records import GOOD, SnapshotRecord, StoreIdentity
from snapfs.store.repository import Repository
from snapfs.store.snapshot import SnapshotTree
from snapfs.store.wire import Refusal, RefusedError
from snapfs.transfer import keeping
from snapfs.transfer.fetcher import Fetcher
from snapfs.transfer.hydrator import StoreSource, listing_of
from snapfs.transfer.places import late_source
from snapfs.transfer.remote import Access
from snapfs.transfer.rows import row_of
from snapfs.transfer.sources import Origin, Source, holder_name, no_answer
from snapfs.volume import Volume, boot_id

ORIGIN_FILE = "origin.json"
FIRST_BYTES = 256 << 10
"""Of the snapshot's tables, to be fetched in the first round trip. The mount waits for all of them: 1 MiB took 0.2 s
longer, which a larger state had and a smaller one had not."""
CLAIMS = 5
BEGIN_WAIT_S = 10.0
_NOWHERE = "nothing was made; try again, or name another source"


class OriginFile(msgspec.Struct, frozen=True):
    """VOLUME/origin.json."""

    sources: list[str]
    snapshot: dict[str, Any]
    holder: str
    access: Access = Access()
    format: int = 1

    @property
    def record(self) -> SnapshotRecord:
        return records.from_fields(self.snapshot)


@dataclass(frozen=True, slots=True)
class RemountReport:
    """What was taken over. `passed_over`: newer snapshots that could not be, each with why."""

    snapshot: SnapshotNumber
    name: str | None
    cut_time_ns: int
    generation: Generation
    bytes: int
    seconds: float
    passed_over: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        age_s = max(time.time() - self.cut_time_ns / 1e9, 0)
        named = f" {self.name}" if self.name else ""
        taken = f"snapshot {self.snapshot}{named}, {age_s:.0f} s old, is taken over"
        return [*self.passed_over, f"{taken}; generation {self.generation} begins"]


def read_origin(volume_path: str) -> OriginFile | None:
    """Where a volume that is not all here comes from; None if it is. UserError if the file cannot be understood."""
    path = os.path.join(volume_path, ORIGIN_FILE)
    try:
        with open(path, "rb") as file:
            found = msgspec.json.decode(file.read(), type=OriginFile)
            _ = found.record
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}; restore the file, or begin anew with `snapfs mount --from`") from None
    if found.format > 1:
        raise UserError(f"{path} is of a later format; use a newer snapfs")
    return found


def write_origin(volume_path: str, origin: OriginFile, disk: Disk) -> None:
    disk.replace_file("remount:origin", os.path.join(volume_path, ORIGIN_FILE), msgspec.json.encode(origin) + b"\n")


def remount(
    path: str,
    places: Sequence[str],
    disk: Disk,
    *,
    access: Access | None = None,
    force: bool = False,
    snapshot: str | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
) -> RemountReport | None:
    """Make the volume `path` of what `places` (URLs and folders) have; None if it was begun before and goes on.

    `force`: also where a source that could fence the last writer off cannot be reached or does not let us.
    UserError, BusyError and what the sources raise; nothing is left behind then.
    """
    path, access = os.path.abspath(path), access or Access()
    if Volume.exists(path):
        _go_on(path, places, access, disk)
        return None
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise UserError(f"{path} exists, and is no volume: name a folder that does not exist yet")
    building = f"{path}.partial"
    started = time.monotonic()
    sources: list[Source] = [late_source(place, access) for place in places]
    try:
        shutil.rmtree(building, ignore_errors=True)
        report = _build(building, path, sources, access, disk, force, snapshot, settings, started)
        disk.rename("remount:publish", building, path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    finally:
        for source in sources:
            source.close()
    disk.sync_dir("remount:publish", os.path.dirname(path))
    return report


def _go_on(path: str, places: Sequence[str], access: Access, disk: Disk) -> None:
    """The volume is here, in part: let it fetch from these places from now on."""
    known = read_origin(path)
    if known is None:
        raise UserError(
            f"{path} is a volume already, and all of it is here: mount it without --from, or name a new volume "
            f"(and give --from {path} as well, so that what it has is not fetched)"
        )
    if (list(places), access) != (known.sources, known.access):
        write_origin(path, msgspec.structs.replace(known, sources=list(places), access=access), disk)


def _build(
    building: str,
    path: str,
    sources: list[Source],
    access: Access,
    disk: Disk,
    force: bool,
    wanted: str | None,
    settings: dict[str, dict[str, Any]] | None,
    started: float,
) -> RemountReport:
    origin, snapshots = _agreed(sources)
    keys = keys_of(sources)
    volume = Volume.create(
        building, disk, seed=origin.identity.seed, volume_id=origin.identity.volume_id,
        generation=origin.generation + 1, settings=_merged(encryption_of(access, keys), settings or {}),
    )  # fmt: skip
    write_keys(building, keys, disk)
    identity = StoreIdentity(volume.volume_id, volume.seed)
    Repository.create(volume.store_dir, identity, disk).close()
    Fetched(volume.store_dir, disk).close()
    repository = Repository.open(volume.store_dir, identity, disk)
    try:
        lazy = repository.lazy
        assert lazy is not None
        fetcher = Fetcher(lazy, sources, wait_s=BEGIN_WAIT_S)
        try:
            lazy.source = fetcher
            record, tree, passed_over = _newest_good(repository, fetcher, snapshots, wanted)
            holder = holder_name(path)
            generation = claimed(volume, sources, holder, force)
            if brought_meanwhile(sources, snapshots, force):
                record, tree, passed_over = _newest_good(repository, fetcher, _agreed(sources)[1], wanted)
            fill_root(volume, repository, tree, disk)
            keeping.hold(Holds(volume.store_dir, disk), record.number)
            repository.adopt(record)
            places = [source.name for source in sources]
            repository.record_event("remounted", snapshot=record.number, generation=generation, sources=places)
            write_origin(building, OriginFile(places, records.to_fields(record), holder, access), disk)
            lazy.places.fetched.sync()
            total = sum(state.bytes for state in fetcher.states.values())
        finally:
            lazy.source = None
            fetcher.close()
    finally:
        repository.close()
    seconds = time.monotonic() - started
    return RemountReport(record.number, record.name, record.cut_time_ns, generation, total, seconds, passed_over)


def encryption_of(access: Access, keys: bytes) -> dict[str, dict[str, Any]]:
    """The settings of a volume that goes on with the key it was read with: its targets get ciphertext as well."""
    named = {"key_file": access.key_file, "key_command": access.key_command}
    given = {name: value for name, value in named.items() if value and keys}
    return {"replication": {"encryption": given}} if given else {}


def _merged(*settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for tables in settings:
        for section, table in tables.items():
            found[section] = {**found.get(section, {}), **table}
    return found


def keys_of(sources: Iterable[Source]) -> bytes:
    """The wrapped keys that a source has, so that what is pushed from here is sealed with the same; b"" for none."""
    for source in sources:
        with contextlib.suppress(OSError, SnapfsError):
            found = source.keys()
            if found:
                return found
    return b""


def write_keys(folder: str, keys: bytes, disk: Disk) -> None:
    """Keep them. Damaged ones are not: the agent finds others at the targets, and to take over comes first. OSError."""
    if keys:
        from snapfs.store import keys as wrapped  # most mounts need no cipher

        with contextlib.suppress(SnapfsError):
            wrapped.write_keys(folder, wrapped.WrappedKeys.decode(keys, "the source"), disk)


def _agreed(sources: list[Source]) -> tuple[Origin, list[SnapshotRecord]]:
    """Whose past it is, and all snapshots that any source has. UserError where sources are of different volumes, and
    where none answers: with the exit code of why, if that is one."""
    found: list[tuple[Source, Origin]] = []
    snapshots: dict[SnapshotNumber, SnapshotRecord] = {}
    failures: list[tuple[Source, Exception]] = []
    for source in sources:
        try:
            found.append((source, source.origin()))
            for record in source.snapshots():
                known = snapshots.get(record.number)
                if known is None or known.state != GOOD or record.generation > known.generation:
                    snapshots[record.number] = record
        except (OSError, SnapfsError) as error:
            failures.append((source, error))
    if not found:
        raise no_answer(failures, _NOWHERE)
    first, origin = found[0]
    for source, other in found[1:]:
        if other.identity != origin.identity:
            raise UserError(f"{first.name} and {source.name} are not the same volume; {_NOWHERE}")
    generation = max(other.generation for _, other in found)
    return Origin(origin.identity, generation), sorted(snapshots.values(), key=age)


def _newest_good(
    repository: Repository, fetcher: Fetcher, snapshots: list[SnapshotRecord], wanted: str | None
) -> tuple[SnapshotRecord, SnapshotTree, list[str]]:
    passed_over: list[str] = []
    chosen = [record for record in snapshots if wanted is None or wanted in (str(record.number), record.name)]
    for record in reversed(chosen):
        if record.state != GOOD:
            passed_over.append(f"snapshot {record.number} is known to be damaged; an older one is used")
            continue
        try:
            _first_tables(fetcher, record)
            tree = SnapshotTree(repository, record.root)
            root = tree.inode(ROOT_INO)
            if root is None or not stat.S_ISDIR(root.mode):
                raise CorruptionError(f"snapshot {record.number}", "the source", "it has no root directory")
            StoreSource(repository, tree).names(listing_of(root))
        except (CorruptionError, OSError) as error:
            passed_over.append(f"snapshot {record.number} cannot be used: {error}; an older one is")
            continue
        return record, tree, passed_over
    if wanted is not None and not chosen:
        raise UserError(f"no source has a snapshot {wanted}; {_NOWHERE}")
    raise UserError("; ".join(passed_over) or f"no source has a snapshot yet; {_NOWHERE}")


def _first_tables(fetcher: Fetcher, record: SnapshotRecord) -> None:
    """In one round trip what the mount begins with; without it the objects are fetched one after the other."""
    for source in fetcher.sources:
        with contextlib.suppress(OSError, SnapfsError):
            fetcher.take(source.tables(record, FIRST_BYTES), source.name)
            return


def fill_root(volume: Volume, repository: Repository, tree: SnapshotTree, disk: Disk) -> None:
    """A namespace in which the root directory is loaded, and nothing else."""
    root = tree.inode(ROOT_INO)
    assert root is not None
    names = Namespace(volume.namespace_path, disk)
    try:
        with names.bulk(sealed=True) as bulk:
            bulk.put_inode(row_of(root), root.xattrs)
            bulk.set_unloaded(ROOT_INO, listing_of(root))
            bulk.raise_next_ino(tree.root.next_ino)
        names.load(ROOT_INO, StoreSource(repository, tree).names(listing_of(root)), last=True)
        names.sync()
        leave_in_order(volume.live_dir, names, disk, boot_id())
    finally:
        names.close()


def claimed(volume: Volume, sources: list[Source], holder: str, force: bool) -> Generation:
    """Become the one writer at every source; the generation that is ours. BusyError if one does not let us."""
    volume.lock("taking over")
    try:
        claimed = None
        while claimed != volume.generation:  # a later source may know of a newer one than an earlier
            claimed = volume.generation
            for source in sources:
                _claim_at(volume, source, holder, force)
        return volume.generation
    finally:
        volume.unlock()


def brought_meanwhile(sources: Sequence[Source], known: Sequence[SnapshotRecord], force: bool) -> bool:
    """Whether the last writer brought a snapshot between `known` and our claim: that one was acknowledged, too.

    After the claim there can be no more. BusyError if a source cannot be asked, unless it is forced.
    """
    newest = max(map(age, known), default=None)
    found = False
    for source in sources:
        try:
            last = source.origin().newest
        except (OSError, SnapfsError) as error:
            if force:
                continue
            why = "what the last writer brought there before it was fenced off is not known: try again"
            raise BusyError(f"{source.name}: {error}; {why}") from None
        found |= last is not None and (newest is None or age(last) > newest)
    return found


def age(record: SnapshotRecord) -> tuple[Generation, SnapshotNumber]:
    """What orders the snapshots of a volume: a later generation went on from some snapshot of the one before."""
    return record.generation, record.number


def _claim_at(volume: Volume, source: Source, holder: str, force: bool) -> None:
    for _ in range(CLAIMS):
        try:
            return source.claim(volume.generation, holder, "remounted")
        except RefusedError as error:
            if error.refusal is Refusal.FENCED and error.problem.generation >= volume.generation:
                volume.bump_generation(error.problem.generation + 1)
                continue
            failure: Exception = error
        except (OSError, SnapfsError) as error:
            failure = error
        if force:
            return None
        raise BusyError(
            f"{source.name} does not let this host become the writer ({failure}): the last one might go on. "
            "See that it is down and give --force, or name a source that can fence it off"
        ) from None
    raise BusyError(f"{source.name}: others keep claiming generations: see who else takes this volume over")
