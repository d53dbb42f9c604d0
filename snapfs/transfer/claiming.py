"""Before a volume with targets is written: is this host still its writer?

`claim` asks the mirrors and object stores (both are called mirrors here) among the volume's targets, at each mount, and
claims the volume's generation there (again). Folders are claimed by the agent, a moment later. `take_over` makes this
host the writer on purpose, in a generation of its own.

Invariants:
1. A mirror that says that another host took over makes the volume a fenced one (fencing.py), durably, before it is
   mounted; an earlier fencing stays until every mirror that answers says that this host writes.
2. A mirror that does not answer within WAIT_SECONDS stops nothing, unless the settings want so many claims before the
   first write (`replication.claim = "require"`): no mirror ever takes anything from who is not its writer anyway.
3. `take_over` has written "taken-over" to the log before it claims: a crash leaves a volume that claims at its next
   mount, as it was told to.
"""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from snapfs.blocks import Disk, Generation
from snapfs.config import TargetSettings, target_name
from snapfs.errors import BusyError, SnapfsError, UserError
from snapfs.store.bucket import SCHEMES
from snapfs.store.claims import Writer, is_fenced, taken_over_in
from snapfs.store.records import StoreIdentity
from snapfs.store.repository import LOG, Repository
from snapfs.store.wire import Refusal, RefusedError
from snapfs.transfer.fencing import FILE, Fenced, read_fenced, write_fenced
from snapfs.transfer.remote import Access, MirrorSource
from snapfs.transfer.sources import holder_name
from snapfs.volume import Volume

if TYPE_CHECKING:
    from snapfs.transfer.buckets import BucketSource

WAIT_SECONDS = 5.0
_NOBODY = (Generation(0), "")


@dataclass(slots=True)
class Claims:
    """What the mirrors said: who let us, who writes instead, who could not be asked and why.

    `unknown`: those that have no such volume, or show none to this token, and so have granted nothing.
    """

    granted: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    fenced: dict[str, tuple[Generation, str]] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)


def claim(volume: Volume, disk: Disk) -> list[str]:
    """Claim the volume's generation at its mirrors; what people should know. The volume is locked.

    BusyError if too few let us and the settings require them; UserError, OSError.
    """
    targets = _mirrors(volume)
    if not targets:
        return []
    repository = _opened(volume, disk)
    if repository is None:
        return []  # nothing was ever sealed here, so there is nothing to fence
    try:
        ours = Writer(volume.generation, holder_name(volume.path), taken_over_in(repository.events()))
    finally:
        repository.close()
    claims = _ask_all(targets, ours, volume.volume_id)
    if claims.fenced:
        return [_fence(volume, claims, disk)]
    known = read_fenced(volume.path)
    if known is not None and not claims.silent and claims.granted:
        os.unlink(os.path.join(volume.path, FILE))
        known = None
    wanted = volume.config.replication.copies
    if len(claims.granted) < wanted and volume.config.replication.claim == "require" and known is None:
        absent = "it has no such volume, or none for this token (`snapfs-replicator push --once` would make it)"
        silent = [*claims.silent.items(), *((name, absent) for name in claims.unknown)]
        why = "; ".join(f"{name}: {words}" for name, words in silent)
        raise BusyError(
            f"{wanted} mirrors must let this host write before it does (replication.claim = require), and "
            f"{len(claims.granted)} did: {why or 'there are no more'}"
        )
    return [f"{name} could not be asked whether this host still writes: {why}" for name, why in claims.silent.items()]


def take_over(volume: Volume, disk: Disk) -> Generation:
    """Make this host the writer of a volume that another has taken over, or that was moved; its generation then.

    What the other wrote stays on the targets as a branch (`before-generation-N`). BusyError if too few mirrors can be
    reached, or somebody else takes over at the same time.
    """
    targets, holder = _mirrors(volume), holder_name(volume.path)
    volume.lock("taking over")
    try:
        repository = _opened(volume, disk, readonly=False)
        if repository is None:
            raise UserError(f"{volume.path} has no snapshot: there is nothing to take over")
        highest: int = max([volume.generation, *(number for number, _ in _asked(targets).values())])
        with contextlib.suppress(UserError):  # it cannot be understood, and goes
            known = read_fenced(volume.path)
            highest = max(highest, known.by_generation if known is not None else 0)
        generation = volume.bump_generation(highest + 1)
        with contextlib.closing(repository):
            repository.record_event("taken-over", generation=generation, holder=holder)
        claims = _ask_all(targets, Writer(generation, holder, generation), volume.volume_id)
        wanted = min(volume.config.replication.copies, len(targets))
        if claims.fenced or len(claims.granted) + len(claims.unknown) < wanted:
            why = [f"{name}: generation {number} is {who}'s" for name, (number, who) in claims.fenced.items()]
            why += [f"{name}: {words}" for name, words in claims.silent.items()]
            raise BusyError(f"too few mirrors let this host take over ({'; '.join(why)}): try again")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(volume.path, FILE))
        return generation
    finally:
        volume.unlock()


