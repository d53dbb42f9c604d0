"""Requests of a host to the mirrors and object stores among a volume's targets: claims, and what they know.

All of them block on the network. A target that does not answer within WAIT_SECONDS counts as silent.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from snapfs.base.blocks import Generation
from snapfs.base.errors import SnapfsError, UserError
from snapfs.base.settings.replication_settings import TargetSettings, expanded, plain_url, target_name
from snapfs.base.volumes.volume import Volume
from snapfs.store.bucket.bucket_layout import SCHEMES
from snapfs.store.log.claims import ClaimWriter, is_fenced, went_on_from
from snapfs.store.log.peers import AskedTarget
from snapfs.store.log.target_id import read_target_id
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.transfer.sources.mirror_source import MirrorSource
from snapfs.transfer.sources.source_access import Access

if TYPE_CHECKING:
    from snapfs.transfer.sources.bucket_source import BucketSource

WAIT_SECONDS = 5.0


@dataclass(slots=True)
class Claims:
    """The mirrors' answers. `fenced`: generation and id of another writer, and the snapshot of ours that it went on
    from (0: not reported). `silent`: mirrors that could not be reached, each with the reason.

    `unknown`: those that have no such volume, or show none to this token, and so have granted nothing.
    """

    granted: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    fenced: dict[str, tuple[Generation, str, int]] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class QueriedTargets:
    """What a volume's targets answered before a takeover. `generation`: the highest that was claimed at one of them.

    `answered`: by URL, each target's id and the targets that it knows of. A folder counts as answered without being
    read: the agent claims it as soon as it can. `failed`: by URL, why a mirror or object store gave no answer.
    """

    generation: int = 0
    answered: dict[str, AskedTarget] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def mirrors_of(volume: Volume) -> list[TargetSettings]:
    """The mirrors and object stores among the volume's targets."""
    targets = volume.config.replication.target
    return [target for target in targets if target.url.partition("://")[0] in ("http", "https", *SCHEMES)]


def source_of(target: TargetSettings) -> MirrorSource | BucketSource:
    """A mirror or object store, to read from and to claim at. Raises UserError."""
    if target.url.partition("://")[0] in SCHEMES:
        from snapfs.transfer.sources.bucket_source import BucketSource  # it takes obstore, which others do not wait for

        return BucketSource.open(expanded(target).url, Access.of(target))
    return MirrorSource(expanded(target).url, Access.of(target))


def query_targets(volume: Volume) -> QueriedTargets:
    """Who claimed the volume's targets, and which other targets they know of. One after the other."""
    found = QueriedTargets()
    mirrors = mirrors_of(volume)
    for target in mirrors:
        url = plain_url(target.url)
        try:
            with contextlib.closing(source_of(target)) as source:
                found.generation = max(found.generation, source.writer()[1])
                found.answered[url] = source.target_peers()
        except (OSError, SnapfsError) as error:
            if not isinstance(error, RefusedError) or error.refusal is not Refusal.NOT_FOUND:  # that has nothing
                found.failed[url] = str(error)
    for target in volume.config.replication.target:
        if target not in mirrors:
            found.answered[plain_url(target.url)] = AskedTarget(_folder_id(target.url))
    return found


def _folder_id(url: str) -> str:
    with contextlib.suppress(OSError, SnapfsError):
        return read_target_id(url.removeprefix("file://"))
    return ""


def claim_at_all(targets: list[TargetSettings], ours: ClaimWriter, volume_id: str, snapshot: int = 0) -> Claims:
    """Claim at all mirrors at the same time. `snapshot`: the base of a takeover."""
    claims = Claims()
    pool = ThreadPoolExecutor(len(targets) or 1, "claim")
    futures = {pool.submit(_claim_at, target, ours, volume_id, snapshot): target_name(target) for target in targets}
    done, late = wait(futures, WAIT_SECONDS)
    pool.shutdown(wait=False, cancel_futures=True)
    for future in late:
        claims.silent[futures[future]] = f"no answer in {WAIT_SECONDS:.0f} s"
    for future in done:
        name = futures[future]
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


def _claim_at(
    target: TargetSettings, ours: ClaimWriter, volume_id: str, snapshot: int
) -> tuple[Generation, str, int] | None:
    """Claim at one mirror: None if this host is the writer there; else the other writer.

    Raises OSError, SnapfsError ("not found" where there is no such volume).
    """
    with contextlib.closing(source_of(target)) as source:
        try:
            there, generation, writer_id = source.writer()
            if there != volume_id:
                raise UserError(f"{target.url} keeps another volume: correct the url of this target")
            if is_fenced(ours, generation, writer_id):
                return generation, writer_id, went_on_from(ours, source.successions())
            source.claim(ours.generation, ours.writer_id, "mounted", snapshot)
        except RefusedError as error:
            if error.refusal is Refusal.FENCED:
                return Generation(error.problem.generation), error.problem.writer_id, error.problem.went_on_from
            raise
    return None