def _mirrors(volume: Volume) -> list[TargetSettings]:
    targets = volume.config.replication.target
    return [target for target in targets if target.url.partition("://")[0] in ("http", "https", *SCHEMES)]


def _opened(volume: Volume, disk: Disk, *, readonly: bool = True) -> Repository | None:
    if not os.path.exists(os.path.join(volume.store_dir, LOG)):
        return None
    identity = StoreIdentity(volume.volume_id, volume.seed)
    return Repository.open(volume.store_dir, identity, disk, readonly=readonly)


def _source(target: TargetSettings) -> MirrorSource | BucketSource:
    if target.url.partition("://")[0] in SCHEMES:
        from snapfs.transfer.buckets import BucketSource  # it takes obstore, which others do not wait for

        return BucketSource.open(target.url, Access.of(target))
    return MirrorSource(target.url, Access.of(target))


def _asked(targets: list[TargetSettings]) -> dict[str, tuple[Generation, str]]:
    """Who has claimed what, where that can be learnt."""
    found = {}
    for target in targets:
        with contextlib.suppress(OSError, SnapfsError), contextlib.closing(_source(target)) as source:
            _, generation, holder = source.writer()
            found[target_name(target)] = generation, holder
    return found


def _ask_all(targets: list[TargetSettings], ours: Writer, volume_id: str) -> Claims:
    """Ask all mirrors at once."""
    claims = Claims()
    pool = ThreadPoolExecutor(len(targets) or 1, "claim")
    asking = {pool.submit(_claim_at, target, ours, volume_id): target_name(target) for target in targets}
    done, late = wait(asking, WAIT_SECONDS)
    pool.shutdown(wait=False, cancel_futures=True)
    for future in late:
        claims.silent[asking[future]] = f"no answer in {WAIT_SECONDS:.0f} s"
    for future in done:
        name = asking[future]
        try:
            by = future.result()
        except (OSError, SnapfsError) as error:
            if isinstance(error, RefusedError) and error.refusal is Refusal.NOT_FOUND:
                claims.unknown.append(name)
            else:
                claims.silent[name] = str(error)
            continue
        if by is None:
            claims.granted.append(name)
        else:
            claims.fenced[name] = by
    return claims


def _claim_at(target: TargetSettings, ours: Writer, volume_id: str) -> tuple[Generation, str] | None:
    """None if this host is the writer there; else who is. OSError, SnapfsError ("not found" where nobody is)."""
    with contextlib.closing(_source(target)) as source:
        try:
            there, generation, holder = source.writer()
            if there != volume_id:
                raise UserError(f"{target.url} keeps another volume")
            if is_fenced(ours, generation, holder):
                return generation, holder
            source.claim(ours.generation, ours.holder, "mounted")
        except RefusedError as error:
            if error.refusal is Refusal.FENCED:
                return Generation(error.problem.generation), error.problem.holder
            raise
    return None


def _fence(volume: Volume, claims: Claims, disk: Disk) -> str:
    """Remember that another host writes; in words."""
    name, (generation, holder) = max(claims.fenced.items(), key=lambda item: item[1][0])
    known = read_fenced(volume.path)
    fenced = Fenced(volume.generation, generation, holder, name, time.time_ns(), base=_last_replicated(volume))
    if known is not None:
        fenced = known
    else:
        write_fenced(volume.path, fenced, disk)
    return str(fenced)


def _last_replicated(volume: Volume) -> int:
    from snapfs.store import replicas

    found = replicas.read(replicas.path_of(volume.path), volume.volume_id)
    return max((each.newest or 0 for each in found.targets), default=0) if found is not None else 0
